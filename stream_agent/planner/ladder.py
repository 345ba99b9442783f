"""Which answer stands: fused → VLM → statistical → abstain, the highest rung with a valid answer.

Pure. Every plan that leaves here names the rung it came from and says of each other rung why it was passed over.
"""

from __future__ import annotations

import msgspec

from stream_agent.messages import LADDER, Memory, Plan, Rung, RungReport


def choose(
    *,
    now_ns: int,
    gate: str,
    memory: Memory,
    statistical: Plan,
    worker_plan: Plan | None,
    worker_state: str,
) -> Plan:
    """The plan to show now.

    Args:
        now_ns: The session clock.
        gate: Why the newest picture is no ground for a plan; empty if it is.
        memory: The newest snapshot.
        statistical: The in-process planner's answer for it.
        worker_plan: The worker's last valid answer, fused or the model's own, which may be for an earlier frame.
        worker_state: Why the worker has no newer answer, in a few words.
    """
    reasons: dict[Rung, str] = {"fused": "no answer of a model to fuse" if worker_plan is None else "was not fused"}
    if gate:
        return _with_reports(
            abstention(statistical, f"gate: {gate}"), reasons | {"vlm": f"gate: {gate}", "statistical": f"gate: {gate}"}
        )
    if worker_plan is None:
        reasons["vlm"] = worker_state
    elif worker_plan.valid_until_ns < now_ns:
        reasons["vlm"] = f"its answer expired; {worker_state}"
    elif worker_plan.current_action != memory.current or worker_plan.case_id != memory.case_id:
        reasons["vlm"] = f"its answer was for {worker_plan.current_action}, which is over; {worker_state}"
    else:
        return _with_reports(worker_plan, reasons | {"statistical": "a higher rung answered"})
    if worker_plan is not None and worker_plan.source == "fused":
        reasons["fused"] = reasons["vlm"]
    if statistical.abstained:
        reasons["statistical"] = statistical.abstain_reason
    elif statistical.valid_until_ns < now_ns:
        reasons["statistical"] = "its answer expired"
        statistical = abstention(statistical, "every answer expired")
    return _with_reports(statistical, reasons)


def abstention(like: Plan, reason: str) -> Plan:
    """No ranking, for the same frame as `like`, and why."""
    return msgspec.structs.replace(
        like,
        request_id=0,  # nobody's answer: a display that holds the answer to a request must not take this for it
        source="abstain",
        abstained=True,
        abstain_reason=reason,
        ranked=(),
        chain=(),
        expected_onset_s=None,
        expected_onset_interval_s=None,
        rungs=(),
    )


def _with_reports(plan: Plan, reasons: dict[Rung, str]) -> Plan:
    reports = tuple(
        RungReport(rung, "used" if rung == plan.source else reasons.get(rung, "a higher rung answered"))
        for rung in LADDER
    )
    return msgspec.structs.replace(plan, rungs=reports)
