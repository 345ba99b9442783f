"""Small videos made for the tests of sources, and the reading of a source to its end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.container import OutputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from stream_agent.config import SourceConfig
from stream_agent.source import Picture, Planes, Source, open_source

TICK = Fraction(1, 1000)


def grey_level(index: int) -> int:
    """The luma of picture `index`, far enough from its neighbours' to survive a lossy codec."""
    return 32 + index % 10 * 20


def add_video(
    container: OutputContainer,
    *,
    codec: str = "libx264",
    size: tuple[int, int] = (64, 48),
    pixel_format: str = "yuv420p",
    gop: int = 5,
    rate: int = 25,
) -> VideoStream:
    """A video stream whose time base is a millisecond."""
    stream = cast(VideoStream, container.add_stream(codec, rate=rate))
    stream.width, stream.height = size
    stream.pix_fmt = pixel_format
    stream.gop_size = gop
    stream.time_base = stream.codec_context.time_base = TICK
    if codec == "libx264":
        stream.options = cast(
            Any, {"preset": "ultrafast", "tune": "zerolatency", "x264-params": "scenecut=0:threads=1"}
        )
    return stream


def picture(
    index: int, *, size: tuple[int, int] = (64, 48), pixel_format: str = "yuv420p", pts_ms: int = 0
) -> av.VideoFrame:
    """An even grey of `grey_level(index)`, studio range."""
    width, height = size
    even = (width + width % 2, height + height % 2)
    planes = np.full((even[1] * 3 // 2, even[0]), 128, np.uint8)
    planes[: even[1]] = grey_level(index)
    frame = av.VideoFrame.from_ndarray(planes, "yuv420p")
    if pixel_format != "yuv420p" or even != size:
        frame = frame.reformat(width, height, pixel_format)
    frame.pts, frame.time_base = pts_ms, TICK
    return frame


def write_video(
    path: Path,
    *,
    times_ms: Iterable[int] = range(0, 400, 40),
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    rotation_ccw_deg: float = 0,
    options: dict[str, str] | None = None,
    tune: Callable[[VideoStream], None] | None = None,
    metadata: dict[str, str] | None = None,
) -> Path:
    """A video with picture i at `times_ms[i]`; its container follows the ending of `path`."""
    with av.open(str(path), "w", options=options or {}) as container:
        container.metadata.update(metadata or {})
        stream = add_video(container, codec=codec, size=size, pixel_format=pixel_format)
        if rotation_ccw_deg:
            stream.set_display_rotation(rotation_ccw_deg)
        if tune is not None:
            tune(stream)
        for index, time_ms in enumerate(times_ms):
            container.mux(stream.encode(picture(index, size=size, pixel_format=pixel_format, pts_ms=time_ms)))
        container.mux(stream.encode())
    return path


@dataclass
class Reading:
    """What a source gave from open to end."""

    source: Source
    pictures: list[Picture] = field(default_factory=list)
    planes: list[Planes] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    @property
    def times_s(self) -> list[float]:
        return [one.pts_s for one in self.pictures]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        return [(one.width, one.height) for one in self.pictures]

    @property
    def lumas(self) -> list[float]:
        return [float(planes[: len(planes) * 2 // 3].mean()) for planes in self.planes]


def read(
    uri: Path | str, *, start_s: float = 0, instruments: Sequence[str] = (), at_most: int = 10_000, **section: Any
) -> Reading:
    """Read `uri` to its end, or to `at_most` pictures, and close it."""
    notices: list[str] = []
    config = SourceConfig(uri=str(uri), **section)
    source = open_source(config, instruments=tuple(instruments), notice=notices.append)
    reading = Reading(source, notices=notices)
    try:
        source.open(start_s)
        for one in source.pictures():
            reading.pictures.append(one)
            if one.write is not None:
                planes: NDArray[np.uint8] = np.zeros((one.height * 3 // 2, one.width), np.uint8)
                one.write(planes)
                reading.planes.append(planes)
            if len(reading.pictures) == at_most:
                break
    finally:
        source.close()
    return reading
