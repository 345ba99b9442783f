"""Media time never falls, never starts below 0, and keeps the gaps there are."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_agent.source.media_time import MediaTime


def run(stamps: list[float | None], *, origin_s: float | None = None) -> list[float]:
    media_time = MediaTime(origin_s=origin_s, interval_s=0.04)
    return [media_time.advance(stamp) for stamp in stamps]


def test_it_counts_from_the_first_timestamp_or_the_given_origin() -> None:
    assert run([1.4, 1.44, 3.0]) == [0, 0.04, 1.6]
    assert run([1.4, 1.44], origin_s=1.0) == [0.4, 0.44]


def test_a_missing_timestamp_is_one_interval_after_the_last() -> None:
    assert run([None, None, 5.0, None]) == pytest.approx([0, 0.04, 0.04, 0.08])
    assert run([5.0, None, 5.1]) == pytest.approx([0, 0.04, 0.1])


def test_jitter_is_held_and_a_restart_goes_on() -> None:
    assert run([0.0, 1.0, 0.9, 1.1]) == pytest.approx([0, 1.0, 1.0, 1.1])
    assert run([100.0, 101.0, 0.0, 0.04, 0.08]) == pytest.approx([0, 1, 1.04, 1.08, 1.12])


def test_only_restarts_are_counted() -> None:
    media_time = MediaTime(origin_s=None, interval_s=0.04)
    for stamp in (10.0, 9.9, 10.0, 2.0, None, 2.1):
        media_time.advance(stamp)
    assert media_time.restarts == 1


def test_pictures_from_before_the_origin_are_at_zero() -> None:
    assert run([0.9, 0.95, 1.0, 1.05], origin_s=1.0) == pytest.approx([0, 0, 0, 0.05])
    assert run([3.0, 3.5], origin_s=50.0) == pytest.approx([0, 0.5])


@given(
    st.lists(st.none() | st.floats(min_value=-1e6, max_value=1e6), max_size=50),
    st.none() | st.floats(min_value=-1e6, max_value=1e6),
)
def test_it_never_falls(stamps: list[float | None], origin_s: float | None) -> None:
    times = run(stamps, origin_s=origin_s)
    assert all(later >= earlier >= 0 for earlier, later in pairwise([0.0, *times]))
