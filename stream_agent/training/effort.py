"""How much a training of the recogniser does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done: the full training, or enough to see that it works.

    Attributes:
        every: Each how manyth frame of the frame folders; more than 1 leaves the excerpts out.
        augmented: Pictures made of labelled ones.
        outside: Pictures of no body made, of each family.
        epochs: How often each is used.
        folds: Whether videos are left out in turn to calibrate and to measure.
        batch: Pictures per step.
        runs: Timed frames.
    """

    every: int = 1
    augmented: int = 4600
    outside: int = 24
    epochs: float = 1.2
    folds: bool = True
    batch: int = 32
    runs: int = 100


QUICK: Final = Effort(every=10, augmented=60, outside=4, epochs=2.0, folds=False, batch=16, runs=5)
