"""Each part of the model over the memory is the fit that it says it is."""

from __future__ import annotations

import numpy as np
import pytest

from stream_agent.planner.ensemble import EndingModel, Head
from stream_agent.training.planner_heads import TREES, Setting, fit_ending, fit_head, fit_linear
from stream_agent.training.planner_questions import FULL_FEATURES, early_examples, examples, matrix, moments
from stream_agent.training.statistical import ACTIONS
from tests.training.annotated_clips import C, D, R, clips, rows


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
