"""What a recogniser's answers are worth: average precision, F1, actions, out of body, and how long an answer takes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score

from stream_agent.messages import FrameHeader
from stream_agent.perception.onnx import OnnxRecogniser
from stream_agent.perception.thumbnail import thumbnail
from stream_agent.training.annotations import ACTIONS, INSTRUMENTS

Labels = NDArray[np.int64]
Matrix = NDArray[np.float64]


def instrument_numbers(probabilities: Matrix, labels: Labels, videos: Labels) -> dict[str, Any]:
    """Average precision (scores of all videos pooled), F1 at 0.5 and prevalence per instrument that occurs; the means.

    `mAP_per_video` is the mean over videos of the mean over the instruments that a video shows in some but not all pictures.
    """
    table = {
        name: {
            "ap": round(float(average_precision_score(labels[:, j], probabilities[:, j])), 3),
            "f1": round(float(f1_score(labels[:, j], probabilities[:, j] >= 0.5, zero_division=0.0)), 3),
            "prevalence": round(float(labels[:, j].mean()), 3),
        }
        for j, name in enumerate(INSTRUMENTS)
        if labels[:, j].any()
    }
    by_video = {}
    for video in np.unique(videos):
        own = videos == video
        scores = [
            average_precision_score(labels[own, j], probabilities[own, j])
            for j in range(labels.shape[1])
            if 0 < labels[own, j].sum() < own.sum()
        ]
        if scores:
            by_video[str(video)] = round(float(np.mean(scores)), 3)
    return {
        "n": len(labels),
        "mAP": round(float(np.mean([row["ap"] for row in table.values()])), 3),
        "mean_F1": round(float(np.mean([row["f1"] for row in table.values()])), 3),
        "mAP_per_video": round(float(np.mean(list(by_video.values()))), 3) if by_video else None,
        "by_video": by_video,
        "per_instrument": table,
    }


def balanced_log_loss(log_likelihood: Matrix, actions: Labels, sharpness: float = 1.0) -> float:
    """Mean over the actions that occur of the mean log loss; log 5 = 1.609 for knowing nothing."""
    scores = sharpness * log_likelihood
    log_p = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
    return float(np.mean([-log_p[actions == k, k].mean() for k in range(len(ACTIONS)) if np.any(actions == k)]))


def action_numbers(log_likelihood: Matrix, actions: Labels, sharpness: float = 1.0) -> dict[str, Any]:
    """Accuracy, mean recall and log loss over the pictures that have an action."""
    known = actions >= 0
    if not known.any():
        return {"n": 0}
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


def speed(model: Path, runs: int) -> dict[str, dict[str, float]]:
    """Median ms from a frame's planes to evidence, resize included, one thread; on a busy machine only `cpu` tells."""
    recogniser = OnnxRecogniser(model, actions=ACTIONS, instruments=INSTRUMENTS, threads=1)
    rng = np.random.default_rng(0)
    found = {}
    for width, height in ((854, 480), (1920, 1080)):
        planes = rng.integers(0, 256, (height * 3 // 2, width), dtype=np.uint8)
        header = FrameHeader(
            stream_id="", session_id="", seq=0, pts_s=0.0, captured_ns=0, width=width, height=height, layout="yuv420p"
        )
        wall_ms, cpu_ms = [], []
        for _ in range(runs):
            began, used = time.perf_counter(), time.process_time()
            recogniser.evidence(header, thumbnail(planes, header))
            wall_ms.append((time.perf_counter() - began) * 1e3)
            cpu_ms.append((time.process_time() - used) * 1e3)
        found[f"{width}x{height}"] = {
            "wall": round(float(np.median(wall_ms)), 2),
            "cpu": round(float(np.median(cpu_ms)), 2),
        }
    return found
