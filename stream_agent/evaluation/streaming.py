"""The streaming protocol: whole procedures through the agent's own code, scored by the plan on display as things happen.

Each second of a procedure (instruments at 1 Hz) goes through the same `Case` and `Display` that the agent runs, on a clock of
media time, as in lockstep. Clips come from our own segmenter, nothing sees the future, and every model (planner,
recogniser, segmenter) is fitted without the video. At every true clip start the plan then on display is scored: published
before that second, and not expired. No plan, or an abstention, is a wrong answer.

    lead       the plan as it stood 0, 2, 5, 10, 30 s before the change: a prediction is worth its head start
    lateness   every second from the first clip's start to the last one's, scored against the clip that comes next then, by
               the plan that was on display 0, 1, 2, 5, 10 s earlier: how long an answer is right, not only whether
               (after "Towards Streaming Perception", Li et al., ECCV 2020, arXiv:2005.10420)
    declared   where our segmenter already held the true action to be going on, no plan could name it: kept beside each answer,
               so that the report can tell those starts from others that were not foreseen; scored as wrong all the same
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, Protocol

from stream_agent.case import Case
from stream_agent.clock import NS_PER_S
from stream_agent.config import AgentConfig, SegmenterConfig
from stream_agent.evaluation.baselines import PlanPredictor, forecast_of
from stream_agent.evaluation.dataset import SapClip
from stream_agent.evaluation.protocols import Answer, Forecast, Predictor, Training
from stream_agent.evaluation.samples import LONGEST_CHAIN, Presence, Question, Sample, Videos
from stream_agent.messages import ClipEvent, FrameHeader, Memory, Plan
from stream_agent.perception.gate import Gate
from stream_agent.perception.perceive import Perception
from stream_agent.perception.protocol import Recogniser
from stream_agent.perception.segmenter import Segmenter
from stream_agent.planner.protocol import Planner
from stream_agent.procedure import ProcedurePack
from stream_agent.sinks.display import Display
from stream_agent.telemetry import Telemetry

PLANNER: Final = "statistical"
"""Whose plans are on display; every other planner is asked with the memory that the agent held."""

LEADS_S: Final = (0, 2, 5, 10, 30)
LATENESS_S: Final = (0, 1, 2, 5, 10)


class SignalsModel(Protocol):
    """What turns 1 Hz instruments into clips, fitted on some videos."""

    @property
    def recogniser(self) -> Recogniser:
        """Signals to evidence."""
        ...

    def segmenter(self, config: SegmenterConfig) -> Segmenter:
        """A new segmenter."""
        ...


@dataclass(frozen=True, slots=True)
class Declared:
    """A true clip's action was the current one already, the second before the clip began.

    Attributes:
        early_s: Seconds from its declaration to the true start.
        in_clip_before: Whether it was declared within the true clip before; if not, it was held on to across that whole clip.
    """

    early_s: float
    in_clip_before: bool


@dataclass(frozen=True, slots=True, eq=False)
class Watched:
    """What an agent did with one video.

    Attributes:
        video: `VIDnn`.
        plans: Every plan published, abstentions for expired ones included, by time.
        memories: The memory after each second, from second 0.
        events: Clips that its segmenter opened and closed.
        plan_ms: Real time of each plan, in milliseconds.
    """

    video: str
    plans: tuple[Plan, ...]
    memories: tuple[Memory, ...]
    events: tuple[ClipEvent, ...]
    plan_ms: tuple[float, ...]

    def on_display(self, at_s: float) -> Plan | None:
        """The plan published before media time `at_s` and not expired then; None if there is none."""
        at_ns = round(at_s * NS_PER_S)
        place = bisect.bisect_left(self.plans, at_ns, key=lambda plan: plan.published_ns)
        if place == 0 or self.plans[place - 1].valid_until_ns < at_ns:
            return None
        return self.plans[place - 1]

    def declared(self, action: str, at_s: int, *, before_s: int) -> Declared | None:
        """How `action` was the current one before second `at_s`; None if it was not. The true clip before began at `before_s`."""
        if at_s <= 0 or self.memories[at_s - 1].current != action:
            return None
        decided_s = [
            event.decided_pts_s for event in self.events if event.kind == "opened" and event.decided_pts_s < at_s
        ]
        if not decided_s:
            return None
        return Declared(at_s - decided_s[-1], decided_s[-1] >= before_s)

    def question(self, at_s: int) -> Question:
        """What any other planner can be asked in the place of ours before second `at_s`: the same memory."""
        memory = self.memories[at_s - 1] if at_s > 0 else None
        past = () if memory is None else memory.clips
        labels = tuple(clip.action for clip in past)
        starts = tuple(round(clip.start_pts_s) for clip in past)
        if memory is not None and memory.current is not None:
            labels, starts = (*labels, memory.current), (*starts, round(memory.current_start_pts_s))
        return Question(video=self.video, labels=labels, starts_s=starts, now_s=at_s - 1)


class _Recorder:
    """An outlet that keeps what it is given."""

    def __init__(self) -> None:
        self.plans: list[Plan] = []

    def send(self, message: Plan, *, now_ns: int) -> bool:  # noqa: ARG002 - an outlet's
        """Keep it."""
        self.plans.append(message)
        return True


def watch(
    video: str,
    presence: Presence,
    *,
    until_s: int,
    pack: ProcedurePack,
    planner: Planner,
    model: SignalsModel,
    config: AgentConfig,
) -> Watched:
    """Run the agent's code over the seconds 0 … `until_s` - 1 of one video, on a clock of media time."""
    perception = Perception(Gate(config.gate), model.recogniser)
    case = Case(
        pack,
        perception,
        model.segmenter(config.segmenter),
        planner,
        memory=config.memory,
        planning=config.planner,
    )
    outlet = _Recorder()
    display = Display(
        outlet,
        None,
        Telemetry(),
        valid_ns=round(config.planner.valid_s * NS_PER_S),
        deadline_ns=round(config.planner.deadline_ms * 1e6),
        config_digest="",
    )
    memories: list[Memory] = []
    events: list[ClipEvent] = []
    plan_ms: list[float] = []
    began = [0.0]

    def ended(stage: str) -> None:
        if stage == "plan_statistical":
            plan_ms.append(1000 * (time.perf_counter() - began[0]))
        began[0] = time.perf_counter()

    for second in range(min(until_s, len(presence))):
        now_ns = second * NS_PER_S
        while (shown := display.shown) is not None and shown.valid_until_ns < now_ns:
            display.expire(lambda: "no new frame", now_ns=shown.valid_until_ns + 1)
        header = FrameHeader(
            stream_id="evaluation",
            session_id=video,
            seq=second,
            pts_s=float(second),
            captured_ns=now_ns,
            signals=tuple(presence[second].astype(float).tolist()),
        )
        events += case.see(header, None, ended=ended)
        assert case.snapshot is not None
        memories.append(case.snapshot)
        display.show(
            case.choose(now_ns=now_ns, worker_plan=None, worker_state="no worker is configured"), {}, now_ns=now_ns
        )
    return Watched(video, tuple(outlet.plans), tuple(memories), tuple(events), tuple(plan_ms))


@dataclass(slots=True, eq=False)
class Streamed:
    """One planner's answers in the streaming protocol.

    Attributes:
        leads: Seconds before the change → answers, one per true clip start.
        seconds: Lateness in seconds → how many seconds were asked, and in how many the true next action was first, among the
            first two, among the first three.
        declared: Beside each answer 0 s before the change: whether the action was the current one already.
    """

    leads: dict[int, list[Answer]] = field(default_factory=lambda: {lead: [] for lead in LEADS_S})
    seconds: dict[int, list[int]] = field(default_factory=lambda: {late: [0, 0, 0, 0] for late in LATENESS_S})
    declared: list[Declared | None] = field(default_factory=list)


class Streaming:
    """The protocol over some videos; each fold's models come from its training videos."""

    def __init__(
        self,
        videos: Videos,
        presence: Mapping[str, Presence],
        fit: Callable[[Training], SignalsModel],
        pack: ProcedurePack,
        config: AgentConfig | None = None,
    ) -> None:
        """Keep what every fold shares; `pack` gives names and rules, `fit` what turns instruments into clips."""
        self._videos = videos
        self._presence = presence
        self._fit = fit
        self._pack = pack
        self._config = config or AgentConfig()
        self.answered: dict[str, Streamed] = {}
        self.watched: dict[str, Watched] = {}

    def ask(self, training: Training, names: Sequence[str], predictors: Mapping[str, Predictor]) -> None:
        """Watch the videos `names` with models fitted on `training`, and add every planner's answers to `answered`."""
        own = predictors.get(PLANNER)
        if not isinstance(own, PlanPredictor):
            return
        model = self._fit(training)
        for name in names:
            clips = self._videos[name]
            watched = watch(
                name,
                self._presence[name],
                until_s=clips[-1].start_s + 1,
                pack=self._pack,
                planner=own.planner,
                model=model,
                config=self._config,
            )
            self.watched[name] = watched
            for planner, predictor in predictors.items():
                streamed = self.answered.setdefault(planner, Streamed())
                if planner == PLANNER:
                    _score(streamed, clips, _Displayed(watched))
                else:
                    _score(streamed, clips, _Asked(watched, predictor))
                streamed.declared += [
                    watched.declared(clip.action, clip.start_s, before_s=clips[place - 1].start_s if place else 0)
                    for place, clip in enumerate(clips)
                    if clip.start_s > 0
                ]


class _Displayed:
    """What was on display."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._forecasts: dict[int, Forecast] = {}

    def answer(self, at_s: int) -> tuple[Forecast, float]:
        """Forecast on display at `at_s`, and how long it took to make."""
        plan = self._watched.on_display(at_s)
        if plan is None:
            return Forecast(()), 0.0
        if plan.seq not in self._forecasts:
            self._forecasts[plan.seq] = forecast_of(plan)
        return self._forecasts[plan.seq], self._watched.plan_ms[plan.seq]


class _Asked:
    """What another planner says to the same memory; it looks at labels alone, so equal histories are asked once."""

    def __init__(self, watched: Watched, predictor: Predictor) -> None:
        self._watched = watched
        self._predictor = predictor
        self._known: dict[tuple[str, ...], tuple[Forecast, float]] = {}

    def answer(self, at_s: int) -> tuple[Forecast, float]:
        """The answer, and how long it took."""
        question = self._watched.question(at_s)
        if question.labels not in self._known:
            began = time.perf_counter()
            forecast = self._predictor.predict(question) or Forecast(())
            self._known[question.labels] = forecast, 1000 * (time.perf_counter() - began)
        return self._known[question.labels]


def _score(streamed: Streamed, clips: Sequence[SapClip], planner: _Displayed | _Asked) -> None:
    """Add the answers for one video."""
    for place, clip in enumerate(clips):
        for lead, answers in streamed.leads.items():
            at_s = clip.start_s - lead
            if at_s > 0:  # nothing can be on display before the first second
                forecast, elapsed_ms = planner.answer(at_s)
                answers.append(Answer(_sample(clips, place, at_s), forecast, elapsed_ms))
    for clip, following in pairwise(clips):
        for second in range(max(clip.start_s, max(LATENESS_S) + 1), following.start_s):
            for late, counts in streamed.seconds.items():
                ranked = planner.answer(second - late)[0].ranked
                counts[0] += 1
                for best in (1, 2, 3):
                    counts[best] += following.action in ranked[:best]


def _sample(clips: Sequence[SapClip], place: int, at_s: int) -> Sample:
    target, future = clips[place], clips[place : place + LONGEST_CHAIN]
    return Sample(
        question=Question(video=target.video, labels=(), starts_s=(), now_s=at_s - 1),
        index=target.index,
        target=target.action,
        following=target.next_action or (future[1].action if len(future) > 1 else ""),
        chain=tuple(clip.action for clip in future),
        onset_s=tuple(clip.start_s - at_s + 1 for clip in future),
    )
