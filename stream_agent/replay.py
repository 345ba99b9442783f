"""A recorded session once more: the same case fed with what was recorded, every decision compared with what it was then.

    recorded evidence ─▶ memory → segmenter → planners → ladder → display ─▶ clips, plans ─compared with─▶ the recorded ones

What perception saw is taken from the recording, since no video codec gives it back to the bit; so are a worker's answers, at
the time they arrived, for no model promises to answer twice alike. All that follows from those is done again: which frames are
looked at, what is asked of the worker and when, every clip, every plan, which rung it came from and when it was taken down.
Time is the recorded time. Spans are measurements, not decisions: they are not compared.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import msgspec

from stream_agent.case import build_case
from stream_agent.clock import NS_PER_S
from stream_agent.config import AgentConfig
from stream_agent.messages import ClipEvent, Evidence, FrameHeader, Memory, PastPlan, Plan, PlanRequest
from stream_agent.perception.gate import Gate
from stream_agent.perception.perceive import Perception
from stream_agent.perception.protocol import Thumbnail
from stream_agent.perception.ticks import Ticks
from stream_agent.perception.timeline import TimelineRecogniser
from stream_agent.planner.fusion import distribution_of
from stream_agent.planner.past_plans import PastPlans
from stream_agent.procedure import ProcedurePack
from stream_agent.prompts import PromptFactory
from stream_agent.recording.mcap_file import Entry
from stream_agent.recording.reader import RecordingFile
from stream_agent.recording.records import (
    INPUTS,
    VIDEO_TOPIC,
    Admission,
    Choice,
    Commanded,
    Expiry,
    Finish,
    FrameRecord,
    PassedOver,
    Restored,
    Verdict,
)
from stream_agent.scheduler import Decision, Hold, Scheduler, Start
from stream_agent.sinks.dashboard.control import Command, NewCase, Pause, SetGoal
from stream_agent.sinks.display import Display
from stream_agent.telemetry import Telemetry

_NEARLY = 1e-9
"""Numbers that differ by less, relative to their size, are the same decision on another processor."""

_NO_WORKER = "no worker is configured"


class Difference(msgspec.Struct, frozen=True):
    """Where a replay first parts from its session.

    Attributes:
        what: The kind of decision: `clip`, `plan`, `admission`, `request`, `prompt`, or `recording` if something is missing in it.
        pts_s: Media time of the newest frame then.
        where: The field.
        session: What it was.
        replay: What it is now.
    """

    what: str
    pts_s: float
    where: str
    session: str
    replay: str

    def __str__(self) -> str:
        return f"{self.what} at {self.pts_s:.3f} s, {self.where}: {self.session} in the session, {self.replay} in the replay"


@dataclass(slots=True)
class Tally:
    """What was replayed.

    Attributes:
        differences: The first of them; `differing` counts all.
        nearly: Decisions that are the same only within the tolerance of numbers.
    """

    frames: int = 0
    passed_over: int = 0
    clips: int = 0
    plans: int = 0
    admissions: int = 0
    requests: int = 0
    nearly: int = 0
    differing: int = 0
    differences: list[Difference] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.frames} frames perceived and {self.passed_over} passed over, {self.clips} clip events, {self.plans} plans, "
            f"{self.admissions} admissions to the worker, {self.requests} requests"
        )


class AsRecorded(Perception):
    """Perception that says what it said then.

    Attributes:
        next: The evidence of the next frame.
    """

    def __init__(self, config: AgentConfig) -> None:
        super().__init__(Gate(config.gate), TimelineRecogniser([], ()))
        self.next: Evidence | None = None

    def reset(self) -> None:
        """Nothing to forget."""

    def evidence(self, header: FrameHeader, thumbnail: Thumbnail | None) -> Evidence:  # noqa: ARG002 - as its base
        """The recorded evidence."""
        assert self.next is not None
        return self.next


class _Offered(NamedTuple):
    memory: Memory
    statistical: tuple[float, ...]
    previous: tuple[PastPlan, ...]


class Replay:
    """One pass through a recording; `step` with every entry in order.

    Attributes:
        tally: What was replayed, and how it differs.
        made: Clips and plans of the newest step, to be shown.
        pts_s: Media time of the newest frame.
    """

    def __init__(self, recording: RecordingFile, pack: ProcedurePack, config: AgentConfig | None = None) -> None:
        """Prepare; another `config` than the session's asks what would have been, and nothing is compared."""
        session = recording.config
        self._recording = recording
        self._what_if = config is not None
        self._config = config = config or session
        self._perception = AsRecorded(config)
        self._case = build_case(config, pack, self._perception)
        self._ticks = Ticks(session.recogniser.rate_hz)
        self._scheduler = Scheduler(session.scheduler, deadline_ms=session.planner.deadline_ms)
        self._valid_ns = round(config.planner.valid_s * NS_PER_S)
        self._display = Display(
            self,
            None,
            Telemetry(),
            valid_ns=self._valid_ns,
            deadline_ns=round(config.planner.deadline_ms * 1e6),
            config_digest=config.digest() if self._what_if else recording.described.config_digest,
        )
        self._worker_plan: Plan | None = None
        self._actions = pack.action_names
        self._past = PastPlans(session.planner.remember_plans)
        self._pack = pack
        self._offered: _Offered | None = None
        self._deadline_ns = 0
        self._outputs: deque[ClipEvent | Plan] = deque()
        self._last_sequence: int | None = None
        self.tally = Tally()
        self.made: list[ClipEvent | Plan] = []
        self.pts_s = 0.0

    @property
    def shown(self) -> Plan | None:
        """The plan on display."""
        return self._display.shown

    def run(self) -> Iterator[Entry]:
        """Replay everything, yielding each entry after its step."""
        for entry in self._recording.entries():
            self.step(entry)
            yield entry
        self.finish()

    def step(self, entry: Entry) -> None:
        """Do what the session did at `entry`, or compare what came of it."""
        self.made = []
        if entry.topic == VIDEO_TOPIC:
            return
        self._look_for_a_gap(entry)
        is_input = entry.topic in _INPUT_TOPICS
        if is_input:
            self._expect_nothing()
        elif self._what_if or entry.topic not in ("/clip", "/plan"):
            return
        message = self._recording.decode(entry)
        match message:
            case FrameRecord():
                self._see(message)
            case Choice():
                self._choose(message)
            case Expiry(now_ns, reason):
                if not self._what_if:
                    self._display.expire(lambda: reason, now_ns=now_ns)
            case Finish():
                self._pass_over(message.passed_over)
                self._emit(self._case.memory.finish())
            case Restored(clips):
                self._case.memory.restore(clips)
            case Commanded(_, command):
                self._obey(command)
            case Admission():
                self._admit(message)
            case PlanRequest():
                self._ask(message)
            case ClipEvent() | Plan():
                self._compare(message)

    def finish(self) -> None:
        """Look for decisions that only the replay has."""
        self.made = []
        self._expect_nothing()

    def send(self, message: Plan, *, now_ns: int) -> bool:  # noqa: ARG002 - what a display publishes to
        """Take a plan from the display."""
        self._emit((message,))
        return True

    # -------------------------------------------------------------------------------------------- inputs

    def _see(self, record: FrameRecord) -> None:
        self._pass_over(record.passed_over)
        self._check_tick(record.pts_s, True)
        self.pts_s = record.pts_s
        self.tally.frames += 1
        self._perception.next = record.evidence()
        if self._what_if:
            self._expire_by_itself(record.captured_ns)
        self._emit(self._case.see(record.header(), None))

    def _pass_over(self, frames: tuple[PassedOver, ...]) -> None:
        for frame in frames:
            self.tally.passed_over += 1
            self._check_tick(frame.pts_s, frame.reason != "not_sampled")

    def _obey(self, command: Command) -> None:
        match command:
            case SetGoal(text):
                self._case.goal = text
            case NewCase(case_id):
                self._case.begin(case_id)
            case Pause(paused):
                self._case.paused = paused

    def _choose(self, choice: Choice) -> None:
        if choice.answer is not msgspec.UNSET:
            self._worker_plan = choice.answer
            if choice.answer is not None:
                self._check_prompt(choice.answer)
                if choice.answer.revision == 0:
                    self._past.expect(choice.answer)
        worker_plan, worker_state = self._worker_plan, choice.worker_state
        if self._what_if:
            self._expire_by_itself(choice.now_ns)
            if self._config.planner.kind == "none":
                worker_plan, worker_state = None, _NO_WORKER
            elif worker_plan is not None:
                worker_plan = msgspec.structs.replace(
                    worker_plan, valid_until_ns=worker_plan.captured_ns + self._valid_ns
                )
        plan = self._case.choose(now_ns=choice.now_ns, worker_plan=worker_plan, worker_state=worker_state)
        self._display.show(plan, {}, now_ns=choice.now_ns)

    def _admit(self, admission: Admission) -> None:
        if self._what_if:
            return
        self.tally.admissions += 1
        match admission.call:
            case "offer":
                decisions = self._scheduler.offer(
                    captured_ns=admission.captured_ns, now_ns=admission.now_ns, ready=admission.ready
                )
                self._offer(decisions)
            case "poll":
                decisions = self._scheduler.poll(now_ns=admission.now_ns, ready=admission.ready)
            case "finished":
                self._scheduler.finished()
                decisions = ()
        verdicts = tuple(Verdict.of(decision) for decision in decisions)
        for verdict in verdicts:
            if verdict.kind == "start":
                self._deadline_ns = verdict.deadline_ns
        if verdicts != admission.verdicts:
            self._differ("admission", "verdicts", admission.verdicts, verdicts)

    def _offer(self, decisions: tuple[Decision, ...]) -> None:
        """Keep what a request would be made of, as the desk does."""
        memory = self._case.snapshot
        assert memory is not None
        previous = self._past.see(memory)
        if isinstance(decisions[-1], Start | Hold):
            self._offered = _Offered(memory, distribution_of(self._case.statistical, self._actions), previous)

    def _ask(self, request: PlanRequest) -> None:
        """Make the request again; the prompt is a pure function of it, of the pack and of the configuration."""
        if self._what_if or self._offered is None:
            return
        self.tally.requests += 1
        made = msgspec.structs.replace(
            request,
            memory=_without_place(self._offered.memory),
            statistical=self._offered.statistical,
            previous=self._offered.previous,
            deadline_ns=self._deadline_ns,
            horizon=self._config.planner.horizon,
            goal=self._case.goal,
        )
        self._same("request", msgspec.structs.replace(request, memory=_without_place(request.memory)), made)

    def _check_prompt(self, answer: Plan) -> None:
        """The same request gives the same prompt as long as wording, pack and configuration are the same."""
        told = answer.hashes.prompt
        if told and not self._what_if and told != self._prompt_digest:
            self._differ("prompt", "hashes.prompt", told, self._prompt_digest)

    @cached_property
    def _prompt_digest(self) -> str:
        return PromptFactory(self._pack, self._config.planner).digest

    def _expire_by_itself(self, now_ns: int) -> None:
        """Take down what would have been shown too long, as the loop does between frames."""
        while (shown := self._display.shown) is not None and shown.valid_until_ns < now_ns:
            self._display.expire(lambda: "no new frame", now_ns=shown.valid_until_ns + 1)

    # -------------------------------------------------------------------------------------------- comparison

    def _emit(self, made: tuple[ClipEvent | Plan, ...]) -> None:
        self.made.extend(made)
        for message in made:
            if isinstance(message, Plan):
                self.tally.plans += 1
            else:
                self.tally.clips += 1
        if not self._what_if:
            self._outputs.extend(made)

    def _compare(self, recorded: ClipEvent | Plan) -> None:
        made = self._outputs.popleft() if self._outputs else None
        if made is None or type(made) is not type(recorded):
            if made is not None:
                self._outputs.appendleft(made)
            self._differ(_kind(recorded), "whole", _brief(recorded), "none")
            return
        self._same(_kind(recorded), recorded, made)

    def _expect_nothing(self) -> None:
        """Before the next input, every decision of the last one has been compared."""
        while self._outputs:
            made = self._outputs.popleft()
            self._differ(_kind(made), "whole", "none", _brief(made))

    def _same(self, what: str, recorded: Any, made: Any) -> None:  # noqa: ANN401 - two structs of one type
        if isinstance(recorded, Plan):
            recorded = msgspec.structs.replace(recorded, spans_ms={})
            made = msgspec.structs.replace(made, spans_ms={})
        if recorded == made:
            return
        found = next(differing(msgspec.to_builtins(recorded), msgspec.to_builtins(made)), None)
        if found is None:
            self.tally.nearly += 1
        else:
            self._differ(what, *found)

    def _check_tick(self, pts_s: float, admitted: bool) -> None:
        made = self._ticks.admit(pts_s)
        if made != admitted and not self._what_if:
            names = {True: "looked at", False: "passed over"}
            self._differ("admission", f"frame at {pts_s:.3f} s", names[admitted], names[made])

    def _look_for_a_gap(self, entry: Entry) -> None:
        last, self._last_sequence = self._last_sequence, entry.sequence
        if last is not None and entry.sequence != last + 1 and not self._what_if:
            lost = entry.sequence - last - 1
            self._differ("recording", f"after message {last}", f"{lost} messages that were lost", "nothing to go on")

    def _differ(self, what: str, where: str, session: object, replay: object) -> None:
        self.tally.differing += 1
        if len(self.tally.differences) < _KEPT:
            self.tally.differences.append(Difference(what, self.pts_s, where, _short(session), _short(replay)))


_KEPT = 20
_INPUT_TOPICS = frozenset(INPUTS.values())


def differing(recorded: Any, made: Any, where: str = "") -> Iterator[tuple[str, object, object]]:  # noqa: ANN401
    """Field, recorded and made value of each difference between two trees; numbers may differ in their last digits."""
    if isinstance(recorded, dict) and isinstance(made, dict):
        for key in [*recorded, *(key for key in made if key not in recorded)]:
            yield from differing(recorded.get(key), made.get(key), f"{where}.{key}" if where else str(key))
    elif isinstance(recorded, (list, tuple)) and isinstance(made, (list, tuple)):
        if len(recorded) != len(made):
            yield where, f"{len(recorded)} of them", f"{len(made)} of them"
            return
        for number, (one, other) in enumerate(zip(recorded, made, strict=True)):
            yield from differing(one, other, f"{where}[{number}]")
    elif isinstance(recorded, float) and isinstance(made, float):
        if not math.isclose(recorded, made, rel_tol=_NEARLY, abs_tol=_NEARLY):
            yield where, recorded, made
    elif recorded != made:
        yield where, recorded, made


@dataclass(slots=True)
class WhatIf:
    """What another configuration would have shown, beside what was shown.

    Attributes:
        moments: Times at which both show a plan.
        changes: (media time, what was shown, what would have been), where the first choice or an abstention differs.
        session: Counts of the session: `clips`, `plans`, `abstained`, and of its first choices `judged` and `right`.
        other: The same of the other configuration.
    """

    moments: int = 0
    changed: int = 0
    changes: list[tuple[float, str, str]] = field(default_factory=list)
    session: Counter[str] = field(default_factory=Counter)
    other: Counter[str] = field(default_factory=Counter)


def what_if(recording: RecordingFile, pack: ProcedurePack, config: AgentConfig) -> WhatIf:
    """Replay with `config` and compare what is shown, moment by moment; first choices are judged by the session's clips."""
    found = WhatIf()
    came = _what_came(recording)
    told: dict[int, Plan] = {}
    replay = Replay(recording, pack, config)
    made: dict[int, Plan] = {}
    for entry in replay.run():
        for message in replay.made:
            _count(found.other, message, came)
            if isinstance(message, Plan):
                made[message.published_ns] = message
        if entry.topic in ("/plan", "/clip"):
            message = recording.decode(entry)
            _count(found.session, message, came)
            if isinstance(message, Plan):
                told[message.published_ns] = message
    for now_ns in sorted(told.keys() & made.keys()):
        found.moments += 1
        before, after = _first(told[now_ns]), _first(made[now_ns])
        if before != after:
            found.changed += 1
            found.changes.append((told[now_ns].pts_s, before, after))
    return found


def _what_came(recording: RecordingFile) -> list[tuple[float, str]]:
    """Start and action of every clip of the session, in order."""
    return [
        (event.clip.start_pts_s, event.clip.action)
        for _, event in recording.messages(ClipEvent)
        if event.kind == "opened"
    ]


def _count(counts: Counter[str], message: ClipEvent | Plan, came: list[tuple[float, str]]) -> None:
    if isinstance(message, ClipEvent):
        counts["clips"] += message.kind == "closed"
        return
    counts["plans"] += 1
    if message.abstained:
        counts["abstained"] += 1
        return
    following = next((action for start_s, action in came if start_s > message.pts_s), None)
    if following is not None and following != message.current_action:
        counts["judged"] += 1
        counts["right"] += message.ranked[0].action == following


def _first(plan: Plan) -> str:
    return f"abstained: {plan.abstain_reason}" if plan.abstained else plan.ranked[0].action


def _without_place(memory: Memory) -> Memory:
    """The memory with a near frame as a recording keeps it: without its place in the host's memory."""
    near = memory.near
    if near is None:
        return memory
    place = msgspec.structs.replace(near, place="none", layout="none", ring="", slot=0, ticket=0)
    return msgspec.structs.replace(memory, near=place)


def _kind(message: ClipEvent | Plan) -> str:
    return "plan" if isinstance(message, Plan) else "clip"


def _brief(message: ClipEvent | Plan) -> str:
    if isinstance(message, Plan):
        return f"{message.source} ({_first(message)})"
    return f"{message.kind} {message.clip.action}"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 160 else text[:157] + "..."
