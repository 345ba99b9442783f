"""Prompts as the product renders them; memory.py and planner.py measure with these."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TypeAlias

import numpy as np

from stream_agent.config import PlannerConfig
from stream_agent.messages import Memory, NearPicture, PlanRequest
from stream_agent.planner.rank_lane import choices_of
from stream_agent.procedure import ProcedurePack
from stream_agent.prompts import PromptFactory

Renderer: TypeAlias = Callable[[Memory], str]
"""A memory's whole prompt as text, a new picture standing in it as a mark."""


def request_of(pack: ProcedurePack, memory: Memory, size: tuple[int, int] = (1, 1)) -> PlanRequest:
    """A request with a picture of its own, (width, height); no two have the same, as with a camera."""
    assert memory.near is not None
    width, height = size
    picture = NearPicture(
        seq=memory.near.seq,
        pts_s=memory.now_pts_s,
        action=memory.current,
        width=width,
        height=height,
        rgb=(memory.near.seq.to_bytes(8, "little") + _noise(width, height))[: width * height * 3],
    )
    return PlanRequest(request_id=1, memory=memory, deadline_ns=0, goal=pack.goal, pictures=(picture,))


@cache
def _noise(width: int, height: int) -> bytes:
    """Drawn once: drawing every picture would cost more than what is measured."""
    return np.random.default_rng(1).bytes(width * height * 3)


def prompt_renderer(pack: ProcedurePack, config: PlannerConfig | None = None) -> Renderer:
    """How the product asks for a ranking of the next actions."""
    factory = PromptFactory(pack, config or PlannerConfig())

    def render(memory: Memory) -> str:
        request = request_of(pack, memory)
        [prompt] = factory.ranking(request, [choices_of(pack.action_names, memory.current)])
        parts = [part for message in prompt.messages for part in message.parts]
        return "".join(part if isinstance(part, str) else f"<picture {part.id}>" for part in parts)

    return render


def stable_share(before: str, after: str) -> float:
    """The share of a prompt that is the beginning of the one before."""
    shared = next((at for at, pair in enumerate(zip(before, after, strict=False)) if pair[0] != pair[1]), None)
    shared = min(len(before), len(after)) if shared is None else shared
    return shared / len(after) if after else 0.0
