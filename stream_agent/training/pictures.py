"""The labelled pictures of the data folder, each through the very `thumbnail()` of run time.

CholecT50's JPEG frames, and two pictures a second of the 25 fps excerpts. VID43's seconds 265 to 273 come from the
joined excerpt, of which they are media seconds 64 to 73.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import av
import cv2
import numpy as np

from stream_agent.messages import FrameHeader
from stream_agent.perception.protocol import Thumbnail
from stream_agent.perception.thumbnail import thumbnail
from stream_agent.source.protocol import Planes

EXCERPT_FPS: Final = 2.0
FRAME_FOLDERS: Final = (68, 70, 73, 74)
LARGE: Final = (640, 360)
"""Width and height of the pictures that augmentation starts from."""


@dataclass(frozen=True, slots=True)
class Excerpt:
    """Seconds `[first_s, first_s + length_s)` of a video, at media second `offset_s` of a file."""

    file: str
    video: int
    first_s: int
    length_s: int
    offset_s: int = 0


EXCERPTS: Final = (
    Excerpt("VID15_772_and_VID47_1133_b.mp4", 47, 1101, 32),
    Excerpt("VID15_1911_and_VID18_1261_a.mp4", 15, 1879, 32),
    Excerpt("VID22_326_and_VID25_471_b.mp4", 25, 439, 32),
    Excerpt("VID25_324_and_VID43_743_a.mp4", 25, 292, 32),
    Excerpt("VID43_147_and_VID42_3625_a.mp4", 43, 115, 32),
    Excerpt("VID43_216_and_VID42_3625_a.mp4", 43, 184, 32),
    Excerpt("VID43_306_and_VID42_598_a.mp4", 43, 274, 32),
    Excerpt("VID43_concat_105s_854x480_25fps.mp4", 43, 265, 9, 64),
    Excerpt("VID47_1131_and_VID23_841_a.mp4", 47, 1099, 2),
)
"""The rest of VID47_1131 shows the seconds of the first excerpt again."""

BLACK_FROM_S: Final = {15: 1906.15}
"""Second from which VID15's excerpt is black, out of body (media second 27.2)."""


@dataclass(frozen=True, slots=True, eq=False)
class LabelledPicture:
    """One picture of a video and where in the video it is.

    Attributes:
        video: Its number.
        second: CholecT50's time base.
        picture: The run-time thumbnail.
        large: The same picture at (360, 640, 3) RGB, to cut and turn.
    """

    video: int
    second: float
    picture: Thumbnail
    large: Thumbnail


def pictures(data: Path, *, test: bool, every: int = 1) -> Iterator[LabelledPicture]:
    """Pictures of the training videos, or of the test videos, in a fixed order.

    With `every` above 1, each so manyth frame of the frame folders and nothing of the excerpts: a sample that loads fast.
    """
    from stream_agent.training.annotations import TEST_VIDEOS

    for video in FRAME_FOLDERS:
        if (video in TEST_VIDEOS) != test:
            continue
        for path in sorted(
            (data / "cholect50" / "videos_jpg" / f"VID{video}").glob("[0-9][0-9][0-9][0-9][0-9][0-9].jpg")
        )[::every]:
            yield LabelledPicture(video, int(path.stem), *_of_jpeg(path))
    for excerpt in EXCERPTS if every == 1 else ():
        if (excerpt.video in TEST_VIDEOS) == test:
            path = data / "video" / excerpt.file
            until_s = excerpt.offset_s + excerpt.length_s
            for media_s, picture, large in sampled(
                path, rate_fps=EXCERPT_FPS, from_s=excerpt.offset_s, until_s=until_s
            ):
                yield LabelledPicture(excerpt.video, excerpt.first_s + media_s - excerpt.offset_s, picture, large)


def reduce(planes: Planes, width: int, height: int) -> Thumbnail:
    """The run-time thumbnail of BT.601 planes."""
    header = FrameHeader(
        stream_id="", session_id="", seq=0, pts_s=0.0, captured_ns=0, width=width, height=height, layout="yuv420p"
    )
    return thumbnail(planes, header)


def sampled(
    path: Path, *, rate_fps: float, from_s: float = 0.0, until_s: float = math.inf
) -> Iterator[tuple[float, Thumbnail, Thumbnail]]:
    """(media second, thumbnail, large picture) of a video file, `rate_fps` times a second."""
    with av.open(str(path)) as container:
        taken = -1
        for frame in container.decode(video=0):
            media_s = float(frame.time or 0.0)
            if media_s >= until_s:
                break
            step = math.floor((media_s - from_s) * rate_fps)
            if media_s < from_s or step == taken:
                continue
            taken = step
            planes = np.asarray(frame.to_ndarray(format="yuv420p"), dtype=np.uint8)
            large = _enlarged(np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8))
            yield media_s, reduce(planes, frame.width, frame.height), large


def _of_jpeg(path: Path) -> tuple[Thumbnail, Thumbnail]:
    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
    assert bgr is not None, path
    height, width = bgr.shape[0] // 2 * 2, bgr.shape[1] // 2 * 2
    planes = cv2.cvtColor(bgr[:height, :width], cv2.COLOR_BGR2YUV_I420)
    picture = reduce(np.asarray(planes, dtype=np.uint8), width, height)
    return picture, _enlarged(np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), dtype=np.uint8))


def _enlarged(rgb: Thumbnail) -> Thumbnail:
    shrinks = rgb.shape[1] >= LARGE[0]
    return np.asarray(
        cv2.resize(rgb, LARGE, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR), dtype=np.uint8
    )
