"""A recorded session as a source: its perceived frames, with the pictures that its video gives back."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from stream_agent.errors import RecordingError, SourceError
from stream_agent.source.planes import PlaneWriter
from stream_agent.source.protocol import Notice, Picture

if TYPE_CHECKING:
    from stream_agent.recording.reader import RecordingFile


class RecordingSource:
    """The frames of a recording at their media times; those whose picture was not recorded come without pixels.

    Attributes:
        live: False.
    """

    live = False

    def __init__(self, path: Path, *, notice: Notice) -> None:
        self._path = path
        self._notice = notice
        self._recording: RecordingFile | None = None
        self._start_s = 0.0

    def open(self, start_s: float) -> None:
        """Open the file.

        Raises:
            SourceError: It is no recording, holds no frame from `start_s` on, or the package `mcap` is missing.
        """
        if importlib.util.find_spec("mcap") is None:
            raise SourceError(
                f"{self._path} is a recording, which needs the package mcap; install stream-agent[record]"
            )
        from stream_agent.recording.reader import RecordingFile

        self.close()
        try:
            self._recording = RecordingFile(self._path)
            if next(self._recording.pictures(start_s, decode=False), None) is None:
                raise SourceError(
                    f"{self._path} has no frame at or after source.start_s={start_s:g}; lower it", at_end=True
                )
        except RecordingError as error:
            raise SourceError(str(error)) from error
        if not self._recording.layout.whole:
            self._notice(f"{self._path} was cut; it is read as far as it is whole")
        self._start_s = start_s

    def pictures(self) -> Iterator[Picture]:
        """Yield the perceived frames in order.

        Raises:
            SourceError: The file is damaged.
        """
        if self._recording is None:
            raise SourceError("the recording is not open; call open() before pictures()")
        writer = PlaneWriter()
        lost = 0
        try:
            for frame, decoded in self._recording.pictures(self._start_s):
                lost += decoded is None and frame.pixels
                if decoded is None:
                    yield Picture(pts_s=frame.pts_s, signals=frame.signals)
                    continue
                yield Picture(
                    pts_s=frame.pts_s,
                    width=decoded.width & ~1,
                    height=decoded.height & ~1,
                    write=partial(writer.write, decoded),
                    rotation_deg=frame.rotation_deg,
                    colour=frame.colour,
                    signals=frame.signals,
                )
        except RecordingError as error:
            raise SourceError(str(error)) from error
        if lost:
            self._notice(f"{self._path}: {lost} frames have no picture in the recording")

    def close(self) -> None:
        """Close the file; may be called twice."""
        recording, self._recording = self._recording, None
        if recording is not None:
            recording.close()
