"""The planner worker as the agent's loop sees it: offer it frames, take its plans, know why it has none.

Between the scheduler (when to ask), the link (how) and the supervised process (whether it lives). Every request ends in
one way that is counted: answered, failed with a reason, or missed; an answer after its deadline is late and never shown.

A plan is shown as the agent can stand for it: the worker ranks, while cautions come from the pack's rules and the onset from the
statistical planner. A rationale stands for later plans of the same clip too, with its age, until it is too old.

In lockstep the desk waits for each answer and all that follows it, and lets it arrive when the virtual clock says so: at the
measured latency, or at `planner.charged_ms`, with which the same input gives the same plans on every machine.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

from stream_agent.clock import NS_PER_S
from stream_agent.config import PlannerConfig
from stream_agent.messages import FromWorker, Memory, NearPicture, PastPlan, Plan, PlanFailure, PlanRequest, PlanUpdate
from stream_agent.planner.answer import objection, objection_to_update
from stream_agent.planner.dressing import Said, dressed
from stream_agent.planner.fusion import distribution_of
from stream_agent.planner.link import WorkerLink
from stream_agent.planner.near_picture import PictureBook
from stream_agent.planner.past_plans import PastPlans
from stream_agent.procedure import ProcedurePack
from stream_agent.scheduler import Abort, Decision, Hold, Scheduler, Skip, Start
from stream_agent.telemetry import Telemetry
from stream_agent.workers import Worker

_ABORT_PATIENCE_S = 2.0
_LOOK_S = 0.01
_TALKED_ABOUT = 16
_MOST_KINDS = 64
_LONGEST_KIND = 80


class _Offered(NamedTuple):
    memory: Memory
    statistical: Plan
    pictures: tuple[NearPicture, ...]
    previous: tuple[PastPlan, ...]


class _Asked(NamedTuple):
    request: PlanRequest
    statistical: Plan


class WorkerDesk:
    """One stream's requests to one worker.

    Attributes:
        worker: The supervised process.
        plan: The newest valid answer; it may have expired since.
        state: Why there is no newer one, in a few words.
        goal: What the next requests are to plan towards.
    """

    def __init__(
        self,
        worker: Worker,
        link: WorkerLink,
        scheduler: Scheduler,
        *,
        config: PlannerConfig,
        pack: ProcedurePack,
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
        self._pack = pack
        self._actions = pack.action_names
        self.goal = goal
        self._telemetry = telemetry
        self._lockstep = lockstep
        self._stopped = stopped
        self._offered: _Offered | None = None
        self._pictures = PictureBook(config.max_frames if config.memory == "all_frames_with_labels" else 1)
        self._past = PastPlans(config.remember_plans)
        self._request: PlanRequest | None = None
        self._asked: dict[int, _Asked] = {}
        self._bare: Plan | None = None
        self._said: Said | None = None
        self._submitted_ns = 0
        self._next_request_id = 1
        self._unanswered: dict[int, float] = {}
        self._charged: deque[tuple[int, FromWorker]] = deque()
        self._restarts = 0
        self._kinds: set[str] = set()

    def offer(
        self,
        memory: Memory,
        statistical: Plan,
        *,
        captured_ns: int,
        now_ns: int,
        picture: Callable[[], NearPicture | None] = lambda: None,
    ) -> None:
        """A frame may be planned from.

        Args:
            memory: The newest snapshot.
            statistical: The statistical planner's answer for it.
            captured_ns: When the frame was captured.
            now_ns: The session clock.
            picture: Makes the frame's picture, called only if the frame is planned from or may be soon.
        """
        previous = self._past.see(memory)
        if self._lockstep:
            self._await_ready()
        decisions = self._scheduler.offer(captured_ns=captured_ns, now_ns=now_ns, ready=self._ready())
        if isinstance(decisions[-1], Start | Hold):
            made = picture() if self._config.wants_pictures else None
            pictures = self._pictures.add(made, case_id=memory.case_id)
            self._offered = _Offered(memory, statistical, pictures, previous)
        self._act(decisions, now_ns)

    def answers(self, now_ns: int) -> Iterator[tuple[int, Plan | PlanUpdate]]:
        """Valid answers up to now, each with the session time at which it arrived; requests past their deadline end."""
        if self._lockstep:
            while self._charged and self._charged[0][0] <= now_ns:
                arrived_ns, message = self._charged.popleft()
                self._poll(arrived_ns)
                for answer in self._accept(message, arrived_ns):
                    yield arrived_ns, answer
        else:
            for message in self._link.collect():
                for answer in self._accept(message, now_ns):
                    yield now_ns, answer
        self._poll(now_ns)

    @property
    def asked(self) -> PlanRequest | None:
        """What the worker is being asked; None while it is idle."""
        return self._request

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
        offered = self._offered
        assert offered is not None
        request = PlanRequest(
            request_id=self._next_request_id,
            memory=offered.memory,
            deadline_ns=deadline_ns,
            budget_ms=(deadline_ns - now_ns) / 1e6 if not self._lockstep else 0.0,
            patient=self._lockstep,
            horizon=self._config.horizon,
            goal=self.goal,
            pictures=offered.pictures,
            previous=offered.previous,
            statistical=distribution_of(offered.statistical, self._actions),
        )
        self._next_request_id += 1
        self._request, self._submitted_ns = request, now_ns
        self._telemetry.count("worker_due")
        if self.plan is None:
            self.state = "thinking"
        # What may still be said of a request needs no pixels; sixteen frames would be 13 MB.
        self._asked[request.request_id] = _Asked(msgspec.structs.replace(request, pictures=()), offered.statistical)
        if len(self._asked) > _TALKED_ABOUT:
            del self._asked[next(iter(self._asked))]
        if not self._link.submit(request):
            self._fail(request.request_id, "takes no requests")
        elif self._lockstep:
            self._charge(request, now_ns)

    def _abort(self) -> None:
        if self._request is not None:
            self._telemetry.count("worker_missed")
            self.state = "missed its deadline"
            self._link.abort(self._request.request_id, self._request.memory.stream_id)
            self._unanswered[self._request.request_id] = time.monotonic()
            self._request = None

    def _accept(self, message: FromWorker, now_ns: int) -> Iterator[Plan | PlanUpdate]:
        """Book a message; yield what may be shown of it."""
        if isinstance(message, PlanUpdate):
            yield from self._accept_update(message)
        elif isinstance(message, PlanFailure):
            self._fail(message.request_id, message.reason)
        elif self._unanswered.pop(message.request_id, None) is not None:
            self._telemetry.count("worker_late")
        elif self._request is None or message.request_id != self._request.request_id:
            self._telemetry.count("worker_unasked")
        elif problem := objection(message, self._request, self._actions, self._config.fusion):
            self._fail(message.request_id, f"its answer {problem}")
        else:
            yield self._accept_plan(message, now_ns)

    def _accept_plan(self, plan: Plan, now_ns: int) -> Plan:
        latency_ns = now_ns - self._submitted_ns
        self._telemetry.span("plan_worker", latency_ns)
        self._request = None
        self._scheduler.finished()
        self.state = "its newest answer stands"
        # The session, not the model, says which rung this is and how long it is good for.
        self._bare = msgspec.structs.replace(
            plan,
            source="vlm" if plan.fusion is None else "fused",
            revision=0,
            valid_until_ns=plan.captured_ns + self._valid_ns,
            spans_ms={**plan.spans_ms, "worker": latency_ns / 1e6},
        )
        self._past.expect(self._bare)
        self.plan = self._dressed(self._bare)
        return self.plan

    def _accept_update(self, update: PlanUpdate) -> Iterator[Plan | PlanUpdate]:
        """Words pass as they come; a chain or a whole rationale makes a new revision of the plan that stands."""
        asked = self._asked.get(update.request_id)
        problem = (
            "is about no request of ours"
            if asked is None
            else objection_to_update(update, asked.request, self._actions)
        )
        if asked is None or problem:
            self._count("worker_failed", f"its explanation {problem}")
            return
        if update.problem:
            self._count("worker_unexplained", update.problem)
        yield update
        bare = self._bare
        if bare is None:
            return
        if update.rationale is not None:
            self._said = Said(asked.request, update.rationale)
        if update.chain and update.request_id == bare.request_id:
            bare = msgspec.structs.replace(bare, chain=update.chain)
        if update.rationale is not None or bare is not self._bare:
            self._bare = msgspec.structs.replace(bare, revision=bare.revision + 1)
            self.plan = self._dressed(self._bare)
            yield self.plan

    def _dressed(self, plan: Plan) -> Plan:
        asked = self._asked.get(plan.request_id)
        if asked is None:
            return plan
        return dressed(
            plan, asked.request, asked.statistical, self._said, self._pack, rationale_max_s=self._config.rationale_max_s
        )

    def _fail(self, request_id: int, reason: str) -> None:
        """Book a request as failed; id 0 stands for whatever is running."""
        if self._unanswered.pop(request_id, None) is not None:
            return  # aborted and acknowledged; it was booked as missed
        if self._request is None or request_id not in (0, self._request.request_id):
            return
        self._telemetry.count("worker_missed")
        self._count("worker_failed", reason)
        self._request = None
        self._scheduler.finished()
        self.state = reason

    def _count(self, name: str, reason: str) -> None:
        """Count by kind of reason: a model's own words and numbers would make a counter each, for ever."""
        kind = re.sub(r"[\d.]+", "#", re.split(r"[:'\"`]", reason)[0]).strip()[:_LONGEST_KIND]
        if kind not in self._kinds and len(self._kinds) >= _MOST_KINDS:
            kind = "other"
        self._kinds.add(kind)
        self._telemetry.count(name, reason=kind)

    def _charge(self, request: PlanRequest, now_ns: int) -> None:
        """Wait for the answer and what follows it, and put them where they belong on the virtual clock.

        An answer that hangs never arrives. Words as they stream depend on the machine and are left out.
        """
        begun_s = time.monotonic()
        limit_s = begun_s + self._config.deadline_ms / 1000 + 1.0
        charged_ms = self._config.charged_ms
        answered = ended = False
        while not ended and time.monotonic() < limit_s and not self._stopped():
            messages = list(self._link.collect(_LOOK_S))
            self.worker.poll()
            if not messages and not self.worker.ready:
                messages = [] if answered else [PlanFailure(request.request_id, self.worker.health())]
                ended = True
            for message in messages:
                if isinstance(message, PlanUpdate):
                    ended |= message.final
                    if not (message.chain or message.rationale or message.problem):
                        continue
                elif isinstance(message, Plan):
                    answered = True
                    limit_s = time.monotonic() + self._config.rationale_max_s + 1.0
                else:
                    answered = ended = True
                latency_ms = (time.monotonic() - begun_s) * 1000 if charged_ms is None else charged_ms
                self._charged.append((now_ns + round(latency_ms * 1e6), message))
        if not ended and not self._stopped():
            self.worker.kill()  # the virtual deadline will book the miss

    def _await_ready(self) -> None:
        """A worker that starts costs no media time in lockstep; the wait ends when it is ready or given up."""
        while not (self._stopped() or self.worker.finished or (self.worker.ready and self._link.connected)):
            time.sleep(_LOOK_S)
            self.supervise()
