from __future__ import annotations

import io

from rich.console import Console

from stream_agent.sinks.summary import print_summary
from stream_agent.telemetry import Telemetry


def printed(telemetry: Telemetry, width: int = 80) -> str:
    file = io.StringIO()
    print_summary(telemetry.summary(), Console(file=file, width=width))
    return file.getvalue()


def test_the_summary_fits_80_columns_and_names_every_reason() -> None:
    telemetry = Telemetry()
    telemetry.set_total("frames_published", 123456)
    telemetry.count("frames_received", 100000)
    for reason, n in {"superseded": 20000, "lost": 3000, "overwritten": 400, "undecodable": 56}.items():
        telemetry.count("frames_dropped", n, reason=reason)
    telemetry.count("frames_gated", 3, reason="black")
    telemetry.count("plans_published", 9, reason="statistical")
    telemetry.count("plans_abstained", 2, reason="gate: [bold]black")
    telemetry.count("plans_missed", 4)
    telemetry.count("worker_failed", 1, reason="no worker")
    for stage in ("capture_to_plan_statistical", "total"):
        telemetry.span(stage, 12_345_000)
    telemetry.age(1_500_000_000)
    text = printed(telemetry)
    assert max(map(len, text.splitlines())) <= 80
    for words in (
        "123,456 published, 100,000 perceived, 23,456 dropped",
        "superseded 20,000",
        "undecodable 56",
        "black 3",
        "statistical 9",
        "gate: [bold]black 2",
        "4 missed",
        "failed no worker 1",
        "capture_to_plan_statistical",
        "12.4",
        "1,500",
    ):
        assert words in " ".join(text.split()), words
    assert "unaccounted" not in text


def test_frames_that_are_missing_from_the_books_are_told() -> None:
    telemetry = Telemetry()
    telemetry.set_total("frames_published", 10)
    telemetry.count("frames_received", 9)
    assert "1 frames unaccounted for" in printed(telemetry)


def test_an_empty_run_has_a_summary_too() -> None:
    assert "0 published, 0 perceived, 0 dropped" in printed(Telemetry())
