"""The child's half of a worker process: its job and lifeline come in on stdin, its reports go out on stdout.

stdin carries one line of JSON, the job, then single credit bytes (lockstep only). Its end means the parent is gone, and
so is our reason to live. stdout carries one JSON report per line; whatever else prints goes to stderr instead.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import TypeAlias

import msgspec

BEAT_S = 0.2
_GRACE_S = 0.5
_PR_SET_PDEATHSIG = 1


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The child has opened what it needs and works."""


class Beat(msgspec.Struct, frozen=True, tag=True):
    """The child lives; `state` is `ok` or what is wrong in a few words."""

    state: str


class Notice(msgspec.Struct, frozen=True, tag=True):
    """One line for the user."""

    text: str


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The child gives up for a reason that a restart cannot mend; `exit_code` is the command line's."""

    message: str
    exit_code: int


Report: TypeAlias = Ready | Beat | Notice | Failed
_encoder = msgspec.json.Encoder()
report_decoder = msgspec.json.Decoder(Report)


class ChildSide:
    """Signals, lifeline, heartbeat and reports of this process; make one first thing in `main`."""

    def __init__(self) -> None:
        die_with_parent()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled once, by the parent
        self.stop = threading.Event()
        # By a thread: the signal may find this one inside the event's own lock, and waiting for that would never end.
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=self.stop.set, daemon=True).start())
        self._out = os.dup(1)
        os.dup2(2, 1)
        os.write(self._out, b"\n")  # ends what a library may have printed while it was imported
        os.set_blocking(self._out, False)
        self.state = "starting"
        self._job, early = _read_job()
        self._credit = threading.Semaphore(early)
        threading.Thread(target=self._watch_lifeline, name="lifeline", daemon=True).start()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    @property
    def job(self) -> bytes:
        """The job as the parent wrote it, one line of JSON."""
        return self._job

    def ready(self) -> None:
        """Tell the parent that the work begins."""
        self.state = "ok"
        self._report(Ready())

    def notice(self, text: str) -> None:
        """Tell the user one line, through the parent."""
        self._report(Notice(text))

    def failed(self, message: str, exit_code: int) -> None:
        """Tell the parent why this child ends for good."""
        self._report(Failed(message, exit_code))

    def stopped(self) -> bool:
        """Whether to end: SIGTERM came, or the parent is gone."""
        return self.stop.is_set()

    def take_credit(self) -> bool:
        """Wait for the parent's leave to send one more frame; False when told to stop."""
        while not self.stop.is_set():
            if self._credit.acquire(timeout=0.1):
                return True
        return False

    def _report(self, report: Report) -> None:
        try:
            os.write(self._out, _encoder.encode(report) + b"\n")
        except OSError:
            pass  # the parent is gone or hangs; the lifeline decides, and work goes on meanwhile

    def _beat(self) -> None:
        while not self.stop.wait(BEAT_S):
            self._report(Beat(self.state))

    def _watch_lifeline(self) -> None:
        while granted := os.read(0, 4096):
            self._credit.release(len(granted))
        self.stop.set()
        threading.Timer(_GRACE_S, _exit_now).start()


def _read_job() -> tuple[bytes, int]:
    """The job line, and how many credits came with it; read without a buffer that would swallow them."""
    data = b""
    while b"\n" not in data and (chunk := os.read(0, 65536)):
        data += chunk
    job, _, granted = data.partition(b"\n")
    return job, len(granted)


def _exit_now() -> None:
    """End even if the main thread is stuck in a decoder or a driver."""
    os._exit(1)


def die_with_parent() -> None:
    """Have the kernel kill us when the parent dies, even while we are stopped or stuck (Linux)."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    prctl: Callable[..., int] = ctypes.CDLL(None, use_errno=True).prctl
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        _exit_now()
