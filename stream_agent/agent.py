"""The loop: receive the newest frame, perceive, remember, plan, publish.

    frame ─▶ gate → recogniser ─evidence▶ segmenter → NHFM ─memory▶ statistical planner ─┐
                                               └▶ scheduler ─request▶ worker ─answer▶ ladder ─plan▶ sinks

Two paces. In real time the loop takes the newest frame there is and nobody waits for it. In lockstep every frame comes
in order on the agent's credit, a virtual clock runs on media time, and what a worker's answer took is charged to it; so
the same input gives the same plans on every run. Real time spent is measured in both; it goes into the summary.
"""

from __future__ import annotations

import math
import signal
import time
from collections import deque
from contextlib import ExitStack
from pathlib import Path

import msgspec
import zmq

from stream_agent.clock import NS_PER_S, Clock, ManualClock, MonotonicClock
from stream_agent.config import AgentConfig, is_lockstep
from stream_agent.errors import StreamAgentError, WireError, WorkerError
from stream_agent.grabber import grab_job, scene_timeline
from stream_agent.journal import Journal
from stream_agent.memory import NearHistoryMemory
from stream_agent.messages import (
    ClipEvent,
    Evidence,
    FrameHeader,
    FromWorker,
    Health,
    Memory,
    Notice,
    Plan,
    PlanFailure,
    PlanRequest,
    PlanUpdate,
)
from stream_agent.perception.gate import Gate
from stream_agent.perception.perceive import Perception, build_recogniser
from stream_agent.perception.segmenter import Segmenter
from stream_agent.perception.thumbnail import thumbnail
from stream_agent.planner.answer import objection
from stream_agent.planner.ladder import abstention, choose
from stream_agent.planner.link import WorkerLink
from stream_agent.planner.statistical import StatisticalPlanner
from stream_agent.procedure import ProcedurePack, load_pack
from stream_agent.runtime import RuntimeDirectory
from stream_agent.scheduler import Abort, Hold, Scheduler, Skip, Start
from stream_agent.sinks.console_process import ConsoleProcess
from stream_agent.sinks.jsonl import JsonlSink
from stream_agent.sinks.publisher import Publisher
from stream_agent.sinks.summary import print_summary
from stream_agent.source import redacted
from stream_agent.telemetry import Telemetry
from stream_agent.transport.receiver import Frame, FrameReceiver
from stream_agent.workers import Worker

_WAIT_S = 0.02
_SUPERVISE_NS = 50_000_000
_HEALTH_NS = 500_000_000
_ABORT_PATIENCE_NS = 2_000_000_000
_TICK_SLACK = 1e-6


class Agent:
    """One stream of one case, from the first frame to the last."""

    def __init__(self, config: AgentConfig, resources: ExitStack) -> None:
        """Build every stage and start the children; `resources` closes them, in reverse order, whatever happens.

        Raises:
            ConfigError: A value, file, pack, model or address is wrong.
        """
        self._config = config
        self._lockstep = is_lockstep(config.source)
        self._virtual = ManualClock()
        self._clock: Clock = self._virtual if self._lockstep else MonotonicClock()
        self._valid_ns = round(config.planner.valid_s * NS_PER_S)
        self._deadline_ns = round(config.planner.deadline_ms * 1e6)
        self.pack: ProcedurePack = load_pack(config.procedure.pack)
        timeline = scene_timeline(config.source, self.pack)
        self.telemetry = Telemetry()
        self._perception = Perception(
            Gate(config.gate), build_recogniser(config.recogniser, self.pack, config.source.uri, timeline)
        )
        self._memory = NearHistoryMemory(
            config.memory, Segmenter(self.pack.action_names, config.segmenter), self.pack.instruments
        )
        self._goal = config.procedure.goal or self.pack.goal
        self._statistical = StatisticalPlanner(self.pack, config.planner)
        self._warm_up()
        self._scheduler = Scheduler(config.scheduler, deadline_ms=config.planner.deadline_ms)
        self._config_digest = config.digest()

        if config.telemetry.prometheus is not None:
            resources.callback(self.telemetry.serve(config.telemetry.prometheus))
        self._journal = self._open_journal(resources)
        self._jsonl = self._open_jsonl(resources)
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        resources.callback(context.term)
        runtime = resources.enter_context(RuntimeDirectory())
        public = config.sinks.publisher
        self._publisher = Publisher(
            [runtime.endpoint("plans"), *([public.bind] if public.bind is not None else ())], keys=public.keys
        )
        resources.callback(self._publisher.close, linger_s=0.2)
        self._console = ConsoleProcess(
            config.sinks.console,
            runtime.endpoint("plans"),
            title=f"{self.pack.title} · {redacted(config.source.uri)}",
            lockstep=self._lockstep,
            codes=[(action.name, action.code) for action in self.pack.actions],
        )
        resources.callback(self._console.stop)

        if self._journal is not None and self._journal.restored:
            clips = len(self._journal.restored)
            self._tell(f"case {config.memory.case_id}: {clips} closed clips restored from {config.memory.journal}")

        self._window = config.transport.slots - 2
        remote = config.transport.connect
        endpoint = remote or runtime.endpoint("frames")
        self._receiver = FrameReceiver(context, endpoint, keys=config.transport.keys if remote else None)
        resources.callback(self._receiver.close)
        self._grabber = None if remote else Worker("grabber", "stream_agent.grabber", lambda: self._grab_job(endpoint))
        self._link = WorkerLink(context, runtime.endpoint)
        resources.callback(self._link.close)
        self._worker = (
            None
            if config.planner.kind == "none"
            else Worker(
                "planner worker",
                "stream_agent.planner.worker",
                lambda: self._link.job(config.planner.model_dump_json(), self.pack.action_names),
                restarts_per_minute=config.planner.restarts_per_minute,
                ready_timeout_s=config.planner.ready_timeout_s,
            )
        )
        self._stop = False
        self._next_tick_pts_s = 0.0
        self._last_header: FrameHeader | None = None
        self._snapshot: Memory | None = None
        self._gate = ""
        self._statistical_plan: Plan | None = None
        self._worker_plan: Plan | None = None
        self._worker_state = "no worker is configured" if self._worker is None else "starting"
        self._shown: Plan | None = None
        self._request: PlanRequest | None = None
        self._submitted_ns = 0
        self._unanswered: dict[int, int] = {}
        self._charged: deque[tuple[int, FromWorker]] = deque()
        self._next_request_id = 1
        self._restarts = {"grabber": 0, "planner worker": 0}
        self._supervised_ns = 0
        self._health_ns = 0
        self._health: dict[str, str] = {}
        for child in (self._worker, self._grabber):  # closed in reverse: from the source down
            if child is not None:
                resources.callback(child.stop)
                child.start()

    # ------------------------------------------------------------------------------------------------ the loop

    def run(self) -> None:
        """Until the source ends or `stop` is called.

        Raises:
            StreamAgentError: A child failed for good: the source cannot be opened, say.
        """
        if self._lockstep:
            self._give_credit(self._window)
        ended = False
        while not self._stop:
            frame = self._receiver.following(_WAIT_S) if self._lockstep else self._receiver.newest(_WAIT_S)
            if frame is not None:
                self._on_frame(frame)
                if self._lockstep:
                    self._give_credit(1)
            elif self._receiver.ended is not None:
                ended = True
                break
            self._on_answers()
            self._poll_scheduler()
            self._expire()
            self._supervise()
            if frame is None and self._source_is_gone():
                ended = True
                break
        self._finish(ended)

    def stop(self) -> None:
        """Ask the loop to end; safe in a signal handler."""
        self._stop = True

    def _on_frame(self, frame: Frame) -> None:
        header = frame.header
        if self._lockstep:
            self._deliver_charged(header.captured_ns)
            self._virtual.advance_to(header.captured_ns)
        self._last_header = header
        if header.pts_s + _TICK_SLACK < self._next_tick_pts_s:
            self.telemetry.count("frames_dropped", reason="not_sampled")
            return
        rate_hz = self._config.recogniser.rate_hz
        self._next_tick_pts_s = (math.floor(header.pts_s * rate_hz + _TICK_SLACK) + 1) / rate_hz
        started_ns = time.monotonic_ns()
        try:
            planes = frame.planes()
            picture = None if planes is None else thumbnail(planes, header)
        except WireError:
            self.telemetry.count("frames_dropped", reason="undecodable")
            return
        if not frame.intact():
            self.telemetry.count("frames_dropped", reason="overwritten")
            return
        self.telemetry.count("frames_received")
        reduced_ns = time.monotonic_ns()
        evidence = self._perception.evidence(header, picture)
        perceived_ns = time.monotonic_ns()
        self._remember(header, evidence)
        remembered_ns = time.monotonic_ns()
        assert self._snapshot is not None
        self._statistical_plan = self._statistical.plan(
            PlanRequest(
                request_id=0,
                memory=self._snapshot,
                deadline_ns=header.captured_ns + self._valid_ns,
                horizon=self._config.planner.horizon,
                goal=self._goal,
            )
        )
        planned_ns = time.monotonic_ns()
        if not self._lockstep:
            self.telemetry.span("transport", frame.received_ns - header.captured_ns)
        spans_ns = {
            "reduce": reduced_ns - started_ns,
            "perceive": perceived_ns - reduced_ns,
            "remember": remembered_ns - perceived_ns,
            "plan_statistical": planned_ns - remembered_ns,
        }
        for stage, span_ns in spans_ns.items():
            self.telemetry.span(stage, span_ns)
        self.telemetry.count("plans_due")
        self._publish_choice({} if self._lockstep else {stage: span_ns / 1e6 for stage, span_ns in spans_ns.items()})
        self.telemetry.span("publish", time.monotonic_ns() - planned_ns)
        if not self._gate:
            self._offer(header.captured_ns)

    def _remember(self, header: FrameHeader, evidence: Evidence) -> None:
        self._gate = evidence.gate
        if evidence.gate:
            self.telemetry.count("frames_gated", reason=evidence.gate)
        if header.discontinuity:
            self._perception.reset()
        events = self._memory.observe(header, evidence)
        self._snapshot = self._memory.snapshot()
        self._tell_clips(events)

    def _tell_clips(self, events: tuple[ClipEvent, ...]) -> None:
        for event in events:
            if event.kind == "closed":
                self.telemetry.count("clips")
                if self._journal is not None:
                    self._journal.append(event.clip)
            self._publisher.send(event, now_ns=self._clock.now_ns())

    # ------------------------------------------------------------------------------------------------ publishing

    def _publish_choice(self, spans_ms: dict[str, float]) -> None:
        """Publish the ladder's choice unless it is the very plan on display."""
        assert self._statistical_plan is not None and self._snapshot is not None
        plan = choose(
            now_ns=self._clock.now_ns(),
            gate=self._gate,
            memory=self._snapshot,
            statistical=self._statistical_plan,
            worker_plan=self._worker_plan,
            worker_state=self._worker_state,
        )
        shown = self._shown
        if shown is not None and plan.request_id and plan.request_id == shown.request_id:
            return
        self._publish(plan, spans_ms)

    def _publish(self, plan: Plan, spans_ms: dict[str, float]) -> None:
        now_ns = self._clock.now_ns()
        if now_ns > plan.valid_until_ns and not plan.abstained:
            self.telemetry.count("plans_expired")
            plan = abstention(plan, "the answer expired before it could be published")
        if plan.abstained:
            plan = msgspec.structs.replace(plan, valid_until_ns=now_ns + self._valid_ns)
        age_ns = now_ns - plan.captured_ns
        plan = msgspec.structs.replace(
            plan,
            published_ns=now_ns,
            spans_ms={**plan.spans_ms, **spans_ms, "total": age_ns / 1e6},
            hashes=msgspec.structs.replace(plan.hashes, config=self._config_digest),
        )
        if self._shown is not None:
            self.telemetry.age(now_ns - self._shown.captured_ns)  # the oldest that it was on display
        self.telemetry.span(f"capture_to_plan_{plan.source}", age_ns)
        if age_ns > self._deadline_ns and not plan.abstained:
            self.telemetry.count("plans_missed")
        self.telemetry.count("plans_published", reason=plan.source)
        if plan.abstained:
            self.telemetry.count("plans_abstained", reason=plan.abstain_reason)
        self._publisher.send(plan, now_ns=now_ns)
        if self._jsonl is not None:
            self._jsonl.write(plan)
        self._shown = plan

    def _expire(self) -> None:
        """Replace a plan whose time is over; without this the last one would stand for ever when frames stop coming."""
        shown = self._shown
        if shown is None or self._clock.now_ns() <= shown.valid_until_ns:
            return
        if not shown.abstained:
            self.telemetry.count("plans_expired")
        silent_s = (self._clock.now_ns() - shown.captured_ns) / NS_PER_S
        source = self._grabber.health() if self._grabber is not None else "ok"
        reason = f"no frame for {silent_s:.0f} s" if source == "ok" else f"source: {source}"
        self._publish(abstention(shown, reason), {})

    # ------------------------------------------------------------------------------------------------ the planner worker

    def _offer(self, captured_ns: int) -> None:
        if self._worker is None:
            return
        if self._lockstep:
            self._await_worker()
        self._act(
            self._scheduler.offer(captured_ns=captured_ns, now_ns=self._clock.now_ns(), ready=self._worker_is_ready())
        )

    def _poll_scheduler(self) -> None:
        if self._worker is not None:
            self._act(self._scheduler.poll(now_ns=self._clock.now_ns(), ready=self._worker_is_ready()))

    def _worker_is_ready(self) -> bool:
        return self._worker is not None and self._worker.ready and self._link.connected and not self._unanswered

    def _act(self, decisions: tuple[Start | Skip | Hold | Abort, ...]) -> None:
        for decision in decisions:
            match decision:
                case Start(_, deadline_ns):
                    self._submit(deadline_ns)
                case Skip(_, reason):
                    self.telemetry.count("worker_skipped", reason=reason)
                case Hold():
                    pass
                case Abort():
                    self._abort("missed its deadline")

    def _submit(self, deadline_ns: int) -> None:
        assert self._snapshot is not None
        request = PlanRequest(
            request_id=self._next_request_id,
            memory=self._snapshot,
            deadline_ns=deadline_ns,
            horizon=self._config.planner.horizon,
            goal=self._goal,
        )
        self._next_request_id += 1
        self._request = request
        self._submitted_ns = self._clock.now_ns()
        self.telemetry.count("worker_due")
        if self._worker_plan is None:
            self._worker_state = "thinking"
        if not self._link.submit(request):
            self._fail(request.request_id, "the worker takes no requests")
        elif self._lockstep:
            self._charge(request)

    def _abort(self, why: str) -> None:
        if self._request is None:
            return
        self.telemetry.count("worker_missed")
        self._worker_state = why
        self._link.abort(self._request.request_id)
        self._unanswered[self._request.request_id] = time.monotonic_ns()
        self._request = None

    def _on_answers(self) -> None:
        if self._lockstep:
            self._deliver_charged(self._clock.now_ns())
        else:
            for message in self._link.collect():
                self._on_answer(message)

    def _on_answer(self, message: FromWorker) -> None:
        match message:
            case PlanUpdate():
                self._publisher.send(message, now_ns=self._clock.now_ns())
            case PlanFailure(request_id, reason):
                self._fail(request_id, reason)
            case Plan():
                self._on_worker_plan(message)

    def _on_worker_plan(self, plan: Plan) -> None:
        if self._unanswered.pop(plan.request_id, None) is not None:
            self.telemetry.count("worker_late")
            return
        if self._request is None or plan.request_id != self._request.request_id:
            self.telemetry.count("worker_unasked")
            return
        problem = objection(plan, self._request, self.pack.action_names)
        if problem:
            self._fail(plan.request_id, f"its answer {problem}")
            return
        latency_ns = self._clock.now_ns() - self._submitted_ns
        self.telemetry.span("plan_worker", latency_ns)
        self._request = None
        self._scheduler.finished()
        # The session, not the model, says how long an answer is good for.
        self._worker_plan = msgspec.structs.replace(
            plan,
            source="vlm",
            valid_until_ns=plan.captured_ns + self._valid_ns,
            spans_ms={**plan.spans_ms, "worker": latency_ns / 1e6},
        )
        self._worker_state = "its newest answer stands"
        self._publish_choice({})

    def _fail(self, request_id: int, reason: str) -> None:
        """Book a request as failed; id 0 stands for whatever is running."""
        if self._unanswered.pop(request_id, None) is not None:
            return  # aborted and acknowledged; it was booked as missed
        if self._request is None or request_id not in (0, self._request.request_id):
            return
        self.telemetry.count("worker_missed")
        self.telemetry.count("worker_failed", reason=reason)
        self._request = None
        self._scheduler.finished()
        self._worker_state = reason

    # ------------------------------------------------------------------------------------------------ lockstep

    def _charge(self, request: PlanRequest) -> None:
        """Wait for the worker's answer, and have it arrive when the virtual clock says so."""
        assert self._worker is not None
        begun_ns = time.monotonic_ns()
        limit_ns = begun_ns + round(self._config.planner.deadline_ms * 1e6) + NS_PER_S
        answer: FromWorker | None = None
        while answer is None and time.monotonic_ns() < limit_ns:
            for message in self._link.collect(_WAIT_S):
                if not isinstance(message, PlanUpdate):
                    answer = message
            self._worker.poll()
            if answer is None and not self._worker.ready:
                answer = PlanFailure(request.request_id, self._worker.health())
        if answer is None:
            self._worker.kill()  # it hangs; the virtual deadline will book the miss
            return
        charged_ms = self._config.planner.charged_ms
        latency_ns = time.monotonic_ns() - begun_ns if charged_ms is None else round(charged_ms * 1e6)
        self._charged.append((self._clock.now_ns() + latency_ns, answer))

    def _deliver_charged(self, until_ns: int) -> None:
        while self._charged and self._charged[0][0] <= until_ns:
            due_ns, answer = self._charged.popleft()
            self._poll_scheduler()
            self._virtual.advance_to(due_ns)
            self._poll_scheduler()
            self._on_answer(answer)
            self._poll_scheduler()

    def _await_worker(self) -> None:
        """In lockstep a worker that starts costs no media time."""
        assert self._worker is not None
        while not (self._worker.ready and self._link.connected) and not self._worker.finished and not self._stop:
            self._worker.poll()
            time.sleep(0.005)
        self._note_restart(self._worker)

    def _give_credit(self, frames: int) -> None:
        if self._grabber is not None:
            self._grabber.give_credit(frames)

    # ------------------------------------------------------------------------------------------------ supervision

    def _supervise(self) -> None:
        """Poll the children, tell their notices, publish health; cheap enough to call between any two frames."""
        now_ns = time.monotonic_ns()
        if now_ns - self._supervised_ns < _SUPERVISE_NS:
            return
        self._supervised_ns = now_ns
        for child in (self._grabber, self._worker):
            if child is None:
                continue
            child.poll()
            self._note_restart(child)
            while child.notices:
                self._tell(child.notices.popleft())
        if self._grabber is not None and self._grabber.failure is not None:
            failure = self._grabber.failure
            error = StreamAgentError(failure.message)
            error.exit_code = failure.exit_code
            raise error
        if self._worker is not None:
            self._watch_worker(self._worker, now_ns)
        self._console.poll()
        self._publish_health(now_ns)
        if self._shown is not None and not self._lockstep:
            self.telemetry.age(self._clock.now_ns() - self._shown.captured_ns)

    def _note_restart(self, child: Worker) -> None:
        if child.restarts == self._restarts[child.name]:
            return
        self._restarts[child.name] = child.restarts
        self.telemetry.count("restarts", reason=child.name)
        if child is self._grabber:
            self._give_credit(self._window if self._lockstep else 0)
        else:
            self._unanswered.clear()

    def _watch_worker(self, worker: Worker, now_ns: int) -> None:
        if not worker.ready:
            if self._request is not None and not self._lockstep:
                self._fail(self._request.request_id, worker.health())
            self._worker_state = worker.health()
        hung = [since_ns for since_ns in self._unanswered.values() if now_ns - since_ns > _ABORT_PATIENCE_NS]
        if hung and worker.ready:
            self._tell(
                f"the planner worker did not let go of an aborted request for {_ABORT_PATIENCE_NS / 1e9:.0f} s; killed"
            )
            self._unanswered.clear()
            worker.kill()

    def _publish_health(self, now_ns: int) -> None:
        parts = {"console": self._console.problem or "ok"}
        if self._grabber is not None:
            parts["source"] = self._grabber.health()
        if self._worker is not None:
            parts["planner worker"] = self._worker.health()
        if self._journal is not None:
            parts["journal"] = self._journal.problem or "ok"
        if self._jsonl is not None:
            parts["jsonl"] = self._jsonl.problem or "ok"
        changed = parts != self._health
        if not changed and now_ns - self._health_ns < _HEALTH_NS:
            return
        self._health, self._health_ns = parts, now_ns
        health = Health(
            stream_id=self._config.source.stream_id,
            sent_ns=self._clock.now_ns(),
            state="ok" if all(part == "ok" for part in parts.values()) else "degraded",
            parts=parts,
            restarts={name: n for name, n in self._restarts.items() if n},
        )
        self._publisher.send(health, now_ns=self._clock.now_ns())
        self._book_frames()
        self._publisher.send(self.telemetry.counters(self._config.source.stream_id), now_ns=self._clock.now_ns())
        if (
            self._snapshot is not None
        ):  # whoever subscribes late, or again, gets the case's history within half a second
            self._publisher.send(self._snapshot, now_ns=self._clock.now_ns())

    def _tell(self, text: str) -> None:
        """One line for the user: through the console while it draws, and on stderr."""
        self._publisher.send(Notice(text), now_ns=self._clock.now_ns())
        self._console.tell(text)

    def _book_frames(self) -> None:
        """Bring the receiver's side of the frame balance into the telemetry."""
        self.telemetry.set_total("frames_published", self._receiver.published)
        for reason, frames in self._receiver.drops.items():
            if frames:
                self.telemetry.set_total("frames_dropped", frames, reason=reason)

    def _source_is_gone(self) -> bool:
        """Whether the grabber has ended without its last message reaching us."""
        return self._grabber is not None and self._grabber.finished

    # ------------------------------------------------------------------------------------------------ start and end

    def _warm_up(self) -> None:
        """Plan once for nobody, so that the first plan of the case is not the slowest."""
        near = FrameHeader(stream_id="", session_id="", seq=0, pts_s=0.0, captured_ns=0)
        for current in (None, self.pack.action_names[0]):
            memory = Memory(stream_id="", session_id="", case_id="", now_pts_s=0.0, near=near, current=current)
            self._statistical.plan(PlanRequest(request_id=0, memory=memory, deadline_ns=0))

    def _grab_job(self, endpoint: str) -> bytes:
        """The grabber's job; a grabber that is started again goes on where the last one ended."""
        resume_pts_s = None
        if self._last_header is not None:
            elapsed_s = (self._clock.now_ns() - self._last_header.captured_ns) / NS_PER_S
            resume_pts_s = self._last_header.pts_s + max(elapsed_s, _TICK_SLACK)
        return msgspec.json.encode(grab_job(self._config, self.pack, endpoint=endpoint, resume_pts_s=resume_pts_s))

    def _open_journal(self, resources: ExitStack) -> Journal | None:
        config = self._config.memory
        if config.journal is None:
            return None
        journal = Journal(config.journal, case_id=config.case_id, pack=self.pack.name)
        resources.callback(journal.close)
        if journal.restored:
            self._memory.restore(journal.restored)
        return journal

    def _open_jsonl(self, resources: ExitStack) -> JsonlSink | None:
        if self._config.sinks.jsonl is None:
            return None
        sink = JsonlSink(self._config.sinks.jsonl, lossless=self._lockstep, telemetry=self.telemetry)
        resources.callback(sink.close)
        return sink

    def _finish(self, ended: bool) -> None:
        """Stop the children from the source down, and book what is left."""
        if self._grabber is not None:
            self._grabber.stop()
        while self._receiver.newest(0.0) is not None:
            self.telemetry.count("frames_dropped", reason="stopping")
        self._receiver.close_session()
        if self._worker is not None:
            self._worker.stop()
        if ended:
            self._tell_clips(self._memory.finish())
        self._book_frames()


def run(config: AgentConfig, summary: Path | None = None) -> int:
    """Run one agent to the end of its source or to Ctrl-C; print the summary and, if asked, write it as JSON.

    Raises:
        StreamAgentError: What the user can mend; nothing is left behind.
    """
    begun_s = time.monotonic()
    with ExitStack() as resources:
        agent = Agent(config, resources)
        for number in (signal.SIGINT, signal.SIGTERM):
            resources.callback(signal.signal, number, signal.signal(number, lambda *_: agent.stop()))
        agent.run()
    report = {
        **agent.telemetry.summary(),
        "wall_s": round(time.monotonic() - begun_s, 3),
        "config": config.model_dump(mode="json"),
        "config_digest": config.digest(),
    }
    print_summary(report)
    if summary is not None:
        try:
            summary.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
        except OSError as error:
            raise WorkerError(
                f"--summary {summary} cannot be written: {error.strerror}; name a file in a writable folder"
            ) from error
    return 0
