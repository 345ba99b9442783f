"""Fit the first recogniser and print every number its model card quotes.

    python -m stream_agent.training.recogniser --data ../shared/data --out configs/procedures/cholecystectomy/recogniser.onnx

Frozen encoder, linear heads. An instrument head is a class-balanced logistic regression whose log odds are calibrated
(slope and offset) on left-out videos. Actions follow from instruments by P(instrument | action), fitted on the 1 Hz rows
of all training videos: a head that goes straight from features to actions is fitted for comparison, and is worse.
Nothing of the test split is read before everything is fitted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.preprocessing import StandardScaler

from stream_agent.messages import FrameHeader
from stream_agent.perception.onnx import OnnxRecogniser
from stream_agent.perception.protocol import THUMBNAIL_HEIGHT, THUMBNAIL_WIDTH, Thumbnail
from stream_agent.training.annotations import ACTIONS, INSTRUMENTS, TEST_VIDEOS, load_timelines, load_tool_rows, one_hot
from stream_agent.training.encoder import Heads, Matrix, encode, export, load_encoder
from stream_agent.training.pictures import BLACK_FROM_S, LabelledPicture, pictures

SEED: Final = 2025
RIDGE: Final = 1e-3
"""Inverse strength of the L2 penalty on scaled features; chosen on left-out training videos among 1e-4, 1e-3, 1e-2."""
LEAST_SLOPE: Final = 0.1
OUTSIDE_FAMILIES: Final = ("black", "grey", "white", "colour", "noise", "gradient")
LICENCE: Final = "CC BY-NC-SA 4.0 (fitted on CholecT50, Cholec80 and CholecT50-SAP); encoder Apache-2.0"

Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Pictures with features and labels.

    Attributes:
        pictures: (n,).
        videos: (n,).
        instruments: (n, 7) 0 or 1.
        actions: (n,) index, -1 for none.
        outside: (n,) camera out of the body.
    """

    pictures: tuple[Thumbnail, ...]
    videos: Labels
    instruments: Labels
    actions: Labels
    outside: NDArray[np.bool_]


def label(data: Path, items: Sequence[LabelledPicture]) -> Examples:
    """Give each picture the labels of its second."""
    timelines = load_timelines(data, continue_with_precursor=True)
    rows = {video: load_tool_rows(data, video) for video in {item.video for item in items}}
    return Examples(
        pictures=tuple(item.picture for item in items),
        videos=np.array([item.video for item in items]),
        instruments=np.array([rows[item.video][int(item.second)] for item in items]),
        actions=np.array([one_hot(timelines[item.video].action(item.second)) for item in items]),
        outside=np.array([item.second >= BLACK_FROM_S.get(item.video, 1e9) for item in items]),
    )


def outside_pictures(rng: np.random.Generator, each: int) -> dict[str, list[Thumbnail]]:
    """Made pictures of no body: the data holds but one real black passage."""
    shape = (THUMBNAIL_HEIGHT, THUMBNAIL_WIDTH, 3)
    made: dict[str, list[Thumbnail]] = {family: [] for family in OUTSIDE_FAMILIES}
    for _ in range(each):
        noise = rng.normal(0.0, rng.uniform(0.5, 4.0), shape)
        ramp = np.linspace(0.0, 1.0, THUMBNAIL_WIDTH)[None, :, None]
        ends = rng.uniform(0, 255, (2, 3))
        coarse = cv2.resize(rng.uniform(0, 255, (14, 20, 3)).astype(np.float32), (shape[1], shape[0]))
        plain = {
            "black": np.full(shape, rng.uniform(0, 20)),
            "grey": np.full(shape, rng.uniform(60, 190)),
            "white": np.full(shape, rng.uniform(220, 255)),
            "colour": np.broadcast_to(rng.uniform(0, 255, 3), shape),
            "noise": np.asarray(coarse, dtype=np.float64),
            "gradient": np.broadcast_to(ends[0] * (1 - ramp) + ends[1] * ramp, shape),
        }
        for family, picture in plain.items():
            made[family].append(np.clip(picture + noise, 0, 255).astype(np.uint8))
    return made


def fit_logistic(features: Matrix, labels: Labels, *, ridge: float = RIDGE) -> tuple[Matrix, Matrix]:
    """Weights (2560, classes or 1) and biases of a class-balanced logistic regression, scaling folded in."""
    scaler = StandardScaler().fit(features)
    model = LogisticRegression(C=ridge, class_weight="balanced", max_iter=400).fit(scaler.transform(features), labels)
    weights = np.asarray(model.coef_ / scaler.scale_, dtype=np.float64).T
    return weights, np.asarray(model.intercept_ - scaler.mean_ @ weights, dtype=np.float64)


def fit_presence(data: Path, *, leave_out: int | None = None) -> tuple[Matrix, Matrix]:
    """P(instrument | action) (7, 5) and P(instrument) (7,) among the labelled seconds of the training videos."""
    timelines = load_timelines(data, continue_with_precursor=True)
    rows, actions = [], []
    for video in sorted(set(timelines) - TEST_VIDEOS - {leave_out}):
        for second, row in sorted(load_tool_rows(data, video).items()):
            rows.append(row)
            actions.append(one_hot(timelines[video].action(second)))
    seen, action = np.array(rows, dtype=np.float64), np.array(actions)
    columns = [(seen[action == k].sum(0) + 0.5) / (np.sum(action == k) + 1.0) for k in range(len(ACTIONS))]
    return np.stack(columns, axis=1), seen.mean(0)


def action_likelihood(logits: Matrix, presence: Matrix) -> Matrix:
    """Log likelihood of each action from balanced instrument log odds, (n, 7), (7, 5) -> (n, 5)."""
    balanced = _sigmoid(logits)[:, :, None]
    return np.asarray(np.log(balanced * presence + (1 - balanced) * (1 - presence)).sum(1))


def balanced_log_loss(log_likelihood: Matrix, actions: Labels, sharpness: float = 1.0) -> float:
    """Mean over the actions that occur of the mean log loss; log 5 = 1.609 for knowing nothing."""
    scores = sharpness * log_likelihood
    log_p = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
    return float(np.mean([-log_p[actions == k, k].mean() for k in range(len(ACTIONS)) if np.any(actions == k)]))


def action_numbers(log_likelihood: Matrix, actions: Labels, sharpness: float = 1.0) -> dict[str, Any]:
    """Accuracy, mean recall and log loss over the pictures that have an action."""
    known = actions >= 0
    right = log_likelihood[known].argmax(1) == actions[known]
    recall = {
        name: round(float(right[actions[known] == k].mean()), 3)
        for k, name in enumerate(ACTIONS)
        if np.any(actions == k)
    }
    return {
        "n": int(known.sum()),
        "accuracy": round(float(right.mean()), 3),
        "mean_recall": round(float(np.mean(list(recall.values()))), 3),
        "recall": recall,
        "majority": round(float(np.bincount(actions[known]).max() / known.sum()), 3),
        "balanced_log_loss": round(balanced_log_loss(log_likelihood[known], actions[known], sharpness), 3),
    }


def instrument_numbers(scores: Matrix, labels: Labels) -> dict[str, Any]:
    """Average precision per instrument that occurs, its prevalence, and the mean over those instruments."""
    table = {
        name: {
            "ap": round(float(average_precision_score(labels[:, j], scores[:, j])), 3),
            "prevalence": round(float(labels[:, j].mean()), 3),
        }
        for j, name in enumerate(INSTRUMENTS)
        if labels[:, j].any()
    }
    return {
        "n": len(labels),
        "mAP": round(float(np.mean([row["ap"] for row in table.values()])), 3),
        "per_instrument": table,
    }


def _sigmoid(values: Matrix) -> Matrix:
    return np.asarray(1.0 / (1.0 + np.exp(-values)), dtype=np.float64)


def _calibrate(logits: Matrix, labels: Labels) -> tuple[float, float]:
    """Slope and offset that make left-out log odds honest, classes balanced (Platt, 1999).

    A head that tells nothing across videos gets the least slope, centred: it keeps its order within a video and adds
    next to nothing to the actions.
    """
    model = LogisticRegression(C=1e3, class_weight="balanced").fit(logits[:, None], labels)
    slope = float(model.coef_[0, 0])
    if slope > LEAST_SLOPE:
        return slope, float(model.intercept_[0])
    return LEAST_SLOPE, -LEAST_SLOPE * float(np.mean([logits[labels == k].mean() for k in (0, 1)]))


def fit(data: Path, examples: Examples, encoder: Any) -> tuple[Heads, dict[str, Any]]:  # noqa: ANN401
    """The heads, and what they reach on videos left out of the fit."""
    rng = np.random.default_rng(SEED)
    upright = encode(encoder, examples.pictures)
    mirrored = encode(encoder, [np.ascontiguousarray(picture[:, ::-1]) for picture in examples.pictures])
    made = {family: encode(encoder, list(items)) for family, items in outside_pictures(rng, 24).items()}
    inside = ~examples.outside
    count = len(INSTRUMENTS)

    logits = np.zeros((len(inside), count))
    direct = np.zeros((len(inside), len(ACTIONS)))
    by_instruments = np.zeros((len(inside), len(ACTIONS)))
    false_outside = np.zeros(len(inside))
    for video in np.unique(examples.videos):
        train, test = (examples.videos != video) & inside, examples.videos == video
        both = np.concatenate([upright[train], mirrored[train]])
        for j in range(count):
            weights, biases = fit_logistic(both, np.tile(examples.instruments[train, j], 2))
            logits[test, j] = (upright[test] @ weights + biases)[:, 0]
        named = np.tile(examples.actions[train], 2) >= 0
        weights, biases = fit_logistic(both[named], np.tile(examples.actions[train], 2)[named])
        present = np.unique(examples.actions[train][examples.actions[train] >= 0])
        direct[test] = -20.0
        direct[np.ix_(test, present)] = upright[test] @ weights + biases
        weights, biases = _fit_outside(both, [*made.values(), upright[examples.outside & (examples.videos != video)]])
        false_outside[test] = _sigmoid((upright[test] @ weights + biases)[:, 0])

    scales = [_calibrate(logits[inside, j], examples.instruments[inside, j]) for j in range(count)]
    slopes, offsets = np.array(scales).T
    calibrated = logits * slopes + offsets
    for video in np.unique(examples.videos):
        rows = examples.videos == video
        by_instruments[rows] = action_likelihood(calibrated[rows], fit_presence(data, leave_out=int(video))[0])
    known = inside & (examples.actions >= 0)
    sharpness = float(
        np.exp(
            minimize_scalar(
                lambda log_s: balanced_log_loss(by_instruments[known], examples.actions[known], float(np.exp(log_s))),
                bounds=(-4.0, 0.0),
                method="bounded",
            ).x
        )
    )

    both = np.concatenate([upright[inside], mirrored[inside]])
    fitted = [fit_logistic(both, np.tile(examples.instruments[inside, j], 2)) for j in range(count)]
    outside_weights, outside_biases = _fit_outside(both, [*made.values(), upright[examples.outside]])
    presence, prior = fit_presence(data)
    heads = Heads(
        weights=np.hstack(
            [*(weights * slope for (weights, _), slope in zip(fitted, slopes, strict=True)), outside_weights]
        ),
        biases=np.concatenate([np.array([b[0] for _, b in fitted]) * slopes + offsets, outside_biases]),
        prior_logits=np.log(prior / (1 - prior)),
        presence=presence,
        sharpness=sharpness,
    )
    families = {}
    for family, left_out in made.items():
        rest = [features for name, features in made.items() if name != family]
        weights, biases = _fit_outside(both, rest)
        families[family] = round(float(np.mean(_sigmoid(left_out @ weights + biases) >= 0.9)), 3)
    numbers = {
        "pictures": {str(video): int(np.sum(examples.videos == video)) for video in np.unique(examples.videos)},
        "instruments": instrument_numbers(calibrated[inside], examples.instruments[inside]),
        "actions_by_instruments": action_numbers(by_instruments[inside], examples.actions[inside], sharpness),
        "actions_direct_head": action_numbers(direct[inside], examples.actions[inside]),
        "calibration_slopes": {name: round(float(slope), 3) for name, slope in zip(INSTRUMENTS, slopes, strict=True)},
        "action_sharpness": round(sharpness, 3),
        "outside_false_closures": int(np.sum(false_outside[inside] >= 0.9)),
        "outside_recall_black_without_VID15": round(float(np.mean(false_outside[examples.outside] >= 0.9)), 3),
        "outside_recall_family_left_out": families,
    }
    return heads, numbers


def _fit_outside(inside: Matrix, outside: Sequence[Matrix]) -> tuple[Matrix, Matrix]:
    positives = np.concatenate(outside)
    labels = np.concatenate([np.zeros(len(inside), dtype=np.int64), np.ones(len(positives), dtype=np.int64)])
    return fit_logistic(np.concatenate([inside, positives]), labels)


def run_time(model: Path, examples: Examples) -> tuple[Matrix, Matrix, Matrix, float]:
    """Instruments, log actions, out of body and median ms per picture through the run-time recogniser, one thread."""
    recogniser = OnnxRecogniser(model, actions=ACTIONS, instruments=INSTRUMENTS, threads=1)
    header = FrameHeader(stream_id="", session_id="", seq=0, pts_s=0.0, captured_ns=0)
    answers, took_ms = [], []
    for picture in examples.pictures:
        began = time.perf_counter()
        answers.append(recogniser.evidence(header, picture))
        took_ms.append((time.perf_counter() - began) * 1e3)
    return (
        np.array([answer.instruments for answer in answers]),
        np.log(np.array([answer.actions for answer in answers])),
        np.array([answer.out_of_body for answer in answers]),
        float(np.median(took_ms)),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit, export, print the numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the data folder")
    parser.add_argument("--out", type=Path, required=True, help="the ONNX file to write")
    options = parser.parse_args(arguments)
    torch.manual_seed(SEED)
    torch.set_num_threads(2)
    encoder = load_encoder()
    training = label(options.data, list(pictures(options.data, test=False)))
    heads, left_out = fit(options.data, training, encoder)
    metadata = {
        "actions": ACTIONS,
        "instruments": INSTRUMENTS,
        "licence": LICENCE,
        "videos": sorted(left_out["pictures"]),
    }
    full = options.out.with_suffix(".float32.onnx")
    export(encoder, heads, full, metadata, half=False)
    export(encoder, heads, options.out, metadata, half=True)

    test = label(options.data, list(pictures(options.data, test=True)))
    instruments, actions, outside, took_ms = run_time(options.out, test)
    exact = run_time(full, test)
    full.unlink()
    report = {
        "left_out_training_videos": left_out,
        "untouched_test_videos": {
            "pictures": {str(video): int(np.sum(test.videos == video)) for video in np.unique(test.videos)},
            "instruments": instrument_numbers(instruments, test.instruments),
            "actions": action_numbers(actions, test.actions),
            "outside_false_closures": int(np.sum(outside >= 0.9)),
        },
        "file": {
            "sha256": hashlib.sha256(options.out.read_bytes()).hexdigest(),
            "bytes": options.out.stat().st_size,
            "ms_per_picture_one_thread": round(took_ms, 2),
            "test_mAP_as_float32": instrument_numbers(exact[0], test.instruments)["mAP"],
            "test_action_accuracy_as_float32": action_numbers(exact[1], test.actions)["accuracy"],
            "largest_difference_to_float32": round(
                float(max(np.abs(instruments - exact[0]).max(), np.abs(np.exp(actions) - np.exp(exact[1])).max())), 5
            ),
        },
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
