"""What stands behind the network's scores: linear heads, calibration, and from instruments to actions.

Actions follow from instruments by P(instrument | action), fitted on the 1 Hz rows of all training videos.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from stream_agent.training.annotations import ACTIONS, TEST_VIDEOS, load_timelines, load_tool_rows, one_hot
from stream_agent.training.measures import Labels, Matrix, balanced_log_loss

RIDGE: Final = 1e-3
LEAST_SLOPE: Final = 0.1


def fit_logistic(features: Matrix, labels: Labels, *, ridge: float = RIDGE) -> tuple[Matrix, Matrix]:
    """Weights (features, 1) and bias of a class-balanced logistic regression, scaling folded in."""
    scaler = StandardScaler().fit(features)
    model = LogisticRegression(C=ridge, class_weight="balanced", max_iter=400).fit(scaler.transform(features), labels)
    weights = np.asarray(model.coef_ / scaler.scale_, dtype=np.float64).T
    return weights, np.asarray(model.intercept_ - scaler.mean_ @ weights, dtype=np.float64)


def probe(features: Matrix, train: NDArray[np.bool_], test: NDArray[np.bool_], labels: Labels) -> Matrix:
    """Left-out log odds of linear heads on the untrained encoder's features: what training is compared with."""
    scores = np.zeros((int(test.sum()), labels.shape[1]))
    for j in range(labels.shape[1]):
        if len(np.unique(labels[train, j])) == 2:
            weights, biases = fit_logistic(features[train], labels[train, j])
            scores[:, j] = (features[test] @ weights + biases)[:, 0]
    return scores


def calibrate(logits: Matrix, labels: Labels) -> tuple[float, float]:
    """Slope and offset that make left-out log odds honest, classes balanced (Platt, 1999).

    A head that tells nothing across videos gets the least slope, centred: it keeps its order within a video and adds
    next to nothing to the actions.
    """
    if len(np.unique(labels)) < 2:
        return 1.0, 0.0
    model = LogisticRegression(C=1e3, class_weight="balanced").fit(logits[:, None], labels)
    slope = float(model.coef_[0, 0])
    if slope > LEAST_SLOPE:
        return slope, float(model.intercept_[0])
    return LEAST_SLOPE, -LEAST_SLOPE * float(np.mean([logits[labels == k].mean() for k in (0, 1)]))


def fit_presence(data: Path, *, leave_out: Collection[int]) -> tuple[Matrix, Matrix]:
    """P(instrument | action) (7, 5) and P(instrument) (7,) among the labelled seconds of the training videos."""
    timelines = load_timelines(data, continue_with_precursor=True)
    rows, actions = [], []
    for video in sorted(set(timelines) - TEST_VIDEOS - set(leave_out)):
        for second, row in sorted(load_tool_rows(data, video).items()):
            rows.append(row)
            actions.append(one_hot(timelines[video].action(second)))
    seen, action = np.array(rows, dtype=np.float64), np.array(actions)
    columns = [(seen[action == k].sum(0) + 0.5) / (np.sum(action == k) + 1.0) for k in range(len(ACTIONS))]
    return np.stack(columns, axis=1), seen.mean(0)


def action_likelihood(logits: Matrix, presence: Matrix) -> Matrix:
    """Log likelihood of each action from balanced instrument log odds, (n, 7), (7, 5) -> (n, 5)."""
    balanced = sigmoid(logits)[:, :, None]
    return np.asarray(np.log(balanced * presence + (1 - balanced) * (1 - presence)).sum(1))


def fit_sharpness(likelihood: Matrix, actions: Labels) -> float:
    """The exponent of the action likelihoods, from exp(-4) to 1, with the least balanced log loss."""
    found = minimize_scalar(
        lambda log_s: balanced_log_loss(likelihood, actions, float(np.exp(log_s))), bounds=(-4.0, 0.0), method="bounded"
    )
    return float(np.exp(found.x))


def sigmoid(values: Matrix) -> Matrix:
    """Probabilities of log odds."""
    return np.asarray(1.0 / (1.0 + np.exp(-values)), dtype=np.float64)
