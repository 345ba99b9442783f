"""How old is the frame that a slow consumer gets?

A publisher in its own process keeps 60 fps of 1080p; the consumer works 200 ms on every frame it takes (`slow_200ms`), first
stands still for five seconds (`stalled_5s`), or takes ten frames as fast as they come and then rests for a second
(`bursty`). Age is from when the frame was due to the consumer holding the array. The physical limit: whoever looks at a
random moment at a 60 fps stream finds a frame of 0 to 16.7 ms. The consumer's work is lengthened by up to one interval at
random, since 200 ms are exactly 12 intervals and would always meet the same phase. imagezmq REQ/REP keeps its frames young
by holding the camera up: what it could not send is in `lost`.
"""  # noqa: D400

from __future__ import annotations

import dataclasses

from benchmarks.pair import Consume, Round, opened
from benchmarks.report import Report, arguments, first_line, quantiles_ms, row_of, run_main

_QUESTION = first_line(__doc__)
_METHODS = (
    "ours",
    "imagezmq_pubsub",
    "imagezmq_reqrep",
    "netgear_raw",
    "pyzmq_ipc",
    "pyzmq_ipc_queue",
    "pyzmq_tcp",
    "iceoryx2",
)
_QUEUEING = ("imagezmq_pubsub", "netgear_raw", "pyzmq_ipc_queue")
_QUEUEING_S = 12.0
"""No longer for these: 60 frames of 6 MB a second, all kept, fill the memory of the machine within a minute."""

_INTERVAL_S = 1 / 60
_WORK_S = 0.2
_SERIES = 120


def main() -> int:
    parser = arguments(_QUESTION)
    parser.add_argument("--seconds", type=float, default=None, help="of each consumer")
    options = parser.parse_args()
    quick = options.quick
    seconds = options.seconds or (2.4 if quick else 60.0)
    tasks = {
        "slow_200ms": Consume(seconds, _WORK_S, _INTERVAL_S),
        "stalled_5s": Consume(seconds / 3, _WORK_S, _INTERVAL_S, stall_s=1.2 if quick else 5.0),
        "bursty": Consume(seconds, 0.5 if quick else 1.0, _INTERVAL_S, burst=10),
    }
    report = Report(
        "staleness",
        _QUESTION,
        {
            "size": "1080p",
            "rate_hz": 60,
            "work_s": _WORK_S,
            "seconds": {case: task.seconds for case, task in tasks.items()},
            "seconds_of_queueing_methods": min(_QUEUEING_S, seconds),
            "stall_s": tasks["stalled_5s"].stall_s,
        },
        columns=("age_max_ms", "age_end_ms", "lost"),
    )
    methods = [method for method in _METHODS if not (quick and method in ("pyzmq_ipc_queue", "pyzmq_tcp"))]
    results: dict[tuple[str, str], Round] = {}
    with opened(methods, "1080p") as (pairs, failed):
        report.not_run |= failed
        for case, task in tasks.items():
            for method, pair in pairs.items():
                limit_s = _QUEUEING_S if method in _QUEUEING else task.seconds
                asked = dataclasses.replace(task, seconds=min(task.seconds, limit_s))
                results[case, method] = pair.run(_INTERVAL_S, asked)
    for (case, method), done in results.items():
        ages_ms = done.latencies_ms
        report.rows.append(
            row_of(
                method,
                case,
                [ages_ms],
                age_p99_ms=quantiles_ms(ages_ms)[2],
                age_max_ms=max(ages_ms, default=float("nan")),
                age_end_ms=ages_ms[-1] if ages_ms else float("nan"),
                lost=done.due - len(ages_ms),
                series=_series(done),
            )
        )
    report.notes.append("age_end_ms: of the last frame; it grows with the run where a queue does")
    report.notes.append(
        "lost: frames that were due and not taken, which is what a consumer that is slower than the camera wants"
    )
    return report.finish(options)


def _series(done: Round) -> list[list[float]]:
    """Seconds and age in ms, thinned."""
    step = max(1, len(done.seen_s) // _SERIES)
    return [[seen_s, age] for seen_s, age in list(zip(done.seen_s, done.latencies_ms, strict=True))[::step]]


if __name__ == "__main__":
    run_main(main)
