"""Every stage of an agent, opened in the order in which each needs the others, and closed in the other order.

    pack → case → journal → recording → sinks → display → planner's desk → receiver and grabber

Child processes are made here and started by the agent's loop: whatever a user can mend has been refused by then.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import zmq

from stream_agent.case import Case, build_case
from stream_agent.clock import NS_PER_S, Clock
from stream_agent.config import AgentConfig, is_lockstep
from stream_agent.errors import ConfigError
from stream_agent.grabber import grab_job, scene_timeline
from stream_agent.journal import Journal
from stream_agent.models.in_use import pack_in_use, planner_in_use
from stream_agent.perception.gate import Gate
from stream_agent.perception.perceive import Perception, build_recogniser
from stream_agent.planner.desk import WorkerDesk
from stream_agent.planner.link import WorkerLink
from stream_agent.procedure import ProcedurePack
from stream_agent.runtime import RuntimeDirectory
from stream_agent.scheduler import Scheduler
from stream_agent.sinks.bridges import open_bridges
from stream_agent.sinks.console_process import ConsoleProcess
from stream_agent.sinks.dashboard.process import Dashboard
from stream_agent.sinks.display import Display
from stream_agent.sinks.jsonl import JsonlSink
from stream_agent.sinks.publisher import Publisher
from stream_agent.source import redacted
from stream_agent.telemetry import Telemetry
from stream_agent.transport.receiver import FrameReceiver
from stream_agent.workers import Worker

if TYPE_CHECKING:
    from stream_agent.recording.sink import RecordingSink

_START_S = 30.0


@dataclass(frozen=True, slots=True)
class Stages:
    """What the loop joins; None where the configuration does not ask for it.

    Attributes:
        desk: Of the planner worker.
        grabber: None when frames come from another host.
        bridges: To other programs, publish-only.
    """

    pack: ProcedurePack
    case: Case
    journal: Journal | None
    recording: RecordingSink | None
    publisher: Publisher
    jsonl: JsonlSink | None
    console: ConsoleProcess
    dashboard: Dashboard | None
    bridges: tuple[Worker, ...]
    display: Display
    desk: WorkerDesk | None
    receiver: FrameReceiver
    grabber: Worker | None

    @property
    def children(self) -> list[Worker]:
        """The supervised processes, in the order in which they are started."""
        desk = self.desk.worker if self.desk is not None else None
        recorder = self.recording.worker if self.recording is not None else None
        page = self.dashboard.worker if self.dashboard is not None else None
        return [child for child in (recorder, desk, self.grabber, page, *self.bridges) if child is not None]


def open_stages(
    config: AgentConfig,
    resources: ExitStack,
    *,
    clock: Clock,
    telemetry: Telemetry,
    stopped: Callable[[], bool],
    resume_pts_s: Callable[[], float | None],
) -> Stages:
    """Build them all; `resources` closes them whatever happens.

    Args:
        config: Of the agent.
        resources: Closes every stage, the last opened first.
        clock: The agent's; in lockstep a virtual one.
        telemetry: Where stages count.
        stopped: Whether the loop is to end: nothing waits longer.
        resume_pts_s: Media time from which a grabber goes on that is started again.

    Raises:
        ConfigError: A value, file, pack, model or address is wrong.
    """
    opening = _Opening(config, resources, clock, telemetry)
    if config.telemetry.prometheus is not None:
        from stream_agent.prometheus import PrometheusEndpoint

        resources.callback(PrometheusEndpoint(telemetry, config.telemetry.prometheus).close)
    pack = pack_in_use(config.models, config.procedure)
    perception = Perception(
        Gate(config.gate),
        build_recogniser(config.recogniser, pack, config.watched, scene_timeline(config.source, pack)),
    )
    case = build_case(config, pack, perception)
    journal = opening.journal(pack, case)
    recording = opening.recording(pack, journal)
    publisher, jsonl, console = opening.sinks(pack, recording)
    dashboard = opening.dashboard(pack)
    bridges = opening.bridges(pack)
    display = Display(
        publisher,
        jsonl,
        telemetry,
        valid_ns=round(config.planner.valid_s * NS_PER_S),
        deadline_ns=round(config.planner.deadline_ms * 1e6),
        config_digest=config.digest(),
    )
    desk = opening.desk(pack, case, recording, stopped)
    receiver, grabber = opening.source(pack, resume_pts_s)
    return Stages(
        pack=pack,
        case=case,
        journal=journal,
        recording=recording,
        publisher=publisher,
        jsonl=jsonl,
        console=console,
        dashboard=dashboard,
        bridges=bridges,
        display=display,
        desk=desk,
        receiver=receiver,
        grabber=grabber,
    )


class _Opening:
    """What every stage's opening needs."""

    def __init__(self, config: AgentConfig, resources: ExitStack, clock: Clock, telemetry: Telemetry) -> None:
        self._config = config
        self._resources = resources
        self._clock = clock
        self._telemetry = telemetry
        self._lockstep = is_lockstep(config.source)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        resources.callback(self._context.term)
        self._runtime = resources.enter_context(RuntimeDirectory())

    def journal(self, pack: ProcedurePack, case: Case) -> Journal | None:
        config = self._config.memory
        if config.journal is None:
            return None
        journal = Journal(config.journal, case_id=config.case_id, pack=pack.name)
        self._resources.callback(journal.close)
        foreign = {clip.action for clip in journal.restored} - set(pack.action_names)
        if foreign:
            raise ConfigError(
                f"memory.journal={config.journal} holds {', '.join(sorted(foreign))[:80]}, no action of {pack.name}; name "
                "another file"
            )
        case.memory.restore(journal.restored)
        return journal

    def recording(self, pack: ProcedurePack, journal: Journal | None) -> RecordingSink | None:
        path = self._config.sinks.recording
        if path is None:
            return None
        from stream_agent.recording.sink import RecordingSink

        recording = RecordingSink(
            path,
            self._config,
            pack,
            self._runtime.endpoint,
            lockstep=self._lockstep,
            telemetry=self._telemetry,
            now_ns=self._clock.now_ns(),
        )
        self._resources.callback(recording.finish)
        if journal is not None and journal.restored:
            recording.restored(journal.restored)
        return recording

    def sinks(
        self, pack: ProcedurePack, recording: RecordingSink | None
    ) -> tuple[Publisher, JsonlSink | None, ConsoleProcess]:
        config = self._config.sinks
        jsonl = None
        if config.jsonl is not None:
            jsonl = JsonlSink(config.jsonl, lossless=self._lockstep, telemetry=self._telemetry)
            self._resources.callback(jsonl.close)
        private = self._runtime.endpoint("plans")
        public = [config.publisher.bind] if config.publisher.bind is not None else []
        tap = recording.publish if recording is not None else None
        publisher = Publisher([private, *public], keys=config.publisher.keys, tap=tap)
        self._resources.callback(publisher.close, linger_s=0.2)
        console = ConsoleProcess(
            config.console,
            private,
            title=f"{pack.title} · {redacted(self._config.watched)}",
            lockstep=self._lockstep,
            codes=[(action.name, action.code) for action in pack.actions],
        )
        self._resources.callback(console.stop)
        return publisher, jsonl, console

    def dashboard(self, pack: ProcedurePack) -> Dashboard | None:
        if not self._config.sinks.dashboard.enabled:
            return None
        endpoint = self._runtime.endpoint
        dashboard = Dashboard(self._config, pack, endpoint, plans=endpoint("plans"), lockstep=self._lockstep)
        self._resources.callback(dashboard.close)
        return dashboard

    def bridges(self, pack: ProcedurePack) -> tuple[Worker, ...]:
        bridges = tuple(open_bridges(self._config, pack, self._runtime.endpoint, lockstep=self._lockstep))
        for bridge in bridges:
            self._resources.callback(bridge.stop)
        return bridges

    def desk(
        self, pack: ProcedurePack, case: Case, recording: RecordingSink | None, stopped: Callable[[], bool]
    ) -> WorkerDesk | None:
        config = planner_in_use(self._config.models, self._config.planner, pack.name)
        if config.kind == "none":
            return None
        link, scheduler = self._link_and_scheduler(recording)
        self._resources.callback(link.close)
        worker = Worker(
            "planner worker",
            "stream_agent.planner.worker",
            lambda: link.job(config.model_dump_json(), pack.action_names, str(pack.folder.resolve())),
            restarts_per_minute=config.restarts_per_minute,
            ready_timeout_s=config.ready_timeout_s,
        )
        self._resources.callback(worker.stop)
        return WorkerDesk(
            worker,
            link,
            scheduler,
            config=config,
            pack=pack,
            goal=case.goal,
            telemetry=self._telemetry,
            lockstep=self._lockstep,
            stopped=stopped,
        )

    def _link_and_scheduler(self, recording: RecordingSink | None) -> tuple[WorkerLink, Scheduler]:
        config, deadline_ms = self._config.scheduler, self._config.planner.deadline_ms
        if recording is None:
            return WorkerLink(self._context, self._runtime.endpoint), Scheduler(config, deadline_ms=deadline_ms)
        from stream_agent.recording.sink import RecordedLink, RecordedScheduler

        link = RecordedLink(self._context, self._runtime.endpoint, recording, self._clock.now_ns)
        return link, RecordedScheduler(config, deadline_ms=deadline_ms, sink=recording)

    def source(
        self, pack: ProcedurePack, resume_pts_s: Callable[[], float | None]
    ) -> tuple[FrameReceiver, Worker | None]:
        config, transport, source = self._config, self._config.transport, self._config.source
        if transport.connect is not None:
            receiver = FrameReceiver(self._context, transport.connect, keys=transport.keys)
            self._resources.callback(receiver.close)
            return receiver, None
        endpoint = self._runtime.endpoint("frames")
        receiver = FrameReceiver(self._context, endpoint)
        self._resources.callback(receiver.close)
        grabber = Worker(
            "grabber",
            "stream_agent.grabber",
            lambda: msgspec.json.encode(grab_job(config, pack, endpoint=endpoint, resume_pts_s=resume_pts_s())),
            restarts_per_minute=source.restarts_per_minute,
            ready_timeout_s=source.open_timeout_s + _START_S,
            stall_s=transport.stall_s,
        )
        self._resources.callback(grabber.stop)
        return receiver, grabber
