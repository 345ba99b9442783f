"""What a recording holds besides what is published: everything that the agent's decisions depend on.

Replay reads these in the order in which they were written, which is the order in which the agent did things. Times ending
in `_ns` are of the session's clock, as in `messages.py`.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

from stream_agent.messages import Clip, ColourSpace, Evidence, FrameHeader, Plan, PlanRequest
from stream_agent.scheduler import Decision, Hold, Skip, Start
from stream_agent.sinks.dashboard.control import Command
from stream_agent.sinks.topics import TOPICS

FORMAT = "1"
"""Raised when a record changes meaning; another one is refused."""

METADATA = "stream_agent"
"""Name of the metadata record that says what the file is."""


class PassedOver(msgspec.Struct, frozen=True):
    """A frame that was received and not perceived, and why: `not_sampled`, `overwritten`, `undecodable`."""

    seq: int
    pts_s: float
    reason: str


class FrameRecord(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="frame"):
    """One perceived frame: its header without its place in this host's memory, and the evidence of it.

    Attributes:
        passed_over: The frames received since the last record.
        pixels: Whether a picture belongs to it; the message on `/video` with the same log time, unless it was dropped.
    """

    stream_id: str
    session_id: str
    seq: int
    pts_s: float
    captured_ns: int
    host_id: str = ""
    width: int = 0
    height: int = 0
    rotation_deg: int = 0
    colour: ColourSpace = "bt601"
    discontinuity: bool = False
    signals: tuple[float, ...] = ()
    gate: str = ""
    recogniser: str = ""
    actions: tuple[float, ...] = ()
    instruments: tuple[float, ...] = ()
    out_of_body: float | None = None
    passed_over: tuple[PassedOver, ...] = ()
    pixels: bool = False

    @classmethod
    def of(cls, header: FrameHeader, evidence: Evidence, passed_over: tuple[PassedOver, ...] = ()) -> FrameRecord:
        """The record of a frame as it was perceived."""
        return cls(
            stream_id=header.stream_id,
            session_id=header.session_id,
            seq=header.seq,
            pts_s=header.pts_s,
            captured_ns=header.captured_ns,
            host_id=header.host_id,
            width=header.width,
            height=header.height,
            rotation_deg=header.rotation_deg,
            colour=header.colour,
            discontinuity=header.discontinuity,
            signals=header.signals,
            gate=evidence.gate,
            recogniser=evidence.recogniser,
            actions=evidence.actions,
            instruments=evidence.instruments,
            out_of_body=evidence.out_of_body,
            passed_over=passed_over,
            pixels=header.place != "none",
        )

    def header(self) -> FrameHeader:
        """The header, without pixels."""
        return FrameHeader(
            stream_id=self.stream_id,
            session_id=self.session_id,
            seq=self.seq,
            pts_s=self.pts_s,
            captured_ns=self.captured_ns,
            host_id=self.host_id,
            width=self.width,
            height=self.height,
            rotation_deg=self.rotation_deg,
            layout="yuv420p" if self.pixels else "none",
            colour=self.colour,
            discontinuity=self.discontinuity,
            signals=self.signals,
        )

    def evidence(self) -> Evidence:
        """What perception said of it."""
        return Evidence(
            seq=self.seq,
            pts_s=self.pts_s,
            gate=self.gate,
            recogniser=self.recogniser,
            actions=self.actions,
            instruments=self.instruments,
            out_of_body=self.out_of_body,
        )


class Choice(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="choice"):
    """The ladder was asked what to show.

    Attributes:
        now_ns: When.
        worker_state: Why the worker had no newer answer, as the ladder was told.
        answer: The worker's plan that stood, if it is another than at the last choice; None when it had none yet.
    """

    now_ns: int
    worker_state: str
    answer: Plan | msgspec.UnsetType | None = msgspec.UNSET


class Expiry(msgspec.Struct, frozen=True, tag_field="type", tag="expiry"):
    """The plan on display was taken down at `now_ns` because its time was over, and why no newer one had come."""

    now_ns: int
    reason: str


class Verdict(msgspec.Struct, frozen=True):
    """One decision of the scheduler: `start`, `skip`, `hold` or `abort` for the frame captured at `captured_ns`."""

    kind: Literal["start", "skip", "hold", "abort"]
    captured_ns: int
    deadline_ns: int = 0
    reason: str = ""

    @classmethod
    def of(cls, decision: Decision) -> Verdict:
        """The scheduler's decision as it is recorded."""
        match decision:
            case Start(captured_ns, deadline_ns):
                return cls("start", captured_ns, deadline_ns)
            case Skip(captured_ns, reason):
                return cls("skip", captured_ns, reason=reason)
            case Hold(captured_ns):
                return cls("hold", captured_ns)
            case _:
                return cls("abort", decision.captured_ns)


class Admission(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="admission"):
    """The scheduler was asked about the worker: what it was told, and what it decided.

    Attributes:
        call: `offer` a frame, `poll` as time passes (recorded if anything came of it), or `finished`: the worker is free.
        captured_ns: The frame that was offered.
        now_ns: When; 0 for `finished`.
        ready: Whether the worker could take a request.
        verdicts: What followed, in order.
    """

    call: Literal["offer", "poll", "finished"]
    captured_ns: int = 0
    now_ns: int = 0
    ready: bool = False
    verdicts: tuple[Verdict, ...] = ()


class Restored(msgspec.Struct, frozen=True, tag_field="type", tag="restored"):
    """The case went on from clips that a journal had kept."""

    clips: tuple[Clip, ...]


class Commanded(msgspec.Struct, frozen=True, tag_field="type", tag="command"):
    """A user of the dashboard told the agent something that its decisions depend on."""

    now_ns: int
    command: Command


class Finish(msgspec.Struct, frozen=True, tag_field="type", tag="finish"):
    """The stream came to its end, which closes the open clip.

    Attributes:
        passed_over: The frames received since the last record.
    """

    now_ns: int
    passed_over: tuple[PassedOver, ...] = ()


Input: TypeAlias = FrameRecord | Choice | Expiry | Admission | Restored | Commanded | Finish | PlanRequest
"""What is recorded beside the messages that are published anyway."""

VIDEO_TOPIC = "/video"
INPUTS: dict[type[Any], str] = {
    FrameRecord: "/frame",
    Choice: "/choice",
    Expiry: "/expiry",
    Admission: "/admission",
    PlanRequest: "/request",
    Restored: "/restored",
    Commanded: "/command",
    Finish: "/finish",
}
RECORDED: dict[str, type[Any]] = {
    **{topic: kind for kind, topic in INPUTS.items()},
    **{f"/{topic.decode()}": kind for kind, topic in TOPICS.items()},
}
"""Topic → what its messages are; JSON all of them."""
