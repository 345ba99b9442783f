"""A frame decoded by libav into our planes: one copy per plane, no array in between."""

from __future__ import annotations

import numpy as np
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from numpy.typing import NDArray

from stream_agent.messages import ColourSpace
from stream_agent.source.protocol import Planes

_HD_HEIGHT_PX = 720
"""Untagged pictures of this height or more are BT.709 by the convention of players, lower ones BT.601."""

# AVColorSpace, ITU-T H.273 table 4.
_RGB, _BT709, _UNSPECIFIED, _RESERVED = 0, 1, 2, 3
_BT2020 = (9, 10)
_AS_DECODED = frozenset({"yuv420p", "yuvj420p"})


def colour_of(frame: VideoFrame) -> ColourSpace:
    """Matrix and range that `PlaneWriter.write` leaves in the planes.

    yuvj formats and frames tagged as full range keep their range; RGB becomes studio range; BT.2020 becomes BT.709.
    """
    if frame.colorspace in (_RGB, _UNSPECIFIED, _RESERVED):
        wide = frame.height >= _HD_HEIGHT_PX
    else:
        wide = frame.colorspace == _BT709 or frame.colorspace in _BT2020
    if _is_full_range(frame):
        return "bt709-full" if wide else "bt601-full"
    return "bt709" if wide else "bt601"


class PlaneWriter:
    """Writes decoded frames into I420 planes; formats other than 8-bit 4:2:0 go through libswscale first."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()  # Holds libswscale's tables, which are dear to build per frame.

    def write(self, frame: VideoFrame, planes: Planes) -> None:
        """Fill `planes`, (3 H / 2, W) contiguous uint8; H and W are the frame's, the odd last row and column cut."""
        rows, width = planes.shape
        height = rows * 2 // 3
        luma, chroma = planes[:height], planes.reshape(-1)[height * width :].reshape(2, height // 2, width // 2)
        if frame.format.name == "gray":
            np.copyto(luma, _pixels(frame.planes[0], height, width))
            chroma.fill(128)
            return
        if not _copies_as_is(frame):
            frame = self._reformatted(frame)
        y, u, v = frame.planes
        np.copyto(luma, _pixels(y, height, width))
        np.copyto(chroma[0], _pixels(u, height // 2, width // 2))
        np.copyto(chroma[1], _pixels(v, height // 2, width // 2))

    def _reformatted(self, frame: VideoFrame) -> VideoFrame:
        colour = colour_of(frame)
        full = colour.endswith("-full")
        matrix = Colorspace.ITU709 if colour.startswith("bt709") else Colorspace.ITU601
        rgb = _is_rgb(frame)
        return self._reformatter.reformat(
            frame,
            format="yuvj420p" if full else "yuv420p",
            src_colorspace=Colorspace.BT2020 if frame.colorspace in _BT2020 else matrix,
            dst_colorspace=matrix,
            src_color_range=ColorRange.JPEG if full or rgb else ColorRange.MPEG,
            dst_color_range=ColorRange.JPEG if full else ColorRange.MPEG,
            threads=1,
        )


def _copies_as_is(frame: VideoFrame) -> bool:
    return (
        frame.format.name in _AS_DECODED
        and frame.colorspace not in _BT2020
        and all(plane.line_size > 0 for plane in frame.planes)
    )


def _is_rgb(frame: VideoFrame) -> bool:
    return frame.format.is_rgb or frame.format.has_palette


def _is_full_range(frame: VideoFrame) -> bool:
    if _is_rgb(frame):
        return False
    return frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")


def _pixels(plane: VideoPlane, height: int, width: int) -> NDArray[np.uint8]:
    """The plane's top left (height, width) without its padding, as a view."""
    buffer = np.frombuffer(plane, np.uint8)  # type: ignore[call-overload]  # Plane speaks the buffer protocol.
    view: NDArray[np.uint8] = buffer.reshape(-1, plane.line_size)[:height, :width]
    return view
