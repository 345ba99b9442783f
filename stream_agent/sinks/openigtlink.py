"""The OpenIGTLink bridge: plans as STRING and pictures as IMAGE for 3D Slicer and the like; publish-only, a process of its own.

    publisher ─plans▶ ┐
    grabber ─frames▶  ┴─ newest of each per connection ─▶ TCP, this host alone

The protocol knows neither encryption nor who is at the other end, so it is served on loopback; `ssh -L` takes it further. Nothing
that a connection sends is read. `pyigtl` packs the messages; its server is not used, since it keeps up to a hundred old ones for
a slow receiver, and serves one at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_agent.child import ChildSide
from stream_agent.clock import NS_PER_S
from stream_agent.errors import ConfigError
from stream_agent.messages import Plan
from stream_agent.sinks.feed import Feed, FeedJob, PlanWatch, one_line

PLAN, NEXT, PICTURE = "StreamAgentPlan", "StreamAgentNext", "StreamAgentPicture"
"""Device names: the plan as JSON, as one line for a person, and the picture."""

_LOOK_S = 0.02
_NICENESS = 10
_LONGEST_STRING = 65_535


class OpenIgtLinkJob(msgspec.Struct, frozen=True):
    """What the bridge is told to do: where it reads, and the port of 127.0.0.1 that it serves."""

    feed: FeedJob
    port: int


class Connection:
    """One receiver: the newest message of each device waits for it."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._waiting: dict[str, bytes] = {}
        self._due = asyncio.Event()
        writer.transport.set_write_buffer_limits(high=0)  # `drain` then waits until all of it has left

    def put(self, device: str, message: bytes) -> None:
        """Let a newer message take the place of the one that waits."""
        self._waiting[device] = message
        self._due.set()

    async def write(self) -> None:
        """Send until the receiver is gone."""
        while True:
            await self._due.wait()
            self._due.clear()
            waiting, self._waiting = self._waiting, {}
            self._writer.write(b"".join(waiting.values()))
            await self._writer.drain()


class Bridge:
    """What is sent, and to whom."""

    def __init__(self, job: OpenIgtLinkJob) -> None:
        self._lockstep = job.feed.lockstep
        self._watch = PlanWatch(lockstep=self._lockstep)
        self._connections: set[Connection] = set()
        self._newest: dict[str, bytes] = {}

    async def attend(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One receiver, from now until it goes; it begins with the newest of everything."""
        connection = Connection(writer)
        for device, message in self._newest.items():
            connection.put(device, message)
        self._connections.add(connection)
        try:
            await connection.write()
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(connection)
            writer.close()

    @property
    def watched(self) -> bool:
        """Whether there is a receiver."""
        return bool(self._connections)

    def take_plan(self, plan: Plan) -> None:
        """A plan was published."""
        now_ns = time.monotonic_ns()
        if not self._watch.take(plan, now_ns):
            self.expire(now_ns)
            return
        at_s = time.time() - (0.0 if self._lockstep else (now_ns - plan.captured_ns) / NS_PER_S)
        text = _ascii_json(plan)
        self._send(PLAN, text if len(text) <= _LONGEST_STRING else _ascii_json(_in_short(plan)), at_s)
        self._send(NEXT, one_line(plan), at_s)

    def expire(self, now_ns: int) -> None:
        """Take down a plan whose time is over, also when the agent says nothing any more."""
        if self._watch.expired(now_ns) is None:
            return
        self._send(PLAN, '{"type":"expired"}', time.time())
        self._send(NEXT, "expired: no plan", time.time())

    def take_picture(self, rgb: NDArray[np.uint8], captured_ns: int) -> None:
        """A picture (height, width, 3), uint8."""
        import pyigtl

        age_s = 0.0 if self._lockstep else (time.monotonic_ns() - captured_ns) / NS_PER_S
        message = pyigtl.ImageMessage(rgb[np.newaxis], timestamp=time.time() - age_s, device_name=PICTURE)
        self._put(PICTURE, message.pack())

    def _send(self, device: str, text: str, at_s: float) -> None:
        import pyigtl

        text = text.encode("ascii", "replace").decode()
        self._put(device, pyigtl.StringMessage(text, timestamp=at_s, device_name=device).pack())

    def _put(self, device: str, message: bytes) -> None:
        self._newest[device] = message
        for connection in self._connections:
            connection.put(device, message)


def _ascii_json(plan: Plan) -> str:
    """JSON whose other characters are escaped: pyigtl packs ASCII alone."""
    return json.dumps(msgspec.to_builtins(plan), separators=(",", ":"))


def _in_short(plan: Plan) -> Plan:
    """Without what may be long."""
    return msgspec.structs.replace(plan, caption="", notes=(), safety=(), progress="", contradiction="", rungs=())


async def _serve(job: OpenIgtLinkJob, child: ChildSide) -> None:
    bridge = Bridge(job)
    try:
        server = await asyncio.start_server(bridge.attend, "127.0.0.1", job.port)
    except OSError as error:
        raise ConfigError(
            f"OpenIGTLink cannot be served on 127.0.0.1:{job.port} ({error.strerror}); choose another "
            "sinks.openigtlink.port, or 0 for a free one"
        ) from error
    child.notice(f"OpenIGTLink: 127.0.0.1:{server.sockets[0].getsockname()[1]}")
    child.ready()
    with Feed(job.feed) as feed:
        while not child.stopped():
            for message in feed.messages(0.0):
                if isinstance(message, Plan):
                    bridge.take_plan(message)
            bridge.expire(time.monotonic_ns())
            if not bridge.watched:
                feed.rest()
            elif (found := feed.picture()) is not None:
                header, rgb = found
                bridge.take_picture(rgb, header.captured_ns)
            await asyncio.sleep(_LOOK_S)
    server.close()


def main() -> int:
    """Serve until told to stop; the exit code."""
    child = ChildSide()
    job = msgspec.json.decode(child.job, type=OpenIgtLinkJob)
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)
    try:
        asyncio.run(_serve(job, child))
    except ConfigError as error:
        child.notice(str(error))
        child.failed(str(error), error.exit_code)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
