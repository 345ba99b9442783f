from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from typing import Any, cast

import msgspec
import pytest

from stream_agent.config import PlannerConfig, SchedulerConfig
from stream_agent.messages import FromWorker, Memory, NearPicture, Plan, PlanFailure, PlanRequest, PlanUpdate
from stream_agent.planner.backends.rehearsed import RehearsedBackend
from stream_agent.planner.desk import WorkerDesk
from stream_agent.planner.language import LanguagePlanner
from stream_agent.planner.link import WorkerLink
from stream_agent.planner.statistical import StatisticalPlanner
from stream_agent.scheduler import Scheduler
from stream_agent.telemetry import Telemetry
from stream_agent.workers import Worker
from tests.planner.moments import DISSECTION, PACK, RETRACTION, config, moment, shot

STATISTICAL = StatisticalPlanner(PACK, PlannerConfig())


class Link:
    """A wire that ends here."""

    connected = True

    def __init__(self) -> None:
        self.submitted: list[PlanRequest] = []
        self.aborted: list[int] = []
        self.coming: deque[FromWorker] = deque()

    def submit(self, request: PlanRequest) -> bool:
        self.submitted.append(request)
        return True

    def abort(self, request_id: int, stream_id: str = "") -> None:
        self.aborted.append(request_id)

    def collect(self, timeout_s: float = 0.0) -> Iterator[FromWorker]:
        while self.coming:
            yield self.coming.popleft()


class Ready:
    """A worker that is well."""

    ready = True
    restarts = 0
    name = "planner worker"


class Office:
    """A desk with a language planner at the other end of its wire, which answers when it is told to."""

    def __init__(self, **settings: Any) -> None:
        self.config = config(**settings)
        self.link = Link()
        self.telemetry = Telemetry()
        self.planner = LanguagePlanner(PACK, self.config, RehearsedBackend(self.config))
        self.pictures_made = 0
        self.desk = WorkerDesk(
            cast(Worker, Ready()),
            cast(WorkerLink, self.link),
            Scheduler(SchedulerConfig(min_interval_s=0.0), deadline_ms=self.config.deadline_ms),
            config=self.config,
            pack=PACK,
            goal=PACK.goal,
            telemetry=self.telemetry,
            lockstep=False,
            stopped=lambda: False,
        )

    def offer(self, pts_s: float, **of: Any) -> None:
        memory = moment(pts_s, **of)

        def picture() -> NearPicture:
            self.pictures_made += 1
            return shot(memory)

        now_ns = round(pts_s * 1e9)
        self.desk.offer(memory, statistical(memory), captured_ns=now_ns, now_ns=now_ns, picture=picture)

    def answer(self, request: PlanRequest | None = None, *, explain: bool = False) -> None:
        """Put the planner's answer to the last request on the wire."""
        asked = request or self.link.submitted[-1]

        async def run() -> list[FromWorker]:
            plan = await self.planner.plan(asked)
            return [plan, *([update async for update in self.planner.more(asked, plan)] if explain else [])]

        self.link.coming.extend(asyncio.run(run()))

    def take(self, pts_s: float) -> list[Plan | PlanUpdate]:
        return [answer for _, answer in self.desk.answers(round(pts_s * 1e9))]


def statistical(memory: Memory) -> Plan:
    return STATISTICAL.plan(PlanRequest(request_id=0, memory=memory, deadline_ns=0))


def test_a_request_brings_all_that_the_planner_may_know() -> None:
    office = Office()
    office.offer(100.0, current=DISSECTION)
    [request] = office.link.submitted
    assert request.picture is not None and request.goal == PACK.goal
    assert sum(request.statistical) == pytest.approx(1) and request.statistical[0] == 0
    assert request.budget_ms == pytest.approx(500) and not request.patient


def test_pictures_are_made_only_of_frames_that_are_planned_from_or_may_be() -> None:
    office = Office()
    office.offer(100.0)
    office.offer(100.1)
    assert (office.pictures_made, len(office.link.submitted)) == (2, 1)
    labels = Office(memory="labels_only")
    labels.offer(100.0)
    assert labels.pictures_made == 0 and labels.link.submitted[0].pictures == ()


def test_a_plan_comes_fused_with_cautions_and_then_with_its_reasons_as_a_revision() -> None:
    office = Office()
    office.offer(100.0, current=DISSECTION)
    office.answer(explain=True)
    taken = office.take(100.2)
    plans = [answer for answer in taken if isinstance(answer, Plan)]
    assert [(plan.source, plan.request_id, plan.revision) for plan in plans] == [
        ("fused", 1, 0),
        ("fused", 1, 1),
        ("fused", 1, 2),
    ]
    assert plans[0].safety and plans[0].expected_onset_s is not None
    assert plans[-1].rationale_age_s == 0.0 and plans[-1].ranked[0].rationale and len(plans[-1].chain) == 3
    assert [plan.ranked[0].action for plan in plans] == [plans[0].ranked[0].action] * 3
    assert any(isinstance(answer, PlanUpdate) and answer.text for answer in taken)


def test_reasons_stand_for_the_next_plan_of_the_clip_and_end_with_it() -> None:
    office = Office()
    office.offer(100.0, current=DISSECTION)
    office.answer(explain=True)
    office.take(100.2)
    office.offer(101.5, current=DISSECTION)
    office.answer()
    [plan] = office.take(101.6)
    assert isinstance(plan, Plan) and plan.rationale_age_s == 1.5
    office.offer(103.0, current=RETRACTION)
    office.answer()
    [plan] = office.take(103.1)
    assert isinstance(plan, Plan) and plan.rationale_age_s is None


def test_what_came_after_a_plan_is_told_in_the_next_request() -> None:
    office = Office()
    office.offer(100.0, current=DISSECTION)
    office.answer()
    [plan] = office.take(100.1)
    assert isinstance(plan, Plan)
    office.offer(110.0, current=RETRACTION)
    [told] = office.link.submitted[-1].previous
    assert (told.during, told.happened) == (DISSECTION, RETRACTION)
    assert told.expected == tuple(item.action for item in plan.ranked)


def test_an_answer_that_was_not_fused_as_configured_is_refused() -> None:
    office = Office()
    office.offer(100.0)
    asked = office.link.submitted[-1]
    office.answer(msgspec.structs.replace(asked, statistical=(0.0, 0.0, 1.0, 0.0, 0.0)))
    assert office.take(100.1) == []
    assert "another belief" in office.desk.state and office.desk.plan is None
    assert office.telemetry.total("worker_failed") == 1


def test_updates_about_nothing_or_of_unknown_actions_are_not_shown() -> None:
    office = Office()
    office.offer(100.0)
    office.answer()
    [plan] = office.take(100.1)
    assert isinstance(plan, Plan)
    update = PlanUpdate(stream_id="cam", session_id="s", request_id=1, seq=plan.seq, text="so")
    bad = msgspec.structs.replace(
        update, chain=(msgspec.structs.replace(plan.chain[0], action="Reboot The Robot"),) if plan.chain else ()
    )
    office.link.coming += [
        msgspec.structs.replace(update, request_id=9),
        msgspec.structs.replace(update, stream_id="other"),
        msgspec.structs.replace(update, text="x" * 5000),
        *([bad] if bad.chain else []),
        update,
    ]
    assert office.take(100.2) == [update]


def test_reasons_of_failures_do_not_grow_without_bound() -> None:
    """A reason with a number in it was a counter of its own for every number, for ever."""
    office = Office()
    for number in range(300):
        pts_s = 100.0 + number
        office.offer(pts_s)
        word = "".join(chr(97 + int(digit)) for digit in str(number))
        reason = f"gave no answer within {number} ms" if number % 2 else f"model {word} fell over: {number}"
        office.link.coming.append(PlanFailure(number + 1, reason))
        office.take(pts_s + 0.1)
        assert office.desk.state == reason, "told in full"
    kinds = office.telemetry.by_reason("worker_failed")
    assert len(kinds) <= 65 and sum(kinds.values()) == 300
    assert kinds["gave no answer within # ms"] == 150
