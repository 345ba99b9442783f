from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_agent.errors import WireError
from stream_agent.messages import SCHEMA_VERSION, FrameHeader
from stream_agent.transport.wire import StreamEnd, pack_end, pack_frame, unpack

headers = st.builds(
    FrameHeader,
    stream_id=st.text(max_size=20),
    session_id=st.text(max_size=20),
    seq=st.integers(0, 2**53 - 1),
    pts_s=st.floats(0, 1e9),
    captured_ns=st.integers(0, 2**63 - 1),
    width=st.integers(1, 4096).map(lambda n: 2 * n),
    height=st.integers(1, 4096).map(lambda n: 2 * n),
    rotation_deg=st.sampled_from([0, 90, 180, 270]),
    layout=st.sampled_from(["yuv420p", "none"]),
    discontinuity=st.booleans(),
    signals=st.lists(st.floats(0, 1), max_size=7).map(tuple),
)


@given(headers, st.binary(max_size=100))
def test_what_is_packed_is_unpacked(header: FrameHeader, payload: bytes) -> None:
    unpacked = unpack(pack_frame(header, payload))
    assert isinstance(unpacked, tuple)
    assert unpacked[0] == header
    assert bytes(unpacked[1]) == payload


@given(st.binary(max_size=300))
def test_random_bytes_are_refused_and_nothing_else(message: bytes) -> None:
    with pytest.raises(WireError):
        unpack(message)


@given(headers, st.data())
def test_a_damaged_message_gives_a_frame_or_a_wire_error(header: FrameHeader, data: st.DataObject) -> None:
    message = bytearray(pack_frame(header))
    position = data.draw(st.integers(0, len(message) - 1))
    message[position] ^= data.draw(st.integers(1, 255))
    try:
        unpack(bytes(message))
    except WireError:
        pass


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seq", -1),
        ("pts_s", math.nan),
        ("pts_s", -1.0),
        ("captured_ns", -1),
        ("rotation_deg", 45),
        ("width", 3),
        ("height", 20000),
        ("signals", (math.inf,)),
    ],
)
def test_a_field_out_of_range_is_named(field: str, value: object) -> None:
    fields: dict[str, object] = {
        "stream_id": "c",
        "session_id": "s",
        "seq": 0,
        "pts_s": 0.0,
        "captured_ns": 0,
        "width": 4,
        "height": 4,
        "layout": "yuv420p",
        field: value,
    }
    with pytest.raises(WireError, match=field):
        unpack(pack_frame(FrameHeader(**fields)))  # type: ignore[arg-type]


def test_another_version_is_refused_with_the_remedy() -> None:
    message = bytearray(pack_frame(FrameHeader(stream_id="c", session_id="s", seq=0, pts_s=0, captured_ns=0)))
    message[2] = SCHEMA_VERSION + 1
    with pytest.raises(WireError, match="install the same release"):
        unpack(bytes(message))


def test_the_end_of_a_session_survives_the_wire() -> None:
    end = StreamEnd("cam", "s", 12, True, "end of the source")
    assert unpack(pack_end(end)) == end


def test_a_header_nested_without_end_is_refused() -> None:
    """It once got past as a RecursionError."""
    packed = msgspec.msgpack.encode(FrameHeader(stream_id="c", session_id="s", seq=0, pts_s=0, captured_ns=0))
    assert packed[:2] == b"\xdc\x00", "an array of more than 15 fields"
    deep = b"\xdc\x00" + bytes([packed[2] + 1]) + packed[3:]
    body = deep + b"\x91" * 60_000 + b"\xc0"
    message = b"SA" + bytes([SCHEMA_VERSION, 0]) + len(body).to_bytes(2, "little") + body
    with pytest.raises(WireError, match="does not decode"):
        unpack(message)
