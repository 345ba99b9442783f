"""How long does the statistical planner take for one plan?

It answers for every frame, in the agent's loop, and must cost nothing beside 16.7 ms. The physical limit is the plan
itself: building one `Plan` with what it holds takes some 10 µs of Python. Histories are drawn from the pack's own
statistics: none, the longest of CholecT50-SAP (17 clips), a memory filled to `memory.max_clips`, and one that has folded
hundreds of clips on top. `cold` makes a new planner for every plan, so that nothing remembered helps.
"""  # noqa: D400

from __future__ import annotations

import random
import time
from pathlib import Path

from benchmarks.report import Report, Row, Target, arguments, first_line, quantiles_ms
from stream_agent.config import MemoryConfig, PlannerConfig
from stream_agent.messages import ActionTotal, Clip, FrameHeader, Memory, PlanRequest
from stream_agent.planner.statistical import StatisticalPlanner
from stream_agent.procedure import ProcedurePack, load_pack
from stream_agent.source.timeline import synthetic_timeline

_QUESTION = first_line(__doc__)
P99_MS = 1.0
_TEN_HOURS_S = 36_000.0


def main() -> int:
    options = arguments(_QUESTION).parse_args()
    plans = 300 if options.quick else 3000
    rounds = 3 if options.quick else 5
    pack = load_pack(Path("cholecystectomy"))
    longest = MemoryConfig().max_clips
    memories = {
        "no_history": [_memory(pack, clips=0, folded=0, seed=seed) for seed in range(plans)],
        "17_clips": [_memory(pack, clips=17, folded=0, seed=seed) for seed in range(plans)],
        f"{longest}_clips": [_memory(pack, clips=longest, folded=0, seed=seed) for seed in range(plans)],
        f"{longest}_clips_and_folded": [_memory(pack, clips=longest, folded=600, seed=seed) for seed in range(plans)],
    }
    report = Report("statistical", _QUESTION, {"plans": plans, "rounds": rounds, "pack": pack.name})
    taken_ms: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for case, drawn in memories.items():
            warm = StatisticalPlanner(pack, PlannerConfig())
            warm.plan(_request(drawn[0], 0))
            taken_ms.setdefault(("warm", case), []).extend(
                _plan(warm, memory, index) for index, memory in enumerate(drawn)
            )
            for index, memory in enumerate(drawn[: plans // 10]):
                cold = StatisticalPlanner(pack, PlannerConfig())
                taken_ms.setdefault(("cold", case), []).append(_plan(cold, memory, index))
    for (method, case), values in taken_ms.items():
        p50, p95, p99 = quantiles_ms(values)
        target = Target(f"{method}, {case}: p99 ms", p99, P99_MS)
        report.rows.append(Row(f"statistical_{method}", case, p50, p95, p99, len(values), target=target))
    return report.finish(options)


def _plan(planner: StatisticalPlanner, memory: Memory, index: int) -> float:
    request = _request(memory, index)
    began_ns = time.perf_counter_ns()
    plan = planner.plan(request)
    taken_ms = (time.perf_counter_ns() - began_ns) / 1e6
    assert len(plan.ranked) == 3
    return taken_ms


def _request(memory: Memory, index: int) -> PlanRequest:
    return PlanRequest(request_id=0, memory=memory, deadline_ns=index)


def _memory(pack: ProcedurePack, *, clips: int, folded: int, seed: int) -> Memory:
    """A case after `folded` + `clips` closed clips, some seconds into the next."""
    drawn: tuple[Clip, ...] = ()
    total_s = 60.0 * (clips + 2)
    while len(drawn) < clips + 1:
        drawn = synthetic_timeline(
            next_probabilities=pack.next_action_probabilities, duration_s=pack.duration_s, total_s=total_s, seed=seed
        )
        total_s *= 1.5
    current = drawn[clips]
    random_ = random.Random(seed)
    now_s = current.start_pts_s + random_.uniform(0, current.duration_s)
    near = FrameHeader(stream_id="endoscope", session_id="benchmark", seq=seed, pts_s=now_s, captured_ns=seed)
    totals = tuple(
        ActionTotal(action, folded // len(pack.action_names), _TEN_HOURS_S / len(pack.action_names))
        for action in pack.action_names
    )
    return Memory(
        stream_id="endoscope",
        session_id="benchmark",
        case_id="case",
        now_pts_s=now_s,
        clips=drawn[:clips],
        folded=totals if folded else (),
        current=current.action,
        current_start_pts_s=current.start_pts_s,
        current_confidence=0.9,
        instrument_s=tuple(random_.uniform(0, now_s) for _ in pack.instruments),
        instruments=tuple(float(random_.random() < 0.3) for _ in pack.instruments),
        near=near,
    )


if __name__ == "__main__":
    raise SystemExit(main())
