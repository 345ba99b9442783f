"""The journal of closed clips: what NHFM needs to go on after the agent was killed.

One JSON line per closed clip, written before the clip is published; the first line names the case and the pack. A write
survives the death of the process at once; a background thread asks the disk to keep it too, so that a slow disk never
holds up the loop. A line torn by a crash is dropped on restore; any other damage is an error, not a guess, and a file
that is no journal is never touched.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path

import msgspec

from stream_agent.errors import UNDECODABLE, ConfigError
from stream_agent.messages import Clip

_MAX_BYTES = 64 << 20
_BEGINNING = b'{"case_id":'


class _Case(msgspec.Struct, frozen=True):
    case_id: str
    pack: str


class Journal:
    """Appends closed clips of one case to a file.

    Attributes:
        problem: Empty, or why the last clip could not be written (a full disk).
        restored: The clips of the same case that the file held.
    """

    def __init__(self, path: Path, *, case_id: str, pack: str) -> None:
        """Open the journal; `restored` holds the clips of the same case, and another case starts the file anew.

        Raises:
            ConfigError: The file cannot be opened, or is not a journal.
        """
        self._path = path
        self._pack = pack
        self.problem = ""
        self.restored: tuple[Clip, ...] = ()
        case = _Case(case_id, pack)
        try:
            if path.exists() and path.stat().st_size > _MAX_BYTES:
                raise _no_journal(path, f"it is larger than {_MAX_BYTES >> 20} MiB")
            data = path.read_bytes() if path.is_file() else b""
            self.restored, keep = _read(path, data, case)
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if path.is_file():
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # before a byte changes; dies with the process
                os.ftruncate(self._file, keep)
                os.lseek(self._file, 0, os.SEEK_END)
        except BlockingIOError as error:
            raise ConfigError(
                f"memory.journal={path} is in use by another agent; give each case its own file"
            ) from error
        except OSError as error:
            raise ConfigError(
                f"memory.journal={path} cannot be opened: {error.strerror}; name a writable file"
            ) from error
        self._waiting: deque[bytes] = deque() if keep else deque([msgspec.json.encode(case)])
        self._headers_waiting = len(self._waiting)
        self._write_waiting()
        self._dirty = threading.Event()
        self._closing = False
        self._syncer = threading.Thread(target=self._sync, name="journal", daemon=True)
        self._syncer.start()

    @property
    def unwritten(self) -> int:
        """Clips that are not in the file because of `problem`; they are tried again with the next one."""
        return len(self._waiting) - self._headers_waiting

    def append(self, clip: Clip) -> None:
        """Write one closed clip; a failure is kept in `problem` and does not stop the agent."""
        self._waiting.append(msgspec.json.encode(clip))
        if self._write_waiting():
            self._dirty.set()

    def begin(self, case_id: str) -> None:
        """Start the file anew for another case, as opening it for that case would."""
        os.ftruncate(self._file, 0)
        os.lseek(self._file, 0, os.SEEK_SET)
        self._waiting = deque([msgspec.json.encode(_Case(case_id, self._pack))])
        self._headers_waiting = 1
        self._write_waiting()
        self._dirty.set()

    def close(self) -> None:
        """Try what is unwritten once more, wait for the disk and close."""
        self._write_waiting()
        self._closing = True
        self._dirty.set()
        self._syncer.join(timeout=2.0)
        os.close(self._file)

    def _write_waiting(self) -> bool:
        while self._waiting:
            if not self._write(self._waiting[0]):
                return False
            self._waiting.popleft()
            self._headers_waiting = 0
        self.problem = ""
        return True

    def _write(self, line: bytes) -> bool:
        end = os.lseek(self._file, 0, os.SEEK_CUR)
        try:
            if os.write(self._file, line + b"\n") == len(line) + 1:
                return True
            self.problem = f"journal {self._path}: the disk is full; free space"
        except OSError as error:
            self.problem = f"journal {self._path}: {error.strerror}; free space or name another file"
        with suppress(OSError):  # a device has no length
            os.ftruncate(self._file, end)  # no half line for the next one to join
            os.lseek(self._file, end, os.SEEK_SET)
        return False

    def _sync(self) -> None:
        closing = False
        while not closing:
            self._dirty.wait()
            self._dirty.clear()
            closing = self._closing  # read before the sync, so that the last clip is in one
            try:
                os.fsync(self._file)
            except OSError as error:
                self.problem = self.problem or f"journal {self._path}: {error.strerror}; the disk may be failing"


def _read(path: Path, data: bytes, case: _Case) -> tuple[tuple[Clip, ...], int]:
    """The clips of `case` in `data`, and how many of its bytes to keep."""
    if not data.startswith(_BEGINNING) and not _BEGINNING.startswith(data):
        raise _no_journal(path, "it begins otherwise")
    end = data.rfind(b"\n") + 1
    lines = data[:end].split(b"\n")[:-1]
    try:
        found = msgspec.json.decode(lines[0], type=_Case) if lines else None
        if found != case:
            return (), 0
        return tuple(msgspec.json.decode(line, type=Clip) for line in lines[1:]), end
    except UNDECODABLE as error:
        raise _no_journal(path, str(error)) from error


def _no_journal(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"memory.journal={path} is not a journal of this program ({why}); name another file or remove it"
    )
