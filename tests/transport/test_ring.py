from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest

from stream_agent.errors import WireError
from stream_agent.messages import FrameHeader
from stream_agent.transport.ring import RingReader, RingWriter, planes_bytes

WIDTH, HEIGHT = 64, 48


def header(writer: RingWriter, slot: int, ticket: int, **changes: object) -> FrameHeader:
    fields: dict[str, object] = {
        "stream_id": "cam",
        "session_id": "s",
        "seq": 0,
        "pts_s": 0.0,
        "captured_ns": 1,
        "width": WIDTH,
        "height": HEIGHT,
        "layout": "yuv420p",
        "place": "ring",
        "ring": writer.locator,
        "slot": slot,
        "ticket": ticket,
        **changes,
    }
    return FrameHeader(**fields)  # type: ignore[arg-type]


@pytest.fixture
def writer() -> Iterator[RingWriter]:
    with closing(RingWriter(4, planes_bytes(WIDTH, HEIGHT))) as ring:
        yield ring


def put(writer: RingWriter, value: int, published: int = 0) -> FrameHeader:
    writer.reserve(WIDTH, HEIGHT)[:] = value
    return header(writer, *writer.commit(published))


def test_a_committed_frame_is_read_in_place_and_read_only(writer: RingWriter) -> None:
    frame = put(writer, 7, published=3)
    with closing(RingReader(writer.locator)) as reader:
        planes = reader.planes(frame)
        assert planes.shape == (HEIGHT * 3 // 2, WIDTH)
        assert np.all(planes == 7)
        assert reader.intact(frame)
        assert reader.published() == 3
        assert not planes.flags.writeable


def test_a_frame_is_intact_until_its_slot_is_about_to_be_written_again(writer: RingWriter) -> None:
    first = put(writer, 1)
    with closing(RingReader(writer.locator)) as reader:
        for value in range(2, writer.slots):  # two slots short of a full round: first is next but one
            put(writer, value)
            assert reader.intact(first)
        put(writer, 9)  # now first's slot is the next to be written, and is marked before a byte of it changes
        assert not reader.intact(first)
        assert np.all(reader.planes(first) == 1)


def test_a_read_during_a_write_is_found_out(writer: RingWriter) -> None:
    frames = [put(writer, value) for value in range(4)]
    with closing(RingReader(writer.locator)) as reader:
        newest = frames[-1]
        upper = reader.planes(newest)[: HEIGHT // 2].copy()
        for value in range(10, 14):
            put(writer, value)
        lower = reader.planes(newest)[HEIGHT // 2 :].copy()
        assert upper[0, 0] != lower[0, 0], "the two halves are of different frames"
        assert not reader.intact(newest)


def test_the_mapping_outlives_the_writer(writer: RingWriter) -> None:
    frame = put(writer, 5, published=42)
    reader = RingReader(writer.locator)
    writer.close()
    assert np.all(reader.planes(frame) == 5)
    assert reader.published() == 42
    reader.close()
    with pytest.raises(WireError, match="has ended"):
        RingReader(frame.ring)


@pytest.mark.parametrize(
    "locator", ["", "/etc/passwd", "/proc/self/fd/0#" + "0" * 32, "/proc/1/fd/../../../etc/passwd#" + "0" * 32]
)
def test_a_locator_that_names_no_ring_is_refused(locator: str) -> None:
    with pytest.raises(WireError, match=r"locator|opened|memory file"):
        RingReader(locator)


def test_a_file_that_could_shrink_under_us_is_refused() -> None:
    fd = os.memfd_create("unsealed")
    os.ftruncate(fd, 1 << 16)
    try:
        with pytest.raises(WireError, match="not a sealed memory file"):
            RingReader(f"/proc/{os.getpid()}/fd/{fd}#{'0' * 32}")
    finally:
        os.close(fd)


def test_another_processes_descriptor_under_the_same_number_is_refused(writer: RingWriter) -> None:
    stale = writer.locator.split("#")[0] + "#" + "ab" * 16
    with pytest.raises(WireError, match="not the ring that was announced"):
        RingReader(stale)


def test_a_socket_is_no_ring() -> None:
    with socket.socket() as other, pytest.raises(WireError):
        RingReader(f"/proc/{os.getpid()}/fd/{other.fileno()}#{'0' * 32}")


@pytest.mark.parametrize("changes", [{"slot": 4}, {"slot": -1}, {"width": 4096}, {"width": 0}])
def test_a_header_that_does_not_fit_the_ring_is_refused(writer: RingWriter, changes: dict[str, int]) -> None:
    put(writer, 1)
    with closing(RingReader(writer.locator)) as reader, pytest.raises(WireError, match="but the ring has"):
        reader.planes(header(writer, **({"slot": 0, "ticket": 2} | changes)))


def test_a_picture_larger_than_a_slot_is_refused(writer: RingWriter) -> None:
    with pytest.raises(WireError, match="make a new ring"):
        writer.reserve(1920, 1080)


def test_only_the_last_committed_frame_is_the_newest(writer: RingWriter) -> None:
    first = put(writer, 1)
    with closing(RingReader(writer.locator)) as reader:
        assert reader.is_newest(first)
        for value in range(2, 12):  # more than once round the ring
            last = put(writer, value)
            assert reader.is_newest(last)
            assert not reader.is_newest(first)
            first = last
        assert not reader.is_newest(header(writer, 99, 12345))


def test_a_slot_is_shown_in_the_size_that_its_header_says(writer: RingWriter) -> None:
    """Views are kept per slot; a smaller picture in the same slot is another view."""
    with closing(RingReader(writer.locator)) as reader:
        whole = put(writer, 5)
        assert reader.planes(whole).shape == (HEIGHT * 3 // 2, WIDTH)
        assert reader.planes(header(writer, whole.slot, whole.ticket, width=32, height=24)).shape == (36, 32)
        assert reader.planes(whole).shape == (HEIGHT * 3 // 2, WIDTH)
