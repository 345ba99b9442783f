from __future__ import annotations

from typing import Any

import msgspec
import pytest

from stream_agent.config import PlannerConfig
from stream_agent.messages import ChainStep, Plan, PlanRequest, RankedAction, Rationale
from stream_agent.planner.dressing import Said, dressed
from stream_agent.planner.protocol import unanswered
from stream_agent.planner.statistical import StatisticalPlanner
from tests.planner.moments import CLIPPING, DISSECTION, PACK, RETRACTION, ask

REQUEST = ask(current=DISSECTION)
STATISTICAL = StatisticalPlanner(PACK, PlannerConfig()).plan(REQUEST)
RANKED = (RankedAction(CLIPPING, 0.5), RankedAction(RETRACTION, 0.3), RankedAction("Coagulation", 0.2))
WHYS = ((CLIPPING, "ducts are bare"), (RETRACTION, "exposure"), ("Coagulation", "oozing"))
RATIONALE = Rationale(ranked=WHYS, progress="Calot is open.", safety=("mind the artery",))


def shown(said: Said | None = None, request: PlanRequest = REQUEST, **changes: Any) -> Plan:
    plan = msgspec.structs.replace(
        unanswered(request, source="vlm", planner="x", valid_ns=1), **{"ranked": RANKED, **changes}
    )
    return dressed(plan, request, STATISTICAL, said, PACK, rationale_max_s=10.0)


def test_cautions_of_the_rules_come_with_every_ranking() -> None:
    plan = shown()
    assert any("critical view" in line for line in plan.safety)
    assert plan.progress == STATISTICAL.progress
    assert plan.expected_onset_s == STATISTICAL.expected_onset_s is not None


def test_a_rationale_gives_each_rank_its_reason_and_comes_after_the_rules() -> None:
    plan = shown(Said(REQUEST, RATIONALE))
    assert [(item.action, item.rationale) for item in plan.ranked] == list(WHYS)
    assert plan.progress == "Calot is open."
    assert plan.safety[-1] == "mind the artery" and "critical view" in plan.safety[0]
    assert (plan.rationale_age_s, plan.contradiction) == (0.0, "")


def test_a_rationale_stands_for_later_plans_of_its_clip_with_its_age() -> None:
    plan = shown(Said(REQUEST, RATIONALE), ask(2, 104.5, current=DISSECTION))
    assert plan.rationale_age_s == 4.5 and plan.ranked[0].rationale


@pytest.mark.parametrize(
    "request_",
    [
        ask(2, 111.0, current=DISSECTION),
        ask(2, 101.0, current=RETRACTION),
        ask(2, 101.0, current=DISSECTION, case_id="next"),
    ],
)
def test_it_says_nothing_of_a_frame_too_far_away(request_: PlanRequest) -> None:
    plan = shown(Said(REQUEST, RATIONALE), request_)
    assert plan.rationale_age_s is None and not plan.ranked[0].rationale


def test_a_contradiction_is_on_the_plan() -> None:
    other = msgspec.structs.replace(RATIONALE, ranked=(WHYS[1], WHYS[0], WHYS[2]))
    assert shown(Said(REQUEST, other)).contradiction == f"the rationale puts {RETRACTION} first, the ranking {CLIPPING}"
    own = msgspec.structs.replace(RATIONALE, contradiction="the rationale puts X first, the ranking Y")
    assert shown(Said(REQUEST, own)).contradiction.startswith("the model contradicts itself")


def test_the_statistical_chain_serves_a_ranking_with_the_same_top_action_only() -> None:
    top = STATISTICAL.chain[0].action
    for first in (top, next(item.action for item in RANKED if item.action != top)):
        ranked = (RankedAction(first, 0.5), *(item for item in RANKED if item.action != first))[:3]
        chain = shown(ranked=ranked).chain
        assert bool(chain) == (first == top)
        assert not chain or chain[0].probability == pytest.approx(0.5)
    own = (ChainStep(CLIPPING, 0.5, 3.0),)
    assert shown(chain=own).chain == own
