"""The fit of the model over the memory: questions see nothing of their answers, and the shipped file is its result."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from stream_agent.config import MemoryConfig, SegmenterConfig, configs_directory
from stream_agent.evaluation.dataset import INSTRUMENTS, TEST_VIDEOS, TRAIN_VIDEOS, SapClip, load_sap
from stream_agent.memory import NearHistoryMemory
from stream_agent.messages import Evidence, FrameHeader
from stream_agent.perception.segmenter import Segmenter
from stream_agent.planner.ensemble import Ensemble, Head, load_ensemble
from stream_agent.planner.features import instrument_features, instrument_names, label_names
from stream_agent.planner.ngram import NgramModel
from stream_agent.training import statistical
from stream_agent.training.planner_model import (
    ACTIONS,
    Forecasts,
    Setting,
    Study,
    conformal,
    examples,
    fit_ensemble,
    fit_head,
    line,
    load_rows,
    mixed,
    ranks,
    risk_coverage,
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


def test_conformal_sets_cover_what_comes_when_folds_are_alike() -> None:
    parts = [made_up([[0.6, 0.3, 0.0, 0.1, 0.0]] * 20, [0] * 12 + [1] * 6 + [3] * 2) for _ in range(3)]
    assert conformal(parts).startswith("pooled threshold: 100.0 % (folds 100/100/100), 3.00 actions")


def test_the_run_time_mixes_as_the_training_does() -> None:
    model = load_ensemble(SHIPPED)
    own = np.array([[0.5, 0.2, 0.15, 0.1, 0.05]])
    back_off = np.array([[0.0, 0.4, 0.3, 0.2, 0.1]])
    head = model.labels
    wanted = mixed(own, back_off, share=head.file.ngram_share, sharpness=head.file.sharpness)[0]
    prior = {action: value for action, value in zip(ACTIONS, back_off[0].tolist(), strict=True) if value}
    found = model.mixed(head, own[0], prior)
    assert [found.get(action, 0.0) for action in ACTIONS] == pytest.approx(wanted.tolist())


def test_an_exported_head_answers_as_the_models_it_was_fitted_as() -> None:
    ensemble = pytest.importorskip("sklearn.ensemble", reason="pip install -e .[train] to fit models")
    rng = np.random.default_rng(0)
    taught = [one for _ in range(12) for one in examples(clips(*rng.permutation([R, D, C]).tolist(), each_s=30), None)]
    file = fit_head(taught, Setting(1.0, 2, 0.01), full=False)
    forest = ensemble.RandomForestClassifier(n_estimators=40, random_state=0, max_features=0.3, min_samples_leaf=2)
    x = np.array([one.labels for one in taught])
    forest.fit(x.astype(np.float32), [one.target for one in taught], sample_weight=np.ones(len(taught)))
    only = msgspec.structs.replace(file, forests=file.forests[:1])
    none = msgspec.structs.replace(file, forests=())
    for row in x:
        exported = 2 * Head(only, 5).probabilities(row.tolist()) - Head(none, 5).probabilities(row.tolist())
        wanted = np.zeros(5)
        wanted[forest.classes_] = forest.predict_proba([row])[0]
        assert exported == pytest.approx(wanted, abs=2e-3)


def test_the_shipped_model_is_for_the_features_of_the_code_and_small() -> None:
    model = load_ensemble(SHIPPED)
    assert isinstance(model, Ensemble)
    assert model.labels.file.features == label_names(ACTIONS)
    assert SHIPPED.stat().st_size < 300_000


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
        head, features = (
            (model.labels, one.labels) if one.instruments is None else (model.full, one.labels + one.instruments)
        )
        answer = model.mixed(head, head.probabilities(features), ngram.next_probabilities(one.history))
        ranked = sorted(answer, key=lambda action: -answer[action])
        for rank in range(3):
            hits[rank] += ACTIONS[one.target] in ranked[: rank + 1]
    assert (len(asked), hits) == (57, [48, 55, 57])
