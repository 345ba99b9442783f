"""The loop: receive the newest frame, perceive, remember, plan, publish.

    frame ─▶ gate → recogniser ─evidence▶ segmenter → NHFM ─memory▶ statistical planner ─┐
                                               └▶ worker desk ─request▶ worker ─answer▶ ladder ─plan▶ display ─▶ sinks

Two paces. In real time the loop takes the newest frame there is and nobody waits for it. In lockstep every frame comes
in order on the agent's credit, a virtual clock runs on media time, and what a worker's answer took is charged to it; so
the same input gives the same plans on every run. Real time spent is measured in both; it goes into the summary.
"""

from __future__ import annotations

import gc
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import cv2
import msgspec

from stream_agent.clock import NS_PER_S, Clock, ManualClock, MonotonicClock
from stream_agent.config import AgentConfig, is_lockstep
from stream_agent.errors import StreamAgentError, WireError, WorkerError
from stream_agent.messages import ClipEvent, FrameHeader, Health, NearPicture, Notice, Plan
from stream_agent.perception.protocol import Thumbnail
from stream_agent.perception.thumbnail import thumbnail
from stream_agent.perception.ticks import Ticks
from stream_agent.planner.near_picture import near_picture
from stream_agent.sinks.dashboard.control import Command, NewCase, Pause, Session, SetGoal
from stream_agent.sinks.summary import print_summary
from stream_agent.stages import open_stages
from stream_agent.telemetry import Telemetry
from stream_agent.transport.receiver import Frame
from stream_agent.workers import Worker

_WAIT_S = 0.02
_SUPERVISE_NS = 50_000_000
_HEALTH_NS = 500_000_000
_TICK_SLACK = 1e-6


class StopFlag:
    """Says that the loop must end; unlike an event's, its `set` may be interrupted by a signal handler that calls it again."""

    def __init__(self) -> None:
        self._stopped = False

    def set(self) -> None:
        """End the loop."""
        self._stopped = True

    def is_set(self) -> bool:
        """Whether it must end."""
        return self._stopped


class Agent:
    """One stream of one case, from the first frame to the last."""

    def __init__(self, config: AgentConfig, resources: ExitStack, stopped: StopFlag) -> None:
        """Build every stage; `resources` closes them, in reverse order, whatever happens; `stopped` ends the loop.

        Raises:
            ConfigError: A value, file, pack, model or address is wrong.
        """
        self._config = config
        self._stopped = stopped
        self._lockstep = is_lockstep(config.source)
        self._virtual = ManualClock()
        self._clock: Clock = self._virtual if self._lockstep else MonotonicClock()
        self.telemetry = Telemetry()
        stages = open_stages(
            config,
            resources,
            clock=self._clock,
            telemetry=self.telemetry,
            stopped=stopped.is_set,
            resume_pts_s=self._resume_pts_s,
        )
        self._children = stages.children
        self._receiver, self._grabber = stages.receiver, stages.grabber
        self._case, self._journal, self._desk = stages.case, stages.journal, stages.desk
        self._display, self._publisher, self._jsonl = stages.display, stages.publisher, stages.jsonl
        self._console, self._dashboard, self._bridges = stages.console, stages.dashboard, stages.bridges
        self._recording = stages.recording

        self._ticks = Ticks(config.recogniser.rate_hz)
        self._last_header: FrameHeader | None = None
        self._received_ns: int | None = None
        self._grabber_restarts = 0
        self._supervised_ns = 0
        self._health_ns = 0
        self._health: dict[str, str] = {}
        if self._journal is not None and self._journal.restored:
            clips = len(self._journal.restored)
            self._tell(f"case {config.memory.case_id}: {clips} closed clips restored from {config.memory.journal}")

    # ------------------------------------------------------------------------------------------------ the loop

    def run(self) -> None:
        """Until the source ends or `stopped` is set.

        Raises:
            StreamAgentError: The grabber failed for good: the source cannot be opened, say.
        """
        for child in self._children:
            child.start()
        if self._recording is not None:
            self._recording.wait_until_ready(self._stopped.is_set)
        self._give_credit(self._config.transport.slots - 2)
        ended = False
        while not (self._stopped.is_set() or ended):
            frame = self._receiver.following(_WAIT_S) if self._lockstep else self._receiver.newest(_WAIT_S)
            if frame is not None:
                self._on_frame(frame)
                self._give_credit(1)
            self._take_answers(self._clock.now_ns())
            self._expire(self._clock.now_ns())
            if self._recording is not None:
                self._recording.hand_on()
            self._supervise()
            ended = frame is None and (self._receiver.ended is not None or self._source_is_gone())
        self._finish(ended)

    def _on_frame(self, frame: Frame) -> None:
        header = frame.header
        if self._lockstep:
            self._take_answers(header.captured_ns)
            self._advance_to(header.captured_ns)
        self._last_header, self._received_ns = header, frame.received_ns
        if not self._ticks.admit(header.pts_s):
            self._drop(header, "not_sampled")
            return

        spans = _Spans()
        reduced, lost = _reduced(frame)
        if lost:
            self._drop(header, lost)
            return
        self.telemetry.count("frames_received")
        spans.end("reduce")
        events = self._case.see(header, reduced, ended=spans.end)
        if self._case.gate:
            self.telemetry.count("frames_gated", reason=self._case.gate)
        if self._recording is not None and self._case.evidence is not None:
            self._recording.frame(frame, self._case.evidence, self._clock.now_ns())
            spans.end("record")
        self._tell_clips(events)
        self.telemetry.count("plans_due")
        self._show_choice({} if self._lockstep else spans.ms)
        spans.end("publish")
        if not self._lockstep:
            self.telemetry.span("transport", frame.received_ns - header.captured_ns)
        for stage, span_ms in spans.ms.items():
            self.telemetry.span(stage, round(span_ms * 1e6))
        if self._desk is not None and self._case.snapshot is not None and not (self._case.gate or self._case.paused):
            self._desk.offer(
                self._case.snapshot,
                self._case.statistical,
                captured_ns=header.captured_ns,
                now_ns=self._clock.now_ns(),
                picture=lambda: self._near_picture(frame),
            )
            if self._dashboard is not None:
                self._dashboard.tell_request(self._desk.asked)

    def _near_picture(self, frame: Frame) -> NearPicture | None:
        """The frame for a model's eyes; None for a source without pixels, or when the ring has come round."""
        try:
            planes = frame.planes()
        except WireError:
            return None
        if planes is None or self._case.snapshot is None:
            return None
        planner = self._config.planner
        begun_ns = time.monotonic_ns()
        picture = near_picture(
            planes,
            frame.header,
            action=self._case.snapshot.current,
            max_pixels=planner.max_pixels,
            side_multiple=planner.side_multiple,
        )
        self.telemetry.span("near_picture", time.monotonic_ns() - begun_ns)
        return picture if frame.intact() else None

    def _drop(self, header: FrameHeader, reason: str) -> None:
        """Book a frame that is not perceived."""
        self.telemetry.count("frames_dropped", reason=reason)
        if self._recording is not None:
            self._recording.pass_over(header, reason)

    def _take_answers(self, until_ns: int) -> None:
        """Show the worker's answers up to `until_ns`; in lockstep each at the time it is charged to."""
        if self._desk is None:
            return
        for arrived_ns, answer in self._desk.answers(until_ns):
            self._advance_to(arrived_ns)
            if isinstance(answer, Plan):
                self._show_choice({})
            else:
                self._publisher.send(answer, now_ns=self._clock.now_ns())

    def _advance_to(self, now_ns: int) -> None:
        """Move the virtual clock, stopping at each expiry on the way: a gap in media time outlives a plan, too."""
        if self._lockstep:
            while (shown := self._display.shown) is not None and shown.valid_until_ns < now_ns:
                self._virtual.advance_to(shown.valid_until_ns + 1)
                self._expire(self._virtual.now_ns())
            self._virtual.advance_to(now_ns)

    def _show_choice(self, spans_ms: dict[str, float]) -> None:
        """Show what the ladder chooses."""
        now_ns = self._clock.now_ns()
        worker_plan = self._desk.plan if self._desk is not None else None
        worker_state = self._desk.state if self._desk is not None else "no worker is configured"
        if self._recording is not None:
            self._recording.choice(now_ns, worker_plan, worker_state)
        plan = self._case.choose(now_ns=now_ns, worker_plan=worker_plan, worker_state=worker_state)
        self._display.show(plan, spans_ms, now_ns=now_ns)

    def _tell_clips(self, events: tuple[ClipEvent, ...]) -> None:
        """Journal closed clips, then publish."""
        for event in events:
            if event.kind == "closed":
                self.telemetry.count("clips")
                if self._journal is not None:
                    self._journal.append(event.clip)
            self._publisher.send(event, now_ns=self._clock.now_ns())

    # ------------------------------------------------------------------------------------------------ supervision

    def _supervise(self) -> None:
        """Poll the children, tell their notices, publish health; cheap enough to call between any two frames."""
        now_ns = time.monotonic_ns()
        if now_ns - self._supervised_ns < _SUPERVISE_NS:
            return
        self._supervised_ns = now_ns
        if self._desk is not None:
            self._desk.supervise()
            self._tell_notices(self._desk.worker)
        if self._grabber is not None:
            self._watch_grabber(self._grabber)
        self._console.poll()
        if self._recording is not None:
            self._recording.worker.poll()
            self._tell_notices(self._recording.worker)
        if self._dashboard is not None:
            self._dashboard.worker.poll()
            self._tell_notices(self._dashboard.worker)
            self._obey(self._dashboard.commands())
        for bridge in self._bridges:
            bridge.poll()
            self._tell_notices(bridge)
        if not self._lockstep:
            self._display.sample_age(self._clock.now_ns())
        parts = self._parts()
        if parts != self._health or now_ns - self._health_ns >= _HEALTH_NS:
            self._health, self._health_ns = parts, now_ns
            self._publish_health(parts)

    def _watch_grabber(self, grabber: Worker) -> None:
        grabber.poll()
        self._tell_notices(grabber)
        if grabber.restarts != self._grabber_restarts:
            self._grabber_restarts = grabber.restarts
            self._give_credit(self._config.transport.slots - 2)
        if grabber.failure is not None:
            error = StreamAgentError(grabber.failure.message)
            error.exit_code = grabber.failure.exit_code
            raise error

    def _obey(self, commands: Sequence[Command]) -> None:
        """Do what users of the dashboard asked for."""
        for command in commands:
            if self._recording is not None:
                self._recording.command(self._clock.now_ns(), command)
            match command:
                case SetGoal(text):
                    self._case.goal = text
                    if self._desk is not None:
                        self._desk.goal = text
                case NewCase(case_id):
                    self._tell(f"new case {case_id}: everything about {self._case.memory.case_id} is forgotten")
                    self._case.begin(case_id)
                    if self._journal is not None:
                        self._journal.begin(case_id)
                case Pause(paused):
                    self._case.paused = paused
            if self._case.snapshot is not None:
                self._show_choice({})
        if commands:
            self._health_ns = 0  # the page hears of it at once

    def _give_credit(self, frames: int) -> None:
        """Let the grabber send so many more frames; only lockstep asks for leave."""
        if self._lockstep and self._grabber is not None:
            self._grabber.give_credit(frames)

    def _tell_notices(self, child: Worker) -> None:
        while child.notices:
            self._tell(child.notices.popleft())

    def _tell(self, text: str) -> None:
        """One line for the user: to whoever subscribes, and on stderr when no live view owns the terminal."""
        self._publisher.send(Notice(text), now_ns=self._clock.now_ns())
        self._console.tell(text)

    def _parts(self) -> dict[str, str]:
        """Every part that can fail, and `ok` or what is wrong with it."""
        parts = {"console": self._console.problem or "ok"}
        parts["source"] = self._source_health()
        if self._desk is not None:
            parts["planner worker"] = self._desk.worker.health()
        if self._journal is not None:
            parts["journal"] = self._journal.problem or "ok"
        if self._jsonl is not None:
            parts["jsonl"] = self._jsonl.problem or "ok"
        if self._recording is not None:
            parts["recording"] = self._recording.health()
        if self._dashboard is not None:
            parts["dashboard"] = self._dashboard.worker.health()
        parts |= {bridge.name: bridge.health() for bridge in self._bridges}
        return parts

    def _publish_health(self, parts: dict[str, str]) -> None:
        now_ns = self._clock.now_ns()
        stream_id = self._config.source.stream_id
        health = Health(
            stream_id=stream_id,
            sent_ns=now_ns,
            state="ok" if all(part == "ok" for part in parts.values()) else "degraded",
            parts=parts,
            restarts={child.name: child.restarts for child in self._children if child.restarts},
        )
        self._publisher.send(health, now_ns=now_ns)
        self._book_frames()
        self._publisher.send(self.telemetry.counters(stream_id), now_ns=now_ns)
        if self._case.snapshot is not None:  # who subscribes late gets the case's history within half a second
            self._publisher.send(self._case.snapshot, now_ns=now_ns)
        if self._dashboard is not None:
            case = self._case
            self._dashboard.tell(Session(case_id=case.memory.case_id, goal=case.goal, paused=case.paused))

    def _book_frames(self) -> None:
        """Bring the receiver's side of the frame balance into the telemetry."""
        self.telemetry.set_total("frames_published", self._receiver.published)
        for reason, frames in self._receiver.drops.items():
            if frames:
                self.telemetry.set_total("frames_dropped", frames, reason=reason)

    def _source_health(self) -> str:
        if self._grabber is not None:
            return self._grabber.health()
        if self._received_ns is None:
            return f"nothing yet from {self._config.watched}"
        silent_s = (time.monotonic_ns() - self._received_ns) / NS_PER_S
        return "ok" if silent_s <= self._config.transport.stall_s else f"no frame for {silent_s:.1f} s"

    def _expire(self, now_ns: int) -> None:
        """Take down what is shown if its time is over."""
        self._display.expire(partial(self._why_no_frame, now_ns), now_ns=now_ns)

    def _why_no_frame(self, now_ns: int) -> str:
        # How children fare is no matter of the virtual clock.
        health = "ok" if self._lockstep else self._source_health()
        reason = "no new frame" if health == "ok" else f"source: {health}"
        if self._recording is not None:
            self._recording.expiry(now_ns, reason)
        return reason

    def _source_is_gone(self) -> bool:
        """Whether the grabber has ended without its last message reaching us."""
        return self._grabber is not None and self._grabber.finished

    # ------------------------------------------------------------------------------------------------ going on, and the end

    def _resume_pts_s(self) -> float | None:
        """Where a grabber that is started again goes on: the last frame's media time and what has passed since."""
        if self._last_header is None:
            return None
        elapsed_s = (self._clock.now_ns() - self._last_header.captured_ns) / NS_PER_S
        return self._last_header.pts_s + max(elapsed_s, _TICK_SLACK)

    def _finish(self, ended: bool) -> None:
        """Stop the children from the source down, and book what is left."""
        if self._grabber is not None:
            self._grabber.stop()
            self._tell_notices(self._grabber)
        while self._receiver.newest(0.0) is not None:
            self.telemetry.count("frames_dropped", reason="stopping")
        self._receiver.close_session()
        if self._desk is not None:
            self._desk.worker.stop()
            self._tell_notices(self._desk.worker)
        if ended:  # a case that was interrupted goes on with its open clip
            if self._recording is not None:
                self._recording.ended(self._clock.now_ns())
            self._tell_clips(self._case.memory.finish())
        self._book_frames()
        if self._recording is not None:
            self._publish_health(self._parts())
            self._recording.finish()
            self._tell_notices(self._recording.worker)


class _Spans:
    """Milliseconds of consecutive stages."""

    def __init__(self) -> None:
        self.ms: dict[str, float] = {}
        self._since_ns = time.monotonic_ns()

    def end(self, stage: str) -> None:
        """The stage that began at the end of the last one is over."""
        now_ns = time.monotonic_ns()
        self.ms[stage] = (now_ns - self._since_ns) / 1e6
        self._since_ns = now_ns


def _reduced(frame: Frame) -> tuple[Thumbnail | None, str]:
    """The reduced picture (None for a source without pixels), or why the frame is lost."""
    try:
        planes = frame.planes()
        picture = None if planes is None else thumbnail(planes, frame.header)
    except WireError:
        return None, "undecodable"
    return picture, "" if frame.intact() else "overwritten"


def run(config: AgentConfig, summary: Path | None = None) -> int:
    """Run one agent to the end of its source or to Ctrl-C; print the summary and, if asked, write it as JSON.

    Raises:
        StreamAgentError: What the user can mend; nothing is left behind.
    """
    begun_s = time.monotonic()
    with ExitStack() as resources:
        stopped = StopFlag()
        for number in (signal.SIGINT, signal.SIGTERM):
            resources.callback(signal.signal, number, signal.signal(number, lambda *_: stopped.set()))
        agent = Agent(config, resources, stopped)
        cv2.setNumThreads(1)  # a picture split over cores that decode the next one waits for the slower half
        gc.collect()
        gc.freeze()  # what start-up made lives as long as we do; a full collection of it would hold up a frame by 20 ms
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
