"""Calibration and numbers of the recogniser on training videos, each judged by a fit that has seen nothing of it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from stream_agent.training.annotations import ACTIONS, INSTRUMENTS
from stream_agent.training.fitting import Tell
from stream_agent.training.measures import Matrix, action_numbers, instrument_numbers
from stream_agent.training.outside import fit_outside, separation
from stream_agent.training.recogniser_examples import Examples
from stream_agent.training.recogniser_heads import (
    action_likelihood,
    calibrate,
    fit_presence,
    fit_sharpness,
    probe,
    sigmoid,
)
from stream_agent.training.recogniser_material import Material


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """How log odds become probabilities.

    Attributes:
        slopes: Per instrument.
        offsets: Per instrument.
        sharpness: Exponent of the action likelihoods.
    """

    slopes: Matrix
    offsets: Matrix
    sharpness: float


UNCALIBRATED: Final = Calibration(np.ones(len(INSTRUMENTS)), np.zeros(len(INSTRUMENTS)), 1.0)


def leave_out(
    data: Path, material: Material, *, never: Collection[int], tell: Tell
) -> tuple[Calibration, dict[str, Any]]:
    """Calibration and numbers; nothing is fitted on the videos `never`, whichever else are left out."""
    examples = material.examples
    shape = examples.instruments.shape
    inside = ~examples.outside
    logits, frozen, false_outside = np.zeros(shape), np.zeros(shape), np.zeros(shape[0])
    tables = {}
    groups = _groups(examples)
    for group in groups:
        tell(f"without {group}")
        test = np.isin(examples.videos, group)
        tables[group] = fit_presence(data, leave_out={*never, *group})[0]
        late, _ = material.fit(without=group, presence=tables[group], tell=tell)
        scores, real, made = material.answers(late)
        logits[test] = scores[test]
        frozen[test] = probe(material.untrained, ~test & inside, test, examples.instruments)
        weights, bias = fit_outside(real[~test & inside], [made, real[~test & examples.outside]])
        false_outside[test] = sigmoid((real[test] @ weights + bias)[:, 0])
        seen = test & inside
        numbers = instrument_numbers(logits[seen], examples.instruments[seen], examples.videos[seen])
        tell(f"without {group}: mAP {numbers['mAP']}")
    scales = [calibrate(logits[inside, j], examples.instruments[inside, j]) for j in range(shape[1])]
    slopes, offsets = np.array(scales).T
    calibrated = logits * slopes + offsets
    likelihood = np.zeros((shape[0], len(ACTIONS)))
    for group in groups:
        test = np.isin(examples.videos, group)
        likelihood[test] = action_likelihood(calibrated[test], tables[group])
    named = inside & (examples.actions >= 0)
    sharpness = fit_sharpness(likelihood[named], examples.actions[named])
    prior = fit_presence(data, leave_out=never)[1]
    natural = sigmoid(calibrated + np.log(prior / (1 - prior)))
    labels, videos = examples.instruments[inside], examples.videos[inside]
    return Calibration(slopes, offsets, sharpness), {
        "left_out_together": [list(group) for group in groups],
        "instruments": instrument_numbers(natural[inside], labels, videos),
        "frozen_features_linear_probe": instrument_numbers(sigmoid(frozen[inside]), labels, videos),
        "actions": action_numbers(likelihood[inside], examples.actions[inside], sharpness),
        "calibration_slopes": dict(zip(INSTRUMENTS, slopes.round(3).tolist(), strict=True)),
        "action_sharpness": round(sharpness, 3),
        "outside_false_closures": int(np.sum(false_outside[inside] >= 0.9)),
        "outside_black": separation(false_outside[inside], false_outside[examples.outside]),
    }


def _groups(examples: Examples) -> list[tuple[int, ...]]:
    """Videos left out together: those with boxes one by one, all others at once, so that there are few fits."""
    boxed = {scene.video for scene in examples.scenes if scene.boxes is not None}
    rest = tuple(sorted(set(map(int, examples.videos)) - boxed))
    return [*((video,) for video in sorted(boxed)), *([rest] if rest else [])]
