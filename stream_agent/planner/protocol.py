"""What every planner is: a function from a request to a plan."""

from __future__ import annotations

from typing import Protocol

from stream_agent.messages import Plan, PlanRequest


class Planner(Protocol):
    """Answers one request at a time; the agent's loop or the worker process owns it."""

    name: str

    def plan(self, request: PlanRequest) -> Plan:
        """Three ranked next actions, or an abstention with its reason.

        Raises:
            BackendError: The model failed or its answer does not meet the schema.
        """
        ...
