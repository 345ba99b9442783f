"""Continuous planning, the future work of LLM-SAP: what was expected during each of the last clips, and what came. Pure."""

from __future__ import annotations

from collections import deque

from stream_agent.messages import Memory, PastPlan, Plan


class PastPlans:
    """The last few plans with their outcome; one per clip, the last that was made during it."""

    def __init__(self, most: int) -> None:
        self._told: deque[PastPlan] = deque(maxlen=most)
        self._case_id = ""
        self._during: str | None = None
        self._expected: tuple[str, ...] = ()

    def see(self, memory: Memory) -> tuple[PastPlan, ...]:
        """Take in the newest memory; the plans with a known outcome, oldest first. A new case begins empty."""
        if memory.case_id != self._case_id:
            self._case_id = memory.case_id
            self._told.clear()
            self._during, self._expected = None, ()
        if memory.current != self._during:
            if self._during is not None and memory.current is not None and self._expected:
                self._told.append(PastPlan(during=self._during, expected=self._expected, happened=memory.current))
            self._during, self._expected = memory.current, ()
        return tuple(self._told)

    def expect(self, plan: Plan) -> None:
        """Remember what a plan expects of the clip that is going on."""
        if plan.current_action == self._during and plan.case_id == self._case_id:
            self._expected = tuple(item.action for item in plan.ranked)
