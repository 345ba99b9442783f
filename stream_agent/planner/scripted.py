"""A planner that does as it is told: canned answers, delays, hangs, crashes and garbage, for tests and drills."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from collections.abc import AsyncIterator, Sequence

import msgspec

from stream_agent.clock import NS_PER_S
from stream_agent.config import ScriptedStep
from stream_agent.errors import BackendError
from stream_agent.messages import RANKED, ChainStep, Plan, PlanRequest, PlanUpdate, RankedAction
from stream_agent.planner.protocol import unanswered

_PROBABILITIES = (0.5, 0.3, 0.2)


class ScriptedPlanner:
    """Follows a script step by step, from the start again after its end."""

    name = "scripted"
    explains = False

    def __init__(self, actions: Sequence[str], script: Sequence[ScriptedStep], *, valid_s: float) -> None:
        self._actions = tuple(actions)
        self._valid_ns = round(valid_s * NS_PER_S)
        self._steps = itertools.cycle(script)

    async def start(self) -> list[str]:
        """Nothing to load."""
        return []

    async def plan(self, request: PlanRequest) -> Plan:
        """What the next step says; a delay can be cancelled.

        Raises:
            BackendError: The script says so.
        """
        step = next(self._steps)
        await asyncio.sleep(step.delay_s)
        match step.behaviour:
            case "hang":
                threading.Event().wait()  # for ever, deaf to cancellation: what a stuck GPU looks like
            case "crash":
                os._exit(13)
            case "error":
                raise BackendError("the script says that the model failed")
            case "garbage":
                return self._answer(request, ("Reboot The Robot", "Reboot The Robot", ""))
            case "answer":
                pass
        current = request.memory.current
        ranked = step.ranked or tuple(action for action in self._actions if action != current)[:RANKED]
        return self._answer(request, ranked)

    async def more(self, request: PlanRequest, plan: Plan) -> AsyncIterator[PlanUpdate]:  # noqa: ARG002
        """Nothing: canned answers say all there is."""
        nothing: tuple[PlanUpdate, ...] = ()
        for update in nothing:
            yield update

    async def close(self) -> None:
        """Nothing to let go of."""

    def _answer(self, request: PlanRequest, ranked: Sequence[str]) -> Plan:
        if request.memory.near is None:
            raise BackendError("the request has no near frame")
        return msgspec.structs.replace(
            unanswered(request, source="vlm", planner=self.name, valid_ns=self._valid_ns),
            ranked=tuple(
                RankedAction(action, probability, "canned answer of the scripted planner")
                for action, probability in zip(ranked, _PROBABILITIES, strict=False)
            ),
            progress=f"{len(request.memory.clips)} actions are done.",
            chain=tuple(ChainStep(action, _PROBABILITIES[0], 0.0) for action in ranked[:1]),
        )
