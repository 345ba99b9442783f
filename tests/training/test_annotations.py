from __future__ import annotations

import json
from pathlib import Path

import pytest

from stream_agent.training.annotations import ACTIONS, TEST_VIDEOS, load_timelines, load_tool_rows
from stream_agent.training.pictures import EXCERPTS, FRAME_FOLDERS


@pytest.fixture
def made_data(tmp_path: Path) -> Path:
    """Two videos with made-up labels; only the first has precursor labels and tool rows."""
    (tmp_path / "sap" / "meta_actions").mkdir(parents=True)
    (tmp_path / "cholec80" / "phase_tool_1hz").mkdir(parents=True)
    clips = {"2": {"Action": "Vessel Clipping", "Frame_id": 20}, "1": {"Action": "Dissection", "Frame_id": 5}}
    listed = {"VID01": clips, "VID06": {"1": {"Action": "Dissection", "Frame_id": 3}}}
    (tmp_path / "sap" / "total_video_info.json").write_text(json.dumps(listed))
    items = [
        {"frame_id": [-1] * 5 + [start], "description": ["None"] * 4 + [name, "next action"]}
        for start, name in ((5, "None"), (20, "dissect"), (30, "vesselClipping"), (40, "irrigate"), (50, "pack"))
    ]
    (tmp_path / "sap" / "meta_actions" / "001.json").write_text(json.dumps(items))
    rows = "\n".join(f"{second},Preparation,1,0,1,0,0,0,0" for second in range(3))
    header = "second,phase,Grasper,Bipolar,Hook,Scissors,Clipper,Irrigator,SpecimenBag\n"
    (tmp_path / "cholec80" / "phase_tool_1hz" / "video01.csv").write_text(header + rows + "\n")
    return tmp_path


def test_the_last_clip_ends_where_the_precursor_begins_the_next(made_data: Path) -> None:
    timeline = load_timelines(made_data, continue_with_precursor=True)[1]
    assert [timeline.action(second) for second in (0, 5, 19.9, 20, 29, 30, 45, 1000)] == [
        "",
        "Dissection",
        "Dissection",
        "Vessel Clipping",
        "Vessel Clipping",
        "Aspiration",
        "",
        "",
    ]
    assert timeline.sap_end_s == 30


def test_without_the_precursor_nothing_follows_the_last_clip(made_data: Path) -> None:
    timelines = load_timelines(made_data, continue_with_precursor=False)
    assert timelines[1].action(35) == ""
    assert (timelines[6].action(3), timelines[6].action(4)) == ("Dissection", "")


def test_tool_rows_are_read_by_name(made_data: Path) -> None:
    assert load_tool_rows(made_data, 1) == dict.fromkeys(range(3), (1, 0, 1, 0, 0, 0, 0))
    assert load_tool_rows(made_data, 6) == {}


def test_the_test_split_is_rendezvous_and_no_excerpt_or_folder_crosses_it() -> None:
    assert sorted(TEST_VIDEOS) == [6, 8, 10, 12, 14, 29, 32, 42, 50, 51, 73, 74, 78, 80, 111]
    assert not {excerpt.video for excerpt in EXCERPTS} & TEST_VIDEOS
    assert set(FRAME_FOLDERS) & TEST_VIDEOS == {73, 74}


def test_every_second_of_the_real_labels_has_an_action_of_the_closed_set(shared_data: Path) -> None:
    timelines = load_timelines(shared_data, continue_with_precursor=True)
    assert len(timelines) == 50
    assert {action for timeline in timelines.values() for action in timeline.actions} <= {*ACTIONS, ""}
    assert timelines[68].sap_end_s == 1470
    assert sum(bool(load_tool_rows(shared_data, video)) for video in timelines) == 41
