"""Live logging to a Rerun viewer: picture, actions, probabilities, age, clips; publish-only, a process of its own.

    Feed ─messages, pictures▶ CaseLog ─▶ gRPC to the viewer, this host alone unless the configuration says otherwise

Two timelines: `pts`, media time, and `host_time`, the wall clock when the frame behind it was captured (in lockstep, where that
clock is virtual: when it was logged). Each case is a recording of its own in the viewer.

The SDK keeps up to some 100 MB for a viewer that is not there or takes nothing, then blocks for as long as that lasts; and it
throws everything away, for good, once a connection has broken (measured with 0.41.0). So a connection is made only to a viewer
that listens, everything is flushed before more is logged, and after a break a new one goes on in the same recording. Whoever
joins late is given the case's clips from the agent's memory, which is published twice a second.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time

import cv2
import msgspec
import numpy as np
import rerun as rr
import rerun.blueprint as rrb
from numpy.typing import NDArray

from stream_agent.child import ChildSide
from stream_agent.clock import NS_PER_S
from stream_agent.messages import Clip, FrameHeader, Health, Memory, Notice, Plan
from stream_agent.sinks.feed import Feed, FeedJob, PlanWatch, one_line
from stream_agent.sinks.topics import Message

_APPLICATION = "stream_agent"
_LOOK_S = 0.02
_RETRY_S = 0.5
_FLUSH_S = 0.2
_END_S = 0.5
_NICENESS = 10
_JPEG_QUALITY = 85


class RerunJob(msgspec.Struct, frozen=True):
    """What the bridge is told to do.

    Attributes:
        feed: Where it reads.
        connect: HOST:PORT of the viewer.
        session: Names the run; a bridge that is started again goes on in its recordings.
        actions: Of the pack, in pack order.
    """

    feed: FeedJob
    connect: str
    session: str
    actions: tuple[str, ...]


class CaseLog:
    """One case as entities of a recording stream; what a message becomes, and when it was."""

    def __init__(self, stream: rr.RecordingStream, actions: tuple[str, ...], *, lockstep: bool) -> None:
        self._stream = stream
        self._actions = actions
        self._lockstep = lockstep
        self._wall_minus_clock_ns = time.time_ns() - time.monotonic_ns()
        self._closed_until_s = -1.0
        self._open: tuple[str, float] | None = None
        self._parts: dict[str, str] = {}
        for action in actions:
            stream.log(f"probability/{action}", rr.SeriesLines(names=action), static=True)

    def plan(self, plan: Plan) -> None:
        """Words, probabilities and the age it had when it was published."""
        self._at(plan.pts_s, plan.captured_ns)
        self._stream.log("plan", rr.TextDocument(plan_text(plan), media_type=rr.MediaType.MARKDOWN))
        shares = dict(zip(self._actions, plan.distribution, strict=False)) or {
            ranked.action: ranked.probability for ranked in plan.ranked
        }
        if plan.abstained:
            self._stream.log("probability", rr.Clear(recursive=True))
        for action, share in shares.items():
            self._stream.log(f"probability/{action}", rr.Scalars(share))
        self._stream.log("age_ms/at_publication", rr.Scalars((plan.published_ns - plan.captured_ns) / 1e6))

    def expired(self, plan: Plan, now_ns: int) -> None:
        """The plan's time was over at `now_ns`."""
        self._at(plan.pts_s + (now_ns - plan.captured_ns) / NS_PER_S, now_ns)
        self._stream.log("plan", rr.TextDocument("**expired: no plan**", media_type=rr.MediaType.MARKDOWN))
        self._stream.log("probability", rr.Clear(recursive=True))

    def picture(self, header: FrameHeader, rgb: NDArray[np.uint8], shown: Plan | None) -> None:
        """A picture (height, width, 3), uint8, and how old the plan on display was when it was captured."""
        self._at(header.pts_s, header.captured_ns)
        taken, jpeg = cv2.imencode(
            ".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY)
        )
        if taken:
            self._stream.log("picture", rr.EncodedImage(contents=jpeg.tobytes(), media_type="image/jpeg"))
        if shown is not None and not self._lockstep:
            age_ms = max(0.0, (header.captured_ns - shown.captured_ns) / 1e6)
            self._stream.log("age_ms/on_display", rr.Scalars(age_ms))

    def memory(self, memory: Memory) -> None:
        """The clips that were not logged yet, each at its own times, and the one that goes on."""
        captured_ns = memory.near.captured_ns if memory.near is not None else time.monotonic_ns()
        begun_ns = captured_ns - round(memory.now_pts_s * NS_PER_S)
        for clip in memory.clips:
            if clip.end_pts_s > self._closed_until_s:
                self._closed_until_s = clip.end_pts_s
                self._clip(clip, begun_ns)
        current = None if memory.current is None else (memory.current, memory.current_start_pts_s)
        if current is not None and current != self._open:
            self._at(current[1], begun_ns + round(current[1] * NS_PER_S))
            self._stream.log("clips", rr.StateChange(state=current[0]))
        self._open = current

    def health(self, health: Health) -> None:
        """A line for each part that changed."""
        self._at(None, time.monotonic_ns())
        for part, state in health.parts.items():
            if self._parts.get(part, "ok") != state:
                level = rr.TextLogLevel.INFO if state == "ok" else rr.TextLogLevel.WARN
                self._stream.log("log", rr.TextLog(f"{part}: {state}", level=level))
        self._parts = dict(health.parts)

    def notice(self, notice: Notice) -> None:
        """A line for a person."""
        self._at(None, time.monotonic_ns())
        self._stream.log("log", rr.TextLog(notice.text, level=rr.TextLogLevel.INFO))

    def _clip(self, clip: Clip, begun_ns: int) -> None:
        if self._open != (clip.action, clip.start_pts_s):
            self._at(clip.start_pts_s, begun_ns + round(clip.start_pts_s * NS_PER_S))
            self._stream.log("clips", rr.StateChange(state=clip.action))
        self._at(clip.end_pts_s, begun_ns + round(clip.end_pts_s * NS_PER_S))
        self._stream.log("clips", rr.StateChange(state=""))  # until the next one begins
        text = f"{clip.action}: {clip.start_pts_s:.1f} s to {clip.end_pts_s:.1f} s, confidence {clip.confidence:.2f}"
        self._stream.log("log", rr.TextLog(text, level=rr.TextLogLevel.INFO))

    def _at(self, pts_s: float | None, clock_ns: int) -> None:
        """Set both times of what is logged next; no media time for what is about none."""
        wall_ns = time.time_ns() if self._lockstep else clock_ns + self._wall_minus_clock_ns
        self._stream.set_time("host_time", timestamp=np.datetime64(wall_ns, "ns"))
        if pts_s is None:
            self._stream.disable_timeline("pts")
        else:
            self._stream.set_time("pts", duration=pts_s)


class Viewer:
    """The way to one viewer: there, not there, or there and taking nothing."""

    def __init__(self, job: RerunJob, tell: ChildSide) -> None:
        self._job = job
        self._tell = tell
        host, _, port = job.connect.rpartition(":")
        self._address = (host.strip("[]"), int(port))
        self._stream: rr.RecordingStream | None = None
        self._case_id = ""
        self._log: CaseLog | None = None
        self._retry_s = 0.0
        self._told = ""

    def ready_for(self, case_id: str) -> CaseLog | None:
        """Where the case may be logged now; None while the viewer is away or still has to take the last."""
        if self._stream is not None and case_id != self._case_id:
            self.close()
        if self._stream is None and not self._connect(case_id):
            return None
        assert self._stream is not None
        try:
            self._stream.flush(timeout_sec=_FLUSH_S)
        except RuntimeError as error:  # the one type for both: it takes nothing, or it is gone
            if "timed out" in str(error).lower():
                self._say(f"Rerun: the viewer at {self._job.connect} takes nothing; what is new meanwhile is left out")
                return None
            self._stream, self._log = None, None
            self._say(f"Rerun: the viewer at {self._job.connect} is gone; waiting for one")
            return None
        self._say(f"Rerun: logging to {self._job.connect}")
        return self._log

    def close(self) -> None:
        """Hand over what is left, for at most half a second."""
        if self._stream is not None:
            with contextlib.suppress(RuntimeError):
                self._stream.flush(timeout_sec=_END_S)
        self._stream, self._log = None, None

    def _connect(self, case_id: str) -> bool:
        now_s = time.monotonic()
        if now_s < self._retry_s:
            return False
        self._retry_s = now_s + _RETRY_S
        try:
            socket.create_connection(self._address, timeout=_RETRY_S).close()
        except OSError as error:
            self._say(
                f"Rerun: no viewer at {self._job.connect} ({error.strerror or error}); start one: rerun --bind 127.0.0.1 "
                f"--port {self._address[1]}"
            )
            return False
        self._stream = rr.RecordingStream(_APPLICATION, recording_id=f"{self._job.session}-{case_id}")
        self._stream.connect_grpc(f"rerun+http://{self._job.connect}/proxy", default_blueprint=_layout())
        self._stream.send_recording_name(f"case {case_id}")
        self._log = CaseLog(self._stream, self._job.actions, lockstep=self._job.feed.lockstep)
        self._case_id = case_id
        return True

    def _say(self, text: str) -> None:
        if text != self._told:
            self._told = text
            self._tell.notice(text)


def plan_text(plan: Plan) -> str:
    """The plan as Markdown."""
    lines = [f"**{one_line(plan)}**", "", f"now: {plan.current_action or 'unknown'} ({plan.current_confidence:.0%})"]
    if plan.expected_onset_s is not None:
        lines.append(f"expected in {plan.expected_onset_s:.0f} s")
    lines += [f"- {item.action}: {item.rationale}" for item in plan.ranked if item.rationale]
    lines += [f"- mind: {text}" for text in plan.safety]
    if plan.progress:
        lines.append(plan.progress)
    lines.append(f"frame {plan.seq}, rung {plan.source} ({plan.planner})")
    return "\n\n".join(line for line in lines if line)


def _layout() -> rrb.Blueprint:
    """What a viewer shows first; its user may change everything."""
    return rrb.Blueprint(
        rrb.Horizontal(
            rrb.Vertical(
                rrb.Spatial2DView(origin="picture", name="picture"), rrb.TextLogView(origin="log", name="log")
            ),
            rrb.Vertical(
                rrb.TextDocumentView(origin="plan", name="plan"),
                rrb.StateTimelineView(origin="clips", name="clips"),
                rrb.TimeSeriesView(origin="probability", name="next action"),
                rrb.TimeSeriesView(origin="age_ms", name="age, ms"),
                row_shares=[2, 1, 2, 1],
            ),
        )
    )


def _case_of(message: Message) -> str:
    return message.case_id if isinstance(message, Plan | Memory) else ""


def _log_message(log: CaseLog, message: Message, watch: PlanWatch, now_ns: int) -> None:
    match message:
        case Plan():
            if watch.take(message, now_ns):
                log.plan(message)
        case Memory():
            log.memory(message)
        case Health():
            log.health(message)
        case Notice():
            log.notice(message)


def _run(job: RerunJob, child: ChildSide) -> None:
    viewer = Viewer(job, child)
    watch = PlanWatch(lockstep=job.feed.lockstep)
    case_id = ""
    child.ready()
    with Feed(job.feed) as feed:
        while not child.stopped():
            messages = feed.messages(_LOOK_S)
            case_id = next(filter(None, map(_case_of, reversed(messages))), case_id)
            log = viewer.ready_for(case_id) if case_id else None
            if log is None:
                feed.rest()
                continue
            now_ns = time.monotonic_ns()
            for message in messages:
                if _case_of(message) in ("", case_id):
                    _log_message(log, message, watch, now_ns)
            if (late := watch.expired(now_ns)) is not None:
                log.expired(late, now_ns)
            if (found := feed.picture()) is not None:
                log.picture(*found, watch.shown)
    viewer.close()


def main() -> int:
    """Log until told to stop; the exit code."""
    child = ChildSide()
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)
    _run(msgspec.json.decode(child.job, type=RerunJob), child)
    # The SDK waits at exit for a viewer that takes nothing, for as long as that lasts; all that could be handed over has been.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
