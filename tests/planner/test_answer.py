from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_agent.messages import (
    ChainStep,
    FrameHeader,
    FromWorker,
    Memory,
    Plan,
    PlanRequest,
    RankedAction,
)
from stream_agent.planner.answer import objection

ACTIONS = ("a", "b", "c", "d", "e")
NEAR = FrameHeader(stream_id="cam", session_id="s", seq=4, pts_s=1.5, captured_ns=1_500_000_000)
MEMORY = Memory(stream_id="cam", session_id="s", case_id="case", now_pts_s=1.5, current="a", near=NEAR)
REQUEST = PlanRequest(request_id=7, memory=MEMORY, deadline_ns=2_000_000_000)


def ranked(*entries: tuple[str, float]) -> tuple[RankedAction, ...]:
    return tuple(RankedAction(*entry) for entry in entries)


def answer(**changes: Any) -> Plan:
    fields: dict[str, Any] = {
        "stream_id": "cam",
        "session_id": "s",
        "case_id": "case",
        "request_id": 7,
        "seq": 4,
        "pts_s": 1.5,
        "captured_ns": 1_500_000_000,
        "valid_until_ns": 3_500_000_000,
        "source": "vlm",
        "planner": "scripted",
        "current_action": "a",
        "current_confidence": 0.9,
        "ranked": ranked(("b", 0.5), ("c", 0.3), ("d", 0.2)),
        "chain": (ChainStep("b", 0.5, 4.0), ChainStep("a", 0.3, 30.0)),
        "expected_onset_s": 4.0,
        "expected_onset_interval_s": (1.0, 9.0),
    }
    return Plan(**(fields | changes))


def test_an_answer_that_keeps_the_rules_stands() -> None:
    assert objection(answer(), REQUEST, ACTIONS) == ""


@pytest.mark.parametrize(
    "changes",
    [
        {"chain": (), "expected_onset_s": None, "expected_onset_interval_s": None},
        {"ranked": ranked(("b", 1.0), ("c", 0.0), ("d", 0.0))},
        {"ranked": ranked(("b", 1 / 3), ("c", 1 / 3), ("d", 1 / 3))},
        {"ranked": ranked(("b", 0.1), ("c", 0.1), ("d", 0.05))},
        {"expected_onset_s": 0.0, "expected_onset_interval_s": (0.0, 0.0)},
        {"chain": (ChainStep("b", 0.5, 4.0), ChainStep("a", 0.3, 9.0))},  # back to the current action later on
    ],
)
def test_what_the_rules_leave_open_is_accepted(changes: dict[str, Any]) -> None:
    assert objection(answer(**changes), REQUEST, ACTIONS) == ""


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"request_id": 6}, "another request"),
        ({"seq": 3}, "another request"),
        ({"abstained": True, "abstain_reason": "dark", "ranked": ()}, "abstained: dark"),
        ({"ranked": ()}, "ranks 0 distinct actions, not 3"),
        ({"ranked": ranked(("b", 0.6), ("c", 0.4))}, "ranks 2 distinct actions"),
        ({"ranked": ranked(("b", 0.5), ("b", 0.3), ("c", 0.2))}, "ranks 2 distinct actions"),
        ({"ranked": ranked(("b", 0.4), ("c", 0.3), ("d", 0.2), ("e", 0.1))}, "ranks 4 distinct actions"),
        ({"ranked": ranked(("b", 0.5), ("Dance", 0.3), ("c", 0.2))}, "names 'Dance', which is not an action"),
        ({"ranked": ranked(("b", 0.5), ("C", 0.3), ("d", 0.2))}, "names 'C'"),
        ({"ranked": ranked(("b", 0.5), ("x" * 500, 0.3), ("d", 0.2))}, f"names '{'x' * 40}',"),
        ({"chain": (ChainStep("Dance", 0.5, 1.0),)}, "names 'Dance'"),
        ({"ranked": ranked(("b", 0.5), ("a", 0.3), ("c", 0.2))}, "the current action 'a' as next"),
        ({"ranked": ranked(("b", 0.5), ("c", 0.4), ("d", 0.2))}, "no distribution"),
        ({"ranked": ranked(("b", 1.1), ("c", 0.0), ("d", -0.1))}, "no distribution"),
        ({"ranked": ranked(("b", NAN), ("c", 0.3), ("d", 0.2))}, "no distribution"),
        ({"ranked": ranked(("b", INF), ("c", 0.3), ("d", 0.2))}, "no distribution"),
        ({"ranked": ranked(("b", 0.2), ("c", 0.5), ("d", 0.3))}, "against its own probabilities"),
    ],
)
def test_an_answer_that_breaks_a_rule_is_refused(changes: dict[str, Any], complaint: str) -> None:
    assert complaint in objection(answer(**changes), REQUEST, ACTIONS)


@pytest.mark.parametrize(
    "changes",
    [
        {"captured_ns": 9_000_000_000_000},
        {"captured_ns": 0},
        {"current_action": "e"},
        {"current_action": None},
        {"pts_s": 2.0},
        {"case_id": "another"},
        {"session_id": "another"},
        {"stream_id": "another"},
    ],
)
def test_a_worker_cannot_choose_what_its_answer_is_about(changes: dict[str, Any]) -> None:
    """The agent counts a plan's age and expiry from `captured_ns`, and its end from `current_action`.

    Both were once taken as the worker told them: a capture time in the future never expired.
    """
    assert objection(answer(**changes), REQUEST, ACTIONS) == "answers another request"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"current_confidence": NAN}, "no distribution"),
        ({"current_confidence": 1.5}, "no distribution"),
        ({"chain": (ChainStep("b", NAN, 1.0),)}, "no distribution"),
        ({"chain": (ChainStep("b", 0.5, NAN),)}, "no time to come"),
        ({"chain": (ChainStep("b", 0.5, -1.0),)}, "no time to come"),
        ({"expected_onset_s": -1.0}, "no time to come"),
        ({"expected_onset_s": INF}, "no time to come"),
        ({"expected_onset_s": NAN}, "no time to come"),
        ({"expected_onset_interval_s": (1.0, INF)}, "no time to come"),
        ({"expected_onset_interval_s": (5.0, 1.0)}, "no time to come"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(changes: dict[str, Any], complaint: str) -> None:
    """Onsets and the chain's numbers once went to the screen unread, not-a-number included."""
    assert complaint in objection(answer(**changes), REQUEST, ACTIONS)


def test_there_is_no_answer_to_a_request_without_a_frame() -> None:
    blind = msgspec.structs.replace(REQUEST, memory=msgspec.structs.replace(MEMORY, near=None))
    assert objection(answer(), blind, ACTIONS) == "answers another request"


names = st.sampled_from([*ACTIONS, "", "Reboot The Robot"])
numbers = st.sampled_from([0.0, 0.2, 0.3, 0.5, 1.0, -0.1, 1.1, NAN, INF]) | st.floats()


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.builds(RankedAction, names, numbers), max_size=5) | st.just(list(answer().ranked)),
    st.lists(st.builds(ChainStep, names, numbers, numbers), max_size=3),
    st.sampled_from([None, *ACTIONS]),
    st.sampled_from([6, 7]),
    st.none() | numbers,
)
def test_no_random_answer_passes_that_breaks_a_rule(
    entries: list[RankedAction], chain: list[ChainStep], current: str | None, request_id: int, onset_s: float | None
) -> None:
    request = msgspec.structs.replace(REQUEST, memory=msgspec.structs.replace(MEMORY, current=current))
    plan = answer(
        ranked=tuple(entries),
        chain=tuple(chain),
        current_action=current,
        request_id=request_id,
        expected_onset_s=onset_s,
        expected_onset_interval_s=None,
    )
    probabilities = [entry.probability for entry in entries]
    keeps_the_rules = (
        request_id == 7
        and len(entries) == len({entry.action for entry in entries}) == 3
        and {entry.action for entry in entries} <= set(ACTIONS) - {current}
        and {step.action for step in chain} <= set(ACTIONS)
        and (not chain or (bool(entries) and chain[0].action == entries[0].action))
        and all(0 <= value <= 1 for value in (*probabilities, *(step.probability for step in chain)))
        and sum(probabilities) <= 1 + 1e-6
        and all(left >= right for left, right in pairwise(probabilities))
        and all(0 <= value < INF for value in (onset_s or 0.0, *(step.expected_onset_s for step in chain)))
    )
    over_the_wire = msgspec.msgpack.decode(msgspec.msgpack.encode(plan), type=FromWorker)
    assert isinstance(over_the_wire, Plan)
    assert (objection(over_the_wire, request, ACTIONS) == "") == keeps_the_rules
