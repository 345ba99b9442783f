from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from benchmarks import end_to_end
from benchmarks.end_to_end import answer_ms


def plan(request_id: int, captured_ms: int, published_ms: int, rationale_age_s: float | None) -> dict[str, Any]:
    return {
        "request_id": request_id,
        "captured_ns": captured_ms * 10**6,
        "published_ns": published_ms * 10**6,
        "rationale_age_s": rationale_age_s,
        "abstained": False,
    }


def test_a_label_is_the_first_plan_of_a_request_and_a_rationale_is_of_that_very_frame() -> None:
    plans = [
        plan(0, 0, 2, None),  # the statistical planner's
        plan(1, 100, 150, None),
        plan(1, 100, 400, 0.0),
        plan(1, 100, 450, 0.0),
        plan(2, 600, 640, 0.5),  # an older frame's reasons stand in
    ]
    assert answer_ms(plans) == ([50.0, 40.0], [300.0])


def test_a_short_preview_is_measured_from_capture_to_the_browser_s_socket(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["end_to_end", "--quick", "--seconds", "1", "--cases", "preview_1080p60"])
    end_to_end.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    (row,) = result["rows"]
    assert (row["method"], row["case"]) == ("preview", "preview_1080p60")
    assert row["n"] >= 2
    assert 0 < row["p50_ms"] <= row["p99_ms"] < 60_000
    assert row["longest_gap_ms"] > 0


def test_an_unknown_case_is_told_with_those_there_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["end_to_end", "--quick", "--seconds", "1", "--cases", "preview"])
    with pytest.raises(SystemExit):
        end_to_end.main()
    assert "choose from synthetic_1080p60" in capsys.readouterr().err
