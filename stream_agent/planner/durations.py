"""How long an action lasts: its quantiles, and what is left of it once some of it has passed.

A distribution is stored as quantiles at even levels (0 %, 5 %, … 100 %) and read by linear interpolation. Beyond the
longest duration ever seen it goes on exponentially with the mean excess over the 75 % quantile, so that an action which
lasts longer than any before still has an expected end.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

import msgspec

TAIL = 0.05
"""Probability mass of the exponential tail: the longest duration seen is taken for the 95 % quantile."""


class DurationDistribution(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Durations of one action's clips.

    Attributes:
        n: How many whole clips were measured; 0 for an expert's guess.
        quantiles_s: Seconds at even levels from the shortest to the longest, rising, at least two.
    """

    n: int
    quantiles_s: tuple[float, ...]

    def problem(self) -> str:
        """Why this is no distribution, with the remedy; empty when it is one."""
        values = self.quantiles_s
        if self.n < 0:
            return f"n={self.n} is negative; count clips from 0"
        if len(values) < 2 or not all(math.isfinite(value) and 0 <= value <= 86_400 for value in values):
            return "quantiles_s must be two or more numbers from 0 to 86400; fit the model again"
        if values[-1] <= 0 or any(later < earlier for earlier, later in pairwise(values)):
            return "quantiles_s must rise to more than 0; sort them"
        return ""

    def quantile(self, level: float) -> float:
        """Seconds within which a fraction `level` of the clips end.

        Raises:
            ValueError: `level` is not in [0, 1).
        """
        if not 0 <= level < 1:
            raise ValueError(f"level={level} is not a quantile; give one from 0 up to, not including, 1")
        body = 1 - TAIL
        if level >= body:
            return self.quantiles_s[-1] + self._excess_s * math.log(TAIL / (1 - level))
        position = level / body * (len(self.quantiles_s) - 1)
        low = int(position)
        high = min(low + 1, len(self.quantiles_s) - 1)
        return self.quantiles_s[low] + (position - low) * (self.quantiles_s[high] - self.quantiles_s[low])

    def ended_by(self, elapsed_s: float) -> float:
        """Probability that a clip is over after `elapsed_s` seconds."""
        values = self.quantiles_s
        if elapsed_s >= values[-1]:
            return 1 - TAIL * math.exp(-(elapsed_s - values[-1]) / self._excess_s)
        if elapsed_s <= values[0]:
            return 0.0
        high = bisect_right(values, elapsed_s)
        low = high - 1
        position = low + (elapsed_s - values[low]) / (values[high] - values[low])
        return (1 - TAIL) * position / (len(values) - 1)

    def remaining_s(self, elapsed_s: float, level: float) -> float:
        """Seconds after which a fraction `level` of the clips that last `elapsed_s` already have ended."""
        if elapsed_s >= self.quantiles_s[-1]:  # the tail forgets: what is left does not depend on what has passed
            return -self._excess_s * math.log(1 - level)
        ended = self.ended_by(elapsed_s)
        return max(0.0, self.quantile(ended + level * (1 - ended)) - elapsed_s)

    @property
    def _excess_s(self) -> float:
        """Mean excess over the 75 % quantile, at least a second."""
        last = len(self.quantiles_s) - 1
        first = math.ceil(0.75 * last)
        upper = self.quantiles_s[first:]
        return max(1.0, sum(upper) / len(upper) - upper[0])


def distribution(durations_s: Sequence[float], *, levels: int = 21) -> DurationDistribution:
    """Fitted to measured durations, (n,) seconds.

    Raises:
        ValueError: There are none.
    """
    if not durations_s:
        raise ValueError("no durations to fit; an action without a whole clip needs the pooled ones")
    ordered = sorted(durations_s)
    quantiles = []
    for index in range(levels):
        position = index / (levels - 1) * (len(ordered) - 1)
        low = int(position)
        high = min(low + 1, len(ordered) - 1)
        quantiles.append(round(ordered[low] + (position - low) * (ordered[high] - ordered[low]), 2))
    return DurationDistribution(n=len(ordered), quantiles_s=tuple(quantiles))
