"""Hugging Face transformers: the reference arithmetic, for small GPUs and for checking the other backends.

One thread computes, one step after another: a ranking is one step, a text one step per token, and the next step is that of the
lowest priority number, so that rankings overtake a rationale between two tokens. Prompts of one call are one batch; calls of
several streams follow each other. Schemas are kept by masks of llguidance (as vLLM can use it), which needs no torch of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import json
import logging
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from stream_agent.config import BackendConfig
from stream_agent.errors import BackendError, ConfigError
from stream_agent.planner.backends.adapters import WEIGHTS, adapter_directory
from stream_agent.planner.backends.causal import CausalModel, Encoded, log_probabilities
from stream_agent.planner.backends.deadline import counted, until
from stream_agent.planner.backends.proof import prove
from stream_agent.planner.backends.protocol import TOO_LONG_REMEDY, Call, Capabilities, Prompt, Usage
from stream_agent.planner.model_files import ModelFiles, go_offline, read_header, verified

ResultT = TypeVar("ResultT")


class TransformersBackend:
    """The backend of `planner.kind=transformers`."""

    name = "transformers"

    def __init__(self, config: BackendConfig) -> None:
        go_offline()
        self._config = config
        self._steps = _Steps(stuck_s=config.request_timeout_s)
        self._causal: CausalModel | None = None
        self._grammar_tokens: Any = None
        self._usage = Usage()

    async def start(self) -> Capabilities:
        """Load the model and prove what it can do, which also runs every shape once.

        Raises:
            ConfigError: The model's files may not be loaded, or it cannot do what is needed.
            BackendError: It does not load.
        """
        config = self._config
        if config.model is None:
            raise ConfigError("planner.kind=transformers needs planner.model=DIR, a local directory")
        if config.quantization:
            raise ConfigError(
                f"planner.quantization={config.quantization} is for kind=vllm; transformers takes what the model's own files say"
            )
        files = await asyncio.to_thread(verified, config.model, digest=config.digest)
        self._causal = await self._steps.run(
            0,
            lambda: CausalModel(files, device=config.device, dtype=config.dtype, threads=config.threads),
            limited=False,
        )
        await self._steps.run(0, self._load_adapters, limited=False)
        proof = await prove(self)
        if proof.missing:
            await self.close()
            raise ConfigError(f"{files.directory} in transformers lacks " + "; and ".join(proof.missing))
        self._usage = Usage()
        return Capabilities(
            model=files.name,
            digest=files.digest,
            pictures=proof.pictures,
            context_tokens=config.context_tokens,
            notes=(*self._notes(files), *proof.notes),
        )

    def tokens(self, text: str) -> tuple[int, ...] | None:
        """The tokens of a text without special ones."""
        return tuple(self._model.tokenizer.encode(text, add_special_tokens=False))

    async def score(
        self, prompts: Sequence[Prompt], candidates: Sequence[Sequence[str]], call: Call
    ) -> NDArray[np.float64]:
        """As the protocol says; in one step."""
        if not prompts:
            return np.empty((0, 0))
        chosen = [[self._id(text) for text in texts] for texts in candidates]

        def compute() -> NDArray[np.float64]:
            model = self._model
            encoded = [self._checked(model.encode(prompt)) for prompt in prompts]
            self._choose_adapter(call.adapter)
            logits, _, taken = model.logits(encoded, f"{call.adapter}/{call.salt}")
            self._count(sum(len(one.ids) for one in encoded), taken * len(encoded), len(encoded))
            return log_probabilities(logits, chosen)

        with counted(self._usage.calls, "score"):
            async with until(call.deadline_ns):
                scores = await self._steps.run(call.priority, lambda: self._guarded(compute))
        if np.isnan(scores).any():
            raise BackendError("the model gave log-probabilities that are not numbers (NaN)")
        return scores

    async def generate(
        self, prompt: Prompt, call: Call, *, max_tokens: int, schema: Mapping[str, Any] | None = None
    ) -> AsyncIterator[str]:
        """As the protocol says; a step per token."""
        with counted(self._usage.calls, "generate"):
            text = _Text(self, prompt, call, schema)
            for _ in range(max_tokens):
                async with until(call.deadline_ns):
                    piece = await self._steps.run(call.priority, lambda: self._guarded(text.advance))
                if piece:
                    yield piece
                if text.ended:
                    return

    def usage(self) -> Usage:
        """By our own counts, which are exact: nothing else computes."""
        return self._usage

    async def close(self) -> None:
        """End the thread and let go of the model."""
        self._steps.close()
        self._causal = None

    @property
    def _model(self) -> CausalModel:
        if self._causal is None:
            raise BackendError("the model is not loaded", lost=True)
        return self._causal

    def _guarded(self, compute: Callable[[], ResultT]) -> ResultT:
        """Tell torch's failures apart: memory can be had again, a broken GPU context cannot."""
        try:
            return compute()
        except torch.OutOfMemoryError as error:
            self._model.forget()
            raise BackendError(f"out of memory on the GPU: {str(error).splitlines()[0][:200]}") from error
        except RuntimeError as error:
            first = (str(error).splitlines() or [""])[0][:200]
            raise BackendError(f"torch failed: {first}", lost="CUDA error" in str(error)) from error

    def _checked(self, encoded: Encoded) -> Encoded:
        if len(encoded.ids) >= self._config.context_tokens:
            raise BackendError(
                f"the prompt has {len(encoded.ids)} tokens, planner.context_tokens={self._config.context_tokens} is not more; "
                + TOO_LONG_REMEDY,
                too_long=True,
            )
        return encoded

    def _id(self, text: str) -> int:
        tokens = self.tokens(text) or ()
        if len(tokens) != 1:
            raise BackendError(
                f"{text!r} is {len(tokens)} tokens of this model, a candidate must be one; choose other codes"
            )
        return tokens[0]

    def _matcher(self, schema: Mapping[str, Any]) -> Any:
        """Says which tokens may come next under the schema."""
        import llguidance
        import llguidance.hf

        if self._grammar_tokens is None:
            self._grammar_tokens = llguidance.hf.from_tokenizer(self._model.tokenizer, n_vocab=self._model.vocabulary)
        compact = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults=compact)
        matcher = llguidance.LLMatcher(self._grammar_tokens, grammar)
        if matcher.is_error():
            raise BackendError(f"the schema cannot be kept: {matcher.get_error()[:200]}")
        return matcher

    def _load_adapters(self) -> None:
        for name, path in self._config.adapters.items():
            folder = adapter_directory(path)
            try:
                with _without_report():
                    self._model.model.load_adapter(str(folder), adapter_name=name)  # a local directory; the hub is off
            except (ImportError, OSError, ValueError, RuntimeError, KeyError) as error:
                first = (str(error).splitlines() or [""])[0][:200]
                raise ConfigError(
                    f"planner.adapters: {name} at {path} does not load ({first}); name an adapter of this very model"
                ) from error
            # transformers would only have logged what finds no place, and answered with the rest.
            held = len(read_header(folder / WEIGHTS))
            found = sum(f".{name}." in part for part, _ in self._model.model.named_parameters())
            if found != held:
                raise ConfigError(
                    f"planner.adapters: {name} at {path} holds {held} matrices, this model has places for {found}; name an adapter "
                    "of this very model"
                )
        self._model.model.eval()  # no dropout of a new adapter

    def _choose_adapter(self, name: str) -> None:
        if not self._config.adapters:
            return
        if name:
            self._model.model.enable_adapters()
            self._model.model.set_adapter(name)
        else:
            self._model.model.disable_adapters()

    def _notes(self, files: ModelFiles) -> tuple[str, ...]:
        model = self._model
        kept = "the case's beginning is kept" if model.keeps else "its attention has windows: nothing is kept"
        pinned = (
            "sums checked against its manifest"
            if files.pinned
            else "no manifest; `doctor --model DIR --pin` writes one"
        )
        return (f"{model.model.dtype} on {model.device}", kept, pinned)

    def _count(self, prompt: int, cached: int, written: int) -> None:
        self._usage.prompt_tokens += prompt
        self._usage.cached_tokens += cached
        self._usage.written_tokens += written


class _Text:
    """One text as it is written; used by the computing thread."""

    def __init__(
        self, backend: TransformersBackend, prompt: Prompt, call: Call, schema: Mapping[str, Any] | None
    ) -> None:
        self._backend = backend
        self._prompt = prompt
        self._call = call
        self._schema = schema
        self._encoded: Any = None
        self._matcher: Any = None
        self._mask: Any = None
        self._cache: Any = None
        self._written: list[int] = []
        self._told = ""
        self.ended = False

    def advance(self) -> str:
        """Write one token; the text that it makes readable."""
        backend, model = self._backend, self._backend._model
        backend._choose_adapter(self._call.adapter)
        if self._encoded is None:
            self._encoded = backend._checked(model.encode(self._prompt))
            if self._schema is not None:
                self._matcher = backend._matcher(self._schema)
            logits, self._cache, taken = model.logits([self._encoded], f"{self._call.adapter}/{self._call.salt}")
            backend._count(len(self._encoded.ids), taken, 0)
            scores = logits[0]
        else:
            scores = model.step(self._written[-1], self._encoded, self._cache, len(self._written) - 1)
        token = self._next(scores)
        self._written.append(token)
        backend._count(0, 0, 1)
        if self._matcher is not None and self._matcher.is_stopped():
            self.ended = True
        if token in model.ends:
            self.ended = True
        text = model.tokenizer.decode(self._written, skip_special_tokens=True)
        if text.endswith("\ufffd") and not self.ended:
            return ""  # half a character
        new, self._told = text[len(self._told) :], text
        return str(new)

    def _next(self, scores: torch.Tensor) -> int:
        """The likeliest token that may come next."""
        if torch.isnan(scores).any():
            raise BackendError("the model gave log-probabilities that are not numbers (NaN)")
        if self._matcher is None:
            return int(scores.argmax())
        import llguidance.torch as masks

        if self._mask is None:
            self._mask = masks.allocate_token_bitmask(1, self._backend._model.vocabulary)
        masks.fill_next_token_bitmask(self._matcher, self._mask)
        allowed = _unpacked(self._mask[0], scores.shape[-1]).to(scores.device)
        token = int(scores.masked_fill(~allowed, -torch.inf).argmax())
        if not self._matcher.consume_token(token):
            raise BackendError(f"the schema could not be kept: {self._matcher.get_error()[:200]}")
        return token


class _Steps:
    """Runs one step after another in a thread of its own, the lowest priority number first."""

    def __init__(self, *, stuck_s: float) -> None:
        self._stuck_s = stuck_s
        self._order = itertools.count()
        self._waiting: list[tuple[int, int, asyncio.Future[Any], Callable[[], Any]]] = []
        self._changed = threading.Condition()
        self._since_s: float | None = None
        self._unlimited = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="transformers", daemon=True)
        self._thread.start()

    async def run(self, priority: int, compute: Callable[[], ResultT], *, limited: bool = True) -> ResultT:
        """What `compute` returns or raises; a cancelled step that has not begun never does.

        Raises:
            BackendError: A step before it has not ended for too long: the GPU hangs.
        """
        since_s = self._since_s
        if since_s is not None and not self._unlimited and time.monotonic() - since_s > self._stuck_s:
            raise BackendError(
                f"the model has not come back for {self._stuck_s:.0f} s; the worker must be started again", lost=True
            )
        future: asyncio.Future[ResultT] = asyncio.get_running_loop().create_future()
        with self._changed:
            if self._closed:
                raise BackendError("the backend is closed")
            self._unlimited = not limited
            heapq.heappush(self._waiting, (priority, next(self._order), future, compute))
            self._changed.notify()
        return await future

    def close(self) -> None:
        """Begin no further step."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                _, _, future, compute = heapq.heappop(self._waiting)
            if future.cancelled():
                continue
            self._since_s = time.monotonic()
            result: Any = None
            problem: Exception | None = None
            try:
                result = compute()
            except Exception as error:  # it belongs to whoever asked
                problem = error
            self._since_s = None
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                future.get_loop().call_soon_threadsafe(_settle, future, result, problem)


def _settle(future: asyncio.Future[Any], result: Any, problem: Exception | None) -> None:
    if future.done():
        return
    if problem is None:
        future.set_result(result)
    else:
        future.set_exception(problem)


def _unpacked(mask: torch.Tensor, size: int) -> torch.Tensor:
    """Bits of int32 words, lowest first, as booleans, (size,)."""
    bits = np.unpackbits(mask.numpy().view(np.uint8), bitorder="little")[:size]
    return torch.from_numpy(bits.astype(bool))


@contextlib.contextmanager
def _without_report() -> Iterator[None]:
    """Without what the libraries say of a second adapter: that there are two, and that the first one's weights are missing.

    What counts is checked.
    """
    logger = logging.getLogger("transformers.integrations.peft")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
            yield
    finally:
        logger.setLevel(level)
