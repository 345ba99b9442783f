"""The planner worker as the agent's loop sees it: offer it frames, take its plans, know why it has none.

Between the scheduler (when to ask), the link (how) and the supervised process (whether it lives). Every request ends in
one way that is counted: answered, failed with a reason, or missed; an answer after its deadline is late and never shown.

In lockstep the desk waits for each answer and lets it arrive when the virtual clock says so: at the measured latency, or
at `planner.charged_ms`, with which the same input gives the same plans on every machine.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator

import msgspec

from stream_agent.clock import NS_PER_S
from stream_agent.config import PlannerConfig
from stream_agent.messages import FromWorker, Memory, Plan, PlanFailure, PlanRequest, PlanUpdate
from stream_agent.planner.answer import objection
from stream_agent.planner.link import WorkerLink
from stream_agent.scheduler import Abort, Decision, Scheduler, Skip, Start
from stream_agent.telemetry import Telemetry
from stream_agent.workers import Worker

_ABORT_PATIENCE_S = 2.0
_LOOK_S = 0.01


class WorkerDesk:
    """One stream's requests to one worker.

    Attributes:
        worker: The supervised process.
        plan: The newest valid answer; it may have expired since.
        state: Why there is no newer one, in a few words.
    """

    def __init__(
        self,
        worker: Worker,
        link: WorkerLink,
        scheduler: Scheduler,
        *,
        config: PlannerConfig,
        actions: tuple[str, ...],
        goal: str,
        telemetry: Telemetry,
        lockstep: bool,
        stopped: Callable[[], bool],
    ) -> None:
        self.worker = worker
        self.plan: Plan | None = None
        self.state = "starting"
        self._link = link
        self._scheduler = scheduler
        self._config = config
        self._valid_ns = round(config.valid_s * NS_PER_S)
        self._actions = actions
        self._goal = goal
        self._telemetry = telemetry
        self._lockstep = lockstep
        self._stopped = stopped
        self._memory: Memory | None = None
        self._request: PlanRequest | None = None
        self._submitted_ns = 0
        self._next_request_id = 1
        self._unanswered: dict[int, float] = {}
        self._charged: deque[tuple[int, FromWorker]] = deque()
        self._restarts = 0

    def offer(self, memory: Memory, *, captured_ns: int, now_ns: int) -> None:
        """A frame may be planned from; `memory` is the newest snapshot."""
        self._memory = memory
        if self._lockstep:
            self._await_ready()
        self._act(self._scheduler.offer(captured_ns=captured_ns, now_ns=now_ns, ready=self._ready()), now_ns)

    def answers(self, now_ns: int) -> Iterator[tuple[int, Plan | PlanUpdate]]:
        """Valid answers up to now, each with the session time at which it arrived; requests past their deadline end."""
        if self._lockstep:
            while self._charged and self._charged[0][0] <= now_ns:
                arrived_ns, message = self._charged.popleft()
                self._poll(arrived_ns)
                if (answer := self._accept(message, arrived_ns)) is not None:
                    yield arrived_ns, answer
        else:
            for message in self._link.collect():
                if (answer := self._accept(message, now_ns)) is not None:
                    yield now_ns, answer
        self._poll(now_ns)

    def supervise(self) -> None:
        """Notice that the worker died, came back, or hangs on to a request it was told to drop."""
        self.worker.poll()
        if self.worker.restarts != self._restarts:
            self._restarts = self.worker.restarts
            self._unanswered.clear()
        if not self.worker.ready:
            if self._request is not None and not self._lockstep:
                self._fail(self._request.request_id, self.worker.health())
            self.state = self.worker.health()
        now_s = time.monotonic()
        if self.worker.ready and any(now_s - since_s > _ABORT_PATIENCE_S for since_s in self._unanswered.values()):
            self.worker.notices.append(
                f"{self.worker.name} did not let go of an aborted request for {_ABORT_PATIENCE_S:.0f} s; killed"
            )
            self._unanswered.clear()
            self.worker.kill()

    def _ready(self) -> bool:
        return self.worker.ready and self._link.connected and not self._unanswered

    def _poll(self, now_ns: int) -> None:
        self._act(self._scheduler.poll(now_ns=now_ns, ready=self._ready()), now_ns)

    def _act(self, decisions: tuple[Decision, ...], now_ns: int) -> None:
        for decision in decisions:
            match decision:
                case Start(_, deadline_ns):
                    self._submit(deadline_ns, now_ns)
                case Skip(_, reason):
                    self._telemetry.count("worker_skipped", reason=reason)
                case Abort():
                    self._abort()

    def _submit(self, deadline_ns: int, now_ns: int) -> None:
        assert self._memory is not None
        request = PlanRequest(
            request_id=self._next_request_id,
            memory=self._memory,
            deadline_ns=deadline_ns,
            horizon=self._config.horizon,
            goal=self._goal,
        )
        self._next_request_id += 1
        self._request, self._submitted_ns = request, now_ns
        self._telemetry.count("worker_due")
        if self.plan is None:
            self.state = "thinking"
        if not self._link.submit(request):
            self._fail(request.request_id, "takes no requests")
        elif self._lockstep:
            self._charge(request, now_ns)

    def _abort(self) -> None:
        if self._request is not None:
            self._telemetry.count("worker_missed")
            self.state = "missed its deadline"
            self._link.abort(self._request.request_id)
            self._unanswered[self._request.request_id] = time.monotonic()
            self._request = None

    def _accept(self, message: FromWorker, now_ns: int) -> Plan | PlanUpdate | None:
        """Book a message; return it if it may be shown."""
        if isinstance(message, PlanUpdate):
            return message
        if isinstance(message, PlanFailure):
            self._fail(message.request_id, message.reason)
            return None
        if self._unanswered.pop(message.request_id, None) is not None:
            self._telemetry.count("worker_late")
            return None
        if self._request is None or message.request_id != self._request.request_id:
            self._telemetry.count("worker_unasked")
            return None
        problem = objection(message, self._request, self._actions)
        if problem:
            self._fail(message.request_id, f"its answer {problem}")
            return None
        latency_ns = now_ns - self._submitted_ns
        self._telemetry.span("plan_worker", latency_ns)
        self._request = None
        self._scheduler.finished()
        self.state = "its newest answer stands"
        # The session, not the model, says which rung this is and how long it is good for.
        self.plan = msgspec.structs.replace(
            message,
            source="vlm",
            valid_until_ns=message.captured_ns + self._valid_ns,
            spans_ms={**message.spans_ms, "worker": latency_ns / 1e6},
        )
        return self.plan

    def _fail(self, request_id: int, reason: str) -> None:
        """Book a request as failed; id 0 stands for whatever is running."""
        if self._unanswered.pop(request_id, None) is not None:
            return  # aborted and acknowledged; it was booked as missed
        if self._request is None or request_id not in (0, self._request.request_id):
            return
        self._telemetry.count("worker_missed")
        self._telemetry.count("worker_failed", reason=reason)
        self._request = None
        self._scheduler.finished()
        self.state = reason

    def _charge(self, request: PlanRequest, now_ns: int) -> None:
        """Wait for the answer and put it where it belongs on the virtual clock; one that hangs never arrives."""
        begun_s = time.monotonic()
        limit_s = begun_s + self._config.deadline_ms / 1000 + 1.0
        answer: FromWorker | None = None
        while answer is None and time.monotonic() < limit_s and not self._stopped():
            for message in self._link.collect(_LOOK_S):
                if not isinstance(message, PlanUpdate):
                    answer = message
            self.worker.poll()
            if answer is None and not self.worker.ready:
                answer = PlanFailure(request.request_id, self.worker.health())
        if answer is None:
            self.worker.kill()  # the virtual deadline will book the miss
            return
        charged_ms = self._config.charged_ms
        latency_ms = (time.monotonic() - begun_s) * 1000 if charged_ms is None else charged_ms
        self._charged.append((now_ns + round(latency_ms * 1e6), answer))

    def _await_ready(self) -> None:
        """A worker that starts costs no media time in lockstep; the wait ends when it is ready or given up."""
        while not (self._stopped() or self.worker.finished or (self.worker.ready and self._link.connected)):
            time.sleep(_LOOK_S)
            self.supervise()
