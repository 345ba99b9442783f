"""`dataset label`: what is recognised can be corrected by a person and played back."""

from __future__ import annotations

from pathlib import Path

import pytest

from stream_agent.cli import main
from stream_agent.config import load_config
from stream_agent.errors import ConfigError
from stream_agent.labelling import as_csv, recognised_clips, write_labels
from stream_agent.messages import Clip
from stream_agent.perception.timeline import load_labels
from stream_agent.procedure import load_pack

HEADER = "second,Grasper,Bipolar,Hook,Scissors,Clipper,Irrigator,SpecimenBag"
HOOK, CLIPPER = "1,0,1,0,0,0,0", "1,0,0,0,1,0,0"
ACTIONS = ("Dissection", "Vessel Clipping", "Tissue Retraction", "Coagulation", "Aspiration")


@pytest.fixture
def signals(tmp_path: Path) -> Path:
    """A minute with the hook, half a minute with the clip applier, a minute with the hook."""
    rows = [HOOK] * 60 + [CLIPPER] * 30 + [HOOK] * 60
    path = tmp_path / "case.csv"
    path.write_text("\n".join([HEADER, *(f"{second},{row}" for second, row in enumerate(rows))]) + "\n")
    return path


def label(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["dataset", "label", *map(str, arguments)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_labels_are_written_and_play_back_to_the_same_clips(
    signals: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "labels.csv"
    assert label(signals, "--out", labels) == 0
    assert f"recogniser.labels={labels}" in capfd.readouterr().out
    starts = load_labels(labels, ACTIONS)
    assert [action for _, action in starts] == ["Dissection", "Vessel Clipping", "Dissection", ""]
    assert abs(starts[1][0] - 60) <= 10 and abs(starts[2][0] - 90) <= 10
    settings = ["recogniser.kind=timeline", f"recogniser.labels={labels}", f"source.uri={signals}"]
    config = load_config(None, settings)
    pack = load_pack(config.procedure.pack)
    again = recognised_clips(config, pack, notice=print, at=lambda _: None)
    assert [clip.action for clip in again] == ["Dissection", "Vessel Clipping", "Dissection"]
    assert [abs(clip.start_pts_s - start) <= 1.0 for clip, (start, _) in zip(again, starts, strict=False)] == [True] * 3


def test_a_corrected_file_is_never_overwritten(
    signals: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("start_s,action\n0,Dissection\n")
    assert label(signals, "--out", labels) == 2
    assert "may hold corrections" in capfd.readouterr().err
    assert labels.read_text() == "start_s,action\n0,Dissection\n"


@pytest.mark.parametrize(
    ("video", "out", "said"),
    [
        ("{tmp}/none.mp4", "{tmp}/out.csv", "does not exist"),
        ("{signals}", "{tmp}/no/folder/out.csv", "name a file in a writable folder"),
        ("rtsp://127.0.0.1:9/x", "{tmp}/out.csv", "cannot be opened"),
    ],
)
def test_mistakes_are_one_line(
    signals: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], video: str, out: str, said: str
) -> None:
    assert label(video.format(tmp=tmp_path, signals=signals), "--out", out.format(tmp=tmp_path)) != 0
    errors = capfd.readouterr().err
    assert said in errors and "Traceback" not in errors
    assert not (tmp_path / "out.csv").exists()


def test_a_gap_between_clips_has_no_action() -> None:
    text = as_csv([Clip("Dissection", 1.5, 20.0, 0.9), Clip("Aspiration", 30.0, 41.25, 0.5)])
    assert text == "start_s,action,confidence\n1.5,Dissection,0.90\n20,,\n30,Aspiration,0.50\n41.25,,\n"


def test_nothing_recognised_is_a_file_of_its_header(tmp_path: Path) -> None:
    write_labels(tmp_path / "labels.csv", [])
    assert (tmp_path / "labels.csv").read_text() == "start_s,action,confidence\n"
    with pytest.raises(ConfigError, match="holds no label"):
        load_labels(tmp_path / "labels.csv", ACTIONS)
