"""One OpenAI-compatible server over HTTP: what is sent, what may come back, and what a failure means.

Servers differ in what they know beyond OpenAI's fields, and ignore what they do not know. vLLM is recognised by what it says of
its models; then it is asked for the log-probabilities of exactly the candidates' tokens (`logprob_token_ids`), a salted prefix
cache, priorities and the continuation of a begun answer. Any other server gets OpenAI's own fields alone. Which of it works,
`proof.py` finds out.

Nothing leaves for a host that no configuration line names: redirects are not followed, and proxies of the environment are not used.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, TypeVar
from urllib.parse import urlsplit

import cv2
import httpx
import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_agent.errors import BackendError, ConfigError
from stream_agent.planner.backends.chat import inert, texts_joined
from stream_agent.planner.backends.protocol import TOO_LONG, TOO_LONG_REMEDY, Call, Picture, Prompt
from stream_agent.planner.backends.together import together

StructT = TypeVar("StructT", bound=msgspec.Struct)

_LARGEST_ANSWER = 4 << 20
_LARGEST_LINE = 1 << 20
_TOP = 20  # what OpenAI's API allows
_NOT_REPORTED = -9999.0  # vLLM's least
_ENCODED_KEPT = 16
_SHOWN = 200
_JPEG = (
    cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
)  # fmt: skip


class ServerError(BackendError):
    """A server did not do what was asked.

    Attributes:
        again: Whether another server, or this one later, may do it.
        unwell: Whether the server should not be asked again before it proved itself.
    """

    def __init__(self, message: str, *, again: bool, unwell: bool = False, too_long: bool = False) -> None:
        super().__init__(message, too_long=too_long)
        self.again = again
        self.unwell = unwell


class _TokenLogprob(msgspec.Struct):
    token: str
    logprob: float


class _Position(msgspec.Struct):
    token: str
    logprob: float
    top_logprobs: list[_TokenLogprob] = []


class _Logprobs(msgspec.Struct):
    content: list[_Position] | None = None


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message | None = None
    delta: _Message | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None


class _CachedTokens(msgspec.Struct):
    cached_tokens: int | None = None


class TokensUsed(msgspec.Struct):
    """As the server counts."""

    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: _CachedTokens | None = None

    @property
    def cached(self) -> int | None:
        """Prompt tokens out of its prefix cache; None where it does not tell."""
        return self.prompt_tokens_details.cached_tokens if self.prompt_tokens_details else None


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    usage: TokensUsed | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: TokensUsed | None = None
    error: Any = None


class ServedModel(msgspec.Struct):
    """A model as the server's list describes it."""

    id: str
    owned_by: str | None = None
    root: str | None = None
    parent: str | None = None
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[ServedModel]


class _Tokens(msgspec.Struct):
    tokens: list[int]


@dataclass(slots=True)
class Spent:
    """What one call used; filled in as it becomes known."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    written_tokens: int = 0
    tells_cached: bool = False

    def add(self, usage: TokensUsed | None) -> None:
        """Count one answer."""
        if usage is None:
            return
        self.prompt_tokens += usage.prompt_tokens
        self.written_tokens += usage.completion_tokens or 0
        self.cached_tokens += usage.cached or 0
        self.tells_cached |= usage.cached is not None


class PictureCodes:
    """Pictures as data URLs; the few newest are kept, for every permutation of a rank request shows the same one.

    JPEG at quality 95 without chroma subsampling: 2 ms and 2 ms to encode and decode 672×364 pixels, PNG 39 and 13 ms.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[str, str] = OrderedDict()

    async def url(self, picture: Picture) -> str:
        """`data:image/jpeg;base64,…`, encoded beside the event loop."""
        if picture.id not in self._kept:
            self._kept[picture.id] = await asyncio.to_thread(_jpeg, picture.image)
            while len(self._kept) > _ENCODED_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(picture.id)
        return self._kept[picture.id]


class Endpoint:
    """One server; `score` and `generate` are as the backend protocol says, for this server alone."""

    def __init__(
        self,
        url: str,
        *,
        key: str | None,
        served_model: str | None,
        connect_s: float,
        silence_s: float,
        pictures: PictureCodes,
    ) -> None:
        self.url = url.rstrip("/")
        self.model = ""
        self.served = ServedModel("")
        self.spent = Spent()
        self._root = self.url.removesuffix("/v1")
        self._wanted = served_model
        self._pictures = pictures
        self._silence_s = silence_s
        self._ids: dict[str, tuple[int, ...]] = {}
        self._knows_token_ids = False
        self._ranks = True  # whether priorities are taken
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(silence_s, connect=connect_s),
            limits=httpx.Limits(max_connections=256, max_keepalive_connections=64, keepalive_expiry=60.0),
            follow_redirects=False,
            trust_env=False,
            verify=ssl.create_default_context()
            if url.startswith("https")
            else False,  # takes 20 ms and is of no use to http
        )

    @property
    def speaks_vllm(self) -> bool:
        """Whether the server says that it is vLLM."""
        return self.served.owned_by == "vllm"

    async def introduce(self) -> None:
        """Find out what is served there and what can be asked.

        Raises:
            ServerError: It does not answer.
            ConfigError: It serves another model, or several and none is named.
        """
        listed = _decoded(await self._send("GET", f"{self.url}/models"), _Models, self.url).data
        bases = [model for model in listed if model.parent is None]
        names = ", ".join(model.id for model in listed) or "none"
        chosen = bases if self._wanted is None else [model for model in listed if model.id == self._wanted]
        if len(chosen) != 1:
            asked = f"planner.served_model={self._wanted}" if self._wanted else "the only model"
            raise ConfigError(
                f"{self.url} does not have {asked}; it serves {names}: set planner.served_model to one of them"
            )
        self.served, self.model, self._ids = chosen[0], chosen[0].id, {}
        self._knows_token_ids = self.speaks_vllm and await self._tokenizes()
        if self.speaks_vllm:
            self._ranks = True
            self._ranks = await self._takes_priorities()

    async def alive(self, timeout_s: float) -> None:
        """Whether it answers at all.

        Raises:
            ServerError: It does not, or says that it is not well.
        """
        path = f"{self._root}/health" if self.speaks_vllm else f"{self.url}/models"
        await self._send("GET", path, timeout_s=timeout_s)

    def notes(self) -> tuple[str, ...]:
        """What a person may want to know of this server."""
        if not self.speaks_vllm:
            return ("it does not say that it is vLLM: no priorities, no cache salt, top log-probabilities only",)
        return (
            *(() if self._knows_token_ids else ("no /tokenize: only the 20 best log-probabilities can be asked for",)),
            *(() if self._ranks else ("no priorities: start it with --scheduling-policy priority",)),
            *(
                ()
                if self.spent.tells_cached
                else ("cached tokens not told: start it with --enable-prompt-tokens-details",)
            ),
        )

    async def score(
        self, prompts: Sequence[Prompt], candidates: Sequence[Sequence[str]], call: Call
    ) -> NDArray[np.float64]:
        """As the backend protocol says."""
        rows = await together(
            self.score_one(prompt, texts, call, suffix=f"-{index}")
            for index, (prompt, texts) in enumerate(zip(prompts, candidates, strict=True))
        )
        return np.array(rows)

    async def score_one(
        self, prompt: Prompt, candidates: Sequence[str], call: Call, suffix: str = ""
    ) -> NDArray[np.float64]:
        """Log-probability of each candidate as the next token, (candidates,).

        Raises:
            ServerError: The server failed.
        """
        body = await self._body(prompt, call, suffix)
        body |= {"max_tokens": 1, "logprobs": True}
        ids: list[int] = []
        if self._knows_token_ids:
            ids = [await self._token(text) for text in candidates]
            body |= {"logprob_token_ids": ids, "return_tokens_as_token_ids": True}
        else:
            body |= {"top_logprobs": _TOP}
        answer = _decoded(await self._send("POST", f"{self.url}/chat/completions", body), _Completion, self.url)
        self.spent.add(answer.usage)
        positions = (answer.choices[0].logprobs or _Logprobs()).content if answer.choices else None
        if not positions:
            raise ServerError(f"{self.url} gave no log-probabilities", again=False)
        told = {entry.token: entry.logprob for entry in positions[0].top_logprobs}
        told[positions[0].token] = positions[0].logprob
        names = [f"token_id:{token}" for token in ids] if ids else list(candidates)
        values = np.array([told.get(name, -np.inf) for name in names])
        values[values <= _NOT_REPORTED] = -np.inf
        if np.isnan(values).any() or (values > 1e-3).any():
            raise ServerError(f"{self.url} gave log-probabilities that are none: {values.tolist()}", again=True)
        return values

    async def generate(
        self, prompt: Prompt, call: Call, *, max_tokens: int, schema: Mapping[str, Any] | None = None
    ) -> AsyncGenerator[str, None]:
        """As the backend protocol says."""
        body = await self._body(prompt, call)
        body |= {"max_tokens": max_tokens, "stream": True, "stream_options": {"include_usage": True}}
        if schema is not None:
            if self.speaks_vllm:
                body["structured_outputs"] = {"json": schema, "disable_any_whitespace": True}
            else:
                body["response_format"] = {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "strict": True, "schema": schema},
                }
        ended = False
        async for data in self._events(f"{self.url}/chat/completions", body):
            chunk = _decoded(data, _Chunk, self.url)
            if chunk.error is not None:
                raise ServerError(f"{self.url} broke off: {_shown(json.dumps(chunk.error))}", again=True)
            self.spent.add(chunk.usage)
            for choice in chunk.choices[:1]:
                if choice.delta is not None and choice.delta.content:
                    yield choice.delta.content
                ended |= choice.finish_reason is not None
        if not ended:
            raise ServerError(f"{self.url} ended its answer in the middle", again=True, unwell=True)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _body(self, prompt: Prompt, call: Call, suffix: str = "") -> dict[str, Any]:
        messages: list[dict[str, Any]] = []
        for message in prompt.messages:
            parts = texts_joined(message)
            if all(isinstance(part, str) for part in parts):
                messages.append({"role": message.role, "content": "".join(inert(str(part)) for part in parts)})
                continue
            messages.append({"role": message.role, "content": [await self._part(part, call) for part in parts]})
        # Sampling as the model's own files suggest it (Qwen: a repetition penalty) is switched off by name.
        body: dict[str, Any] = {"model": call.adapter or self.model, "temperature": 0.0, "top_p": 1.0, "seed": 0}
        if self.speaks_vllm:
            body |= {"top_k": -1, "repetition_penalty": 1.0, "request_id": f"{call.id}{suffix}"}
            if call.salt:
                body["cache_salt"] = call.cache_salt
            if self._ranks and call.priority:
                body["priority"] = call.priority
        if prompt.answer_prefix:
            if not self.speaks_vllm:
                raise ServerError(f"{self.url} cannot be made to continue a begun answer; use vLLM", again=False)
            messages.append({"role": "assistant", "content": prompt.answer_prefix})
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        return {**body, "messages": messages}

    async def _part(self, part: str | Picture, call: Call) -> dict[str, Any]:
        if isinstance(part, str):
            return {"type": "text", "text": inert(part)}
        shown: dict[str, Any] = {"type": "image_url", "image_url": {"url": await self._pictures.url(part)}}
        if self.speaks_vllm:
            shown["uuid"] = f"{call.cache_salt[:16]}-{part.id}"
        return shown

    async def _tokenizes(self) -> bool:
        try:
            await self._token("A")
        except ServerError as error:
            if error.again:
                raise
            return False
        return True

    async def _takes_priorities(self) -> bool:
        ask = {"model": self.model, "messages": [{"role": "user", "content": "A"}], "max_tokens": 1, "priority": 1}
        try:
            await self._send("POST", f"{self.url}/chat/completions", ask)
        except ServerError as error:
            if error.again:
                raise
            return False
        return True

    async def _token(self, text: str) -> int:
        if text not in self._ids:
            ask = {"model": self.model, "prompt": text, "add_special_tokens": False}
            answer = await self._send("POST", f"{self._root}/tokenize", ask)
            self._ids[text] = tuple(_decoded(answer, _Tokens, self.url).tokens)
        if len(self._ids[text]) != 1:
            raise ServerError(
                f"{text!r} is {len(self._ids[text])} tokens of {self.model}, a candidate must be one; choose other codes",
                again=False,
            )
        return self._ids[text][0]

    async def _send(
        self, method: str, url: str, body: Mapping[str, Any] | None = None, *, timeout_s: float | None = None
    ) -> bytes:
        """A whole answer.

        Raises:
            ServerError: There was none, or it was not 200.
        """
        content = None if body is None else json.dumps(body).encode()
        timeout = httpx.USE_CLIENT_DEFAULT if timeout_s is None else httpx.Timeout(timeout_s)
        headers = {"Content-Type": "application/json"}
        try:
            async with self._client.stream(method, url, content=content, headers=headers, timeout=timeout) as response:
                gathered = bytearray()
                async for piece in response.aiter_bytes():
                    gathered += piece
                    if len(gathered) > _LARGEST_ANSWER:
                        raise ServerError(f"{self.url} answers without end", again=True, unwell=True)
                self._check(response, bytes(gathered))
                return bytes(gathered)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise self._failure(error) from error

    async def _events(self, url: str, body: Mapping[str, Any]) -> AsyncIterator[bytes]:
        """The data of server-sent events until `[DONE]`."""
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        waiting = bytearray()
        try:
            async with self._client.stream("POST", url, content=json.dumps(body).encode(), headers=headers) as response:
                if response.status_code != 200:
                    self._check(response, await _some(response))
                async for piece in response.aiter_bytes():
                    waiting += piece
                    while (end := waiting.find(b"\n")) >= 0:
                        line = bytes(waiting[:end]).strip()
                        del waiting[: end + 1]
                        if not line.startswith(b"data:"):
                            continue  # comments keep a connection open, other fields are not ours
                        data = line[5:].strip()
                        if data == b"[DONE]":
                            return
                        yield data
                    if len(waiting) > _LARGEST_LINE:
                        raise ServerError(f"{self.url} sends a line without end", again=True, unwell=True)
        except (httpx.HTTPError, OSError) as error:
            raise self._failure(error) from error

    def _check(self, response: httpx.Response, content: bytes) -> None:
        status = response.status_code
        if status == 200:
            return
        said = f"{self.url} answered {status}: {_shown(content.decode(errors='replace'))}"
        if 300 <= status < 400:
            raise ServerError(f"{self.url} redirects, which is not followed; name the address itself", again=False)
        if status in (401, 403):
            raise ServerError(f"{said}; set planner.api_key_env to the variable that holds its key", again=False)
        if status == 400 and TOO_LONG.search(content.decode(errors="replace")):
            raise ServerError(
                f"the prompt is too long for {self.url}: {said}; {TOO_LONG_REMEDY}", again=False, too_long=True
            )
        raise ServerError(said, again=status in (408, 409, 425, 429) or status >= 500, unwell=status in (502, 503, 504))

    def _failure(self, error: Exception) -> ServerError:
        if isinstance(error, httpx.ConnectTimeout | httpx.ConnectError):
            what = "cannot be reached"
        elif isinstance(error, httpx.TimeoutException):
            what = f"was silent for {self._silence_s:g} s"
        else:
            what = "broke the connection"
        detail = str(error) or type(error).__name__
        return ServerError(f"{self.url} {what} ({_shown(detail)})", again=True, unwell=True)


def require_safe_address(url: str, *, plaintext: bool) -> None:
    """An address that frames may be sent to.

    Raises:
        ConfigError: It is none, holds a password, or is not encrypted and not on this host.
    """
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"planner.endpoint={url} is no address ({error}); write http://HOST:PORT/v1") from error
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise ConfigError(f"planner.endpoint={url} is no address; write http://HOST:PORT/v1")
    if parts.username or parts.password:
        raise ConfigError(
            f"planner.endpoint holds a password for {host}, which would be seen in logs; set planner.api_key_env instead"
        )
    if parts.scheme == "http" and not plaintext and not _is_loopback(host):
        raise ConfigError(
            f"planner.endpoint={url} would send pictures of a patient unencrypted to {host}; use https, a tunnel to 127.0.0.1, "
            "or planner.plaintext=true if the network itself is protected"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _decoded(content: bytes, kind: type[StructT], url: str) -> StructT:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ServerError(
            f"{url} answers what no OpenAI server does ({error}): {_shown(content.decode(errors='replace'))}",
            again=True,
        ) from error


async def _some(response: httpx.Response) -> bytes:
    gathered = bytearray()
    async for piece in response.aiter_bytes():
        gathered += piece
        if len(gathered) > _SHOWN * 4:
            break
    return bytes(gathered)


def _shown(text: str) -> str:
    """A server's words in one line without control characters, cut short."""
    line = "".join(letter if letter.isprintable() else " " for letter in text[: 4 * _SHOWN])
    line = " ".join(line.split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"


def _jpeg(image: NDArray[np.uint8]) -> str:
    done, code = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), _JPEG)
    if not done:
        raise BackendError(f"a picture of shape {image.shape} cannot be encoded; give (H, W, 3) uint8")
    return f"data:image/jpeg;base64,{base64.b64encode(code.tobytes()).decode()}"
