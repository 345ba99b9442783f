"""How long does a frame take from `send` in one process to a usable array in another?

The physical limits: an 8-byte message on the same kind of socket, since a frame that stays where it is still has to be
announced (`floor_8_bytes`), and one copy of its bytes for every method that moves them (`memcpy`). Ours is measured as the
grabber uses it, the picture being decoded into its slot; `ours_copied_in` puts one copy into the measured time. In the
cases `480p`, `1080p` and `2160p` the picture has just been written when it is sent, as with a camera; in `1080p_waited` it
has waited for its time, as from a file, so that the sender comes from its sleep with cold caches. `2160p_60hz` asks who
carries 4K at 60 frames a second without losing one. All methods run in turn within each round, at a fixed rate; a ratio
is the median over rounds of the quotient of medians.
"""  # noqa: D400

from __future__ import annotations

from collections import defaultdict
from itertools import chain
from statistics import median

from benchmarks.pair import METHODS, Collect, Round, opened
from benchmarks.report import Report, arguments, first_line, quantiles_ms, round_ratios, row_of, run_main

_QUESTION = first_line(__doc__)
_WAITED, _FULL_RATE = "_waited", "_60hz"
_RATE_HZ = {"480p": 60.0, "1080p": 60.0, "2160p": 15.0, "1080p_waited": 60.0, "2160p_60hz": 60.0}
"""At 2160p some methods need 50 ms a frame; slower frames keep queues, which staleness.py is about, out of this."""

_QUICK_CASES = ("480p", "1080p", "2160p")
_QUICK = (
    "ours",
    "floor_8_bytes",
    "memcpy",
    "imagezmq_pubsub",
    "imagezmq_reqrep",
    "netgear_raw",
    "pyzmq_ipc",
    "iceoryx2",
)
_IN_PLACE = ("ours", "floor_8_bytes", "memcpy", "iceoryx2", "shared_memory")
"""Who can be asked for 4K60 at all: those that move no pixels."""


def main() -> int:
    parser = arguments(_QUESTION)
    parser.add_argument("--sizes", default=None, help=f"comma-separated, of {', '.join(_RATE_HZ)}")
    parser.add_argument("--methods", default=None, help="comma-separated; floor_8_bytes and ours are always run")
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--frames", type=int, default=None, help="per round and method; a quarter at 2160p")
    options = parser.parse_args()
    cases = options.sizes.split(",") if options.sizes else _QUICK_CASES if options.quick else tuple(_RATE_HZ)
    if unknown := set(cases) - set(_RATE_HZ):
        parser.error(f"--sizes {','.join(sorted(unknown))}: choose from {', '.join(_RATE_HZ)}")
    chosen = _QUICK if options.quick else METHODS
    if options.methods is not None:
        chosen = ("floor_8_bytes", "ours", *options.methods.split(","))
    methods = [method for method in METHODS if method in chosen]
    rounds = options.rounds or (4 if options.quick else 9)
    frames = options.frames or (24 if options.quick else 60)
    report = Report(
        "transport",
        _QUESTION,
        {"sizes": list(cases), "rounds": rounds, "frames_per_round": frames, "rate_hz": _RATE_HZ},
        columns=("lost", "send_p50_ms", "x_ours", "x_memcpy", "spread"),
    )
    for case in cases:
        asked = [method for method in methods if method in _IN_PLACE] if case.endswith(_FULL_RATE) else methods
        with opened(asked, case.removesuffix(_WAITED).removesuffix(_FULL_RATE)) as (pairs, failed):
            report.not_run |= failed
            results: dict[str, list[Round]] = defaultdict(list)
            interval_s = 1 / _RATE_HZ[case]
            task = Collect(5, round(frames * _RATE_HZ[case] / 60), patience_s=3 + 2 * frames / 60)
            for _ in range(rounds):
                for method, pair in pairs.items():
                    results[method].append(pair.run(interval_s, task, waits=case.endswith(_WAITED)))
        _add_rows(report, case, results)
    report.notes.append(
        "ratio: against floor_8_bytes; x_ours, x_memcpy: against those; spread: (max - min) / median of rounds"
    )
    return report.finish(options)


def _add_rows(report: Report, case: str, results: dict[str, list[Round]]) -> None:
    """One row per method; `ratio` is against the 8-byte message."""
    latencies = {method: [done.latencies_ms for done in rounds] for method, rounds in results.items()}
    for method, rounds in results.items():
        sending_ms = list(chain.from_iterable(done.sending_ms for done in rounds))
        report.rows.append(
            row_of(
                method,
                case,
                latencies[method],
                reference_ms=None if method == "floor_8_bytes" else latencies["floor_8_bytes"],
                lost=sum(done.due - len(done.latencies_ms) for done in rounds),
                send_p50_ms=quantiles_ms(sending_ms)[0],
                x_ours=_over(latencies, method, "ours"),
                x_memcpy=_over(latencies, method, "memcpy"),
            )
        )


def _over(latencies: dict[str, list[list[float]]], method: str, other: str) -> float | None:
    if other not in latencies:
        return None
    ratios = round_ratios(latencies[method], latencies[other])
    return median(ratios) if ratios else None


if __name__ == "__main__":
    run_main(main)
