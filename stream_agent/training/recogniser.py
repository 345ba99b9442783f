"""Trains the recogniser and reports every number that its model card quotes.

    run_agent.py train recogniser --data ../shared/data --out configs/procedures/cholecystectomy

The late part of an ImageNet encoder and a map of where each instrument is are trained on labelled pictures and on pictures
made of them (`augment`). Log odds are calibrated on videos left out of training. Nothing of the test split is read before
everything is fitted.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from stream_agent.errors import ConfigError
from stream_agent.messages import FrameHeader
from stream_agent.perception.onnx import OnnxRecogniser
from stream_agent.perception.protocol import Thumbnail
from stream_agent.training.annotations import ACTIONS, INSTRUMENTS
from stream_agent.training.effort import QUICK, Effort
from stream_agent.training.fitting import answers
from stream_agent.training.measures import Matrix, action_numbers, instrument_numbers, speed
from stream_agent.training.network import Early, EarlyRunner, Heads, Late, Recogniser, export
from stream_agent.training.outside import families_left_out, fit_outside
from stream_agent.training.pictures import pictures
from stream_agent.training.recogniser_examples import label
from stream_agent.training.recogniser_folds import UNCALIBRATED, leave_out
from stream_agent.training.recogniser_heads import fit_presence, probe, sigmoid
from stream_agent.training.recogniser_material import SEED, Material

LICENCE: Final = "CC BY-NC-SA 4.0 (fitted on CholecT50, Cholec80 and CholecT50-SAP); encoder Apache-2.0"


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
    never = {_number(name) for name in exclude}
    material = Material(data, exclude=never, corrected=corrected, effort=effort, tell=tell)
    report: dict[str, Any] = {"pictures": material.examples.by_video(), "corrected_pictures": material.corrected}
    calibration = UNCALIBRATED
    if effort.folds:
        calibration, report["left_out_training_videos"] = leave_out(data, material, never=never, tell=tell)
    tell("the model itself")
    presence, prior = fit_presence(data, leave_out=never)
    late, losses = material.fit(without=(), presence=presence, tell=tell)
    _, real, made = material.answers(late)
    inside, black = real[~material.examples.outside], real[material.examples.outside]
    outside_weights, outside_bias = fit_outside(inside, [made, black])
    heads = Heads(
        slopes=calibration.slopes,
        offsets=calibration.offsets,
        prior_logits=np.log(prior / (1 - prior)),
        presence=presence,
        sharpness=calibration.sharpness,
        outside_weights=outside_weights,
        outside_bias=outside_bias,
    )
    report["loss"] = {"first": round(float(np.mean(losses[:5])), 3), "last": round(float(np.mean(losses[-5:])), 3)}
    report["outside_family_left_out"] = families_left_out(inside, made, material.outside)
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
    report["untouched_test_videos"], report["file"] = _test(data, out, full, material, effort)
    full.unlink()
    report["file"]["trained_in_s"] = round(time.monotonic() - began)
    return json.dumps(report, indent=1)


def _number(name: str) -> int:
    """43 of "VID43"."""
    digits = name.strip().upper().removeprefix("VID")
    if not digits.isdigit():
        raise ConfigError(f"{name!r} is no video; name it as VID43")
    return int(digits)


def _test(
    data: Path, out: Path, full: Path, material: Material, effort: Effort
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Numbers of the written file on the test videos, and the file's own."""
    test = label(data, list(pictures(data, test=True, every=effort.every)))
    instruments, actions, outside = _run_time(out, test.pictures)
    exact = _run_time(full, test.pictures)
    early = EarlyRunner()
    features = answers(
        Late().eval(), np.stack([early(picture) for picture in test.pictures]), np.arange(len(test.pictures))
    )[1]
    inside = ~material.examples.outside
    both = np.concatenate([material.untrained[inside], features])
    is_test = np.arange(len(both)) >= inside.sum()
    labels = np.concatenate([material.examples.instruments[inside], test.instruments])
    frozen = sigmoid(probe(both, ~is_test, is_test, labels))
    difference = max(np.abs(instruments - exact[0]).max(), np.abs(np.exp(actions) - np.exp(exact[1])).max())
    numbers = {
        "pictures": test.by_video(),
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
