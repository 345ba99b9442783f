"""The journal of closed clips: what NHFM needs to go on after the agent was killed.

One JSON line per closed clip, written before the clip is published; the first line names the case and the pack. A write
survives the death of the process at once; a background thread asks the disk to keep it too, so that a slow disk never
holds up the loop. A line torn by a crash is dropped on restore; any other damage is an error, not a guess.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

import msgspec

from stream_agent.errors import ConfigError
from stream_agent.messages import Clip

_MAX_BYTES = 64 << 20


class _Case(msgspec.Struct, frozen=True):
    case_id: str
    pack: str


class Journal:
    """Appends closed clips of one case to a file.

    Attributes:
        problem: Empty, or why the last clip could not be written (a full disk).
        unwritten: Clips that are not in the file because of it.
    """

    def __init__(self, path: Path, *, case_id: str, pack: str) -> None:
        """Open the journal; `restored` holds the clips of the same case, and another case starts the file anew.

        Raises:
            ConfigError: The file cannot be opened, or is not a journal.
        """
        self._path = path
        self._case = _Case(case_id, pack)
        self.problem = ""
        self.unwritten = 0
        self.restored: tuple[Clip, ...] = ()
        try:
            data = path.read_bytes() if path.is_file() and _is_small(path) else b""
            if data:
                self.restored, keep = _read(path, data, self._case)
                self._file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
                os.ftruncate(self._file, keep)
                os.lseek(self._file, 0, os.SEEK_END)
            else:
                keep = 0
                self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(
                f"memory.journal={path} cannot be opened: {error.strerror}; name a writable file"
            ) from error
        if keep == 0:
            self._append(msgspec.json.encode(self._case))
        self._dirty = threading.Event()
        self._closed = False
        self._syncer = threading.Thread(target=self._sync, name="journal", daemon=True)
        self._syncer.start()

    def append(self, clip: Clip) -> None:
        """Write one closed clip; a failure is kept in `problem` and does not stop the agent."""
        if not self._append(msgspec.json.encode(clip)):
            self.unwritten += 1
        self._dirty.set()

    def close(self) -> None:
        """Wait for the disk and close."""
        self._closed = True
        self._dirty.set()
        self._syncer.join(timeout=2.0)
        os.close(self._file)

    def _append(self, line: bytes) -> bool:
        end = os.lseek(self._file, 0, os.SEEK_CUR)
        try:
            if os.write(self._file, line + b"\n") == len(line) + 1:
                self.problem = ""
                return True
            self.problem = f"journal {self._path}: the disk is full; free space"
        except OSError as error:
            self.problem = f"journal {self._path}: {error.strerror}; free space or name another file"
        with contextlib.suppress(OSError):  # no half line for the next one to join
            os.ftruncate(self._file, end)
            os.lseek(self._file, end, os.SEEK_SET)
        return False

    def _sync(self) -> None:
        while not self._closed:
            self._dirty.wait()
            self._dirty.clear()
            try:
                os.fsync(self._file)
            except OSError as error:
                self.problem = f"journal {self._path}: {error.strerror}; the disk may be failing"


def _is_small(path: Path) -> bool:
    size = path.stat().st_size
    if size > _MAX_BYTES:
        raise ConfigError(
            f"memory.journal={path} has {size} bytes, more than any case's journal ({_MAX_BYTES}); name another file"
        )
    return True


def _read(path: Path, data: bytes, case: _Case) -> tuple[tuple[Clip, ...], int]:
    """The clips of `case` in `data`, and how many of its bytes to keep."""
    end = data.rfind(b"\n") + 1
    lines = data[:end].splitlines()
    try:
        found = msgspec.json.decode(lines[0], type=_Case) if lines else None
        if found != case:
            return (), 0
        return tuple(msgspec.json.decode(line, type=Clip) for line in lines[1:]), end
    except msgspec.DecodeError as error:
        raise ConfigError(
            f"memory.journal={path} is not a journal of this program ({error}); name another file or remove it"
        ) from error
