"""The private line between the agent and its dashboard: commands one way, what only the dashboard needs the other.

Both ends never wait: with nobody at the other end, or one that is behind, a message is dropped. An ipc socket in the agent's own
directory, readable by this user alone; there is none without a dashboard.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Generic, TypeAlias, TypeVar

import msgspec
import zmq

from stream_agent.errors import UNDECODABLE
from stream_agent.messages import PlanRequest

LONGEST_GOAL = 600
_QUEUE = 64
_MOST_AT_ONCE = 16
_RECONNECT_MS = 50

Words: TypeAlias = Annotated[
    str, msgspec.Meta(min_length=1, max_length=LONGEST_GOAL, pattern=r"^[^\x00-\x1f\x7f]*\S[^\x00-\x1f\x7f]*$")
]
CaseId: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern=r"^[\w][\w .:+-]*$")]


class SetGoal(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="goal"):
    """Plan towards this from now on."""

    text: Words


class NewCase(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="new_case"):
    """Another patient: forget everything."""

    case_id: CaseId


class Pause(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="pause"):
    """Show no plans, and ask no model, until told otherwise; perception and memory go on."""

    paused: bool


Command: TypeAlias = SetGoal | NewCase | Pause


class Session(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="session"):
    """What the commands have made of the session; sent twice a second.

    Attributes:
        case_id: The case that goes on.
        goal: What is planned towards.
        paused: Whether planning is paused.
    """

    case_id: str
    goal: str
    paused: bool


ToDashboard: TypeAlias = Session | PlanRequest

SentT = TypeVar("SentT")
ReceivedT = TypeVar("ReceivedT")


class Line(Generic[SentT, ReceivedT]):
    """One end of the line."""

    def __init__(self, endpoint: str, received: Any, *, bind: bool) -> None:  # noqa: ANN401 - a union of types
        """Bind (the agent) or connect (the dashboard); `received` is the type of what comes in."""
        self._decoder: msgspec.json.Decoder[ReceivedT] = msgspec.json.Decoder(received)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.sndhwm = self._socket.rcvhwm = _QUEUE
        self._socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        if bind:
            self._socket.bind(endpoint)
        else:
            self._socket.connect(endpoint)
        self._path = Path(endpoint.removeprefix("ipc://")) if bind else None

    def send(self, message: SentT) -> bool:
        """Send at once or not at all; whether it was."""
        try:
            self._socket.send(msgspec.json.encode(message), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def received(self) -> list[ReceivedT]:
        """What has come, a bounded number at once; what does not fit its type is dropped."""
        messages = []
        for _ in range(_MOST_AT_ONCE):
            try:
                messages.append(self._decoder.decode(self._socket.recv(zmq.NOBLOCK)))
            except zmq.Again:
                break
            except UNDECODABLE:
                continue
        return messages

    def close(self) -> None:
        """Let go of the socket."""
        self._socket.close()
        self._context.term()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
