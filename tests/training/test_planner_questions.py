"""Questions see nothing of their answers, and what the agent's own memory would hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stream_agent.config import MemoryConfig, SegmenterConfig
from stream_agent.evaluation.dataset import INSTRUMENTS, SapClip, load_sap
from stream_agent.memory import NearHistoryMemory
from stream_agent.messages import Evidence, FrameHeader
from stream_agent.perception.segmenter import Segmenter
from stream_agent.planner.features import instrument_features, instrument_names
from stream_agent.training.planner_questions import EARLY_S, early_examples, examples, moments
from stream_agent.training.statistical import ACTIONS
from tests.training.annotated_clips import C, D, R, clips, rows


def test_a_question_sees_the_second_before_its_clip_and_nothing_later() -> None:
    place = instrument_names(INSTRUMENTS).index("time with Clipper")
    asked = examples(clips(R, D, C), rows(60, clipper_from=19))
    before, at = [one.instruments for one in asked[1:]]
    assert before is not None
    assert at is not None
    assert before[place] == 0
    assert at[place] == pytest.approx(np.log1p(1 / 5))
    shown_later = examples(clips(R, D, C), rows(60, clipper_from=20))[2].instruments
    assert shown_later is not None
    assert shown_later[place] == 0


def test_the_agents_memory_gives_the_features_that_training_replays() -> None:
    shown = [tuple(int((second // 4 + place) % 5 == 0) for place in range(len(INSTRUMENTS))) for second in range(40)]
    memory = NearHistoryMemory(MemoryConfig(), Segmenter(ACTIONS, SegmenterConfig()), INSTRUMENTS)
    asked = examples(clips(R, D, C), shown)
    for second, row in enumerate(shown):
        frame = FrameHeader(stream_id="s", session_id="x", seq=second, pts_s=float(second), captured_ns=0)
        memory.observe(frame, Evidence(seq=second, pts_s=float(second), instruments=tuple(map(float, row))))
        if (second + 1) % 10 == 0 and second < 20:
            wanted = asked[(second + 1) // 10].instruments
            assert wanted == instrument_features(memory.snapshot(), INSTRUMENTS)


def test_early_questions_are_those_of_the_end_as_they_stood_three_seconds_before() -> None:
    place = instrument_names(INSTRUMENTS).index("time with Clipper")
    shown = rows(60, clipper_from=17)
    early = early_examples(clips(R, D, C), shown)
    assert [(one.left_s, one.target, one.history) for one in early] == [
        (EARLY_S, ACTIONS.index(D), (R,)),
        (EARLY_S, ACTIONS.index(C), (R, D)),
    ]
    assert [one.instruments is not None and one.instruments[place] > 0 for one in early] == [False, False]
    assert examples(clips(R, D, C), shown)[2].instruments != early[1].instruments
    assert not early_examples(clips(R, D, C, each_s=EARLY_S), None)


def test_moments_go_through_every_action_that_another_follows() -> None:
    asked = moments(clips(R, D, C), rows(60, clipper_from=17))
    assert [(one.left_s, one.target) for one in asked] == [
        (left_s, ACTIONS.index(target)) for target in (D, C) for left_s in (9, 5, 1)
    ]


def test_later_clips_and_the_answer_itself_leave_no_trace_in_a_question() -> None:
    told = examples(clips(R, D, C), None)[1]
    other = examples(clips(R, C, D), None)[1]
    assert told.labels == other.labels
    assert (told.target, other.target) == (ACTIONS.index(D), ACTIONS.index(C))
    assert told.history == (R,)


def test_noisy_histories_hold_recognised_labels_but_for_the_nearest() -> None:
    past = (SapClip("VID01", 0, 0, R, D), SapClip("VID01", 1, 10, D, R), SapClip("VID01", 2, 20, C, C))
    assert examples(past, None)[2].history == (D, D)
    assert examples(past, None, noisy=False)[2].history == (R, D)


def test_histories_are_the_published_ones(shared_data: Path) -> None:
    for video in load_sap(shared_data / "sap" / "total_video_info.json").values():
        for clip, asked in zip(video, examples(video, None), strict=True):
            assert not clip.is_sample or asked.history == clip.history
