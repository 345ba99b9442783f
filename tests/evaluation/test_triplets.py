"""From triplet labels to clips: the rule's order, gaps, short runs, and damaged files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_agent.errors import ConfigError
from stream_agent.evaluation.dataset import ACTIONS, load_sap
from stream_agent.evaluation.triplets import (
    FEWEST_S,
    Labels,
    agreement,
    clips,
    encode_videos,
    frame_action,
    load_labels,
    read_labels,
    spread_near_frames,
    timeline,
)

LabelFile = Callable[[Path, Mapping[str, list[int]]], Path]
VERBS = ["grasp", "retract", "dissect", "coagulate", "clip", "cut", "aspirate", "irrigate", "pack", "null_verb"]


def labels(*runs: tuple[int, int, str]) -> Labels:
    """(first second, one after the last, verb) each; seconds of no run are not labelled."""
    return Labels("VID01", {second: (verb,) for first, end, verb in runs for second in range(first, end)})


@pytest.mark.parametrize(
    ("verbs", "action"),
    [
        (["grasp", "clip", "cut"], "Vessel Clipping"),
        (["coagulate", "cut"], "Dissection"),
        (["retract", "dissect"], "Dissection"),
        (["dissect", "coagulate"], "Dissection"),
        (["coagulate", "dissect"], "Coagulation"),
        (["irrigate", "grasp"], "Aspiration"),
        (["grasp", "pack"], ""),
        (["grasp"], "Tissue Retraction"),
        ([], None),
    ],
)
def test_the_first_verb_of_the_order_counts(verbs: list[str], action: str | None) -> None:
    assert frame_action(verbs) == action


def test_a_gap_goes_on_with_the_action_before_it() -> None:
    runs = timeline(labels((10, 30, "dissect"), (60, 80, "clip")))
    assert (runs.starts_s, runs.actions, runs.end_s) == ((10, 60), ("Dissection", "Vessel Clipping"), 80)
    assert [runs.action(second) for second in (9, 10, 59, 60, 79, 80)] == [
        None,
        "Dissection",
        "Dissection",
        "Vessel Clipping",
        "Vessel Clipping",
        None,
    ]


def test_a_short_run_joins_the_one_before_it() -> None:
    runs = timeline(labels((0, 20, "dissect"), (20, 29, "grasp"), (29, 40, "dissect"), (40, 50, "grasp")))
    assert (runs.starts_s, runs.actions) == ((0, 40), ("Dissection", "Tissue Retraction"))


def test_what_is_too_short_before_the_first_run_joins_it() -> None:
    runs = timeline(labels((5, 8, "grasp"), (8, 30, "dissect")))
    assert (runs.starts_s, runs.actions) == ((5,), ("Dissection",))


def test_no_label_no_clip() -> None:
    assert clips(Labels("VID01", {})) == ()
    assert clips(Labels("VID01", {3: ()})) == ()


def test_packing_is_no_clip_and_parts_none() -> None:
    made = clips(labels((0, 20, "dissect"), (20, 40, "pack"), (40, 60, "dissect"), (60, 80, "clip")))
    assert [(clip.start_s, clip.action) for clip in made] == [(0, "Dissection"), (60, "Vessel Clipping")]


def test_a_sample_has_history_next_action_and_near_frames() -> None:
    first, second, third = clips(labels((0, 50, "dissect"), (50, 70, "clip"), (70, 90, "grasp")))
    assert (first.is_sample, first.history, first.near_frames_s) == (False, (), ())
    assert (second.history, second.next_action) == (("Dissection",), "Tissue Retraction")
    assert second.near_frames_s == (0, 9, 19, 29, 39, 49, 50)
    assert (third.history, third.next_action) == (("Dissection", "Vessel Clipping"), "")


@given(st.dictionaries(st.integers(0, 400), st.lists(st.sampled_from(VERBS), max_size=3).map(tuple), max_size=60))
def test_clips_are_long_enough_and_neighbours_differ(frames: dict[int, tuple[str, ...]]) -> None:
    made = clips(Labels("VID01", dict(sorted(frames.items()))))
    assert all(clip.action in ACTIONS for clip in made)
    assert all(later.action != earlier.action for earlier, later in pairwise(made))
    assert all(later.start_s - earlier.start_s >= FEWEST_S for earlier, later in pairwise(made))


def test_made_clips_are_read_back_as_they_were(tmp_path: Path) -> None:
    made = {"VID01": clips(labels((0, 50, "dissect"), (50, 70, "clip"), (70, 90, "grasp")))}
    path = tmp_path / "made.json"
    path.write_bytes(encode_videos(made))
    assert load_sap(path) == made


def test_agreement_counts_labelled_frames_inside_the_authors_clips() -> None:
    labelled = labels((0, 50, "dissect"), (50, 70, "clip"), (70, 90, "grasp"))
    authors = clips(labels((0, 45, "dissect"), (45, 60, "clip"), (60, 90, "grasp")))
    dissection, clipping = agreement(labelled, authors)
    assert (dissection.frames, dissection.agreeing, dissection.start_offset_s) == (45, 45, 0)
    assert (clipping.frames, clipping.agreeing, clipping.start_offset_s) == (15, 10, 5)


def test_a_folder_of_labels_is_read_by_video(tmp_path: Path, label_file: LabelFile) -> None:
    label_file(tmp_path / "labels" / "VID07.json", {"9": [2, 9], "10": [], "8": [-1, 4]})
    found = load_labels(tmp_path)
    assert found["VID07"].verbs == {8: ("clip",), 9: ("dissect",), 10: ()}
    assert load_labels(tmp_path / "labels") == found
    assert load_labels(tmp_path / "labels" / "VID07.json") == found


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('{"categories": {"verb": {}}, "annot', r"VID07\.json is not whole JSON .*copy the file again"),
        ("[]", "not a label file of CholecT50"),
        ('{"categories": {"verb": {}}, "annotations": {"1": [[0, 1]]}}', "not a label file"),
        ('{"categories": {"verb": {}}, "annotations": {"one": []}}', "'one', which is no number"),
        ('{"categories": {"verb": {}}, "annotations": {"1": [[0,0,1,0,0,0,0,77]]}}', "names verb 77"),
        ('{"categories": {"verb": {}}, "annotations": {"1": [[0,0,1,0,0,0,0,"x"]]}}', "names verb x"),
    ],
)
def test_a_damaged_label_file_is_refused(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "VID07.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=complaint):
        read_labels(path)


def test_a_folder_without_labels_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no labels/VIDnn\.json"):
        load_labels(tmp_path)


def test_the_real_truncated_file_is_refused(shared_data: Path) -> None:
    with pytest.raises(ConfigError, match=r"truncated_VID73\.json is not whole JSON .* copy the file again"):
        read_labels(shared_data / "odd" / "truncated_VID73.json")


def test_the_rule_agrees_with_the_authors_on_nine_frames_in_ten(shared_data: Path) -> None:
    authors = load_sap(shared_data / "sap" / "total_video_info.json")
    parts = [
        part
        for name, labelled in load_labels(shared_data / "cholect50").items()
        for part in agreement(labelled, authors[name])
    ]
    assert sum(part.agreeing for part in parts) / sum(part.frames for part in parts) > 0.9


def test_near_frames_are_spread_as_published(shared_data: Path) -> None:
    """The authors' seven frames are ours wherever their clip before the target is known."""
    videos = load_sap(shared_data / "sap" / "total_video_info.json")
    spread = [
        (clip.near_frames_s, spread_near_frames(before.start_s, clip.start_s))
        for chosen in videos.values()
        for before, clip in pairwise(chosen)
        if clip.is_sample
    ]
    assert sum(theirs == ours for theirs, ours in spread) / len(spread) > 0.95
