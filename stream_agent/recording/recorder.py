"""The recorder process: copies pictures out of the ring, encodes, writes; as slow as it likes, the agent never waits.

    main thread     messages in, pictures copied out of the ring before it comes round
    writer thread   H.264, chunks of half a second, each flushed to the disk

What cannot be written is told as this child's state, which the agent publishes, and tried again with the next chunk.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from pathlib import Path
from typing import NamedTuple

import av.error
import msgspec
import numpy as np
import zmq

from stream_agent import __version__
from stream_agent.child import ChildSide
from stream_agent.config import RecorderConfig
from stream_agent.errors import UNDECODABLE, StreamAgentError, WireError
from stream_agent.messages import FrameHeader
from stream_agent.recording.foxglove import VIDEO_SCHEMA, compressed_video, json_schema, video_descriptor
from stream_agent.recording.mcap_file import Entry, RecordingWriter, TopicSpec
from stream_agent.recording.records import RECORDED, VIDEO_TOPIC
from stream_agent.recording.sink import END, FRAME, RecorderJob
from stream_agent.recording.video import VideoEncoder
from stream_agent.source.protocol import Planes
from stream_agent.transport.receiver import Frame
from stream_agent.transport.ring import RingReader

FLUSH_S = 0.5
_FLUSH_BYTES = 8 << 20
_PICTURE_BYTES = 96 << 20
_NICENESS = 5
_DRAIN_S = 0.3

_numbers = msgspec.msgpack.Decoder(tuple[int, int])
_header = msgspec.json.Decoder(FrameHeader)


class _Item(NamedTuple):
    entry: Entry
    planes: Planes | None = None
    header: FrameHeader | None = None


class Pictures:
    """Reads frames' pixels where they lie; what comes back is a copy."""

    def __init__(self) -> None:
        self._ring: RingReader | None = None

    def copy(self, header: FrameHeader, payload: bytes) -> Planes | None:
        """The planes, (3 H / 2, W); None when the ring has come round, or what came is no picture."""
        try:
            ring = self._ring_of(header) if header.place == "ring" else None
            frame = Frame(header, 0, ring, memoryview(payload))
            planes = frame.planes()
            copied = None if planes is None else np.array(planes)
        except WireError:
            return None
        return copied if frame.intact() else None

    def close(self) -> None:
        """Unmap."""
        if self._ring is not None:
            self._ring.close()

    def _ring_of(self, header: FrameHeader) -> RingReader:
        if self._ring is None or self._ring.locator != header.ring:
            ring = RingReader(header.ring)
            self.close()
            self._ring = ring
        return self._ring


class FileThread(threading.Thread):
    """Encodes and writes what it is given, until `None`.

    Attributes:
        problem: Empty, or why what happens is not being recorded.
        lost: Messages that could not be written.
    """

    def __init__(self, writer: RecordingWriter, config: RecorderConfig, stream_id: str) -> None:
        super().__init__(name="writer", daemon=True)
        self.items: queue.Queue[_Item | None] = queue.Queue()
        self.problem = ""
        self.lost = 0
        self._writer = writer
        self._video = VideoEncoder(crf=config.crf) if config.video else None
        self._crf = config.crf
        self._stream_id = stream_id
        self._held_bytes = 0
        self._lock = threading.Condition()

    def has_room(self, n_bytes: int, *, wait_s: float) -> bool:
        """Whether another picture may be held, waiting at most so long for it."""
        with self._lock:
            return self._lock.wait_for(
                lambda: self._held_bytes == 0 or self._held_bytes + n_bytes <= _PICTURE_BYTES, wait_s
            )

    def give(self, item: _Item) -> None:
        """Hand over one message, with its picture if it has one."""
        if item.planes is not None:
            with self._lock:
                self._held_bytes += item.planes.nbytes
        self.items.put(item)

    def run(self) -> None:
        """Until told to end; then everything is in the file."""
        due_s = time.monotonic() + FLUSH_S
        open_ended = True
        while open_ended:
            try:
                item = self.items.get(timeout=max(0.0, due_s - time.monotonic()))
                open_ended = item is not None
                if item is not None:
                    self._add(item)
            except queue.Empty:
                pass
            if not open_ended or time.monotonic() >= due_s or self._writer.waiting_bytes >= _FLUSH_BYTES:
                self._flush()
                due_s = time.monotonic() + FLUSH_S

    def _add(self, item: _Item) -> None:
        entry = item.entry
        self._writer.add(entry)
        if item.planes is None or item.header is None:
            return
        if self._video is not None:
            with contextlib.suppress(av.error.FFmpegError):
                data = self._video.encode(item.planes, item.header.captured_ns, item.header.colour)
                message = compressed_video(entry.log_ns, self._stream_id, data)
                self._writer.add(Entry(VIDEO_TOPIC, entry.sequence, entry.log_ns, entry.log_ns, message))
        with self._lock:
            self._held_bytes -= item.planes.nbytes
            self._lock.notify_all()

    def _flush(self) -> None:
        waiting = self._writer.waiting
        if not waiting:
            return
        try:
            self._writer.flush()
        except OSError as error:
            self.lost += waiting
            self.problem = f"cannot write ({error.strerror}): {self.lost} messages are lost so far; free some space"
            if self._video is not None:
                self._video = VideoEncoder(crf=self._crf)  # the next picture must not build on one that is lost
            return
        self.problem = ""
        with contextlib.suppress(OSError):
            self._writer.sync()


class Recorder:
    """Takes messages in and hands them to the file's thread."""

    def __init__(self, job: RecorderJob, child: ChildSide, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._job = job
        self._child = child
        self._video = RecorderConfig.model_validate_json(job.config).video
        self._messages = context.socket(zmq.PULL)
        self._messages.linger = 0
        self._messages.rcvhwm = 0  # what waits here is lost with this process, so it is taken out at once
        self._messages.connect(job.messages)
        self._copied: zmq.Socket[bytes] | None = None
        if job.copied:
            self._copied = context.socket(zmq.PUSH)
            self._copied.linger = 0
            self._copied.connect(job.copied)
        self._pictures = Pictures()
        self._dropped = 0

    def run(self, file: FileThread) -> bool:
        """Until the session's end is told (True), or this process is (False)."""
        ended = False
        told_to_stop_s: float | None = None
        while not ended:
            if self._messages.poll(100):
                ended = self._take(self._messages.recv_multipart(), file)
            elif self._child.stopped():
                break
            if self._child.stopped():
                told_to_stop_s = told_to_stop_s or time.monotonic()
                if time.monotonic() - told_to_stop_s > _DRAIN_S:
                    break
            self._tell(file)
        file.items.put(None)
        file.join()
        self._tell(file)
        if file.lost or self._dropped:
            self._child.notice(
                f"{self._job.path}: {file.lost} messages and {self._dropped} pictures of the session are not in the recording"
            )
        return ended

    def close(self) -> None:
        """Let go of sockets and ring."""
        self._messages.close()
        if self._copied is not None:
            self._copied.close()
        self._pictures.close()

    def _take(self, parts: list[bytes], file: FileThread) -> bool:
        """One message of the agent; whether it was the last."""
        topic, numbers, *rest = parts
        if topic == END:
            return True
        number, now_ns = _numbers.decode(numbers)
        epoch_ns = self._job.epoch_ns
        name = f"/{topic.decode()}"
        if topic != FRAME or len(rest) < 3:
            file.give(_Item(Entry(name, number, epoch_ns + now_ns, epoch_ns + now_ns, rest[0])))
            return False
        header = _header.decode(rest[1])
        planes = None
        if self._video:
            n_bytes = header.width * header.height * 3 // 2
            # In lockstep the agent waits for us, so the disk's pace is the session's.
            if file.has_room(n_bytes, wait_s=60.0 if self._copied is not None else 0.0):
                planes = self._pictures.copy(header, rest[2])
            self._dropped += planes is None
        captured_ns = epoch_ns + header.captured_ns
        file.give(_Item(Entry(name, number, captured_ns, epoch_ns + now_ns, rest[0]), planes, header))
        if self._copied is not None:
            with contextlib.suppress(zmq.Again):
                self._copied.send(msgspec.msgpack.encode(number), zmq.NOBLOCK)
        return False

    def _tell(self, file: FileThread) -> None:
        self._child.state = file.problem or "ok"


def topics() -> list[TopicSpec]:
    """Every channel of a recording."""
    ours = [
        TopicSpec(topic, "json", f"stream_agent.{kind.__name__}", "jsonschema", json_schema(kind))
        for topic, kind in RECORDED.items()
    ]
    return [TopicSpec(VIDEO_TOPIC, "protobuf", VIDEO_SCHEMA, "protobuf", video_descriptor()), *ours]


def main() -> int:
    """Body of the recorder child process."""
    child = ChildSide()
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        job = msgspec.json.decode(child.job, type=RecorderJob)
        writer = RecordingWriter(
            Path(job.path),
            topics(),
            metadata=job.metadata,
            attachments={name: ("application/json", text.encode()) for name, text in job.attachments.items()},
            library=f"stream_agent {__version__}",
        )
        file = FileThread(writer, RecorderConfig.model_validate_json(job.config), job.stream_id)
        file.start()
        recorder = Recorder(job, child, context)
        try:
            child.ready()
            return 0 if recorder.run(file) else 1
        finally:
            recorder.close()
            writer.close()
    except UNDECODABLE as error:
        child.failed(f"recorder: a message of the agent does not decode: {error}", 1)
        return 1
    except StreamAgentError as error:
        child.failed(str(error), error.exit_code)
        return error.exit_code
    finally:
        context.destroy(linger=0)


if __name__ == "__main__":
    raise SystemExit(main())
