"""The console process: shows the agent's plans on a terminal, or line by line elsewhere.

    python -m stream_agent.sinks.console --endpoint ipc://… --mode live|plain

A process of its own because drawing costs milliseconds of Python and the agent's loop has none to spare. The agent holds
the other end of stdin: its end means that the agent is gone. SIGINT is the agent's to handle, SIGTERM ends; either way
the terminal is restored. Started by hand on a terminal, Ctrl-C ends it as usual.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live

from stream_agent.errors import StreamAgentError
from stream_agent.sinks.console_plain import PlainView
from stream_agent.sinks.console_process import ConsoleProcess
from stream_agent.sinks.console_state import ConsoleState
from stream_agent.sinks.console_view import live_view
from stream_agent.sinks.subscriber import Subscriber

__all__ = ["ConsoleProcess", "main"]

RATE_HZ = 8.0
_GRACE_S = 0.4
_NICENESS = 5
_STOP_LOOK_S = 0.03
_LEAST_CELLS, _LEAST_LINES = 40, 8


def main(argv: Sequence[str] | None = None) -> int:
    """Show plans until told to stop; the exit code."""
    options = _arguments(argv)
    stop = threading.Event()
    _stop_when_told(stop)
    _be_nice()
    codes = dict(reversed(pair.split("=", 1)) for pair in options.action if "=" in pair)
    state = ConsoleState(lockstep=options.lockstep, codes=codes)
    try:
        subscriber = Subscriber(options.endpoint, keys=options.keys)
    except StreamAgentError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    try:
        if options.mode == "live":
            _live(state, subscriber, stop, options.title)
        else:
            _plain(state, subscriber, stop)
    except (BrokenPipeError, OSError):
        _abandon_stdout()  # the terminal or the reader is gone: there is nobody left to show anything to
    finally:
        subscriber.close()
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="console", description="Show the plans of a running agent.")
    parser.add_argument("--endpoint", required=True, help="the agent's publisher: ipc://PATH or tcp://HOST:PORT")
    parser.add_argument("--mode", choices=("live", "plain"), default="live" if sys.stdout.isatty() else "plain")
    parser.add_argument("--title", default="stream_agent", help="shown at the top left")
    parser.add_argument("--lockstep", action="store_true", help="the session's clock is virtual: take it from messages")
    parser.add_argument("--keys", type=Path, help="CURVE keys, for a publisher on another host")
    parser.add_argument(
        "--action", action="append", default=[], metavar="CODE=NAME", help="short code of an action, in pack order"
    )
    return parser.parse_args(argv)


def _live(state: ConsoleState, subscriber: Subscriber, stop: threading.Event, title: str) -> None:
    """Redraw the whole screen, at most `RATE_HZ` times a second, also when nothing comes: plans expire by themselves."""
    console = Console()

    def draw(live: Live) -> None:
        width, height = console.size
        now_ns = time.monotonic_ns()
        view = live_view(
            state, now_ns=now_ns, width=max(width, _LEAST_CELLS), height=max(height, _LEAST_LINES), title=title
        )
        live.update(view, refresh=True)

    with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
        _follow(state, subscriber, stop, lambda: draw(live))


def _plain(state: ConsoleState, subscriber: Subscriber, stop: threading.Event) -> None:
    view = PlainView()

    def draw() -> None:
        line = view.line(state, now_ns=time.monotonic_ns())
        if line is not None:
            print(line, flush=True)

    _follow(state, subscriber, stop, draw)


def _follow(state: ConsoleState, subscriber: Subscriber, stop: threading.Event, draw: Callable[[], None]) -> None:
    """Take messages in as they come and draw at a bounded rate, until `stop`; what came last is drawn, too."""
    period_s = 1 / RATE_HZ
    due_s = time.monotonic()
    while not stop.is_set():
        _take(state, subscriber, min(max(0.0, due_s - time.monotonic()), _STOP_LOOK_S))
        if time.monotonic() >= due_s:
            draw()
            due_s = time.monotonic() + period_s
    _take(state, subscriber, 0.0)
    draw()


def _take(state: ConsoleState, subscriber: Subscriber, timeout_s: float) -> None:
    for message in subscriber.newest(timeout_s):
        state.take(message, arrived_ns=time.monotonic_ns())


def _stop_when_told(stop: threading.Event) -> None:
    """Set `stop` at SIGTERM and at the end of stdin, and see to it that the process then ends even if drawing hangs."""

    def end() -> None:
        if not stop.is_set():
            stop.set()
            timer = threading.Timer(_GRACE_S, os._exit, (1,))  # e.g. a terminal stopped by Ctrl-S
            timer.daemon = True
            timer.start()

    signal.signal(signal.SIGTERM, lambda *_: end())
    if sys.stdin is not None and sys.stdin.isatty():
        signal.signal(signal.SIGINT, lambda *_: end())
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch_lifeline() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        end()

    threading.Thread(target=watch_lifeline, name="lifeline", daemon=True).start()


def _be_nice() -> None:
    """Leave the processor to the agent: a viewer that is woken by each plan would otherwise preempt its loop."""
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)


def _abandon_stdout() -> None:
    """Keep the interpreter from complaining about the lost stdout at its exit."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


if __name__ == "__main__":
    raise SystemExit(main())
