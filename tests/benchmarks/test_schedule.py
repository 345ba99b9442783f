from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from benchmarks import carriers
from benchmarks.carriers import Arrival, Place
from benchmarks.pair import Collect, Consume, Pair, opened
from benchmarks.schedule import NS_PER_S, Schedule, charged_from_ns

MS = 1_000_000


def test_frames_are_due_at_whole_intervals_from_the_start_and_never_from_the_last_send() -> None:
    schedule = Schedule(1000 * MS, 0.010)
    assert [schedule.following(now * MS) for now in (990, 1001, 1012)] == [
        (0, 1000 * MS),
        (1, 1010 * MS),
        (2, 1020 * MS),
    ]


def test_frames_that_fall_due_while_the_sender_is_held_up_are_lost_and_the_newest_is_sent_late() -> None:
    schedule = Schedule(1000 * MS, 0.010)
    schedule.following(1000 * MS)
    assert schedule.following(1057 * MS) == (5, 1050 * MS)
    assert schedule.following(1058 * MS) == (6, 1060 * MS)


def test_latency_counts_from_when_a_frame_was_due_if_the_sender_was_held_up() -> None:
    # Decided 7 ms after its time; writing the picture took 2 ms, which is the camera's.
    assert charged_from_ns(due_ns=1050 * MS, decided_ns=1057 * MS, sent_ns=1059 * MS) == 1052 * MS
    # In time: a timer that wakes late is the machine's.
    assert charged_from_ns(due_ns=1050 * MS, decided_ns=1041 * MS, sent_ns=1051 * MS) == 1051 * MS


def test_seconds_have_a_billion_nanoseconds() -> None:
    assert NS_PER_S == 10**9


@pytest.fixture(scope="module")
def floor() -> Iterator[dict[str, Pair]]:
    """Real processes around the smallest carriers."""
    with opened(["floor_8_bytes", "memcpy"], "480p") as (pairs, failed):
        assert not failed
        yield pairs


def test_every_frame_is_received_once_and_measured_from_its_send(floor: dict[str, Pair]) -> None:
    done = floor["floor_8_bytes"].run(0.005, Collect(skip=2, count=20, patience_s=5.0))
    assert len(done.latencies_ms) == 20 == len(done.seen_s)
    assert done.due >= 20
    assert all(0 < latency < 1000 for latency in done.latencies_ms)
    assert done.seen_s == sorted(done.seen_s)


def test_rounds_follow_one_another_without_frames_of_the_last_one(floor: dict[str, Pair]) -> None:
    for _ in range(2):
        done = floor["floor_8_bytes"].run(0.005, Collect(skip=1, count=5, patience_s=5.0))
        assert len(done.latencies_ms) == 5


def test_memcpy_is_the_call_itself(floor: dict[str, Pair]) -> None:
    done = floor["memcpy"].run(0.005, Collect(skip=1, count=5, patience_s=5.0))
    assert done.latencies_ms == done.sending_ms


def test_a_bursty_consumer_rests_after_each_burst_and_not_after_each_frame(floor: dict[str, Pair]) -> None:
    done = floor["floor_8_bytes"].run(0.005, Consume(seconds=0.6, work_s=0.25, jitter_s=0.0, burst=5))
    steps = [after - before for before, after in pairwise(done.seen_s)]
    assert sum(step > 0.2 for step in steps) <= len(done.seen_s) // 5
    assert len(done.seen_s) >= 10


class _Slow:
    """A sender that holds the camera up for 40 ms a frame."""

    address = ""

    def __init__(self, place: Place) -> None:
        self.sent: list[int] = []

    def prepare(self, seq: int) -> None:
        pass

    def send(self, seq: int) -> None:
        time.sleep(0.04)
        self.sent.append(seq)

    def close(self) -> None:
        pass


def test_a_sender_that_is_held_up_is_charged_for_it_and_loses_what_it_could_not_send(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """The loop itself, in a thread: 40 ms per send at 100 frames a second sends one frame in four, each late."""
    from multiprocessing import Pipe

    from benchmarks import pair

    monkeypatch.setitem(carriers._SENDING, "slow", _Slow)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(os, "_exit", lambda _: None)
    ours, theirs = Pipe()
    place = Place(tmp_path, 64, 64, tmp_path / "none.npy")
    thread = threading.Thread(target=pair._sending_process, args=("slow", place, theirs))
    thread.start()
    assert ours.recv() == ("open", "")
    ours.send((1, 0.010, False))
    time.sleep(0.5)
    ours.send("stop")
    kind, calls = ours.recv()
    ours.close()
    thread.join(5.0)
    assert kind == "calls"
    gaps = [after[0] - before[0] for before, after in pairwise(calls)]
    assert all(gap >= 3 for gap in gaps)
    assert all(before - charged >= 0 for _, charged, before, _ in calls)
    assert Arrival(1, 2).seq == 2
