from __future__ import annotations

import asyncio
import time

import msgspec
import pytest

from stream_agent.config import ScriptedStep
from stream_agent.errors import BackendError
from stream_agent.messages import FrameHeader, Memory, Plan, PlanRequest
from stream_agent.planner.answer import objection
from stream_agent.planner.scripted import ScriptedPlanner

ACTIONS = ("a", "b", "c", "d")
NEAR = FrameHeader(stream_id="cam", session_id="s", seq=4, pts_s=1.5, captured_ns=1_500_000_000)
MEMORY = Memory(stream_id="cam", session_id="s", case_id="case", now_pts_s=1.5, current="b", near=NEAR)
REQUEST = PlanRequest(request_id=7, memory=MEMORY, deadline_ns=2_000_000_000)


def planner(*script: ScriptedStep) -> ScriptedPlanner:
    return ScriptedPlanner(ACTIONS, script or (ScriptedStep(),), valid_s=2.0)


def asked(scripted: ScriptedPlanner, request: PlanRequest = REQUEST) -> Plan:
    return asyncio.run(scripted.plan(request))


def test_it_ranks_in_pack_order_without_the_current_action() -> None:
    plan = asked(planner())
    assert [entry.action for entry in plan.ranked] == ["a", "c", "d"]
    assert objection(plan, REQUEST, ACTIONS) == ""
    assert (plan.source, plan.planner, plan.request_id) == ("vlm", "scripted", 7)
    assert plan.valid_until_ns == 3_500_000_000


def test_it_ranks_what_the_script_says() -> None:
    plan = asked(planner(ScriptedStep(ranked=("d", "c", "a"))))
    assert [entry.action for entry in plan.ranked] == ["d", "c", "a"]
    assert objection(plan, REQUEST, ACTIONS) == ""


def test_the_script_starts_again_after_its_end() -> None:
    scripted = planner(ScriptedStep(), ScriptedStep(behaviour="error"))
    for _ in range(2):
        asked(scripted)
        with pytest.raises(BackendError, match="the model failed"):
            asked(scripted)


def test_garbage_is_an_answer_that_no_check_lets_through() -> None:
    assert "ranks 2 distinct actions" in objection(asked(planner(ScriptedStep(behaviour="garbage"))), REQUEST, ACTIONS)


def test_a_delay_ends_early_when_the_request_is_cancelled() -> None:
    async def cancelled() -> None:
        task = asyncio.create_task(planner(ScriptedStep(delay_s=30.0)).plan(REQUEST))
        await asyncio.sleep(0)
        task.cancel()
        await task

    began_s = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())
    assert time.monotonic() - began_s < 5


def test_there_is_no_answer_without_a_frame() -> None:
    with pytest.raises(BackendError, match="no near frame"):
        asked(planner(), msgspec.structs.replace(REQUEST, memory=msgspec.structs.replace(MEMORY, near=None)))
