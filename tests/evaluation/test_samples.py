"""Questions hold what may be known and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stream_agent.evaluation.dataset import SapClip, load_sap
from stream_agent.evaluation.samples import as_memory, moments, samples

CLIPS = (
    SapClip("VID01", 3, 10, "Dissection", "Coagulation"),
    SapClip("VID01", 4, 50, "Tissue Retraction", "Dissection"),
    SapClip(
        "VID01",
        5,
        80,
        "Vessel Clipping",
        "Vessel Clipping",
        history=("Coagulation", "Tissue Retraction"),
        next_action="Dissection",
        is_sample=True,
        near_frames_s=(50, 79, 80),
    ),
    SapClip("VID01", 6, 95, "Dissection", "Dissection", is_sample=True, near_frames_s=(80, 95)),
)
PRESENCE = np.arange(700, dtype=np.uint8).reshape(100, 7) % 2


def test_the_causal_track_ends_before_the_target_begins() -> None:
    official, causal = (
        samples(CLIPS, track=track, history="ground_truth", presence=PRESENCE)[0].question
        for track in ("official", "causal")
    )
    assert (official.now_s, causal.now_s) == (80, 79)
    assert (official.near_frames_s, causal.near_frames_s) == ((50, 79, 80), (50, 79))
    assert official.presence is not None and causal.presence is not None
    assert (len(official.presence), len(causal.presence)) == (81, 80)


def test_only_a_sample_says_that_the_action_ends() -> None:
    assert all(sample.question.at_change for sample in samples(CLIPS, track="causal", history="ground_truth"))
    assert not any(moment.question.at_change for moment in moments(CLIPS, every_s=10))


def test_the_recognised_history_keeps_the_annotated_nearest_action() -> None:
    known, recognised = (
        samples(CLIPS, track="causal", history=history)[0].question.labels for history in ("ground_truth", "action_reg")
    )
    assert known == ("Dissection", "Tissue Retraction")
    assert recognised == CLIPS[2].history == ("Coagulation", "Tissue Retraction")


def test_the_answer_is_the_target_and_what_follows() -> None:
    first, last = samples(CLIPS, track="causal", history="ground_truth")
    assert (first.index, first.target, first.following, first.chain, first.onset_s) == (
        5,
        "Vessel Clipping",
        "Dissection",
        ("Vessel Clipping", "Dissection"),
        (1, 16),
    )
    assert (last.following, last.chain) == ("", ("Dissection",))


def test_moments_cover_every_clip_with_a_known_end() -> None:
    asked = moments(CLIPS, every_s=20)
    assert [sample.question.now_s for sample in asked] == [10, 30, 50, 70, 80]
    assert [sample.onset_s[0] for sample in asked] == [40, 20, 30, 10, 15]
    assert [sample.question.current for sample in asked][-1] == "Vessel Clipping"


def test_memory_holds_the_question() -> None:
    memory = as_memory(samples(CLIPS, track="causal", history="ground_truth", presence=PRESENCE)[0].question)
    assert memory.labels == ("Dissection", "Tissue Retraction")
    assert [(clip.start_pts_s, clip.end_pts_s) for clip in memory.clips] == [(10.0, 50.0)]
    assert (memory.current_start_pts_s, memory.now_pts_s) == (50.0, 79.0)
    assert memory.near is not None
    assert memory.instruments == tuple(PRESENCE[79].tolist())
    assert memory.instrument_s == tuple(PRESENCE[:80].sum(0).tolist())
    # the first frame of a video adds no time
    assert [use.seen_s for use in memory.instrument_use] == [40, 39, 40, 39, 40, 39, 40]
    assert [use.last_pts_s for use in memory.instrument_use] == [79, 78, 79, 78, 79, 78, 79]


def test_a_later_question_of_the_same_video_knows_more_and_the_earlier_keeps_what_it_knew() -> None:
    first, second = (
        sample.question for sample in samples(CLIPS, track="causal", history="ground_truth", presence=PRESENCE)
    )
    assert (first.instrument_use[0].last_pts_s, second.instrument_use[0].last_pts_s) == (79, 93)
    (alone,) = samples(CLIPS[:3], track="causal", history="ground_truth", presence=PRESENCE)
    assert alone.question.instrument_use == first.instrument_use


def test_memory_of_the_very_beginning_is_empty() -> None:
    first = SapClip("VID110", 0, 345, "Dissection", "Dissection", is_sample=True)
    memory = as_memory(samples((first,), track="causal", history="action_reg")[0].question)
    assert (memory.labels, memory.current, memory.current_confidence, memory.instruments) == ((), None, 0.0, ())


def test_presence_of_another_shape_is_a_bug_of_the_caller() -> None:
    with pytest.raises(ValueError, match="is not"):
        samples(CLIPS, track="causal", history="ground_truth", presence=PRESENCE[:, :3])


def test_the_real_histories_are_the_published_ones(shared_data: Path) -> None:
    for clips in load_sap(shared_data / "sap" / "total_video_info.json").values():
        published = {clip.index: clip for clip in clips if clip.is_sample}
        for sample in samples(clips, track="official", history="action_reg"):
            clip = published[sample.index]
            assert sample.question.labels == clip.history
            assert sample.following == clip.next_action
            assert sample.question.near_frames_s == clip.near_frames_s
        for sample in samples(clips, track="causal", history="ground_truth"):
            assert all(second < sample.question.now_s + sample.onset_s[0] for second in sample.question.near_frames_s)
