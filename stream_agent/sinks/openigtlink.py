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
from pathlib import Path

import msgspec
import numpy as np
import zmq
from numpy.typing import NDArray

from stream_agent.child import ChildSide
from stream_agent.clock import NS_PER_S
from stream_agent.errors import ConfigError, WireError
from stream_agent.messages import Plan
from stream_agent.planner.near_picture import near_picture
from stream_agent.sinks.subscriber import Subscriber
from stream_agent.transport.receiver import FrameReceiver

PLAN, NEXT, PICTURE = "StreamAgentPlan", "StreamAgentNext", "StreamAgentPicture"
"""Device names: the plan as JSON, as one line for a person, and the picture."""

_LOOK_S = 0.02
_NICENESS = 10
_LONGEST_STRING = 65_535


class OpenIgtLinkJob(msgspec.Struct, frozen=True):
    """What the bridge is told to do.

    Attributes:
        port: Of 127.0.0.1.
        plans: Address of the agent's publisher.
        frames: Address of the frames.
        frame_keys: Directory of CURVE keys for it; empty without.
        fps: Pictures a second at most; 0 sends none.
        max_pixels: Pictures are reduced to so many.
        lockstep: Whether the session's clock is virtual: plans then never expire by this host's clock.
    """

    port: int
    plans: str
    frames: str
    frame_keys: str
    fps: float
    max_pixels: int
    lockstep: bool


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
        self._job = job
        self._connections: set[Connection] = set()
        self._newest: dict[str, bytes] = {}
        self._plan: Plan | None = None

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
        self._plan = plan
        now_ns = time.monotonic_ns()
        if not self._job.lockstep and now_ns > plan.valid_until_ns:
            self.expire(now_ns)
            return
        at_s = time.time() - (0.0 if self._job.lockstep else (now_ns - plan.captured_ns) / NS_PER_S)
        text = _ascii_json(plan)
        self._send(PLAN, text if len(text) <= _LONGEST_STRING else _ascii_json(_in_short(plan)), at_s)
        self._send(NEXT, _line(plan), at_s)

    def expire(self, now_ns: int) -> None:
        """Take down a plan whose time is over, also when the agent says nothing any more."""
        plan = self._plan
        if plan is None or self._job.lockstep or now_ns <= plan.valid_until_ns:
            return
        self._plan = None
        self._send(PLAN, '{"type":"expired"}', time.time())
        self._send(NEXT, "expired: no plan", time.time())

    def take_picture(self, rgb: NDArray[np.uint8], captured_ns: int) -> None:
        """A picture (height, width, 3), uint8."""
        import pyigtl

        age_s = 0.0 if self._job.lockstep else (time.monotonic_ns() - captured_ns) / NS_PER_S
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


def _line(plan: Plan) -> str:
    if plan.abstained:
        return f"no plan: {plan.abstain_reason}"
    return ", ".join(f"{item.action} {item.probability:.0%}" for item in plan.ranked)


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
    subscriber = Subscriber(job.plans)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    keys = Path(job.frame_keys) if job.frame_keys else None
    receiver: FrameReceiver | None = None
    due_s = time.monotonic()
    try:
        while not child.stopped():
            for message in subscriber.newest(0.0):
                if isinstance(message, Plan):
                    bridge.take_plan(message)
            bridge.expire(time.monotonic_ns())
            if job.fps and bridge.watched and time.monotonic() >= due_s:
                due_s = time.monotonic() + 1 / job.fps
                receiver = receiver or FrameReceiver(context, job.frames, keys=keys, observer=True)
                _pass_on(receiver, bridge, job.max_pixels)
            elif receiver is not None and not bridge.watched:
                receiver.close()
                receiver = None
            await asyncio.sleep(_LOOK_S)
    finally:
        server.close()
        subscriber.close()
        if receiver is not None:
            receiver.close()
        context.term()


def _pass_on(receiver: FrameReceiver, bridge: Bridge, max_pixels: int) -> None:
    """The newest frame, if there is one with a picture."""
    frame = receiver.newest(0.0)
    if frame is None:
        return
    try:
        planes = frame.planes()
        if planes is None:
            return
        picture = near_picture(planes, frame.header, action=None, max_pixels=max_pixels, side_multiple=2)
    except WireError:
        return
    if frame.intact():
        rgb = np.frombuffer(picture.rgb, np.uint8).reshape(picture.height, picture.width, 3)
        bridge.take_picture(rgb, frame.header.captured_ns)


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
