"""Made-up procedures: lawful for any statistics, and the same for one seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_agent.messages import Clip
from stream_agent.source.timeline import synthetic_timeline

WEIGHTS = {"cut": 3.0, "hold": 1.0, "rinse": 0.5}


def draw(seed: int = 3, total_s: float = 720) -> tuple[Clip, ...]:
    return synthetic_timeline(
        next_probabilities=lambda _labels: WEIGHTS,
        duration_s=lambda _action, quantile: 20 + 100 * quantile,
        total_s=total_s,
        seed=seed,
    )


@given(
    seed=st.integers(min_value=0, max_value=2**31),
    total_s=st.floats(min_value=0.1, max_value=5000),
)
def test_clips_cover_the_time_without_gaps_or_repeats(seed: int, total_s: float) -> None:
    clips = draw(seed, total_s)
    assert clips[0].start_pts_s == 0
    assert clips[-1].end_pts_s == total_s
    assert all(one.duration_s > 0 for one in clips)
    for one, following in pairwise(clips):
        assert following.start_pts_s == one.end_pts_s
        assert following.action != one.action


def test_one_seed_gives_one_timeline() -> None:
    """Written down, so that another machine or Python version that draws another one is noticed."""
    assert draw() == draw()
    assert draw(4) != draw()
    assert [one.action for one in draw()][:5] == ["cut", "hold", "cut", "hold", "cut"]


def test_labels_so_far_are_what_the_statistics_see() -> None:
    seen: list[tuple[str, ...]] = []

    def next_probabilities(labels: Sequence[str]) -> Mapping[str, float]:
        seen.append(tuple(labels))
        return {"b": 1.0} if labels[-1:] == ("a",) else {"a": 1.0, "b": 0.0}

    clips = synthetic_timeline(
        next_probabilities=next_probabilities, duration_s=lambda _action, _quantile: 10, total_s=40, seed=1
    )
    assert [one.action for one in clips] == ["a", "b", "a", "b"]
    assert seen == [(), ("a",), ("a", "b"), ("a", "b", "a")]


def test_statistics_with_nowhere_to_go_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"no next action has a positive weight after \['a'\]"):
        synthetic_timeline(next_probabilities=lambda _labels: {"a": 1.0}, duration_s=lambda _a, _q: 1.0, total_s=10)
