"""The agent's end of a recording: hands everything on to the recorder process, and never waits for it in real time.

One queue carries all, numbered, so that its order is the order in which the agent did things and a gap shows. It is handed on
once per turn of the loop, behind the plan: until then recording costs a few microseconds. Pixels stay in the shared-memory
ring: the recorder reads them there, as the agent did. In lockstep nothing may be lost, so the agent waits until a picture was
copied before it lets the grabber go on, and a slow disk costs time.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import zmq

from stream_agent import __version__
from stream_agent.config import AgentConfig, SchedulerConfig
from stream_agent.errors import ConfigError, RecordingError
from stream_agent.messages import SCHEMA_VERSION, Clip, Evidence, FrameHeader, Plan, PlanRequest
from stream_agent.planner.link import WorkerLink
from stream_agent.procedure import ProcedurePack
from stream_agent.recording.records import (
    FORMAT,
    INPUTS,
    Admission,
    Choice,
    Commanded,
    Expiry,
    Finish,
    FrameRecord,
    Input,
    PassedOver,
    Restored,
    Verdict,
)
from stream_agent.scheduler import Decision, Scheduler
from stream_agent.sinks.dashboard.control import Command
from stream_agent.source import redacted
from stream_agent.telemetry import Telemetry
from stream_agent.transport.receiver import Frame
from stream_agent.workers import Worker

END = b"end"
FRAME = b"frame"
_QUEUE = 20_000
_READY_S = 30.0
_LOOK_MS = 20
_COPIED_WITHIN_S = 10.0
_FINISH_S, _FINISH_LOCKSTEP_S = 10.0, 120.0
_RESTARTS_PER_MINUTE = 6

_encoder = msgspec.json.Encoder()
_numbers = msgspec.msgpack.Encoder()
_TOPICS = {kind: topic[1:].encode() for kind, topic in INPUTS.items()}


class RecorderJob(msgspec.Struct, frozen=True):
    """What a recorder is told to do.

    Attributes:
        path: The file; an empty one, or what an earlier recorder of this session has left.
        config: `RecorderConfig` as JSON.
        messages: ipc address to pull from.
        copied: ipc address to push the numbers of copied pictures to (lockstep); empty in real time.
        stream_id: Names the camera in the video.
        epoch_ns: What to add to the session's clock for times of the file: Unix time in real time, 0 in lockstep.
        metadata: Name → key → value.
        attachments: Name → JSON text.
    """

    path: str
    config: str
    messages: str
    copied: str
    stream_id: str
    epoch_ns: int
    metadata: dict[str, dict[str, str]]
    attachments: dict[str, str]


class _Waiting(NamedTuple):
    """One message on its way to the recorder, encoded only when it is sent."""

    topic: bytes
    number: int
    now_ns: int
    content: Input | bytes
    frame: Frame | None

    def parts(self) -> list[bytes]:
        """Topic, number and time, JSON; for a frame with a picture its header, and the picture if it is not in the ring."""
        content = self.content if isinstance(self.content, bytes) else _encoder.encode(self.content)
        parts = [self.topic, _numbers.encode((self.number, self.now_ns)), content]
        if self.frame is not None:
            parts += [_encoder.encode(self.frame.header), bytes(self.frame.payload)]
        return parts


class RecordingSink:
    """What the agent calls; `worker` is the recorder process."""

    def __init__(
        self,
        path: Path,
        config: AgentConfig,
        pack: ProcedurePack,
        endpoint: Callable[[str], str],
        *,
        lockstep: bool,
        telemetry: Telemetry,
        now_ns: int,
    ) -> None:
        """Make the file and the sockets; `now_ns` is the session clock's present.

        Raises:
            ConfigError: The package `mcap` is missing, or the file exists or cannot be made.
        """
        if importlib.util.find_spec("mcap") is None:
            raise ConfigError(
                f"sinks.recording={path} needs the package mcap, which is not installed; install stream-agent[record]"
            )
        started = datetime.datetime.now(datetime.UTC)
        self.path = path / f"{started:%Y%m%d-%H%M%S}.mcap" if path.is_dir() else path
        _create(self.path)
        self._lockstep = lockstep
        self._telemetry = telemetry
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH)
        self._copied = self._context.socket(zmq.PULL)
        for socket in (self._socket, self._copied):
            socket.linger = 0
        self._socket.sndhwm = _QUEUE
        self._socket.bind(endpoint("recording"))
        self._copied.bind(endpoint("copied"))
        self._number = 0
        self._waiting: deque[_Waiting] = deque()
        self._passed_over: list[PassedOver] = []
        self._finished = False
        self._begun_ns = now_ns
        self._worker_plan: Plan | None = None
        job = RecorderJob(
            path=str(self.path.absolute()),
            config=config.sinks.recorder.model_dump_json(),
            messages=endpoint("recording"),
            copied=endpoint("copied") if lockstep else "",
            stream_id=config.source.stream_id,
            epoch_ns=0 if lockstep else time.time_ns() - now_ns,
            metadata={"stream_agent": _described(config, pack, started, lockstep)},
            attachments={"config.json": _shown(config), "pack.json": _pack(pack)},
        )
        self.worker = Worker(
            "recorder",
            "stream_agent.recording.recorder",
            lambda: msgspec.json.encode(job),
            restarts_per_minute=_RESTARTS_PER_MINUTE,
            ready_timeout_s=_READY_S,
        )

    def wait_until_ready(self, stopped: Callable[[], bool]) -> None:
        """Let the session begin only when its beginning is recorded, too.

        Raises:
            RecordingError: The recorder cannot write the file.
        """
        while not (self.worker.ready or stopped()):
            self.worker.poll()
            if self.worker.finished:
                failure = self.worker.failure
                raise RecordingError(failure.message if failure else f"{self.path}: the recorder ended at its start")
            time.sleep(_LOOK_MS / 1000)

    def publish(self, data: bytes, now_ns: int) -> None:
        """Record a message as it is published, `topic JSON`."""
        topic, _, body = data.partition(b" ")
        self._take(topic, body, now_ns)

    def record(self, record: Input, now_ns: int) -> None:
        """Record something that a decision depends on."""
        self._take(_TOPICS[type(record)], record, now_ns)

    def pass_over(self, header: FrameHeader, reason: str) -> None:
        """Note a frame that is not perceived; it is recorded with the next that is."""
        self._passed_over.append(PassedOver(header.seq, header.pts_s, reason))

    def frame(self, frame: Frame, evidence: Evidence, now_ns: int) -> None:
        """Record a perceived frame; in lockstep its picture is safe when this returns."""
        header = frame.header
        record = FrameRecord.of(header, evidence, tuple(self._passed_over))
        self._passed_over.clear()
        self._take(FRAME, record, now_ns, frame if header.place != "none" else None)
        if self._lockstep and header.place == "ring":
            self.hand_on()
            self._await_copy(self._number)

    def choice(self, now_ns: int, worker_plan: Plan | None, worker_state: str) -> None:
        """Record what the ladder is about to be told."""
        told = msgspec.UNSET if worker_plan is self._worker_plan else worker_plan
        self._worker_plan = worker_plan
        self.record(Choice(now_ns=now_ns, worker_state=worker_state, answer=told), now_ns)

    def expiry(self, now_ns: int, reason: str) -> None:
        """Record that the plan on display is taken down, and why."""
        self.record(Expiry(now_ns, reason), now_ns)

    def restored(self, clips: tuple[Clip, ...]) -> None:
        """Record the clips that the case begins with."""
        self.record(Restored(clips), self._begun_ns)

    def command(self, now_ns: int, command: Command) -> None:
        """Record what a user has told the agent, before it does it."""
        self.record(Commanded(now_ns, command), now_ns)

    def ended(self, now_ns: int) -> None:
        """Record that the stream came to its end."""
        self.record(Finish(now_ns, tuple(self._passed_over)), now_ns)
        self._passed_over.clear()

    def health(self) -> str:
        """`ok`, or what is wrong."""
        return self.worker.health()

    def finish(self) -> None:
        """Have the recorder write what it has and end; may be called twice."""
        if self._finished:
            return
        self._finished = True
        limit_s = time.monotonic() + (_FINISH_LOCKSTEP_S if self._lockstep else _FINISH_S)
        if not self.worker.finished:
            self._take(END, b"", 0)
        while not self.worker.finished and time.monotonic() < limit_s:
            self.hand_on()
            self.worker.poll()
            time.sleep(0.005)
        self.worker.stop()
        self._socket.close()
        self._copied.close()
        self._context.term()
        with contextlib.suppress(OSError):
            if self.path.stat().st_size == 0:
                self.path.unlink()  # nothing was ever recorded

    def hand_on(self) -> None:
        """Send what has come together, as far as the recorder takes it; in lockstep it is waited for when far behind."""
        self._send_waiting()
        while self._lockstep and len(self._waiting) > _QUEUE and not self.worker.finished:
            self.worker.poll()
            self._socket.poll(_LOOK_MS, zmq.POLLOUT)
            self._send_waiting()

    def _take(self, topic: bytes, content: Input | bytes, now_ns: int, frame: Frame | None = None) -> None:
        self._number += 1
        if len(self._waiting) < _QUEUE or self._lockstep:
            self._waiting.append(_Waiting(topic, self._number, now_ns, content, frame))
        else:
            self._telemetry.count("sink_dropped", reason="recording_queue_full")

    def _send_waiting(self) -> None:
        try:
            while self._waiting:
                self._socket.send_multipart(self._waiting[0].parts(), zmq.NOBLOCK)
                self._waiting.popleft()
        except zmq.Again:
            pass  # no recorder yet, or it is behind

    def _await_copy(self, number: int) -> None:
        limit_s = time.monotonic() + _COPIED_WITHIN_S
        lives = self.worker.restarts
        while time.monotonic() < limit_s:
            while self._copied.poll(_LOOK_MS):
                if msgspec.msgpack.decode(self._copied.recv(), type=int) >= number:
                    return
            self._send_waiting()
            self.worker.poll()
            if self.worker.finished or self.worker.restarts != lives:
                break
        self._telemetry.count("sink_dropped", reason="recording_picture_lost")


class RecordedScheduler(Scheduler):
    """A scheduler whose decisions are recorded with what they were made from."""

    def __init__(self, config: SchedulerConfig, *, deadline_ms: float, sink: RecordingSink) -> None:
        super().__init__(config, deadline_ms=deadline_ms)
        self._sink = sink
        self._told_ns = 0

    def offer(self, *, captured_ns: int, now_ns: int, ready: bool) -> tuple[Decision, ...]:
        """As the scheduler's."""
        decisions = super().offer(captured_ns=captured_ns, now_ns=now_ns, ready=ready)
        self._record("offer", decisions, captured_ns=captured_ns, now_ns=now_ns, ready=ready)
        return decisions

    def poll(self, *, now_ns: int, ready: bool) -> tuple[Decision, ...]:
        """As the scheduler's."""
        decisions = super().poll(now_ns=now_ns, ready=ready)
        if decisions:  # a look that nothing came of changes nothing
            self._record("poll", decisions, now_ns=now_ns, ready=ready)
        return decisions

    def finished(self) -> None:
        """As the scheduler's."""
        super().finished()
        self._sink.record(Admission(call="finished"), self._told_ns)

    def _record(
        self, call: str, decisions: tuple[Decision, ...], *, now_ns: int, ready: bool, captured_ns: int = 0
    ) -> None:
        self._told_ns = now_ns
        admission = Admission(
            call="offer" if call == "offer" else "poll",
            captured_ns=captured_ns,
            now_ns=now_ns,
            ready=ready,
            verdicts=tuple(Verdict.of(decision) for decision in decisions),
        )
        self._sink.record(admission, now_ns)


class RecordedLink(WorkerLink):
    """A link to the worker whose requests are recorded; pictures in them by size alone, since the video has them."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: Callable[[str], str],
        sink: RecordingSink,
        now_ns: Callable[[], int],
    ) -> None:
        super().__init__(context, endpoint)
        self._sink = sink
        self._now_ns = now_ns

    def submit(self, request: PlanRequest) -> bool:
        """As the link's."""
        self._sink.record(without_pixels(request), self._now_ns())
        return super().submit(request)


def without_pixels(request: PlanRequest) -> PlanRequest:
    """The request with empty pictures, and a near frame that names no place in this host's memory."""
    near = request.memory.near
    if near is not None:
        near = msgspec.structs.replace(near, place="none", ring="", slot=0, ticket=0)
    return msgspec.structs.replace(
        request,
        memory=msgspec.structs.replace(request.memory, near=near),
        pictures=tuple(msgspec.structs.replace(picture, rgb=b"") for picture in request.pictures),
    )


def _create(path: Path) -> None:
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError as error:
        raise ConfigError(
            f"sinks.recording={path} exists, and a recording is never overwritten; name another file, a folder, or remove it"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"sinks.recording={path} cannot be made: {error.strerror}; name a file in a writable folder"
        ) from error


def _described(config: AgentConfig, pack: ProcedurePack, started: datetime.datetime, lockstep: bool) -> dict[str, str]:
    return {
        "format": FORMAT,
        "version": __version__,
        "schema_version": str(SCHEMA_VERSION),
        "clock": "virtual" if lockstep else "monotonic",
        "started": started.isoformat(timespec="seconds"),
        "stream_id": config.source.stream_id,
        "case_id": config.memory.case_id,
        "config_digest": config.digest(),
        "pack": pack.name,
        "pack_digest": pack.digest(),
        "knowledge_digest": pack.knowledge_digest,
    }


def _shown(config: AgentConfig) -> str:
    """The configuration without the secrets of its addresses: a recording is passed on."""
    options = dict.fromkeys(config.source.options, "***")  # an SRT passphrase, say
    source = config.source.model_copy(update={"uri": redacted(config.source.uri), "options": options})
    return config.model_copy(update={"source": source}).model_dump_json(indent=2)


def _pack(pack: ProcedurePack) -> str:
    tree = {"name": pack.name, "title": pack.title, "actions": pack.action_names, "instruments": pack.instruments}
    return msgspec.json.encode(tree).decode()
