"""The console as it runs: a real child process, on a pipe and on a real terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator

import pytest

from stream_agent.messages import Health, Notice, Plan
from stream_agent.sinks import console_process, topics
from stream_agent.sinks import publisher as publisher_module
from stream_agent.sinks.console import main
from stream_agent.sinks.console_process import ConsoleProcess
from stream_agent.sinks.publisher import Publisher
from stream_agent.workers import child_environment

MakePlan = Callable[..., Plan]
S = 1_000_000_000
_SOON_S = 1.0
"""The promise is half a second; a test machine with other work on it gets as much again."""
_ENTER, _LEAVE, _SHOW_CURSOR = b"\x1b[?1049h", b"\x1b[?1049l", b"\x1b[?25h"


@pytest.fixture
def publisher(ipc: str) -> Iterator[Publisher]:
    publisher = Publisher([ipc])
    yield publisher
    publisher.close()


def fresh(make_plan: MakePlan, valid_s: float = 30.0) -> Plan:
    now_ns = time.monotonic_ns()
    return make_plan(captured_ns=now_ns, published_ns=now_ns, valid_until_ns=now_ns + round(valid_s * S))


def spawn(ipc: str, mode: str, *, stdin: int, stdout: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "stream_agent.sinks.console", "--endpoint", ipc, "--mode", mode]
    return subprocess.Popen(
        command, stdin=stdin, stdout=stdout, env={**child_environment(), "TERM": "xterm-256color", "COLUMNS": ""}
    )


def read_until(
    file: int, wanted: bytes, *, meanwhile: Callable[[], object] = lambda: None, limit_s: float = 15
) -> bytes:
    """What comes from `file` up to and including `wanted`."""
    seen, end_s = b"", time.monotonic() + limit_s
    while wanted not in seen:
        assert time.monotonic() < end_s, f"{wanted!r} did not come; only {seen[-2000:]!r}"
        meanwhile()
        if select.select([file], [], [], 0.05)[0]:
            try:
                chunk = os.read(file, 65536)
            except OSError:
                chunk = b""  # a terminal whose child is gone
            assert chunk, f"the end came before {wanted!r}: {seen[-2000:]!r}"
            seen += chunk
    return seen


class Terminal:
    """A pseudo-terminal of 80x24 with a console in it."""

    def __init__(self, ipc: str) -> None:
        self.master, child_end = pty.openpty()
        fcntl.ioctl(child_end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.process = spawn(ipc, "live", stdin=subprocess.PIPE, stdout=child_end)
        self.child_end = child_end

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()
        os.close(self.master)
        os.close(self.child_end)


@pytest.fixture
def terminal(ipc: str) -> Iterator[Terminal]:
    terminal = Terminal(ipc)
    yield terminal
    terminal.close()


def ends_within(process: subprocess.Popen[bytes], limit_s: float, file: int | None = None) -> float:
    """Seconds until the process has ended, its output being read meanwhile."""
    begun_s = time.monotonic()
    while process.poll() is None:
        assert time.monotonic() - begun_s < limit_s, "still running"
        if file is not None and select.select([file], [], [], 0.005)[0]:
            os.read(file, 65536)
    return time.monotonic() - begun_s


@pytest.mark.parametrize("how", ["end of stdin", "SIGTERM"])
def test_the_live_view_ends_at_once_and_restores_the_terminal(
    terminal: Terminal, publisher: Publisher, make_plan: MakePlan, how: str
) -> None:
    send = lambda: publisher.send(fresh(make_plan), now_ns=time.monotonic_ns())  # noqa: E731
    seen = read_until(terminal.master, b"Clipping", meanwhile=send)
    assert _ENTER in seen
    terminal.process.send_signal(signal.SIGINT)  # the parent's to handle
    read_until(terminal.master, b"Advice for research", meanwhile=send)
    assert terminal.process.poll() is None
    begun_s = time.monotonic()
    if how == "SIGTERM":
        terminal.process.terminate()
    else:
        assert terminal.process.stdin is not None
        terminal.process.stdin.close()
    read_until(terminal.master, _LEAVE)
    assert terminal.process.wait(5) == 0
    assert time.monotonic() - begun_s < _SOON_S


def test_a_hung_agent_leaves_no_plan_that_looks_alive(
    terminal: Terminal, publisher: Publisher, make_plan: MakePlan
) -> None:
    plan: list[Plan] = []

    def send() -> None:
        plan[:] = [fresh(make_plan, valid_s=0.4)]
        publisher.send(plan[0], now_ns=time.monotonic_ns())

    read_until(terminal.master, b"Clipping", meanwhile=send)
    read_until(terminal.master, b"EXPIRED")
    late_s = (time.monotonic_ns() - plan[0].valid_until_ns) / S
    assert late_s < _SOON_S
    read_until(terminal.master, b"NO WORD FROM THE AGENT")


def test_a_terminal_that_takes_no_output_does_not_keep_the_console(terminal: Terminal, publisher: Publisher) -> None:
    """Ctrl-S stops the terminal: drawing then hangs in a write that no signal handler can get out of."""
    read_until(terminal.master, _ENTER)
    termios.tcflow(terminal.child_end, termios.TCOOFF)
    assert terminal.process.stdin is not None
    terminal.process.stdin.close()
    assert ends_within(terminal.process, 5.0) < 1.5
    termios.tcflow(terminal.child_end, termios.TCOON)


@pytest.fixture
def piped(ipc: str) -> Iterator[subprocess.Popen[bytes]]:
    process = spawn(ipc, "plain", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


def test_plain_lines_have_no_control_codes(
    piped: subprocess.Popen[bytes], publisher: Publisher, make_plan: MakePlan
) -> None:
    assert piped.stdout is not None
    assert piped.stdin is not None
    seen = read_until(
        piped.stdout.fileno(),
        b"by statistical",
        meanwhile=lambda: publisher.send(fresh(make_plan), now_ns=time.monotonic_ns()),
    )
    piped.stdin.close()
    piped.stdin = None
    assert ends_within(piped, 5.0) < _SOON_S
    seen += piped.stdout.read()
    assert b"\x1b" not in seen
    assert b"next: Clipping 62%" in seen
    assert piped.returncode == 0


def test_garbage_on_the_wire_does_not_end_the_console(
    piped: subprocess.Popen[bytes], publisher: Publisher, make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert piped.stdout is not None
    real_pack = topics.pack

    def send() -> None:
        for data in (b"plan {}", b"plan", b"\xff\xff", b"health []", b"x" * 10000):
            monkeypatch.setattr(publisher_module, "pack", lambda _message, data=data: data)
            publisher.send(Notice(""), now_ns=0)
        monkeypatch.setattr(publisher_module, "pack", real_pack)
        publisher.send(fresh(make_plan), now_ns=time.monotonic_ns())

    read_until(piped.stdout.fileno(), b"by statistical", meanwhile=send)


def test_a_reader_that_goes_away_ends_the_console_in_silence(
    piped: subprocess.Popen[bytes], publisher: Publisher, make_plan: MakePlan
) -> None:
    """As in `run … | head -1`."""
    assert piped.stdout is not None
    send = lambda: publisher.send(fresh(make_plan), now_ns=time.monotonic_ns())  # noqa: E731
    read_until(piped.stdout.fileno(), b"\n", meanwhile=send)
    piped.stdout.close()
    piped.stdout = None
    state, end_s = 0, time.monotonic() + 10
    while piped.poll() is None and time.monotonic() < end_s:
        state += 1  # each is a change, and so a line
        health = Health(stream_id="e", sent_ns=1, state="degraded", parts={"source": f"lost {state}"})
        publisher.send(health, now_ns=time.monotonic_ns())
        select.select([], [], [], 0.05)
    assert piped.returncode == 0


def test_a_wrong_address_is_one_message(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from stream_agent.sinks import console

    monkeypatch.setattr(console, "_stop_when_told", lambda stop: None)
    monkeypatch.setattr(console, "_be_nice", lambda: None)
    assert main(["--endpoint", "nonsense", "--mode", "plain"]) == 2
    assert capsys.readouterr().err.startswith("error: nonsense is not an address we use")


def test_the_agent_starts_a_killed_console_again_a_few_times(ipc: str) -> None:
    console = ConsoleProcess("plain", ipc)
    pids = set()
    try:
        while console.pid is not None:
            pids.add(console.pid)
            os.kill(console.pid, signal.SIGKILL)
            before = console.pid
            while console.pid == before:
                console.poll()
        assert len(pids) == 4
        assert "ended 4 times within a minute, last with signal 9" in console.problem
    finally:
        console.stop()


def test_stopping_the_console_takes_less_than_a_second_and_leaves_no_child(ipc: str) -> None:
    console = ConsoleProcess("plain", ipc, lockstep=True, codes=[("Clipping", "CLP")])
    pid = console.pid
    assert pid is not None
    begun_s = time.monotonic()
    console.stop()
    console.stop()
    assert time.monotonic() - begun_s < 2
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_no_console_when_off_and_lines_go_to_stderr(ipc: str, capsys: pytest.CaptureFixture[str]) -> None:
    console = ConsoleProcess("off", ipc)
    console.poll()
    console.tell("a camera was lost")
    console.stop()
    assert (console.pid, console.problem) == (None, "")
    assert capsys.readouterr().err == "a camera was lost\n"


def test_lines_wait_while_the_live_view_owns_the_terminal(
    ipc: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    console = ConsoleProcess("live", ipc)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    console.tell("later")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    console.stop()
    assert capsys.readouterr().err == "later\n"


@pytest.mark.parametrize(
    ("tty", "term", "mode"), [(True, "xterm", "live"), (True, "dumb", "plain"), (False, "xterm", "plain")]
)
def test_auto_draws_only_on_a_terminal_that_can(
    monkeypatch: pytest.MonkeyPatch, tty: bool, term: str, mode: str
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: tty, raising=False)
    monkeypatch.setenv("TERM", term)
    assert console_process._resolved("auto") == mode
