"""Video files to read: real surgery where the data lies beside the checkout, else the drawn scene."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from benchmarks.report import ROOT
from stream_agent.source.scene import Moment, Scene

DATA = ROOT.parent / "shared" / "data"
_REAL = DATA / "video" / "autolaparo_zoomin_2_1920x1080.mp4"


@dataclass(frozen=True, slots=True)
class Kind:
    """One sort of video file.

    Attributes:
        encoder: Of libav.
        bits_per_s: What an endoscopy recorder writes at this size.
        options: For the encoder.
        key_every: Pictures from one key picture to the next; 1 is intra alone, None is one per second.
    """

    width: int
    height: int
    fps: int
    encoder: str
    bits_per_s: int
    options: tuple[tuple[str, str], ...] = (("preset", "veryfast"), ("bf", "2"))
    key_every: int | None = None


_HEVC = (("preset", "ultrafast"), ("x265-params", "log-level=none"))
_FAST = (("preset", "ultrafast"), ("bf", "0"))
KINDS = {
    "480p25_h264": Kind(854, 480, 25, "libx264", 2_000_000),
    "1080p60_h264": Kind(1920, 1080, 60, "libx264", 8_000_000),
    "1080p60_hevc": Kind(1920, 1080, 60, "libx265", 6_000_000, _HEVC),
    "1080p60_intra": Kind(1920, 1080, 60, "libx264", 50_000_000, _FAST, key_every=1),
    "2160p60_h264": Kind(3840, 2160, 60, "libx264", 30_000_000, (("preset", "superfast"), ("bf", "2"))),
    "2160p60_hevc": Kind(3840, 2160, 60, "libx265", 20_000_000, _HEVC),
}
"""Case → what it reads. 8 Mbit/s, two B-frames and a key picture per second are what a recorder writes at 1080p60."""


def video_1080p60(path: Path, *, pictures: int, seconds: float) -> str:
    """The usual file; what it shows."""
    return write_video(path, KINDS["1080p60_h264"], pictures=pictures, seconds=seconds)


def write_video(path: Path, kind: Kind, *, pictures: int, seconds: float) -> str:
    """Write a file of `seconds`: `pictures` encoded once, their packets repeated; what it shows.

    The real one is shot at 25 fps and played at 60, which changes nothing for a decoder.
    """
    shown = "real surgery (AutoLaparo)" if _REAL.exists() else "drawn scene"
    packets, template = _encoded(path.with_suffix(".once.mp4"), kind, pictures)
    with av.open(str(path), "w") as output:
        stream = output.add_stream_from_template(template)
        ticks = round(1 / (Fraction(kind.fps) * (packets[0].time_base or Fraction(1, kind.fps))))
        total, written = round(seconds * kind.fps), 0
        while written < total:
            for packet in packets:
                copied = Packet(bytes(packet))
                assert packet.pts is not None and packet.dts is not None
                offset = written // len(packets) * len(packets) * ticks
                copied.pts, copied.dts = packet.pts + offset, packet.dts + offset
                copied.time_base = packet.time_base
                copied.is_keyframe = packet.is_keyframe
                copied.stream = stream
                output.mux(copied)
            written += len(packets)
    return f"{shown}, {written} pictures"


def _encoded(path: Path, kind: Kind, count: int) -> tuple[list[Packet[VideoStream]], VideoStream]:
    with av.open(str(path), "w") as output:
        stream = output.add_stream(kind.encoder, rate=kind.fps)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = kind.width, kind.height, "yuv420p"
        stream.bit_rate = kind.bits_per_s
        stream.codec_context.gop_size = kind.key_every or kind.fps
        stream.options = dict(kind.options)
        for index, planes in zip(range(count), pictures(kind), strict=False):
            frame = VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, kind.fps)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    container = av.open(str(path))  # stays open: the packets' template is its stream
    template = container.streams.video[0]
    return [packet for packet in container.demux(template) if packet.size], template


def pictures(kind: Kind) -> Iterator[NDArray[np.uint8]]:
    """Planes without end."""
    if _REAL.exists():
        while True:
            with av.open(str(_REAL)) as container:
                for frame in container.decode(video=0):
                    scaled = frame.reformat(width=kind.width, height=kind.height, format="yuv420p")
                    yield np.asarray(scaled.to_ndarray(), np.uint8)
    scene = Scene(kind.width, kind.height, seed=7, instruments=("grasper", "hook"))
    planes = np.empty((kind.height * 3 // 2, kind.width), np.uint8)
    index = 0
    while True:
        scene.draw(
            planes, Moment(time_s=index / kind.fps, instruments=("grasper", "hook"), since_s=1 + index / kind.fps)
        )
        yield planes
        index += 1
