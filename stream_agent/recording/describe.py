"""What a recording holds, in words; and its repair."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from stream_agent import __version__
from stream_agent.clock import NS_PER_S
from stream_agent.recording.mcap_file import RecordingWriter
from stream_agent.recording.reader import RecordingFile
from stream_agent.recording.records import VIDEO_TOPIC, Finish, FrameRecord


def describe(recording: RecordingFile) -> Iterator[str]:
    """Lines for `recording info`."""
    layout, session = recording.layout, recording.described
    yield f"{recording.path}: {recording.path.stat().st_size / 1e6:.1f} MB, {'whole' if layout.whole else 'cut'}"
    yield f"  session    {session.started}, case {session.case_id}, stream {session.stream_id}, {session.clock} clock"
    yield f"  made by    stream_agent {session.version}, configuration {session.config_digest}"
    yield f"  procedure  {session.pack}, pack {session.pack_digest}, knowledge {session.knowledge_digest}"
    yield f"  source     {recording.config.source.uri}"
    first = last = None
    gated = frames = passed = 0
    for _, frame in recording.messages(FrameRecord):
        first = first or frame
        last = frame
        frames += 1
        gated += bool(frame.gate)
        passed += len(frame.passed_over)
    passed += sum(len(end.passed_over) for _, end in recording.messages(Finish))
    if first is not None and last is not None:
        size = f"{first.width}x{first.height}" if first.width else "no pictures"
        yield (
            f"  frames     {frames} perceived ({gated} behind a closed gate), {passed} passed over; media time "
            f"{first.pts_s:.1f} to {last.pts_s:.1f} s, {size}"
        )
    yield f"  lasts      {(layout.end_ns - layout.start_ns) / NS_PER_S:.1f} s in {len(layout.chunks)} chunks"
    lost = _lost(recording)
    if lost:
        yield f"  missing    {lost} messages that could not be written; decisions after the first cannot be verified"
    for number, channel in sorted(layout.channels.items()):
        if layout.counts[number]:
            yield f"  {channel.topic:<14} {layout.counts[number]:>8}  {layout.schemas[channel.schema_id].name}"
    if not layout.whole:
        yield f"`recording recover {recording.path}` gives it its index again"


def recover(path: Path) -> str:
    """Cut what is not whole off the end, and write the index anew; what was done, in words.

    Raises:
        RecordingError: Nothing is whole, the file is no recording, or it is being written.
    """
    with RecordingFile(path) as before:
        whole, size = before.layout.whole, path.stat().st_size
    writer = RecordingWriter(path, (), metadata={}, attachments={}, library=f"stream_agent {__version__}")
    messages = writer.last_sequence
    writer.sync()
    writer.close()
    if whole and path.stat().st_size == size:
        return f"{path} was whole: {messages} messages"
    with RecordingFile(path) as after:
        seconds = (after.layout.end_ns - after.layout.start_ns) / NS_PER_S
    return f"{path} is whole again: {messages} messages over {seconds:.1f} s; {size} bytes became {path.stat().st_size}"


def _lost(recording: RecordingFile) -> int:
    lost, last = 0, None
    for entry in recording.entries():
        if entry.topic != VIDEO_TOPIC:
            lost += 0 if last is None else entry.sequence - last - 1
            last = entry.sequence
    return lost
