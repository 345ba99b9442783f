"""Which frames are looked at: the first at or after each tick of media time."""

from __future__ import annotations

import math

_SLACK = 1e-6


class Ticks:
    """`rate_hz` ticks per second of media time; pure, so that a replay admits the same frames."""

    def __init__(self, rate_hz: float) -> None:
        self._rate_hz = rate_hz
        self._next_pts_s = 0.0

    def admit(self, pts_s: float) -> bool:
        """Whether the frame at `pts_s` is the first since its tick; then that tick is done."""
        if pts_s + _SLACK < self._next_pts_s:
            return False
        self._next_pts_s = (math.floor(pts_s * self._rate_hz + _SLACK) + 1) / self._rate_hz
        return True
