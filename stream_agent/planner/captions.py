"""Captions of near frames for the indirect form (LLM-SAP, eq. 2 and 3): made by a model that sees, read by one that plans.

A caption may be older than the plan, by a bounded age that the plan states. Younger than `caption_refresh_s` it is used as it is;
up to `caption_max_age_s` it is used while a new one is made; beyond that the plan waits for the new one as long as it can, and then
does without. Whoever stops waiting does not stop the caption.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from stream_agent.config import PlannerConfig
from stream_agent.errors import BackendError
from stream_agent.messages import NearPicture, PlanRequest
from stream_agent.planner.backends.protocol import Backend, Call
from stream_agent.prompts import LONGEST_CAPTION, PromptFactory, quoted


@dataclass(frozen=True, slots=True)
class Caption:
    """What a frame shows, in words, on one line."""

    text: str
    pts_s: float


@dataclass(slots=True)
class _Stream:
    moment: tuple[str, str]
    caption: Caption | None = None
    made: asyncio.Task[Caption] | None = None


class Captions:
    """The newest caption of each stream."""

    def __init__(self, backend: Backend, factory: PromptFactory, config: PlannerConfig) -> None:
        self._backend = backend
        self._factory = factory
        self._config = config
        self._streams: dict[str, _Stream] = {}

    async def of(self, request: PlanRequest, call: Call, *, wait_s: float) -> tuple[Caption | None, str]:
        """The caption to plan from, or None and why there is none.

        Raises:
            BackendError: The captioner's engine is lost.
        """
        stream = self._stream(request)
        self._take(stream)
        now_s = request.memory.now_pts_s
        age_s = now_s - stream.caption.pts_s if stream.caption is not None else float("inf")
        due = age_s >= self._config.caption_refresh_s or age_s < 0
        usable = 0 <= age_s <= self._config.caption_max_age_s
        if due and stream.made is None and request.picture is not None:
            stream.made = asyncio.create_task(self._make(request.picture, call))
        if stream.made is not None and due and (request.patient or not usable):
            await asyncio.wait({stream.made}, timeout=None if request.patient else wait_s)
            problem = self._take(stream)
            age_s = now_s - stream.caption.pts_s if stream.caption is not None else float("inf")
            usable = 0 <= age_s <= self._config.caption_max_age_s
            if not usable:
                return None, problem or "no caption of a frame young enough is ready yet"
        if not usable:
            return None, "there is no picture to caption"
        return stream.caption, ""

    async def close(self) -> None:
        """Stop every caption that is being made."""
        made = [stream.made for stream in self._streams.values() if stream.made is not None]
        self._streams.clear()
        for task in made:
            task.cancel()
        await asyncio.gather(*made, return_exceptions=True)

    def _stream(self, request: PlanRequest) -> _Stream:
        """A new case or session shares nothing with the last."""
        memory = request.memory
        moment = (memory.case_id, memory.session_id)
        stream = self._streams.get(memory.stream_id)
        if stream is None or stream.moment != moment:
            if stream is not None and stream.made is not None:
                stream.made.cancel()
            stream = self._streams[memory.stream_id] = _Stream(moment)
        return stream

    def _take(self, stream: _Stream) -> str:
        """Take in what was made meanwhile; why it failed, if it did."""
        if stream.made is None or not stream.made.done():
            return ""
        task, stream.made = stream.made, None
        if task.cancelled():
            return "captioning was cancelled"
        error = task.exception()
        if error is None:
            stream.caption = task.result()
            return ""
        if isinstance(error, BackendError) and not error.lost:
            return f"captioning failed: {error}"
        raise error

    async def _make(self, picture: NearPicture, call: Call) -> Caption:
        prompt = self._factory.caption(picture)
        pieces = [piece async for piece in self._backend.generate(prompt, call, max_tokens=self._config.caption_tokens)]
        text = quoted("".join(pieces), LONGEST_CAPTION)
        if not text:
            raise BackendError("the captioner wrote nothing")
        return Caption(text, picture.pts_s)
