from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from stream_agent.errors import ConfigError
from stream_agent.messages import Plan
from stream_agent.sinks import jsonl
from stream_agent.sinks.jsonl import JsonlSink
from stream_agent.telemetry import Telemetry

MakePlan = Callable[..., Plan]


def plans_in(path: Path) -> list[Plan]:
    return [msgspec.json.decode(line, type=Plan) for line in path.read_bytes().splitlines()]


@pytest.mark.parametrize("lossless", [False, True])
def test_every_plan_is_one_line_in_order(tmp_path: Path, make_plan: MakePlan, lossless: bool) -> None:
    path, telemetry = tmp_path / "plans.jsonl", Telemetry()
    sink = JsonlSink(path, lossless=lossless, telemetry=telemetry)
    plans = [make_plan(seq=seq) for seq in range(300)]
    for plan in plans:
        sink.write(plan)
    sink.close()
    assert plans_in(path) == plans
    assert sink.problem == ""
    assert "sinks" not in telemetry.summary()


def test_a_line_is_in_the_file_before_the_sink_is_closed(tmp_path: Path, make_plan: MakePlan) -> None:
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    sink = JsonlSink(fifo, lossless=False, telemetry=Telemetry())
    os.set_blocking(reader, True)
    sink.write(make_plan())
    assert os.read(reader, 1 << 16).endswith(b"\n")
    sink.close()
    os.close(reader)


def test_a_new_run_replaces_the_file(tmp_path: Path, make_plan: MakePlan) -> None:
    path = tmp_path / "plans.jsonl"
    for seq in (1, 2):
        sink = JsonlSink(path, lossless=True, telemetry=Telemetry())
        sink.write(make_plan(seq=seq))
        sink.close()
    assert [plan.seq for plan in plans_in(path)] == [2]


def test_a_full_disk_is_told_once_and_every_lost_line_counted(make_plan: MakePlan) -> None:
    telemetry = Telemetry()
    sink = JsonlSink(Path("/dev/full"), lossless=True, telemetry=telemetry)
    for seq in range(200):
        sink.write(make_plan(seq=seq))
    sink.close()
    assert "No space left on device" in sink.problem
    assert "free some space" in sink.problem
    assert telemetry.summary()["sinks"] == {"degraded": {"jsonl": 1}, "dropped": {"jsonl_write_failed": 200}}


def test_a_line_that_does_not_fit_leaves_no_garbage_and_later_lines_follow(
    tmp_path: Path, make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, telemetry = tmp_path / "plans.jsonl", Telemetry()
    real_write, room = os.write, [0]

    def write(file: int, data: bytes) -> int:
        if room[0] == 0:
            raise OSError(28, "No space left on device")
        written = real_write(file, data[: room[0]])
        room[0] -= written
        return written

    monkeypatch.setattr(os, "write", write)
    sink = JsonlSink(path, lossless=True, telemetry=telemetry)
    line = len(msgspec.json.encode(make_plan())) + 1
    room[0] = line + 50  # one line and a part of the next
    sink.write(make_plan())
    sink.write(make_plan())
    while not sink.problem:
        threading.Event().wait(0.001)
    assert plans_in(path) == [make_plan()]
    room[0] = 1 << 20  # space was freed
    sink.write(make_plan(seq=9))
    sink.close()
    assert [plan.seq for plan in plans_in(path)] == [make_plan().seq, 9]
    assert sink.problem == ""
    assert telemetry.summary()["sinks"]["dropped"] == {"jsonl_write_failed": 1}


def test_in_real_time_a_stuck_disk_drops_lines_and_does_not_hold_up_the_agent(
    tmp_path: Path, make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "_CLOSE_S", 0.05)
    fifo, telemetry = tmp_path / "pipe", Telemetry()
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)  # never reads
    sink = JsonlSink(fifo, lossless=False, telemetry=telemetry)
    for seq in range(3000):
        sink.write(make_plan(seq=seq))
    assert telemetry.summary()["sinks"]["dropped"]["jsonl_queue_full"] > 1000
    sink.close()
    assert "does not take writes" in sink.problem
    os.close(reader)


def test_a_file_that_cannot_be_opened_stops_the_start_with_a_remedy(tmp_path: Path) -> None:
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    for path, why in {
        tmp_path / "none" / "plans.jsonl": "does not exist; make it",
        tmp_path: "it is a directory; name a file in it",
        fifo: "a pipe that nobody reads",
    }.items():
        with pytest.raises(ConfigError, match=why):
            JsonlSink(path, lossless=False, telemetry=Telemetry())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_file_in_a_locked_directory_stops_the_start(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="you may not write there"):
        JsonlSink(tmp_path / "plans.jsonl", lossless=False, telemetry=Telemetry())
