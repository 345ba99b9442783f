"""Histories to plan from, drawn from the pack's own statistics: none, of CholecT50-SAP's length, full, and folded."""

from __future__ import annotations

import random

from stream_agent.config import MemoryConfig
from stream_agent.instrument_use import RECENT_S
from stream_agent.messages import ActionTotal, Clip, FrameHeader, InstrumentUse, Memory
from stream_agent.procedure import ProcedurePack
from stream_agent.source.timeline import synthetic_timeline

_TEN_HOURS_S = 36_000.0
_LONGEST = MemoryConfig().max_clips

HISTORIES = {
    "no_history": (0, 0),
    "17_clips": (17, 0),
    f"{_LONGEST}_clips": (_LONGEST, 0),
    f"{_LONGEST}_clips_and_folded": (_LONGEST, 600),
}
"""Case → closed clips, and clips folded before them. 17 is the longest of CholecT50-SAP."""


def drawn_memory(pack: ProcedurePack, *, clips: int, folded: int, seed: int) -> Memory:
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
        instrument_use=tuple(_use(random_, now_s) for _ in pack.instruments),
        instruments=tuple(float(random_.random() < 0.3) for _ in pack.instruments),
        near=near,
    )


def _use(random_: random.Random, now_s: float) -> InstrumentUse:
    taken_s = random_.uniform(0, now_s)
    return InstrumentUse(
        seen_s=random_.uniform(0, now_s),
        uses=random_.randrange(1, 20),
        taken_pts_s=taken_s,
        last_pts_s=random_.uniform(taken_s, now_s),
        recent=tuple(random_.random() for _ in RECENT_S),
    )
