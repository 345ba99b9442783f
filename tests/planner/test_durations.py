"""Durations: quantiles, and what is left once some has passed."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_agent.planner.durations import DurationDistribution, distribution

UNIFORM = DurationDistribution(n=100, quantiles_s=(0.0, 25.0, 50.0, 75.0, 100.0))
"""95 % of the mass even between 0 and 100 s, the rest in the tail."""


def test_quantiles_interpolate_between_the_stored_ones() -> None:
    assert UNIFORM.quantile(0.0) == 0
    assert UNIFORM.quantile(0.475) == pytest.approx(50)


def test_what_is_left_is_conditional_on_what_has_passed() -> None:
    # 50 of 100 s have passed: 47.5 % ended, half of the other 52.5 % end by the level 0.7375 = 77.63 s
    assert UNIFORM.remaining_s(50, 0.5) == pytest.approx(0.7375 / 0.95 * 100 - 50)


def test_beyond_the_longest_ever_seen_the_expected_rest_stays_the_same() -> None:
    excess_s = (75 + 100) / 2 - 75
    for elapsed_s in (100.0, 500.0, 5000.0):
        assert UNIFORM.remaining_s(elapsed_s, 0.5) == pytest.approx(excess_s * math.log(2))


def test_a_fit_of_measured_durations_has_their_extremes_and_median() -> None:
    fitted = distribution([30.0, 10.0, 20.0])
    assert (fitted.n, fitted.quantiles_s[0], fitted.quantiles_s[10], fitted.quantiles_s[-1]) == (3, 10, 20, 30)
    with pytest.raises(ValueError, match="no durations"):
        distribution([])
    with pytest.raises(ValueError, match="level=1"):
        fitted.quantile(1)


@given(
    st.lists(st.floats(0.5, 5000), min_size=1, max_size=30),
    st.floats(0, 20_000),
    st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
)
def test_what_is_left_is_finite_never_negative_and_rises_with_the_level(
    measured: list[float], elapsed_s: float, levels: tuple[float, float]
) -> None:
    fitted = distribution(measured)
    assert fitted.problem() == ""
    low, high = (fitted.remaining_s(elapsed_s, level) for level in sorted(levels))
    assert 0 <= low <= high + 1e-9
    assert math.isfinite(high)
    assert 0 <= fitted.ended_by(elapsed_s) <= 1
