"""An MCAP file that a crash or a full disk costs what was not flushed, and never the index.

`mcap.writer` writes the index once, at the end; a recording that ends by a power cut or a kill has none. Here a flush writes
one chunk and, behind it, the whole end of the file (index, statistics, footer), all in one write over the end before it. As
the index grows, the end is written with every second flush, every third … so that it never costs more than `END_BYTES` a
flush: after 40 minutes of half-second chunks every 12th has it, after 2 hours every 35th. Room for the end is kept reserved
behind the data, so on a full disk a chunk is lost alone. What `scan` finds of a file without its end, or cut inside a write,
is all that is whole, which is what `recover` keeps and what a new writer goes on from.

Records and their bytes are those of the package `mcap`; the order of them is the specification's
(https://mcap.dev/spec): header, schemas, channels, attachments, metadata, then chunks with their message indexes.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

import zstandard
from mcap.data_stream import ReadDataStream, RecordBuilder
from mcap.exceptions import McapError
from mcap.opcode import Opcode
from mcap.records import (
    Attachment,
    AttachmentIndex,
    Channel,
    Chunk,
    ChunkIndex,
    DataEnd,
    Footer,
    Header,
    MessageIndex,
    Metadata,
    MetadataIndex,
    Schema,
    Statistics,
    SummaryOffset,
)

from stream_agent.errors import RecordingError

MAGIC = b"\x89MCAP0\r\n"
_PRELUDE = struct.Struct("<BQ")
_MESSAGE = struct.Struct("<HIQQ")
_FOOTER_BYTES = _PRELUDE.size + 20 + len(MAGIC)
_LARGEST_CHUNK = 1 << 30
_WRITE_BYTES = 64 << 20
END_BYTES = 1 << 16
"""How much of the end of the file a flush may cost."""
_FALLOC_FL_KEEP_SIZE = 1


class TornError(Exception):
    """A record that is not whole, or not what it says."""


_DAMAGE = (ValueError, KeyError, struct.error, McapError, zstandard.ZstdError, TornError)
"""What comes of reading bytes that are not whole."""


class Entry(NamedTuple):
    """One message: its topic, place in the order of all, times in nanoseconds of the file's clock, and bytes."""

    topic: str
    sequence: int
    log_ns: int
    publish_ns: int
    data: bytes


class TopicSpec(NamedTuple):
    """One channel to write: topic, encoding of its messages, name, encoding and bytes of its schema."""

    topic: str
    encoding: str
    schema: str
    schema_encoding: str
    schema_data: bytes


@dataclass(slots=True)
class Layout:
    """Where everything in a file lies.

    Attributes:
        data_end: The offset at which the next record would be written.
        whole: Whether the file ends as it should.
    """

    header: Header
    data_end: int
    schemas: dict[int, Schema] = field(default_factory=dict)
    channels: dict[int, Channel] = field(default_factory=dict)
    chunks: list[ChunkIndex] = field(default_factory=list)
    attachments: list[AttachmentIndex] = field(default_factory=list)
    metadata: list[MetadataIndex] = field(default_factory=list)
    counts: Counter[int] = field(default_factory=Counter)
    start_ns: int = 0
    end_ns: int = 0
    whole: bool = True

    def add_times(self, first_ns: int, last_ns: int) -> None:
        """Widen the time span."""
        known = bool(self.chunks)
        self.start_ns = min(self.start_ns, first_ns) if known else first_ns
        self.end_ns = max(self.end_ns, last_ns) if known else last_ns


class RecordingWriter:
    """Appends messages to one file, which it locks; used by one thread."""

    def __init__(
        self,
        path: Path,
        topics: Sequence[TopicSpec],
        *,
        metadata: dict[str, dict[str, str]],
        attachments: dict[str, tuple[str, bytes]],
        library: str,
        end_bytes: int = END_BYTES,
    ) -> None:
        """Begin an empty file, or go on with one that an earlier writer left, cut or whole.

        Raises:
            RecordingError: The file cannot be written, is in use, or holds something else.
        """
        self._path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with os.fdopen(os.dup(self._fd), "rb") as file:
                self._layout = scan(file, path) if os.fstat(self._fd).st_size else _no_layout(library)
        except BlockingIOError as error:
            raise RecordingError(f"{path} is being written by another process; name another file") from error
        except OSError as error:
            raise RecordingError(f"{path} cannot be written: {error.strerror}; name a writable file") from error
        self._pending = _Chunk()
        self._chunk_index = RecordBuilder()
        for known in self._layout.chunks:
            known.write(self._chunk_index)
        self._chunk_index_bytes = bytearray(self._chunk_index.end())
        self._end_bytes = end_bytes
        self._without_end = 0  # flushes since the file had its end
        try:
            if not self._layout.channels:
                self._begin(topics, metadata, attachments)
            else:
                self._write(b"", with_end=True)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._layout.data_end)  # 0 when not even the beginning fits
            os.close(self._fd)
            raise RecordingError(f"{path} cannot be written: {error.strerror}; free space or name another") from error
        self._ids = {channel.topic: number for number, channel in self._layout.channels.items()}

    @property
    def last_sequence(self) -> int:
        """Messages in the file so far."""
        return self._layout.counts.total()

    @property
    def waiting_bytes(self) -> int:
        """How much the next flush will write, before compression."""
        return len(self._pending.content)

    @property
    def waiting(self) -> int:
        """Messages that the next flush will write."""
        return self._pending.messages.total()

    def add(self, entry: Entry) -> None:
        """Take one message into the next chunk; one of an unknown topic is left out."""
        number = self._ids.get(entry.topic)
        if number is not None:
            self._pending.add(number, entry)

    def flush(self) -> None:
        """Write what waits.

        Raises:
            OSError: It could not be written; what waited is lost, what was written before is there with its index.
        """
        pending, self._pending = self._pending, _Chunk()
        if not pending.messages:
            return
        layout = self._layout
        records, index = pending.records(layout.data_end)
        length = len(self._chunk_index_bytes)
        index_record = RecordBuilder()
        index.write(index_record)
        self._chunk_index_bytes += index_record.end()
        counts, span = Counter(layout.counts), (layout.start_ns, layout.end_ns)
        layout.counts.update(pending.messages)
        layout.add_times(index.message_start_time, index.message_end_time)
        layout.chunks.append(index)
        try:
            self._write(records, with_end=(self._without_end + 1) * self._end_bytes >= len(self._chunk_index_bytes))
        except OSError:
            layout.chunks.pop()
            layout.counts, (layout.start_ns, layout.end_ns) = counts, span
            del self._chunk_index_bytes[length:]
            self._put_end_back()
            raise

    def sync(self) -> None:
        """Ask the disk to keep what was flushed."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Give the file its end and let go of it; what waits is not written."""
        try:
            if self._without_end:
                self._write(b"", with_end=True)
        except OSError:
            self._put_end_back()
        finally:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, os.fstat(self._fd).st_size)  # room that was reserved behind the end
            os.close(self._fd)

    def _begin(
        self,
        topics: Sequence[TopicSpec],
        metadata: dict[str, dict[str, str]],
        attachments: dict[str, tuple[str, bytes]],
    ) -> None:
        layout, builder = self._layout, RecordBuilder()
        layout.header.write(builder)
        for number, topic in enumerate(topics, start=1):
            layout.schemas[number] = Schema(
                id=number, name=topic.schema, encoding=topic.schema_encoding, data=topic.schema_data
            )
            layout.channels[number] = Channel(
                id=number, topic=topic.topic, message_encoding=topic.encoding, metadata={}, schema_id=number
            )
            layout.schemas[number].write(builder)
            layout.channels[number].write(builder)
        data = bytearray(MAGIC + builder.end())
        for name, (media_type, content) in attachments.items():
            Attachment(create_time=0, log_time=0, name=name, media_type=media_type, data=content).write(builder)
            record = builder.end()
            layout.attachments.append(
                AttachmentIndex(
                    offset=len(data),
                    length=len(record),
                    create_time=0,
                    log_time=0,
                    data_size=len(content),
                    name=name,
                    media_type=media_type,
                )
            )
            data += record
        for name, values in metadata.items():
            Metadata(name=name, metadata=values).write(builder)
            record = builder.end()
            layout.metadata.append(MetadataIndex(offset=len(data), length=len(record), name=name))
            data += record
        self._write(bytes(data), with_end=True)

    def _write(self, records: bytes, *, with_end: bool) -> None:
        """Write `records` over the old end, and a new end behind them or room for one."""
        layout = self._layout
        at, after = layout.data_end, layout.data_end + len(records)
        end = _end_of(layout, after, bytes(self._chunk_index_bytes))
        _reserve(self._fd, at, len(records) + len(end))
        _write_all(self._fd, records + end if with_end else records, at)
        os.ftruncate(self._fd, after + len(end) * with_end)
        if not with_end:
            with contextlib.suppress(OSError):
                _reserve(self._fd, after, len(end))  # what was cut off gave its room back
        layout.data_end = after
        self._without_end = 0 if with_end else self._without_end + 1

    def _put_end_back(self) -> None:
        """After a failed write: the end, in the room that was kept for it; chunks make way where there is none."""
        layout = self._layout
        while True:
            try:
                return self._write(b"", with_end=True)
            except OSError:
                if not layout.chunks or not self._without_end:
                    return None  # the end before is still whole, or `recover` will find what is
                self._drop_last_chunk()

    def _drop_last_chunk(self) -> None:
        layout = self._layout
        last = layout.chunks.pop()
        with os.fdopen(os.dup(self._fd), "rb") as file:
            layout.counts.subtract(Counter(self._channel_of(entry) for entry in entries(file, layout, last)))
        layout.data_end = last.chunk_start_offset
        layout.end_ns = max((chunk.message_end_time for chunk in layout.chunks), default=0)
        self._without_end -= 1
        for chunk in layout.chunks:
            chunk.write(self._chunk_index)
        self._chunk_index_bytes = bytearray(self._chunk_index.end())

    def _channel_of(self, entry: Entry) -> int:
        return self._ids[entry.topic]


class _Chunk:
    """Messages on their way into one chunk."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.messages: Counter[int] = Counter()
        self._places: dict[int, list[tuple[int, int]]] = {}
        self._first_ns = 0
        self._last_ns = 0

    def add(self, channel: int, entry: Entry) -> None:
        first = not self.messages
        self._first_ns = entry.log_ns if first else min(self._first_ns, entry.log_ns)
        self._last_ns = entry.log_ns if first else max(self._last_ns, entry.log_ns)
        self._places.setdefault(channel, []).append((entry.log_ns, len(self.content)))
        self.messages[channel] += 1
        self.content += _PRELUDE.pack(Opcode.MESSAGE, _MESSAGE.size + len(entry.data))
        self.content += _MESSAGE.pack(channel, entry.sequence & 0xFFFFFFFF, entry.log_ns, entry.publish_ns)
        self.content += entry.data

    def records(self, at: int) -> tuple[bytes, ChunkIndex]:
        """The chunk and its message indexes as they stand at offset `at`, and what the summary says of them."""
        content = bytes(self.content)
        chunk = Chunk(
            compression="zstd",
            data=zstandard.compress(content),
            message_start_time=self._first_ns,
            message_end_time=self._last_ns,
            uncompressed_crc=zlib.crc32(content),
            uncompressed_size=len(content),
        )
        builder = RecordBuilder()
        chunk.write(builder)
        length = builder.count
        indexes, offsets = _message_indexes(self._places, at + length)
        index = ChunkIndex(
            message_start_time=self._first_ns,
            message_end_time=self._last_ns,
            chunk_start_offset=at,
            chunk_length=length,
            message_index_offsets=offsets,
            message_index_length=len(indexes),
            compression="zstd",
            compressed_size=len(chunk.data),
            uncompressed_size=len(content),
        )
        return builder.end() + indexes, index


def scan(file: BinaryIO, path: Path) -> Layout:
    """All that is whole in a file, read from its start; for files without an end, or with one that is not to be trusted.

    Raises:
        RecordingError: It is no MCAP file, or not even its beginning is whole.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if file.read(len(MAGIC)) != MAGIC:
        raise RecordingError(f"{path} is no MCAP file; name a recording made with sinks.recording=FILE.mcap")
    at = len(MAGIC)
    layout: Layout | None = None
    while at + _PRELUDE.size <= size:
        file.seek(at)
        opcode, length = _PRELUDE.unpack(file.read(_PRELUDE.size))
        if opcode in (Opcode.DATA_END, Opcode.FOOTER) or length > size - at - _PRELUDE.size:
            break
        end = at + _PRELUDE.size + length
        try:
            if opcode == Opcode.HEADER:
                layout = Layout(Header.read(_stream(file, length)), end)
            elif layout is None:
                break
            elif opcode == Opcode.CHUNK:
                end = _scan_chunk(file, layout, at, length, size)
            else:
                _scan_record(file, layout, opcode, at, length)
        except _DAMAGE:
            break
        at = layout.data_end = end
    if layout is None or not layout.channels:
        raise RecordingError(f"{path} was cut before its beginning was whole: it holds nothing; remove it")
    layout.whole = _ends_with(file, size, layout)
    return layout


def layout_of(file: BinaryIO, path: Path) -> Layout:
    """Where everything lies, from the summary at the end; by `scan` if there is none.

    Raises:
        RecordingError: It is no MCAP file, or holds nothing.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _FOOTER_BYTES))
    tail = file.read()
    if not tail.endswith(MAGIC) or tail[0] != Opcode.FOOTER:
        return scan(file, path)
    summary_start, _, crc = struct.unpack_from("<QQI", tail, _PRELUDE.size)
    if not 0 < summary_start < size:
        return scan(file, path)
    file.seek(summary_start)
    summary = file.read(size - _FOOTER_BYTES - summary_start)
    if crc and zlib.crc32(tail[: _PRELUDE.size + 16], zlib.crc32(summary)) != crc:
        return scan(file, path)
    file.seek(len(MAGIC) + _PRELUDE.size)
    layout = Layout(Header.read(ReadDataStream(file)), summary_start)
    stream, at = ReadDataStream(BytesIO(summary)), 0
    while at < len(summary):
        opcode, length = stream.read1(), stream.read8()
        at += _PRELUDE.size + length
        match opcode:
            case Opcode.SCHEMA:
                schema = Schema.read(stream)
                layout.schemas[schema.id] = schema
            case Opcode.CHANNEL:
                channel = Channel.read(stream)
                layout.channels[channel.id] = channel
            case Opcode.CHUNK_INDEX:
                layout.chunks.append(ChunkIndex.read(stream))
            case Opcode.ATTACHMENT_INDEX:
                layout.attachments.append(AttachmentIndex.read(stream))
            case Opcode.METADATA_INDEX:
                layout.metadata.append(MetadataIndex.read(stream))
            case Opcode.STATISTICS:
                statistics = Statistics.read(stream)
                layout.counts.update(statistics.channel_message_counts)
                layout.start_ns, layout.end_ns = statistics.message_start_time, statistics.message_end_time
            case _:
                stream.read(length)
    return layout


def entries(file: BinaryIO, layout: Layout, chunk: ChunkIndex) -> Iterator[Entry]:
    """The messages of one chunk in the order in which they were written.

    Raises:
        RecordingError: The chunk is damaged.
    """
    file.seek(chunk.chunk_start_offset + _PRELUDE.size)
    try:
        content = _content(Chunk.read(_stream(file, chunk.chunk_length - _PRELUDE.size)))
    except _DAMAGE as error:
        raise RecordingError(
            f"the chunk at byte {chunk.chunk_start_offset} is damaged ({error}); copy the file again"
        ) from error
    for _, channel, fields, data in _messages(content):
        yield Entry(layout.channels[channel].topic, *fields, data)


def _scan_chunk(file: BinaryIO, layout: Layout, at: int, length: int, size: int) -> int:
    """Book the chunk at `at` if it is whole; the offset behind it and its message indexes."""
    chunk = Chunk.read(_stream(file, length))
    places: dict[int, list[tuple[int, int]]] = {}
    for place, channel, (_, log_ns, _), _ in _messages(_content(chunk)):
        if channel not in layout.channels:
            raise TornError(f"a message of channel {channel}, which there is not")
        places.setdefault(channel, []).append((log_ns, place))
    after = at + _PRELUDE.size + length
    indexes, offsets = _message_indexes(places, after)
    file.seek(after)
    if after + len(indexes) > size or file.read(len(indexes)) != indexes:
        raise TornError("its message indexes are not whole")
    layout.add_times(chunk.message_start_time, chunk.message_end_time)
    layout.chunks.append(
        ChunkIndex(
            message_start_time=chunk.message_start_time,
            message_end_time=chunk.message_end_time,
            chunk_start_offset=at,
            chunk_length=_PRELUDE.size + length,
            message_index_offsets=offsets,
            message_index_length=len(indexes),
            compression=chunk.compression,
            compressed_size=len(chunk.data),
            uncompressed_size=chunk.uncompressed_size,
        )
    )
    layout.counts.update({channel: len(found) for channel, found in places.items()})
    return after + len(indexes)


def _scan_record(file: BinaryIO, layout: Layout, opcode: int, at: int, length: int) -> None:
    whole = _PRELUDE.size + length
    match opcode:
        case Opcode.SCHEMA:
            schema = Schema.read(_stream(file, length))
            layout.schemas[schema.id] = schema
        case Opcode.CHANNEL:
            channel = Channel.read(_stream(file, length))
            layout.channels[channel.id] = channel
        case Opcode.ATTACHMENT:
            found = Attachment.read(_stream(file, length))
            layout.attachments.append(
                AttachmentIndex(
                    at, whole, found.log_time, found.create_time, len(found.data), found.name, found.media_type
                )
            )
        case Opcode.METADATA:
            layout.metadata.append(MetadataIndex(at, whole, Metadata.read(_stream(file, length)).name))


def _messages(content: bytes) -> Iterator[tuple[int, int, tuple[int, int, int], bytes]]:
    """Place, channel, (sequence, log time, publish time) and bytes of each message of a chunk.

    Raises:
        TornError: A record runs past the end.
    """
    at = 0
    while at < len(content):
        if at + _PRELUDE.size > len(content):
            raise TornError("a record is cut")
        opcode, length = _PRELUDE.unpack_from(content, at)
        end = at + _PRELUDE.size + length
        if end > len(content):
            raise TornError("a record is longer than its chunk")
        if opcode == Opcode.MESSAGE:
            if length < _MESSAGE.size:
                raise TornError("a message is cut")
            channel, *fields = _MESSAGE.unpack_from(content, at + _PRELUDE.size)
            yield at, channel, (fields[0], fields[1], fields[2]), content[at + _PRELUDE.size + _MESSAGE.size : end]
        at = end


def _content(chunk: Chunk) -> bytes:
    if chunk.uncompressed_size > _LARGEST_CHUNK:
        raise TornError(f"it claims {chunk.uncompressed_size} bytes")
    if chunk.compression == "zstd":
        content: bytes = zstandard.ZstdDecompressor().decompress(chunk.data, max_output_size=chunk.uncompressed_size)
    elif chunk.compression == "":
        content = chunk.data
    else:
        raise TornError(f"compression {chunk.compression!r} is none that we write")
    if len(content) != chunk.uncompressed_size or zlib.crc32(content) != chunk.uncompressed_crc:
        raise TornError("its checksum is wrong")
    return content


def _message_indexes(places: dict[int, list[tuple[int, int]]], at: int) -> tuple[bytes, dict[int, int]]:
    builder, offsets = RecordBuilder(), {}
    for channel, found in places.items():
        offsets[channel] = at + builder.count
        MessageIndex(channel_id=channel, records=found).write(builder)
    return builder.end(), offsets


def _no_layout(library: str) -> Layout:
    return Layout(Header(profile="", library=library), 0)


def _end_of(layout: Layout, at: int, chunk_index: bytes) -> bytes:
    """Everything behind the data, which ends at `at`: the summary with its offsets, and the footer."""
    builder = RecordBuilder()
    DataEnd(0).write(builder)
    data_end: bytes = builder.end()
    start = at + len(data_end)
    summary = bytearray()
    offsets: list[SummaryOffset] = []

    def group(opcode: Opcode, records: bytes) -> None:
        if records:
            offsets.append(SummaryOffset(opcode, start + len(summary), len(records)))
            summary.extend(records)

    for opcode, records in (
        (Opcode.SCHEMA, layout.schemas.values()),
        (Opcode.CHANNEL, layout.channels.values()),
        (Opcode.STATISTICS, (_statistics(layout),)),
    ):
        for record in records:
            record.write(builder)
        group(opcode, builder.end())
    group(Opcode.CHUNK_INDEX, chunk_index)
    for attachment in layout.attachments:
        attachment.write(builder)
    group(Opcode.ATTACHMENT_INDEX, builder.end())
    for metadata in layout.metadata:
        metadata.write(builder)
    group(Opcode.METADATA_INDEX, builder.end())
    offsets_start = start + len(summary)
    for offset in offsets:
        offset.write(builder)
    summary += builder.end()
    crc = zlib.crc32(_PRELUDE.pack(Opcode.FOOTER, 20) + struct.pack("<QQ", start, offsets_start), zlib.crc32(summary))
    Footer(summary_start=start, summary_offset_start=offsets_start, summary_crc=crc).write(builder)
    footer: bytes = builder.end()
    return data_end + bytes(summary) + footer + MAGIC


def _statistics(layout: Layout) -> Statistics:
    return Statistics(
        message_count=layout.counts.total(),
        schema_count=len(layout.schemas),
        channel_count=len(layout.channels),
        attachment_count=len(layout.attachments),
        metadata_count=len(layout.metadata),
        chunk_count=len(layout.chunks),
        message_start_time=layout.start_ns,
        message_end_time=layout.end_ns,
        channel_message_counts=dict(layout.counts),
    )


def _ends_with(file: BinaryIO, size: int, layout: Layout) -> bool:
    """Whether the end of the file is the one that belongs to what was scanned."""
    builder = RecordBuilder()
    for chunk in layout.chunks:
        chunk.write(builder)
    expected = _end_of(layout, layout.data_end, builder.end())
    if size != layout.data_end + len(expected):
        return False
    file.seek(layout.data_end)
    return file.read() == expected


def _stream(file: BinaryIO, length: int) -> ReadDataStream:
    return ReadDataStream(BytesIO(file.read(length)))


def _write_all(fd: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view[:_WRITE_BYTES], at)
        view, at = view[written:], at + written


def _reserve(fd: int, at: int, n_bytes: int) -> None:
    """Have the disk keep room for `n_bytes` at `at` without making the file longer; nothing where that is not possible.

    Raises:
        OSError: There is no such room.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(fd, _FALLOC_FL_KEEP_SIZE, ctypes.c_longlong(at), ctypes.c_longlong(n_bytes)) != 0:
        code = ctypes.get_errno()
        if code in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(code, os.strerror(code))
