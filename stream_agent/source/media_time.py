"""Media time from the timestamps a stream really has: missing, starting anywhere, jumping back."""

from __future__ import annotations

JITTER_S = 0.5
"""A step back up to here is jitter and is held; a larger one means that the sender began anew."""


class MediaTime:
    """Turns timestamps into seconds from the stream's start that are >= 0 and never fall.

    Attributes:
        restarts: How often the timestamps jumped back by more than `JITTER_S`.
    """

    def __init__(self, *, origin_s: float | None, interval_s: float) -> None:
        """Count from `origin_s`, or from the first timestamp if None; a frame without one comes `interval_s` later."""
        self.restarts = 0
        self._origin_s = origin_s
        self._interval_s = interval_s
        self._last_s: float | None = None

    def advance(self, stamp_s: float | None) -> float:
        """Media time of the next frame, whose timestamp is `stamp_s` seconds, or None if it has none.

        After a jump back time goes on from the last frame instead of standing still until the old value is reached.
        """
        self._last_s = self._next(stamp_s)
        return self._last_s

    def _next(self, stamp_s: float | None) -> float:
        due_s = 0.0 if self._last_s is None else self._last_s + self._interval_s
        if stamp_s is None:
            return due_s
        floor_s = 0.0 if self._last_s is None else self._last_s
        if self._origin_s is None:
            self._origin_s = stamp_s - floor_s
        time_s = round(stamp_s - self._origin_s, 9)  # 11.96, not 11.959999999999999.
        if time_s < floor_s - JITTER_S:
            self.restarts += self._last_s is not None
            self._origin_s = stamp_s - due_s
            return due_s
        return max(time_s, floor_s)
