"""Who is answered when: the planner worker between its sockets and its planner, for any number of streams.

Per stream at most one ranking runs and one waits; a newer request takes the place of the one that waits. Rankings of different
streams run at once, so that an engine batches them. After its ranking a stream may have one explanation (chain and rationale)
running; it is aborted when its frame is no longer near: another action has begun, or `rationale_max_s` are over.

Every request ends in exactly one answer: a plan, or a failure with its reason. A mistake of ours ends the worker, and so does an
engine that is lost; both are for the agent to notice and for a new process to mend.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Final, Protocol

from stream_agent.config import PlannerConfig
from stream_agent.errors import BackendError, StreamAgentError
from stream_agent.messages import Abort, FromWorker, Plan, PlanFailure, PlanRequest, PlanUpdate, ToWorker

FAILURES_IN_A_ROW: Final = 10
"""An engine that fails so often without an answer between is started anew."""

LATE_TASK_S: Final = 1.0


class WorkerPlanner(Protocol):
    """What the worker serves from.

    Attributes:
        name: As plans tell it.
        explains: Whether anything follows a plan.
    """

    name: str
    explains: bool

    async def start(self) -> list[str]:
        """Get ready; lines for a person."""
        ...

    async def plan(self, request: PlanRequest) -> Plan:
        """The ranking.

        Raises:
            BackendError: There is none.
        """
        ...

    def more(self, request: PlanRequest, plan: Plan) -> AsyncIterator[PlanUpdate]:
        """What can be said of a plan afterwards.

        Raises:
            BackendError: The engine is lost.
        """
        ...

    async def close(self) -> None:
        """Let go of everything."""
        ...


@dataclass(slots=True)
class _Stream:
    running: PlanRequest | None = None
    task: asyncio.Task[None] | None = None
    waiting: PlanRequest | None = None
    explained: tuple[object, ...] = ()
    explained_pts_s: float = 0.0
    explaining: PlanRequest | None = None
    explanation: asyncio.Task[None] | None = None


@dataclass(slots=True)
class Serving:
    """The state of every stream; used by one asyncio loop.

    Attributes:
        lost: Set when the worker must end: its engine is gone, or we made a mistake.
    """

    planner: WorkerPlanner
    config: PlannerConfig
    send: Callable[[FromWorker], None]
    lost: asyncio.Future[None]
    _streams: dict[str, _Stream] = field(default_factory=dict)
    _failures: int = 0

    def take(self, message: ToWorker) -> None:
        """Start a request, let it wait, or cancel it."""
        if isinstance(message, Abort):
            self._abort(message)
            return
        stream = self._streams.setdefault(message.memory.stream_id, _Stream())
        self._drop_far(stream, message)
        if stream.running is None:
            self._start(stream, message)
            return
        if stream.waiting is not None:
            self._fail(stream.waiting, "superseded by a newer frame")
        stream.waiting = message

    async def close(self) -> None:
        """Cancel everything and wait for it to let go."""
        tasks = [
            task
            for stream in self._streams.values()
            for task in (stream.task, stream.explanation)
            if task is not None and not task.done()
        ]
        for stream in self._streams.values():
            stream.waiting = None
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=LATE_TASK_S)

    # ------------------------------------------------------------------------------------------------ rankings

    def _start(self, stream: _Stream, request: PlanRequest) -> None:
        stream.running = request
        stream.task = self._spawn(self._rank(stream, request))

    async def _rank(self, stream: _Stream, request: PlanRequest) -> None:
        plan = None
        try:
            async with asyncio.timeout(request.budget_ms / 1000 if request.budget_ms else None):
                plan = await self.planner.plan(request)
            self._failures = 0
            self.send(plan)
        except asyncio.CancelledError:
            self._fail(request, "cancelled")
        except TimeoutError:
            self._fail(request, f"gave no answer within {request.budget_ms:.0f} ms")
        except StreamAgentError as error:
            self._fail(request, str(error))
            self._count_failure(error)
        finally:
            stream.running = stream.task = None
        if plan is not None:
            self._explain(stream, request, plan)
        if stream.waiting is not None:
            waiting, stream.waiting = stream.waiting, None
            self._start(stream, waiting)

    def _count_failure(self, error: StreamAgentError) -> None:
        if isinstance(error, BackendError) and error.too_long:
            return  # the engine is well, and a new one would find the prompt as long
        self._failures += 1
        if isinstance(error, BackendError) and error.lost:
            self._end(error)
        elif self._failures >= FAILURES_IN_A_ROW:
            self._end(BackendError(f"{self._failures} requests in a row failed, the last: {error}", lost=True))

    def _abort(self, message: Abort) -> None:
        for stream_id, stream in self._streams.items():
            if message.stream_id not in ("", stream_id):
                continue
            if stream.waiting is not None and stream.waiting.request_id == message.request_id:
                self._fail(stream.waiting, "cancelled")
                stream.waiting = None
            elif stream.running is not None and stream.running.request_id == message.request_id:
                if stream.task is not None:
                    stream.task.cancel()
            elif stream.explaining is not None and stream.explaining.request_id == message.request_id:
                self._drop_explanation(stream)

    def _fail(self, request: PlanRequest, reason: str) -> None:
        self.send(PlanFailure(request.request_id, reason, request.memory.stream_id))

    # ------------------------------------------------------------------------------------------------ explanations

    def _explain(self, stream: _Stream, request: PlanRequest, plan: Plan) -> None:
        """Begin an explanation if one is due: something changed, or the last one is old."""
        if plan.abstained or not self.planner.explains:
            self._tell_end(request, plan)
            return
        key = (request.memory.case_id, request.memory.current, plan.ranked[0].action)
        age_s = request.memory.now_pts_s - stream.explained_pts_s
        due = key != stream.explained or not 0 <= age_s < self.config.rationale_every_s
        if stream.explanation is not None or not due:
            self._tell_end(request, plan)
            return
        stream.explained, stream.explained_pts_s, stream.explaining = key, request.memory.now_pts_s, request
        stream.explanation = self._spawn(self._tell(stream, request, plan))

    async def _tell(self, stream: _Stream, request: PlanRequest, plan: Plan) -> None:
        problem = ""
        try:
            async with asyncio.timeout(self.config.rationale_max_s):
                async for update in self.planner.more(request, plan):
                    self.send(update)
        except asyncio.CancelledError:
            problem = "stopped: its frame is no longer near"
        except TimeoutError:
            problem = f"stopped: not finished {self.config.rationale_max_s:g} s after its frame"
        except StreamAgentError as error:
            problem = str(error)
            self._count_failure(error)
        finally:
            if stream.explaining is request:
                stream.explaining = stream.explanation = None
        self._tell_end(request, plan, problem, always=True)

    def _tell_end(self, request: PlanRequest, plan: Plan, problem: str = "", *, always: bool = False) -> None:
        """In lockstep the agent waits for the end of every answer, also where nothing follows."""
        if always or request.patient:
            self.send(
                PlanUpdate(
                    stream_id=plan.stream_id,
                    session_id=plan.session_id,
                    request_id=plan.request_id,
                    seq=plan.seq,
                    problem=problem,
                    final=True,
                )
            )

    def _drop_far(self, stream: _Stream, request: PlanRequest) -> None:
        """Abort the explanation of a frame that a newer request shows to be no longer near."""
        about = stream.explaining
        if about is None:
            return
        old, new = about.memory, request.memory
        if (old.case_id, old.session_id, old.current) != (new.case_id, new.session_id, new.current):
            self._drop_explanation(stream)

    def _drop_explanation(self, stream: _Stream) -> None:
        if stream.explanation is not None:
            stream.explanation.cancel()
        stream.explained = ()
        stream.explaining = stream.explanation = None

    # ------------------------------------------------------------------------------------------------ the end

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(self._look_at)
        return task

    def _look_at(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._end(error)

    def _end(self, error: BaseException) -> None:
        if not self.lost.done():
            self.lost.set_exception(error)
