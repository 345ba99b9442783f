"""CholecT50-SAP: what its loader promises, on made files and on the real one where it is at hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stream_agent.errors import ConfigError
from stream_agent.evaluation.dataset import INSTRUMENTS, TEST_VIDEOS, TRAIN_VIDEOS, load_sap, load_signals

CLIP = {"Action": "Dissection", "Action_Reg": "Dissection", "Frame_id": 5, "Test": False}
SAMPLE = {
    "Action": "Vessel Clipping",
    "Action_Reg": "Vessel Clipping",
    "Frame_id": 90,
    "Test": True,
    "Distant Actions": ["Aspiration"],
    "Nearest Action": "Dissection",
    "History": [1, 5],
    "Next Action": "",
    "Near Frames": [],
}


def written(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_the_split_is_disjoint_and_whole() -> None:
    assert len(TEST_VIDEOS) == 15
    assert len(TRAIN_VIDEOS) == 35
    assert not TEST_VIDEOS & TRAIN_VIDEOS


def test_the_target_is_action_and_the_history_ends_with_the_nearest(tmp_path: Path) -> None:
    videos = load_sap(written(tmp_path / "sap.json", {"VID01": {"4": CLIP, "5": SAMPLE}}))
    plain, sample = videos["VID01"]
    assert (plain.start_s, plain.action, plain.is_sample, plain.history) == (5, "Dissection", False, ())
    assert (sample.action, sample.history, sample.is_sample) == ("Vessel Clipping", ("Aspiration", "Dissection"), True)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('{"VID01": {"4": {"Action": "Diss', "not whole JSON"),
        ("[1, 2]", "not the total_video_info.json"),
        ({"VID01": {"4": {"Action": "Dissection"}}}, "not the total_video_info.json"),
        ({"VID01": {"4": {**CLIP, "Frame_id": -1}}}, "not the total_video_info.json"),
        ({"VID01": {"four": CLIP}}, "key is no number"),
        ("", "not whole JSON"),
        ("[" * 100_000, "sap.json"),
    ],
)
def test_a_file_of_another_shape_is_refused(tmp_path: Path, content: object, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_sap(written(tmp_path / "sap.json", content))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.json cannot be read"):
        load_sap(tmp_path / "nowhere.json")


def test_signals_are_phases_and_presence_per_second(tmp_path: Path) -> None:
    header = ",".join(["second", "phase", *INSTRUMENTS])
    path = written(tmp_path / "video01.csv", f"{header}\n0,Preparation,1,0,0,0,0,0,0\n1,Preparation,1,0,1,0,0,0,0\n")
    phases, presence = load_signals(path)
    assert phases == ("Preparation", "Preparation")
    assert presence[1] == (1, 0, 1, 0, 0, 0, 0)


@pytest.mark.parametrize(
    "row", ["1,Preparation,1,0,0,0,0,0,0", "0,Preparation,1,0,0,0,0,0", "0,Preparation,2,0,0,0,0,0,0"]
)
def test_a_damaged_row_is_named_by_its_line(tmp_path: Path, row: str) -> None:
    path = written(tmp_path / "video01.csv", ",".join(["second", "phase", *INSTRUMENTS]) + f"\n{row}\n")
    with pytest.raises(ConfigError, match=r"video01.csv:2: "):
        load_signals(path)


def test_other_columns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"video01\.csv:1: columns"):
        load_signals(written(tmp_path / "video01.csv", "second,phase\n"))


def test_the_real_file_has_the_published_counts(shared_data: Path) -> None:
    videos = load_sap(shared_data / "sap" / "total_video_info.json")
    samples = [clip for clips in videos.values() for clip in clips if clip.is_sample]
    assert set(videos) == TEST_VIDEOS | TRAIN_VIDEOS
    assert sum(map(len, videos.values())) == 403
    assert len(samples) == 225
    assert sum(clip.video in TEST_VIDEOS for clip in samples) == 57
    assert [clip.video for clip in samples if not clip.history] == ["VID110"]
    assert all(clip.history[-1] != clip.action for clip in samples if clip.history)
