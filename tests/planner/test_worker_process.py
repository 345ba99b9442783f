from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zmq

from stream_agent.config import PlannerConfig
from stream_agent.messages import (
    Abort,
    FrameHeader,
    FromWorker,
    Memory,
    Plan,
    PlanFailure,
    PlanRequest,
    PlanUpdate,
)
from stream_agent.planner.answer import objection
from stream_agent.planner.link import WorkerLink
from stream_agent.planner.worker import WorkerJob
from stream_agent.workers import Worker

ACTIONS = ("a", "b", "c", "d", "e")
NEAR = FrameHeader(stream_id="cam", session_id="s", seq=4, pts_s=1.5, captured_ns=1_500_000_000)
MEMORY = Memory(stream_id="cam", session_id="s", case_id="case", now_pts_s=1.5, current="a", near=NEAR)

Context = zmq.Context[zmq.Socket[bytes]]


def request(request_id: int) -> PlanRequest:
    return PlanRequest(request_id=request_id, memory=MEMORY, deadline_ns=2_000_000_000)


class Desk:
    """A real planner worker and the link to it."""

    def __init__(
        self, context: Context, folder: Path, script: str, module: str, eventually: Callable[..., None]
    ) -> None:
        config = f'{{"kind": "scripted", "script": {script}}}'
        PlannerConfig.model_validate_json(config)
        self.context = context
        self.link = WorkerLink(context, lambda name: f"ipc://{folder}/{name}")
        self.job: WorkerJob | None = None
        self._eventually = eventually

        def job() -> bytes:
            written = self.link.job(config, ACTIONS)
            self.job = msgspec.json.decode(written, type=WorkerJob)
            return written

        self.worker = Worker("planner worker", module, job)
        self.worker.start()
        self.wait_ready()

    def wait_ready(self) -> None:
        self.until(lambda: self.worker.ready and self.link.connected)

    def until(self, condition: Callable[[], object], timeout_s: float = 10.0) -> None:
        def polled() -> object:
            self.worker.poll()
            return condition()

        self._eventually(polled, timeout_s)

    def next_answer(self, timeout_s: float = 10.0) -> FromWorker:
        for answer in self.link.collect(timeout_s):
            return answer
        raise AssertionError(f"no answer within {timeout_s} s; worker: {self.worker.health()}")

    def close(self) -> None:
        self.worker.stop(0.5)
        self.link.close()


Hire = Callable[..., Desk]


@pytest.fixture
def hire(short_path: Path, eventually: Callable[..., None]) -> Iterator[Hire]:
    """A worker that follows a script, given as JSON; neither it nor a socket outlives the test."""
    context: Context = zmq.Context()
    made: list[Desk] = []

    def make(script: str = "[{}]", module: str = "stream_agent.planner.worker") -> Desk:
        made.append(Desk(context, short_path, script, module, eventually))
        return made[-1]

    yield make
    for desk in made:
        desk.close()
    context.term()


def test_a_request_is_answered(hire: Hire) -> None:
    desk = hire()
    assert desk.link.submit(request(1))
    plan = desk.next_answer()
    assert isinstance(plan, Plan)
    assert objection(plan, request(1), ACTIONS) == ""
    assert list(desk.link.collect()) == []


def test_of_requests_that_wait_the_newest_is_answered_and_every_other_is_told(hire: Hire) -> None:
    desk = hire('[{"delay_s": 0.3}]')
    for request_id in (1, 2, 3):
        assert desk.link.submit(request(request_id))
    answers = [desk.next_answer() for _ in range(3)]
    assert answers[0] == PlanFailure(2, "superseded by a newer frame", "cam")
    assert [(answer.request_id, type(answer)) for answer in answers[1:]] == [(1, Plan), (3, Plan)]


def test_streams_do_not_wait_for_each_other(hire: Hire) -> None:
    desk = hire('[{"delay_s": 60}, {}]')
    other = msgspec.structs.replace(request(1), memory=msgspec.structs.replace(MEMORY, stream_id="other"))
    desk.link.submit(request(1))
    desk.link.submit(other)
    answer = desk.next_answer()
    assert isinstance(answer, Plan) and answer.stream_id == "other"
    desk.link.abort(1, "other")
    assert list(desk.link.collect(0.2)) == [], "the abort of another stream's request of the same number"
    desk.link.abort(1, "cam")
    assert desk.next_answer() == PlanFailure(1, "cancelled", "cam")


def test_an_abort_reaches_a_planner_that_is_busy(hire: Hire) -> None:
    desk = hire('[{"delay_s": 60}, {}]')
    desk.link.submit(request(1))
    assert list(desk.link.collect(0.3)) == [], "it is busy"
    desk.link.abort(1)
    assert desk.next_answer() == PlanFailure(1, "cancelled", "cam")
    desk.link.submit(request(2))
    assert isinstance(desk.next_answer(), Plan)


def test_an_abort_reaches_a_request_that_waits(hire: Hire) -> None:
    desk = hire('[{"delay_s": 60}, {}]')
    desk.link.submit(request(1))
    desk.link.submit(request(2))
    assert list(desk.link.collect(0.3)) == [], "it is busy"
    desk.link.abort(2)
    desk.link.abort(1)
    failures = [PlanFailure(2, "cancelled", "cam"), PlanFailure(1, "cancelled", "cam")]
    assert [desk.next_answer(), desk.next_answer()] == failures
    desk.link.submit(request(3))
    assert isinstance(desk.next_answer(), Plan)


def test_nobody_is_answered_after_the_budget(hire: Hire) -> None:
    desk = hire('[{"delay_s": 60}, {}]')
    desk.link.submit(msgspec.structs.replace(request(1), budget_ms=100.0))
    assert desk.next_answer() == PlanFailure(1, "gave no answer within 100 ms", "cam")
    desk.link.submit(request(2))
    assert isinstance(desk.next_answer(), Plan)


def test_an_abort_of_an_unknown_request_is_ignored(hire: Hire) -> None:
    desk = hire()
    desk.link.abort(77)
    desk.link.submit(request(1))
    assert isinstance(desk.next_answer(), Plan)


def test_a_model_that_fails_is_told_and_the_worker_goes_on(hire: Hire) -> None:
    desk = hire('[{"behaviour": "error"}, {}]')
    desk.link.submit(request(1))
    failure = desk.next_answer()
    assert isinstance(failure, PlanFailure)
    assert (failure.request_id, "the model failed" in failure.reason) == (1, True)
    desk.link.submit(request(2))
    assert isinstance(desk.next_answer(), Plan)


def test_garbage_passes_the_wire_and_is_refused_by_the_agents_check(hire: Hire) -> None:
    desk = hire('[{"behaviour": "garbage"}]')
    desk.link.submit(request(1))
    plan = desk.next_answer()
    assert isinstance(plan, Plan)
    assert "ranks 2 distinct actions" in objection(plan, request(1), ACTIONS)


def test_a_crash_is_seen_and_the_next_life_has_sockets_of_its_own(hire: Hire) -> None:
    desk = hire('[{"behaviour": "crash"}, {}]')
    first = desk.job
    desk.link.submit(request(1))
    desk.until(lambda: desk.worker.restarts == 1)
    assert "planner worker ended by exit code 13; starting it again" in desk.worker.notices
    desk.wait_ready()
    assert desk.job is not None and first is not None
    assert {desk.job.requests, desk.job.answers}.isdisjoint({first.requests, first.answers})
    assert list(desk.link.collect(0.1)) == [], "nothing of the last life"


def test_a_planner_that_hangs_leaves_the_heartbeat_alive_and_can_be_killed(hire: Hire) -> None:
    desk = hire('[{"behaviour": "hang"}]')
    desk.link.submit(request(1))
    assert list(desk.link.collect(0.3)) == [], "it hangs"
    desk.link.abort(1)
    assert list(desk.link.collect(0.3)) == [], "deaf to the abort"
    desk.worker.poll()
    assert desk.worker.health() == "ok"
    desk.worker.kill()
    desk.until(lambda: desk.worker.restarts == 1)
    desk.wait_ready()


def test_a_planner_that_hangs_does_not_hold_up_the_end(hire: Hire) -> None:
    desk = hire('[{"behaviour": "hang"}]')
    desk.link.submit(request(1))
    assert list(desk.link.collect(0.3)) == [], "it hangs"
    began_s = time.monotonic()
    desk.worker.stop(0.3)
    assert time.monotonic() - began_s < 1.0
    assert any("did not stop" in notice for notice in desk.worker.notices)


def test_a_worker_ends_at_once_when_told(hire: Hire) -> None:
    desk = hire()
    began_s = time.monotonic()
    desk.worker.stop(2.0)
    assert time.monotonic() - began_s < 1.0
    assert not desk.worker.notices


def noise() -> list[bytes]:
    rng = np.random.default_rng(5)
    failure = msgspec.msgpack.encode(PlanFailure(1, "reason"))
    asked = msgspec.msgpack.encode(request(1))
    return [
        *(rng.bytes(int(rng.integers(0, 300))) for _ in range(200)),
        *(asked[: int(cut)] for cut in rng.integers(0, len(asked), 50)),
        asked.replace(b"cam", b"\xff\xfe\xfd"),
        failure.replace(b"reason", b"\xff\xfe\xfd\xfc\xfb\xfa"),
        bytes([failure[0] + 1]) + failure[1:] + b"\xa3odd" + b"\x91" * 200_000 + b"\xc0",
        bytes([asked[0] + 1]) + asked[1:] + b"\xa3odd" + b"\x91" * 200_000 + b"\xc0",
        b"\xdd\xff\xff\xff\xff",
        b"",
    ]


def test_random_bytes_on_the_request_socket_are_ignored(hire: Hire) -> None:
    """Text that is no UTF-8 once ended the thread that takes requests, and with it every later answer."""
    desk = hire()
    socket = desk.link._requests
    assert socket is not None
    for blob in noise():
        socket.send(blob)
        desk.worker.poll()
    desk.until(lambda: desk.link.submit(request(1)))  # once there is room in the queue again
    assert isinstance(desk.next_answer(), Plan)
    desk.until(lambda: desk.worker.notices)
    assert all("no request was ignored" in notice for notice in desk.worker.notices)


def test_random_bytes_for_the_agent_are_failures_of_whatever_is_running(hire: Hire) -> None:
    desk = hire()
    assert desk.job is not None
    blobs = noise()
    with desk.context.socket(zmq.PUSH) as intruder:
        intruder.linger = 0
        intruder.connect(desk.job.answers)
        sent = got = 0
        while got < len(blobs):
            while sent < len(blobs) and intruder.poll(0, zmq.POLLOUT):
                intruder.send(blobs[sent])
                sent += 1
            for answer in desk.link.collect(1.0):
                assert isinstance(answer, PlanFailure)
                assert answer.request_id == 0
                assert "no answer" in answer.reason
                got += 1
    assert desk.link.submit(request(1))
    assert isinstance(desk.next_answer(), Plan)


def test_an_agents_message_sent_back_is_no_answer(hire: Hire) -> None:
    desk = hire()
    assert desk.job is not None
    with desk.context.socket(zmq.PUSH) as intruder:
        intruder.connect(desk.job.answers)
        intruder.send(msgspec.msgpack.encode(Abort(1)))
        answer = desk.next_answer()
    assert isinstance(answer, PlanFailure) and answer.request_id == 0


def test_rationale_updates_come_through_as_such(hire: Hire) -> None:
    desk = hire()
    assert desk.job is not None
    update = PlanUpdate(stream_id="cam", session_id="s", request_id=1, seq=4, text="because", final=True)
    with desk.context.socket(zmq.PUSH) as other:
        other.connect(desk.job.answers)
        other.send(msgspec.msgpack.encode(update))
        assert desk.next_answer() == update


def test_a_link_without_a_worker_takes_nothing_and_never_blocks(short_path: Path) -> None:
    context: Context = zmq.Context()
    link = WorkerLink(context, lambda name: f"ipc://{short_path}/{name}")
    assert not link.submit(request(1))
    assert not link.connected
    assert list(link.collect()) == []
    link.job("{}", ACTIONS)
    assert not link.connected
    assert not link.submit(request(1)), "nobody has connected"
    link.abort(1)
    link.close()
    link.close()
    context.term()


def test_a_worker_that_stands_still_fills_the_queue_and_then_takes_no_more(hire: Hire) -> None:
    desk = hire()
    pid = desk.worker.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    padded = msgspec.structs.replace(request(1), goal="x" * 1_000_000)
    began_s = time.monotonic()
    assert not all(desk.link.submit(padded) for _ in range(100))
    assert time.monotonic() - began_s < 5


def test_a_planner_with_a_bug_ends_its_worker(hire: Hire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that is none of ours once left the process waiting for its own sockets: alive, ready and deaf."""
    (tmp_path / "planner_with_a_bug.py").write_text(
        "from stream_agent.planner import scripted, worker\n"
        "async def plan(self, request):\n"
        "    raise ZeroDivisionError('a bug')\n"
        "scripted.ScriptedPlanner.plan = plan\n"
        "raise SystemExit(worker.main())\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    desk = hire(module="planner_with_a_bug")
    desk.link.submit(request(1))
    desk.until(lambda: desk.worker.restarts == 1, 5.0)
    assert "planner worker ended by exit code 1; starting it again" in desk.worker.notices
