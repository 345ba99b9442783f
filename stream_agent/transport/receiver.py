"""The receiving end: always the newest frame, with every other frame accounted for by reason.

`ZMQ_CONFLATE` on the receiver would hide how many frames it threw away, so latest-wins is done here: each call drains
the socket and keeps the last frame. What was passed over is counted as `superseded`, a gap in `seq` as `lost`.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from pathlib import Path

import cv2
import msgspec
import numpy as np
import zmq

from stream_agent.errors import WireError
from stream_agent.messages import FrameHeader
from stream_agent.runtime import host_id
from stream_agent.source.protocol import Planes
from stream_agent.transport.keys import load_keys, require_keys_outside_loopback, secure_client
from stream_agent.transport.ring import RingReader, planes_bytes
from stream_agent.transport.wire import MAGIC, StreamEnd, unpack

_QUEUE = 4000
_RECONNECT_MS = 20
_OFFSET_WINDOW = 600


class Frame:
    """One received frame: its header, and its pixels where they lie.

    Attributes:
        header: As sent; `captured_ns` is on this host's clock.
        received_ns: `CLOCK_MONOTONIC` when it came out of the socket.
    """

    __slots__ = ("_payload", "_ring", "header", "received_ns")

    def __init__(self, header: FrameHeader, received_ns: int, ring: RingReader | None, payload: memoryview) -> None:
        self.header = header
        self.received_ns = received_ns
        self._ring = ring
        self._payload = payload

    @property
    def payload(self) -> memoryview:
        """The picture as it came with the message; empty when it lies in the ring."""
        return self._payload

    def planes(self) -> Planes | None:
        """Read-only YUV planes (3 H / 2, W): in place in the ring, or decoded from the message; None without pixels.

        Whatever is derived from them counts only if `intact()` is still true afterwards.

        Raises:
            WireError: The picture does not decode or does not have the announced size.
        """
        header = self.header
        if header.place == "none":
            return None
        if self._ring is not None:
            return self._ring.planes(header)
        if header.place == "raw":
            return _raw_planes(header, self._payload)
        return _jpeg_planes(header, self._payload)

    def intact(self) -> bool:
        """Whether the pixels are still this frame's; False once the ring has come round."""
        return self._ring is None or self._ring.intact(self.header)


class FrameReceiver:
    """Receives one stream; `newest` for real time, `following` for lockstep.

    Attributes:
        drops: Frames that were published but not returned, by reason; grows only.
        malformed: Messages that were none of ours.
        ended: The final `StreamEnd`, once it has come.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        *,
        keys: Path | None = None,
        observer: bool = False,
    ) -> None:
        """Subscribe; a grabber waits for its first subscriber, but not for an `observer`.

        Raises:
            ConfigError: Keys are missing or malformed.
        """
        require_keys_outside_loopback(endpoint, keys)
        self._socket = context.socket(zmq.SUB)
        self._socket.linger = 0
        self._socket.rcvhwm = _QUEUE
        self._socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        if keys is not None:
            secure_client(self._socket, load_keys(keys))
        self._socket.subscribe(MAGIC if observer else b"")
        self._socket.connect(endpoint)
        # A header is copied out faster than it is wrapped; a picture is not.
        self._copy = endpoint.startswith("ipc://")
        self._timeout_ms = -1
        self._host_id = host_id()
        self._offset = _ClockOffset()
        self._ring: RingReader | None = None
        self._session = ""
        self._expected_seq = 0
        self._finished_published = 0
        self.drops: Counter[str] = Counter()
        self.malformed = 0
        self.ended: StreamEnd | None = None

    def newest(self, timeout_s: float) -> Frame | None:
        """The newest frame there is, waiting at most `timeout_s` for one; older ones are counted as superseded."""
        newest: FrameHeader | None = None
        payload = memoryview(b"")
        message = self._wait(timeout_s)
        while message is not None:
            arrival = self._accept(message)
            if arrival is not None:
                self.drops["superseded"] += newest is not None
                newest, payload = arrival
                if self._is_newest(newest):
                    break
            message = self._receive()
        return self._frame(newest, payload) if newest is not None else None

    def following(self, timeout_s: float) -> Frame | None:
        """The next frame in order, waiting at most `timeout_s`; for lockstep, where the sender waits for credit."""
        message = self._wait(timeout_s)
        while message is not None:
            arrival = self._accept(message)
            if arrival is not None:
                return self._frame(*arrival)
            message = self._receive()
        return None

    @property
    def published(self) -> int:
        """Frames known to have been published over all sessions so far."""
        return self._finished_published + self._expected_seq

    def close_session(self, published: int = 0, *, sender_gone: bool = True) -> None:
        """Book what the running session published and we never saw as lost; called when its sender has ended.

        A killed sender says nothing any more, but its count stands in the ring, which outlives it as our mapping.
        """
        if self._session and self._ring is not None and sender_gone:
            published = max(published, self._ring.published())
        self.drops["lost"] += max(0, published - self._expected_seq)
        self._finished_published += max(published, self._expected_seq)
        self._expected_seq = 0
        self._session = ""

    def close(self) -> None:
        """Close the socket and unmap the ring."""
        self._socket.close()
        if self._ring is not None:
            self._ring.close()
            self._ring = None

    def _wait(self, timeout_s: float) -> bytes | memoryview | None:
        """The next message, waiting for it inside `recv`: a poll before it costs as much again."""
        timeout_ms = round(timeout_s * 1000)
        if timeout_ms != self._timeout_ms:
            self._socket.rcvtimeo = self._timeout_ms = timeout_ms
        try:
            return self._recv()
        except zmq.Again:
            return None

    def _receive(self) -> bytes | memoryview | None:
        """The next message if there is one."""
        try:
            return self._recv(zmq.NOBLOCK)
        except zmq.Again:
            return None

    def _is_newest(self, header: FrameHeader) -> bool:
        """Whether the ring says that no later frame is to be had, which spares asking the socket in vain."""
        ring = self._ring
        return ring is not None and header.ring == ring.locator and ring.is_newest(header)

    def _recv(self, flags: int = 0) -> bytes | memoryview:
        return self._socket.recv(flags) if self._copy else memoryview(self._socket.recv(flags, copy=False).buffer)

    def _accept(self, message: bytes | memoryview) -> tuple[FrameHeader, memoryview] | None:
        """Book one message; return it if it is a frame."""
        try:
            content = unpack(message)
        except WireError:
            self.malformed += 1
            return None
        if isinstance(content, StreamEnd):
            if content.session_id == self._session or not self._session:
                self.close_session(content.published, sender_gone=False)
            if content.final:
                self.ended = content
            return None
        header, payload = content
        if header.session_id != self._session:
            if self._session:
                self.close_session(sender_gone=self._ring is not None and header.ring != self._ring.locator)
            self._session = header.session_id
        elif header.seq < self._expected_seq:
            return None  # a replayed or reordered message; its frame was booked already
        self.drops["lost"] += header.seq - self._expected_seq
        self._expected_seq = header.seq + 1
        return header, payload

    def _frame(self, header: FrameHeader, payload: memoryview) -> Frame | None:
        received_ns = time.monotonic_ns()
        if header.host_id != self._host_id:
            captured_ns = self._offset.to_local(header.captured_ns, received_ns)
            header = msgspec.structs.replace(header, captured_ns=captured_ns)
        ring = None
        if header.place == "ring":
            try:
                ring = self._ring_of(header)
            except WireError:
                self.drops["overwritten"] += 1  # its ring is gone with its grabber
                return None
        return Frame(header, received_ns, ring, payload)

    def _ring_of(self, header: FrameHeader) -> RingReader:
        if self._ring is None or self._ring.locator != header.ring:
            ring = RingReader(header.ring)
            if self._ring is not None:
                self._ring.close()
            self._ring = ring
        return self._ring


class _ClockOffset:
    """Maps another host's monotonic clock to ours by the fastest recent message.

    One-way latency cannot be measured with two clocks, so the constant part of the network delay is taken as zero:
    ages of remote frames are lower bounds, short by that constant, and never negative.
    """

    def __init__(self) -> None:
        self._recent: deque[int] = deque(maxlen=_OFFSET_WINDOW)

    def to_local(self, captured_ns: int, received_ns: int) -> int:
        self._recent.append(received_ns - captured_ns)
        return captured_ns + min(self._recent)


def _raw_planes(header: FrameHeader, payload: memoryview) -> Planes:
    if len(payload) != planes_bytes(header.width, header.height):
        raise WireError(
            f"frame {header.seq} announces {header.width}x{header.height} but carries {len(payload)} bytes; the sender is broken"
        )
    return np.frombuffer(payload, np.uint8).reshape(header.height * 3 // 2, header.width)


def _jpeg_planes(header: FrameHeader, payload: memoryview) -> Planes:
    try:
        picture = cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        picture = None
    if picture is None or picture.shape[:2] != (header.height, header.width):
        raise WireError(f"frame {header.seq} carries no JPEG of {header.width}x{header.height}; the sender is broken")
    planes = np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420), np.uint8)
    planes.flags.writeable = False
    return planes
