"""Conversations for other trainers: what LLaMA-Factory's documentation asks of a folder is there, and it is what we teach."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from stream_agent.cli import main
from tests.training.test_data import DONE, clips, written


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, Path]:
    """An annotation of three training videos and a test video, and frames."""
    names = ("VID01", "VID02", "VID68", "VID73")
    sap = written(tmp_path / "sap.json", {name: clips(name, *DONE, shift_s=at) for at, name in enumerate(names)})
    for at, video in enumerate(names):
        (tmp_path / "frames" / video).mkdir(parents=True)
        for index in range(len(DONE)):
            path = tmp_path / "frames" / video / f"{index * 40 + 38 + at:06d}.png"
            cv2.imwrite(str(path), np.full((84, 112, 3), (200, 100, 40 * index), np.uint8))
    return sap, tmp_path / "frames"


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["train", "export", *map(str, arguments)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def loaded(folder: Path, part: str) -> list[dict[str, Any]]:
    """The part as LLaMA-Factory finds it: by `dataset_info.json` alone."""
    about = json.loads((folder / "dataset_info.json").read_text())[f"surgical_actions_{part}"]
    rows = json.loads((folder / about["file_name"]).read_text())
    tags, columns = about["tags"], about["columns"]
    assert about["formatting"] == "sharegpt"
    for row in rows:
        turns = row[columns["messages"]]
        roles = [turn[tags["role_tag"]] for turn in turns]
        assert roles == [tags["system_tag"], tags["user_tag"], tags["assistant_tag"]]
        images = row[columns["images"]] if "images" in columns else []
        assert sum(turn[tags["content_tag"]].count("<image>") for turn in turns) == len(images)
        assert all((folder / image).is_file() for image in images)
    return list(rows)


def test_the_direct_form_is_written_with_its_frames(data: tuple[Path, Path], tmp_path: Path) -> None:
    sap, frames = data
    out = tmp_path / "out"
    settings = ("data.tasks=[rank,plan]", "data.validation=0.3", "planner.knowledge=short")
    assert run("--out", out, f"data.sap={sap}", f"data.frames={frames}", *settings) == 0
    train, validation = loaded(out, "train"), loaded(out, "validation")
    assert (len(train), len(validation)) == (16, 8)
    picture = cv2.imread(str(out / train[0]["images"][0]))
    assert picture is not None and tuple(picture[0, 0][:2]) == (200, 100), "in its own colours"
    text = "".join(path.read_text() for path in out.glob("*.json"))
    assert "VID73" not in text and not list(out.glob("images/VID73*"))
    assert "CC BY-NC-SA 4.0" in (out / "README.md").read_text()


def test_labels_alone_are_written_without_frames(data: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("--out", out, f"data.sap={data[0]}", "planner.memory=labels_only", "data.tasks=[rank]") == 0
    rows = loaded(out, "train")
    assert rows and all(set(row) == {"messages"} for row in rows)
    assert not list((out / "images").iterdir())


def test_nothing_is_overwritten_and_what_is_missing_is_said(
    data: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    assert run("--out", tmp_path / "out", f"data.sap={data[0]}", "planner.memory=labels_only") == 2
    assert "holds something already" in capsys.readouterr().err
    assert run("--out", tmp_path / "new", f"data.sap={data[0]}") == 2
    assert "shows frames; set data.frames=DIR" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
