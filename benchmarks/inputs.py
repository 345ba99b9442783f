"""A 1080p60 H.264 file to read: real surgery where the data lies beside the checkout, else the drawn scene."""

from __future__ import annotations

from collections.abc import Iterator
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
_FPS = 60
_WIDTH, _HEIGHT = 1920, 1080
_BITS_PER_S = 8_000_000


def video_1080p60(path: Path, *, pictures: int, seconds: float) -> str:
    """Write a file of `seconds` at 60 fps: `pictures` encoded once, their packets repeated; what it shows.

    8 Mbit/s, two B-frames, a key picture per second: what an endoscopy recorder writes. The real one is shot at 25 fps and
    played at 60, which changes nothing for a decoder.
    """
    shown = "real surgery (AutoLaparo)" if _REAL.exists() else "drawn scene"
    packets, template = _encoded(path.with_suffix(".once.mp4"), pictures)
    with av.open(str(path), "w") as output:
        stream = output.add_stream_from_template(template)
        ticks = round(1 / (Fraction(_FPS) * (packets[0].time_base or Fraction(1, _FPS))))
        total, written = round(seconds * _FPS), 0
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


def _encoded(path: Path, pictures: int) -> tuple[list[Packet[VideoStream]], VideoStream]:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=_FPS)
        stream.width, stream.height, stream.pix_fmt = _WIDTH, _HEIGHT, "yuv420p"
        stream.bit_rate = _BITS_PER_S
        stream.codec_context.gop_size = _FPS
        stream.options = {"preset": "veryfast", "bf": "2"}
        for index, planes in zip(range(pictures), _pictures(), strict=False):
            frame = VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, _FPS)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    container = av.open(str(path))  # stays open: the packets' template is its stream
    template = container.streams.video[0]
    return [packet for packet in container.demux(template) if packet.size], template


def _pictures() -> Iterator[NDArray[np.uint8]]:
    """Planes without end."""
    if _REAL.exists():
        while True:
            with av.open(str(_REAL)) as container:
                for frame in container.decode(video=0):
                    yield np.asarray(frame.to_ndarray(format="yuv420p"), np.uint8)
    scene = Scene(_WIDTH, _HEIGHT, seed=7, instruments=("grasper", "hook"))
    planes = np.empty((_HEIGHT * 3 // 2, _WIDTH), np.uint8)
    index = 0
    while True:
        scene.draw(planes, Moment(time_s=index / _FPS, instruments=("grasper", "hook"), since_s=1 + index / _FPS))
        yield planes
        index += 1
