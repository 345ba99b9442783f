"""The grabber process: open the source, decode into the ring, stamp, publish; never wait for a consumer.

    source ─Picture→ pacer (waits until the picture is due) ─stamp→ ring slot + header ══▶ subscribers

The picture is decoded and copied into its slot *before* it is due, so that a file published at its own pace behaves as a
camera does: `captured_ns` is the moment it is due, and what follows is latency. A live source has its own pace; its
pictures are stamped as the decoder returns them. In lockstep the agent's credit is the pace, and the virtual clock runs
on media time.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Protocol

import msgspec
import numpy as np
import zmq

from stream_agent.child import ChildSide
from stream_agent.clock import NS_PER_S
from stream_agent.config import AgentConfig, SourceConfig, TransportConfig, is_lockstep, pace_factor
from stream_agent.errors import ConfigError, SourceError, StreamAgentError
from stream_agent.messages import Clip, FrameHeader
from stream_agent.procedure import ProcedurePack, load_pack
from stream_agent.runtime import host_id
from stream_agent.source import open_source
from stream_agent.source.protocol import Picture, Planes, Source
from stream_agent.source.timeline import synthetic_timeline
from stream_agent.transport.ring import RingWriter, planes_bytes
from stream_agent.transport.sender import HeaderSender, PictureSender
from stream_agent.transport.wire import StreamEnd

_SUBSCRIBER_WAIT_S = 10.0
_LATE_S = 1.0
REST_S = 0.005
"""How long a paced source lets the agent have the cores before it decodes the next picture."""


class GrabJob(msgspec.Struct, frozen=True):
    """What a grabber is told to do.

    Attributes:
        source: `SourceConfig` as JSON.
        transport: `TransportConfig` as JSON.
        endpoint: ipc address for the headers.
        instruments: The pack's instruments: the order of signals.
        timeline: Ground truth that the synthetic source draws.
        instruments_of: Action → instruments the synthetic source draws for it.
        resume_pts_s: Media time to go on from; None at the first start.
    """

    source: str
    transport: str
    endpoint: str
    instruments: tuple[str, ...] = ()
    timeline: tuple[Clip, ...] = ()
    instruments_of: dict[str, tuple[str, ...]] = {}
    resume_pts_s: float | None = None


class Outlet(Protocol):
    """Where the grabber's frames go: the ring, or an encoding socket."""

    def planes(self, width: int, height: int) -> Planes:
        """A buffer for the next picture."""
        ...

    def publish(self, header: FrameHeader) -> None:
        """Send the frame whose pixels were written into `planes()`."""
        ...

    def end(self, end: StreamEnd) -> None:
        """Send the end of a session."""
        ...


class RingOutlet:
    """Pixels into the ring, headers to this host's subscribers."""

    def __init__(self, sender: HeaderSender, slots: int) -> None:
        self._sender = sender
        self._slots = slots
        self._ring: RingWriter | None = None

    def planes(self, width: int, height: int) -> Planes:
        """The next slot; a picture larger than the slots gets a new ring, readers keep the old one until they move."""
        if self._ring is None or planes_bytes(width, height) > self._ring.slot_bytes:
            if self._ring is not None:
                self._ring.close()
            self._ring = RingWriter(self._slots, planes_bytes(width, height))
        return self._ring.reserve(width, height)

    def publish(self, header: FrameHeader) -> None:
        """Commit the slot and announce it."""
        if header.layout != "none":
            assert self._ring is not None
            slot, ticket = self._ring.commit(header.seq + 1)
            header = msgspec.structs.replace(header, place="ring", ring=self._ring.locator, slot=slot, ticket=ticket)
        self._sender.send(header)

    def end(self, end: StreamEnd) -> None:
        """Announce the end of a session."""
        self._sender.end(end)

    def close(self) -> None:
        """Let go of ring and socket."""
        self._sender.close()
        if self._ring is not None:
            self._ring.close()


class RemoteOutlet:
    """Encoded pictures to other hosts."""

    def __init__(self, sender: PictureSender) -> None:
        self._sender = sender
        self._buffer: Planes = np.empty((0, 0), np.uint8)

    def planes(self, width: int, height: int) -> Planes:
        """One buffer, used again for each picture: it is encoded before the next is decoded."""
        if self._buffer.shape != (height * 3 // 2, width):
            self._buffer = np.empty((height * 3 // 2, width), np.uint8)
        return self._buffer

    def publish(self, header: FrameHeader) -> None:
        """Encode and send."""
        self._sender.send(header, self._buffer if header.layout != "none" else None)

    def end(self, end: StreamEnd) -> None:
        """Announce the end of a session."""
        self._sender.end(end)

    def close(self) -> None:
        """Close the socket."""
        self._sender.close()


class Pacer:
    """When a picture of a finite source is due: its media time since the first, over the pace factor."""

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._origin: tuple[float, float] | None = None

    def wait_s(self, pts_s: float, now_s: float) -> float:
        """Seconds until the picture is due; negative when it is late. More than a second late starts a new origin."""
        if self._origin is None:
            self._origin = (pts_s, now_s)
        first_pts_s, first_s = self._origin
        wait_s = first_s + (pts_s - first_pts_s) / self._factor - now_s
        if wait_s < -_LATE_S:
            self._origin = (pts_s, now_s)
        return wait_s


class Grabber:
    """Runs one source through sessions until it ends or is told to stop."""

    def __init__(
        self,
        job: GrabJob,
        outlet: Outlet,
        *,
        stopped: Callable[[], bool],
        wait: Callable[[float], bool],
        credit: Callable[[], bool],
        notice: Callable[[str], None],
        state: Callable[[str], None],
    ) -> None:
        self._source_config = SourceConfig.model_validate_json(job.source)
        self._job = job
        self._outlet = outlet
        self._stopped = stopped
        self._wait = wait
        self._credit = credit
        self._notice = notice
        self._state = state
        self._host_id = host_id()
        self._sessions = itertools.count()
        self._published = 0
        self._lockstep = is_lockstep(self._source_config)
        self._last_pts_s = job.resume_pts_s
        self._last_s = time.monotonic()
        self._told_late = False

    def run(self, on_open: Callable[[], None]) -> None:
        """Publish session after session; `on_open` is called once, when the source is open (live: being opened).

        Raises:
            SourceError: A source cannot be opened, and trying again would not help.
        """
        config = self._source_config
        opened = False
        backoff = _backoff_s(config)
        while not self._stopped():
            published = self._published
            source = open_source(
                config,
                instruments=self._job.instruments,
                notice=self._notice,
                timeline=self._job.timeline,
                instruments_of=lambda action: self._job.instruments_of.get(action, ()),
            )
            if source.live and not opened:
                on_open()
                opened = True
            try:
                with closing(source):
                    if source.live:
                        self._state("connecting")
                    source.open(self._start_s(source))
                    if not opened:
                        on_open()
                        opened = True
                    self._state("ok")
                    self._publish_session(source)
                if not source.live and not (config.loop and self._published > published):
                    return
                reason = "the stream ended"
            except SourceError as error:
                if error.at_end and self._job.resume_pts_s is not None:
                    return  # the grabber before this one had come to the end
                if not (source.live and error.retryable):
                    raise
                reason = str(error)
            if source.live:
                if self._published > published:
                    backoff = _backoff_s(config)
                wait_s = next(backoff)
                self._state("reconnecting")
                self._notice(f"{reason}; opening it again in {wait_s:.2g} s")
                self._wait(wait_s)

    def _start_s(self, source: Source) -> float:
        if source.live or self._source_config.loop or self._job.resume_pts_s is None:
            return self._source_config.start_s
        return self._job.resume_pts_s

    def _publish_session(self, source: Source) -> None:
        ordinal = next(self._sessions)
        session_id = self._session_id(ordinal)
        discontinuity = ordinal > 0 or self._job.resume_pts_s is not None
        offset_s = self._offset_s(source)
        seq = 0
        reason = "end of the source"
        final = False
        try:
            for picture, pts_s, captured_ns in self._due(source, offset_s):
                header = FrameHeader(
                    stream_id=self._source_config.stream_id,
                    session_id=session_id,
                    seq=seq,
                    pts_s=pts_s,
                    captured_ns=captured_ns,
                    host_id=self._host_id,
                    width=picture.width,
                    height=picture.height,
                    rotation_deg=picture.rotation_deg,
                    layout="none" if picture.write is None else "yuv420p",
                    colour=picture.colour,
                    discontinuity=discontinuity and seq == 0,
                    signals=picture.signals,
                )
                self._outlet.publish(header)
                seq += 1
                self._published += 1
                self._last_pts_s, self._last_s = pts_s, time.monotonic()
            final = not source.live and not (self._source_config.loop and seq)
        except SourceError as error:
            reason = str(error)
            raise
        finally:
            final = final or self._stopped()
            self._outlet.end(StreamEnd(self._source_config.stream_id, session_id, seq, final, reason))

    def _due(self, source: Source, offset_s: float) -> Iterator[tuple[Picture, float, int]]:
        """Decode each picture into its place, wait until it is due, and yield its media time and capture time."""
        pacer = Pacer(pace_factor(self._source_config))
        stop_s = self._source_config.stop_s
        rest_s = 0.0
        for picture in source.pictures():
            if self._stopped() or (stop_s is not None and not source.live and picture.pts_s >= stop_s):
                return
            captured_ns = time.monotonic_ns()
            if picture.write is not None:
                picture.write(self._outlet.planes(picture.width, picture.height))
            pts_s = picture.pts_s + offset_s
            if self._lockstep:
                if not self._credit():
                    return
                captured_ns = round(pts_s * NS_PER_S)
            elif not source.live:
                wait_s = pacer.wait_s(picture.pts_s, time.monotonic())
                if wait_s > 0 and self._wait(wait_s):
                    return
                if wait_s < -_LATE_S and not self._told_late:
                    self._told_late = True
                    self._notice(
                        "decoding cannot keep the source's pace: media time falls behind; lower source.pace or the resolution"
                    )
                # Decoding the next picture at once would take the cores from whoever looks at this one, as a camera's
                # decoder does not: it waits for the next packet. So rest first, when there is time to spare.
                rest_s = REST_S if wait_s + rest_s > 2 * REST_S else 0.0
                captured_ns = time.monotonic_ns()
            yield picture, pts_s, captured_ns
            if rest_s and self._wait(rest_s):
                return

    def _offset_s(self, source: Source) -> float:
        """What to add so that media time never goes back between sessions of one stream."""
        if self._last_pts_s is None or (
            self._job.resume_pts_s is not None and not source.live and not self._source_config.loop
        ):
            return 0.0
        if source.live:
            return self._last_pts_s + (time.monotonic() - self._last_s)
        return self._last_pts_s + 1.0 / max(self._source_config.fps, 1.0) - self._source_config.start_s

    def _session_id(self, ordinal: int) -> str:
        """Random in real time; in lockstep the same on every run."""
        if not self._lockstep:
            return uuid.uuid4().hex[:12]
        name = f"{self._source_config.uri}|{self._source_config.seed}|{ordinal}|{self._job.resume_pts_s}"
        return hashlib.sha256(name.encode()).hexdigest()[:12]


def _backoff_s(config: SourceConfig) -> Iterator[float]:
    """Waits before each reconnect: doubling up to the longest, for ever."""
    wait_s = config.reconnect_initial_s
    while True:
        yield min(wait_s, config.reconnect_max_s)
        wait_s = min(wait_s * 2, config.reconnect_max_s)


def main() -> int:
    """Body of the grabber child process."""
    child = ChildSide()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        job = msgspec.json.decode(child.job, type=GrabJob)
        transport = TransportConfig.model_validate_json(job.transport)
        sender = HeaderSender(context, job.endpoint)

        def on_open() -> None:
            gc.freeze()  # no full collection of what start-up made while frames are due
            child.ready()
            sender.wait_for_subscriber(_SUBSCRIBER_WAIT_S, child.stopped)

        with closing(RingOutlet(sender, transport.slots)) as outlet:
            Grabber(
                job,
                outlet,
                stopped=child.stopped,
                wait=child.stop.wait,
                credit=child.take_credit,
                notice=child.notice,
                state=lambda state: setattr(child, "state", state),
            ).run(on_open)
    except StreamAgentError as error:
        child.failed(str(error), error.exit_code)
        return error.exit_code
    finally:
        context.term()
    return 0


def scene_timeline(config: SourceConfig, pack: ProcedurePack) -> tuple[Clip, ...]:
    """The ground truth of the synthetic scene, drawn from the pack by the seed; empty for real sources."""
    if not config.uri.startswith("synthetic:"):
        return ()
    return synthetic_timeline(
        next_probabilities=pack.next_action_probabilities,
        duration_s=pack.duration_s,
        total_s=config.synthetic_duration_s * config.synthetic_speed,
        seed=config.seed,
    )


def grab_job(config: AgentConfig, pack: ProcedurePack, *, endpoint: str, resume_pts_s: float | None = None) -> GrabJob:
    """What a grabber for this configuration and pack is told."""
    return GrabJob(
        source=config.source.model_dump_json(),
        transport=config.transport.model_dump_json(),
        endpoint=endpoint,
        instruments=pack.instruments,
        timeline=scene_timeline(config.source, pack),
        instruments_of={name: pack.instruments_of(name) for name in pack.action_names},
        resume_pts_s=resume_pts_s,
    )


def grab(config: AgentConfig) -> int:
    """Publish one source to other hosts until it ends or Ctrl-C; what `run_agent.py grab` runs.

    Raises:
        ConfigError: `transport.bind` is missing, or the address needs keys.
        SourceError: The source cannot be opened.
    """
    transport = config.transport
    if transport.bind is None:
        raise ConfigError(
            "grab publishes to other hosts: name an address, for example transport.bind=tcp://127.0.0.1:5570"
        )
    if is_lockstep(config.source):
        raise ConfigError(
            "source.pace=max needs an agent that gives credit; grab runs in real time: leave source.pace out"
        )
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        # By a thread, as in child.py: the signal may find this one inside the event's own lock.
        signal.signal(number, lambda *_: threading.Thread(target=stop.set, daemon=True).start())
    job = grab_job(config, load_pack(config.procedure.pack), endpoint="")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sender = PictureSender(
        context, transport.bind, keys=transport.keys, encoding=transport.encoding, jpeg_quality=transport.jpeg_quality
    )
    with closing(RemoteOutlet(sender)) as outlet:

        def say(text: str) -> None:
            print(text, file=sys.stderr, flush=True)

        Grabber(
            job, outlet, stopped=stop.is_set, wait=stop.wait, credit=lambda: True, notice=say, state=lambda _: None
        ).run(lambda: say(f"publishing {config.source.stream_id} on {transport.bind}"))
    context.term()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
