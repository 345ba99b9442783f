"""The file: whole whatever happens, and read by mcap's own reader."""

from __future__ import annotations

import os
import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mcap.reader import make_reader

from stream_agent.errors import RecordingError
from stream_agent.recording.mcap_file import (
    END_BYTES,
    Entry,
    Layout,
    RecordingWriter,
    TopicSpec,
    entries,
    layout_of,
    scan,
)

TOPICS = [TopicSpec("/a", "json", "A", "jsonschema", b"{}"), TopicSpec("/b", "json", "B", "jsonschema", b"{}")]


def writer(path: Path, end_bytes: int = END_BYTES) -> RecordingWriter:
    return RecordingWriter(
        path,
        TOPICS,
        metadata={"m": {"key": "value"}},
        attachments={"a.txt": ("text/plain", b"some text")},
        library="test",
        end_bytes=end_bytes,
    )


def entry(number: int, size: int = 20) -> Entry:
    return Entry("/a" if number % 3 else "/b", number, number * 10, number * 10, bytes([number % 256]) * size)


def layout(path: Path) -> Layout:
    with path.open("rb") as file:
        return layout_of(file, path)


def sequences(path: Path, found: Layout | None = None) -> list[int]:
    with path.open("rb") as file:
        found = found or layout_of(file, path)
        return [one.sequence for chunk in found.chunks for one in entries(file, found, chunk)]


@contextmanager
def at_most(n_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_file_is_complete_after_every_flush(tmp_path: Path) -> None:
    path = tmp_path / "r.mcap"
    out = writer(path)
    for number in range(1, 31):
        out.add(entry(number))
        if number % 7 == 0:
            out.flush()
            with path.open("rb") as file:
                reader = make_reader(file, validate_crcs=True)
                summary = reader.get_summary()
                assert summary is not None and summary.statistics is not None
                assert summary.statistics.message_count == number
                told = [message.sequence for _, _, message in reader.iter_messages()]
                assert told == list(range(1, number + 1))
                assert [one.sequence for _, _, one in reader.iter_messages(topics="/b")] == list(
                    range(3, number + 1, 3)
                )
                assert [one.name for one in reader.iter_metadata()] == ["m"]
                assert [one.data for one in reader.iter_attachments()] == [b"some text"]
    out.close()
    assert path.stat().st_mode & 0o077 == 0, "a patient's pictures are for their owner alone"


def test_the_summary_and_the_scan_agree(tmp_path: Path) -> None:
    path = tmp_path / "r.mcap"
    out = writer(path)
    for number in range(50):
        out.add(entry(number))
        if number % 11 == 0:
            out.flush()
    out.flush()
    out.close()
    with path.open("rb") as file:
        summary, found = layout_of(file, path), scan(file, path)
    assert found.whole
    assert (summary.chunks, summary.counts, summary.channels) == (found.chunks, found.counts, found.channels)
    assert (summary.start_ns, summary.end_ns) == (found.start_ns, found.end_ns) == (0, 490)
    assert (summary.metadata, summary.attachments, summary.schemas) == (
        found.metadata,
        found.attachments,
        found.schemas,
    )


@settings(max_examples=40, deadline=None)
@given(cut=st.floats(0, 1), seed=st.integers(0, 10_000), end_bytes=st.sampled_from([END_BYTES, 200]))
def test_what_is_whole_of_a_cut_file_is_found_and_gone_on_from(
    cut: float, seed: int, end_bytes: int, short: Path
) -> None:
    path = short / "r.mcap"
    path.unlink(missing_ok=True)
    out = writer(path, end_bytes)
    begun = path.stat().st_size
    ends = []
    for number in range(40):
        out.add(entry(number, size=random.Random(seed + number).randrange(200)))
        if number % 8 == 7:
            out.flush()
            ends.append(path.stat().st_size)
    out.close()
    size = path.stat().st_size
    os.truncate(path, round(begun + cut * (size - begun)))
    with path.open("rb") as file:
        found = scan(file, path)
    kept = sequences(path, found)
    assert kept == list(range(len(kept))) and len(kept) % 8 == 0
    again = writer(path)
    assert again.last_sequence == len(kept)
    again.add(entry(99))
    again.flush()
    again.close()
    assert layout(path).whole
    assert sequences(path) == [*kept, 99]


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("short")


def test_a_full_disk_costs_what_did_not_fit_and_never_the_index(tmp_path: Path) -> None:
    path = tmp_path / "r.mcap"
    out = writer(path)
    rng = random.Random(2)
    out.add(Entry("/a", 1, 10, 10, rng.randbytes(1000)))
    out.flush()
    with at_most(path.stat().st_size + 3000):
        for number in range(2, 9):
            out.add(Entry("/a", number, 10 * number, 0, rng.randbytes(1000)))
            try:
                out.flush()
            except OSError:
                assert number > 2, "the first fits"
                break
        else:
            raise AssertionError("the limit was not met")
        whole = sequences(path)
        assert whole == list(range(1, number)) and layout(path).end_ns == 10 * (number - 1)
        with path.open("rb") as file:
            assert scan(file, path).whole
    out.add(Entry("/a", 20, 900, 0, b"there is room again"))
    out.flush()
    out.close()
    assert sequences(path) == [*whole, 20]


def test_a_long_file_has_its_end_only_now_and_then(tmp_path: Path) -> None:
    """The index of hours written twice a second would be most of what is written."""
    path = tmp_path / "r.mcap"
    out = writer(path, end_bytes=500)
    whole = []
    for number in range(60):
        out.add(entry(number))
        out.flush()
        with path.open("rb") as file:
            found = scan(file, path)
        whole.append(found.whole)
        assert found.counts.total() == number + 1, "every flush is there, with an end or without"
        assert sequences(path) == list(range(number + 1)), "and is read"
    assert whole[0] and whole[1] and not all(whole[30:])
    assert sum(whole[30:]) >= 2
    out.close()
    assert layout(path).whole and sequences(path) == list(range(60))
    with path.open("rb") as file:
        assert make_reader(file, validate_crcs=True).get_summary() is not None


def test_a_full_disk_leaves_the_index_also_where_the_end_was_not_written(tmp_path: Path) -> None:
    """The file may not grow, as by a quota that reserved room does not help against: the newest chunks make way."""
    path = tmp_path / "r.mcap"
    out = writer(path, end_bytes=300)
    rng = random.Random(4)
    written = 0
    with at_most(60_000):
        for number in range(200):
            out.add(Entry("/a", number, number, number, rng.randbytes(1000)))
            try:
                out.flush()
                written += 1
            except OSError:
                break
        with path.open("rb") as file:
            found = scan(file, path)
        assert found.whole and written - 10 <= found.counts.total() <= written < 200
        kept = sequences(path)
        assert kept == list(range(len(kept)))
    out.add(entry(300))
    out.flush()
    out.close()
    assert sequences(path) == [*kept, 300] and layout(path).whole


def test_damaged_bytes_end_what_can_be_read_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "r.mcap"
    out = writer(path)
    for number in range(40):
        out.add(entry(number))
        out.flush()
    out.close()
    data = bytearray(path.read_bytes())
    third = layout(path).chunks[3]
    data[third.chunk_start_offset + third.chunk_length - 3] ^= 0xFF
    path.write_bytes(data)
    with path.open("rb") as file:
        found = scan(file, path)
        assert not found.whole
        with pytest.raises(RecordingError, match="damaged"):
            list(entries(file, layout_of(file, path), third))
    assert sequences(path, found) == [0, 1, 2]


@settings(max_examples=60, deadline=None)
@given(noise=st.binary(max_size=300))
def test_other_bytes_are_refused_by_name(noise: bytes, short: Path) -> None:
    path = short / "noise.mcap"
    path.write_bytes(noise)
    with pytest.raises(RecordingError, match=r"noise\.mcap"), path.open("rb") as file:
        layout_of(file, path)
    path.write_bytes(b"\x89MCAP0\r\n" + noise)
    with pytest.raises(RecordingError, match=r"noise\.mcap"), path.open("rb") as file:
        layout_of(file, path)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    out = writer(tmp_path / "r.mcap")
    with pytest.raises(RecordingError, match="another process"):
        writer(tmp_path / "r.mcap")
    out.close()
