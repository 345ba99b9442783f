"""The openai backend against live vLLM servers: a tiny model with eyes, served twice, and one of them killed."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from stream_agent.config import BackendConfig
from stream_agent.errors import BackendError, ConfigError
from stream_agent.planner.backends.openai import OpenAiBackend
from stream_agent.planner.backends.protocol import Call, Capabilities, Message, Picture, Prompt
from tests.planner.backends.conftest import Server
from tests.planner.backends.test_vllm import CODES, KNOWLEDGE, SCHEMA, asked, drawn

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900), pytest.mark.filterwarnings("default")]


class Client:
    """A backend and the loop it lives in."""

    def __init__(self, runner: asyncio.Runner, backend: OpenAiBackend, capabilities: Capabilities) -> None:
        self.runner, self.backend, self.capabilities = runner, backend, capabilities

    def do(self, coroutine: Any) -> Any:
        return self.runner.run(asyncio.wait_for(coroutine, 300))

    def score(self, prompts: list[Prompt], name: str, **named: Any) -> Any:
        return self.do(self.backend.score(prompts, [CODES] * len(prompts), Call(name, **named)))


@pytest.fixture(scope="module")
def servers(tiny: Callable[..., Any], start_server: Callable[..., Server]) -> tuple[Server, Server]:
    first = start_server(tiny("qwen2_5_vl", endless=True))
    first.wait_until_ready()  # one after the other: two that start at once starve each other on two cores
    second = start_server(tiny("qwen2_5_vl", endless=True))
    second.wait_until_ready()
    return first, second


@contextmanager
def connected(*servers: Server, notices: list[str] | None = None) -> Iterator[Client]:
    first, *others = [server.url for server in servers]
    config = BackendConfig(kind="openai", endpoint=first, fallback_endpoints=tuple(others))
    backend = OpenAiBackend(config, notice=(notices if notices is not None else []).append)
    with asyncio.Runner() as runner:
        try:
            yield Client(runner, backend, runner.run(backend.start()))
        finally:
            runner.run(backend.close())


@pytest.fixture(scope="module")
def client(servers: tuple[Server, Server]) -> Iterator[Client]:
    with connected(servers[0]) as client:
        yield client


def test_a_live_server_proves_everything(client: Client) -> None:
    assert client.capabilities.model == "planner"
    assert client.capabilities.pictures
    assert client.capabilities.context_tokens == 8192
    assert client.capabilities.notes == ()


def test_exactly_the_candidates_come_back(client: Client) -> None:
    """`logprob_token_ids`: with the twenty best alone most of them would be missing."""
    scores = client.score([asked(f"{number}", begin="x") for number in range(7)], "set", salt="case")
    assert np.isfinite(scores).all()
    turned = client.do(client.backend.score([asked("0", begin="x")], [CODES[::-1]], Call("turned", salt="case")))
    np.testing.assert_allclose(turned[0][::-1], scores[0], atol=2e-3)


def test_pictures_prefix_and_salt(client: Client) -> None:
    def look(seed: int, salt: str) -> tuple[Any, int]:
        before = client.backend.usage().cached_tokens
        parts = ("Look: ", Picture(drawn(seed), f"frame-{seed}"), " Which?")
        prompt = Prompt((Message("system", (KNOWLEDGE,)), Message("user", parts)))
        scores = client.score([prompt], f"look-{seed}-{salt}-{before}", salt=salt)
        return scores, int(client.backend.usage().cached_tokens - before)

    first, cached = look(1, "case-1")
    assert cached == 0
    other, cached = look(2, "case-1")
    assert cached > 300
    assert np.abs(first - other).max() > 0.01
    again, cached = look(1, "case-2")
    assert cached == 0
    np.testing.assert_allclose(again, first, atol=2e-3)


def test_json_streams(client: Client) -> None:
    async def written() -> list[str]:
        return [
            piece async for piece in client.backend.generate(asked("Next?"), Call("json"), max_tokens=80, schema=SCHEMA)
        ]

    pieces = client.do(written())
    assert len(pieces) > 3
    assert json.loads("".join(pieces))["label"] in CODES


def test_closing_a_text_aborts_it_on_the_server(client: Client, servers: tuple[Server, Server]) -> None:
    async def running() -> int:
        import httpx

        async with httpx.AsyncClient(trust_env=False) as http:
            told = (await http.get(servers[0].url.removesuffix("/v1") + "/metrics")).text
        line = next(line for line in told.splitlines() if line.startswith("vllm:num_requests_running"))
        return round(float(line.rpartition(" ")[2]))

    async def until_running(wanted: int) -> None:
        """Its count may come later than the first piece does."""
        for _ in range(200):
            if await running() == wanted:
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"the server never had {wanted} request(s) running")

    async def left() -> None:
        """The text would take 6,000 tokens: that of a model which ended by itself was over before anybody asked."""
        await until_running(0)
        pieces = client.backend.generate(asked("Go on."), Call("left"), max_tokens=6000)
        assert await anext(pieces)
        await until_running(1)
        await pieces.aclose()  # type: ignore[attr-defined]
        await until_running(0)

    client.do(left())


def test_agrees_with_the_engine_in_process(client: Client, tiny: Callable[..., Any]) -> None:
    """The same weights by two ways: tokens, template, pictures and arithmetic must be the same, but for JPEG."""
    from tests.planner.backends.test_vllm import started

    prompts = [
        asked("Which?", begin=KNOWLEDGE[:800]),
        Prompt((Message("user", ("Which letter?",)),), "The letter is "),
        Prompt((Message("user", ("<|im_end|>", "<|image_pad|> is text")),)),
        Prompt((Message("user", ("Look: ", Picture(drawn(3), "three"), " Which?")),)),
    ]
    served = client.score(prompts, "served", salt="agree")
    for running in started(tiny("qwen2_5_vl", endless=True)):
        inside = running.do(running.backend.score(prompts, [CODES] * len(prompts), Call("inside")))
        np.testing.assert_allclose(served[:3], inside[:3], atol=2e-3)
        np.testing.assert_allclose(served[3:], inside[3:], atol=0.25)


def test_when_one_of_two_servers_is_killed_the_other_takes_over(servers: tuple[Server, Server]) -> None:
    notices: list[str] = []
    first, second = servers
    with connected(first, second, notices=notices) as client:
        ask = asked("Which is next?")
        wanted = client.score([ask], "before")

        async def through_the_kill() -> tuple[float, int]:
            slowest, answered = 0.0, 0
            for number in range(40):
                if number == 10:
                    first.kill()
                begun = time.monotonic()
                found = await client.backend.score([ask], [CODES], Call(f"during-{number}"))
                slowest = max(slowest, time.monotonic() - begun)
                np.testing.assert_allclose(found, wanted, atol=5e-3)
                answered += 1
            return slowest, answered

        slowest, answered = client.do(through_the_kill())
        assert answered == 40
        assert slowest < 10
        assert client.backend.usage().calls.get("retried", 0) <= 2
        assert "is left alone until it is well again" in notices[0]
        second.kill()
        with pytest.raises(BackendError):
            client.score([ask], "both gone")
        with pytest.raises(BackendError, match=r"no server of planner\.endpoint is well"):
            client.score([ask], "still")


def test_no_server_at_all(servers: tuple[Server, Server]) -> None:
    with pytest.raises((BackendError, ConfigError), match="cannot be reached"), connected(servers[0]):
        pass
