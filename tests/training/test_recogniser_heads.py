"""Calibration and the way from instruments to actions, on made-up log odds; needs the `train` extra."""

from __future__ import annotations

import numpy as np
import pytest

WHY = "the train extra is not installed here: pip install -e .[train]"
pytest.importorskip("sklearn", reason=WHY)

from stream_agent.training.recogniser_heads import LEAST_SLOPE, action_likelihood, calibrate, fit_sharpness  # noqa: E402


def test_calibration_undoes_a_known_scale_and_offset() -> None:
    rng = np.random.default_rng(0)
    honest = rng.normal(0.0, 2.0, 20_000)
    labels = (rng.random(20_000) < 1 / (1 + np.exp(-honest))).astype(np.int64)
    slope, offset = calibrate(honest / 2 - 1, labels)
    assert [slope, offset] == pytest.approx([2, 2], abs=0.1)


def test_a_head_that_tells_nothing_gets_the_least_slope_centred() -> None:
    slope, offset = calibrate(np.array([1.0, 3.0, 1.0, 3.0]), np.array([0, 0, 1, 1]))
    assert [slope, offset] == pytest.approx([LEAST_SLOPE, -2 * LEAST_SLOPE])
    assert calibrate(np.array([1.0, 3.0]), np.array([1, 1])) == (1.0, 0.0)


def test_an_instrument_speaks_for_the_action_that_uses_it() -> None:
    presence = np.full((7, 5), 0.5)
    presence[4] = (0.1, 0.9, 0.1, 0.1, 0.1)
    seen, not_seen = np.zeros((2, 1, 7))
    seen[0, 4], not_seen[0, 4] = 5.0, -5.0
    assert action_likelihood(seen, presence).argmax() == 1
    assert action_likelihood(not_seen, presence).argmin() == 1


def test_sharpness_takes_back_what_was_said_too_surely() -> None:
    rng = np.random.default_rng(0)
    honest = rng.normal(0.0, 1.0, (20_000, 5))
    shares = np.exp(honest) / np.exp(honest).sum(1, keepdims=True)
    actions = np.array([rng.choice(5, p=row) for row in shares])
    assert fit_sharpness(3 * honest, actions) == pytest.approx(1 / 3, abs=0.05)
