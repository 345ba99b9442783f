from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from stream_agent.errors import ConfigError
from stream_agent.messages import Clip, FrameHeader
from stream_agent.perception.timeline import TimelineRecogniser, load_labels

Make = Callable[..., FrameHeader]
Names = tuple[str, ...]


def action_at(recogniser: TimelineRecogniser, header: FrameHeader, actions: Names) -> str:
    posterior = recogniser.evidence(header, None).actions
    assert not posterior or sorted(posterior) == [0.0] * (len(actions) - 1) + [1.0]
    return actions[posterior.index(1.0)] if posterior else ""


def test_clips_give_their_action_from_start_to_end(header: Make, actions: Names) -> None:
    clips = (Clip("Dissection", 1.0, 3.0, 1.0), Clip("Aspiration", 3.0, 4.0, 1.0), Clip("Dissection", 6.0, 7.0, 1.0))
    recogniser = TimelineRecogniser.of_clips(clips, actions)
    times = (0.0, 1.0, 2.999, 3.0, 4.0, 5.0, 6.5, 7.0)
    expected = ["", "Dissection", "Dissection", "Aspiration", "", "", "Dissection", ""]
    assert [action_at(recogniser, header(pts_s=t), actions) for t in times] == expected
    evidence = recogniser.evidence(header(pts_s=1.5), None)
    assert (evidence.seq, evidence.pts_s, evidence.recogniser) == (7, 1.5, "timeline")


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        ((Clip("Dissection", 0.0, 2.0, 1.0), Clip("Aspiration", 1.0, 3.0, 1.0)), "begins before 2.0 s"),
        ((Clip("Dissection", 2.0, 2.0, 1.0),), "is empty"),
        ((Clip("Suturing", 0.0, 2.0, 1.0),), "'Suturing' is not an action"),
    ],
)
def test_impossible_clips_are_refused(clips: tuple[Clip, ...], message: str, actions: Names) -> None:
    with pytest.raises(ConfigError, match=message):
        TimelineRecogniser.of_clips(clips, actions)


def test_a_csv_is_read_and_its_last_action_lasts(tmp_path: Path, header: Make, actions: Names) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("start_s,action\n0.5,Dissection\n\n10, Coagulation\n20,\n30,Dissection\n")
    recogniser = TimelineRecogniser(load_labels(path, actions), actions)
    got = [action_at(recogniser, header(pts_s=t), actions) for t in (0.0, 0.5, 15.0, 25.0, 1e6)]
    assert got == ["", "Dissection", "Coagulation", "", "Dissection"]


def test_our_json_and_that_of_cholect50_sap_are_read(tmp_path: Path, actions: Names) -> None:
    ours = tmp_path / "ours.json"
    ours.write_text('[{"start_s": 0, "action": "Dissection"}, {"start_s": 4.5, "action": "Aspiration"}]')
    assert load_labels(ours, actions) == ((0.0, "Dissection"), (4.5, "Aspiration"))
    theirs = tmp_path / "sap.json"
    clips = {"2": {"Action": "Aspiration", "Frame_id": 9, "Test": True}, "1": {"Action": "Dissection", "Frame_id": 2}}
    theirs.write_text(json.dumps({"VID01": clips, "VID02": {}}))
    assert load_labels(Path(f"{theirs}#VID01"), actions) == ((2.0, "Dissection"), (9.0, "Aspiration"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "line 1: the header must be"),
        ("a.csv", "time,label\n", "line 1: the header must be"),
        ("a.csv", "start_s,action\n1,Dissection\n2,Sewing\n", "line 3: 'Sewing' is not an action"),
        ("a.csv", "start_s,action\nsoon,Dissection\n", "line 2: start 'soon' is not a number"),
        ("a.csv", "start_s,action\nnan,Dissection\n", "line 2: start 'nan' is not a number"),
        ("a.csv", "start_s,action\n3,Dissection\n3,Aspiration\n", "line 3: start_s=3 must come after 3"),
        ("a.csv", "start_s,action\n3\n", "line 2: 1 values"),
        ("a.csv", "start_s,action\n", "holds no label"),
        ("a.json", "[{", "is not JSON.*line 1"),
        ("a.json", "[" * 100_000, "is not JSON"),
        ("a.json", '[{"start_s": 1}]', "entry 1 must hold 'start_s' and 'action'"),
        ("a.json", '[{"start_s": true, "action": "Dissection"}]', "start True is not a number"),
        ("a.json", '[{"start_s": 1, "action": 5}]', "action 5 is not a name"),
        ("a.json", '{"VID01": {}, "VID02": {}}', "names no video of the file.*VID01, VID02"),
        ("a.json", "3", "names no video"),
    ],
)
def test_a_wrong_label_file_names_the_place_and_the_rule(
    tmp_path: Path, name: str, text: str, message: str, actions: Names
) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_labels(path, actions)


def test_a_missing_label_file_and_bytes_that_are_no_text_are_refused(tmp_path: Path, actions: Names) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_labels(tmp_path / "absent.csv", actions)
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_labels(tmp_path / "a.csv", actions)


def test_the_authors_label_file_is_read(shared_data: Path, actions: Names) -> None:
    path = shared_data / "sap" / "total_video_info.json"
    starts = load_labels(Path(f"{path}#VID68"), actions)
    assert starts[0] == (338.0, "Dissection")
    assert len(starts) == 8
    with pytest.raises(ConfigError, match="names no video"):
        load_labels(path, actions)
