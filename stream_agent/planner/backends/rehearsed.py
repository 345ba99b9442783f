"""A language model that is none: beliefs and words from a script or a seed, and every way to fail, for tests and drills.

It reads the choices of a prompt's last lines as an obedient model would, so its beliefs are about actions and not about codes.
What no script says is drawn from the seed and the prompt: the same prompt gives the same answer in any order of calls.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import math
import os
import re
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from stream_agent.config import BackendConfig, RehearsedScore, RehearsedText
from stream_agent.errors import BackendError
from stream_agent.planner.backends.protocol import TOO_LONG_REMEDY, Call, Capabilities, Prompt, Usage

_CHOICE: Final = re.compile(r"^(\S): (.+)$", re.MULTILINE)
_PIECE: Final = 12
_TOKEN: Final = 4


class RehearsedBackend:
    """Follows two scripts, one of scores and one of texts, each from the start again after its end."""

    name = "rehearsed"

    def __init__(self, config: BackendConfig) -> None:
        self._config = config
        self._scores: Iterator[RehearsedScore] = itertools.cycle(config.rehearsed_scores)
        self._texts: Iterator[RehearsedText] = itertools.cycle(config.rehearsed_texts)
        self._seen: dict[str, str] = {}
        self._usage = Usage()
        self.calls: list[tuple[str, Call, tuple[Prompt, ...]]] = []
        """What was asked, newest last; the last hundred."""

    async def start(self) -> Capabilities:
        """Nothing to load."""
        digest = hashlib.sha256(f"rehearsed {self._config.seed}".encode()).hexdigest()[:12]
        return Capabilities("rehearsed", digest, pictures=True, context_tokens=self._config.context_tokens)

    def tokens(self, text: str) -> tuple[int, ...] | None:
        """One per four characters, which is about what real tokenizers make of English."""
        return tuple(int.from_bytes(text[at : at + _TOKEN].encode()) for at in range(0, len(text), _TOKEN))

    async def score(
        self, prompts: Sequence[Prompt], candidates: Sequence[Sequence[str]], call: Call
    ) -> NDArray[np.float64]:
        """What the next step says.

        Raises:
            BackendError: The script says so.
        """
        step = next(self._scores)
        self._book("score", call, prompts)
        await _behave(step.behaviour, step.delay_s)
        rows = []
        for prompt, codes in zip(prompts, candidates, strict=True):
            context, question = self._checked(prompt)
            named = dict(_CHOICE.findall(question))
            row = np.array([self._belief(step, context, named.get(code, code)) for code in codes])
            row += step.position_bias * np.linspace(1, 0, len(codes))
            rows.append(row - _log_sum_exp(row))
        scores = np.array(rows)
        if step.behaviour == "nan":
            scores[0, 0] = math.nan
        if step.behaviour == "nothing":
            scores[:] = -math.inf
        return scores

    async def generate(
        self, prompt: Prompt, call: Call, *, max_tokens: int, schema: Mapping[str, Any] | None = None
    ) -> AsyncIterator[str]:
        """What the next step says, twelve characters at a time; a token counts as one such piece.

        Raises:
            BackendError: The script says so.
        """
        step = next(self._texts)
        self._book("generate", call, (prompt,))
        self._checked(prompt)
        await _behave(step.behaviour, step.delay_s)
        text = step.text if step.text is not None else self._words(prompt, schema)
        if step.behaviour == "wrong_schema":
            text = (
                '{"ranked": [{"action": "Reboot The Robot", "why": "it was asked for"}], "progress": "", "safety": []}'
            )
        if step.behaviour == "truncated":
            text = text[: len(text) // 2]
        for start in range(0, len(text), _PIECE)[:max_tokens]:
            self._usage.written_tokens += 1
            yield text[start : start + _PIECE]
            await asyncio.sleep(step.piece_s)

    def usage(self) -> Usage:
        """Counters; here a token is a character, and what an earlier prompt of the same salt began with counts as cached."""
        return self._usage

    async def close(self) -> None:
        """Nothing to let go of."""

    def _checked(self, prompt: Prompt) -> tuple[str, str]:
        """Context and question of a prompt that fits `context_tokens`."""
        context, question = _split(prompt)
        length = len(self.tokens(context + question) or ())
        if length >= self._config.context_tokens:
            raise BackendError(
                f"the prompt has {length} tokens, planner.context_tokens={self._config.context_tokens} is not more; "
                + TOO_LONG_REMEDY,
                too_long=True,
            )
        return context, question

    def _belief(self, step: RehearsedScore, context: str, action: str) -> float:
        if action in step.beliefs:
            return step.beliefs[action]
        drawn = hashlib.blake2b(f"{self._config.seed}\0{context}\0{action}".encode(), digest_size=8).digest()
        return math.log((int.from_bytes(drawn) + 1) / 2**64)

    def _words(self, prompt: Prompt, schema: Mapping[str, Any] | None) -> str:
        if schema is None:
            return "A hook frees tissue beside the gallbladder, which a grasper holds; no bleeding is seen."
        entry = schema["properties"]["ranked"]
        context, _ = _split(prompt)
        believed = self._config.rehearsed_scores[0]
        actions = sorted(
            entry["items"]["properties"]["action"]["enum"], key=lambda action: -self._belief(believed, context, action)
        )
        said = {
            "ranked": [
                {"action": action, "why": f"rehearsed reason {rank} for {action}"}
                for rank, action in enumerate(actions[: entry["minItems"]], start=1)
            ],
            "progress": "The rehearsal goes as it should.",
            "safety": ["This is a rehearsal and no advice."],
        }
        return json.dumps(said)

    def _book(self, kind: str, call: Call, prompts: Sequence[Prompt]) -> None:
        self.calls = [*self.calls[-99:], (kind, call, tuple(prompts))]
        self._usage.calls[kind] = self._usage.calls.get(kind, 0) + 1
        for prompt in prompts:
            text = "".join(_split(prompt))
            known = self._seen.get(call.salt, "")
            self._usage.prompt_tokens += len(text)
            self._usage.cached_tokens += _shared(known, text)
            self._seen[call.salt] = text


async def _behave(behaviour: str, delay_s: float) -> None:
    """Wait, then fail in the way that is asked for."""
    await asyncio.sleep(delay_s)
    match behaviour:
        case "hang":
            await asyncio.Event().wait()
        case "stuck":
            threading.Event().wait()  # what a call into a driver that never returns does to a single thread
        case "crash":
            os._exit(13)
        case "oom":
            raise BackendError("CUDA out of memory (rehearsed)")
        case "error":
            raise BackendError("the engine failed (rehearsed)")
        case "dead":
            raise BackendError("the engine died (rehearsed)", lost=True)


def _split(prompt: Prompt) -> tuple[str, str]:
    """Everything up to the last part, pictures by their ids; and the last part, the question."""
    parts = [part if isinstance(part, str) else part.id for message in prompt.messages for part in message.parts]
    return "".join(parts[:-1]), parts[-1]


def _log_sum_exp(row: NDArray[np.float64]) -> float:
    top = float(row.max())
    return top + math.log(float(np.exp(row - top).sum()))


def _shared(one: str, other: str) -> int:
    """How many characters both begin with."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
