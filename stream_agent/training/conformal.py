"""Sets of actions that hold what comes with a stated frequency: conformal prediction across groups of videos."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from stream_agent.training.forecasts import Forecasts
from stream_agent.training.planner_questions import Matrix
from stream_agent.training.statistical import ACTIONS, folds

COVERAGE: Final = 0.9
LEVELS: Final = (0.1, 0.08, 0.06, 0.05, 0.04, 0.03, 0.02, 0.01)
SHUFFLES: Final = 5
"""Partitions into groups of videos over which coverage is averaged."""


@dataclass(frozen=True, slots=True)
class Conformal:
    """The sets {a: p(a) ≥ set_from}.

    Attributes:
        level: Share of what came that may lie below the threshold, over all.
        set_from: The threshold.
        covered: How often the set held what came.
        worst: The same in the worst of five groups of videos, averaged over the shuffles.
        size: Actions in a set.
    """

    level: float
    set_from: float
    covered: float
    worst: float
    size: float

    def __str__(self) -> str:
        return (
            f"level {self.level:g}, from probability {self.set_from:.3f}: {100 * self.covered:.1f} % covered, "
            f"{100 * self.worst:.1f} % in the worst of five groups of videos, {self.size:.2f} actions"
        )


def conformal(found: Forecasts) -> list[Conformal]:
    """Cross-conformal sets at every level of `LEVELS`, the widest last.

    Coverage is measured on groups of videos whose threshold comes from the others; the threshold is that of all of them.
    """
    scores = found.probabilities[np.arange(len(found.asked)), found.targets]
    videos = np.array([one.video for one in found.asked])
    made = []
    for level in LEVELS:
        covered, worst, sizes = [], [], []
        for seed in range(SHUFFLES):
            shares = []
            for part in folds(sorted(set(videos.tolist())), seed=seed):
                held = np.isin(videos, part)
                least = quantile(scores[~held], level)
                shares.append(float((scores[held] >= least).mean()))
                covered.extend((scores[held] >= least).tolist())
                sizes.extend((found.probabilities[held] >= max(least, 1e-9)).sum(1).tolist())
            worst.append(min(shares))
        made.append(
            Conformal(
                level, quantile(scores, level), float(np.mean(covered)), float(np.mean(worst)), float(np.mean(sizes))
            )
        )
    return made


def quantile(scores: Matrix, level: float) -> float:
    """The finite-sample quantile of split conformal prediction: at most `level` of new draws lie below it on average."""
    lowest = math.floor(level * (len(scores) + 1))
    return float(np.sort(scores)[lowest - 1]) if lowest else 0.0


def narrowest(made: Sequence[Conformal]) -> Conformal:
    """The smallest sets that cover `COVERAGE` in the worst group; the widest if none does."""
    return next((one for one in made if one.worst >= COVERAGE), made[-1])


def held_to(found: Forecasts, set_from: float) -> str:
    """What sets from a given threshold on cover, by group of five and by current action."""
    scores = found.probabilities[np.arange(len(found.asked)), found.targets] >= set_from
    videos = np.array([one.video for one in found.asked])
    current = np.array([(one.history or ("",))[-1] for one in found.asked])
    groups = [float(scores[np.isin(videos, part)].mean()) for part in folds(sorted(set(videos.tolist())))]
    acting = [
        f"{action} {100 * scores[current == action].mean():.0f}" for action in ACTIONS if (current == action).any()
    ]
    sizes = np.maximum((found.probabilities >= set_from).sum(1), 1)
    return (
        f"{100 * scores.mean():.1f} % covered (five groups {'/'.join(f'{100 * share:.0f}' for share in groups)}; "
        f"after {', '.join(acting)}), {sizes.mean():.2f} actions"
    )
