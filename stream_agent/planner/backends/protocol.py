"""What every language model backend does: score a closed set of continuations, and write text under a schema.

    prompt ─▶ score    log-probability of each candidate token after one prefill and one decode step (the rank lane)
           └▶ generate text as it is written, held to a JSON schema if one is given (captions, the rationale lane)

A backend knows nothing of surgery, plans or memory. It runs inside one asyncio loop in the planner worker; every call may be
cancelled, which frees what it held in the engine.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Image: TypeAlias = NDArray[np.uint8]
"""(H, W, 3) RGB, upright."""

Role: TypeAlias = Literal["system", "user", "assistant"]

TOO_LONG: Final = re.compile(
    r"maximum (context|model) length|available context size|context_length_exceeded", re.IGNORECASE
)
"""How vLLM, llama.cpp and OpenAI servers say that a prompt does not fit the model."""

TOO_LONG_REMEDY: Final = "raise planner.context_tokens, lower memory.max_clips or set planner.knowledge=short"
"""What helps then."""


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """An image in a prompt; `id` is unique per image content, for engines cache features under it."""

    image: Image
    id: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation: text and pictures in their order."""

    role: Role
    parts: tuple[str | Picture, ...]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation up to where the model goes on.

    Attributes:
        messages: Turns, what never changes first, so that a prefix cache covers it.
        answer_prefix: What the model's turn begins with already; empty if nothing.
    """

    messages: tuple[Message, ...]
    answer_prefix: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """What every call to an engine says besides its prompt.

    Attributes:
        id: Unique among the calls of a worker's life.
        priority: Lower runs first.
        deadline_ns: `time.monotonic_ns()` after which nobody wants the answer; 0 for none.
        salt: Prefix caches are shared between calls of one salt alone (one per case).
        adapter: Name of a LoRA adapter of the backend's configuration; empty for the base model.
    """

    id: str
    priority: int = 0
    deadline_ns: int = 0
    salt: str = ""
    adapter: str = ""

    @property
    def cache_salt(self) -> str:
        """The salt as engines take it, which refuse some letters and lengths: sha256 in hex; empty stays empty."""
        return hashlib.sha256(self.salt.encode()).hexdigest() if self.salt else ""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend proved at its start; nothing is assumed that was not tried.

    Attributes:
        model: Name of the model directory or of the server's model.
        digest: Short sha256 of the weights' manifest, or of what a server tells of its model.
        pictures: Whether pictures change its answers.
        context_tokens: The longest prompt with its answer.
        notes: What else a person may want to know, one line each (quantisation, attention, cache).
    """

    model: str
    digest: str
    pictures: bool
    context_tokens: int
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class Usage:
    """Counters since the start, of the engine's own telling where it tells.

    Attributes:
        prompt_tokens: Tokens of all prompts.
        cached_tokens: Those of them that a prefix cache held already.
        written_tokens: Tokens generated.
        calls: Per kind of call: `score`, `generate`, `aborted`, `expired`, `failed`.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    written_tokens: int = 0
    calls: dict[str, int] = field(default_factory=dict)


class Backend(Protocol):
    """A language model, with or without eyes."""

    name: str

    async def start(self) -> Capabilities:
        """Load, warm up every shape that will be used, and prove what it can do.

        Raises:
            ConfigError: The model or server cannot do what is needed; the message says what is missing and what to change.
            BackendError: It failed to start.
        """
        ...

    def tokens(self, text: str) -> tuple[int, ...] | None:
        """The tokens of a text without special ones; None where the backend cannot tell (a remote server)."""
        ...

    async def score(
        self, prompts: Sequence[Prompt], candidates: Sequence[Sequence[str]], call: Call
    ) -> NDArray[np.float64]:
        """Log-probability of each candidate as the very next token, (prompts, candidates); one batch, one decode step.

        `candidates[i]` are those of `prompts[i]`, all of one length, each a single token after its prompt. Not normalised over the
        candidates. A candidate that the engine does not report is `-inf`, never a guess.

        Raises:
            BackendError: The engine failed, ran out of memory, or gave what is not a number; `lost` if the engine is dead,
                `too_long` if a prompt does not fit it.
            asyncio.CancelledError: The call was cancelled; the engine holds nothing of it any more.
        """
        ...

    def generate(
        self, prompt: Prompt, call: Call, *, max_tokens: int, schema: Mapping[str, Any] | None = None
    ) -> AsyncIterator[str]:
        """Text as it is written, in pieces; with `schema` the whole is JSON that meets it unless it was cut at `max_tokens`.

        Greedy: the same prompt gives the same text. Closing the iterator aborts the call in the engine.

        Raises:
            BackendError: As for `score`.
        """
        ...

    def usage(self) -> Usage:
        """Counters so far."""
        ...

    async def close(self) -> None:
        """Let go of the engine; safe to call twice and after a failed start."""
        ...
