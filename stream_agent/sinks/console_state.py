"""What a viewer knows: the newest plan, the history, the counters; pure, time is an argument.

Two clocks. *Session* time is that of the messages (`CLOCK_MONOTONIC` of this host, or virtual in lockstep); a plan's age
and expiry are told on it. *Arrival* time is always this process's monotonic clock; silence is told on it.
"""

from __future__ import annotations

import statistics
from collections import deque
from typing import NamedTuple

from stream_agent.clock import NS_PER_S
from stream_agent.messages import Clip, ClipEvent, Health, Memory, Notice, Plan, PlanUpdate
from stream_agent.sinks.topics import Message
from stream_agent.telemetry import Counters

SILENCE_S = 1.5
LOCKSTEP_SILENCE_S = 5.0
"""The agent speaks at least every half second; a silence longer than this is told."""

_CLIPS = 256
_NOTICE_S = 30
_RECENT = 60
_LONGEST_RATIONALE = 4000


class ActionStyle(NamedTuple):
    """How an action is shown in little room: a code of up to six characters and a place in the palette."""

    code: str
    colour: int


class ConsoleState:
    """Takes messages in and answers what to show.

    Attributes:
        plan: The newest, or None.
        health: The newest, or None.
        counters: The newest, or None.
        clips: Closed clips, oldest first.
    """

    def __init__(self, *, lockstep: bool = False, codes: dict[str, str] | None = None) -> None:
        """Prepare an empty view; `codes` maps actions to short codes, in pack order."""
        self._lockstep = lockstep
        self._session_ns = 0
        self._heard_ns: int | None = None
        self._styles = {action: ActionStyle(code, i) for i, (action, code) in enumerate((codes or {}).items())}
        self._open: Clip | None = None
        self._since_pts_s: float | None = None
        self._spans: deque[dict[str, float]] = deque(maxlen=_RECENT)
        self._streamed: tuple[str, int] = ("", 0)
        self.plan: Plan | None = None
        self.health: Health | None = None
        self.counters: Counters | None = None
        self.clips: deque[Clip] = deque(maxlen=_CLIPS)
        self._rationale = ""
        self._notice, self._noticed_ns = "", 0

    def take(self, message: Message, *, arrived_ns: int) -> None:
        """Take one message in."""
        self._heard_ns = arrived_ns
        match message:
            case Plan():
                self._take_plan(message)
            case PlanUpdate():
                self._take_update(message)
            case ClipEvent():
                self._take_clip(message)
            case Memory():
                self._take_memory(message)
            case Health():
                self.health = message
                self._session_ns = max(self._session_ns, message.sent_ns)
            case Counters():
                self.counters = message
            case Notice(text):
                self._notice, self._noticed_ns = text, arrived_ns

    def session_ns(self, now_ns: int) -> int:
        """This moment on the session's clock: the newest message's in lockstep, else the host's own."""
        return self._session_ns if self._lockstep else now_ns

    def age_s(self, now_ns: int) -> float:
        """Age of the frame behind the plan."""
        return 0.0 if self.plan is None else max(0, self.session_ns(now_ns) - self.plan.captured_ns) / NS_PER_S

    def valid_for_s(self, now_ns: int) -> float:
        """Seconds until the plan expires; negative once it has."""
        return 0.0 if self.plan is None else (self.plan.valid_until_ns - self.session_ns(now_ns)) / NS_PER_S

    def expired(self, now_ns: int) -> bool:
        """Whether the plan must not be read as current any more."""
        return self.plan is not None and self.valid_for_s(now_ns) < 0

    def silent_s(self, now_ns: int) -> float:
        """Seconds without a word from the agent if that is unusually long, else 0."""
        if self._heard_ns is None:
            return 0.0
        silent_s = (now_ns - self._heard_ns) / NS_PER_S
        return silent_s if silent_s > (LOCKSTEP_SILENCE_S if self._lockstep else SILENCE_S) else 0.0

    def notice(self, now_ns: int) -> str:
        """The newest notice from the agent for half a minute, then empty."""
        return self._notice if now_ns - self._noticed_ns < _NOTICE_S * NS_PER_S else ""

    @property
    def current_s(self) -> float | None:
        """Seconds of media time the current action has been going on; None when its start was not seen."""
        if self.plan is None or self.plan.current_action is None or self._open is None:
            return None
        if self._open.action != self.plan.current_action:
            return None
        return max(0.0, self.plan.pts_s - self._open.start_pts_s)

    @property
    def why(self) -> str:
        """The rationale of the top action: as it streams, else as the plan carries it."""
        if self.plan is None or not self.plan.ranked:
            return ""
        streams = self.plan.request_id and (self.plan.session_id, self.plan.request_id) == self._streamed
        return self._rationale if streams and self._rationale else self.plan.ranked[0].rationale

    @property
    def open_clip(self) -> Clip | None:
        """The clip going on, as long as is known."""
        return self._open

    def latency_ms(self) -> dict[str, float]:
        """Median of the recent plans per stage, `total` last."""
        stages = list(dict.fromkeys(stage for spans in self._spans for stage in spans))
        medians = {stage: statistics.median(s[stage] for s in self._spans if stage in s) for stage in stages}
        return {stage: ms for stage, ms in medians.items() if stage != "total"} | (
            {"total": medians["total"]} if "total" in medians else {}
        )

    def style(self, action: str) -> ActionStyle:
        """The action's code and colour; an unknown action gets its initials and the next colour."""
        style = self._styles.get(action)
        if style is None:
            style = self._styles[action] = ActionStyle(initials(action), len(self._styles))
        return style

    def _take_plan(self, plan: Plan) -> None:
        if self.plan is not None and plan.case_id != self.plan.case_id:
            self.clips.clear()  # another patient: nothing of the last one stays on the screen
            self._spans.clear()
            self._open = None
            self._rationale = ""
        self.plan = plan
        self._session_ns = max(self._session_ns, plan.captured_ns, plan.published_ns)
        if plan.spans_ms:
            self._spans.append(plan.spans_ms)

    def _take_update(self, update: PlanUpdate) -> None:
        key = (update.session_id, update.request_id)
        if key != self._streamed:
            self._streamed, self._rationale = key, ""
        if update.problem:
            self._rationale = ""  # it was dropped; half of it is no reason
        self._rationale = (self._rationale + update.text)[-_LONGEST_RATIONALE:]

    def _take_clip(self, event: ClipEvent) -> None:
        if event.kind == "opened":
            self._open = event.clip
            return
        self.clips.append(event.clip)
        if self._open is not None and self._open.action == event.clip.action:
            self._open = None

    def _take_memory(self, memory: Memory) -> None:
        self.clips = deque(memory.clips, maxlen=_CLIPS)
        if memory.current is None:
            self._open = None
        else:
            start, end = memory.current_start_pts_s, memory.now_pts_s
            self._open = Clip(memory.current, start, end, memory.current_confidence)


def initials(action: str) -> str:
    """A code for an action the pack gave none: `Calot triangle dissection` → `CTD`, `Clipping` → `CLI`."""
    words = [word for word in action.replace("_", " ").replace("-", " ").split() if word]
    code = "".join(word[0] for word in words) if len(words) > 1 else "".join(words)[:3]
    return code.upper()[:6] or "?"
