from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sized
from typing import Any

import msgspec
import pytest

from stream_agent.config import PlannerConfig
from stream_agent.errors import BackendError
from stream_agent.messages import Abort, FromWorker, Plan, PlanFailure, PlanRequest, PlanUpdate
from stream_agent.planner.answer import objection
from stream_agent.planner.backends.rehearsed import RehearsedBackend
from stream_agent.planner.language import RANK, RATIONALE, LanguagePlanner
from stream_agent.planner.serving import FAILURES_IN_A_ROW, Serving
from tests.planner.moments import ACTIONS, DISSECTION, PACK, ask, config, without_picture


class Scene:
    """A worker's inside, without process or socket."""

    def __init__(self, settings: PlannerConfig) -> None:
        self.config = settings
        self.backend = RehearsedBackend(settings)
        self.planner = LanguagePlanner(PACK, settings, self.backend)
        self.sent: list[FromWorker] = []
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.serving = Serving(self.planner, settings, self.sent.append, self.lost)

    async def until(self, condition: Callable[[], object], timeout_s: float = 5.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():
                await asyncio.sleep(0.002)

    async def until_there_are(self, count: int, found: Callable[[], Sized]) -> None:
        await self.until(lambda: len(found()) == count)

    async def until_the_end_of(self, request_id: int) -> None:
        await self.until(lambda: self.updates(request_id) and self.updates(request_id)[-1].final)

    def plans(self) -> list[Plan]:
        return [message for message in self.sent if isinstance(message, Plan)]

    def failures(self) -> list[tuple[int, str]]:
        return [(message.request_id, message.reason) for message in self.sent if isinstance(message, PlanFailure)]

    def updates(self, request_id: int) -> list[PlanUpdate]:
        found = [message for message in self.sent if isinstance(message, PlanUpdate)]
        return [update for update in found if update.request_id == request_id]


def play(scene: Callable[[Scene], Awaitable[None]], **settings: Any) -> Scene:
    """Run a scene to its end; nothing of it stays behind."""

    async def run() -> Scene:
        made = Scene(config(**settings))
        try:
            await scene(made)
        finally:
            await made.serving.close()
            await made.planner.close()
        assert len(asyncio.all_tasks()) == 1, "something still runs"
        return made

    return asyncio.run(run())


def slow(seconds: float = 60.0) -> dict[str, Any]:
    return {"delay_s": seconds}


def test_a_plan_comes_first_then_its_chain_then_its_words_and_an_end() -> None:
    async def scene(it: Scene) -> None:
        it.serving.take(ask(1))
        await it.until_the_end_of(1)

    it = play(scene)
    plan = it.plans()[0]
    assert it.sent[0] is plan
    assert objection(plan, ask(1), ACTIONS, it.config.fusion) == ""
    chain, *words, whole, end = it.updates(1)
    assert [step.action for step in chain.chain][:1] == [plan.ranked[0].action]
    assert len(chain.chain) == 3
    assert "".join(update.text for update in words).startswith("1. ")
    assert whole.rationale is not None and whole.rationale.contradiction == ""
    assert (end.final, end.problem) == (True, "")
    priorities = [call.priority for _, call, _ in it.backend.calls]
    assert priorities[0] == RANK and priorities[-1] == RATIONALE and priorities == sorted(priorities)


def test_one_runs_and_one_waits_and_the_newest_replaces_the_one_that_waits() -> None:
    async def scene(it: Scene) -> None:
        for number in (1, 2, 3, 4):
            it.serving.take(ask(number, 100.0 + number))
        await it.until(lambda: len(it.plans()) == 2)

    it = play(scene, rehearsed_scores=[slow(0.02)], rationale=False, chain=False)
    assert it.failures() == [(2, "superseded by a newer frame"), (3, "superseded by a newer frame")]
    assert [plan.request_id for plan in it.plans()] == [1, 4]


def test_streams_are_asked_at_once() -> None:
    async def scene(it: Scene) -> None:
        for number in range(8):
            it.serving.take(ask(1, stream_id=f"cam{number}"))
        await it.until(lambda: len(it.plans()) == 8, 2.0)

    it = play(scene, rehearsed_scores=[slow(0.3)], rationale=False, chain=False)
    assert sorted(plan.stream_id for plan in it.plans()) == [f"cam{number}" for number in range(8)]
    salts = {call.salt for _, call, _ in it.backend.calls}
    assert len(salts) == 8, "no case's cache serves another"


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        ({"behaviour": "nan"}, "no numbers"),
        ({"behaviour": "nothing"}, "none of the actions"),
        ({"behaviour": "oom"}, "out of memory"),
        ({"behaviour": "error"}, "engine failed"),
        ({"behaviour": "hang"}, "no answer within 50 ms"),
        (slow(10.0), "no answer within 50 ms"),
    ],
)
def test_every_fault_of_the_engine_is_told_within_the_budget_and_the_next_request_is_answered(
    step: dict[str, Any], reason: str
) -> None:
    async def scene(it: Scene) -> None:
        it.serving.take(msgspec.structs.replace(ask(1), budget_ms=50.0))
        await it.until(lambda: it.failures(), 1.0)
        it.serving.take(ask(2))
        await it.until(lambda: it.plans())

    it = play(scene, rehearsed_scores=[step, {}], rationale=False, chain=False)
    assert it.failures()[0][0] == 1 and reason in it.failures()[0][1]
    assert not it.lost.done()


def test_a_dead_engine_ends_the_worker_after_telling_why() -> None:
    async def scene(it: Scene) -> None:
        it.serving.take(ask(1))
        with pytest.raises(BackendError, match="engine died"):
            await it.lost

    assert play(scene, rehearsed_scores=[{"behaviour": "dead"}]).failures() == [(1, "the engine died (rehearsed)")]


def test_an_engine_that_only_fails_is_started_anew() -> None:
    async def scene(it: Scene) -> None:
        for number in range(FAILURES_IN_A_ROW):
            it.serving.take(ask(number))
            await it.until_there_are(number + 1, it.failures)
        with pytest.raises(BackendError, match="in a row"):
            await it.lost

    play(scene, rehearsed_scores=[{"behaviour": "oom"}])


def test_a_history_too_long_for_the_model_costs_its_plans_and_never_the_worker() -> None:
    """It used to count as an engine that only fails: ten such prompts started the worker anew, again and again."""
    long = ask(1).memory
    long = msgspec.structs.replace(long, clips=long.clips * 800)

    async def scene(it: Scene) -> None:
        await it.planner.start()
        for number in range(1, FAILURES_IN_A_ROW + 2):
            it.serving.take(msgspec.structs.replace(ask(number), memory=long))
            await it.until_there_are(number, it.failures)
        assert not it.lost.done()
        it.serving.take(ask(99))
        await it.until(it.plans)

    scene_played = play(scene)
    assert scene_played.plans()[0].request_id == 99
    [reason] = {reason for _, reason in scene_played.failures()}
    assert "planner.context_tokens=4096" in reason and "memory.max_clips" in reason


def test_an_engine_that_dies_while_it_explains_ends_the_worker_too() -> None:
    async def scene(it: Scene) -> None:
        it.serving.take(ask(1))
        with pytest.raises(BackendError, match="engine died"):
            await it.lost

    assert len(play(scene, rehearsed_texts=[{"behaviour": "dead"}]).plans()) == 1


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        ({"behaviour": "truncated"}, "schema"),
        ({"behaviour": "wrong_schema"}, "schema"),
        ({"behaviour": "oom"}, "out of memory"),
        ({"text": "I would rather not."}, "schema"),
        ({"behaviour": "hang"}, "not finished 0.1 s after its frame"),
    ],
)
def test_a_rationale_that_is_none_is_dropped_with_its_reason_and_the_ranking_stands(
    step: dict[str, Any], reason: str
) -> None:
    async def scene(it: Scene) -> None:
        it.serving.take(ask(1))
        await it.until_the_end_of(1)
        it.serving.take(ask(2, 101.0))
        await it.until(lambda: len(it.plans()) == 2)

    it = play(scene, rehearsed_texts=[step], rationale_max_s=0.1)
    assert reason in "; ".join(update.problem for update in it.updates(1))
    assert all(update.rationale is None for update in it.updates(1))
    assert not it.failures()


def test_a_rationale_ends_when_another_action_has_begun() -> None:
    async def scene(it: Scene) -> None:
        it.serving.take(ask(1))
        await it.until(lambda: any(kind == "generate" for kind, _, _ in it.backend.calls))
        it.serving.take(ask(2, 102.0, current=DISSECTION))
        await it.until(lambda: it.updates(1)[-1].final)
        await it.until(lambda: len(it.plans()) == 2)

    it = play(scene, rehearsed_texts=[slow(), {}])
    assert "no longer near" in it.updates(1)[-1].problem


def test_while_nothing_changes_a_rationale_is_not_asked_for_again_until_it_is_due() -> None:
    async def scene(it: Scene) -> None:
        for number, pts_s in enumerate((100.0, 101.0, 104.0, 105.5)):
            it.serving.take(ask(number, pts_s))
            await it.until_there_are(number + 1, it.plans)
            await asyncio.sleep(0.05)

    it = play(scene, rehearsed_scores=[{"beliefs": dict.fromkeys(ACTIONS, 0.0) | {DISSECTION: 3.0}}])
    assert [kind for kind, _, _ in it.backend.calls].count("generate") == 2
    assert not it.updates(1) and not it.updates(2) and it.updates(3)


def test_rankings_go_on_while_a_rationale_is_written() -> None:
    async def scene(it: Scene) -> None:
        it.serving.take(ask(1))
        await it.until(lambda: it.updates(1))
        for number in range(2, 6):
            it.serving.take(ask(number, 100.0 + number / 10))
            await it.until_there_are(number, it.plans)

    it = play(scene, rehearsed_texts=[{"piece_s": 60.0}])
    assert [plan.request_id for plan in it.plans()] == [1, 2, 3, 4, 5]


def test_an_abort_ends_what_runs_what_waits_and_what_explains() -> None:
    async def scene(it: Scene) -> None:
        it.serving.take(ask(1))
        it.serving.take(ask(2, 101.0))
        await asyncio.sleep(0)
        it.serving.take(Abort(2, "cam"))
        it.serving.take(Abort(1, "cam"))
        it.serving.take(Abort(9, "cam"))
        await it.until(lambda: len(it.failures()) == 2)
        it.serving.take(ask(3, 102.0))
        await it.until(lambda: any(kind == "generate" for kind, _, _ in it.backend.calls))
        it.serving.take(Abort(3, "cam"))
        await it.until(lambda: it.updates(3)[-1].final)

    it = play(scene, rehearsed_scores=[slow(), {}, {}, {}], rehearsed_texts=[slow()])
    assert it.failures() == [(2, "cancelled"), (1, "cancelled")]


def test_a_mistake_of_ours_ends_the_worker() -> None:
    async def scene(it: Scene) -> None:
        async def broken(request: PlanRequest) -> Plan:
            raise ZeroDivisionError("a bug")

        it.planner.plan = broken  # type: ignore[method-assign]
        it.serving.take(ask(1))
        with pytest.raises(ZeroDivisionError):
            await it.lost

    play(scene)


def test_a_patient_request_is_told_its_end_even_when_nothing_follows() -> None:
    async def scene(it: Scene) -> None:
        for number in (1, 2):
            it.serving.take(msgspec.structs.replace(ask(number), patient=True))
            await it.until_the_end_of(number)

    assert len(play(scene).updates(2)) == 1


def test_a_source_without_pictures_is_ranked_from_labels_and_the_plan_says_so() -> None:
    async def scene(it: Scene) -> None:
        it.serving.take(without_picture(ask(1)))
        await it.until(lambda: it.plans())

    assert play(scene).plans()[0].notes == ("the frame had no picture: ranked from labels alone",)
