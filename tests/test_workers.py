from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from stream_agent import workers
from stream_agent.workers import Worker, child_environment, stop_all

HERE = Path(__file__).parent

Hire = Callable[..., Worker]


@pytest.fixture
def hire(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hire]:
    """Makes workers that are told what to do; none outlives the test."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    made: list[Worker] = []

    def make(*jobs: str, name: str = "pupil", module: str = "told_child", **options: float) -> Worker:
        """A worker that gets `jobs` one after the other, the last for ever."""
        left = list(jobs)
        worker = Worker(
            name,
            module,
            lambda: (left.pop(0) if len(left) > 1 else left[0]).encode(),
            **options,  # type: ignore[arg-type]
        )
        made.append(worker)
        return worker

    yield make
    for worker in made:
        worker.stop(0.0)


def polled(worker: Worker) -> Worker:
    worker.poll()
    return worker


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def pid_of(worker: Worker) -> int:
    assert worker.pid is not None
    return worker.pid


def test_a_worker_is_ready_when_it_says_so_and_ends_when_told(hire: Hire, eventually: Callable[..., None]) -> None:
    worker = hire("work")
    assert (worker.ready, worker.finished, worker.health()) == (False, True, "stopped")
    worker.start()
    assert (worker.ready, worker.finished, worker.health()) == (False, False, "starting")
    eventually(lambda: polled(worker).ready)
    assert worker.health() == "ok"
    pid = pid_of(worker)
    began_s = time.monotonic()
    worker.stop()
    assert time.monotonic() - began_s < 0.9, "not by force"
    assert not alive(pid)
    assert (worker.finished, worker.health(), list(worker.notices)) == (True, "stopped", [])
    worker.poll()
    worker.give_credit(3)
    worker.kill()
    assert worker.finished and worker.pid is None


def test_a_worker_that_ends_well_is_not_started_again(hire: Hire, eventually: Callable[..., None]) -> None:
    worker = hire("end")
    worker.start()
    eventually(lambda: polled(worker).finished)
    worker.poll()
    assert (worker.health(), worker.restarts, worker.failure) == ("stopped", 0, None)


def test_a_crashed_worker_is_started_again_with_a_new_job(hire: Hire, eventually: Callable[..., None]) -> None:
    worker = hire("crash", "work")
    worker.start()
    eventually(lambda: polled(worker).restarts == 1)
    assert worker.health() == "starting"
    eventually(lambda: polled(worker).ready)
    assert list(worker.notices) == ["pupil ended by exit code 13; starting it again"]


def test_a_killed_worker_is_named_and_started_again(hire: Hire, eventually: Callable[..., None]) -> None:
    worker = hire("work")
    worker.start()
    eventually(lambda: polled(worker).ready)
    first = pid_of(worker)
    os.kill(first, signal.SIGKILL)
    eventually(lambda: not polled(worker).ready, 1.0)
    assert worker.health() in ("restarting after signal 9", "starting")
    eventually(lambda: polled(worker).ready)
    assert worker.pid != first
    assert list(worker.notices) == ["pupil ended by signal 9; starting it again"]


def test_a_worker_that_keeps_crashing_fails_loudly(hire: Hire, eventually: Callable[..., None]) -> None:
    worker = hire("crash-at-once", restarts_per_minute=2)
    worker.start()
    eventually(lambda: polled(worker).finished)
    assert worker.restarts == 2
    assert worker.failure is not None
    assert worker.failure.exit_code != 0
    assert worker.failure.message.startswith("pupil ended 3 times within a minute, last by exit code 13")
    assert worker.health().startswith("failed: pupil ended 3 times")
    assert not worker.ready
    worker.poll()
    assert worker.restarts == 2
    worker.stop()
    assert worker.health().startswith("failed")


def test_a_failure_that_no_restart_can_mend_is_final(hire: Hire, eventually: Callable[..., None]) -> None:
    worker = hire("fail")
    worker.start()
    eventually(lambda: polled(worker).finished)
    assert worker.restarts == 0
    assert worker.failure is not None
    assert (worker.failure.message, worker.failure.exit_code) == ("there is no such camera", 3)
    assert worker.health() == "failed: there is no such camera"


def test_a_worker_that_is_never_ready_is_killed_and_started_again(hire: Hire, eventually: Callable[..., None]) -> None:
    worker = hire("never-ready", "work", ready_timeout_s=0.6)
    worker.start()
    assert worker.health() == "starting"
    eventually(lambda: polled(worker).restarts == 1)
    assert any("not ready after" in notice for notice in worker.notices)


def test_a_worker_that_stands_still_is_degraded_within_a_second_then_killed(
    hire: Hire, eventually: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_HUNG_S", 1.2)
    worker = hire("work")
    worker.start()
    eventually(lambda: polled(worker).ready)
    first = pid_of(worker)
    os.kill(first, signal.SIGSTOP)
    eventually(lambda: polled(worker).health().startswith("no sign of life for"), 1.0)
    assert worker.ready, "not given up yet"
    eventually(lambda: polled(worker).restarts == 1)
    assert not alive(first)
    assert "pupil gave no sign of life for 1 s; killed" in worker.notices
    eventually(lambda: polled(worker).ready)


def test_a_worker_that_goes_on_in_time_is_well_again(hire: Hire, eventually: Callable[..., None]) -> None:
    worker = hire("work", stall_s=0.4)
    worker.start()
    eventually(lambda: polled(worker).ready)
    first = pid_of(worker)
    os.kill(first, signal.SIGSTOP)
    eventually(lambda: polled(worker).health() != "ok", 1.0)
    os.kill(first, signal.SIGCONT)
    eventually(lambda: polled(worker).health() == "ok")
    assert (worker.pid, worker.restarts) == (first, 0)


def test_a_worker_tells_its_own_state(hire: Hire, eventually: Callable[..., None]) -> None:
    worker = hire("ill reconnecting: the camera is gone")
    worker.start()
    eventually(lambda: polled(worker).health() == "reconnecting: the camera is gone")
    assert worker.ready


def test_stopping_by_force_is_told_and_names_the_worker(hire: Hire, eventually: Callable[..., None]) -> None:
    worker = hire("deaf", name="stubborn one")
    worker.start()
    eventually(lambda: polled(worker).ready)
    pid = pid_of(worker)
    began_s = time.monotonic()
    worker.stop(0.3)
    assert 0.3 <= time.monotonic() - began_s < 0.8
    assert not alive(pid)
    assert list(worker.notices) == ["stubborn one did not stop within 0.3 s; killed"]


def test_a_worker_that_stands_still_can_be_stopped(hire: Hire, eventually: Callable[..., None]) -> None:
    worker = hire("work")
    worker.start()
    eventually(lambda: polled(worker).ready)
    pid = pid_of(worker)
    os.kill(pid, signal.SIGSTOP)
    worker.stop(0.2)
    assert not alive(pid)
    assert worker.finished


def test_a_worker_stopped_between_two_lives_does_not_come_back(hire: Hire, eventually: Callable[..., None]) -> None:
    worker = hire("crash-at-once")
    worker.start()
    eventually(lambda: polled(worker).restarts == 1)  # the next one follows after a pause
    eventually(lambda: polled(worker).pid is None)
    worker.stop()
    worker.poll()
    assert (worker.finished, worker.pid) == (True, None)


def test_workers_stop_in_the_given_order(hire: Hire, eventually: Callable[..., None]) -> None:
    first, second = hire("work"), hire("work")
    for worker in (first, second):
        worker.start()
        eventually(lambda: polled(worker).ready)  # noqa: B023
    stop_all([first, second])
    assert first.finished and second.finished


def test_nothing_but_reports_on_the_pipe_is_taken_for_one(hire: Hire, eventually: Callable[..., None]) -> None:
    """A line that was JSON but no UTF-8, or nested too deep, once ended the agent."""
    worker = hire("stray")
    worker.start()
    eventually(lambda: polled(worker).ready)
    assert (list(worker.notices), worker.failure, worker.health()) == ([], None, "ok")


def test_lines_for_the_user_come_through(hire: Hire, eventually: Callable[..., None]) -> None:
    worker = hire("notice 3 packets were damaged")
    worker.start()
    eventually(lambda: polled(worker).notices)
    assert list(worker.notices) == ["3 packets were damaged"]


def test_a_job_larger_than_the_pipe_arrives_whole(hire: Hire, eventually: Callable[..., None]) -> None:
    worker = hire("measure " + "x" * 300_000)
    worker.start()
    eventually(lambda: polled(worker).notices)
    assert list(worker.notices) == ["300000"]


def test_a_child_that_is_gone_before_its_job_is_read_is_seen(hire: Hire, eventually: Callable[..., None]) -> None:
    worker = hire("x" * 300_000, module="no_such_module_anywhere", restarts_per_minute=0)
    worker.start()
    eventually(lambda: polled(worker).finished)
    assert worker.failure is not None
    assert "exit code 1" in worker.failure.message


def test_each_credit_is_good_for_one_frame(hire: Hire, eventually: Callable[..., None]) -> None:
    worker = hire("credit")
    worker.start()
    worker.give_credit(2)  # may arrive together with the job
    eventually(lambda: len(polled(worker).notices) == 2)
    worker.give_credit(3)
    eventually(lambda: len(polled(worker).notices) == 5)
    worker.stop()
    assert list(worker.notices) == ["one frame"] * 5


def test_ctrl_c_is_left_to_the_parent(hire: Hire, eventually: Callable[..., None]) -> None:
    worker = hire("credit")
    worker.start()
    eventually(lambda: polled(worker).ready)
    os.kill(pid_of(worker), signal.SIGINT)
    worker.give_credit(1)
    eventually(lambda: polled(worker).notices)
    assert worker.ready


PARENT = """
import sys, time
from stream_agent.workers import Worker
worker = Worker("pupil", "told_child", lambda: sys.argv[1].encode())
worker.start()
while not worker.ready:
    worker.poll()
    time.sleep(0.005)
print(worker.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(("behaviour", "stand_still"), [("work", False), ("deaf", False), ("deaf", True)])
def test_no_child_outlives_a_killed_parent(
    behaviour: str, stand_still: bool, eventually: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, behaviour],
        env=child_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert alive(child)
    if stand_still:
        os.kill(child, signal.SIGSTOP)
    parent.kill()
    parent.communicate(timeout=5)
    eventually(lambda: not alive(child), 3.0)


def test_children_leave_no_descriptors(hire: Hire, eventually: Callable[..., None]) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for job in ("work", "end", "fail", "crash-at-once"):
        worker = hire(job, restarts_per_minute=1)
        worker.start()
        eventually(lambda: polled(worker).ready or worker.finished)  # noqa: B023
        worker.stop()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
