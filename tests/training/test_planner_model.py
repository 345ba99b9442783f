"""The shipped model is the fit of the training videos, for the code as it is, and reaches what is said of it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from stream_agent.config import configs_directory
from stream_agent.evaluation.dataset import INSTRUMENTS, TEST_VIDEOS, TRAIN_VIDEOS, load_sap
from stream_agent.instrument_use import use_after
from stream_agent.messages import Clip, Memory
from stream_agent.planner.ensemble import Ensemble, load_ensemble
from stream_agent.planner.ngram import NgramModel
from stream_agent.training import statistical
from stream_agent.training.planner_model import fit_ensemble
from stream_agent.training.planner_questions import FULL_FEATURES, LABEL_FEATURES, examples, load_rows, matrix
from stream_agent.training.planner_study import Study
from stream_agent.training.statistical import ACTIONS
from tests.training.annotated_clips import C, D, R, clips

SHIPPED = configs_directory() / "procedures" / "cholecystectomy" / "ensemble.json"


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
