"""Train the recogniser and print every number its model card quotes.

    python -m stream_agent.training.recogniser --data ../shared/data --out configs/procedures/cholecystectomy/recogniser.onnx

The late part of an ImageNet encoder and a map of where each instrument is are trained on labelled pictures and on pictures
made of them (`augment`). Log odds are calibrated on videos left out of training. Actions follow from instruments by
P(instrument | action), fitted on the 1 Hz rows of all training videos. Nothing of the test split is read before everything
is fitted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from stream_agent.errors import ConfigError
from stream_agent.messages import FrameHeader
from stream_agent.perception.onnx import OnnxRecogniser
from stream_agent.perception.protocol import THUMBNAIL_HEIGHT, THUMBNAIL_WIDTH, Thumbnail
from stream_agent.perception.timeline import load_labels
from stream_agent.training.annotations import (
    ACTIONS,
    INSTRUMENTS,
    TEST_VIDEOS,
    load_t50_boxes,
    load_timelines,
    load_tool_rows,
    one_hot,
)
from stream_agent.training.augment import Sample, Scene, augment, plain
from stream_agent.training.fitting import Targets, Tell, answers, fit_late, targets
from stream_agent.training.measures import Labels, Matrix, action_numbers, balanced_log_loss, instrument_numbers, speed
from stream_agent.training.network import Early, EarlyRunner, Half, Heads, Late, Recogniser, export
from stream_agent.training.pictures import BLACK_FROM_S, LabelledPicture, pictures, sampled

SEED: Final = 2025
MADE: Final = 0
"""Stands for the video of pictures that are made."""
CORRECTED_FPS: Final = 2.0
RIDGE: Final = 1e-3
LEAST_SLOPE: Final = 0.1
OUTSIDE_FAMILIES: Final = ("black", "grey", "white", "colour", "noise", "gradient")
DONOR_SHARES: Final = (1.0, 1.0, 1.5, 2.0, 2.0, 2.0)
"""How often each instrument is pasted: those that few videos show more."""
RARE: Final = (3, 4, 5, 6)
LICENCE: Final = "CC BY-NC-SA 4.0 (fitted on CholecT50, Cholec80 and CholecT50-SAP); encoder Apache-2.0"


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done: the full training, or enough to see that it works.

    Attributes:
        every: Each how manyth frame of the frame folders; more than 1 leaves the excerpts out.
        augmented: Pictures made.
        epochs: How often each is used.
        folds: Whether videos are left out in turn to calibrate and to measure.
        batch: Pictures per step.
        runs: Timed frames.
    """

    every: int = 1
    augmented: int = 4600
    epochs: float = 1.2
    folds: bool = True
    batch: int = 32
    runs: int = 100


QUICK: Final = Effort(every=10, augmented=60, epochs=2.0, folds=False, batch=16, runs=5)


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Pictures with labels.

    Attributes:
        pictures: (n,) as run time sees them.
        scenes: (n,) larger, with boxes.
        videos: (n,).
        instruments: (n, 7) 0 or 1.
        actions: (n,) index, -1 for none.
        outside: (n,) camera out of the body.
    """

    pictures: tuple[Thumbnail, ...]
    scenes: tuple[Scene, ...]
    videos: Labels
    instruments: Labels
    actions: Labels
    outside: NDArray[np.bool_]


def label(data: Path, items: Sequence[LabelledPicture]) -> Examples:
    """Give each picture the labels of its second."""
    timelines = load_timelines(data, continue_with_precursor=True)
    videos = sorted({item.video for item in items})
    rows = {video: load_tool_rows(data, video) for video in videos}
    boxes = {video: load_t50_boxes(data, video) for video in videos}
    instruments = np.array([rows[item.video][int(item.second)] for item in items])
    actions = np.array([one_hot(timelines[item.video].action(item.second)) for item in items])
    scenes = [
        Scene(
            picture=item.large,
            video=item.video,
            presence=instruments[k].astype(np.float32),
            boxes=boxes[item.video].get(int(item.second), ()) if boxes[item.video] else None,
            action=int(actions[k]),
        )
        for k, item in enumerate(items)
    ]
    return Examples(
        pictures=tuple(item.picture for item in items),
        scenes=tuple(scenes),
        videos=np.array([item.video for item in items]),
        instruments=instruments,
        actions=actions,
        outside=np.array([item.second >= BLACK_FROM_S.get(item.video, math.inf) for item in items]),
    )


def corrected_scenes(video: Path, labels: Path, number: int) -> list[Scene]:
    """Pictures of a video whose clips a person corrected; they have an action and no instrument labels.

    Raises:
        ConfigError: The label file is damaged, or names an action outside the closed set.
    """
    starts = load_labels(labels, ACTIONS)
    starts_s = [start_s for start_s, _ in starts]
    scenes = []
    for media_s, _, large in sampled(video, rate_fps=CORRECTED_FPS):
        run = bisect_right(starts_s, media_s) - 1
        action = starts[run][1] if run >= 0 else ""
        if action:
            nothing = np.full(len(INSTRUMENTS), np.nan, dtype=np.float32)
            scenes.append(Scene(large, number, nothing, None, ACTIONS.index(action)))
    return scenes


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


def make_samples(
    examples: Examples, corrected: Sequence[Scene], effort: Effort, rng: np.random.Generator
) -> list[Sample]:
    """The pictures as they are, in their order, then the made ones."""
    samples = [
        Sample(picture, *_fixed(plain(scene)))
        for picture, scene in zip(examples.pictures, examples.scenes, strict=True)
    ]
    samples += [plain(scene) for scene in corrected]
    scenes = [scene for scene, outside in zip(examples.scenes, examples.outside, strict=True) if not outside]
    donors = _donors(scenes, rng)
    weights = np.array(
        [
            (2.0 if scene.boxes is not None else 1.0)
            * (1.0 + 1.5 * bool(np.any(scene.presence[list(RARE)] == 1)) + 0.5 * bool(scene.presence[1] == 1))
            for scene in (*scenes, *corrected)
        ]
    )
    chosen = rng.choice(len(weights), effort.augmented, p=weights / weights.sum())
    for index in np.sort(chosen):
        if index < len(scenes):
            samples.append(augment(scenes[index], donors, rng))
        else:
            samples.append(augment(corrected[index - len(scenes)], (), rng))
    return samples


def _fixed(sample: Sample) -> tuple[Any, ...]:
    return sample.videos, sample.presence, sample.cells, sample.action


def _donors(scenes: Sequence[Scene], rng: np.random.Generator) -> list[Scene]:
    """Scenes with boxes, those of rarer instruments more often."""
    donors: list[Scene] = []
    for index, share in enumerate(DONOR_SHARES):
        holding = [scene for scene in scenes if scene.boxes and any(box[0] == index for box in scene.boxes)]
        if holding:
            donors += [holding[k] for k in rng.integers(0, len(holding), int(100 * share))]
    return donors


def fit_logistic(features: Matrix, labels: Labels, *, ridge: float = RIDGE) -> tuple[Matrix, Matrix]:
    """Weights (features, 1) and bias of a class-balanced logistic regression, scaling folded in."""
    scaler = StandardScaler().fit(features)
    model = LogisticRegression(C=ridge, class_weight="balanced", max_iter=400).fit(scaler.transform(features), labels)
    weights = np.asarray(model.coef_ / scaler.scale_, dtype=np.float64).T
    return weights, np.asarray(model.intercept_ - scaler.mean_ @ weights, dtype=np.float64)


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
    balanced = _sigmoid(logits)[:, :, None]
    return np.asarray(np.log(balanced * presence + (1 - balanced) * (1 - presence)).sum(1))


def _sigmoid(values: Matrix) -> Matrix:
    return np.asarray(1.0 / (1.0 + np.exp(-values)), dtype=np.float64)


def _calibrate(logits: Matrix, labels: Labels) -> tuple[float, float]:
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


def _groups(examples: Examples) -> list[tuple[int, ...]]:
    """Videos left out together: those with boxes one by one, all others at once, so that there are few fits."""
    boxed = {scene.video for scene in examples.scenes if scene.boxes is not None}
    rest = tuple(sorted(set(map(int, examples.videos)) - boxed))
    return [*((video,) for video in sorted(boxed)), *([rest] if rest else [])]


def _probe(features: Matrix, train: NDArray[np.bool_], test: NDArray[np.bool_], labels: Labels) -> Matrix:
    """Left-out log odds of linear heads on the untrained encoder's features: what training is compared with."""
    scores = np.zeros((int(test.sum()), labels.shape[1]))
    for j in range(labels.shape[1]):
        if len(np.unique(labels[train, j])) == 2:
            weights, biases = fit_logistic(features[train], labels[train, j])
            scores[:, j] = (features[test] @ weights + biases)[:, 0]
    return scores


def _fit_outside(inside: Matrix, outside: Sequence[Matrix]) -> tuple[Matrix, Matrix]:
    positives = np.concatenate(outside)
    labels = np.concatenate([np.zeros(len(inside), dtype=np.int64), np.ones(len(positives), dtype=np.int64)])
    return fit_logistic(np.concatenate([inside, positives]), labels)


def _activations(early: EarlyRunner, samples: Sequence[Thumbnail], tell: Tell) -> Half:
    """What the frozen part says of each picture."""
    first = early(samples[0])
    stored = np.empty((len(samples), *first.shape), dtype=np.float16)
    for k, picture in enumerate(samples):
        stored[k] = early(picture)
        if k % 1000 == 999:
            tell(f"encoded {k + 1}/{len(samples)} pictures")
    return stored


def train(
    data: Path,
    out: Path,
    *,
    exclude: Collection[str] = (),
    corrected: Sequence[tuple[Path, Path]] = (),
    quick: bool = False,
) -> str:
    """Train, write the ONNX file, and return the report, JSON.

    Args:
        data: The data folder.
        out: The ONNX file to write.
        exclude: Videos ("VID43") that nothing is fitted on, beside the test split.
        corrected: (video file, label file) of clips that a person corrected.
        quick: A minute's training that shows that everything works; its model is good for nothing.

    Raises:
        ConfigError: No pictures are left, or a corrected label file cannot be used.
    """
    effort = QUICK if quick else Effort()
    began = time.monotonic()

    def tell(line: str) -> None:
        print(f"[{time.monotonic() - began:6.0f} s] {line}", file=sys.stderr, flush=True)

    torch.manual_seed(SEED)
    torch.set_num_threads(2)
    rng = np.random.default_rng(SEED)
    left_out = {_number(name) for name in exclude}
    items = [item for item in pictures(data, test=False, every=effort.every) if item.video not in left_out]
    if not items:
        raise ConfigError(f"{data} has no labelled pictures outside {sorted(exclude)}; exclude fewer videos")
    examples = label(data, items)
    extra = [scene for k, (video, labels) in enumerate(corrected) for scene in corrected_scenes(video, labels, -1 - k)]
    made = outside_pictures(rng, 4 if quick else 24)
    flat = [picture for family in made.values() for picture in family]
    samples = make_samples(examples, extra, effort, rng)
    tell(f"{len(items)} pictures, {len(extra)} of corrected clips, {effort.augmented} made of them")
    nothing = np.zeros(len(INSTRUMENTS), dtype=np.float32)
    samples += [Sample(picture, frozenset((MADE,)), nothing, np.zeros_like(samples[0].cells), -1) for picture in flat]
    stored = _activations(EarlyRunner(), [sample.picture for sample in samples], tell)
    known = targets(samples)
    fold_rows = _Rows(samples, examples, len(flat))

    table, prior = fit_presence(data, leave_out=left_out)
    slopes, offsets, sharpness = np.ones(len(INSTRUMENTS)), np.zeros(len(INSTRUMENTS)), 1.0
    report: dict[str, Any] = {
        "pictures": {str(video): int(np.sum(examples.videos == video)) for video in np.unique(examples.videos)},
        "corrected_pictures": len(extra),
    }
    untrained = answers(Late().eval(), stored, np.arange(len(items)))[1]
    if effort.folds:
        slopes, offsets, sharpness, report["left_out_training_videos"] = _leave_out(
            data, examples, stored, known, fold_rows, untrained, left_out, effort, tell
        )
    tell("the model itself")
    late, losses = fit_late(
        stored, known, fold_rows.without(()), presence_by_action=table, epochs=effort.epochs, seed=SEED, tell=tell,
        batch=effort.batch,
    )  # fmt: skip
    features = answers(late, stored, np.concatenate([fold_rows.real, fold_rows.made]))[1]
    inside, made_features = features[: len(fold_rows.real)][~examples.outside], features[len(fold_rows.real) :]
    black = features[: len(fold_rows.real)][examples.outside]
    outside_weights, outside_bias = _fit_outside(inside, [made_features, black])
    heads = Heads(
        slopes=slopes,
        offsets=offsets,
        prior_logits=np.log(prior / (1 - prior)),
        presence=table,
        sharpness=sharpness,
        outside_weights=outside_weights,
        outside_bias=outside_bias,
    )
    report["loss"] = {"first": round(float(np.mean(losses[:5])), 3), "last": round(float(np.mean(losses[-5:])), 3)}
    report["outside_family_left_out"] = _families(inside, made_features, made)
    model = Recogniser(Early(), late, heads)
    metadata = {
        "actions": ACTIONS,
        "instruments": INSTRUMENTS,
        "licence": LICENCE,
        "videos": sorted(report["pictures"]),
    }
    full = out.with_suffix(".float32.onnx")
    out.parent.mkdir(parents=True, exist_ok=True)
    export(model, full, metadata, half=False)
    export(model, out, metadata, half=True)
    tell("the file, on test videos")
    report["untouched_test_videos"], report["file"] = _test(data, out, full, examples, untrained, effort)
    full.unlink()
    report["file"]["trained_in_s"] = round(time.monotonic() - began)
    return json.dumps(report, indent=1)


def _number(name: str) -> int:
    """43 of "VID43"."""
    digits = name.strip().upper().removeprefix("VID")
    if not digits.isdigit():
        raise ConfigError(f"{name!r} is no video; name it as VID43")
    return int(digits)


class _Rows:
    """Which samples are what."""

    def __init__(self, samples: Sequence[Sample], examples: Examples, made: int) -> None:
        self.real = np.arange(len(examples.pictures))
        self.made = np.arange(len(samples) - made, len(samples))
        self._videos = [sample.videos for sample in samples]
        self._black = set(np.flatnonzero(examples.outside).tolist())

    def without(self, videos: Collection[int]) -> NDArray[np.int64]:
        """Samples to fit on that show nothing of these videos; real black pictures only calibrate the gate's output."""
        dropped = set(videos)
        return np.array(
            [k for k, shown in enumerate(self._videos) if not (shown & dropped) and k not in self._black],
            dtype=np.int64,
        )


def _leave_out(
    data: Path,
    examples: Examples,
    stored: Half,
    known: Targets,
    rows: _Rows,
    untrained: Matrix,
    never: Collection[int],
    effort: Effort,
    tell: Tell,
) -> tuple[Matrix, Matrix, float, dict[str, Any]]:
    """Calibration (slopes, offsets, sharpness) and numbers, each video judged by a fit that has seen nothing of it."""
    shape = examples.instruments.shape
    inside = ~examples.outside
    logits, frozen, false_outside = np.zeros(shape), np.zeros(shape), np.zeros(shape[0])
    likelihood = np.zeros((shape[0], len(ACTIONS)))
    tables = {}
    groups = _groups(examples)
    for group in groups:
        tell(f"without {group}")
        test = np.isin(examples.videos, group)
        tables[group] = fit_presence(data, leave_out={*never, *group})[0]
        late, _ = fit_late(
            stored, known, rows.without(group), presence_by_action=tables[group], epochs=effort.epochs, seed=SEED,
            tell=tell, batch=effort.batch,
        )  # fmt: skip
        scores, features = answers(late, stored, np.concatenate([rows.real, rows.made]))
        real, made = features[: len(rows.real)], features[len(rows.real) :]
        logits[test] = scores[: len(rows.real)][test]
        frozen[test] = _probe(untrained, ~test & inside, test, examples.instruments)
        weights, bias = _fit_outside(real[~test & inside], [made, real[~test & examples.outside]])
        false_outside[test] = _sigmoid((real[test] @ weights + bias)[:, 0])
        seen = test & inside
        numbers = instrument_numbers(logits[seen], examples.instruments[seen], examples.videos[seen])
        tell(f"without {group}: mAP {numbers['mAP']}")
    scales = [_calibrate(logits[inside, j], examples.instruments[inside, j]) for j in range(shape[1])]
    slopes, offsets = np.array(scales).T
    calibrated = logits * slopes + offsets
    for group in groups:
        test = np.isin(examples.videos, group)
        likelihood[test] = action_likelihood(calibrated[test], tables[group])
    named = inside & (examples.actions >= 0)
    sharpness = float(
        np.exp(
            minimize_scalar(
                lambda log_s: balanced_log_loss(likelihood[named], examples.actions[named], float(np.exp(log_s))),
                bounds=(-4.0, 0.0),
                method="bounded",
            ).x
        )
    )
    prior = fit_presence(data, leave_out=never)[1]
    natural = _sigmoid(calibrated + np.log(prior / (1 - prior)))
    labels, videos = examples.instruments[inside], examples.videos[inside]
    return slopes, offsets, sharpness, {
        "left_out_together": [list(group) for group in groups],
        "instruments": instrument_numbers(natural[inside], labels, videos),
        "frozen_features_linear_probe": instrument_numbers(_sigmoid(frozen[inside]), labels, videos),
        "actions": action_numbers(likelihood[inside], examples.actions[inside], sharpness),
        "calibration_slopes": dict(zip(INSTRUMENTS, slopes.round(3).tolist(), strict=True)),
        "action_sharpness": round(sharpness, 3),
        "outside_false_closures": int(np.sum(false_outside[inside] >= 0.9)),
        "outside_black": _separation(false_outside[inside], false_outside[examples.outside]),
    }  # fmt: skip


def _separation(inside: Matrix, outside: Matrix) -> dict[str, float]:
    """Area under the curve of inside against outside, and the share of outside found at 0.9."""
    if not len(outside):
        return {}
    truth = np.concatenate([np.zeros(len(inside)), np.ones(len(outside))])
    area = roc_auc_score(truth, np.concatenate([inside, outside]))
    return {"auc": round(float(area), 4), "recall_at_0.9": round(float(np.mean(outside >= 0.9)), 3)}


def _families(inside: Matrix, made_features: Matrix, made: dict[str, list[Thumbnail]]) -> dict[str, Any]:
    """Each family of made pictures found by a head that has seen the others; inside pictures are those fitted on."""
    names = np.repeat(list(made), [len(family) for family in made.values()])
    found = {}
    for family in made:
        weights, bias = _fit_outside(inside, [made_features[names != family]])
        scores = [_sigmoid((part @ weights + bias)[:, 0]) for part in (inside, made_features[names == family])]
        found[family] = _separation(scores[0], scores[1])
    return found


def _run_time(model: Path, shown: Sequence[Thumbnail]) -> tuple[Matrix, Matrix, Matrix]:
    """Instruments, log actions and out of body through the run-time recogniser."""
    recogniser = OnnxRecogniser(model, actions=ACTIONS, instruments=INSTRUMENTS, threads=1)
    header = FrameHeader(stream_id="", session_id="", seq=0, pts_s=0.0, captured_ns=0)
    given = [recogniser.evidence(header, picture) for picture in shown]
    return (
        np.array([answer.instruments for answer in given]),
        np.log(np.maximum([answer.actions for answer in given], 1e-12)),
        np.array([answer.out_of_body for answer in given], dtype=np.float64),
    )


def _test(
    data: Path, out: Path, full: Path, examples: Examples, untrained: Matrix, effort: Effort
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Numbers of the written file on the test videos, and the file's own."""
    test = label(data, list(pictures(data, test=True, every=effort.every)))
    instruments, actions, outside = _run_time(out, test.pictures)
    exact = _run_time(full, test.pictures)
    early = EarlyRunner()
    features = answers(
        Late().eval(), np.stack([early(picture) for picture in test.pictures]), np.arange(len(test.pictures))
    )[1]
    inside = ~examples.outside
    both = np.concatenate([untrained[inside], features])
    is_test = np.arange(len(both)) >= inside.sum()
    labels = np.concatenate([examples.instruments[inside], test.instruments])
    frozen = _sigmoid(_probe(both, ~is_test, is_test, labels))
    difference = max(np.abs(instruments - exact[0]).max(), np.abs(np.exp(actions) - np.exp(exact[1])).max())
    numbers = {
        "pictures": {str(video): int(np.sum(test.videos == video)) for video in np.unique(test.videos)},
        "instruments": instrument_numbers(instruments, test.instruments, test.videos),
        "frozen_features_linear_probe": instrument_numbers(frozen, test.instruments, test.videos),
        "actions": action_numbers(actions, test.actions),
        "outside_false_closures": int(np.sum(outside >= 0.9)),
    }
    return numbers, {
        "sha256": hashlib.sha256(out.read_bytes()).hexdigest(),
        "bytes": out.stat().st_size,
        "ms_per_frame_one_thread": speed(out, effort.runs),
        "test_mAP_as_float32": instrument_numbers(exact[0], test.instruments, test.videos)["mAP"],
        "largest_difference_to_float32": round(float(difference), 5),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the data folder")
    parser.add_argument("--out", type=Path, required=True, help="the ONNX file to write")
    parser.add_argument("--exclude", default="", metavar="VID,VID", help="videos to fit nothing on")
    parser.add_argument(
        "--add",
        nargs=2,
        action="append",
        default=[],
        type=Path,
        metavar=("VIDEO", "LABELS"),
        help="a video and its corrected labels (dataset label)",
    )
    parser.add_argument("--quick", action="store_true", help="a minute's training, to see that it works")
    options = parser.parse_args(arguments)
    pairs = [(video, labels) for video, labels in options.add]
    exclude = [name for name in options.exclude.split(",") if name]
    print(train(options.data, options.out, exclude=exclude, corrected=pairs, quick=options.quick))


if __name__ == "__main__":
    main()
