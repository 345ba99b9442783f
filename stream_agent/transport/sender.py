"""The sending end: frame headers to this host's processes, or whole encoded pictures to other hosts.

On one host the message is the header alone and the queue is deep: a header is 200 bytes, and one that comes late is
recognised by its overwritten slot. Between hosts the message carries the picture, so the queue must never fill with old
ones: `ZMQ_CONFLATE` keeps only the newest message per subscriber (possible because a message is one part), and the
socket buffers are kept to about two pictures.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import cv2
import msgspec
import zmq

from stream_agent.errors import ConfigError, WireError
from stream_agent.messages import FrameHeader
from stream_agent.source.protocol import Planes
from stream_agent.transport.keys import Authenticator, load_keys, require_keys_outside_loopback, secure_server
from stream_agent.transport.wire import StreamEnd, pack_end, pack_frame

_HEADER_QUEUE = 2000
_REMOTE_BUFFER_BYTES = 1 << 20


class HeaderSender:
    """Publishes headers of frames in the ring on an `ipc://` address."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
        self._socket = context.socket(zmq.XPUB)
        self._socket.linger = 0
        self._socket.sndhwm = _HEADER_QUEUE
        _bind(self._socket, endpoint)

    def wait_for_subscriber(self, timeout_s: float, stopped: Callable[[], bool]) -> bool:
        """Whether a consumer subscribed in time; without it the first frames would go to nobody (the slow joiner).

        An observer (`FrameReceiver(observer=True)`) is none: in lockstep the frames that only it saw would be missing.
        """
        deadline = time.monotonic() + timeout_s
        while not stopped() and time.monotonic() < deadline:
            if self._socket.poll(50) and self._socket.recv() == b"\x01":
                return True
        return False

    def send(self, header: FrameHeader) -> None:
        """Announce a committed frame; never blocks, a full queue drops it and the receiver counts the gap."""
        try:
            self._socket.send(pack_frame(header), zmq.NOBLOCK)
        except zmq.Again:
            pass

    def end(self, end: StreamEnd) -> None:
        """Announce the end of a session."""
        with contextlib.suppress(zmq.Again):
            self._socket.send(pack_end(end), zmq.NOBLOCK)

    def close(self, *, linger_s: float = 0.5) -> None:
        """Close, giving the last messages `linger_s` to leave."""
        self._socket.close(linger=round(linger_s * 1000))


class PictureSender:
    """Publishes encoded pictures on a `tcp://` address; outside loopback only to hosts on the allow-list.

    Attributes:
        endpoint: The address as bound, with the port that a `*` became.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        *,
        keys: Path | None,
        encoding: Literal["jpeg", "raw"],
        jpeg_quality: int,
    ) -> None:
        """Bind.

        Raises:
            ConfigError: The address is not free or not local, or keys are missing or malformed.
        """
        require_keys_outside_loopback(endpoint, keys)
        self._encoding = encoding
        self._jpeg_quality = jpeg_quality
        self._authenticator: Authenticator | None = None
        self._socket = context.socket(zmq.PUB)
        self._socket.linger = 0
        self._socket.setsockopt(zmq.CONFLATE, 1)
        self._socket.setsockopt(zmq.SNDBUF, _REMOTE_BUFFER_BYTES)
        if keys is not None:
            self._authenticator = secure_server(self._socket, load_keys(keys), context)
        try:
            _bind(self._socket, endpoint)
        except ConfigError:
            self.close()
            raise
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def send(self, header: FrameHeader, planes: Planes | None) -> None:
        """Encode and send one frame; a subscriber that is behind gets only the newest."""
        if planes is None:
            self._socket.send(pack_frame(header))
        elif self._encoding == "raw":
            self._socket.send(pack_frame(msgspec.structs.replace(header, place="raw"), planes.data.cast("B")))
        else:
            picture = encode_jpeg(planes, self._jpeg_quality)
            self._socket.send(pack_frame(msgspec.structs.replace(header, place="jpeg"), picture))

    def end(self, end: StreamEnd) -> None:
        """Announce the end of a session."""
        self._socket.send(pack_end(end))

    def close(self, *, linger_s: float = 0.5) -> None:
        """Close the socket and stop the authenticator."""
        self._socket.close(linger=round(linger_s * 1000))
        if self._authenticator is not None:
            self._authenticator.stop()


def encode_jpeg(planes: Planes, quality: int) -> bytes:
    """The picture as JPEG bytes."""
    bgr = cv2.cvtColor(planes, cv2.COLOR_YUV2BGR_I420)
    encoded, picture = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not encoded:
        raise WireError(
            f"a picture of {planes.shape[1]}x{planes.shape[0] * 2 // 3} could not be encoded as JPEG; use transport.encoding=raw"
        )
    return picture.tobytes()


def _bind(socket: zmq.Socket[bytes], endpoint: str) -> None:
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        raise ConfigError(f"cannot bind {endpoint}: {error.strerror}; choose a free address of this host") from error
