"""What watching and recording cost: how it is reckoned, and short runs of both through real agents."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from benchmarks import dashboard, recording
from benchmarks.report import on_off_rows
from benchmarks.running_agent import capture_to_plan_ms


def test_the_ratio_is_of_all_rounds_together_and_the_noise_that_of_single_rounds() -> None:
    off, on = on_off_rows({"off": [[1.0] * 100, [2.0] * 100], "on": [[1.5] * 100, [1.0] * 100]}, mb_per_min=3.0)
    assert (off.case, off.ratio, on.case) == ("off", None, "on")
    assert on.ratio == 0.75
    assert on.more["round_ratios"] == [1.5, 0.5]
    assert on.more["p50_ratio"] == pytest.approx(1.25 / 1.5)
    assert on.more["mb_per_min"] == 3.0
    assert (off.more["max_ms"], on.more["max_ms"]) == (2.0, 1.5)


def test_a_frame_counts_once_from_its_capture_and_only_within_the_span() -> None:
    def plan(captured_ms: int, published_ms: int, *, abstained: bool = False) -> dict[str, Any]:
        return {"captured_ns": captured_ms * 10**6, "published_ns": published_ms * 10**6, "abstained": abstained}

    plans = [plan(5, 6), plan(10, 13), plan(10, 90), plan(20, 21, abstained=True), plan(30, 34), plan(40, 41)]
    assert capture_to_plan_ms(plans, 10 * 10**6, 40 * 10**6) == [3.0, 4.0]


@pytest.mark.parametrize(
    ("benchmark", "cases"),
    [(dashboard, ["nobody", "10_browsers_1_frozen"]), (recording, ["not_recorded", "recorded"])],
)
def test_a_short_run_measures_both_conditions(
    benchmark: Any, cases: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its exit code is the targets', which a second on a busy machine says nothing of."""
    monkeypatch.setattr(sys, "argv", [benchmark.__name__, "--seconds", "1", "--rounds", "1"])
    benchmark.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["case"] for row in result["rows"]] == cases
    assert all(row["n"] > 10 and 0 < row["p50_ms"] <= row["p99_ms"] for row in result["rows"])
    assert {target["reads"] for target in result["targets"]} == {"ratio", "p50_ratio"}
    if benchmark is recording:
        assert result["rows"][1]["mb_per_min"] > 0
