from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import planner
from benchmarks.cross_check import figures, why_not
from benchmarks.report import Report

TWO: dict[str, Any] = {
    "completed": 2,
    "ttfts": [0.010, 0.030],
    "itls": [[0.001, 0.002], [0.003]],
    "input_lens": [100, 102],
}


def test_seconds_of_vllm_become_milliseconds_of_every_request() -> None:
    assert figures(TWO, 2) == {"first_ms": [10.0, 30.0], "next_ms": [1.0, 2.0, 3.0], "prompt_tokens": 101.0}


def test_an_unanswered_request_is_no_figure() -> None:
    with pytest.raises(RuntimeError, match=r"1 of 2 answered: .*too long"):
        figures({**TWO, "completed": 1, "errors": ["", "prompt too long"]}, 2)


def test_what_is_missing_for_a_cross_check_is_told_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    address = "http://127.0.0.1:8000/v1"
    assert "planner.endpoint=http://HOST:PORT/v1" in why_not(Path("model"), None)
    assert "planner.model=DIR" in why_not(None, address)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "vllm is not installed here" in why_not(Path("model"), address)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    assert why_not(Path("model"), address) == ""


def test_what_a_run_leaves_open_is_told_as_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "present_device", lambda: None)
    report = Report("planner", "?", {})
    planner._tell_not_asked(report, [])
    assert set(report.not_run) == {"fp8", "vllm", "openai", "vllm_bench_serve"}
    assert report.not_run["fp8"] == "it needs a GPU"
    asked = Report("planner", "?", {})
    planner._tell_not_asked(asked, ["planner.kind=vllm", "planner.model=DIR", "planner.quantization=fp8"])
    assert asked.not_run == {}
