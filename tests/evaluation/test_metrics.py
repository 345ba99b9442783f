"""The metrics against cases worked by hand, and against what the paper published."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_agent.evaluation import metrics
from stream_agent.evaluation.dataset import TEST_VIDEOS, load_sap
from stream_agent.evaluation.metrics import Outcome


def outcome(
    video: str, index: int, target: str, ranked: str, following: str = "", probabilities: tuple[float, ...] = ()
) -> Outcome:
    return Outcome(video, index, target, following, tuple(ranked), probabilities)


# Video A: 1st, 2nd, 3rd rank; video B: right at once; VID42: never.
WORKED = [
    outcome("A", 0, "d", "dvr", "v"),
    outcome("A", 1, "v", "dvr", "d"),
    outcome("A", 2, "r", "dvr"),
    outcome("B", 0, "d", "dvr", "r"),
    outcome("VID42", 0, "x", "dvr", "y"),
]

outcomes_strategy = st.lists(
    st.builds(
        Outcome,
        video=st.sampled_from("ABC"),
        index=st.integers(0, 50),
        target=st.sampled_from("dvr"),
        following=st.sampled_from(["", "d", "v", "r"]),
        ranked=st.permutations("dvr").map(tuple),
        probabilities=st.just((0.5, 0.3, 0.2)),
    ),
    min_size=1,
    max_size=30,
)


def test_accuracy_by_samples_and_by_videos() -> None:
    assert [metrics.slacc(WORKED, k) for k in (1, 2, 3)] == pytest.approx([40, 60, 80])
    assert metrics.vlacc(WORKED, 1) == pytest.approx((100 / 3 + 100 + 0) / 3)
    assert metrics.vlacc_published(WORKED, 1) == pytest.approx((100 / 3 + 100) / 2)


def test_relaxed_accuracy_counts_samples_with_a_next_action_only() -> None:
    assert metrics.re_slacc(WORKED, 1) == pytest.approx(75)
    assert metrics.re_vlacc(WORKED, 1) == pytest.approx((100 + 100 + 0) / 3)


def test_an_empty_following_action_is_never_hit() -> None:
    assert not Outcome("A", 0, "v", "", ("d",)).hit_relaxed(1)


def test_an_abstention_is_wrong() -> None:
    silent = [outcome("A", 0, "d", ""), outcome("A", 1, "d", "d")]
    assert metrics.slacc(silent, 3) == 50
    assert metrics.macro_f1(silent) == pytest.approx(100 * 2 / 3)


def test_macro_f1_weighs_every_action_alike() -> None:
    # d: precision 2/4, recall 1 -> 2/3; v, r and x never said -> 0
    assert metrics.macro_f1(WORKED) == pytest.approx(100 * (2 * 2 / (5 + 2)) / 4)


def test_nothing_has_no_accuracy() -> None:
    assert math.isnan(metrics.slacc([], 1))
    assert math.isnan(metrics.vlacc([], 1))
    assert math.isnan(metrics.bootstrap_slacc([], 1).low)
    assert math.isnan(metrics.paired_bootstrap([], []).value)
    assert math.isnan(metrics.ece(WORKED))
    assert math.isnan(metrics.brier(WORKED))


def test_calibration_error_is_the_weighted_distance_of_stated_and_observed() -> None:
    stated = [
        outcome("A", 0, "d", "dv", probabilities=(0.9, 0.1)),
        outcome("A", 1, "v", "dv", probabilities=(0.9, 0.1)),
        outcome("A", 2, "d", "dv", probabilities=(0.6, 0.4)),
    ]
    assert metrics.ece(stated) == pytest.approx((2 * 0.4 + 1 * 0.4) / 3)
    assert metrics.brier(stated) == pytest.approx((0.02 + 2 * 0.81 + 0.32) / 3)
    assert [(part.n, part.observed) for part in metrics.reliability(stated)] == [(1, 1.0), (2, 0.5)]


def test_the_error_of_a_calibrated_planner_shrinks_with_the_square_root_of_its_answers() -> None:
    """All in one bin at p = 0.6: the mean distance of a binomial from its mean, sqrt(2 p (1 - p) / (pi n))."""
    few, many = metrics.expected_ece([0.6] * 50), metrics.expected_ece([0.6] * 200)
    assert few.value == pytest.approx(math.sqrt(2 * 0.24 / (math.pi * 50)), rel=0.08)
    assert many.value == pytest.approx(few.value / 2, rel=0.1)
    assert few.low < few.value < few.high
    assert metrics.expected_ece([0.6] * 50) == few
    assert math.isnan(metrics.expected_ece([]).value)


def test_the_area_under_risk_and_coverage_is_that_of_its_steps() -> None:
    surest = outcome("A", 0, "d", "dv", probabilities=(0.9, 0.1))
    wrong = outcome("A", 1, "v", "dv", probabilities=(0.6, 0.4))
    assert metrics.aurc([wrong, surest]) == pytest.approx((0 + 0.5) / 2)
    assert metrics.aurc([surest]) == 0
    assert math.isnan(metrics.aurc([outcome("A", 0, "d", "dv")]))


def test_brier_counts_a_target_that_was_not_ranked_as_probability_zero() -> None:
    assert metrics.brier([outcome("A", 0, "x", "dv", probabilities=(0.9, 0.1))]) == pytest.approx(1 + 0.82)


def test_equal_confidences_are_one_point_of_the_risk_coverage_curve() -> None:
    stated = [
        outcome("A", 0, "d", "d", probabilities=(0.9,)),
        outcome("A", 1, "v", "d", probabilities=(0.5,)),
        outcome("A", 2, "d", "d", probabilities=(0.5,)),
    ]
    (first, second) = metrics.risk_coverage(stated)
    assert first == pytest.approx((1 / 3, 0))
    assert second == pytest.approx((1, 1 / 3))


@given(outcomes_strategy)
def test_more_ranks_never_hit_less_and_intervals_hold_the_extremes(outcomes: list[Outcome]) -> None:
    assert metrics.slacc(outcomes, 1) <= metrics.slacc(outcomes, 2) <= metrics.slacc(outcomes, 3) == 100
    interval = metrics.bootstrap_vlacc(outcomes, 1, draws=50)
    assert 0 <= interval.low <= interval.high <= 100
    difference = metrics.paired_bootstrap(outcomes, outcomes, draws=20)
    assert (difference.value, difference.low, difference.high, difference.p_value) == (0, 0, 0, 1)


def test_the_interval_of_a_single_video_has_no_width() -> None:
    interval = metrics.bootstrap_slacc(WORKED[:3], 1)
    assert [interval.low, interval.value, interval.high] == pytest.approx([100 / 3] * 3)


def test_a_planner_better_in_every_video_is_surely_better() -> None:
    better = [outcome(f"V{number}", 0, "d", "dvr") for number in range(20)]
    worse = [outcome(f"V{number}", 0, "d", "vdr") for number in range(20)]
    difference = metrics.paired_bootstrap(better, list(reversed(worse)), draws=999)
    assert (difference.value, difference.low) == (100, 100)
    assert difference.p_value == pytest.approx(2 / 1000)


def test_planners_asked_different_things_are_not_paired() -> None:
    with pytest.raises(ValueError, match="different samples"):
        metrics.paired_bootstrap(WORKED, WORKED[1:])


def test_weighted_anticipation_error_weighs_inside_and_outside_alike() -> None:
    errors = metrics.anticipation_errors([10, 50, 100, 0, 5], [20, 20, 60, 90, 0], horizon_s=60)
    assert errors is not None
    # inside 0 < r < 60: |10-20|, |50-20|; outside: |60-60|, |0-60|; an action that goes on (r = 0) counts in neither
    assert (errors.inside_s, errors.outside_s, errors.weighted_s) == (20, 30, 25)
    assert metrics.anticipation_errors([1], [1], horizon_s=60) is None


def test_chains_are_compared_by_edit_distance() -> None:
    assert metrics.edit_distance("kitten", "sitting") == 3
    pairs = [("dvd", "dvd"), ("dvr", "vdr"), ("dvr", "dv")]
    score = metrics.chain_score(pairs, 3)
    assert (score.n, score.exact_match) == (2, 50)
    assert score.edit_distance == pytest.approx((0 + 2 / 3) / 2)


@given(st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_edit_distance_is_a_metric(first: str, second: str) -> None:
    distance = metrics.edit_distance(first, second)
    assert distance == metrics.edit_distance(second, first)
    assert (distance == 0) == (first == second)
    assert abs(len(first) - len(second)) <= distance <= max(len(first), len(second))


def test_mean_absolute_error() -> None:
    assert metrics.mean_absolute_error([1, 5], [2, 2]) == 2


def test_the_constant_answer_gives_the_published_numbers(shared_data: Path) -> None:
    """LLM-SAP, Table 1: the top-1 numbers of all four Qwen2.5 rows, to the digit."""
    videos = load_sap(shared_data / "sap" / "total_video_info.json")
    constant = [
        Outcome(video, clip.index, clip.action, clip.next_action, ("Dissection",))
        for video in sorted(TEST_VIDEOS)
        for clip in videos[video]
        if clip.is_sample
    ]
    assert len(constant) == 57
    assert round(metrics.slacc(constant, 1), 2) == 45.61
    assert round(metrics.vlacc_published(constant, 1), 2) == 53.42
    assert round(metrics.vlacc(constant, 1), 2) == 49.86
    assert round(metrics.re_slacc(constant, 1), 2) == 67.44
    assert round(metrics.re_vlacc(constant, 1), 2) == 78.97
