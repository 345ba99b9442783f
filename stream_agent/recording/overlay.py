"""The recorded video with what was on display drawn under it, as an MP4 that plays anywhere."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import av.error
import cv2
import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from stream_agent.clock import NS_PER_S
from stream_agent.errors import RecordingError
from stream_agent.messages import Plan
from stream_agent.recording.foxglove import picture_of
from stream_agent.recording.reader import RecordingFile
from stream_agent.recording.records import VIDEO_TOPIC, FrameRecord
from stream_agent.recording.video import VideoDecoder, planes_of

_WIDTH = 960
_PANEL = 190
_LINES, _LETTERS = 5, 54
_RATE = 90_000
_INK, _QUIET, _BAR, _WARNING = (240, 240, 240), (150, 150, 150), (178, 114, 0), (0, 159, 230)  # BGR, Okabe and Ito
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_ROTATE = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}
_TO_BGR = cv2.COLOR_YUV2BGR_I420

Image = NDArray[np.uint8]


class Shown(NamedTuple):
    """One picture, and the plan that was on display once it had been perceived."""

    frame: FrameRecord
    picture: VideoFrame | None
    plan: Plan | None


def write_overlay(recording: RecordingFile, path: Path) -> int:
    """Write the video at the times of capture; how many pictures it has. A frame without a picture repeats the last.

    Raises:
        RecordingError: There are no pictures, or the file cannot be written.
    """
    written = 0
    first_ns: int | None = None
    last_pts = -1
    image: Image | None = None
    size: tuple[int, int] | None = None
    try:
        with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as out:
            stream: VideoStream | None = None
            for shown in _moments(recording):
                if shown.picture is not None:
                    image = _upright(shown.picture, shown.frame)
                if image is None:
                    continue
                if size is None:
                    size = _WIDTH, round(image.shape[0] * _WIDTH / image.shape[1] / 2) * 2
                if stream is None:
                    stream = _stream(out.add_stream("libx264", rate=25), size)
                canvas = draw(image, size, shown)
                frame = VideoFrame.from_ndarray(canvas, format="bgr24")
                first_ns = shown.frame.captured_ns if first_ns is None else first_ns
                last_pts = max(last_pts + 1, (shown.frame.captured_ns - first_ns) * _RATE // NS_PER_S)
                frame.pts, frame.time_base = last_pts, Fraction(1, _RATE)
                out.mux(stream.encode(frame))
                written += 1
            if stream is not None:
                out.mux(stream.encode(None))
    except (av.error.FFmpegError, OSError) as error:
        raise RecordingError(f"{path} cannot be written: {error.strerror}; name a file in a writable folder") from error
    if not written:
        path.unlink(missing_ok=True)
        raise RecordingError(f"{recording.path} has no pictures to draw on; record with sinks.recorder.video=true")
    return written


def draw(image: Image, size: tuple[int, int], shown: Shown) -> Image:
    """The picture, (H, W, 3) BGR, at `size` with the panel under it."""
    width, height = size
    canvas = np.zeros((height + _PANEL, width, 3), np.uint8)
    smaller = image.shape[1] > width
    canvas[:height] = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)
    plan, frame = shown.plan, shown.frame
    _text(canvas, f"{frame.pts_s:9.1f} s", (12, height + 28), _QUIET)
    if plan is None:
        _text(canvas, "no plan yet", (160, height + 28), _QUIET)
        return canvas
    now = plan.current_action or "nothing recognised"
    _text(
        canvas, f"now: {now}  {plan.current_confidence:.0%}" if plan.current_action else now, (160, height + 28), _INK
    )
    _text(canvas, f"by {plan.source}", (width - 190, height + 28), _QUIET)
    if plan.abstained:
        _text(canvas, f"no advice: {plan.abstain_reason}", (12, height + 66), _QUIET)
        return canvas
    for place, entry in enumerate(plan.ranked):
        top = height + 48 + 34 * place
        reach = 12 + round((width // 2 - 24) * entry.probability)
        cv2.rectangle(canvas, (12, top), (reach, top + 26), _BAR, cv2.FILLED)
        _text(canvas, f"{place + 1} {entry.action}  {entry.probability:.0%}", (18, top + 19), _INK)
    lines = []
    if plan.expected_onset_s is not None:
        lines.append((f"expected in {plan.expected_onset_s:.0f} s", _INK))
    lines += [(line, _WARNING) for caution in plan.safety for line in textwrap.wrap(caution, _LETTERS)]
    for number, (line, colour) in enumerate(lines[:_LINES]):
        _text(canvas, line, (width // 2 + 12, height + 60 + 26 * number), colour)
    return canvas


def _moments(recording: RecordingFile) -> Iterator[Shown]:
    """Every perceived frame with its picture, and the plan that followed from it."""
    decoder = VideoDecoder()
    frame: FrameRecord | None = None
    picture: VideoFrame | None = None
    plan: Plan | None = None
    for entry in recording.entries({"/frame", VIDEO_TOPIC, "/plan"}):
        if entry.topic == "/frame":
            if frame is not None:
                yield Shown(frame, picture, plan)
            frame, picture = recording.decode(entry), None
        elif entry.topic == "/plan":
            plan = recording.decode(entry)
        else:
            try:
                picture = decoder.decode(picture_of(entry.data))
            except ValueError:
                picture = None
    if frame is not None:
        yield Shown(frame, picture, plan)


def _upright(picture: VideoFrame, frame: FrameRecord) -> Image:
    image = np.asarray(cv2.cvtColor(planes_of(picture), _TO_BGR), np.uint8)
    return np.asarray(cv2.rotate(image, _ROTATE[frame.rotation_deg]), np.uint8) if frame.rotation_deg else image


def _stream(stream: VideoStream, size: tuple[int, int]) -> VideoStream:
    stream.width, stream.height = size[0], size[1] + _PANEL
    stream.pix_fmt = "yuv420p"
    stream.time_base = Fraction(1, _RATE)
    stream.codec_context.time_base = Fraction(1, _RATE)
    stream.options = {"preset": "veryfast", "crf": "22"}
    return stream


def _text(canvas: Image, text: str, at: tuple[int, int], colour: tuple[int, int, int]) -> None:
    cv2.putText(canvas, text, at, _FONT, 0.6, colour, 1, cv2.LINE_AA)
