"""What a response is worth: five small judgements and their weighted sum; pure.

    response ─▶ the actions it ranks ─▶ format · rank of the truth · relaxed hit · broken rules ─┐
             └▶ its length ──────────────────────────────────────────────────────────────────────┴▶ total ─▶ advantage

The checks are those of the running agent and not copies of them: a written plan goes through the rationale lane's `checked`, a code
through the rank lane's table, rules through the procedure pack. So nothing is rewarded that the agent would refuse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from stream_agent.config import Section
from stream_agent.errors import BackendError
from stream_agent.messages import Memory
from stream_agent.planner.rationale_lane import checked
from stream_agent.procedure import ProcedurePack
from stream_agent.prompts import CODES

AnswerForm: TypeAlias = Literal["rank", "plan"]
"""`rank`: the code of one choice. `plan`: JSON by the rationale schema."""

Weight = Annotated[float, Field(ge=0, le=100)]


class RewardConfig(Section):
    """How much each judgement counts; 0 leaves it out.

    The rank of the truth weighs most: it is what is measured in the end. A broken rule takes back what a relaxed hit gives, so that
    a forbidden action is never worth more than a wrong but allowed one.
    """

    format: Weight = Field(default=0.5, description="For a response that the agent would accept.")
    rank: Weight = Field(default=1.0, description="For the truth's reciprocal rank.")
    relaxed: Weight = Field(default=0.25, description="For a top action that comes next or after that.")
    rules: Weight = Field(default=0.5, description="Against ranked actions that break a rule.")
    length: Weight = Field(default=0.25, description="Against what is longer than `longest`.")
    longest: int = Field(default=800, ge=1, le=16_384, description="Characters that cost nothing.")

    @model_validator(mode="after")
    def _rewards_something(self) -> RewardConfig:
        if self.rank == 0 and self.relaxed == 0:
            raise ValueError(
                "rewards.rank=0 and rewards.relaxed=0: the truth would not matter, so any accepted response is best; "
                "give one of them a weight"
            )
        return self


@dataclass(frozen=True, slots=True)
class Situation:
    """All that a response is judged by.

    Attributes:
        form: How it answers.
        choices: What may come next, in the order of their codes.
        target: What came next.
        following: What came after that; empty if nothing did.
        broken: Ids of the rules that beginning a choice now would break; a choice that breaks none may be left out.
        current: What is going on, which is never the next action; some forms of the question list it among the choices.
    """

    form: AnswerForm
    choices: tuple[str, ...]
    target: str
    following: str
    broken: Mapping[str, tuple[str, ...]]
    current: str | None = None


@dataclass(frozen=True, slots=True)
class Reward:
    """The five judgements of one response and their weighted sum."""

    format: float
    rank: float
    relaxed: float
    rules: float
    length: float
    total: float


def broken_rules(pack: ProcedurePack, memory: Memory, choices: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Ids of the rules that each choice would break if it began now; choices that break none are left out."""
    found = {action: tuple(rule.id for rule in pack.violations(memory, action)) for action in choices}
    return {action: ids for action, ids in found.items() if ids}


def ranked_by(text: str, form: AnswerForm, choices: Sequence[str], current: str | None = None) -> tuple[str, ...]:
    """The actions that a response ranks, the likeliest first; none if the agent would not accept it.

    A code is taken to the letter: the rank lane asks for the probability of that very token, and masks what is going on.
    """
    if form == "rank":
        codes = {code: choice for code, choice in zip(CODES, choices, strict=False) if choice != current}
        return (codes[text],) if text in codes else ()
    try:
        return tuple(action for action, _ in checked(text, choices).ranked)
    except BackendError:
        return ()


def format_validity(ranked: Sequence[str]) -> float:
    """1 for a response that the agent would accept, else 0."""
    return 1.0 if ranked else 0.0


def rank_of_truth(ranked: Sequence[str], target: str) -> float:
    """One over the truth's place: 1, 1/2, 1/3; 0 if it is not ranked."""
    return 1.0 / (1 + ranked.index(target)) if target in ranked else 0.0


def relaxed_hit(ranked: Sequence[str], target: str, following: str) -> float:
    """1 if the top action is one of {a_i, a_i+1} (the paper's relaxed accuracy at 1), else 0."""
    return 1.0 if ranked and ranked[0] in {target, following} - {""} else 0.0


def rule_violations(ranked: Sequence[str], broken: Mapping[str, Sequence[str]]) -> float:
    """How much of a ranking breaks a rule, 0 to 1: each place weighs one over its number, for the top one is acted upon."""
    weights = [1.0 / place for place in range(1, len(ranked) + 1)]
    bad = sum(weight for weight, action in zip(weights, ranked, strict=True) if broken.get(action))
    return bad / sum(weights) if weights else 0.0


def excess_length(text: str, longest: int) -> float:
    """0 up to `longest` characters, 1 from twice as many on, straight between."""
    return min(1.0, max(0.0, len(text) / longest - 1.0))


def reward(text: str, situation: Situation, config: RewardConfig) -> Reward:
    """What one response is worth."""
    ranked = ranked_by(text, situation.form, situation.choices, situation.current)
    judged = {
        "format": format_validity(ranked),
        "rank": rank_of_truth(ranked, situation.target),
        "relaxed": relaxed_hit(ranked, situation.target, situation.following),
        "rules": -rule_violations(ranked, situation.broken),
        "length": -excess_length(text, config.longest),
    }
    total = sum(float(getattr(config, name)) * value for name, value in judged.items())
    return Reward(**judged, total=total)


def objections(text: str, situation: Situation) -> tuple[str, ...]:
    """Why a response must not be learnt from, one word or rule id each; empty if it is right and breaks no rule.

    `format` for one that the agent would not accept, `label` for a wrong top action, and every rule that the top action breaks.
    """
    ranked = ranked_by(text, situation.form, situation.choices, situation.current)
    if not ranked:
        return ("format",)
    wrong = () if ranked[0] == situation.target else ("label",)
    return (*wrong, *situation.broken.get(ranked[0], ()))


def group_advantages(rewards: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centre and scale each prompt's rewards, (prompts, samples) -> same shape.

    DeepSeekMath (arXiv:2402.03300), section 4.1.2, outcome supervision: A_i = (r_i - mean r) / std r. The paper does not say which
    deviation; we take the sample's (n - 1), as TRL does. We differ in one way: a group of equal rewards yields zeros, since it
    carries no signal and would divide by nothing.

    Raises:
        ValueError: A group has fewer than two samples, or a reward is no number.
    """
    if rewards.ndim != 2 or rewards.shape[1] < 2:
        raise ValueError(f"rewards of shape {rewards.shape} are not (prompts, samples) with two samples or more")
    if not np.isfinite(rewards).all():
        raise ValueError("rewards must be finite; one is not")
    centred = rewards - rewards.mean(1, keepdims=True)
    spread = rewards.std(1, ddof=1, keepdims=True)
    equal = np.ptp(rewards, axis=1, keepdims=True) == 0  # the deviation of equal numbers can come out as 1e-17
    scaled: NDArray[np.float64] = np.where(equal, 0.0, centred / np.where(equal, 1.0, spread))
    return scaled
