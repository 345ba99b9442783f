"""Made-up procedures and label files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from stream_agent.evaluation.dataset import TEST_VIDEOS, TRAIN_VIDEOS, SapClip

_ACTIONS = ("Dissection", "Vessel Clipping", "Tissue Retraction", "Dissection", "Coagulation", "Dissection")
_VERBS = ("grasp", "retract", "dissect", "coagulate", "clip", "cut", "aspirate", "irrigate", "pack", "null_verb")

LabelFile = Callable[[Path, Mapping[str, list[int]]], Path]


@pytest.fixture(scope="session")
def made_videos() -> dict[str, tuple[SapClip, ...]]:
    """Clips of three kinds under the names of the fifty videos."""
    return {name: _video(name) for name in sorted(TEST_VIDEOS | TRAIN_VIDEOS)}


@pytest.fixture(scope="session")
def label_file() -> LabelFile:
    """`label_file(path, {frame: [verb, …]})` writes a label file of CholecT50 and returns its path."""

    def write(path: Path, frames: Mapping[str, list[int]]) -> Path:
        annotations = {
            frame: [[0, 0, 1.0, -1.0, -1.0, -1.0, -1.0, verb, 0, 1.0, -1.0, -1.0, -1.0, -1.0, 0] for verb in verbs]
            for frame, verbs in frames.items()
        }
        categories = {"verb": {str(index): verb for index, verb in enumerate(_VERBS)}}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"categories": categories, "fps": 1, "annotations": annotations}))
        return path

    return write


def _video(name: str) -> tuple[SapClip, ...]:
    shift = int(name.removeprefix("VID")) % 3
    actions = _ACTIONS[shift:]
    return tuple(
        SapClip(
            name,
            index,
            (40 + shift) * index,
            action,
            action,
            is_sample=index > 0,
            next_action=actions[index + 1] if index + 1 < len(actions) else "",
        )
        for index, action in enumerate(actions)
    )
