"""What a backend can really do, tried out at its start: a field that a server does not know is ignored without a word.

Each check would come out differently if the feature were missing, whatever the model is: also one with random weights.
"""

from __future__ import annotations

import itertools
import json
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stream_agent.errors import BackendError
from stream_agent.planner.backends.protocol import Call, Message, Picture, Prompt

_CODES = tuple("ABCDEFGH")
_NOT_MORE_THAN_ONE = 1.001  # the sum of some tokens' probabilities, with rounding
_SAME = 1e-5  # log-probabilities nearer than this are the same
_NOISES = 3.0  # a picture must change more than two runs on the same picture differ
_PRIORITY = 1_000_000  # behind whatever is in use: a server is also proved again while another one works

_SYSTEM = Message("system", ("You answer with one letter.",))


@dataclass(frozen=True, slots=True)
class Proof:
    """What came out.

    Attributes:
        missing: What no lane can do without and does not work, with what was seen; empty if all does.
        pictures: Whether pictures change the answers; if not, a note says why, and who shows pictures refuses the backend.
        notes: What a person may want to know.
    """

    missing: tuple[str, ...]
    pictures: bool
    notes: tuple[str, ...]


class Answers(Protocol):
    """The part of a backend that is proved."""

    async def score(
        self, prompts: Sequence[Prompt], candidates: Sequence[Sequence[str]], call: Call
    ) -> NDArray[np.float64]:
        """As `Backend` says."""
        ...

    def generate(
        self, prompt: Prompt, call: Call, *, max_tokens: int, schema: Mapping[str, Any] | None = None
    ) -> AsyncIterator[str]:
        """As `Backend` says."""
        ...


async def prove(backend: Answers, *, picture_size: tuple[int, int] = (224, 448), salt: str = "proof") -> Proof:
    """Try what the lanes need: log-probabilities of a closed set, a schema, a stream, and pictures.

    Args:
        backend: One that is loaded; it need not have said that it is ready.
        picture_size: Height and width of the pictures; the default is whole cells of every Qwen-VL.
        salt: Of the calls.

    Raises:
        BackendError: Its engine was lost meanwhile.
    """
    trial = _Trial(backend, salt)
    for check in (trial.scores, trial.schema, trial.stream):
        try:
            await check()
        except BackendError as error:
            if error.lost:
                raise
            trial.missing.append(f"{trial.trying} ({error})")
    if not trial.missing:
        try:
            await trial.pictures(picture_size)
        except BackendError as error:
            if error.lost:
                raise
            trial.notes.append(f"no pictures: {error}")
    return Proof(tuple(trial.missing), trial.sees, tuple(trial.notes))


class _Trial:
    def __init__(self, backend: Answers, salt: str) -> None:
        self._backend = backend
        self._salt = salt
        self._name = f"proof-{secrets.token_hex(4)}"
        self._numbers = itertools.count()
        self.trying = ""
        self.missing: list[str] = []
        self.notes: list[str] = []
        self.sees = False

    def _call(self, salt: str | None = None) -> Call:
        return Call(
            f"{self._name}-{next(self._numbers)}", priority=_PRIORITY, salt=self._salt if salt is None else salt
        )

    async def _score(self, *prompts: Prompt, codes: Sequence[str] = _CODES) -> NDArray[np.float64]:
        return await self._backend.score(prompts, [codes] * len(prompts), self._call())

    async def scores(self) -> None:
        """Log-probabilities: of every candidate, at most one in sum, those of the prompt and of the candidate."""
        self.trying = "log-probabilities of a closed set"
        ask = Prompt((_SYSTEM, Message("user", ("Which letter comes after C in the alphabet?",))))
        other = Prompt((_SYSTEM, Message("user", ("Name a blood group, of all the letters there are.",))))
        first, second = await self._score(ask, other)
        (turned,) = await self._score(ask, codes=_CODES[::-1])
        told = int(np.isfinite(first).sum())
        if told < len(_CODES):
            self.missing.append(
                f"{self.trying}: {told} of {len(_CODES)} candidates have one "
                "(allow more log-probabilities, or serve with vLLM 0.32 or newer, which knows logprob_token_ids)"
            )
            return
        if np.exp(first).sum() > _NOT_MORE_THAN_ONE:
            self.missing.append(
                f"{self.trying}: the probabilities of {len(_CODES)} tokens sum to {np.exp(first).sum():.3g}"
            )
        if np.abs(first - second).max() <= _SAME:
            self.missing.append(f"{self.trying}: two prompts have the same")
        if np.abs(first - turned[::-1]).max() > max(0.05, 0.5 * float(np.ptp(first))):
            self.missing.append(f"{self.trying}: they change with the order in which candidates are named")
        begun = Prompt(ask.messages, answer_prefix="The letter is: ")
        try:
            (continued,) = await self._score(begun)
        except BackendError as error:
            if error.lost:
                raise
            self.notes.append(f"an answer cannot be begun for it: {error}")
            return
        if np.abs(continued - first).max() <= _SAME:
            self.missing.append("the continuation of a begun answer: the beginning changes nothing")

    async def schema(self) -> None:
        """A schema holds the answer, also one that no model would write by itself."""
        self.trying = "structured output"
        word = f"x{secrets.token_hex(3)}"
        schema = {
            "type": "object",
            "properties": {"word": {"enum": [word]}, "grade": {"enum": [7]}},
            "required": ["word", "grade"],
            "additionalProperties": False,
        }
        ask = Prompt((Message("user", ("Tell me about the sea in two sentences.",)),))
        pieces = [piece async for piece in self._backend.generate(ask, self._call(), max_tokens=96, schema=schema)]
        text = "".join(pieces)
        try:
            held = json.loads(text) == {"word": word, "grade": 7}
        except ValueError:
            held = False
        if not held:
            self.missing.append(
                f"{self.trying}: the schema was not followed, the answer begins {text[:40]!r} "
                "(vLLM: start it with --structured-outputs-config.backend xgrammar; fields named guided_* are ignored)"
            )

    async def stream(self) -> None:
        """Text comes as it is written."""
        self.trying = "streaming"
        ask = Prompt((Message("user", ("Count from one to twenty in words.",)),))
        pieces = [piece async for piece in self._backend.generate(ask, self._call(), max_tokens=12)]
        if not "".join(pieces):
            self.notes.append("the model has nothing to say when asked to count: its text is empty")
        elif len(pieces) < 2:
            self.notes.append("text comes in one piece: a rationale appears late")

    async def pictures(self, size: tuple[int, int]) -> None:
        """Another picture changes the answer by more than the same one shown again does."""
        height, width = size
        columns = np.linspace(0, 255, width, dtype=np.uint8)
        light = np.broadcast_to(columns[None, :, None], (height, width, 3))
        blocks = (np.indices((height, width)).sum(axis=0) // 16 % 2 * 255).astype(np.uint8)
        dark = np.stack([blocks, blocks // 2, 255 - blocks], axis=-1)
        shown = [
            (await self._score(self._about(np.ascontiguousarray(image), index)))[0]
            for index, image in enumerate((light, light, dark))
        ]
        noise, change = (float(np.abs(shown[0] - other).max()) for other in shown[1:])
        self.sees = bool(change > max(_SAME, _NOISES * noise))
        if not self.sees:
            self.notes.append(
                f"no pictures: another one changes the log-probabilities by {change:.2g}, the same one by {noise:.2g}"
            )

    def _about(self, image: NDArray[np.uint8], index: int) -> Prompt:
        picture = Picture(image, f"{self._name}-{index}")
        return Prompt((_SYSTEM, Message("user", (picture, "Which letter does the picture show?"))))
