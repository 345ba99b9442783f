"""A worker's ranking with everything else that a plan says: cautions, onset, and a rationale that may be a little older. Pure.

Cautions come from the pack's rules, whoever ranked, and stand before what a model would have minded. The onset depends on when the
current action ends, which the statistical planner tells, and not on what follows.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from stream_agent.messages import Hashes, Plan, PlanRequest, Rationale
from stream_agent.planner.rationale_lane import contradiction
from stream_agent.procedure import ProcedurePack


class Said(NamedTuple):
    """A rationale and the request it is about."""

    request: PlanRequest
    rationale: Rationale


def dressed(
    plan: Plan,
    request: PlanRequest,
    statistical: Plan,
    said: Said | None,
    pack: ProcedurePack,
    *,
    rationale_max_s: float,
) -> Plan:
    """The plan to show: `plan` with what rules, the statistical planner and a rationale add to it.

    Args:
        plan: The worker's valid answer to `request`.
        request: What it was asked.
        statistical: The statistical planner's answer for the same moment.
        said: The newest rationale, for this or an earlier plan.
        pack: The procedure pack.
        rationale_max_s: A rationale of an older frame than this says nothing of the plan.
    """
    memory = request.memory
    chain = plan.chain
    if not chain and statistical.chain and statistical.chain[0].action == plan.ranked[0].action:
        share = plan.ranked[0].probability / max(statistical.chain[0].probability, 1e-9)
        chain = tuple(
            msgspec.structs.replace(step, probability=min(1.0, step.probability * share)) for step in statistical.chain
        )
    top = pack.action(plan.ranked[0].action)
    cautions = (*pack.cautions(memory, plan.ranked), *(() if top is None else top.safety))
    plan = msgspec.structs.replace(
        plan,
        chain=chain,
        safety=(*cautions, *(line for line in plan.safety if line not in cautions)),
        progress=plan.progress or statistical.progress,
        expected_onset_s=statistical.expected_onset_s,
        expected_onset_interval_s=statistical.expected_onset_interval_s,
        hashes=plan.hashes if plan.fusion is None else _both(plan.hashes, statistical.hashes),
    )
    if said is None or not _is_about_this_clip(said.request, request, rationale_max_s):
        return plan
    why = dict(said.rationale.ranked)
    return msgspec.structs.replace(
        plan,
        ranked=tuple(msgspec.structs.replace(item, rationale=why.get(item.action, "")) for item in plan.ranked),
        progress=said.rationale.progress,
        safety=(*plan.safety, *(line for line in said.rationale.safety if line not in plan.safety)),
        rationale_age_s=round(memory.now_pts_s - said.request.memory.now_pts_s, 3),
        contradiction=_disagreement(said.rationale, plan),
    )


def _both(model: Hashes, statistical: Hashes) -> Hashes:
    return msgspec.structs.replace(model, model="+".join(filter(None, (model.model, statistical.model))))


def _disagreement(rationale: Rationale, plan: Plan) -> str:
    """Where the words and the plan on display differ, and whether the model already differed from itself."""
    shown = contradiction([action for action, _ in rationale.ranked], [item.action for item in plan.ranked])
    if rationale.contradiction:
        return f"the model contradicts itself: {rationale.contradiction}"
    return f"{shown}, after fusion with the statistical planner" if shown and plan.fusion is not None else shown


def _is_about_this_clip(said: PlanRequest, request: PlanRequest, most_s: float) -> bool:
    then, now = said.memory, request.memory
    same = (then.case_id, then.session_id, then.current) == (now.case_id, now.session_id, now.current)
    return same and then.labels == now.labels and 0 <= now.now_pts_s - then.now_pts_s <= most_s
