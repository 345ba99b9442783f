"""What a response is worth, against cases worked by hand and the agent's own checks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pydantic import ValidationError

from stream_agent.messages import Clip, Memory
from stream_agent.procedure import ProcedurePack, load_pack
from stream_agent.training.rewards import (
    RewardConfig,
    Situation,
    broken_rules,
    excess_length,
    format_validity,
    group_advantages,
    objections,
    rank_of_truth,
    ranked_by,
    relaxed_hit,
    reward,
    rule_violations,
)

CHOICES = ("Vessel Clipping", "Tissue Retraction", "Coagulation", "Aspiration")
PLAIN = RewardConfig(format=1, rank=1, relaxed=1, rules=1, length=1, longest=100)


@pytest.fixture(scope="module")
def pack() -> ProcedurePack:
    return load_pack(Path("cholecystectomy"))


def plan(*actions: str, why: str = "seen", **changes: object) -> str:
    said = {"ranked": [{"action": action, "why": why} for action in actions], "progress": "midway", "safety": ["look"]}
    return json.dumps({**said, **changes})


def situation(**changes: object) -> Situation:
    first = Situation("rank", CHOICES, target="Vessel Clipping", following="Coagulation", broken={})
    return replace(first, **changes)  # type: ignore[arg-type]


def memory(*labels: str, each_s: float = 30.0) -> Memory:
    clips = tuple(Clip(label, place * each_s, (place + 1) * each_s, 1.0) for place, label in enumerate(labels[:-1]))
    start_s = len(clips) * each_s
    return Memory(
        stream_id="s",
        session_id="s",
        case_id="c",
        now_pts_s=start_s + each_s,
        clips=clips,
        current=labels[-1],
        current_start_pts_s=start_s,
    )


# ---------------------------------------------------------------------------------------------------- what is ranked


def test_a_code_stands_for_the_choice_in_its_place() -> None:
    assert ranked_by("B", "rank", CHOICES) == ("Tissue Retraction",)


@pytest.mark.parametrize("text", ["", "E", " B", "B.", "b", "Tissue Retraction", "AB", "B\n"])
def test_what_the_rank_lane_would_not_ask_for_is_no_answer(text: str) -> None:
    assert ranked_by(text, "rank", CHOICES) == ()


def test_what_is_going_on_is_no_answer_where_the_question_lists_it() -> None:
    """The coded question has the current action among its choices, and the rank lane masks it; it once earned its format."""
    assert ranked_by("B", "rank", CHOICES, current="Tissue Retraction") == ()
    asked = situation(current="Tissue Retraction")
    assert reward("B", asked, RewardConfig()).total == 0
    assert objections("B", asked) == ("format",)
    assert reward("A", asked, RewardConfig()).total == reward("A", situation(), RewardConfig()).total


def test_a_plan_ranks_what_its_json_ranks() -> None:
    assert ranked_by(plan(*CHOICES[:3]), "plan", CHOICES) == CHOICES[:3]


@pytest.mark.parametrize(
    "text",
    [
        "A",
        plan(*CHOICES[:3])[:-1],
        plan(*CHOICES[:2]),
        plan(CHOICES[0], CHOICES[0], CHOICES[1]),
        plan("Dissection", *CHOICES[:2]),
        plan(*CHOICES[:3], extra=1),
        plan(*CHOICES[:3], why=""),
        "{" * 100_000,
    ],
)
def test_a_plan_that_the_rationale_lane_drops_ranks_nothing(text: str) -> None:
    assert ranked_by(text, "plan", CHOICES) == ()


# ---------------------------------------------------------------------------------------------------- the five judgements


def test_the_truth_is_worth_one_over_its_place() -> None:
    ranked = CHOICES[:3]
    assert [rank_of_truth(ranked, action) for action in CHOICES] == [1, 1 / 2, 1 / 3, 0]
    assert rank_of_truth((), CHOICES[0]) == 0


def test_a_relaxed_hit_is_the_action_that_comes_next_or_after_it() -> None:
    assert relaxed_hit(("B", "A"), "A", "B") == 1
    assert relaxed_hit(("A", "C"), "A", "B") == 1
    assert relaxed_hit(("C", "A"), "A", "B") == 0
    assert relaxed_hit((), "A", "") == 0, "no answer is no hit, nor is the end of a video"


def test_a_rule_broken_first_weighs_most() -> None:
    broken = {"A": ("rule",)}
    assert rule_violations(("A", "B", "C"), broken) == pytest.approx(6 / 11)  # 1 of 1 + 1/2 + 1/3
    assert rule_violations(("B", "A", "C"), broken) == pytest.approx(3 / 11)
    assert rule_violations(("B", "C", "A"), broken) == pytest.approx(2 / 11)
    assert rule_violations(("A",), broken) == 1
    assert rule_violations(("B", "C"), broken) == rule_violations((), broken) == 0


def test_length_costs_nothing_at_first_and_everything_at_twice_as_much() -> None:
    assert [excess_length("x" * length, 100) for length in (0, 100, 150, 200, 1000)] == [0, 0, 0.5, 1, 1]


def test_format_is_worth_something_only_where_an_action_is_ranked() -> None:
    assert (format_validity(("A",)), format_validity(())) == (1, 0)


# ---------------------------------------------------------------------------------------------------- their sum


def test_the_total_is_the_weighted_sum() -> None:
    asked = situation(form="plan", broken={"Coagulation": ("rule",)})
    text = plan("Tissue Retraction", "Vessel Clipping", "Coagulation")
    config = RewardConfig(format=0.5, rank=2, relaxed=3, rules=1.1, length=0.25, longest=len(text))
    judged = reward(text, asked, config)
    assert (judged.format, judged.rank, judged.relaxed, judged.length) == (1, 0.5, 0, 0)
    assert judged.rules == pytest.approx(-2 / 11)
    assert judged.total == pytest.approx(0.5 + 2 * 0.5 + 0 - 1.1 * 2 / 11)


def test_the_truth_beats_the_next_but_one_beats_the_wrong_beats_the_forbidden_beats_nonsense_at_the_defaults() -> None:
    asked = situation(broken={"Aspiration": ("rule",)})
    totals = [reward(text, asked, RewardConfig()).total for text in ("A", "C", "B", "D", "the surgeon clips")]
    assert totals[:4] == sorted(totals[:4], reverse=True)
    assert len(set(totals[:4])) == 4
    assert totals[3] == totals[4] == 0, "a forbidden action is worth no more than no answer"


def test_a_reward_that_ignores_the_truth_is_refused() -> None:
    with pytest.raises(ValidationError, match="the truth would not matter"):
        RewardConfig(rank=0, relaxed=0)
    with pytest.raises(ValidationError, match="extra"):
        RewardConfig(lenght=1)  # type: ignore[call-arg]


@given(text=st.text(max_size=300), form=st.sampled_from(["rank", "plan"]))
def test_any_text_gets_a_bounded_reward(text: str, form: str) -> None:
    judged = reward(text, situation(form=form, broken={"Coagulation": ("x",)}), PLAIN)
    assert -2 <= judged.total <= 3


# ---------------------------------------------------------------------------------------------------- rules and learning


def test_rules_are_the_packs_own(pack: ProcedurePack) -> None:
    """Clipping before any dissection breaks two rules of the pack, after a minute of it none."""
    early, late = memory("Tissue Retraction"), memory("Dissection", each_s=90)
    assert broken_rules(pack, early, CHOICES) == {
        "Vessel Clipping": ("dissection-before-clipping", "dissection-long-enough")
    }
    assert broken_rules(pack, late, CHOICES) == {}


def test_only_what_is_right_and_allowed_may_be_learnt_from(pack: ProcedurePack) -> None:
    allowed = situation(form="plan")
    forbidden = situation(form="plan", broken=broken_rules(pack, memory("Tissue Retraction"), CHOICES))
    right = plan(*CHOICES[:3])
    assert objections(right, allowed) == ()
    assert objections(right, forbidden) == ("dissection-before-clipping", "dissection-long-enough")
    assert objections(plan("Coagulation", *CHOICES[:2]), forbidden) == ("label",)
    assert objections("nonsense", allowed) == ("format",)


# ---------------------------------------------------------------------------------------------------- advantages


def test_advantages_against_a_group_worked_by_hand() -> None:
    """Mean 2, squares 4 + 0 + 0 + 4, over n - 1: 8/3."""
    scaled = group_advantages(np.array([[0.0, 2.0, 2.0, 4.0]]))
    np.testing.assert_allclose(scaled, np.array([[-2, 0, 0, 2]]) / np.sqrt(8 / 3))


def test_a_group_of_equal_rewards_carries_no_signal() -> None:
    """0.1 is not exact: the mean of three of it differs from it, and the quotient once was 1 instead of 0."""
    scaled = group_advantages(np.array([[0.1] * 3, [0.7] * 3, [1.0, 0.0, 0.0]]))
    assert not scaled[:2].any()
    assert scaled[2].any()


@given(
    rewards=arrays.arrays(
        np.float64, st.tuples(st.integers(1, 5), st.integers(2, 9)), elements=st.floats(-3, 3, width=16)
    )
)
def test_advantages_are_centred_scaled_and_keep_the_order(rewards: np.ndarray) -> None:
    scaled = group_advantages(rewards)
    for before, after in zip(rewards, scaled, strict=True):
        assert after.sum() == pytest.approx(0, abs=1e-6)
        if before.min() < before.max():
            assert after.std(ddof=1) == pytest.approx(1)
            assert (np.argsort(before, kind="stable") == np.argsort(after, kind="stable")).all()
        else:
            assert not after.any()


@pytest.mark.parametrize("rewards", [np.zeros(4), np.zeros((2, 1)), np.array([[1.0, np.nan]])])
def test_what_is_no_group_is_refused(rewards: np.ndarray) -> None:
    with pytest.raises(ValueError, match="rewards"):
        group_advantages(rewards)
