"""Do browsers that watch slow the agent down?

One running agent with its dashboard; in turn nobody watches, and ten browsers do, one of them frozen: it takes its first batch
and never answers. The browsers here take every picture and every section as fast as they are given (browsers.py). Time is from a
frame's capture to its published plan, by the agent's own stamps. Conditions alternate every few seconds, so that whatever
else the machine does meets both. The limit to compare with is no browser at all: a ratio of 1.
"""  # noqa: D400

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path

from benchmarks.browsers import watching
from benchmarks.report import Report, arguments, first_line, on_off_rows, run_main
from benchmarks.running_agent import capture_to_plan_ms, running, span
from stream_agent.sinks.dashboard.process import PACKAGES

_QUESTION = first_line(__doc__)
_BROWSERS = 10
_SETTLE_S = 0.7
"""Left out after each change: connections are made and broken."""
_START_S = 90.0


def main() -> int:
    parser = arguments(_QUESTION)
    parser.add_argument("--seconds", type=float, default=None, help="of each condition, each time")
    parser.add_argument("--rounds", type=int, default=None, help="how often each condition comes")
    options = parser.parse_args()
    seconds = options.seconds or (2.0 if options.quick else 10.0)
    rounds = options.rounds or (3 if options.quick else 12)
    settings = {
        "seconds": seconds,
        "rounds": rounds,
        "browsers": _BROWSERS,
        "frozen": 1,
        "size": "960x540 at 30 fps, every frame looked at",
    }
    report = Report("dashboard", _QUESTION, settings, columns=("max_ms", "p50_ratio", "spread"))
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        report.not_run["ours"] = f"{missing[0]} is not installed; pip install -e '.[dashboard]'"
        return report.finish(options)
    with tempfile.TemporaryDirectory(prefix="sa") as name:
        alone, watched = _measured(Path(name) / "agent", seconds, rounds)
    report.rows += on_off_rows({"nobody": alone, "10_browsers_1_frozen": watched})
    report.notes.append("ratio: the p99 of all rounds with browsers over that of all rounds without")
    return report.finish(options)


def _measured(folder: Path, seconds: float, rounds: int) -> tuple[list[list[float]], list[list[float]]]:
    """Milliseconds from capture to plan, per round, without and with browsers."""
    lasts_s = int(2 * rounds * (seconds + 5) + _START_S)
    settings = [f"source.synthetic_duration_s={lasts_s}", "source.synthetic_speed=1", "recogniser.rate_hz=30"]
    settings += ["sinks.dashboard.enabled=true", "sinks.dashboard.port=0"]
    alone: list[tuple[int, int]] = []
    watched: list[tuple[int, int]] = []
    with running(folder, settings) as agent:
        port = agent.dashboard_port()
        agent.wait_for_plans()
        for _ in range(rounds):
            alone.append(span(seconds, _SETTLE_S))
            with watching(port, _BROWSERS):
                watched.append(span(seconds, _SETTLE_S))
        agent.stop()
        plans = agent.plans()
    return [capture_to_plan_ms(plans, *one) for one in alone], [capture_to_plan_ms(plans, *one) for one in watched]


if __name__ == "__main__":
    run_main(main)
