"""What time it is: the host's monotonic clock in real time, a clock driven by media time in lockstep and tests.

Only the edges ask a clock. The core (memory, segmenter, scheduler, ladder) takes time as an argument.
"""

from __future__ import annotations

import time
from typing import Protocol

NS_PER_S = 1_000_000_000


class Clock(Protocol):
    """A source of monotonic nanoseconds."""

    def now_ns(self) -> int:
        """Nanoseconds since an arbitrary origin; never goes back."""
        ...


class MonotonicClock:
    """`CLOCK_MONOTONIC`: comparable between processes of one host, not between hosts."""

    def now_ns(self) -> int:
        """Nanoseconds of `time.monotonic_ns()`."""
        return time.monotonic_ns()


class ManualClock:
    """A clock that moves only when told to: the virtual clock of lockstep, and the clock of tests."""

    def __init__(self, now_ns: int = 0) -> None:
        self._now_ns = now_ns

    def now_ns(self) -> int:
        """The time last set."""
        return self._now_ns

    def advance_to(self, now_ns: int) -> None:
        """Move to `now_ns`; an earlier time is ignored, since a clock never goes back."""
        self._now_ns = max(self._now_ns, now_ns)

    def advance(self, *, seconds: float) -> None:
        """Move on by `seconds` >= 0."""
        self.advance_to(self._now_ns + round(seconds * NS_PER_S))
