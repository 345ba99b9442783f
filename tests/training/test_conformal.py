"""Sets of actions: what they cover, and how wide they have to be for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stream_agent.training.conformal import conformal, held_to, narrowest, quantile
from stream_agent.training.forecasts import Forecasts, joined
from tests.training.annotated_clips import made_up


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
