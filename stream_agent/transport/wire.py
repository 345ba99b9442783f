"""One transport message as bytes: a fixed prelude, a msgpack header, and between hosts the picture behind it.

    b"SA" | schema version u8 | kind u8 | header length u16, little endian | header | payload

One part only: `ZMQ_CONFLATE` keeps just the last part of a multipart message. Decoding checks every field that later
code relies on, so that random or hostile bytes end here as a `WireError`; nothing is ever unpickled.
"""

from __future__ import annotations

import math
import struct

import msgspec

from stream_agent.errors import UNDECODABLE, WireError
from stream_agent.messages import SCHEMA_VERSION, FrameHeader

_PRELUDE = struct.Struct("<2sBBH")
MAGIC = b"SA"
"""What every message begins with."""
_FRAME, _END = 0, 1
MAX_SIDE_PX = 16384
_encoder = msgspec.msgpack.Encoder()


class StreamEnd(msgspec.Struct, frozen=True, array_like=True):
    """The last message of a session.

    Attributes:
        stream_id: Which camera.
        session_id: The session that ends.
        published: Frames it published in all; what a receiver is short of was lost.
        final: Whether the stream ends too, or another session follows.
        reason: In words.
    """

    stream_id: str
    session_id: str
    published: int
    final: bool
    reason: str = ""


_frame_decoder = msgspec.msgpack.Decoder(FrameHeader)
_end_decoder = msgspec.msgpack.Decoder(StreamEnd)


def pack_frame(header: FrameHeader, payload: bytes | memoryview = b"") -> bytes:
    """One message of a frame header and, between hosts, its encoded picture."""
    packed = _encoder.encode(header)
    return b"".join((_PRELUDE.pack(MAGIC, SCHEMA_VERSION, _FRAME, len(packed)), packed, payload))


def pack_end(end: StreamEnd) -> bytes:
    """One message that ends a session."""
    packed = _encoder.encode(end)
    return _PRELUDE.pack(MAGIC, SCHEMA_VERSION, _END, len(packed)) + packed


def unpack(message: bytes | memoryview) -> tuple[FrameHeader, memoryview] | StreamEnd:
    """The frame header and its payload (a view into `message`), or the end of a session.

    Raises:
        WireError: The bytes are not a message of this version, or a field is out of range.
    """
    view = memoryview(message)
    if len(view) < _PRELUDE.size:
        raise WireError(
            f"a message of {len(view)} bytes is shorter than its prelude of {_PRELUDE.size}; not from a grabber"
        )
    magic, version, kind, length = _PRELUDE.unpack_from(view)
    if magic != MAGIC:
        raise WireError(f"a message begins with {magic!r}, not {MAGIC!r}; not from a grabber")
    if version != SCHEMA_VERSION:
        raise WireError(
            f"the sender speaks version {version}, this receiver {SCHEMA_VERSION}; install the same release on both"
        )
    header_end = _PRELUDE.size + length
    try:
        if kind == _END:
            end = _end_decoder.decode(view[_PRELUDE.size : header_end])
            if end.published < 0:
                raise _out_of_range("published", end.published)
            return end
        header = _frame_decoder.decode(view[_PRELUDE.size : header_end])
    except UNDECODABLE as error:
        raise WireError(
            f"a frame header does not decode: {error}; the sender is of another release or broken"
        ) from error
    if kind != _FRAME:
        raise _out_of_range("kind", kind)
    _check(header)
    return header, view[header_end:]


def _check(header: FrameHeader) -> None:
    # Plain ifs: this runs for every frame after milliseconds of sleep, when every call made costs a microsecond and more.
    if not 0 <= header.seq < 2**53:
        raise _out_of_range("seq", header.seq)
    if not 0 <= header.pts_s < math.inf:
        raise _out_of_range("pts_s", header.pts_s)
    if not 0 <= header.captured_ns < 2**63:
        raise _out_of_range("captured_ns", header.captured_ns)
    if header.rotation_deg not in (0, 90, 180, 270):
        raise _out_of_range("rotation_deg", header.rotation_deg)
    if header.signals and not (len(header.signals) <= 256 and all(map(math.isfinite, header.signals))):
        raise _out_of_range("signals", header.signals)
    if header.layout != "none":
        for name, side in (("width", header.width), ("height", header.height)):
            if not (2 <= side <= MAX_SIDE_PX and side % 2 == 0):
                raise _out_of_range(name, side)


def _out_of_range(field: str, value: object) -> WireError:
    return WireError(f"frame header field {field}={str(value)[:40]} is out of range; the sender is broken")
