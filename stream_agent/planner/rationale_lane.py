"""The rationale lane: the whole structured response as constrained JSON, streamed as it is written, checked when it is whole.

It has no say in the ranking. What does not meet the schema, or was cut off, is dropped with its reason and never repaired; a
rationale that ranks otherwise than the plan is kept and says so.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Final

import msgspec

from stream_agent.errors import UNDECODABLE, BackendError
from stream_agent.messages import RANKED, PlanRequest, Rationale
from stream_agent.planner.backends.protocol import Backend, Call
from stream_agent.planner.spoken_json import spoken
from stream_agent.prompts import LONGEST_WHY, PromptFactory, rationale_schema

_MOST_CHARACTERS: Final = 16_384

_Line = Annotated[str, msgspec.Meta(min_length=1, max_length=LONGEST_WHY)]


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    action: str
    why: _Line


class _Said(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    ranked: Annotated[tuple[_Entry, ...], msgspec.Meta(min_length=1, max_length=RANKED)]
    progress: _Line
    safety: Annotated[tuple[_Line, ...], msgspec.Meta(max_length=2)]


_decoder = msgspec.json.Decoder(_Said)


class RationaleLane:
    """Writes rationales with one backend."""

    def __init__(self, backend: Backend, factory: PromptFactory, *, max_tokens: int) -> None:
        self._backend = backend
        self._factory = factory
        self._max_tokens = max_tokens

    async def explain(
        self, request: PlanRequest, choices: Sequence[str], call: Call, caption: str = ""
    ) -> AsyncIterator[str | Rationale]:
        """New words as they come, and last the whole rationale.

        Raises:
            BackendError: The engine failed, or what it wrote does not meet the schema.
        """
        prompt = self._factory.rationale(request, choices, caption)
        written, told = "", ""
        pieces = self._backend.generate(prompt, call, max_tokens=self._max_tokens, schema=rationale_schema(choices))
        async for piece in pieces:
            written += piece
            if len(written) > _MOST_CHARACTERS:
                raise BackendError(f"the rationale is longer than {_MOST_CHARACTERS} characters; it was stopped")
            words = spoken(written)
            if len(words) > len(told):
                yield words[len(told) :]
                told = words
        yield checked(written, choices)


def checked(text: str, choices: Sequence[str]) -> Rationale:
    """The rationale that `text` is.

    Raises:
        BackendError: It is none: cut off, not of the schema, or about actions that are no choice.
    """
    try:
        said = _decoder.decode(text)
    except UNDECODABLE as error:
        raise BackendError(f"the rationale does not meet its schema: {error}") from error
    actions = [entry.action for entry in said.ranked]
    unknown = [action for action in actions if action not in choices]
    if unknown:
        raise BackendError(f"the rationale names {unknown[0][:40]!r}, which is no choice")
    if len(set(actions)) != min(RANKED, len(choices)):
        raise BackendError(f"the rationale ranks {len(set(actions))} distinct actions, not {min(RANKED, len(choices))}")
    return Rationale(
        ranked=tuple((entry.action, entry.why) for entry in said.ranked), progress=said.progress, safety=said.safety
    )


def contradiction(said: Sequence[str], ranked: Sequence[str]) -> str:
    """Where a rationale's order and a ranking disagree, for a person; empty when both name the same three in one order."""
    if tuple(said) == tuple(ranked):
        return ""
    if said[0] != ranked[0]:
        return f"the rationale puts {said[0]} first, the ranking {ranked[0]}"
    missing = [action for action in ranked if action not in said]
    if missing:
        return f"the rationale leaves out {', '.join(missing)}"
    return f"the rationale puts {said[1]} before {said[2]}, the ranking the other way round"
