"""The planner worker process: one request at a time, aborted when told, heartbeats while it thinks.

Requests come in on a thread of their own, so that an abort reaches a planner that is busy. The planner runs in the main
thread; a planner that hangs there leaves the heartbeat alive, and the agent finds out by the deadline.
"""

from __future__ import annotations

import queue
import threading

import msgspec
import zmq

from stream_agent.child import ChildSide
from stream_agent.config import PlannerConfig
from stream_agent.errors import UNDECODABLE, StreamAgentError
from stream_agent.messages import Abort, FromWorker, PlanFailure, PlanRequest, ToWorker
from stream_agent.planner.scripted import ScriptedPlanner

_decoder = msgspec.msgpack.Decoder(ToWorker)
_encoder = msgspec.msgpack.Encoder()


class WorkerJob(msgspec.Struct, frozen=True):
    """What a planner worker is told to do.

    Attributes:
        planner: `PlannerConfig` as JSON.
        actions: The closed set, in pack order.
        requests: ipc address to pull requests from.
        answers: ipc address to push answers to.
    """

    planner: str
    actions: tuple[str, ...]
    requests: str
    answers: str


class Inbox:
    """Requests as they come; an abort cancels its request wherever it is."""

    def __init__(self, socket: zmq.Socket[bytes], child: ChildSide) -> None:
        self._socket = socket
        self._child = child
        self._waiting: queue.SimpleQueue[tuple[PlanRequest, threading.Event]] = queue.SimpleQueue()
        self._cancelled: dict[int, threading.Event] = {}
        self._thread = threading.Thread(target=self._receive, name="inbox", daemon=True)
        self._thread.start()

    def take(self, timeout_s: float) -> tuple[PlanRequest, threading.Event] | None:
        """The next request and the event that cancels it."""
        try:
            return self._waiting.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def done(self, request_id: int) -> None:
        """Forget a request that was answered."""
        self._cancelled.pop(request_id, None)

    def close(self) -> None:
        """Wait for the thread to let go of its socket."""
        self._thread.join()

    def _receive(self) -> None:
        with self._socket:
            while not self._child.stopped():
                if not self._socket.poll(100):
                    continue
                try:
                    message = _decoder.decode(self._socket.recv())
                except UNDECODABLE as error:
                    self._child.notice(f"planner worker: a message that is no request was ignored ({error})")
                    continue
                if isinstance(message, Abort):
                    event = self._cancelled.get(message.request_id)
                    if event is not None:
                        event.set()
                else:
                    cancelled = threading.Event()
                    self._cancelled[message.request_id] = cancelled
                    self._waiting.put((message, cancelled))


def main() -> int:
    """Body of the planner worker process."""
    child = ChildSide()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        job = msgspec.json.decode(child.job, type=WorkerJob)
        config = PlannerConfig.model_validate_json(job.planner)
        planner = ScriptedPlanner(job.actions, config.script, valid_s=config.valid_s)
        requests, answers = context.socket(zmq.PULL), context.socket(zmq.PUSH)
        requests.linger = answers.linger = 0
        requests.connect(job.requests)
        answers.connect(job.answers)
        inbox = Inbox(requests, child)
        try:
            child.ready()
            while not child.stopped():
                taken = inbox.take(timeout_s=0.1)
                if taken is not None:
                    answers.send(_encoder.encode(_answer(planner, *taken)))
                    inbox.done(taken[0].request_id)
        finally:  # also by a planner's bug: a process that waits for its own sockets would seem well and answer nobody
            child.stop.set()
            inbox.close()
            answers.close(linger=200)
    except StreamAgentError as error:
        child.failed(str(error), error.exit_code)
        return error.exit_code
    finally:
        context.destroy(linger=0)
    return 0


def _answer(planner: ScriptedPlanner, request: PlanRequest, cancelled: threading.Event) -> FromWorker:
    if cancelled.is_set():
        return PlanFailure(request.request_id, "cancelled")
    try:
        return planner.plan(request, cancelled)
    except StreamAgentError as error:
        return PlanFailure(request.request_id, str(error))


if __name__ == "__main__":
    raise SystemExit(main())
