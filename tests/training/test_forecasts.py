"""Figures worked out by hand, and answers to many questions at once that are those of the run time one by one."""

from __future__ import annotations

import numpy as np
import pytest

from stream_agent.config import configs_directory
from stream_agent.evaluation.dataset import INSTRUMENTS
from stream_agent.messages import Memory
from stream_agent.planner.ensemble import load_ensemble
from stream_agent.training.forecasts import Forecasts, errors, line, mixed, ranks, risk_coverage, unless_ending
from stream_agent.training.planner_questions import LABEL_FEATURES, examples, matrix
from stream_agent.training.statistical import ACTIONS
from tests.training.annotated_clips import C, D, R, clips, made_up

SHIPPED = configs_directory() / "procedures" / "cholecystectomy" / "ensemble.json"


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
