"""What the page knows, in sections that are sent whole when they change: a browser that missed some is right with the next.

Pure: time is an argument. What a plan, a clip or a silence means is `ConsoleState`'s; here it is put into JSON, and the last
minutes into charts. Times that end in `_ms` are milliseconds of this host's monotonic clock, or of the virtual one in lockstep.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from stream_agent.clock import NS_PER_S
from stream_agent.messages import ClipEvent, Health, Memory, Notice, Plan, PlanRequest, PlanUpdate
from stream_agent.sinks.console_state import ConsoleState
from stream_agent.sinks.dashboard.control import Session
from stream_agent.sinks.dashboard.verdicts import Verdict
from stream_agent.sinks.topics import Message
from stream_agent.telemetry import Counters

CHART_S = 120
_NOTICES = 6
_SHOWN_CLIPS = 64
_MS = 1e6


@dataclass(slots=True)
class _Second:
    """What one second of arrivals held."""

    at_s: int
    latency_ms: list[float] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)


class DashboardState:
    """Takes messages in, and gives the sections that changed.

    Attributes:
        viewer: What is known, as every viewer of the agent knows it.
        heard_ns: Arrival of the newest message; None before the first.
    """

    def __init__(
        self,
        *,
        lockstep: bool,
        codes: dict[str, str],
        prompt_of: Callable[[PlanRequest], list[str]] | None = None,
    ) -> None:
        """Prepare an empty page; `prompt_of` renders what a model was asked, in parts."""
        self.viewer = ConsoleState(lockstep=lockstep, codes=codes)
        self.heard_ns: int | None = None
        self._prompt_of = prompt_of
        self._memory: Memory | None = None
        self._session: Session | None = None
        self._request: PlanRequest | None = None
        self._words: PlanUpdate | None = None
        self._notices: deque[tuple[float, str]] = deque(maxlen=_NOTICES)
        self._verdicts: tuple[Verdict, ...] = ()
        self._has_pixels = True
        self._seconds: deque[_Second] = deque(maxlen=CHART_S)
        self._dropped: dict[str, int] | None = None
        self._changed = set(_SECTIONS)

    def take(self, message: Message, *, arrived_ns: int) -> None:
        """Take one published message in."""
        self.heard_ns = arrived_ns
        self.viewer.take(message, arrived_ns=arrived_ns)
        second = self._second(arrived_ns)
        match message:
            case Plan():
                self._changed |= {"plan", "words"}
                if not message.abstained and "total" in message.spans_ms:
                    second.latency_ms.append(message.spans_ms["total"])
            case PlanUpdate():
                self._words = message
                self._changed.add("words")
            case ClipEvent():
                self._changed.add("clips")
            case Memory():
                self._memory = message
                self._changed |= {"memory", "clips"}
            case Health():
                self._changed.add("health")
            case Counters():
                self._count_drops(message, second)
                self._changed.add("counters")
            case Notice(text):
                self._notices.append((arrived_ns / _MS, text))
                self._changed.add("notices")

    def take_private(self, message: Session | PlanRequest, *, arrived_ns: int) -> None:
        """Take in what came on the private line."""
        self.heard_ns = arrived_ns
        if isinstance(message, Session):
            if message != self._session:
                self._session = message
                self._changed.add("session")
        else:
            self._request = message
            self._changed.add("prompt")

    def take_verdicts(self, verdicts: tuple[Verdict, ...]) -> None:
        """The verdicts of the case that goes on."""
        if verdicts != self._verdicts:
            self._verdicts = verdicts
            self._changed.add("verdicts")

    def take_pixels(self, *, there_are: bool) -> None:
        """Whether the newest frame had a picture."""
        if there_are != self._has_pixels:
            self._has_pixels = there_are
            self._changed.add("picture")

    @property
    def case_id(self) -> str:
        """The case that goes on; empty while it is not known."""
        return self._session.case_id if self._session is not None else ""

    def clip_at(self, start_s: float) -> tuple[str, float] | None:
        """Action and end of the closed clip that began then; None when there is none."""
        found = next((clip for clip in self.viewer.clips if abs(clip.start_pts_s - start_s) < _SAME_S), None)
        return None if found is None else (found.action, found.end_pts_s)

    def changed(self) -> dict[str, bytes]:
        """The sections that changed since the last call, as JSON."""
        changed, self._changed = self._changed, set()
        return {name: msgspec.json.encode(_SECTIONS[name](self)) for name in sorted(changed)}

    def everything(self) -> dict[str, bytes]:
        """Every section, for a browser that has just come."""
        return {name: msgspec.json.encode(section(self)) for name, section in _SECTIONS.items()}

    def session_ms(self, now_ns: int) -> float:
        """The session's clock."""
        return self.viewer.session_ns(now_ns) / _MS

    def heard_ms(self) -> float | None:
        """When the agent was heard last."""
        return None if self.heard_ns is None else self.heard_ns / _MS

    # ---------------------------------------------------------------------------------------------- the sections

    def _plan(self) -> object:
        return self.viewer.plan

    def _words_so_far(self) -> dict[str, object]:
        words = self._words
        streams = words is not None and not words.final
        return {"why": self.viewer.why, "streams": streams, "problem": words.problem if words is not None else ""}

    def _clips(self) -> dict[str, object]:
        clips = list(self.viewer.clips)[-_SHOWN_CLIPS:]
        return {"closed": clips, "earlier": len(self.viewer.clips) - len(clips), "open": self.viewer.open_clip}

    def _memory_seen(self) -> dict[str, object] | None:
        memory = self._memory
        if memory is None:
            return None
        near = memory.near
        return {
            "labels": memory.labels,
            "folded": memory.folded,
            "evictions": memory.evictions,
            "instruments": memory.instruments,
            "instrument_s": memory.instrument_s,
            "now_pts_s": memory.now_pts_s,
            "near": None
            if near is None
            else {
                "seq": near.seq,
                "pts_s": near.pts_s,
                "session_id": near.session_id,
                "width": near.width,
                "height": near.height,
            },
        }

    def _health(self) -> object:
        return self.viewer.health

    def _counters(self) -> dict[str, object]:
        return {"counts": self.viewer.counters, "latency_ms": self.viewer.latency_ms()}

    def _notices_kept(self) -> object:
        return list(self._notices)

    def _session_settings(self) -> object:
        return self._session

    def _prompt(self) -> dict[str, object] | None:
        request = self._request
        if request is None or self._prompt_of is None:
            return None
        parts = self._prompt_of(request)
        near = request.memory.near
        return {
            "request_id": request.request_id,
            "seq": near.seq if near is not None else None,
            "parts": parts,
            "characters": sum(map(len, parts)),
            "pictures": [
                {"seq": picture.seq, "width": picture.width, "height": picture.height} for picture in request.pictures
            ],
        }

    def _verdicts_given(self) -> object:
        return self._verdicts

    def _picture(self) -> dict[str, bool]:
        return {"pixels": self._has_pixels}

    def _charts(self) -> dict[str, object]:
        """Per second, oldest first, the running second left out: median and longest latency, frames dropped by reason."""
        seconds = list(self._seconds)[:-1]
        reasons = sorted({reason for second in seconds for reason in second.dropped})
        return {
            "end_s": seconds[-1].at_s if seconds else None,
            "at_s": [second.at_s for second in seconds],
            "p50_ms": [statistics.median(second.latency_ms) if second.latency_ms else None for second in seconds],
            "max_ms": [max(second.latency_ms, default=None) for second in seconds],
            "dropped": {reason: [second.dropped.get(reason, 0) for second in seconds] for reason in reasons},
        }

    def _second(self, now_ns: int) -> _Second:
        at_s = now_ns // NS_PER_S
        if not self._seconds or self._seconds[-1].at_s != at_s:
            self._seconds.append(_Second(at_s))
            self._changed.add("charts")
        return self._seconds[-1]

    def _count_drops(self, counters: Counters, second: _Second) -> None:
        known, self._dropped = self._dropped, counters.dropped
        if known is None:
            return
        for reason, total in counters.dropped.items():
            new = total - known.get(reason, 0)
            if new > 0:
                second.dropped[reason] = second.dropped.get(reason, 0) + new


_SAME_S = 0.05

_SECTIONS: dict[str, Callable[[DashboardState], Any]] = {
    "plan": DashboardState._plan,
    "words": DashboardState._words_so_far,
    "clips": DashboardState._clips,
    "memory": DashboardState._memory_seen,
    "health": DashboardState._health,
    "counters": DashboardState._counters,
    "notices": DashboardState._notices_kept,
    "session": DashboardState._session_settings,
    "prompt": DashboardState._prompt,
    "verdicts": DashboardState._verdicts_given,
    "picture": DashboardState._picture,
    "charts": DashboardState._charts,
}
