"""A made-up annotation in the published layout, and what the agent's own backend answers with an adapter."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_agent.config import BackendConfig
from stream_agent.planner.backends import build_backend
from stream_agent.planner.backends.protocol import Call
from stream_agent.prompts import CODES
from stream_agent.training.data import Example

ACTIONS = ("Dissection", "Vessel Clipping", "Dissection", "Coagulation", "Dissection")
VIDEOS = ("VID01", "VID02", "VID04", "VID73")
"""The last one is a test video: it stands in the file and must be seen nowhere else."""


def write_sap(path: Path, videos: Iterable[str] = VIDEOS, actions: Sequence[str] = ACTIONS) -> Path:
    """`total_video_info.json` of videos with clips of 90 s each, all but the first a sample."""
    entries = {}
    for video in videos:
        shift = int(video.removeprefix("VID")) % 2
        labels = actions[shift:]
        entries[video] = {
            str(number): {
                "Action": label,
                "Action_Reg": label,
                "Frame_id": 90 * number + int(video.removeprefix("VID")) % 7,
                "Test": number > 0,
                "Distant Actions": labels[: max(0, number - 1)],
                "Nearest Action": labels[number - 1] if number else "",
                "Next Action": labels[number + 1] if number + 1 < len(labels) else "",
            }
            for number, label in enumerate(labels)
        }
    path.write_text(json.dumps(entries))
    return path


def code_scores(model: Path, adapters: dict[str, Path], asked: Sequence[Example]) -> dict[str, NDArray[np.float64]]:
    """Log-probabilities of the codes per adapter, `""` for the base, in the agent's own backend: (examples, codes) each."""

    async def run() -> dict[str, NDArray[np.float64]]:
        config = BackendConfig(
            kind="transformers", model=model, adapters=adapters, device="cpu", dtype="float32", threads=1
        )
        backend = build_backend(config)
        try:
            await backend.start()
            codes = [CODES[: len(example.choices)] for example in asked]
            prompts = [example.prompt for example in asked]
            return {
                name: await backend.score(prompts, codes, Call(f"test-{name}", adapter=name))
                for name in ("", *adapters)
            }
        finally:
            await backend.close()

    return asyncio.run(run())


def tiny_training(folder: Path, model: Path, own: Mapping[str, Any], over: Mapping[str, Any]) -> list[str]:
    """Settings of a training of seconds: what all trainers' tests share, then the test's `own`, then `over` (a__b for a.b)."""
    sap = folder / "sap.json"
    write_sap(sap)
    given = {
        "data.sap": sap,
        "data.tasks": "[rank]",
        "data.validation": 0,
        "planner.model": model,
        "planner.form": "indirect",
        "planner.memory": "labels_only",
        "planner.knowledge": "none",
        "planner.device": "cpu",
        "planner.threads": 1,
        "optimiser.learning_rate": 0.005,
        "optimiser.batch": 4,
        "optimiser.schedule": "constant",
        "optimiser.warmup": 0,
        **own,
        **{key.replace("__", "."): value for key, value in over.items()},
    }
    return [f"{key}={value}" for key, value in given.items()]
