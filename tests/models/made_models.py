"""Small models and records of them, made up so that every figure can be worked out by hand."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import msgspec

from stream_agent.config import configs_directory
from stream_agent.evaluation.dataset import TRAIN_VIDEOS
from stream_agent.models.model_files import model_files
from stream_agent.models.record import Answered, EvaluationRecord, FittedFold, Side, make_record, write_record

VIDEOS = tuple(sorted(TRAIN_VIDEOS))[:20]
PER_VIDEO = 5
DATA = {"total_video_info.json": "0" * 64}
SHIPPED = configs_directory() / "procedures" / "cholecystectomy"
BASE = "ba5e" * 3


def statistical_model(folder: Path, *, procedures: int) -> Path:
    """A label model like the shipped one, told from it by how many procedures it says it was counted on."""
    tree = json.loads((SHIPPED / "planner.json").read_text())
    tree["procedures"] = procedures
    folder.mkdir(parents=True)
    (folder / "planner.json").write_text(json.dumps(tree))
    (folder / "model_card.md").write_text("# A made-up model\n")
    return folder


def adapter(folder: Path, *, value: float) -> Path:
    """What peft saves, with one number for weights."""
    header = json.dumps({"lora": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"r": 8}')
    (folder / "adapter_model.safetensors").write_bytes(
        struct.pack("<Q", len(header)) + header + struct.pack("<f", value)
    )
    return folder


def side(
    files: dict[str, str], *, right: int = 3, sure: float = 0.6, ms: float = 2.0, videos: tuple[str, ...] = VIDEOS
) -> Side:
    """A model that is right about `right` of five samples of every video, each time `sure` of it, after `ms`."""
    answers = tuple(
        Answered(
            video=video,
            index=index,
            target="Dissection",
            ranked=("Dissection", "Coagulation", "Aspiration")
            if index < right
            else ("Coagulation", "Dissection", "Aspiration"),
            probabilities=(sure, (1 - sure) / 2, (1 - sure) / 2),
            elapsed_ms=ms,
        )
        for video in videos
        for index in range(PER_VIDEO)
    )
    folds = tuple(FittedFold(tuple(v for v in videos if v != video), (video,)) for video in videos)
    return Side(name="made up", files=files, fitted_on=videos if files else (), folds=folds, answers=answers)


def record_of(
    candidate: Path, in_use: Path | None, *, ours: Side | None = None, theirs: Side | None = None
) -> EvaluationRecord:
    """A sound record of the two, equally good unless told otherwise."""
    files = model_files(candidate)
    used = {} if in_use is None else model_files(in_use)
    kind = "adapter" if "adapter_config.json" in files else "statistical"
    base = BASE if kind == "adapter" else ""
    first = msgspec.structs.replace(ours or side(files), files=files, base=base)
    second = msgspec.structs.replace(theirs or side(used), files=used, base=base)
    if not used:
        second = msgspec.structs.replace(second, fitted_on=(), folds=(FittedFold((), VIDEOS),))
    return make_record("adapter" if kind == "adapter" else "statistical", first, second, data=DATA, command="made up")


def written(made: EvaluationRecord, path: Path) -> Path:
    write_record(made, path)
    return path
