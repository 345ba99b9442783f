"""Whether a worker's answer may be shown: the checks between a model and the surgeon's screen.

An answer that fails one becomes an abstention of its rung, never a repaired guess.
"""

from __future__ import annotations

import math

from stream_agent.messages import RANKED, Plan, PlanRequest


def objection(plan: Plan, request: PlanRequest, actions: tuple[str, ...]) -> str:
    """Why `plan` is no answer to `request` over the closed set `actions`; empty when it is one."""
    if plan.request_id != request.request_id or not _is_about(plan, request):
        return "answers another request"
    if plan.abstained:
        return f"abstained: {plan.abstain_reason}"
    names = [entry.action for entry in plan.ranked]
    if len(names) != RANKED or len(set(names)) != RANKED:
        return f"ranks {len(set(names))} distinct actions, not {RANKED}"
    unknown = [name for name in (*names, *(step.action for step in plan.chain)) if name not in actions]
    if unknown:
        return f"names {unknown[0][:40]!r}, which is not an action of the pack"
    if request.memory.current in names:
        return f"ranks the current action {request.memory.current!r} as next"
    return _objection_to_numbers(plan)


def _is_about(plan: Plan, request: PlanRequest) -> bool:
    """Whether the moment is the one asked about: a plan's age counts from its capture, its end from its action."""
    memory, near = request.memory, request.memory.near
    if near is None:
        return False
    asked = (memory.stream_id, memory.session_id, memory.case_id, near.seq, near.pts_s, near.captured_ns)
    told = (plan.stream_id, plan.session_id, plan.case_id, plan.seq, plan.pts_s, plan.captured_ns)
    return asked == told and plan.current_action == memory.current


def _objection_to_numbers(plan: Plan) -> str:
    probabilities = [entry.probability for entry in plan.ranked]
    beliefs = [*probabilities, *(step.probability for step in plan.chain), plan.current_confidence]
    if not all(0 <= belief <= 1 for belief in beliefs) or sum(probabilities) > 1 + 1e-6:
        return "gives probabilities that are no distribution"
    if probabilities != sorted(probabilities, reverse=True):
        return "ranks against its own probabilities"
    interval_s = plan.expected_onset_interval_s or (0.0, 0.0)
    onsets_s = (plan.expected_onset_s or 0.0, *interval_s, *(step.expected_onset_s for step in plan.chain))
    if not all(0 <= onset_s < math.inf for onset_s in onsets_s) or interval_s[0] > interval_s[1]:
        return "expects an action at no time to come"
    return ""
