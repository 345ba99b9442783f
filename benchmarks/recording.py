"""Does recording slow the agent down?

Two agents in turn, one of which records its video and every decision; each runs for a few seconds, and whose turn is first
alternates. Time is from a frame's capture to its published plan, by the agent's own stamps, once its processes have
started. A recorder encodes video, which is a core's work: where cores are few it competes with the agent for them, niced. The
limit to compare with is no recording: a ratio of 1.
"""  # noqa: D400

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path

from benchmarks.report import Report, arguments, first_line, on_off_rows, run_main
from benchmarks.running_agent import capture_to_plan_ms, running, span

_QUESTION = first_line(__doc__)
_SETTLE_S = 1.5
"""Left out after the first plan: the recorder opens its encoder."""
_START_S = 90.0


def main() -> int:
    parser = arguments(_QUESTION)
    parser.add_argument("--seconds", type=float, default=None, help="of each run")
    parser.add_argument("--rounds", type=int, default=None, help="runs of each")
    options = parser.parse_args()
    seconds = options.seconds or (2.5 if options.quick else 10.0)
    rounds = options.rounds or (2 if options.quick else 8)
    settings = {"seconds": seconds, "rounds": rounds, "size": "960x540 at 30 fps, every frame looked at and recorded"}
    report = Report("recording", _QUESTION, settings, columns=("max_ms", "p50_ratio", "spread", "mb_per_min"))
    if importlib.util.find_spec("mcap") is None:
        report.not_run["ours"] = "mcap is not installed; pip install -e '.[record]'"
        return report.finish(options)
    measured: dict[str, list[list[float]]] = {"not_recorded": [], "recorded": []}
    rates = []
    with tempfile.TemporaryDirectory(prefix="sa") as name:
        for number in range(rounds):
            cases = list(measured) if number % 2 == 0 else list(measured)[::-1]
            for case in cases:
                latencies, mb_per_min = _run(Path(name) / f"{case}{number}", seconds, recorded=case == "recorded")
                measured[case].append(latencies)
                rates += [mb_per_min] * (case == "recorded")
    report.rows += on_off_rows(measured, mb_per_min=sum(rates) / len(rates))
    report.notes.append("ratio: the p99 of all runs that record over that of all that do not")
    return report.finish(options)


def _run(folder: Path, seconds: float, *, recorded: bool) -> tuple[list[float], float]:
    """Milliseconds from capture to plan, and megabytes recorded a minute."""
    settings = [f"source.synthetic_duration_s={seconds + _START_S}", "source.synthetic_speed=1"]
    settings += ["recogniser.rate_hz=30", *[f"sinks.recording={folder / 'session.mcap'}"] * recorded]
    with running(folder, settings) as agent:
        agent.wait_for_plans()
        begin_ns, end_ns = span(seconds, _SETTLE_S)
        agent.stop()
        latencies = capture_to_plan_ms(agent.plans(), begin_ns, end_ns)
    size = (folder / "session.mcap").stat().st_size / 1e6 if recorded else 0.0
    return latencies, 60 * size / (seconds + _SETTLE_S)


if __name__ == "__main__":
    run_main(main)
