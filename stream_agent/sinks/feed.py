"""What a bridge to another program is fed: what the agent publishes, and the newest picture of its frames.

    publisher ─plans▶ ┐
    grabber ─frames▶  ┴─ Feed ─▶ a bridge, in a process of its own

Both are read as any other reader would: nothing that a bridge does can hold the agent up.
"""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import numpy as np
import zmq
from numpy.typing import NDArray

from stream_agent.errors import WireError
from stream_agent.messages import FrameHeader, Plan
from stream_agent.planner.near_picture import near_picture
from stream_agent.sinks.subscriber import Subscriber
from stream_agent.sinks.topics import Message
from stream_agent.transport.receiver import FrameReceiver


class FeedJob(msgspec.Struct, frozen=True):
    """Where a bridge reads.

    Attributes:
        plans: Address of the agent's publisher.
        frames: Address of the frames.
        frame_keys: Directory of CURVE keys for it; empty without.
        fps: Pictures a second at most; 0 sends none.
        max_pixels: Pictures are reduced to so many.
        lockstep: Whether the session's clock is virtual: plans then never expire by this host's clock.
    """

    plans: str
    frames: str
    frame_keys: str
    fps: float
    max_pixels: int
    lockstep: bool


class Feed:
    """A context manager around both sockets; frames are read only while they are asked for."""

    def __init__(self, job: FeedJob) -> None:
        self._job = job
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._subscriber = Subscriber(job.plans)
        self._receiver: FrameReceiver | None = None
        self._due_s = 0.0

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *_: object) -> None:
        self.rest()
        self._subscriber.close()
        self._context.term()

    def messages(self, timeout_s: float) -> list[Message]:
        """Everything published since the last call, waiting at most `timeout_s` for the first; of plans the newest alone."""
        return self._subscriber.newest(timeout_s)

    def picture(self) -> tuple[FrameHeader, NDArray[np.uint8]] | None:
        """The newest frame's header and upright picture, (height, width, 3) uint8 RGB; None when none is due or there is none."""
        now_s = time.monotonic()
        if not self._job.fps or now_s < self._due_s:
            return None
        self._due_s = now_s + 1 / self._job.fps
        keys = Path(self._job.frame_keys) if self._job.frame_keys else None
        self._receiver = self._receiver or FrameReceiver(self._context, self._job.frames, keys=keys, observer=True)
        frame = self._receiver.newest(0.0)
        if frame is None:
            return None
        try:
            planes = frame.planes()
            if planes is None:
                return None
            picture = near_picture(planes, frame.header, action=None, max_pixels=self._job.max_pixels, side_multiple=2)
        except WireError:
            return None
        if not frame.intact():
            return None
        return frame.header, np.frombuffer(picture.rgb, np.uint8).reshape(picture.height, picture.width, 3)

    def rest(self) -> None:
        """Let go of the frames until a picture is asked for again."""
        if self._receiver is not None:
            self._receiver.close()
            self._receiver = None


class PlanWatch:
    """The plan that a bridge shows, and when it must be taken down."""

    def __init__(self, *, lockstep: bool) -> None:
        self._lockstep = lockstep
        self._shown: Plan | None = None

    @property
    def shown(self) -> Plan | None:
        """The plan on display; None before the first and after its time."""
        return self._shown

    def take(self, plan: Plan, now_ns: int) -> bool:
        """Whether `plan` may be shown; from now on it is what is shown, or what is to be taken down."""
        self._shown = plan
        return self._lockstep or now_ns <= plan.valid_until_ns

    def expired(self, now_ns: int) -> Plan | None:
        """The plan whose time is over, told once, also when the agent says nothing any more."""
        plan = self._shown
        if plan is None or self._lockstep or now_ns <= plan.valid_until_ns:
            return None
        self._shown = None
        return plan


def one_line(plan: Plan) -> str:
    """A plan for a person: three actions with probabilities, or why there are none."""
    if plan.abstained:
        return f"no plan: {plan.abstain_reason}"
    return ", ".join(f"{item.action} {item.probability:.0%}" for item in plan.ranked)
