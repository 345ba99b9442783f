"""How old is the frame that a slow consumer gets?

A publisher in its own process keeps 60 fps of 1080p; the consumer works 200 ms on every frame it takes (`slow_200ms`), or
first stands still for five seconds (`stalled_5s`). Age is from the send call to the consumer holding the array. The
physical limit: whoever looks at a random moment at a 60 fps stream finds a frame of 0 to 16.7 ms. The consumer's work is
lengthened by up to one interval at random, since 200 ms are exactly 12 intervals and would always meet the same phase.
"""  # noqa: D400

from __future__ import annotations

from collections import defaultdict
from itertools import chain

from benchmarks.pair import Consume, Round, opened
from benchmarks.report import Report, Row, Target, arguments, first_line, quantiles_ms

_QUESTION = first_line(__doc__)
_METHODS = ("ours", "imagezmq_pubsub", "netgear_raw", "pyzmq_ipc", "iceoryx2")
_INTERVAL_S = 1 / 60
_WORK_S = 0.2
AGE_P99_MS = 1000 * _INTERVAL_S + 2


def main() -> int:
    options = arguments(_QUESTION).parse_args()
    rounds = 1 if options.quick else 2
    tasks = {
        "slow_200ms": Consume(2.4 if options.quick else 12.0, _WORK_S, _INTERVAL_S, stall_s=0.0),
        "stalled_5s": Consume(
            0.6 if options.quick else 4.0, _WORK_S, _INTERVAL_S, stall_s=1.2 if options.quick else 5.0
        ),
    }
    report = Report(
        "staleness",
        _QUESTION,
        {"size": "1080p", "rate_hz": 60, "work_s": _WORK_S, "rounds": rounds, "stall_s": tasks["stalled_5s"].stall_s},
        columns=("age_max_ms", "age_end_ms", "passed_over"),
    )
    results: dict[tuple[str, str], list[Round]] = defaultdict(list)
    with opened(_METHODS, "1080p") as (pairs, failed):
        report.not_run |= failed
        for _ in range(rounds):
            for case, task in tasks.items():
                for method, pair in pairs.items():
                    results[case, method].append(pair.run(_INTERVAL_S, task))
    for (case, method), done in sorted(results.items(), key=lambda item: item[0][0]):
        ages_ms = list(chain.from_iterable(part.latencies_ms for part in done))
        p50, p95, p99 = quantiles_ms(ages_ms)
        report.rows.append(
            Row(
                method,
                case,
                p50,
                p95,
                p99,
                len(ages_ms),
                target=Target(f"age p99 ms, {case}", p99, AGE_P99_MS) if method == "ours" else None,
                more={
                    "age_p99_ms": p99,
                    "age_max_ms": max(ages_ms, default=float("nan")),
                    "age_end_ms": max(
                        (part.latencies_ms[-1] for part in done if part.latencies_ms), default=float("nan")
                    ),
                    "passed_over": sum(part.sent - len(part.latencies_ms) for part in done),
                },
            )
        )
    report.notes.append(
        "age_end_ms: of the last frame of a round, the worst round; it grows with the run where a queue does"
    )
    return report.finish(options)


if __name__ == "__main__":
    raise SystemExit(main())
