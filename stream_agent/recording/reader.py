"""A recording open for reading: whole or cut, its messages in the order in which the session made them.

Nothing read from the file can do more than be a value: JSON into declared structs, H.264 into pixels.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from av.video.frame import VideoFrame
from mcap.data_stream import ReadDataStream
from mcap.records import Attachment, Metadata
from pydantic import ValidationError

from stream_agent.config import AgentConfig
from stream_agent.errors import UNDECODABLE, RecordingError
from stream_agent.recording.foxglove import picture_of
from stream_agent.recording.mcap_file import Entry, entries, layout_of
from stream_agent.recording.records import FORMAT, METADATA, RECORDED, VIDEO_TOPIC, FrameRecord
from stream_agent.recording.video import VideoDecoder, is_key

_PRELUDE_BYTES = 9
_FRAME_TOPIC = "/frame"


class Described(msgspec.Struct, frozen=True):
    """What the file says of its session.

    Attributes:
        version: The program's.
        clock: `virtual` for lockstep, or `monotonic`.
        started: When, ISO 8601.
        stream_id: Which camera.
        case_id: The patient case.
        config_digest: Of all that decided plans.
        pack: The procedure pack's name.
        pack_digest: Of the pack's text files.
        knowledge_digest: Of its knowledge base.
    """

    format: str
    version: str
    clock: str
    started: str
    stream_id: str
    case_id: str
    config_digest: str
    pack: str
    pack_digest: str
    knowledge_digest: str


class PackNames(msgspec.Struct, frozen=True):
    """The closed sets of the session's procedure pack."""

    name: str
    title: str
    actions: tuple[str, ...]
    instruments: tuple[str, ...]


class Picture(NamedTuple):
    """One perceived frame and its decoded picture; None when it has none, or it was dropped."""

    frame: FrameRecord
    decoded: VideoFrame | None


class RecordingFile:
    """One recording.

    Attributes:
        layout: Where everything in the file lies.
        described: What the session was.
    """

    def __init__(self, path: Path) -> None:
        """Open it; a file without its end is read as far as it is whole.

        Raises:
            RecordingError: It is missing, no recording of ours, or of a format that this release does not read.
        """
        self.path = path
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise RecordingError(f"{path} cannot be read: {error.strerror}; name a recording") from error
        try:
            self.layout = layout_of(self._file, path)
            self.described = self._described()
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> RecordingFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @cached_property
    def config(self) -> AgentConfig:
        """The session's configuration; where things went to matters to nobody now, so those parts are the defaults.

        Raises:
            RecordingError: This release does not know it.
        """
        try:
            tree = msgspec.json.decode(self.attachment("config.json"), type=dict[str, Any])
            return AgentConfig.model_validate({part: tree[part] for part in tree if part not in ("sinks", "telemetry")})
        except UNDECODABLE as error:
            raise self._damaged(f"config.json: {error}") from error
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise RecordingError(
                f"{self.path} was recorded by version {self.described.version}, whose configuration differs at {where}; replay it "
                "with that version"
            ) from error

    @cached_property
    def pack(self) -> PackNames:
        """The actions and instruments of the session."""
        try:
            return msgspec.json.decode(self.attachment("pack.json"), type=PackNames)
        except UNDECODABLE as error:
            raise self._damaged(f"pack.json: {error}") from error

    def attachment(self, name: str) -> bytes:
        """The bytes of an attachment.

        Raises:
            RecordingError: There is none of this name.
        """
        for index in self.layout.attachments:
            if index.name == name:
                self._file.seek(index.offset + _PRELUDE_BYTES)
                data: bytes = Attachment.read(ReadDataStream(self._file)).data
                return data
        raise self._damaged(f"it has no attachment {name}")

    def entries(self, topics: Collection[str] | None = None) -> Iterator[Entry]:
        """Messages of these topics, or all, as they were written.

        Raises:
            RecordingError: A chunk is damaged.
        """
        wanted = {number for number, channel in self.layout.channels.items() if not topics or channel.topic in topics}
        for chunk in self.layout.chunks:
            if topics is None or wanted & set(chunk.message_index_offsets):
                for entry in entries(self._file, self.layout, chunk):
                    if topics is None or entry.topic in topics:
                        yield entry

    def messages(self, *kinds: type[Any]) -> Iterator[tuple[Entry, Any]]:
        """Decoded messages of these structs, or all but the video, as they were written.

        Raises:
            RecordingError: One does not decode.
        """
        topics = {topic for topic, kind in RECORDED.items() if not kinds or kind in kinds}
        for entry in self.entries(topics):
            yield entry, self.decode(entry)

    def decode(self, entry: Entry) -> Any:  # noqa: ANN401 - the struct of its topic
        """The message in an entry.

        Raises:
            RecordingError: It does not decode.
        """
        try:
            return _decoders[entry.topic].decode(entry.data)
        except UNDECODABLE as error:
            raise self._damaged(f"message {entry.sequence} on {entry.topic}: {error}") from error

    def pictures(self, start_s: float = 0.0, *, decode: bool = True) -> Iterator[Picture]:
        """Every perceived frame from media time `start_s` on, with its picture."""
        decoder = VideoDecoder()
        held: list[bytes] = []  # encoded pictures since the last key picture before `start_s`
        pending: FrameRecord | None = None
        for entry in self.entries({_FRAME_TOPIC, VIDEO_TOPIC} if decode else {_FRAME_TOPIC}):
            if entry.topic == _FRAME_TOPIC:
                if pending is not None and pending.pts_s >= start_s:
                    yield Picture(pending, None)
                pending = self.decode(entry)
                continue
            data = _h264(entry)
            if pending is None or pending.pts_s < start_s:
                held = [data] if is_key(data) else [*held, data]
                pending = None
                continue
            for earlier in held:
                decoder.decode(earlier)
            held = []
            yield Picture(pending, decoder.decode(data))
            pending = None
        if pending is not None and pending.pts_s >= start_s:
            yield Picture(pending, None)

    def _described(self) -> Described:
        found: dict[str, str] = {}
        for index in self.layout.metadata:
            if index.name == METADATA:
                self._file.seek(index.offset + _PRELUDE_BYTES)
                found = Metadata.read(ReadDataStream(self._file)).metadata
        if not found:
            raise RecordingError(
                f"{self.path} is an MCAP file of another program; name one made with sinks.recording=FILE.mcap"
            )
        if found.get("format") != FORMAT:
            raise RecordingError(
                f"{self.path} has format {found.get('format')}, this release reads {FORMAT}; use version {found.get('version')}"
            )
        try:
            return msgspec.convert(found, Described)
        except msgspec.ValidationError as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, why: str) -> RecordingError:
        return RecordingError(f"{self.path} is damaged ({why}); copy it again, or try `recording recover`")


def _h264(entry: Entry) -> bytes:
    try:
        return picture_of(entry.data)
    except ValueError:
        return b""


_decoders: dict[str, msgspec.json.Decoder[Any]] = {
    topic: msgspec.json.Decoder(kind) for topic, kind in RECORDED.items()
}
