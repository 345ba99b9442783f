"""The near frame for a model's eyes: upright, reduced by area averaging, its sides multiples of the model's patches.

A 1080p frame becomes 672x364 under 262,144 pixels: 312 image tokens of a Qwen2.5-VL. Made only of frames that are planned from.
"""

from __future__ import annotations

import math

from stream_agent.messages import FrameHeader, NearPicture
from stream_agent.perception.thumbnail import reduced
from stream_agent.source.protocol import Planes


def near_picture(
    planes: Planes, header: FrameHeader, *, action: str | None, max_pixels: int, side_multiple: int
) -> NearPicture:
    """Reduce (3 H / 2, W) planes, which are only read."""
    upright = (header.width, header.height) if header.rotation_deg in (0, 180) else (header.height, header.width)
    width, height = reduced_size(*upright, max_pixels=max_pixels, side_multiple=side_multiple)
    rgb = reduced(planes, header, width=width, height=height)
    return NearPicture(seq=header.seq, pts_s=header.pts_s, action=action, width=width, height=height, rgb=rgb.tobytes())


def reduced_size(width: int, height: int, *, max_pixels: int, side_multiple: int) -> tuple[int, int]:
    """Width and height: multiples of `side_multiple`, at most `max_pixels`, never enlarged by more than one multiple.

    As Qwen's own `smart_resize`, so that its processor has nothing left to reduce: rounded where the picture is small enough,
    else scaled and rounded down.
    """
    sides = (round(width / side_multiple), round(height / side_multiple))
    if sides[0] * sides[1] * side_multiple**2 > max_pixels:
        shrink = math.sqrt(width * height / max_pixels) * side_multiple
        sides = (int(width / shrink), int(height / shrink))
    return max(1, sides[0]) * side_multiple, max(1, sides[1]) * side_multiple


class PictureBook:
    """The newest picture, and before it the last one of each recent clip, oldest first; bounded."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._case_id = ""
        self._pictures: tuple[NearPicture, ...] = ()

    def add(self, picture: NearPicture | None, *, case_id: str) -> tuple[NearPicture, ...]:
        """All that are kept now; a picture replaces the last one of the same clip. A new case begins empty."""
        if case_id != self._case_id:
            self._case_id, self._pictures = case_id, ()
        if picture is not None:
            kept = self._pictures
            if kept and (self._most == 1 or kept[-1].action == picture.action):
                kept = kept[:-1]
            self._pictures = (*kept, picture)[-self._most :]
        return self._pictures
