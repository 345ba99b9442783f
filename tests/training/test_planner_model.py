"""The fit of the model over the memory: questions see nothing of their answers, and the shipped file is its result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from stream_agent.config import MemoryConfig, SegmenterConfig, configs_directory
from stream_agent.evaluation.dataset import INSTRUMENTS, TEST_VIDEOS, TRAIN_VIDEOS, SapClip, load_sap
from stream_agent.instrument_use import use_after
from stream_agent.memory import NearHistoryMemory
from stream_agent.messages import Clip, Evidence, FrameHeader, Memory
from stream_agent.perception.segmenter import Segmenter
from stream_agent.planner.ensemble import EndingModel, Ensemble, Head, load_ensemble
from stream_agent.planner.features import instrument_features, instrument_names
from stream_agent.planner.ngram import NgramModel
from stream_agent.training import statistical
from stream_agent.training.planner_model import (
    ACTIONS,
    EARLY_S,
    FULL_FEATURES,
    LABEL_FEATURES,
    TREES,
    Forecasts,
    Setting,
    Study,
    conformal,
    early_examples,
    errors,
    examples,
    fit_ending,
    fit_ensemble,
    fit_head,
    fit_linear,
    held_to,
    joined,
    line,
    load_rows,
    matrix,
    mixed,
    moments,
    narrowest,
    quantile,
    ranks,
    risk_coverage,
    unless_ending,
)

SHIPPED = configs_directory() / "procedures" / "cholecystectomy" / "ensemble.json"
D, C, R = "Dissection", "Vessel Clipping", "Tissue Retraction"


def clips(*labels: str, each_s: int = 10) -> tuple[SapClip, ...]:
    return tuple(
        SapClip("VID01", place, each_s * place, label, label, is_sample=place > 0) for place, label in enumerate(labels)
    )


def rows(seconds: int, *, clipper_from: int) -> list[tuple[int, ...]]:
    return [
        tuple(int(name == "Clipper" and second >= clipper_from) for name in INSTRUMENTS) for second in range(seconds)
    ]


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


def test_an_action_that_ends_once_the_clipper_is_seen_is_told_from_its_middle() -> None:
    pytest.importorskip("scipy", reason="pip install -e .[train] to fit models")
    cases = [(clips(R, D, C, each_s=60), rows(180, clipper_from=110 + case)) for case in range(8)]
    ends = [one for case, seen in cases for one in (*examples(case, seen), *early_examples(case, seen))]
    among = [one for case, seen in cases for one in moments(case, seen)]
    model = EndingModel(fit_ending(ends, among), FULL_FEATURES, ACTIONS)

    def probability(case_rows: list[tuple[int, ...]], now_s: int) -> float:
        asked = next(one for one in moments(clips(R, D, C, each_s=60), case_rows)[15:] if one.left_s == 119 - now_s)
        return model.probability(matrix([asked], full=True)[0].tolist(), D)

    assert probability(rows(180, clipper_from=108), 116) > 0.8
    assert probability(rows(180, clipper_from=150), 80) < 0.4


def test_many_answers_at_once_are_those_of_the_run_time_one_by_one() -> None:
    model = load_ensemble(SHIPPED)
    assert model.full is not None and model.file.ending is not None
    shown = [tuple(int((second // 4 + place) % 5 == 0) for place in range(len(INSTRUMENTS))) for second in range(30)]
    asked = examples(clips(R, D, C), shown)[1:]
    answers = np.array([[0.0, 0.5, 0.0, 0.3, 0.2], [0.0, 0.5, 0.2, 0.2, 0.1]])
    prior = np.array([[0.4, 0.3, 0.0, 0.2, 0.1], [0.0, 0.1, 0.8, 0.05, 0.05]])
    found = unless_ending(Forecasts(tuple(asked), answers, prior, answers), model.file.ending)
    for row, one in enumerate(asked):
        memory = Memory(
            stream_id="", session_id="", case_id="", now_pts_s=0.0, current=one.history[-1], instrument_use=()
        )
        told, back_off = (
            {
                action: float(value)
                for action, value in zip(ACTIONS, values[row], strict=True)
                if action != one.history[-1]
            }
            for values in (answers, prior)
        )
        wanted = model.unless_ending(memory, model.full, matrix([one], full=True)[0].tolist(), told, back_off)
        assert found[row].tolist() == pytest.approx([wanted.get(action, 0.0) for action in ACTIONS])


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


def made_up(probabilities: list[list[float]], targets: list[int]) -> Forecasts:
    answers = np.array(probabilities)
    asked = tuple(examples(clips(R, ACTIONS[target]), None)[1] for target in targets)
    return Forecasts(asked, answers, answers, answers)


def test_ranks_and_lines_are_those_worked_out_by_hand() -> None:
    found = made_up([[0.6, 0.3, 0.0, 0.1, 0.0]] * 4, [0, 0, 1, 3])
    assert ranks(found.probabilities, found.targets).tolist() == [0, 0, 1, 2]
    assert line(found.probabilities, found.targets).startswith("top-1/2/3 50.0/75.0/100.0 %")
    assert risk_coverage(found).startswith("100 %: 50.0 (from 0.60 on)")


def test_errors_are_told_by_kind() -> None:
    found = made_up([[0.6, 0.3, 0.0, 0.1, 0.0]] * 4, [0, 1, 1, 3])
    assert errors(found) == (
        "3 errors: after Tissue Retraction Vessel Clipping taken for Dissection 2, after Tissue Retraction Coagulation taken "
        "for Dissection 1; 0 of 1 coagulations and aspirations foreseen"
    )


def of_videos(videos: int, targets: list[int]) -> Forecasts:
    """The same answers about each of some videos."""
    made = made_up([[0.6, 0.3, 0.0, 0.1, 0.0]] * len(targets), targets)
    asked = tuple(replace(one, video=f"VID{video:02d}") for video in range(videos) for one in made.asked)
    answers = np.tile(made.probabilities, (videos, 1))
    return Forecasts(asked, answers, answers, answers)


def test_conformal_sets_cover_what_comes_when_groups_are_alike() -> None:
    made = conformal(of_videos(10, [0] * 12 + [1] * 6 + [3] * 2))
    assert made[0].set_from == pytest.approx(0.1)
    assert made[0].covered == made[0].worst == 1
    assert made[0].size == 3
    assert narrowest(made) is made[0]


def test_sets_widen_until_the_worst_group_is_covered() -> None:
    """A video of its own kind: at 10 % it is what is given up, and only a lower level holds it."""
    plain = of_videos(9, [0] * 10)
    odd = made_up([[0.6, 0.05, 0.0, 0.35, 0.0]] * 10, [1] * 10)
    parts = (plain, Forecasts(tuple(replace(one, video="VID99") for one in odd.asked), *[odd.probabilities] * 3))
    made = conformal(joined(parts))
    assert made[0].worst < 0.9
    assert made[-1].set_from == pytest.approx(0.05)
    assert narrowest(made) is made[-1]
    assert held_to(joined(parts), 0.3).startswith("90.0 % covered")


def test_the_quantile_is_that_of_split_conformal_prediction() -> None:
    scores = np.arange(1, 20) / 20
    assert quantile(scores, 0.1) == pytest.approx(0.1)
    assert quantile(scores, 0.04) == 0


def test_the_run_time_mixes_as_the_training_does() -> None:
    model = load_ensemble(SHIPPED)
    head = model.labels
    features = [0.5] * len(LABEL_FEATURES)
    back_off = np.array([[0.0, 0.4, 0.3, 0.2, 0.1]])
    own = head.probabilities(features, back_off[0] > 0)
    assert own[0] == 0
    wanted = mixed(own[None], back_off, share=head.file.ngram_share, sharpness=head.file.sharpness)[0]
    prior = {action: value for action, value in zip(ACTIONS, back_off[0].tolist(), strict=True) if value}
    found = model.mixed(head, features, prior)
    assert [found.get(action, 0.0) for action in ACTIONS] == pytest.approx(wanted.tolist())


def test_the_run_time_reads_the_features_that_the_heads_were_fitted_on() -> None:
    model = load_ensemble(SHIPPED)
    assert model.full is not None
    shown = [tuple(int((second // 4 + place) % 5 == 0) for place in range(len(INSTRUMENTS))) for second in range(20)]
    asked = examples(clips(R, D, C), shown)[2]
    memory = Memory(
        stream_id="",
        session_id="",
        case_id="",
        now_pts_s=19.0,
        clips=(Clip(R, 0.0, 10.0, 1.0),),
        current=D,
        current_start_pts_s=10.0,
        instrument_use=use_after(shown, len(INSTRUMENTS)),
    )
    assert model.head(memory) == (model.full, matrix([asked], full=True)[0].tolist())
    blind = msgspec.structs.replace(memory, instrument_use=())
    assert model.head(blind) == (model.labels, matrix([asked], full=False)[0].tolist())


def test_an_exported_head_answers_as_the_forest_it_was_fitted_as() -> None:
    ensemble = pytest.importorskip("sklearn.ensemble", reason="pip install -e .[train] to fit models")
    rng = np.random.default_rng(0)
    taught = [one for _ in range(12) for one in examples(clips(*rng.permutation([R, D, C]).tolist(), each_s=30), None)]
    file = fit_head(taught, Setting(1.0, 30.0, leaf=2, linear_share=0.0), full=False)
    forest = ensemble.ExtraTreesClassifier(TREES, random_state=0, max_features=0.3, min_samples_leaf=2)
    x = matrix(taught, full=False)
    forest.fit(x.astype(np.float32), [one.target for one in taught], sample_weight=np.ones(len(taught)))
    head = Head(file, 5)
    for row in x:
        wanted = np.zeros(5)
        wanted[forest.classes_] = forest.predict_proba([row])[0]
        assert head.probabilities(row.tolist(), np.ones(5, dtype=bool)) == pytest.approx(wanted, abs=2e-3)


def test_the_conditional_logit_is_at_the_minimum_of_its_loss() -> None:
    """Two actions always barred but one: with a penalty of next to nothing it says the frequencies among the rest."""
    pytest.importorskip("scipy", reason="pip install -e .[train] to fit models")
    y = np.array([1] * 6 + [2] * 2 + [3] * 4)
    may_come = np.tile([False, True, True, True, False], (12, 1))
    may_come[8:, 1] = False
    linear = fit_linear(np.zeros((12, 1)), y, np.ones(12), may_come, penalty=1.0)
    odds = np.exp(np.array(linear.bias))
    said = np.where(may_come, odds, 0)
    said /= said.sum(1, keepdims=True)
    for action, came in ((1, 6), (2, 2), (3, 4)):
        assert said[:, action].sum() == pytest.approx(came, abs=0.01)


def test_the_shipped_model_is_for_the_features_of_the_code_and_small() -> None:
    model = load_ensemble(SHIPPED)
    assert isinstance(model, Ensemble)
    assert model.labels.file.features == LABEL_FEATURES
    assert model.full is not None
    assert model.full.file.features == FULL_FEATURES
    assert SHIPPED.stat().st_size < 500_000


def test_the_shipped_model_is_the_fit_of_the_training_videos_to_the_byte(shared_data: Path) -> None:
    pytest.importorskip("sklearn", reason="pip install -e .[train] to fit models")
    videos = load_sap(shared_data / "sap" / "total_video_info.json")
    training = {name: videos[name] for name in sorted(TRAIN_VIDEOS)}
    study = Study(
        training, load_rows(shared_data / "cholec80" / "phase_tool_1hz", training), order=5, concentration=32.0
    )
    assert fit_ensemble(study, sorted(TRAIN_VIDEOS)) == load_ensemble(SHIPPED).file


def test_the_shipped_model_reaches_what_the_model_card_says(shared_data: Path) -> None:
    videos = load_sap(shared_data / "sap" / "total_video_info.json")
    rows_of = load_rows(shared_data / "cholec80" / "phase_tool_1hz", TEST_VIDEOS)
    model = load_ensemble(SHIPPED)
    assert model.full is not None
    ngram = NgramModel(statistical.fit(videos, TRAIN_VIDEOS, order=5, concentration=32.0))
    hits = [0, 0, 0]
    asked = [one for name in TEST_VIDEOS for one in examples(videos[name], rows_of.get(name)) if one.is_sample]
    for one in asked:
        full = one.instruments is not None
        features = matrix([one], full=full)[0].tolist()
        answer = model.mixed(model.full if full else model.labels, features, ngram.next_probabilities(one.history))
        ranked = sorted(answer, key=lambda action: -answer[action])
        for rank in range(3):
            hits[rank] += ACTIONS[one.target] in ranked[: rank + 1]
    assert (len(asked), hits) == (57, [48, 53, 56])
