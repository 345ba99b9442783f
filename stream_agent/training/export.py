"""Conversations for other programs' trainers, in the layout that LLaMA-Factory reads (its data/README.md, "sharegpt" format).

    DIR/dataset_info.json          names the two files below, their columns and the tags of their turns
    DIR/surgical_actions_train.json, …_validation.json
                                   [{"messages": [{"role": …, "content": …}, …], "images": ["images/….png", …]}, …]
    DIR/images/                    frames as they are shown; as many as there are `<image>` in the texts
    DIR/README.md                  terms and protocol

Nothing of a test video can be in it: `data.py` gives no such example.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2

from stream_agent.errors import ConfigError
from stream_agent.training.config import TrainingConfig
from stream_agent.training.data import Example, messages, pictures_of
from stream_agent.training.model_card import TERMS
from stream_agent.training.teaching import teaching

_NAME = "surgical_actions"

_README = """\
# Conversations of training videos

{terms}

{counts}; {track} track, {history} history. None of the 15 test videos of CholecT50 is in it. Prompts are
those of `stream_agent`, digest {prompt}. With LLaMA-Factory: `dataset_dir: <this folder>`, `media_dir: <this folder>`,
`dataset: {name}_train`, and `{name}_validation` to evaluate on.
"""


def export(config: TrainingConfig, out: Path) -> dict[str, int]:
    """Write the examples of a training's configuration; how many of each part.

    Raises:
        ConfigError: `out` holds something already, or the data cannot be read.
    """
    if out.is_file() or (out.exists() and any(out.iterdir())):
        raise ConfigError(f"--out {out} holds something already; name another folder, or remove it")
    lesson = teaching(config)
    unfinished = out.with_name(out.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    (unfinished / "images").mkdir(parents=True)
    parts = {"train": lesson.examples, "validation": lesson.validation}
    for part, examples in parts.items():
        rows = [_row(example, unfinished) for example in examples]
        _write(unfinished / f"{_NAME}_{part}.json", rows)
    shown = any(pictures_of(example) for examples in parts.values() for example in examples)
    _write(unfinished / "dataset_info.json", {f"{_NAME}_{part}": _described(part, shown) for part in parts})
    counts = {part: len(examples) for part, examples in parts.items()}
    told = _README.format(
        terms=TERMS,
        counts=", ".join(f"{count} conversations to {part}" for part, count in counts.items()),
        track=config.data.track,
        history=config.data.history,
        prompt=lesson.factory.digest,
        name=_NAME,
    )
    (unfinished / "README.md").write_text(told, encoding="utf-8")
    if out.exists():
        out.rmdir()
    unfinished.replace(out)
    return counts


def _row(example: Example, folder: Path) -> dict[str, Any]:
    turns = messages(example)
    images = []
    for picture in pictures_of(example):
        path = folder / "images" / f"{example.video}_{picture.id}.png"
        if not path.exists():
            cv2.imwrite(str(path), cv2.cvtColor(picture.image, cv2.COLOR_RGB2BGR))
        images.append(f"images/{path.name}")
    marks = sum(turn["content"].count("<image>") for turn in turns)
    if marks != len(images):
        raise ConfigError(
            f"{example.video} clip {example.index}: the texts say <image> {marks} times for {len(images)} frames; take it out of "
            "knowledge.md, the goal or the caption"
        )
    return {"messages": turns, "images": images} if images else {"messages": turns}


def _described(part: str, shown: bool) -> dict[str, Any]:
    return {
        "file_name": f"{_NAME}_{part}.json",
        "formatting": "sharegpt",
        "columns": {"messages": "messages", **({"images": "images"} if shown else {})},
        "tags": {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
            "system_tag": "system",
        },
    }


def _write(path: Path, tree: dict[str, Any] | Sequence[Any]) -> None:
    path.write_text(json.dumps(tree, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
