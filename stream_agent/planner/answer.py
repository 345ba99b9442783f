"""Whether a worker's answer may be shown: the checks between a model and the surgeon's screen.

An answer that fails one becomes an abstention of its rung, never a repaired guess.
"""

from __future__ import annotations

import math

from stream_agent.messages import RANKED, Plan, PlanRequest


def objection(plan: Plan, request: PlanRequest, actions: tuple[str, ...]) -> str:
    """Why `plan` is no answer to `request` over the closed set `actions`; empty when it is one."""
    near = request.memory.near
    if plan.request_id != request.request_id or near is None or plan.seq != near.seq:
        return "answers another request"
    if plan.abstained:
        return f"abstained: {plan.abstain_reason}"
    names = [entry.action for entry in plan.ranked]
    probabilities = [entry.probability for entry in plan.ranked]
    if len(names) != RANKED or len(set(names)) != RANKED:
        return f"ranks {len(set(names))} distinct actions, not {RANKED}"
    unknown = [name for name in (*names, *(step.action for step in plan.chain)) if name not in actions]
    if unknown:
        return f"names {unknown[0][:40]!r}, which is not an action of the pack"
    if request.memory.current in names:
        return f"ranks the current action {request.memory.current!r} as next"
    if not all(math.isfinite(p) and 0 <= p <= 1 for p in probabilities) or sum(probabilities) > 1 + 1e-6:
        return "its probabilities are not a distribution"
    if probabilities != sorted(probabilities, reverse=True):
        return "its ranking does not follow its probabilities"
    return ""
