"""H.264 as a recording holds it: Annex B, one message per picture, no B-frames, a key picture at least every second."""

from __future__ import annotations

from fractions import Fraction

import av
import av.error
import numpy as np
from av.codec.context import CodecContext
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import ColorRange, Colorspace

from stream_agent.clock import NS_PER_S
from stream_agent.messages import ColourSpace
from stream_agent.source.protocol import Planes

_KEY_NS = NS_PER_S
_TICKS = 1_000_000
_SMALL_PX = 1280 * 720
"""Larger pictures are encoded in less time: at 1080p 17 ms instead of 53 ms of one core each, for a third more bytes."""


class VideoEncoder:
    """Planes in, one H.264 access unit each out; another size or colour begins anew with a key picture."""

    def __init__(self, *, crf: int) -> None:
        """`crf` is x264's quality: 18 looks like the original, 23 is its default, 51 the worst."""
        self._crf = crf
        self._codec: VideoCodecContext | None = None
        self._form: tuple[int, int, ColourSpace] | None = None
        self._first_ns = 0
        self._last_pts = -1
        self._key_ns: int | None = None

    def encode(self, planes: Planes, captured_ns: int, colour: ColourSpace) -> bytes:
        """The picture, (3 H / 2, W), as bytes that decode with those before it since the last key picture."""
        rows, width = planes.shape
        height = rows * 2 // 3
        if self._form != (width, height, colour) or self._codec is None:
            self._form = (width, height, colour)
            self._codec = self._opened(width, height, colour)
            self._first_ns, self._last_pts, self._key_ns = captured_ns, -1, None
        frame = VideoFrame.from_ndarray(planes, format="yuv420p")
        self._last_pts = max(self._last_pts + 1, (captured_ns - self._first_ns) * _TICKS // NS_PER_S)
        frame.pts = self._last_pts
        frame.time_base = Fraction(1, _TICKS)
        if self._key_ns is None or captured_ns - self._key_ns >= _KEY_NS or captured_ns < self._key_ns:
            frame.pict_type = PictureType.I
            self._key_ns = captured_ns
        return b"".join(bytes(packet) for packet in self._codec.encode(frame))

    def _opened(self, width: int, height: int, colour: ColourSpace) -> VideoCodecContext:
        codec = CodecContext.create("libx264", "w")
        assert isinstance(codec, VideoCodecContext)
        codec.width, codec.height, codec.pix_fmt = width, height, "yuv420p"
        codec.time_base = Fraction(1, _TICKS)
        codec.framerate = Fraction(25)
        codec.thread_count = 1
        codec.color_range = ColorRange.JPEG if colour.endswith("-full") else ColorRange.MPEG
        codec.colorspace = Colorspace.ITU709 if colour.startswith("bt709") else Colorspace.ITU601
        codec.options = {
            "preset": "veryfast" if width * height <= _SMALL_PX else "ultrafast",
            "tune": "zerolatency",  # no B-frames, no look-ahead: one picture in, one out
            "crf": str(self._crf),
            "forced-idr": "1",
            "x264-params": "keyint=infinite:scenecut=0:repeat-headers=1:annexb=1:log-level=none",
        }
        return codec


class VideoDecoder:
    """The pictures of a recording again, in order."""

    def __init__(self) -> None:
        self._codec = CodecContext.create("h264", "r")
        self._codec.thread_count = 1

    def decode(self, data: bytes) -> VideoFrame | None:
        """The picture; None when what it builds on is missing or the bytes are damaged."""
        try:
            frames = self._codec.decode(Packet(data))
        except av.error.FFmpegError:
            return None
        return next((frame for frame in frames if isinstance(frame, VideoFrame)), None)


def planes_of(frame: VideoFrame) -> Planes:
    """The decoded picture as our planes, (3 H / 2, W) uint8."""
    return np.asarray(frame.to_ndarray(format="yuv420p"), np.uint8)


def is_key(data: bytes) -> bool:
    """Whether a picture decodes by itself: it has an IDR slice (H.264, NAL unit type 5)."""
    at = data.find(b"\x00\x00\x01")
    while at >= 0:
        if at + 3 < len(data) and data[at + 3] & 0x1F == 5:
            return True
        at = data.find(b"\x00\x00\x01", at + 3)
    return False
