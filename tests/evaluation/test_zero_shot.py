"""The zero-shot row, with a rehearsed model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stream_agent.evaluation import zero_shot
from stream_agent.evaluation.dataset import TEST_VIDEOS, TRAIN_VIDEOS, SapClip
from stream_agent.evaluation.triplets import encode_videos

Made = dict[str, tuple[SapClip, ...]]
REHEARSED = ("planner.kind=rehearsed", "planner.knowledge=none", "planner.question=coded")


@pytest.fixture
def sap(tmp_path: Path, made_videos: Made) -> Path:
    path = tmp_path / "sap.json"
    path.write_bytes(encode_videos(made_videos))
    return path


@pytest.mark.parametrize(("flags", "videos"), [((), TEST_VIDEOS), (("--train",), TRAIN_VIDEOS)])
def test_test_videos_are_asked_about_and_with_train_none_of_them(
    sap: Path, made_videos: Made, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], videos: frozenset[str]
) -> None:
    assert zero_shot.main(["--sap", str(sap), *flags, *REHEARSED]) == 0
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert row["samples"] == sum(clip.is_sample for name in videos for clip in made_videos[name])
    assert (row["question"], row["knowledge"], row["permutations"]) == ("coded", "none", 0)


def test_a_model_that_knows_the_answer_is_given_credit(sap: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever always puts Dissection first, wherever it may, is right exactly as often as it comes."""
    beliefs = "{beliefs: {Dissection: 0.0, Vessel Clipping: -3.0, Tissue Retraction: -4.0, Coagulation: -5.0, Aspiration: -6.0}}"
    assert zero_shot.main(["--sap", str(sap), *REHEARSED, f"planner.rehearsed_scores=[{beliefs}]"]) == 0
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 40 < row["SLAcc"][0] < 70 and row["SLAcc"][2] > row["SLAcc"][1] > row["SLAcc"][0]


def test_mistakes_are_one_line(sap: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert zero_shot.main(["--sap", str(sap), "planner.kind=none"]) == 2
    assert "is no language model" in capsys.readouterr().out
    empty = tmp_path / "empty.json"
    empty.write_text("{}")
    assert zero_shot.main(["--sap", str(empty), *REHEARSED]) == 2
    assert "has no sample" in capsys.readouterr().out
