"""A folder of numbered pictures, as CholecT50 keeps its videos: `000123.png` is frame id 123, a second at 1 fps."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from stream_agent.errors import SourceError
from stream_agent.source.protocol import Notice, Picture, Planes

_ENDINGS = (".png", ".jpg", ".jpeg")
_FRAME_ID = re.compile(r"\d{1,9}")
_NAMED_AT_MOST = 3


class FrameFolderSource:
    """Numbered PNG and JPEG files in the order of their ids; frames may differ in size.

    Attributes:
        live: False.
    """

    live = False

    def __init__(self, folder: Path, *, fps: float, notice: Notice) -> None:
        """Read `folder`; `pts_s` of a picture is its id / `fps`, also when the first id is not 0."""
        self._folder = folder
        self._fps = fps
        self._notice = notice
        self._files: list[tuple[float, Path]] = []

    def open(self, start_s: float) -> None:
        """List the folder from the first id at or after `start_s`.

        Raises:
            SourceError: The folder cannot be listed, or has no numbered picture, or none from `start_s` on.
        """
        try:
            names = sorted(path for path in self._folder.iterdir() if path.suffix.lower() in _ENDINGS)
        except OSError as error:
            raise SourceError(f"{self._folder} cannot be listed: {error.strerror}; correct source.uri") from error
        by_id: dict[int, Path] = {}
        strange = []
        for path in names:
            if _FRAME_ID.fullmatch(path.stem) and int(path.stem) not in by_id:
                by_id[int(path.stem)] = path
            else:
                strange.append(path.name)
        if strange:
            self._notice(f"{self._folder}: skipped {_listing(strange)}: not a frame id, or a second file of one")
        if not by_id:
            raise SourceError(
                f"{self._folder} has no numbered picture; name them by frame id, such as 000123.png or 000123.jpg"
            )
        timed = [(frame_id / self._fps, path) for frame_id, path in sorted(by_id.items())]
        self._files = [(pts_s, path) for pts_s, path in timed if pts_s >= start_s]
        if not self._files:
            raise SourceError(
                f"{self._folder} has no picture at or after source.start_s={start_s:g}; its last is at {timed[-1][0]:g} s, "
                "lower source.start_s",
                at_end=True,
            )

    def pictures(self) -> Iterator[Picture]:
        """Yield the pictures; a damaged one is skipped, and told at the end.

        Raises:
            SourceError: Not one of the files is a whole picture.
        """
        damaged = []
        try:
            for pts_s, path in self._files:
                pixels = _decoded(path)
                if pixels is None:
                    damaged.append(path.name)
                    continue
                height, width = pixels.shape[:2]
                yield Picture(pts_s=pts_s, width=width, height=height, write=partial(_write, pixels), colour="bt601")
        finally:
            if damaged:
                self._notice(f"{self._folder}: skipped {_listing(damaged)}: not a whole picture")
        if len(damaged) == len(self._files):
            raise SourceError(f"{self._folder} gave not a single picture: its files are damaged; copy them again")

    def close(self) -> None:
        """Forget the listing."""
        self._files = []


def _decoded(path: Path) -> NDArray[np.uint8] | None:
    """BGR pixels (H, W, 3), H and W even and at least 2; None if the file is cut short or no picture."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    # OpenCV fills the missing part of a truncated file with grey and says nothing, so ask for the end mark first.
    end_mark = b"IEND" if path.suffix.lower() == ".png" else b"\xff\xd9"
    if end_mark not in data[-4096:]:
        return None
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        return None
    if pixels is None or min(pixels.shape[:2]) < 2:
        return None
    return np.asarray(pixels[: pixels.shape[0] & ~1, : pixels.shape[1] & ~1], np.uint8)


def _write(pixels: NDArray[np.uint8], planes: Planes) -> None:
    cv2.cvtColor(pixels, cv2.COLOR_BGR2YUV_I420, dst=planes)


def _listing(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else ""
    return ", ".join(repr(name) for name in names[:_NAMED_AT_MOST]) + more
