"""What tests of the language planner ask about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from stream_agent.config import PlannerConfig
from stream_agent.messages import Clip, FrameHeader, Memory, NearPicture, PlanRequest
from stream_agent.procedure import load_pack

PACK = load_pack(Path("cholecystectomy"))
ACTIONS = PACK.action_names
RETRACTION, DISSECTION, CLIPPING = "Tissue Retraction", "Dissection", "Vessel Clipping"
UNIFORM = (0.25, 0.25, 0.25, 0.25, 0.0)


def moment(
    pts_s: float = 100.0, *, current: str | None = "Aspiration", stream_id: str = "cam", case_id: str = "case"
) -> Memory:
    """A memory with one closed clip and a near frame."""
    near = FrameHeader(
        stream_id=stream_id, session_id="s", seq=round(pts_s * 10), pts_s=pts_s, captured_ns=round(pts_s * 1e9)
    )
    return Memory(
        stream_id=stream_id,
        session_id="s",
        case_id=case_id,
        now_pts_s=pts_s,
        clips=(Clip(DISSECTION, 0.0, 60.0, 1.0),),
        current=current,
        current_start_pts_s=60.0,
        near=near,
    )


def shot(memory: Memory) -> NearPicture:
    """A picture of the near frame, another for each frame."""
    assert memory.near is not None
    seq = memory.near.seq
    return NearPicture(
        seq=seq, pts_s=memory.now_pts_s, action=memory.current, width=2, height=1, rgb=seq.to_bytes(6, "big")
    )


def ask(
    request_id: int = 1, pts_s: float = 100.0, *, statistical: tuple[float, ...] = UNIFORM, **memory: Any
) -> PlanRequest:
    """A request with a picture."""
    held = moment(pts_s, **memory)
    return PlanRequest(
        request_id=request_id, memory=held, deadline_ns=0, pictures=(shot(held),), statistical=statistical
    )


def without_picture(request: PlanRequest) -> PlanRequest:
    return msgspec.structs.replace(request, pictures=())


def config(**settings: Any) -> PlannerConfig:
    """A rehearsed planner's configuration."""
    return PlannerConfig.model_validate({"kind": "rehearsed", **settings})
