"""Fits the three parts of the model over the structured memory: a head that sees instruments, one that does not, the ending.

The heads are taught what follows where an action ends; the ending is taught to tell such moments from all the others, for a
live agent is asked in every second. The formulas are in planner/ensemble.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from stream_agent.evaluation.dataset import INSTRUMENTS
from stream_agent.planner.ensemble import Ending, Forest, HeadFile, Linear
from stream_agent.training.planner_questions import FULL_FEATURES, LABEL_FEATURES, Example, Matrix, allowed, matrix
from stream_agent.training.statistical import ACTIONS

TREES: Final = 80
ENDING_PENALTY: Final = 3.0
ENDING_FEATURES: Final = (
    *(f"{instrument} in the last {seconds} s" for instrument in INSTRUMENTS for seconds in (3, 10)),
    "time in current action",
)


@dataclass(frozen=True, slots=True)
class Setting:
    """What cross-validation chooses; the formula is in planner/ensemble.py.

    Attributes:
        sample_weight: Weight of a sample among all clips.
        penalty: Of the squared weights of the logistic model.
        leaf: Fewest examples in a leaf; 0 for no forest.
        linear_share: Of the logistic model beside the forest.
        share: Of the n-gram.
        sharpness: The exponent.
    """

    sample_weight: float
    penalty: float
    leaf: int = 0
    linear_share: float = 1.0
    share: float = 0.1
    sharpness: float = 1.0


def fit_head(taught: Sequence[Example], setting: Setting, *, full: bool, set_from: float = 0.0) -> HeadFile:
    """One head fitted on all of `taught`."""
    x, y = matrix(taught, full=full), np.array([one.target for one in taught])
    weight = np.array([setting.sample_weight if one.is_sample else 1.0 for one in taught])
    forest = None
    if setting.leaf:
        from sklearn.ensemble import ExtraTreesClassifier

        forest = ExtraTreesClassifier(TREES, random_state=0, max_features=0.3, min_samples_leaf=setting.leaf)
        forest.fit(x.astype(np.float32), y, sample_weight=weight)
    return HeadFile(
        features=FULL_FEATURES if full else LABEL_FEATURES,
        ngram_share=setting.share,
        linear_share=setting.linear_share,
        sharpness=setting.sharpness,
        set_from=set_from,
        linear=fit_linear(x, y, weight, allowed(taught), penalty=setting.penalty),
        forest=None if forest is None else _exported(forest),
    )


def fit_linear(
    x: Matrix, y: NDArray[np.intp], weight: Matrix, may_come: NDArray[np.bool_], *, penalty: float
) -> Linear:
    """A multinomial logistic model among the actions that may come: a conditional logit (McFadden, 1974).

    scikit-learn's knows no choice sets, so the loss (weighted log loss and penalty / 2 times the squared weights, biases
    free) goes to SciPy's L-BFGS here, with its gradient.
    """
    mean, scale = x.mean(0), x.std(0) + 1e-3
    z = np.clip((x - mean) / scale, -5, 5)
    n, width = z.shape
    actions = may_come.shape[1]
    barred = np.where(may_come, 0.0, -np.inf)
    came = np.eye(actions)[y]

    def loss(weights: Matrix, bias: Matrix) -> tuple[float, Matrix]:
        scores = z @ weights.T + bias + barred
        scores -= scores.max(1, keepdims=True)
        logs = scores - np.log(np.exp(scores).sum(1, keepdims=True))
        slope = weight[:, None] * (np.exp(logs) - came)
        total = -float(weight @ logs[np.arange(n), y]) + penalty / 2 * float((weights * weights).sum())
        return total, np.concatenate([(slope.T @ z + penalty * weights).ravel(), slope.sum(0)])

    weights, bias = _least(loss, actions, width)
    bias = np.maximum(bias - bias.max(), -10.0)  # an action that never came drifts off without an end
    return _linear(mean, scale, weights, bias)


def fit_ending(ends: Sequence[Example], among: Sequence[Example]) -> Ending:
    """What tells `ends`, moments at which an action ends or is about to, from `among`, any moments.

    Both kinds weigh the same in all; an action's end weighs twice what the moment `EARLY_S` before it does. A logistic model
    per current action, their squared weights penalised together.
    """
    ends = [one for one in ends if one.history]
    asked = [*ends, *among]
    places = [FULL_FEATURES.index(name) for name in ENDING_FEATURES]
    x = matrix(asked, full=True)[:, places]
    ended = np.arange(len(asked)) < len(ends)
    weight = np.where(ended, [1 / 3 if one.left_s else 2 / 3 for one in asked], 1.0)
    weight[~ended] *= weight[ended].sum() / weight[~ended].sum()
    mean = np.average(x, axis=0, weights=weight)
    scale = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=weight)) + 1e-3
    z = np.clip((x - mean) / scale, -5, 5)
    current = np.eye(len(ACTIONS))[[ACTIONS.index(one.history[-1]) for one in asked]]  # (examples, actions)
    sign = np.where(ended, 1.0, -1.0)
    width = z.shape[1]

    def loss(weights: Matrix, bias: Matrix) -> tuple[float, Matrix]:
        margin = sign * (((current @ weights) * z).sum(1) + current @ bias)
        slope = -weight * sign * np.exp(-np.logaddexp(0.0, margin))
        total = float(weight @ np.logaddexp(0.0, -margin)) + ENDING_PENALTY / 2 * float((weights * weights).sum())
        by_action = current.T * slope  # (actions, examples)
        return total, np.concatenate([(by_action @ z + ENDING_PENALTY * weights).ravel(), by_action.sum(1)])

    weights, bias = _least(loss, len(ACTIONS), width)
    bias = np.clip(bias, -10.0, 10.0)  # an action of one kind only drifts off without an end
    return Ending(ENDING_FEATURES, _linear(mean, scale, weights, bias))


def _least(loss: Callable[[Matrix, Matrix], tuple[float, Matrix]], actions: int, width: int) -> tuple[Matrix, Matrix]:
    """Weights (actions, width) and bias (actions,) of the least loss, which comes with its gradient over both in one row."""
    from scipy.optimize import minimize

    def parts(point: Matrix) -> tuple[Matrix, Matrix]:
        return point[:-actions].reshape(actions, width), point[-actions:]

    start = np.zeros(actions * (width + 1))
    found = minimize(lambda point: loss(*parts(point)), start, jac=True, method="L-BFGS-B", options={"maxiter": 300})
    return parts(found.x)


def _linear(mean: Matrix, scale: Matrix, weights: Matrix, bias: Matrix) -> Linear:
    return Linear(_rounded(mean), _rounded(scale), tuple(_rounded(row) for row in weights), _rounded(bias))


def _exported(forest: Any) -> Forest:  # noqa: ANN401 - scikit-learn has no types
    roots: list[int] = []
    columns: list[list[NDArray[Any]]] = [[], [], [], []]
    leaves: list[tuple[int, ...]] = []
    nodes = 0
    for estimator in forest.estimators_:
        tree = estimator.tree_
        leaf = tree.children_left < 0
        shares = np.zeros((int(leaf.sum()), len(ACTIONS)))
        value = tree.value[leaf, 0]
        shares[:, forest.classes_.astype(int)] = value / value.sum(1, keepdims=True)
        own_leaf = len(leaves) + np.cumsum(leaf) - 1
        roots.append(nodes)
        columns[0].append(np.where(leaf, -1, tree.feature))
        columns[1].append(np.where(leaf, 0.0, np.round(tree.threshold, 4)))
        columns[2].append(np.where(leaf, own_leaf, nodes + tree.children_left))
        columns[3].append(np.where(leaf, 0, nodes + tree.children_right))
        leaves.extend(tuple(row) for row in np.rint(1000 * shares).astype(int).tolist())
        nodes += tree.node_count
    feature, threshold, left, right = (tuple(np.concatenate(column).tolist()) for column in columns)
    return Forest(tuple(roots), feature, threshold, left, right, tuple(leaves))


def _rounded(values: Matrix) -> tuple[float, ...]:
    return tuple(round(float(value), 5) for value in values)
