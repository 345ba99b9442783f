from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stream_agent.errors import BackendError, ConfigError
from stream_agent.messages import PlanRequest
from stream_agent.planner.backends.protocol import Call, Prompt
from stream_agent.planner.backends.rehearsed import RehearsedBackend
from stream_agent.planner.rank_lane import RankLane, choices_of, cyclic_orders
from stream_agent.prompts import PromptFactory
from tests.planner.moments import ACTIONS, CLIPPING, DISSECTION, PACK, ask, config

CALL = Call("1")


def lane(backend: Any = None, *, permutations: int = 0, temperature: float = 1.0, **settings: Any) -> RankLane:
    settings_ = config(**settings)
    return RankLane(
        backend or RehearsedBackend(settings_),
        PromptFactory(PACK, settings_),
        ACTIONS,
        permutations=permutations,
        temperature=temperature,
    )


def belief(ranks: RankLane, request: PlanRequest | None = None) -> NDArray[np.float64]:
    [found] = asyncio.run(ranks.rank([request or ask()], CALL))
    return found


def test_it_is_a_distribution_over_the_pack_without_the_current_action() -> None:
    found = belief(lane())
    assert found.shape == (5,)
    assert found.sum() == pytest.approx(1)
    assert found[ACTIONS.index("Aspiration")] == 0
    assert belief(lane(), ask(current=None)).min() > 0


def test_beliefs_come_back_to_their_actions_whatever_the_order() -> None:
    beliefs = {
        DISSECTION: math.log(0.6),
        CLIPPING: math.log(0.3),
        "Coagulation": math.log(0.06),
        "Tissue Retraction": math.log(0.04),
    }
    found = belief(lane(rehearsed_scores=[{"beliefs": beliefs}]))
    assert found == pytest.approx([0.6, 0.3, 0.04, 0.06, 0.0])


def test_a_preference_for_the_first_place_is_taken_off_by_the_orders() -> None:
    beliefs = dict.fromkeys(ACTIONS, 0.0) | {"Coagulation": 0.5}
    script = [{"beliefs": beliefs, "position_bias": 3.0}]
    one = belief(lane(rehearsed_scores=script, permutations=1))
    assert one.argmax() == 0, "with one order the first choice wins"
    every = belief(lane(rehearsed_scores=script))
    assert every.argmax() == ACTIONS.index("Coagulation")
    assert every == pytest.approx(belief(lane(rehearsed_scores=[{"beliefs": beliefs}])))


def test_a_temperature_flattens() -> None:
    script = [{"beliefs": dict.fromkeys(ACTIONS, 0.0) | {CLIPPING: 2.0}}]
    cold, warm = (belief(lane(rehearsed_scores=script, temperature=t)) for t in (1.0, 4.0))
    assert cold.max() / cold[0] == pytest.approx(math.exp(2))
    assert warm.max() / warm[0] == pytest.approx(math.exp(0.5))


def test_several_requests_are_one_batch() -> None:
    backend = RehearsedBackend(config())
    found = asyncio.run(lane(backend).rank([ask(), ask(current=DISSECTION)], CALL))
    assert [len(prompts) for _, _, prompts in backend.calls] == [8]
    assert found[0] == pytest.approx(belief(lane()))


def test_the_action_going_on_is_listed_in_a_coded_question_and_still_never_next() -> None:
    backend = RehearsedBackend(config(rehearsed_scores=[{"beliefs": {"Aspiration": 0.0, DISSECTION: -3.0}}]))
    found = belief(lane(backend, question="coded"))
    [(_, _, prompts)] = backend.calls
    assert len(prompts) == 5, "every action in every place"
    assert found[ACTIONS.index("Aspiration")] == 0
    assert found.sum() == pytest.approx(1)
    assert np.count_nonzero(found) == 4


class Telling:
    """A backend that gives these scores."""

    def __init__(self, scores: list[list[float]], tokens: dict[str, tuple[int, ...]] | None = None) -> None:
        self._scores = np.array(scores)
        self._tokens = tokens

    def tokens(self, text: str) -> tuple[int, ...] | None:
        return None if self._tokens is None else self._tokens.get(text, (7,))

    async def score(
        self, prompts: Sequence[Prompt], candidates: Sequence[Sequence[str]], call: Call
    ) -> NDArray[np.float64]:
        return self._scores


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ([[0.0, math.nan, 0.0, 0.0]], "no numbers"),
        ([[0.0, math.inf, 0.0, 0.0]], "no numbers"),
        ([[-math.inf] * 4], "none of the actions"),
        ([[0.0, -1.0, -math.inf, -math.inf]], "only 2 of 4"),
        ([[0.0, 0.0]], "shape"),
    ],
)
def test_what_is_no_belief_is_an_error_and_never_repaired(scores: list[list[float]], said: str) -> None:
    with pytest.raises(BackendError, match=said):
        belief(lane(Telling(scores), permutations=1))


def test_an_action_without_a_probability_gets_none() -> None:
    found = belief(lane(Telling([[0.0, -1.0, -2.0, -math.inf]]), permutations=1))
    assert found[3] == 0 and np.count_nonzero(found) == 3


@pytest.mark.parametrize("tokens", [{"B": (1, 2)}, {}, {"A": ()}])
def test_codes_must_be_single_tokens_of_their_own(tokens: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(ConfigError, match="one token"):
        lane(Telling([], tokens)).check_codes()


def test_codes_that_nobody_can_check_or_that_are_sound_pass() -> None:
    lane(Telling([])).check_codes()
    lane().check_codes()


@given(st.integers(1, 12), st.integers(0, 15))
def test_orders_are_permutations_and_all_of_them_put_every_choice_in_every_place(n: int, count: int) -> None:
    choices = [f"c{index}" for index in range(n)]
    orders = cyclic_orders(choices, count)
    assert len(set(orders)) == len(orders) == (count if 0 < count < n else n)
    assert all(sorted(order) == sorted(choices) for order in orders)
    if len(orders) == n:
        assert all({order[place] for order in orders} == set(choices) for place in range(n))


def test_the_action_going_on_is_no_choice() -> None:
    assert choices_of(("a", "b", "c"), "b") == ("a", "c")
    assert choices_of(("a", "b"), None) == ("a", "b")
