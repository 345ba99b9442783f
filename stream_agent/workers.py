"""Child processes from the parent's side: spawn, ready, heartbeat, restart, stop.

A life: starting → ready ⇄ degraded → stopped, or failed when restarts are used up or cannot help. `poll` never blocks;
the agent calls it between frames.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from stream_agent.child import Beat, Failed, Notice, Ready, report_decoder
from stream_agent.errors import UNDECODABLE, WorkerError

_HUNG_S = 4.0
_BACKOFF_S = (0.0, 0.25, 1.0, 2.0)
_MINUTE_S = 60.0


class Worker:
    """One supervised child process.

    Attributes:
        name: As shown to the user.
        restarts: How often it was started again.
        notices: Lines from the child for the user; the caller takes them out.
    """

    def __init__(
        self,
        name: str,
        module: str,
        job: Callable[[], bytes],
        *,
        restarts_per_minute: int = 3,
        ready_timeout_s: float = 60.0,
        stall_s: float = 0.7,
    ) -> None:
        """Prepare it; `job` is asked anew at each start, so that a restart can resume."""
        self.name = name
        self._command = [sys.executable, "-m", module]
        self._job = job
        self._restarts_per_minute = restarts_per_minute
        self._ready_timeout_s = ready_timeout_s
        self._stall_s = stall_s
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        self._started_s = 0.0
        self._heard_s = 0.0
        self._state = "stopped"
        self._child_state = "ok"
        self._failure: Failed | None = None
        self._starts: deque[float] = deque()
        self._start_again_s: float | None = None
        self.restarts = 0
        self.notices: deque[str] = deque(maxlen=100)

    @property
    def ready(self) -> bool:
        """Whether it has said ready and is still running."""
        return self._state == "ready"

    @property
    def finished(self) -> bool:
        """Whether it has ended and will not be started again."""
        return self._state in ("stopped", "failed")

    @property
    def failure(self) -> Failed | None:
        """Why it failed for good, if it did."""
        return self._failure

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return self._process.pid if self._process is not None else None

    def health(self) -> str:
        """`ok`, or what is wrong in a few words."""
        if self._state == "ready":
            silent_s = time.monotonic() - self._heard_s
            if silent_s > self._stall_s:
                return f"no sign of life for {silent_s:.1f} s"
            return self._child_state
        if self._state == "failed" and self._failure is not None:
            return f"failed: {self._failure.message}"
        return self._state

    def start(self) -> None:
        """Spawn the child and hand it its job."""
        now_s = time.monotonic()
        self._starts.append(now_s)
        self._started_s = self._heard_s = now_s
        self._start_again_s = None
        self._state, self._child_state, self._buffer = "starting", "ok", b""
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=child_environment(),
            process_group=0,  # Ctrl-C reaches the parent alone, even while the child still imports
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        try:
            self._process.stdin.write(self._job() + b"\n")
        except BrokenPipeError:
            pass  # it died at once; poll sees the exit code
        os.set_blocking(self._process.stdin.fileno(), False)

    def poll(self) -> None:
        """Take in the child's reports, notice its end or silence, restart it within its budget."""
        now_s = time.monotonic()
        if self._process is None:
            if self._start_again_s is not None and now_s >= self._start_again_s:
                self.restarts += 1
                self.start()
            return
        self._read_reports(now_s)
        exit_code = self._process.poll()
        if exit_code is not None:
            self._read_reports(now_s)
            self._close_pipes()
            self._process = None
            self._ended(exit_code, now_s)
        elif now_s - self._heard_s > _HUNG_S and self._state == "ready":
            self.notices.append(f"{self.name} gave no sign of life for {_HUNG_S:.0f} s; killed")
            self._process.kill()
        elif self._state == "starting" and now_s - self._started_s > self._ready_timeout_s:
            self.notices.append(f"{self.name} was not ready after {self._ready_timeout_s:.0f} s; killed")
            self._process.kill()

    def give_credit(self, frames: int) -> None:
        """Allow the child `frames` more frames (lockstep)."""
        if self._process is None or self._process.stdin is None:
            return
        try:
            self._process.stdin.write(b"." * frames)
        except (BrokenPipeError, BlockingIOError):
            pass  # it died; poll sees it

    def kill(self) -> None:
        """Kill the child without a word: for a worker that does not answer; `poll` then restarts it."""
        if self._process is not None:
            self._process.kill()

    def stop(self, timeout_s: float = 1.0) -> None:
        """End the child: lifeline and SIGTERM, then after `timeout_s` SIGKILL, which is told."""
        self._start_again_s = None
        process = self._process
        if process is None:
            self._state = "failed" if self._failure else "stopped"
            return
        if process.stdin is not None:
            process.stdin.close()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.notices.append(f"{self.name} did not stop within {timeout_s:.1f} s; killed")
            process.kill()
            process.wait()
        self._read_reports(time.monotonic())
        self._close_pipes()
        self._process = None
        self._state = "stopped"

    def _ended(self, exit_code: int, now_s: float) -> None:
        if exit_code == 0:
            self._state = "stopped"
            return
        if self._failure is not None:
            self._state = "failed"
            return
        while self._starts and now_s - self._starts[0] > _MINUTE_S:
            self._starts.popleft()
        how = f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
        if len(self._starts) > self._restarts_per_minute:
            self._failure = Failed(
                f"{self.name} ended {len(self._starts)} times within a minute, last by {how}",
                WorkerError.exit_code,
            )
            self._state = "failed"
            self.notices.append(f"{self._failure.message}; giving it up")
            return
        wait_s = _BACKOFF_S[min(len(self._starts) - 1, len(_BACKOFF_S) - 1)]
        self._state = f"restarting after {how}"
        self.notices.append(f"{self.name} ended by {how}; starting it again")
        self._start_again_s = now_s + wait_s

    def _read_reports(self, now_s: float) -> None:
        if self._process is None or self._process.stdout is None or self._process.stdout.closed:
            return
        while chunk := _read(self._process.stdout.fileno()):
            self._buffer += chunk
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            self._heard_s = now_s
            self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            report = report_decoder.decode(line)
        except UNDECODABLE:
            return  # not ours; a library printed to a descriptor of its own
        match report:
            case Ready():
                self._state = "ready"
            case Beat(state):
                self._child_state = state
            case Notice(text):
                self.notices.append(text)
            case Failed():
                self._failure = report

    def _close_pipes(self) -> None:
        if self._process is not None:
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None and not pipe.closed:
                    pipe.close()


def child_environment() -> dict[str, str]:
    """This process's environment, in which a child finds the package wherever it was started from."""
    root = str(Path(__file__).resolve().parent.parent)
    known = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{known}" if known else root}


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 65536)
    except BlockingIOError:
        return b""


def stop_all(workers: Sequence[Worker]) -> None:
    """Stop in the given order: from the source down."""
    for worker in workers:
        worker.stop()
