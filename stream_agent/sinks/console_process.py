"""The agent's hold on its console: starts the child, starts it again when it dies, puts the terminal right after it.

The agent never waits for it. A console that hangs only misses messages; one that was killed leaves the terminal in the
alternate screen with no cursor, which is mended here.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Literal, TextIO, TypeAlias

from stream_agent.workers import child_environment

Mode: TypeAlias = Literal["auto", "live", "plain", "off"]

_RESTORE = b"\x1b[?1049l\x1b[?25h\x1b[0m"
_RESTARTS_PER_MINUTE = 3
_MINUTE_S = 60.0
_STOP_S = 1.0
_KEPT_LINES = 200
_MODULE = "stream_agent.sinks.console"


class ConsoleProcess:
    """The console child, or nothing when `mode` is off.

    Attributes:
        mode: As resolved: `live`, `plain` or `off`.
    """

    def __init__(
        self,
        mode: Mode,
        endpoint: str,
        *,
        title: str = "stream_agent",
        lockstep: bool = False,
        codes: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Start it; `codes` are (action, short code) in pack order."""
        self.mode = _resolved(mode)
        self._command = [sys.executable, "-m", _MODULE, "--endpoint", endpoint, "--mode", self.mode, "--title", title]
        self._command += ["--lockstep"] if lockstep else []
        for action, code in codes:
            self._command += ["--action", f"{code}={action}"]
        self._process: subprocess.Popen[bytes] | None = None
        self._starts: deque[float] = deque()
        self._problem = ""
        self._untold: deque[str] = deque(maxlen=_KEPT_LINES)
        if self.mode != "off":
            self._start()

    @property
    def problem(self) -> str:
        """Empty, or why nothing is shown."""
        return self._problem

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return None if self._process is None else self._process.pid

    def poll(self) -> None:
        """Notice its end and start it again, a few times a minute; tell what waits to be told."""
        self._tell_waiting()
        if self._process is None:
            return
        exit_code = self._process.poll()
        if exit_code is None:
            return
        self._let_go()
        if exit_code == 0:
            self._problem = "ended: nobody reads its output any more"
            return
        self._mend_terminal()
        now_s = time.monotonic()
        while self._starts and now_s - self._starts[0] > _MINUTE_S:
            self._starts.popleft()
        if len(self._starts) > _RESTARTS_PER_MINUTE:
            self._problem = f"ended {len(self._starts)} times within a minute, last with {_how(exit_code)}"
            return
        self._start()

    def tell(self, text: str) -> None:
        """One line for the user on stderr; it waits while the live view owns the terminal, or stderr would block."""
        self._untold.append(text)
        self._tell_waiting()

    def stop(self) -> None:
        """End it within a second, put the terminal right, and tell what waited."""
        process = self._process
        if process is not None:
            if process.stdin is not None:
                process.stdin.close()
            process.terminate()
            try:
                exit_code = process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                exit_code = process.wait()
            self._let_go()
            if exit_code != 0:
                self._mend_terminal()
        self._tell_waiting()

    def _tell_waiting(self) -> None:
        drawing = self.mode == "live" and self._process is not None and sys.stderr.isatty()
        while self._untold and not drawing and _takes_output(sys.stderr):
            print(self._untold.popleft(), file=sys.stderr, flush=True)

    def _start(self) -> None:
        self._starts.append(time.monotonic())
        try:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, env=child_environment(), start_new_session=False
            )
            self._problem = ""
        except OSError as error:
            self._problem = f"could not be started ({error.strerror})"

    def _let_go(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        self._process = None

    def _mend_terminal(self) -> None:
        if self.mode == "live" and sys.stdout.isatty() and _takes_output(sys.stdout):
            with contextlib.suppress(OSError):  # the terminal is gone, too
                os.write(sys.stdout.fileno(), _RESTORE)


def _resolved(mode: Mode) -> Literal["live", "plain", "off"]:
    if mode != "auto":
        return mode
    return "live" if sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb" else "plain"


def _takes_output(stream: TextIO) -> bool:
    """Whether a short write would not block: a terminal stopped by Ctrl-S, or a full pipe, would hold up the agent."""
    try:
        return bool(select.select([], [stream.fileno()], [], 0)[1])
    except (OSError, ValueError):
        return True  # no file behind it


def _how(exit_code: int) -> str:
    return f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
