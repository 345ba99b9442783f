from __future__ import annotations

import msgspec

from stream_agent.messages import PastPlan, Plan, RankedAction
from stream_agent.planner.past_plans import PastPlans
from stream_agent.planner.protocol import unanswered
from tests.planner.moments import ask, moment


def plan(current: str, *ranked: str) -> Plan:
    asked = unanswered(ask(current=current), source="fused", planner="x", valid_ns=1)
    return msgspec.structs.replace(asked, ranked=tuple(RankedAction(action, 0.3) for action in ranked))


def test_the_last_plan_of_each_clip_is_told_with_what_came() -> None:
    past = PastPlans(3)
    past.see(moment(current="a"))
    past.expect(plan("a", "d", "e"))
    past.expect(plan("a", "b", "c"))
    assert past.see(moment(current="a")) == ()
    assert past.see(moment(current="c")) == (PastPlan(during="a", expected=("b", "c"), happened="c"),)


def test_a_clip_without_a_plan_or_an_answer_for_another_clip_tells_nothing() -> None:
    past = PastPlans(3)
    past.see(moment(current="a"))
    past.expect(plan("b", "c"))
    assert past.see(moment(current="b")) == ()


def test_it_is_bounded_and_a_new_case_begins_empty() -> None:
    past = PastPlans(2)
    for current, following in zip("abcab", "bcabc", strict=True):
        past.see(moment(current=current))
        past.expect(plan(current, following))
    told = past.see(moment(current="c"))
    assert [one.during for one in told] == ["a", "b"]
    assert past.see(moment(current="a", case_id="next")) == ()


def test_it_can_be_turned_off() -> None:
    past = PastPlans(0)
    past.see(moment(current="a"))
    past.expect(plan("a", "b"))
    assert past.see(moment(current="b")) == ()
