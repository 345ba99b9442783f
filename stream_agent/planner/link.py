"""The agent's end of the planner worker: submit, abort, collect; it never blocks and never trusts an answer.

Each start of the worker gets sockets of its own, so that nothing from a dead worker can reach its successor's requests.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator

import msgspec
import zmq

from stream_agent.errors import UNDECODABLE
from stream_agent.messages import Abort, FromWorker, PlanFailure, PlanRequest
from stream_agent.planner.worker import WorkerJob

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(FromWorker)
_QUEUE = 8


class WorkerLink:
    """Two sockets per life of the worker."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: Callable[[str], str]) -> None:
        self._context = context
        self._endpoint = endpoint
        self._lives = itertools.count()
        self._requests: zmq.Socket[bytes] | None = None
        self._answers: zmq.Socket[bytes] | None = None

    def job(self, planner_json: str, actions: tuple[str, ...], pack: str = "") -> bytes:
        """Open fresh sockets and describe them, and the planner, to the worker that is about to start."""
        self.close()
        life = next(self._lives)
        requests, answers = self._endpoint(f"requests-{life}"), self._endpoint(f"answers-{life}")
        self._requests, self._answers = self._context.socket(zmq.PUSH), self._context.socket(zmq.PULL)
        self._requests.sndhwm = self._answers.rcvhwm = _QUEUE
        self._requests.linger = self._answers.linger = 0
        self._requests.bind(requests)
        self._answers.bind(answers)
        return msgspec.json.encode(WorkerJob(planner_json, actions, requests, answers, pack))

    @property
    def connected(self) -> bool:
        """Whether a worker is there to take a request: it says ready a moment before its socket is."""
        return self._requests is not None and bool(self._requests.poll(0, zmq.POLLOUT))

    def submit(self, request: PlanRequest) -> bool:
        """Send a request; False when the worker takes none."""
        return self._send(request)

    def abort(self, request_id: int, stream_id: str = "") -> None:
        """Tell the worker that an answer is not wanted any more."""
        self._send(Abort(request_id, stream_id))

    def collect(self, timeout_s: float = 0.0) -> Iterator[FromWorker]:
        """What the worker has sent; bytes that are no answer count as a failure of whatever is running (id 0)."""
        if self._answers is None or not self._answers.poll(round(timeout_s * 1000)):
            return
        with contextlib.suppress(zmq.Again):
            while True:
                message = self._answers.recv(zmq.NOBLOCK)
                try:
                    yield _decoder.decode(message)
                except UNDECODABLE as error:
                    yield PlanFailure(0, f"sent bytes that are no answer: {error}")

    def close(self) -> None:
        """Close the sockets of the present life."""
        for socket in (self._requests, self._answers):
            if socket is not None:
                socket.close()
        self._requests = self._answers = None

    def _send(self, message: PlanRequest | Abort) -> bool:
        if self._requests is None:
            return False
        try:
            self._requests.send(_encoder.encode(message), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True
