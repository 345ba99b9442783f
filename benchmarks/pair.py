"""A sending and a receiving process around one carrier, both open for the whole benchmark and idle between rounds.

The sending end keeps its frame rate whatever the receiver does (open loop, schedule.py): when a frame is due its picture is
written and it is sent at once, as with a camera; or, as with a file played at its own pace, the picture is written first and
waits until it is due (`waits`). Latency counts from when a frame was due if the method held the sender up. Times are
`CLOCK_MONOTONIC` of one host, so one-way latencies are differences. Between rounds the sender is silent and the receiver empties
what is queued. The processes are forked from one that has loaded all that they share, which saves half a second for each.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import numpy as np

from benchmarks.carriers import METHODS, Place, ReceivingEnd, open_receiving, open_sending
from benchmarks.report import not_installed
from benchmarks.schedule import NS_PER_S, Schedule, charged_from_ns
from stream_agent.source.protocol import Planes
from stream_agent.source.scene import Moment, Scene

__all__ = ["METHODS", "Pair", "Round", "opened", "sizes"]

sizes = {"480p": (854, 480), "1080p": (1920, 1080), "2160p": (3840, 2160)}
"""Case → width and height."""

_POLL_S = 0.05
_OPEN_S = 30.0

_Call: TypeAlias = tuple[int, int, int, int]
"""Number of a frame, what its latency counts from, when its send call began and ended, in ns."""


def _context() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.carriers"])
    return context


@dataclass(frozen=True, slots=True)
class Collect:
    """Take `count` frames after `skip` unmeasured ones, each as soon as there is one."""

    skip: int
    count: int
    patience_s: float


@dataclass(frozen=True, slots=True)
class Consume:
    """Take `burst` frames, work for `work_s` and up to `jitter_s` more, and so on for `seconds`; before that nothing for `stall_s`.

    The jitter is one frame interval: 200 ms are 12 intervals of 60 fps exactly, and without it every look would meet the
    publisher at the same phase.
    """

    seconds: float
    work_s: float
    jitter_s: float
    stall_s: float = 0.0
    burst: int = 1


@dataclass(frozen=True, slots=True)
class Round:
    """One round of one carrier.

    Attributes:
        latencies_ms: Send call, or when it was due if the sender was held up → array in the other process, per frame received;
            for `memcpy` the call itself.
        sending_ms: How long each send call kept the sender.
        due: Frames that were due while the receiver was measuring, sent or not.
        seen_s: When each arrived, from the first.
    """

    latencies_ms: list[float]
    sending_ms: list[float]
    due: int
    seen_s: list[float]

    @property
    def p50_ms(self) -> float:
        """Median latency; NaN when nothing arrived."""
        return median(self.latencies_ms) if self.latencies_ms else float("nan")


class Pair:
    """The two processes of one carrier."""

    def __init__(self, method: str, place: Place) -> None:
        self.method = method
        self._place = place  # keeps the queue's semaphores alive until both processes have them
        self._seq = 1
        context = _context()
        self._sender, theirs = context.Pipe()
        self._processes = [context.Process(target=_sending_process, args=(method, place, theirs), daemon=True)]
        self._receiver, theirs = context.Pipe()
        self._processes.append(context.Process(target=_receiving_process, args=(method, place, theirs), daemon=True))
        for process in self._processes:
            process.start()

    def open(self) -> str:
        """Wait until both ends are open; empty, or why not."""
        kind, content = _heard(self._sender, _OPEN_S)
        if kind != "open":
            return str(content)
        self._receiver.send(content)
        kind, content = _heard(self._receiver, _OPEN_S)
        return "" if kind == "open" else str(content)

    def run(self, interval_s: float, task: Collect | Consume, *, waits: bool = False) -> Round:
        """Send at a fixed rate while the receiver does its task."""
        if self.method == "memcpy":
            assert isinstance(task, Collect)
            self._sender.send((self._seq, interval_s, waits))
            time.sleep((task.skip + task.count) * interval_s)
            calls = self._stop_sending()[task.skip :]
            copies_ms = [(after - before) / 1e6 for _, _, before, after in calls]
            return Round(copies_ms, copies_ms, len(copies_ms), [])
        self._receiver.send(task)
        self._sender.send((self._seq, interval_s, waits))
        arrivals: list[tuple[int, int]] = _heard(self._receiver, 120.0)[1]
        calls = self._stop_sending()
        self._receiver.send("halt")
        _heard(self._receiver, 60.0)
        sent_ns = {seq: charged for seq, charged, _, _ in calls}
        known = [(seen_ns, seq) for seen_ns, seq in arrivals if seq in sent_ns]
        first, last = (min(seq for _, seq in known), max(seq for _, seq in known)) if known else (0, -1)
        return Round(
            [(seen_ns - sent_ns[seq]) / 1e6 for seen_ns, seq in known],
            [(after - before) / 1e6 for seq, _, before, after in calls if first <= seq <= last],
            last - first + 1,
            [(seen_ns - known[0][0]) / NS_PER_S for seen_ns, _ in known],
        )

    def _stop_sending(self) -> list[_Call]:
        self._sender.send("stop")
        calls: list[_Call] = _heard(self._sender, 60.0)[1]
        self._seq = calls[-1][0] + 1 if calls else self._seq
        return calls

    def close(self) -> None:
        """End both processes, by force if a library does not let go."""
        for pipe in (self._sender, self._receiver):
            pipe.close()
        for process in self._processes:
            process.join(2.0)
            if process.is_alive():
                process.kill()
                process.join()


@contextmanager
def opened(methods: Sequence[str], case: str) -> Iterator[tuple[dict[str, Pair], dict[str, str]]]:
    """The pairs of these methods for one size, and why others could not be opened."""
    width, height = sizes[case]
    context = _context()
    pairs: dict[str, Pair] = {}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="sa") as folder:
        picture = Path(folder, "picture.npy")
        np.save(picture, _drawn(width, height))
        try:
            for method in methods:
                own = Path(folder, method)
                own.mkdir(mode=0o700)
                queue: Any = context.Queue() if method == "mp_queue" else None
                pairs[method] = Pair(method, Place(own, width, height, picture, queue))
            for method, pair in list(pairs.items()):
                reason = pair.open()
                if reason:
                    failed[method] = reason
                    pairs.pop(method).close()
            yield pairs, failed
        finally:
            for pair in pairs.values():
                pair.close()


def _drawn(width: int, height: int) -> Planes:
    """A picture as the synthetic source draws it: JPEG has something to do, and not noise."""
    planes = np.empty((height * 3 // 2, width), np.uint8)
    scene = Scene(width, height, seed=7, instruments=("grasper", "hook"))
    scene.draw(planes, Moment(time_s=3.0, instruments=("grasper", "hook"), since_s=3.0))
    return planes


def _heard(pipe: Connection, timeout_s: float) -> tuple[str, Any]:
    if not pipe.poll(timeout_s):
        return "failed", f"no answer within {timeout_s:.0f} s"
    try:
        heard: tuple[str, Any] = pipe.recv()
    except EOFError:
        return "failed", "its process ended"
    if heard[0] == "broken":
        raise RuntimeError(heard[1])
    return heard


def _sending_process(method: str, place: Place, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        end = open_sending(method, place)
    except Exception as error:
        pipe.send(("failed", _reason(error, method)))
        return
    pipe.send(("open", end.address))
    try:
        while True:
            base, interval_s, waits = pipe.recv()
            calls: list[_Call] = []
            schedule = Schedule(time.monotonic_ns() + round(interval_s * NS_PER_S), interval_s)
            while not pipe.poll():
                decided_ns = time.monotonic_ns()
                index, due_ns = schedule.following(decided_ns)
                seq = base + index
                if waits:
                    end.prepare(seq)
                wait_ns = due_ns - time.monotonic_ns()
                if wait_ns > 0:
                    time.sleep(wait_ns / NS_PER_S)
                if not waits:
                    end.prepare(seq)
                before_ns = time.monotonic_ns()
                end.send(seq)
                after_ns = time.monotonic_ns()
                charged_ns = charged_from_ns(due_ns=due_ns, decided_ns=decided_ns, sent_ns=before_ns)
                calls.append((seq, charged_ns, before_ns, after_ns))
            pipe.recv()
            pipe.send(("calls", calls))
    except (EOFError, BrokenPipeError):
        end.close()
    except Exception as error:
        pipe.send(("broken", f"{method}, sending: {_reason(error, method)}"))
    os._exit(0)  # some libraries' threads do not end by themselves


def _receiving_process(method: str, place: Place, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        end = open_receiving(method, place, pipe.recv())
    except EOFError:
        return  # the sending end could not be opened
    except Exception as error:
        pipe.send(("failed", _reason(error, method)))
        return
    pipe.send(("open", ""))
    random = np.random.default_rng(1)
    try:
        while True:
            task = pipe.recv()
            arrivals: list[tuple[int, int]] = []
            if isinstance(task, Collect):
                until_s = time.monotonic() + task.patience_s
                while len(arrivals) < task.skip + task.count and time.monotonic() < until_s:
                    arrival = end.receive(_POLL_S)
                    if arrival is not None:
                        arrivals.append((arrival.seen_ns, arrival.seq))
                pipe.send(("arrivals", arrivals[task.skip :]))
            else:
                _skip_the_first(end)
                time.sleep(task.stall_s)
                until_s = time.monotonic() + task.seconds
                while time.monotonic() < until_s:
                    arrival = end.receive(_POLL_S)
                    if arrival is not None:
                        arrivals.append((arrival.seen_ns, arrival.seq))
                        if len(arrivals) % task.burst == 0:
                            time.sleep(task.work_s + random.uniform(0, task.jitter_s))
                pipe.send(("arrivals", arrivals))
            while end.receive(_POLL_S) is not None or not pipe.poll():
                pass
            pipe.recv()
            pipe.send(("empty", None))
    except (EOFError, BrokenPipeError):
        end.close()
    except Exception as error:
        pipe.send(("broken", f"{method}, receiving: {_reason(error, method)}"))
    os._exit(0)


def _skip_the_first(end: ReceivingEnd) -> None:
    """Take frames as they come for a moment: connected, and past the first, which every method is slow with."""
    until_s = time.monotonic() + 0.7
    while time.monotonic() < until_s:
        end.receive(_POLL_S)


def _reason(error: Exception, method: str) -> str:
    if isinstance(error, ImportError):
        return not_installed(error, method)
    return f"{type(error).__name__}: {str(error)[:200]}"
