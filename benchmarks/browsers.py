"""Browsers that watch a dashboard and draw nothing: what a real one draws, it draws on a machine of its own.

`python -m benchmarks.browsers PORT COUNT` is COUNT of them until ended, the first of which is frozen: it takes its first batch and
never answers. A line on stdout tells that all are there.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

from benchmarks.report import ROOT
from stream_agent.sinks.dashboard.picture import HEAD


class Browser:
    """As little as a browser can do: a WebSocket by hand, since a library's work would be taken for the dashboard's."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int) -> Browser:
        """The page's live line."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            f"GET /live HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nOrigin: http://127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        await reader.readuntil(b"\r\n\r\n")
        return cls(reader, writer)

    async def batch(self) -> tuple[int, bytes]:
        """The next batch's number, and its picture; empty without one."""
        text = await self._message()
        number = int(text[: text.index(b",")].rpartition(b":")[2])
        return number, await self._message() if b'"picture":true' in text[:200] else b""

    def answer(self, number: int) -> None:
        """Ask for the batch after this one."""
        ack = f'{{"type":"ack","n":{number}}}'.encode()
        self._writer.write(bytes((0x81, 0x80 | len(ack), 0, 0, 0, 0)) + ack)  # masked with zeros

    def close(self) -> None:
        """Close the page."""
        self._writer.close()

    async def _message(self) -> bytes:
        """The next text or picture."""
        while True:
            kind, length = await self._reader.readexactly(2)
            if length >= 126:
                length = int.from_bytes(await self._reader.readexactly(2 if length == 126 else 8))
            content = await self._reader.readexactly(length)
            if kind in (0x81, 0x82):
                return content


async def picture_ages_ms(port: int, seconds: float, settle_s: float) -> tuple[list[float], list[float]]:
    """Capture → whole picture at a browser's socket, and from each picture to the next, over `seconds`."""
    browser = await Browser.open(port)
    ages_ms: list[float] = []
    seen_ns: list[int] = []
    begin_s = time.monotonic() + settle_s
    try:
        async with asyncio.timeout(seconds + settle_s + 30.0):
            while time.monotonic() < begin_s + seconds:
                number, picture = await browser.batch()
                now_ns = time.monotonic_ns()
                browser.answer(number)
                if picture and now_ns / 1e9 >= begin_s:
                    ages_ms.append(now_ns / 1e6 - HEAD.unpack_from(picture)[0])
                    seen_ns.append(now_ns)
    finally:
        browser.close()
    gaps_ms = [(after - before) / 1e6 for before, after in pairwise(seen_ns)]
    return ages_ms, gaps_ms


@contextmanager
def watching(port: int, count: int) -> Iterator[None]:
    """So many browsers in a process of their own, one of them frozen."""
    command = [sys.executable, "-m", "benchmarks.browsers", str(port), str(count)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as browsers:
        assert browsers.stdout is not None
        browsers.stdout.readline()  # all of them are there
        try:
            yield
        finally:
            browsers.terminate()


def main() -> None:
    port, count = map(int, sys.argv[1:3])
    os.nice(19)  # they stand for other machines
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    asyncio.run(_watch(port, count))


async def _watch(port: int, count: int) -> None:
    there = asyncio.Barrier(count + 1)
    async with asyncio.TaskGroup() as browsers:
        for number in range(count):
            browsers.create_task(_browse(port, there, frozen=number == 0))
        await there.wait()
        print("watching", flush=True)


async def _browse(port: int, there: asyncio.Barrier, *, frozen: bool) -> None:
    browser = await Browser.open(port)
    number, _ = await browser.batch()
    await there.wait()
    while not frozen:
        browser.answer(number)
        number, _ = await browser.batch()
    await asyncio.Event().wait()


if __name__ == "__main__":
    main()
