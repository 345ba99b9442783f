"""Any OpenAI-compatible server, or several of one model: proved at the start, watched while in use, replaced when one fails.

    request ─▶ the case's own server (its prefix cache knows the case) ─▶ the next one that is well, if that failed and time is left

Which server a case goes to follows from its salt, so cases spread over servers and each finds its cache again. A server that
fails is left alone until it proved itself anew; it is looked after in the background. Retries are few: at most `retries` per
request, and over time no more than a fifth of the requests, so that a sick cluster is not asked twice as much.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from stream_agent.config import BackendConfig
from stream_agent.errors import BackendError, ConfigError
from stream_agent.planner.backends.deadline import counted, until
from stream_agent.planner.backends.endpoint import Endpoint, PictureCodes, ServerError, require_safe_address
from stream_agent.planner.backends.proof import Proof, prove
from stream_agent.planner.backends.protocol import Call, Capabilities, Prompt, Usage

AnswerT = TypeVar("AnswerT")

_PROOF_S = 60.0  # a server that just started compiles while it answers the first time
_LOOK_S = 0.5
_LOOK_TIMEOUT_S = 1.0
_LOOKS_MISSED = 2
_LONGEST_WAIT_S = 5.0
_FAILURES = 3  # in a row, of a kind that does not by itself say that a server is unwell
_RETRIES_SAVED = 10.0
_RETRY_SHARE = 0.2


@dataclass(slots=True)
class _Server:
    """An endpoint and how it is."""

    endpoint: Endpoint
    well: bool = False
    reason: str = "not asked yet"
    failures: int = 0
    looks_missed: int = 0
    wait_s: float = _LOOK_S
    next_look_s: float = 0.0
    proof: Proof | None = None

    def failed(self, error: BaseException, *, unwell: bool) -> bool:
        """Count a failure; true if the server is left alone from now on."""
        self.failures += 1
        if not (unwell or self.failures >= _FAILURES) or not self.well:
            return False
        self.well, self.reason = False, str(error)
        self.wait_s = _LOOK_S
        self.next_look_s = time.monotonic() + self.wait_s
        return True

    def answered(self) -> None:
        """Forget failures."""
        self.failures = self.looks_missed = 0


@dataclass(slots=True)
class _RetryBudget:
    """Tokens: every request adds a share of one, every retry takes one."""

    tokens: float = field(default=_RETRIES_SAVED)

    def earn(self) -> None:
        self.tokens = min(_RETRIES_SAVED, self.tokens + _RETRY_SHARE)

    def spend(self) -> bool:
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class OpenAiBackend:
    """The backend of `planner.kind=openai`.

    Args:
        config: Of the planner or its captioner.
        notice: Told of every change of a server's health, one line each.
    """

    name = "openai"

    def __init__(
        self,
        config: BackendConfig,
        *,
        notice: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self._config = config
        self._notice = notice
        self._servers: list[_Server] = []
        self._budget = _RetryBudget()
        self._calls: dict[str, int] = {}
        self._watch: asyncio.Task[None] | None = None
        self._identity: tuple[str, str, int | None] | None = None

    async def start(self) -> Capabilities:
        """Prove every server that answers; one is enough, but one that answers and cannot do what is needed is refused.

        Raises:
            ConfigError: A server lacks something, which the message names; or an address, a key or a model's name is wrong.
            BackendError: None answers.
        """
        addresses = (*filter(None, (self._config.endpoint,)), *self._config.fallback_endpoints)
        if not addresses:
            raise ConfigError("planner.kind=openai has no server; set planner.endpoint=http://HOST:PORT/v1")
        for address in addresses:
            require_safe_address(address, plaintext=self._config.plaintext)
        key, pictures = self._key(), PictureCodes()
        self._servers = [
            _Server(
                Endpoint(
                    address,
                    key=key,
                    served_model=self._config.served_model,
                    connect_s=self._config.connect_timeout_s,
                    silence_s=self._config.request_timeout_s,
                    pictures=pictures,
                )
            )
            for address in dict.fromkeys(addresses)
        ]
        outcomes = await asyncio.gather(*(self._prove(server) for server in self._servers), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, ConfigError) or (outcome is not None and not isinstance(outcome, BackendError)):
                await self.close()
                raise outcome
        well = [server for server in self._servers if server.well]
        if not well:
            reasons = "; ".join(server.reason for server in self._servers)
            await self.close()
            raise BackendError(f"no server of planner.endpoint answers: {reasons}; start one, or correct the address")
        self._watch = asyncio.create_task(self._look_after(), name="servers")
        return self._capabilities(well[0])

    def tokens(self, text: str) -> tuple[int, ...] | None:
        """None: tokens are the server's affair, which refuses a candidate that is more than one."""
        del text
        return None

    async def score(
        self, prompts: Sequence[Prompt], candidates: Sequence[Sequence[str]], call: Call
    ) -> NDArray[np.float64]:
        """As the protocol says; the prompts go side by side to one server, which batches them."""
        if not prompts:
            return np.empty((0, 0))

        async def once(endpoint: Endpoint) -> NDArray[np.float64]:
            return await endpoint.score(prompts, candidates, call)

        with counted(self._calls, "score"):
            answer, _server = await self._retried(once, call)
        return answer

    async def generate(
        self, prompt: Prompt, call: Call, *, max_tokens: int, schema: Mapping[str, Any] | None = None
    ) -> AsyncIterator[str]:
        """As the protocol says; another server may take over before the first piece came, not after."""
        with counted(self._calls, "generate"):

            async def begin(endpoint: Endpoint) -> tuple[str | None, AsyncGenerator[str, None]]:
                pieces = endpoint.generate(prompt, call, max_tokens=max_tokens, schema=schema)
                try:
                    return await anext(pieces, None), pieces
                except BaseException:
                    await pieces.aclose()
                    raise

            (piece, pieces), server = await self._retried(begin, call)
            try:
                while piece is not None:
                    yield piece
                    try:
                        async with until(call.deadline_ns):
                            piece = await anext(pieces, None)
                    except ServerError as error:
                        self._failed(server, error)
                        raise
            finally:
                await pieces.aclose()

    def usage(self) -> Usage:
        """The servers' own counts; `cached_tokens` stays 0 where a server does not tell."""
        spent = [server.endpoint.spent for server in self._servers]
        return Usage(
            prompt_tokens=sum(one.prompt_tokens for one in spent),
            cached_tokens=sum(one.cached_tokens for one in spent),
            written_tokens=sum(one.written_tokens for one in spent),
            calls=dict(self._calls),
        )

    async def close(self) -> None:
        """Stop looking after the servers and close every connection."""
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
            self._watch = None
        for server in self._servers:
            await server.endpoint.close()

    def _key(self) -> str | None:
        variable = self._config.api_key_env
        if variable is None:
            return None
        key = os.environ.get(variable, "").strip()
        if not key or not key.isprintable() or " " in key:
            raise ConfigError(f"planner.api_key_env={variable} names no variable that holds a key; export {variable}=…")
        return key

    def _capabilities(self, server: _Server) -> Capabilities:
        endpoint, proof = server.endpoint, server.proof
        assert proof is not None
        identity = "|".join(map(str, (endpoint.served.id, endpoint.served.root, endpoint.served.max_model_len)))
        others = tuple(
            f"{other.endpoint.url} does not take part yet: {other.reason}" for other in self._servers if not other.well
        )
        return Capabilities(
            model=endpoint.model,
            digest=hashlib.sha256(identity.encode()).hexdigest()[:12],
            pictures=proof.pictures,
            context_tokens=endpoint.served.max_model_len or self._config.context_tokens,
            notes=(*endpoint.notes(), *proof.notes, *others),
        )

    async def _prove(self, server: _Server) -> None:
        """Let a server show what it can do.

        Raises:
            ConfigError: It answers and lacks something.
            BackendError: It does not answer.
        """
        endpoint = server.endpoint
        try:
            async with asyncio.timeout(_PROOF_S):
                await endpoint.introduce()
                server.proof = await prove(endpoint)
        except TimeoutError as error:
            server.reason = f"{endpoint.url} did not prove itself within {_PROOF_S:g} s"
            raise BackendError(server.reason) from error
        except ServerError as error:
            server.reason = str(error)
            if not error.again:
                raise ConfigError(server.reason) from error
            raise
        if server.proof.missing:
            server.reason = f"{endpoint.url} lacks " + "; and ".join(server.proof.missing)
            raise ConfigError(server.reason)
        served = endpoint.served
        identity = (served.id, served.root or "", served.max_model_len)
        if self._identity is None:
            self._identity = identity
        elif identity != self._identity:
            server.reason = (
                f"{endpoint.url} serves {served.id} ({served.max_model_len} tokens), another server of planner.endpoint "
                f"{self._identity[0]} ({self._identity[2]} tokens); serve one model on all"
            )
            raise ConfigError(server.reason)
        server.well, server.reason = True, ""
        server.answered()

    async def _look_after(self) -> None:
        """Ask those that are well for a sign of life, and have those that are not prove themselves when it is time."""
        while True:
            await asyncio.sleep(_LOOK_S)
            due = [server for server in self._servers if server.well or time.monotonic() >= server.next_look_s]
            looks = await asyncio.gather(*(self._look_at(server) for server in due), return_exceptions=True)
            for error in looks:
                if error is not None:  # a mistake of ours must not end the watch, nor go unseen
                    self._notice(f"looking after the servers failed: {type(error).__name__}: {error}")

    async def _look_at(self, server: _Server) -> None:
        endpoint = server.endpoint
        if server.well:
            try:
                await endpoint.alive(_LOOK_TIMEOUT_S)
                server.looks_missed = 0
            except ServerError as error:
                server.looks_missed += 1
                if server.looks_missed >= _LOOKS_MISSED:
                    self._failed(server, error, unwell=True)
            return
        try:
            await endpoint.alive(_LOOK_TIMEOUT_S)
            await self._prove(server)
        except (BackendError, ConfigError) as error:
            server.reason = str(error)
            server.wait_s = min(_LONGEST_WAIT_S, server.wait_s * 2)
            server.next_look_s = time.monotonic() + server.wait_s
        else:
            self._notice(f"{endpoint.url} is well again")

    async def _retried(self, once: Callable[[Endpoint], Awaitable[AnswerT]], call: Call) -> tuple[AnswerT, _Server]:
        """An answer of the first server in the case's order that gives one, and that server.

        Raises:
            BackendError: None did, or the deadline came first.
        """
        self._budget.earn()
        tried: list[_Server] = []
        while True:
            server = self._next(call, tried)
            tried.append(server)
            try:
                async with until(call.deadline_ns):
                    answer = await once(server.endpoint)
            except ServerError as error:
                self._failed(server, error)
                if not error.again or len(tried) > self._config.retries or not self._budget.spend():
                    raise
                self._count("retried")
                continue
            server.answered()
            return answer, server

    def _next(self, call: Call, tried: Sequence[_Server]) -> _Server:
        order = sorted(
            self._servers, key=lambda server: hashlib.sha256(f"{call.salt}|{server.endpoint.url}".encode()).digest()
        )
        if not call.salt:
            order = self._servers
        well = [server for server in order if server.well]
        fresh = [server for server in well if server not in tried]
        if not well:
            reasons = "; ".join(server.reason for server in self._servers)
            raise BackendError(f"no server of planner.endpoint is well: {reasons}")
        return fresh[0] if fresh else well[0]

    def _failed(self, server: _Server, error: ServerError, *, unwell: bool | None = None) -> None:
        if (error.again or unwell) and server.failed(error, unwell=error.unwell if unwell is None else unwell):
            self._notice(f"{server.endpoint.url} is left alone until it is well again: {error}")

    def _count(self, kind: str) -> None:
        self._calls[kind] = self._calls.get(kind, 0) + 1
