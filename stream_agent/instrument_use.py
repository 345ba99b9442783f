"""How each instrument has been used: seconds in all, lately, when last, and how often it was taken up.

Bounded whatever the length of the procedure: a handful of numbers per instrument. "Lately" is an exponentially decayed
share of time, one per time constant of `RECENT_S`, so that no frame has to be kept. Pure: time comes with the frame, and
training replays 1 Hz annotations through this very code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from stream_agent.messages import InstrumentUse

RECENT_S: Final = (3.0, 10.0, 30.0, 100.0)
"""Time constants of the decayed shares, in seconds."""

PRESENT: Final = 0.5
"""From this probability on an instrument counts as seen."""

NEW_USE_AFTER_S: Final = 5.0
"""An instrument unseen for longer than this is taken up anew."""

_KEPT_STEPS: Final = 64


class InstrumentUseTracker:
    """Use of the instruments of one pack in one case."""

    def __init__(self, instruments: int) -> None:
        self._uses = [InstrumentUse(recent=(0.0,) * len(RECENT_S))] * instruments
        self._kept: dict[float, tuple[float, ...]] = {}  # a stream has few step lengths

    def observe(self, presence: Sequence[float], *, pts_s: float, step_s: float) -> None:
        """Take in what was seen at `pts_s`, `step_s` after the frame before; what is not a number counts as unseen."""
        if not presence:
            return
        kept = self._kept.get(step_s)
        if kept is None:
            if len(self._kept) >= _KEPT_STEPS:
                self._kept.clear()
            kept = self._kept[step_s] = tuple(math.exp(-step_s / constant_s) for constant_s in RECENT_S)
        for index, probability in enumerate(presence[: len(self._uses)]):
            use = self._uses[index]
            if probability >= PRESENT:
                anew = use.last_pts_s is None or pts_s - use.last_pts_s > NEW_USE_AFTER_S
                self._uses[index] = InstrumentUse(
                    seen_s=use.seen_s + step_s,
                    uses=use.uses + anew,
                    taken_pts_s=pts_s if anew else use.taken_pts_s,
                    last_pts_s=pts_s,
                    recent=tuple([1.0 - keep * (1.0 - share) for share, keep in zip(use.recent, kept, strict=True)]),
                )
            elif use.last_pts_s is not None:
                self._uses[index] = InstrumentUse(
                    seen_s=use.seen_s,
                    uses=use.uses,
                    taken_pts_s=use.taken_pts_s,
                    last_pts_s=use.last_pts_s,
                    recent=tuple([share * keep for share, keep in zip(use.recent, kept, strict=True)]),
                )

    def snapshot(self) -> tuple[InstrumentUse, ...]:
        """Use per instrument, in pack order."""
        return tuple(self._uses)


def use_after(rows: Sequence[Sequence[float]], instruments: int) -> tuple[InstrumentUse, ...]:
    """Use after 1 Hz rows of the seconds 0, 1, … as the memory of a live case would hold it."""
    tracker = InstrumentUseTracker(instruments)
    for second, row in enumerate(rows):
        tracker.observe(row, pts_s=float(second), step_s=1.0 if second else 0.0)
    return tracker.snapshot()
