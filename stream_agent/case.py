"""One case: what a frame does to it, with no process, socket or file around.

    header + reduced picture ─▶ gate → recogniser ─evidence▶ segmenter → NHFM ─memory▶ statistical planner ─▶ ladder

The agent runs this on a live stream and the streaming evaluation on recorded signals: what is evaluated is what runs.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from stream_agent.config import AgentConfig, MemoryConfig, PlannerConfig
from stream_agent.memory import NearHistoryMemory
from stream_agent.messages import ClipEvent, Evidence, FrameHeader, Memory, Plan, PlanRequest
from stream_agent.perception.perceive import Perception
from stream_agent.perception.protocol import Thumbnail
from stream_agent.perception.segmenter import Segmenter
from stream_agent.planner.ladder import abstention, choose
from stream_agent.planner.protocol import Planner
from stream_agent.planner.statistical import StatisticalPlanner
from stream_agent.procedure import ProcedurePack

PAUSED = "paused by the user"
"""Why there is no plan, as a gate's reason."""


class Case:
    """Perception, memory and the planner that always answers, for one stream; used by one thread.

    Attributes:
        memory: NHFM.
        snapshot: The memory after the newest frame; None before the first.
        evidence: Perception's word on the newest frame; None before the first.
        gate: Why the newest picture is no ground for a plan; empty if it is.
        goal: What the user wants of the case, in words.
        paused: Whether the user wants no plans for now; perception and memory go on.
    """

    def __init__(
        self,
        pack: ProcedurePack,
        perception: Perception,
        segmenter: Segmenter,
        planner: Planner,
        *,
        memory: MemoryConfig,
        planning: PlannerConfig,
        goal: str | None = None,
    ) -> None:
        self.memory = NearHistoryMemory(memory, segmenter, pack.instruments)
        self.snapshot: Memory | None = None
        self.evidence: Evidence | None = None
        self.gate = ""
        self.goal = goal or pack.goal
        self.paused = False
        self._perception = perception
        self._planner = planner
        self._deadline_ns = round(planning.deadline_ms * 1e6)
        self._horizon = planning.horizon
        self._session_id = ""
        self._plan: Plan | None = None
        self._warm_up(pack.action_names[0])

    def see(
        self, header: FrameHeader, picture: Thumbnail | None, *, ended: Callable[[str], None] = lambda _: None
    ) -> tuple[ClipEvent, ...]:
        """Take in the newest frame; the clips that it opened and closed.

        `ended` is told the name of each stage as it is over: `perceive`, `remember`, `plan_statistical`.
        """
        # The session, not `discontinuity`: the one frame that carries the flag may be passed over.
        if self._session_id != header.session_id:
            self._session_id = header.session_id
            self._perception.reset()
        evidence = self._perception.evidence(header, picture)
        ended("perceive")
        self.evidence, self.gate = evidence, evidence.gate
        events = self.memory.observe(header, evidence)
        self.snapshot = self.memory.snapshot()
        ended("remember")
        self._plan = self._planner.plan(self._request(self.snapshot, header))
        ended("plan_statistical")
        return events

    @property
    def statistical(self) -> Plan:
        """The statistical planner's answer for the newest frame.

        Raises:
            AssertionError: No frame was seen yet.
        """
        assert self._plan is not None
        return self._plan

    def choose(self, *, now_ns: int, worker_plan: Plan | None, worker_state: str) -> Plan:
        """The plan to show at `now_ns`: the ladder's highest rung with a valid answer.

        Raises:
            AssertionError: No frame was seen yet.
        """
        assert self._plan is not None and self.snapshot is not None
        return choose(
            now_ns=now_ns,
            gate=PAUSED if self.paused else self.gate,
            memory=self.snapshot,
            statistical=self._plan,
            worker_plan=worker_plan,
            worker_state=worker_state,
        )

    def begin(self, case_id: str) -> None:
        """Another case: nothing of the last one is kept."""
        self.memory.new_case(case_id)
        self.snapshot = None if self.snapshot is None else self.memory.snapshot()
        self._plan = None if self._plan is None else abstention(self._plan, "a new case has just begun")
        if self._plan is not None:
            self._plan = msgspec.structs.replace(
                self._plan, case_id=case_id, current_action=None, current_confidence=0.0, progress="", safety=()
            )

    def _request(self, memory: Memory, header: FrameHeader) -> PlanRequest:
        return PlanRequest(
            request_id=0,
            memory=memory,
            deadline_ns=header.captured_ns + self._deadline_ns,
            horizon=self._horizon,
            goal=self.goal,
        )

    def _warm_up(self, action: str) -> None:
        """Plan twice for nobody, so that the first plan of the case is not the slowest."""
        near = FrameHeader(stream_id="", session_id="", seq=0, pts_s=0.0, captured_ns=0)
        for current in (None, action):
            memory = Memory(stream_id="", session_id="", case_id="", now_pts_s=0.0, near=near, current=current)
            self._planner.plan(self._request(memory, near))


def build_case(config: AgentConfig, pack: ProcedurePack, perception: Perception) -> Case:
    """The case that `config` and `pack` describe: what the agent runs, and what a replay runs again."""
    return Case(
        pack,
        perception,
        Segmenter(pack.action_names, config.segmenter, model=pack.segmenter_model),
        StatisticalPlanner(pack, config.planner),
        memory=config.memory,
        planning=config.planner,
        goal=config.procedure.goal,
    )
