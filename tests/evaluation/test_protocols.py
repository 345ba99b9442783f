"""Folds never overlap, and nobody is fitted on what it is asked about."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_agent.errors import ConfigError
from stream_agent.evaluation.dataset import TEST_VIDEOS, TRAIN_VIDEOS, SapClip, load_sap
from stream_agent.evaluation.protocols import (
    PROTOCOLS,
    Forecast,
    NotRunError,
    Predictor,
    ProtocolName,
    Setting,
    Training,
    folds,
    run,
    steps,
)
from stream_agent.evaluation.samples import Question

NAMES = sorted(TEST_VIDEOS | TRAIN_VIDEOS)


def video(name: str) -> tuple[SapClip, ...]:
    return (
        SapClip(name, 0, 0, "Dissection", "Dissection"),
        SapClip(name, 1, 30, "Vessel Clipping", "Vessel Clipping", is_sample=True, next_action="Dissection"),
        SapClip(name, 2, 60, "Dissection", "Dissection", is_sample=True),
    )


VIDEOS = {name: video(name) for name in NAMES}


class Spy:
    """Remembers what it was fitted on; answers only about videos it was not."""

    name = "spy"

    def __init__(self, *, sees_track: bool = False) -> None:
        self.sees_track = sees_track
        self.fitted: list[tuple[frozenset[str], str]] = []

    def fit(self, training: Training) -> Predictor:
        self.fitted.append((frozenset(training.videos), training.track))
        assert set(training.presence) <= set(training.videos)
        known = set(training.videos)

        class Asked:
            def predict(self, question: Question) -> Forecast | None:
                assert question.video not in known
                return Forecast(("Vessel Clipping",), (0.5,), ("Vessel Clipping",), (10.0,))

        return Asked()


class Unable:
    name = "unable"
    sees_track = False

    def fit(self, training: Training) -> Predictor:
        raise NotRunError("no torch here")


@given(
    st.sampled_from(PROTOCOLS),
    st.sets(st.sampled_from(NAMES), max_size=49),
    st.sets(st.sampled_from(NAMES), max_size=10),
)
def test_folds_are_disjoint_and_keep_to_what_was_asked(
    protocol: ProtocolName, exclude: set[str], only: set[str]
) -> None:
    made = folds(protocol, NAMES, exclude=exclude - only, only=only)
    asked = [name for fold in made for name in fold.test]
    assert len(asked) == len(set(asked))
    for fold in made:
        assert fold.train
        assert not set(fold.train) & set(fold.test)
        assert not (set(fold.train) | set(fold.test)) & (exclude - only)
        assert not set(fold.train) & only
        assert not only or set(fold.test) <= only


def test_the_official_fold_is_the_rendezvous_split() -> None:
    (fold,) = folds("official", NAMES)
    assert (frozenset(fold.train), frozenset(fold.test)) == (TRAIN_VIDEOS, TEST_VIDEOS)


def test_cross_validation_asks_about_every_video_once() -> None:
    assert sorted(name for fold in folds("5fold", NAMES) for name in fold.test) == NAMES
    assert [fold.test for fold in folds("lovo", NAMES)] == [(name,) for name in NAMES]
    assert all(len(fold.train) == 49 for fold in folds("lovo", NAMES))


def test_only_scores_those_in_every_protocol_whatever_their_split() -> None:
    for protocol in PROTOCOLS:
        made = folds(protocol, NAMES, only=["VID05", "VID18"])
        assert sorted(name for fold in made for name in fold.test) == ["VID05", "VID18"]
    (official,) = folds("official", NAMES, only=["VID05", "VID18"])
    assert set(official.train) == TRAIN_VIDEOS - {"VID05", "VID18"}


def test_folds_are_the_same_whatever_the_order_of_videos() -> None:
    assert folds("5fold", NAMES) == folds("5fold", list(reversed(NAMES)))


@pytest.mark.parametrize(
    ("exclude", "only", "complaint"),
    [
        (["VID999"], [], "--exclude VID999: no such video"),
        ([], ["VID1"], "--only VID1: no such video"),
        (["VID05"], ["VID05"], "both --exclude and --only"),
    ],
)
def test_a_wrong_video_is_named(exclude: list[str], only: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        folds("lovo", NAMES, exclude=exclude, only=only)


def test_every_setting_is_run_and_no_planner_sees_its_questions() -> None:
    spy = Spy()
    seen: list[str] = []
    done = run([spy, Unable()], VIDEOS, {"VID01": np.zeros((100, 7), np.uint8)}, on_step=seen.append)
    assert len(seen) == steps([spy, Unable()], VIDEOS) == 2 * (1 + 5 + 50)
    assert len(spy.fitted) == 56
    assert {len(answers) for setting, answers in done.answers.items() if setting.protocol == "official"} == {30}
    assert {len(answers) for setting, answers in done.answers.items() if setting.protocol != "official"} == {100}
    assert len(done.answers) == 3 * 2 * 2
    assert done.not_run == {"unable": "no torch here"}
    assert (done.moments_protocol, len(done.moments["spy"])) == ("lovo", 50 * 6)


def test_a_planner_that_fails_half_way_has_no_row() -> None:
    class Failing(Spy):
        def fit(self, training: Training) -> Predictor:
            if len(self.fitted) == 3:
                raise NotRunError("a picture is broken")
            return super().fit(training)

    done = run([Failing()], VIDEOS, {}, protocols=["5fold"])
    assert (done.answers, done.moments, done.not_run) == ({}, {}, {"spy": "a picture is broken"})


def test_a_planner_that_sees_more_than_labels_is_fitted_per_track() -> None:
    spy = Spy(sees_track=True)
    run([spy], VIDEOS, {}, protocols=["official"])
    assert spy.fitted == [(TRAIN_VIDEOS, "official"), (TRAIN_VIDEOS, "causal")]


def test_an_answer_becomes_an_outcome() -> None:
    done = run([Spy()], VIDEOS, {}, protocols=["official"], only=["VID05"])
    first, second = (answer.outcome for answer in done.answers[Setting("spy", "causal", "ground_truth", "official")])
    assert (first.video, first.index, first.target, first.following) == ("VID05", 1, "Vessel Clipping", "Dissection")
    assert (first.ranked, first.probabilities, first.hit(1), second.hit(1)) == (
        ("Vessel Clipping",),
        (0.5,),
        True,
        False,
    )


def test_the_real_folds_have_the_published_numbers_of_samples(shared_data: Path) -> None:
    videos = load_sap(shared_data / "sap" / "total_video_info.json")
    done = run([Spy()], videos, {}, protocols=["official", "5fold"])
    counts = {setting.protocol: len(answers) for setting, answers in done.answers.items()}
    assert counts == {"official": 57, "5fold": 225}
