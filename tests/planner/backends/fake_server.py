"""A small OpenAI-compatible server over real sockets that can behave, ignore fields, stall, break off, and talk nonsense.

It has a "model": log-probabilities are drawn from a hash of the conversation, pictures included, so that another prompt or picture
gives others. Told to be vLLM, it honours vLLM's own fields; a mode switches off or spoils one thing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_STATUS = {200: "OK", 302: "Found", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Too Many Requests",
           500: "Internal Server Error", 503: "Service Unavailable"}  # fmt: skip
_WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass
class FakeServer:
    """Start it with `async with`; `modes` may be changed while it runs.

    Modes: no_logprobs, no_schema, no_pictures, blind (takes pictures, does not look), canned (one answer to all), positional
    (by place, not by candidate), no_tokenize, no_priority, nan, garbage, stall, die_mid_stream, stall_mid_stream, error_mid_stream,
    end_early, endless, redirect, error_429, error_500, error_503, sick (health fails), deaf (never answers anything).
    """

    model: str = "some-model"
    vllm: bool = True
    key: str | None = None
    context: int = 4096
    modes: set[str] = field(default_factory=set)
    port: int = 0
    seen: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    connections: int = 0
    dropped: int = 0
    """Requests whose client went away before the answer was whole."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def __aenter__(self) -> FakeServer:
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in list(self._writers):
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                method, path, _ = head.split(" ", 2)
                headers = {
                    name.lower(): value.strip()
                    for name, _, value in (line.partition(":") for line in head.splitlines()[1:])
                }
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.paths.append(path)
                answering = asyncio.create_task(self._answer(method, path, headers, body, writer))
                gone = asyncio.create_task(self._gone(reader))
                await asyncio.wait({answering, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not answering.done():
                    self.dropped += 1
                    answering.cancel()
                    return
                gone.cancel()
                await asyncio.gather(gone, return_exceptions=True)
                if answering.result() == "close":
                    return
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.close()

    @staticmethod
    async def _gone(reader: asyncio.StreamReader) -> None:
        """Return when the client hung up; a next request on the connection cannot come while this one is answered."""
        while not reader.at_eof() and reader.exception() is None:
            await asyncio.sleep(0.005)

    async def _answer(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, writer: asyncio.StreamWriter
    ) -> str:
        modes = self.modes
        if "deaf" in modes:
            await asyncio.sleep(3600)
        if self.key is not None and headers.get("authorization") != f"Bearer {self.key}":
            return await self._send(writer, 401, {"error": {"message": "no such key"}})
        if path == "/health":
            return await self._send(writer, 503 if "sick" in modes else 200, {})
        if "redirect" in modes:
            return await self._send(writer, 302, {}, "Location: http://127.0.0.1:9/elsewhere\r\n")
        if path == "/v1/models":
            own = {"owned_by": "vllm", "root": "/models/x", "max_model_len": self.context} if self.vllm else {}
            return await self._send(writer, 503 if "sick" in modes else 200, {"data": [{"id": self.model, **own}]})
        asked = json.loads(body)
        if path == "/tokenize" and self.vllm and "no_tokenize" not in modes:
            return await self._send(writer, 200, {"tokens": [ord(letter) for letter in asked["prompt"]]})
        if path != "/v1/chat/completions":
            return await self._send(writer, 404, {"error": "no such path"})
        self.seen.append(asked)
        for status in (429, 500, 503):
            if f"error_{status}" in modes:
                return await self._send(writer, status, {"error": {"message": f"told to answer\n{status}"}})
        if "garbage" in modes:
            return await self._send(writer, 200, ["no", {"completion": 1}])
        if "endless" in modes:
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            while True:
                writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                await writer.drain()
        if "too_long" in modes:
            said = f"This model's maximum context length is {self.context} tokens. However, you requested 9999 tokens."
            return await self._send(writer, 400, {"error": {"message": said}})
        if "stall" in modes:
            await asyncio.sleep(3600)
        if not re.fullmatch(r"[^@/\\\0]{1,128}", asked.get("cache_salt", "x")):
            return await self._send(writer, 400, {"error": {"message": "cache_salt must not contain '@', '/'"}})
        if "no_priority" in modes and asked.get("priority"):
            return await self._send(writer, 400, {"error": {"message": "priority scheduling is off"}})
        shown = [
            part
            for message in asked["messages"]
            if isinstance(message["content"], list)
            for part in message["content"]
            if part["type"] == "image_url"
        ]
        if shown and "no_pictures" in modes:
            return await self._send(writer, 400, {"error": {"message": "At most 0 image(s) may be provided"}})
        if asked.get("stream"):
            return await self._stream(asked, writer)
        return await self._send(writer, 200, self._completion(asked))

    def _seed(self, asked: Mapping[str, Any]) -> str:
        if "canned" in self.modes:
            return "canned"
        messages = json.loads(json.dumps(asked["messages"]))
        for message in messages:
            if isinstance(message["content"], list):
                for part in message["content"]:
                    part.pop("uuid", None)
                    if "blind" in self.modes and part["type"] == "image_url":
                        part["image_url"] = None
        return json.dumps(messages)

    def _completion(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        seed, modes = self._seed(asked), self.modes

        def logprob(token: str) -> float:
            draw = int.from_bytes(hashlib.sha256(f"{seed}{token}".encode()).digest()[:4], "big") / 2**32
            return -3.0 - 3.0 * draw

        choice: dict[str, Any] = {"message": {"role": "assistant", "content": "A"}, "finish_reason": "length"}
        if asked.get("logprobs") and "no_logprobs" not in modes:
            letters = [chr(token) for token in asked.get("logprob_token_ids") or ()] if self.vllm else []
            letters = letters or [chr(ord("A") + index) for index in range(asked.get("top_logprobs", 0))]
            by_id = self.vllm and asked.get("return_tokens_as_token_ids")
            entries = [
                {
                    "token": f"token_id:{ord(letter)}" if by_id else letter,
                    "logprob": logprob(str(place) if "positional" in modes else letter),
                }
                for place, letter in enumerate(letters)
            ]
            first = {"token": "token_id:0" if by_id else "?", "logprob": -1.0}
            if "nan" in modes:
                entries[0]["logprob"] = "NaN"
            choice["logprobs"] = {"content": [{**first, "top_logprobs": entries}]}
        return {"choices": [choice], "usage": self._usage(asked, 1)}

    @staticmethod
    def _usage(asked: Mapping[str, Any], written: int) -> dict[str, Any]:
        count = len(json.dumps(asked["messages"]).split())
        return {
            "prompt_tokens": count,
            "completion_tokens": written,
            "prompt_tokens_details": {"cached_tokens": count // 2},
        }

    async def _stream(self, asked: Mapping[str, Any], writer: asyncio.StreamWriter) -> str:
        schema = (asked.get("structured_outputs") or {}).get("json") if self.vllm else None
        if not self.vllm and asked.get("response_format"):
            schema = asked["response_format"]["json_schema"]["schema"]
        pieces = [f"{word} " for word in _WORDS][: asked["max_tokens"]]
        if schema is not None and "no_schema" not in self.modes:
            whole = {name: (of.get("enum") or [0])[0] for name, of in schema["properties"].items()}
            text = json.dumps(whole)
            pieces = [text[start : start + 5] for start in range(0, len(text), 5)]
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        await self._chunk(writer, ": hello\n\n")
        for number, piece in enumerate(pieces):
            if number == 2 and "die_mid_stream" in self.modes:
                writer.transport.abort()
                return "close"
            if number == 2 and "stall_mid_stream" in self.modes:
                await asyncio.sleep(3600)
            if number == 2 and "error_mid_stream" in self.modes:
                await self._event(writer, {"error": {"message": "engine\x1b[31m died"}})
            await self._event(writer, {"choices": [{"delta": {"content": piece}, "finish_reason": None}]})
            await asyncio.sleep(0.002)
        if "end_early" not in self.modes:
            await self._event(writer, {"choices": [{"delta": {}, "finish_reason": "stop"}]})
            await self._event(writer, {"choices": [], "usage": self._usage(asked, len(pieces))})
        await self._chunk(writer, "data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return "keep"

    async def _event(self, writer: asyncio.StreamWriter, value: object) -> None:
        await self._chunk(writer, f"data: {json.dumps(value)}\n\n")

    @staticmethod
    async def _chunk(writer: asyncio.StreamWriter, text: str) -> None:
        data = text.encode()
        writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        await writer.drain()

    @staticmethod
    async def _send(writer: asyncio.StreamWriter, status: int, value: object, more: str = "") -> str:
        data = json.dumps(value).encode()
        head = f"HTTP/1.1 {status} {_STATUS[status]}\r\nContent-Type: application/json\r\n{more}Content-Length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        await writer.drain()
        return "keep"
