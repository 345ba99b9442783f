"""One JSON object per published plan, one per line, written by a thread of its own.

The file is that of one run: an older one is replaced. A disk that is full or slow costs lines, each counted, and is
told once; in lockstep a slow disk costs time instead, since nothing there may depend on the machine.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import stat
import threading
from pathlib import Path

import msgspec

from stream_agent.errors import ConfigError
from stream_agent.messages import Plan
from stream_agent.telemetry import Telemetry

_QUEUE = 1024
_BATCH = 64
_CLOSE_S = 2.0
_LOSSLESS_WAIT_S = 60.0


class JsonlSink:
    """Appends plans to a file without ever making the agent wait (unless `lossless`).

    Every batch is one unbuffered `write`: a line is in the file within milliseconds and nothing is left to flush.
    """

    def __init__(self, path: Path, *, lossless: bool, telemetry: Telemetry) -> None:
        """Open the file.

        Raises:
            ConfigError: It cannot be opened for writing.
        """
        self._path = path
        self._lossless = lossless
        self._telemetry = telemetry
        self._encoder = msgspec.json.Encoder()
        self._problem = ""
        self._broken_line = False
        self._file = _open(path)
        self._queue: queue.Queue[Plan | None] = queue.Queue(_QUEUE)
        self._thread = threading.Thread(target=self._run, name="jsonl", daemon=True)
        self._thread.start()

    @property
    def problem(self) -> str:
        """Empty, or why plans are being lost; empty again once a write succeeds."""
        return self._problem

    def write(self, plan: Plan) -> None:
        """Hand a plan to the thread: 1 µs. A full queue drops it and counts `sink_dropped`, unless lossless."""
        try:
            if self._lossless:
                self._queue.put(plan, timeout=_LOSSLESS_WAIT_S)
            else:
                self._queue.put_nowait(plan)
        except queue.Full:
            self._telemetry.count("sink_dropped", reason="jsonl_queue_full")

    def close(self) -> None:
        """Write what is queued and close; a disk that does not answer is given up on after two seconds."""
        limit_s = _LOSSLESS_WAIT_S if self._lossless else _CLOSE_S
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=limit_s)
        self._thread.join(limit_s)
        if self._thread.is_alive():
            self._telemetry.count("sink_dropped", self._queue.qsize(), reason="jsonl_not_answering")
            self._problem = f"{self._path} does not take writes; the last plans are not in it"

    def _run(self) -> None:
        open_ended = True
        while open_ended:
            plans = [self._queue.get()]
            with contextlib.suppress(queue.Empty):
                while len(plans) < _BATCH:
                    plans.append(self._queue.get_nowait())
            open_ended = None not in plans
            self._append([self._encoder.encode(plan) + b"\n" for plan in plans if plan is not None])
        with contextlib.suppress(OSError):
            os.close(self._file)

    def _append(self, lines: list[bytes]) -> None:
        """Write lines whole; those that do not fit are lost and counted, and no half line stays."""
        if not lines:
            return
        pending = b"".join(lines)
        if self._broken_line:
            pending = b"\n" + pending
        written = 0
        try:
            while written < len(pending):
                written += os.write(self._file, pending[written:])
        except OSError as error:
            self._give_up(lines, written - self._broken_line, error)
        else:
            self._broken_line = False
            self._problem = ""

    def _give_up(self, lines: list[bytes], written: int, error: OSError) -> None:
        whole = 0
        for line in lines:
            if written < len(line):
                break
            written -= len(line)
            whole += 1
        if written > 0:
            self._broken_line = not self._cut(written)
        self._telemetry.count("sink_dropped", len(lines) - whole, reason="jsonl_write_failed")
        if not self._problem:
            self._telemetry.count("sink_degraded", reason="jsonl")
            remedy = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check the disk"
            self._problem = f"cannot write {self._path} ({error.strerror}): plans are being lost; {remedy}"

    def _cut(self, n_bytes: int) -> bool:
        """Take the half line off the end of a regular file; False where that is not possible (a pipe)."""
        try:
            os.ftruncate(self._file, os.fstat(self._file).st_size - n_bytes)
        except OSError:
            return False
        return True


def _open(path: Path) -> int:
    """Open for writing, emptied; without waiting for the reader of a pipe."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
    try:
        if path.exists() and stat.S_ISFIFO(path.stat().st_mode):
            flags |= os.O_NONBLOCK
        file = os.open(path, flags, 0o644)
    except OSError as error:
        raise ConfigError(f"sinks.jsonl={path} cannot be opened: {_remedy(path, error)}") from error
    os.set_blocking(file, True)
    return file


def _remedy(path: Path, error: OSError) -> str:
    match error.errno:
        case errno.ENOENT:
            return f"the directory {path.parent} does not exist; make it (mkdir -p {path.parent})"
        case errno.EISDIR:
            return "it is a directory; name a file in it"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return "you may not write there; choose another place"
        case errno.ENXIO:
            return "it is a pipe that nobody reads; start the reader first"
        case _:
            return f"{error.strerror}; choose another place"
