"""What a model was asked, as text for the inspector: the prompts factory is pure, so the same request gives the same prompt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from stream_agent.config import PlannerConfig
from stream_agent.messages import PlanRequest
from stream_agent.procedure import load_pack
from stream_agent.prompts import PromptFactory


def prompt_renderer(planner: str, pack_folder: Path) -> Callable[[PlanRequest], list[str]]:
    """Renders the ranking prompt of a request, choices in pack order, pictures by their size; system turn first.

    Raises:
        ConfigError: The pack cannot be loaded.
    """
    config = PlannerConfig.model_validate_json(planner)
    pack = load_pack(pack_folder)
    factory = PromptFactory(pack, config)

    def render(request: PlanRequest) -> list[str]:
        order = factory.choices(request.memory.current)
        sizes = [f"[picture of frame {picture.seq}, {picture.width}x{picture.height}]" for picture in request.pictures]
        dots = tuple(msgspec.structs.replace(picture, width=1, height=1, rgb=b"\0\0\0") for picture in request.pictures)
        prompt = factory.ranking(msgspec.structs.replace(request, pictures=dots), [order])[0]
        shown = iter(sizes)
        return [
            "".join(part if isinstance(part, str) else next(shown, "[picture]") for part in message.parts)
            for message in prompt.messages
        ]

    return render
