"""The browsers: each gets what changed since it last said that it was ready, and never more than one batch of it.

A batch is answered by an `ack`; until then what changes replaces what was waiting, section by section, picture by picture. So a
browser that is slow, or frozen with its connection open, costs the memory of one batch, and holds up nobody.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Protocol

MOST_CLIENTS = 64
_LEAST_INTERVAL_S = 0.04
_HEARTBEAT_S = 0.5


class Channel(Protocol):
    """The part of a WebSocket that is written to."""

    async def send_text(self, data: str) -> None:
        """Send text."""
        ...

    async def send_bytes(self, data: bytes) -> None:
        """Send bytes."""
        ...


class Client:
    """One browser's mailbox: the newest of each section and the newest picture."""

    def __init__(self, sections: Mapping[str, bytes]) -> None:
        """Begin with everything there is."""
        self._sections = dict(sections)
        self._picture: bytes | None = None
        self._due = asyncio.Event()
        self._acked = asyncio.Event()
        self._number = 0

    def put(self, sections: Mapping[str, bytes], picture: bytes | None = None) -> None:
        """Let newer sections and a newer picture take the place of those that wait."""
        self._sections.update(sections)
        self._picture = picture if picture is not None else self._picture
        if sections or picture is not None:
            self._due.set()

    def ack(self, number: int) -> None:
        """The browser has dealt with batch `number`."""
        if number == self._number:
            self._acked.set()

    async def write(self, channel: Channel, clock: Clock) -> None:
        """Send batches until cancelled; a heartbeat when nothing changes, so that a browser notices a dead line."""
        while True:
            try:
                await asyncio.wait_for(self._due.wait(), _HEARTBEAT_S)
            except TimeoutError:
                pass
            self._due.clear()
            sections, self._sections = self._sections, {}
            picture, self._picture = self._picture, None
            self._number += 1
            self._acked.clear()
            await channel.send_text(_batch(self._number, clock, sections, picture_follows=picture is not None))
            if picture is not None:
                await channel.send_bytes(picture)
            await self._acked.wait()
            await asyncio.sleep(_LEAST_INTERVAL_S)


class Clock(Protocol):
    """What a batch says of time, asked at the moment it is sent."""

    def times(self, now_ns: int) -> bytes:
        """JSON members, without braces."""
        ...


class Hub:
    """All browsers."""

    def __init__(self) -> None:
        self._clients: set[Client] = set()

    def __len__(self) -> int:
        return len(self._clients)

    def join(self, sections: Mapping[str, bytes]) -> Client | None:
        """A mailbox for a new browser; None when there are too many."""
        if len(self._clients) >= MOST_CLIENTS:
            return None
        client = Client(sections)
        self._clients.add(client)
        return client

    def leave(self, client: Client) -> None:
        """It is gone."""
        self._clients.discard(client)

    def broadcast(self, sections: Mapping[str, bytes], picture: bytes | None) -> None:
        """Put what is new into every mailbox."""
        for client in self._clients:
            client.put(sections, picture)


def _batch(number: int, clock: Clock, sections: Mapping[str, bytes], *, picture_follows: bool) -> str:
    body = b",".join(b'"%s":%s' % (name.encode(), data) for name, data in sections.items())
    follows = b"true" if picture_follows else b"false"
    times = clock.times(time.monotonic_ns())
    return (b'{"n":%d,%s,"picture":%s,"sections":{%s}}' % (number, times, follows, body)).decode()
