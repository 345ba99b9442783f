"""Whether a worker's answer may be shown: the checks between a model and the surgeon's screen.

An answer that fails one becomes an abstention of its rung, never a repaired guess.
"""

from __future__ import annotations

import math

from stream_agent.config import FusionConfig
from stream_agent.messages import RANKED, Plan, PlanRequest, PlanUpdate
from stream_agent.planner.fusion import fused

_TOLERANCE = 1e-6
_LONGEST_TEXT = 4000
_MOST_LINES = 64


def objection(plan: Plan, request: PlanRequest, actions: tuple[str, ...], fusion: FusionConfig | None = None) -> str:
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
    texts = (plan.progress, plan.caption, *plan.safety, *plan.notes, *(entry.rationale for entry in plan.ranked))
    if len(plan.safety) + len(plan.notes) > _MOST_LINES or any(len(text) > _LONGEST_TEXT for text in texts):
        return f"has more than {_MOST_LINES} lines or a text of more than {_LONGEST_TEXT} characters"
    if plan.chain and plan.chain[0].action != names[0]:
        return f"has a chain that begins with {plan.chain[0].action!r}, not with its top action"
    return _objection_to_numbers(plan) or _objection_to_distribution(plan, request, actions, fusion)


def objection_to_update(update: PlanUpdate, request: PlanRequest, actions: tuple[str, ...]) -> str:
    """Why `update` is nothing that may be added to the answer to `request`; empty when it may."""
    memory = request.memory
    if (update.stream_id, update.session_id) != (memory.stream_id, memory.session_id):
        return "is about another stream"
    told = [step.action for step in update.chain]
    if update.rationale is not None:
        told += [action for action, _ in update.rationale.ranked]
        words = [*(why for _, why in update.rationale.ranked), update.rationale.progress, *update.rationale.safety]
        if any(len(word) > _LONGEST_TEXT for word in words):
            return f"has a text of more than {_LONGEST_TEXT} characters"
        if memory.current in [action for action, _ in update.rationale.ranked]:
            return f"ranks the current action {memory.current!r} as next"
    unknown = [action for action in told if action not in actions]
    if unknown:
        return f"names {unknown[0][:40]!r}, which is not an action of the pack"
    if len(update.text) > _LONGEST_TEXT:
        return f"has a text of more than {_LONGEST_TEXT} characters"
    if not all(0 <= step.probability <= 1 and 0 <= step.expected_onset_s < math.inf for step in update.chain):
        return "has a chain of impossible numbers"
    return ""


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


def _objection_to_distribution(
    plan: Plan, request: PlanRequest, actions: tuple[str, ...], fusion: FusionConfig | None
) -> str:
    """Whether the whole distribution agrees with the ranking, and what is called fused is what fusing gives."""
    told = plan.distribution
    if not told and plan.fusion is None:
        return ""
    if len(told) != len(actions) or not all(0 <= p <= 1 for p in told) or abs(sum(told) - 1) > _TOLERANCE:
        return "gives a distribution that is none over the actions of the pack"
    by_action = dict(zip(actions, told, strict=True))
    if any(abs(by_action[item.action] - item.probability) > _TOLERANCE for item in plan.ranked):
        return "ranks with other probabilities than its distribution"
    if max(told) > plan.ranked[0].probability + _TOLERANCE:
        return "leaves out its likeliest action"
    report = plan.fusion
    if report is None:
        return ""
    if fusion is None or not fusion.enabled:
        return "was fused, which is not configured"
    if (report.statistical_weight, report.model_weight) != (fusion.statistical, fusion.model) or any(
        len(part) != len(actions) or not all(0 <= p <= 1 for p in part) for part in (report.statistical, report.model)
    ):
        return "was fused with other weights than are configured"
    if not request.statistical or report.statistical != request.statistical:
        return "was fused with another belief than the statistical planner's"
    current = actions.index(request.memory.current) if request.memory.current in actions else None
    wanted = fused(report.statistical, report.model, fusion, current=current)
    if any(abs(p - q) > _TOLERANCE for p, q in zip(told, wanted, strict=True)):
        return "is not what fusing gives"
    return ""
