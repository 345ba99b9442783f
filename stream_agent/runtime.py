"""A private directory for one agent's sockets, swept when its owner is gone.

`ipc://` sockets are files: a second bind on a live path silently steals it, umask decides who may connect, and a
killed process leaves them behind. So each agent has a directory of its own, mode 0700, held by a lock that dies with
the process; whoever starts next removes the directories that nobody holds.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

from stream_agent.errors import ConfigError

MAX_IPC_PATH = 107
_LOCK = "lock"


def runtime_root() -> Path:
    """`$XDG_RUNTIME_DIR/stream_agent`, or a directory of this user's in the temporary directory."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base and os.access(base, os.W_OK):
        return Path(base) / "stream_agent"
    return Path(tempfile.gettempdir()) / f"stream_agent-{os.getuid()}"


def host_id() -> str:
    """Names this boot of this host; monotonic clocks are comparable only between equal ids."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return f"pid-{os.getpid()}"


class RuntimeDirectory:
    """A directory that lives as long as this context; `endpoint(name)` gives ipc addresses in it."""

    def __init__(self, root: Path | None = None) -> None:
        """Create it.

        Raises:
            ConfigError: The root belongs to somebody else, is not writable, or is too long for ipc.
        """
        root = root or runtime_root()
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            if root.is_symlink():
                raise ConfigError(f"{root} is a link; set XDG_RUNTIME_DIR to a directory of your own")
            if root.stat().st_uid != os.getuid():
                raise ConfigError(f"{root} belongs to another user; set XDG_RUNTIME_DIR to a directory of your own")
            _sweep(root)
            self.path, self._lock = _create_locked(root)
        except OSError as error:
            raise ConfigError(
                f"no runtime directory can be made in {root} ({error.strerror}); set XDG_RUNTIME_DIR to a writable directory"
            ) from error

    def endpoint(self, name: str) -> str:
        """`ipc://` address of a socket in this directory.

        Raises:
            ConfigError: The path is longer than a unix socket allows.
        """
        path = self.path / name
        if len(os.fsencode(path)) > MAX_IPC_PATH:
            raise ConfigError(
                f"{path} is longer than the {MAX_IPC_PATH} bytes of a unix socket; set XDG_RUNTIME_DIR to a shorter one"
            )
        return f"ipc://{path}"

    def close(self) -> None:
        """Remove the directory and let go of the lock."""
        shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.close(self._lock)

    def __enter__(self) -> RuntimeDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _create_locked(root: Path) -> tuple[Path, int]:
    """A new directory and its locked file; tries again when a sweep took the directory before we locked it."""
    while True:
        path = Path(tempfile.mkdtemp(prefix="", dir=root))
        try:
            lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            continue
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if (path / _LOCK).exists():
                return path, lock
        os.close(lock)


def _sweep(root: Path) -> None:
    """Remove directories whose owner is gone: their lock is free."""
    for lock in root.glob(f"*/{_LOCK}"):
        with contextlib.suppress(OSError):
            fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
            finally:
                os.close(fd)
