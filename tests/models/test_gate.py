"""The gate: a record that proves nothing is refused for its reason, and figures worked out by hand decide."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from stream_agent.config import configs_directory
from stream_agent.errors import ConfigError
from stream_agent.models.gate import judge, objections
from stream_agent.models.margins import Margins, load_margins
from stream_agent.models.record import Answered, EvaluationRecord, FittedFold, Side
from tests.models.made_models import SHIPPED, VIDEOS, record_of, side

MARGINS = Margins(
    accuracy_points=5, calibration=0.03, latency_ratio=1.5, latency_floor_ms=1.0, least_videos=20, least_samples=100
)

Change = Callable[[Side], Side]


@pytest.fixture
def made(better: Path) -> EvaluationRecord:
    return record_of(better, SHIPPED)


def about(made: EvaluationRecord, change: Change) -> str:
    """The one objection to the record with its candidate changed."""
    [reason] = objections(replace(made, candidate=change(made.candidate)), MARGINS)
    assert "\n" not in reason
    return reason


def answers(side: Side, change: Callable[[Answered], Answered]) -> Side:
    return replace(side, answers=tuple(change(one) for one in side.answers))


def test_a_sound_record_meets_no_objection(made: EvaluationRecord) -> None:
    assert objections(made, MARGINS) == []


def test_a_test_video_is_neither_fitted_on_nor_asked(made: EvaluationRecord) -> None:
    def fitted(one: Side) -> Side:
        folds = tuple(FittedFold((*fold.fitted_on, "VID06"), fold.asked) for fold in one.folds)
        return replace(one, fitted_on=(*one.fitted_on, "VID06"), folds=folds)

    assert about(made, fitted).startswith("candidate: fitted_on has VID06 of the test split")

    def asked(one: Side) -> Side:
        return replace(one, folds=(*one.folds, FittedFold(one.fitted_on, ("VID06",))))

    assert "asked about VID06 of the test split" in about(made, asked)


def test_a_video_is_not_asked_of_a_model_that_has_seen_it(made: EvaluationRecord) -> None:
    def leaking(one: Side) -> Side:
        return replace(one, folds=(FittedFold(VIDEOS, (VIDEOS[0],)), *one.folds[1:]))

    assert f"fold 1 was fitted on {VIDEOS[0]} and asked about it" in about(made, leaking)


def test_a_fold_is_fitted_as_the_model_was(made: EvaluationRecord) -> None:
    def richer(one: Side) -> Side:
        return replace(one, folds=(FittedFold((*VIDEOS[1:], "VID92"), (VIDEOS[0],)), *one.folds[1:]))

    assert "fold 1 was not fitted as the model was: VID92 differs" in about(made, richer)


def test_every_answer_belongs_to_one_fold(made: EvaluationRecord) -> None:
    assert f"{VIDEOS[0]} answered in no fold" in about(made, lambda one: replace(one, folds=one.folds[1:]))
    twice = about(made, lambda one: replace(one, folds=(*one.folds, one.folds[0])))
    assert f"{VIDEOS[0]} asked in two folds" in twice


@pytest.mark.parametrize(
    ("axis", "change"),
    [
        ("accuracy", {"target": ""}),
        ("calibration", {"probabilities": ()}),
        ("calibration", {"ranked": ("Dissection", "Dissection"), "probabilities": (0.5, 0.5)}),
        ("latency", {"elapsed_ms": None}),
    ],
)
def test_a_record_that_lacks_an_axis_is_refused(made: EvaluationRecord, axis: str, change: dict[str, object]) -> None:
    def lacking(one: Side) -> Side:
        first, *rest = one.answers
        return replace(one, answers=(replace(first, **change), *rest))

    reasons = objections(replace(made, candidate=lacking(made.candidate)), MARGINS)
    assert any(
        reason.startswith(f"candidate: {axis} cannot be judged: 1 of 100 answers lack") and f"{VIDEOS[0]}/0" in reason
        for reason in reasons
    )


def test_a_model_that_never_answers_cannot_be_judged(made: EvaluationRecord) -> None:
    silent = about(made, lambda one: answers(one, lambda each: replace(each, ranked=(), probabilities=())))
    assert "every answer is an abstention" in silent
    [reason, *_] = objections(replace(made, in_use=replace(made.in_use, answers=())), MARGINS)
    assert reason == "in_use: it has no answers; evaluate it"


def test_both_sides_answer_the_same_samples(made: EvaluationRecord) -> None:
    assert f"{VIDEOS[0]}/0, {VIDEOS[0]}/9 answered by one side alone" in about(
        made, lambda one: replace(one, answers=(*one.answers[1:], replace(one.answers[1], index=9)))
    )
    assert "has two truths" in about(
        made, lambda one: replace(one, answers=(replace(one.answers[0], following="Coagulation"), *one.answers[1:]))
    )
    assert "answered twice" in about(made, lambda one: replace(one, answers=(*one.answers, one.answers[0])))


def test_a_small_record_proves_nothing(better: Path) -> None:
    few = VIDEOS[:3]
    small = record_of(better, SHIPPED, ours=side({"x": ""}, videos=few), theirs=side({"x": ""}, videos=few))
    assert objections(small, MARGINS) == [
        "the record covers 3 videos, at least 20 are needed; evaluate on more",
        "the record covers 15 samples, at least 100 are needed; evaluate on more",
    ]


def test_the_official_track_shows_the_answer(made: EvaluationRecord) -> None:
    [reason] = objections(replace(made, track="official"), MARGINS)
    assert reason.startswith("track=official shows the first frame")


def judged(better: Path, ours: Side, theirs: Side) -> dict[str, tuple[bool, str]]:
    found = judge(record_of(better, SHIPPED, ours=ours, theirs=theirs), MARGINS)
    assert found.passed == all(axis.passed for axis in found.axes)
    return {axis.name: (axis.passed, axis.finding) for axis in found.axes}


def test_an_equal_model_passes(better: Path) -> None:
    found = judged(better, side({}), side({}))
    assert {name: passed for name, (passed, _) in found.items()} == {
        "accuracy": True,
        "calibration": True,
        "latency": True,
    }
    assert "60.0 against 60.0: +0.0 points, 95 % +0.0 … +0.0" in found["accuracy"][1]


def test_a_fifth_fewer_right_is_inferior(better: Path) -> None:
    passed, finding = judged(better, side({}, right=2), side({}, right=3))["accuracy"]
    assert not passed
    assert "40.0 against 60.0: -20.0 points, 95 % -20.0 … -20.0; the lower end must be -5.0 or more" in finding


def test_the_lower_end_of_the_interval_decides_not_the_mean(better: Path) -> None:
    """Equal in the mean, but on ten videos far worse: on others it could be worse all in all."""
    ours, theirs = side({}, right=3), side({}, right=3)
    mixed = tuple(
        replace(one, ranked=("Dissection", "Coagulation", "Aspiration"))
        if one.video in VIDEOS[:10]
        else replace(one, ranked=("Coagulation", "Dissection", "Aspiration"))
        for one in ours.answers
    )
    [half] = {sum(one.ranked[0] == "Dissection" for one in mixed)}
    assert half == 50
    even = tuple(
        replace(one, ranked=("Coagulation", "Dissection", "Aspiration"))
        if one.video in VIDEOS[:10]
        else replace(one, ranked=("Dissection", "Coagulation", "Aspiration"))
        for one in theirs.answers
    )
    passed, finding = judged(better, replace(ours, answers=mixed), replace(theirs, answers=even))["accuracy"]
    assert "+0.0 points" in finding
    assert not passed


def test_the_calibration_margin_is_on_the_difference(better: Path) -> None:
    """Right in 60 %, sure of 0.6: error 0; sure of 0.62: error 0.02, allowed; sure of 0.65: 0.05, not."""
    assert judged(better, side({}, sure=0.62), side({}, sure=0.6))["calibration"][0]
    passed, finding = judged(better, side({}, sure=0.65), side({}, sure=0.6))["calibration"]
    assert not passed
    assert "ECE 0.050 against 0.000: +0.050" in finding


def test_latency_is_a_ratio_above_a_floor(better: Path) -> None:
    assert judged(better, side({}, ms=3.0), side({}, ms=2.0))["latency"][0]
    passed, finding = judged(better, side({}, ms=3.2), side({}, ms=2.0))["latency"]
    assert not passed
    assert "p99 3.20 ms against 2.00 ms in the same run: ratio 1.60" in finding
    assert judged(better, side({}, ms=0.9), side({}, ms=0.1))["latency"][0], "both are below the floor"


def test_the_shipped_margins_load_and_a_wrong_file_names_its_line(tmp_path: Path) -> None:
    assert load_margins().statistical.least_videos > 1
    path = tmp_path / "margins.yaml"
    text = (configs_directory() / "model_gate.yaml").read_text()
    path.write_text(text.replace("calibration: ", "calibrations: ", 1))
    with pytest.raises(ConfigError, match=r"margins.yaml:\d+"):
        load_margins(path)
    with pytest.raises(ConfigError, match="missing"):
        load_margins(tmp_path / "absent.yaml")
