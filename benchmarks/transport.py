"""How long does a frame take from `send` in one process to a usable array in another?

The physical limits: an 8-byte message on the same kind of socket, since a frame that stays where it is still has to be
announced (`floor_8_bytes`), and one copy of its bytes for every method that moves them (`memcpy`). Ours is measured as the
grabber uses it, the picture being decoded into its slot; `ours_copied_in` puts one copy into the measured time. In the
cases `480p`, `1080p` and `2160p` the picture has just been written when it is sent, as with a camera; in `1080p_waited` it
has waited for its time, as from a file, so that the sender comes from its sleep with cold caches. All methods run in turn
within each round, at a fixed rate; a ratio is the median over rounds of the quotient of medians.
"""  # noqa: D400

from __future__ import annotations

from collections import defaultdict
from itertools import chain
from statistics import median

from benchmarks.pair import METHODS, Collect, Round, opened
from benchmarks.report import Report, Row, Target, arguments, first_line, paired_ratio, quantiles_ms, spread

_QUESTION = first_line(__doc__)
_WAITED = "_waited"
_RATE_HZ = {"480p": 60.0, "1080p": 60.0, "1080p_waited": 60.0, "2160p": 15.0}
"""At 2160p some methods need 50 ms a frame; slower frames keep queues, which staleness.py is about, out of this."""

FLOOR_RATIO = 1.5
PEER_RATIO = 10.0
_PEERS = ("imagezmq_pubsub", "imagezmq_reqrep", "netgear_raw")


def main() -> int:
    parser = arguments(_QUESTION)
    parser.add_argument("--sizes", default=None, help=f"comma-separated, of {', '.join(_RATE_HZ)}")
    parser.add_argument("--methods", default=None, help="comma-separated; floor_8_bytes and ours are always run")
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--frames", type=int, default=None, help="per round and method; a quarter at 2160p")
    options = parser.parse_args()
    cases = (options.sizes or ("1080p" if options.quick else ",".join(_RATE_HZ))).split(",")
    chosen = METHODS if options.methods is None else ("floor_8_bytes", "ours", *options.methods.split(","))
    methods = [method for method in METHODS if method in chosen]
    rounds = options.rounds or (3 if options.quick else 9)
    frames = options.frames or (15 if options.quick else 60)
    report = Report(
        "transport",
        _QUESTION,
        {"sizes": cases, "rounds": rounds, "frames_per_round": frames, "rate_hz": _RATE_HZ},
        columns=("lost", "send_p50_ms", "x_memcpy", "spread"),
    )
    for case in cases:
        with opened(methods, case.removesuffix(_WAITED)) as (pairs, failed):
            report.not_run |= failed
            results: dict[str, list[Round]] = defaultdict(list)
            interval_s = 1 / _RATE_HZ[case]
            task = Collect(5, round(frames * _RATE_HZ[case] / 60), patience_s=3 + 2 * frames / 60)
            for _ in range(rounds):
                for method, pair in pairs.items():
                    results[method].append(pair.run(interval_s, task, waits=case.endswith(_WAITED)))
        _add_rows(report, case, results)
    return report.finish(options)


def _add_rows(report: Report, case: str, results: dict[str, list[Round]]) -> None:
    """One row per method; `ratio` is against the 8-byte message."""
    medians = {method: [done.p50_ms for done in rounds] for method, rounds in results.items()}
    for method, rounds in results.items():
        latencies_ms = list(chain.from_iterable(done.latencies_ms for done in rounds))
        sending_ms = list(chain.from_iterable(done.sending_ms for done in rounds))
        _, p95, p99 = quantiles_ms(latencies_ms)
        ratio = None if method == "floor_8_bytes" else paired_ratio(medians[method], medians["floor_8_bytes"])
        target = None
        if case == "1080p" and method == "ours" and ratio is not None:
            target = Target("ours / floor_8_bytes, p50", ratio, FLOOR_RATIO)
        elif case == "1080p" and method in _PEERS:
            target = Target(f"{method} / ours, p50", paired_ratio(medians[method], medians["ours"]), PEER_RATIO, ">=")
        report.rows.append(
            Row(
                method,
                case,
                median(medians[method]),
                p95,
                p99,
                len(latencies_ms),
                ratio=ratio,
                target=target,
                more={
                    "lost": sum(done.sent - len(done.latencies_ms) for done in rounds),
                    "send_p50_ms": quantiles_ms(sending_ms)[0],
                    "x_ours": paired_ratio(medians[method], medians["ours"]),
                    "x_memcpy": paired_ratio(medians[method], medians["memcpy"]) if "memcpy" in medians else None,
                    "spread": spread(medians[method]),
                },
            )
        )


if __name__ == "__main__":
    raise SystemExit(main())
