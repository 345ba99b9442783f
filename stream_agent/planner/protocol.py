"""What every planner is: a function from a request to a plan."""

from __future__ import annotations

from typing import Protocol

from stream_agent.messages import Plan, PlanRequest, Rung


class Planner(Protocol):
    """Answers one request at a time; the agent's loop or the worker process owns it."""

    name: str

    def plan(self, request: PlanRequest) -> Plan:
        """Three ranked next actions, or an abstention with its reason.

        Raises:
            BackendError: The model failed or its answer does not meet the schema.
        """
        ...


def unanswered(request: PlanRequest, *, source: Rung, planner: str, valid_ns: int) -> Plan:
    """A plan that says what was asked and not yet what is answered: everything that follows from the request."""
    memory, near = request.memory, request.memory.near
    captured_ns = near.captured_ns if near is not None else 0
    return Plan(
        stream_id=memory.stream_id,
        session_id=memory.session_id,
        case_id=memory.case_id,
        request_id=request.request_id,
        seq=near.seq if near is not None else 0,
        pts_s=near.pts_s if near is not None else memory.now_pts_s,
        captured_ns=captured_ns,
        valid_until_ns=captured_ns + valid_ns,
        source=source,
        planner=planner,
        current_action=memory.current,
        current_confidence=memory.current_confidence,
    )
