"""Telling pictures from outside the body: made examples of them, the head that finds them, and how well it does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import cv2
import numpy as np
from sklearn.metrics import roc_auc_score

from stream_agent.perception.protocol import THUMBNAIL_HEIGHT, THUMBNAIL_WIDTH, Thumbnail
from stream_agent.training.measures import Matrix
from stream_agent.training.recogniser_heads import fit_logistic, sigmoid

OUTSIDE_FAMILIES: Final = ("black", "grey", "white", "colour", "noise", "gradient")


def outside_pictures(rng: np.random.Generator, each: int) -> dict[str, list[Thumbnail]]:
    """Made pictures of no body: the data holds but one real black passage."""
    shape = (THUMBNAIL_HEIGHT, THUMBNAIL_WIDTH, 3)
    made: dict[str, list[Thumbnail]] = {family: [] for family in OUTSIDE_FAMILIES}
    for _ in range(each):
        noise = rng.normal(0.0, rng.uniform(0.5, 4.0), shape)
        ramp = np.linspace(0.0, 1.0, THUMBNAIL_WIDTH)[None, :, None]
        ends = rng.uniform(0, 255, (2, 3))
        coarse = cv2.resize(rng.uniform(0, 255, (14, 20, 3)).astype(np.float32), (shape[1], shape[0]))
        plain_ones = {
            "black": np.full(shape, rng.uniform(0, 20)),
            "grey": np.full(shape, rng.uniform(60, 190)),
            "white": np.full(shape, rng.uniform(220, 255)),
            "colour": np.broadcast_to(rng.uniform(0, 255, 3), shape),
            "noise": np.asarray(coarse, dtype=np.float64),
            "gradient": np.broadcast_to(ends[0] * (1 - ramp) + ends[1] * ramp, shape),
        }
        for family, picture in plain_ones.items():
            made[family].append(np.clip(picture + noise, 0, 255).astype(np.uint8))
    return made


def fit_outside(inside: Matrix, outside: Sequence[Matrix]) -> tuple[Matrix, Matrix]:
    """Weights and bias of the head that tells pictures outside the body from those inside, by their features."""
    positives = np.concatenate(outside)
    labels = np.concatenate([np.zeros(len(inside), dtype=np.int64), np.ones(len(positives), dtype=np.int64)])
    return fit_logistic(np.concatenate([inside, positives]), labels)


def separation(inside: Matrix, outside: Matrix) -> dict[str, float]:
    """Area under the curve of inside against outside, and the share of outside found at 0.9."""
    if not len(outside):
        return {}
    truth = np.concatenate([np.zeros(len(inside)), np.ones(len(outside))])
    area = roc_auc_score(truth, np.concatenate([inside, outside]))
    return {"auc": round(float(area), 4), "recall_at_0.9": round(float(np.mean(outside >= 0.9)), 3)}


def families_left_out(inside: Matrix, made_features: Matrix, made: dict[str, list[Thumbnail]]) -> dict[str, Any]:
    """Each family of made pictures found by a head that has seen the others; inside pictures are those fitted on."""
    names = np.repeat(list(made), [len(family) for family in made.values()])
    found = {}
    for family in made:
        weights, bias = fit_outside(inside, [made_features[names != family]])
        scores = [sigmoid((part @ weights + bias)[:, 0]) for part in (inside, made_features[names == family])]
        found[family] = separation(scores[0], scores[1])
    return found
