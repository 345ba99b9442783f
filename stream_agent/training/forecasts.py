"""Answers to questions, and in one line each how good they are: accuracy, log loss, calibration, errors, coverage."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_agent.evaluation.metrics import expected_ece
from stream_agent.planner.ensemble import Ending, EndingModel
from stream_agent.training.planner_questions import FULL_FEATURES, Example, Matrix, matrix
from stream_agent.training.statistical import ACTIONS, calibration_error


@dataclass(frozen=True, slots=True, eq=False)
class Forecasts:
    """Answers to questions.

    Attributes:
        asked: The questions, (n,).
        own: A head's own distribution, 0 for the current action, (n, actions).
        back_off: The n-gram's, 0 for the current action, (n, actions).
        probabilities: What the planner would say, (n, actions).
    """

    asked: tuple[Example, ...]
    own: Matrix
    back_off: Matrix
    probabilities: Matrix

    @property
    def targets(self) -> NDArray[np.intp]:
        """Index of what came, (n,)."""
        return np.array([one.target for one in self.asked])


def mixed(own: Matrix, back_off: Matrix, *, share: float, sharpness: float) -> Matrix:
    """The formula of planner/ensemble.py for many questions at once."""
    powers = np.where(back_off > 0, np.maximum((1 - share) * own + share * back_off, 1e-6) ** sharpness, 0.0)
    whole: Matrix = powers / powers.sum(1, keepdims=True)
    return whole


def unless_ending(found: Forecasts, ending: Ending) -> Matrix:
    """The formula of planner/ensemble.py for many questions to the full head at once, when no end is told of."""
    model = EndingModel(ending, FULL_FEATURES, ACTIONS)
    rows = zip(matrix(found.asked, full=True).tolist(), found.asked, strict=True)
    ends = np.array([[model.probability(row, one.history[-1]) if one.history else 1.0] for row, one in rows])
    whole: Matrix = ends * found.probabilities + (1 - ends) * found.back_off
    return whole


def joined(parts: Iterable[Forecasts]) -> Forecasts:
    """All answers one after the other."""
    parts = list(parts)
    return Forecasts(
        tuple(one for part in parts for one in part.asked),
        np.concatenate([part.own for part in parts]),
        np.concatenate([part.back_off for part in parts]),
        np.concatenate([part.probabilities for part in parts]),
    )


def log_loss(probabilities: Matrix, targets: NDArray[np.intp]) -> float:
    """Mean negative log probability of what came, in nats."""
    return float(-np.log(np.maximum(probabilities[np.arange(len(targets)), targets], 1e-3)).mean())


def ranks(probabilities: Matrix, targets: NDArray[np.intp]) -> NDArray[np.intp]:
    """Place of what came in the ranking, from 0, (n,)."""
    order = np.argsort(-probabilities, axis=1, kind="stable")
    places: NDArray[np.intp] = np.argmax(order == targets[:, None], axis=1)
    return places


def line(probabilities: Matrix, targets: NDArray[np.intp]) -> str:
    """Accuracy, log loss and calibration errors in one line, and what chance alone makes of the last one."""
    place = ranks(probabilities, targets)
    top = "/".join(f"{100 * float((place < k).mean()):.1f}" for k in (1, 2, 3))
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :3]
    ranked = [
        (float(probabilities[row, action]), bool(action == targets[row]))
        for row in range(len(targets))
        for action in order[row]
    ]
    stated = probabilities.max(1)
    first = list(zip(stated.tolist(), (place == 0).tolist(), strict=True))
    chance = expected_ece(stated.tolist())
    return (
        f"top-1/2/3 {top} %, log loss {log_loss(probabilities, targets):.3f}, calibration error "
        f"{calibration_error(ranked):.3f} (top-1 {calibration_error(first):.3f}, by chance alone "
        f"{chance.value:.3f}, up to {chance.high:.3f}; stated {100 * float(stated.mean()):.1f} %), "
        f"macro-F1 {100 * macro_f1(order[:, 0], targets):.1f}, n={len(targets)}"
    )


def macro_f1(predicted: NDArray[np.intp], targets: NDArray[np.intp]) -> float:
    """Mean F1 over the actions that came."""
    scores = []
    for action in sorted(set(targets.tolist())):
        both = int(((predicted == action) & (targets == action)).sum())
        scores.append(2 * both / (int((predicted == action).sum()) + int((targets == action).sum())))
    return sum(scores) / len(scores)


def errors(found: Forecasts) -> str:
    """What was taken for what, the commonest first, and how often the two rare actions were foreseen."""
    said = found.probabilities.argmax(1)
    wrong = Counter(
        f"after {(one.history or ('the start',))[-1]} {ACTIONS[one.target]} taken for {ACTIONS[guess]}"
        for one, guess in zip(found.asked, said.tolist(), strict=True)
        if guess != one.target
    )
    rare = np.isin(found.targets, [ACTIONS.index("Coagulation"), ACTIONS.index("Aspiration")])
    listed = ", ".join(f"{kind} {count}" for kind, count in wrong.most_common(4))
    return (
        f"{wrong.total()} errors: {listed}; {int((said == found.targets)[rare].sum())} of {int(rare.sum())} "
        "coagulations and aspirations foreseen"
    )


def gain(found: Forecasts, *, draws: int = 2000) -> str:
    """Top-1 beyond the n-gram's, in points, with the 95 % interval of a paired bootstrap over videos."""
    targets = found.targets
    better = (ranks(found.probabilities, targets) == 0) * 1.0 - (ranks(found.back_off, targets) == 0)
    groups: dict[str, list[float]] = defaultdict(list)
    for one, value in zip(found.asked, better, strict=True):
        groups[one.video].append(float(value))
    sums = np.array([[sum(values), len(values)] for values in groups.values()])
    drawn = np.random.default_rng(0).integers(0, len(sums), (draws, len(sums)))
    totals = sums[drawn].sum(1)
    low, high = np.percentile(100 * totals[:, 0] / totals[:, 1], [2.5, 97.5])
    return (
        f"top-1 beyond the n-gram: {100 * better.mean():+.1f} points, 95 % interval {low:+.1f} to {high:+.1f} by video"
    )


def risk_coverage(found: Forecasts) -> str:
    """Top-1 accuracy among the most confident answers, and the area under the risk-coverage curve."""
    confidence = found.probabilities.max(1)
    right = ranks(found.probabilities, found.targets) == 0
    order = np.argsort(-confidence, kind="stable")
    cells = []
    for share in (1.0, 0.9, 0.8, 0.7, 0.5):
        kept = order[: max(1, round(share * len(order)))]
        cells.append(f"{100 * share:.0f} %: {100 * right[kept].mean():.1f} (from {confidence[kept].min():.2f} on)")
    wrong = np.cumsum(~right[order]) / np.arange(1, len(order) + 1)
    return f"{', '.join(cells)}; area under risk-coverage {wrong.mean():.3f}, blind {1 - right.mean():.3f}"
