"""Plans over ZeroMQ: one message is one part, `topic JSON`; never blocks, never sends an expired plan.

A subscriber that is slow loses messages of its own (PUB drops at its mark, per subscriber); it cannot slow the agent or
the other subscribers.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket as sockets
import stat
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import zmq

from stream_agent.errors import ConfigError
from stream_agent.messages import Plan
from stream_agent.runtime import MAX_IPC_PATH
from stream_agent.sinks.topics import Message, pack
from stream_agent.transport.keys import Authenticator, load_keys, require_keys_outside_loopback, secure_server

_QUEUE = 256
"""Messages kept for a subscriber that is behind: about 10 s of everything, under 1 MB."""


class Publisher:
    """Sends to every endpoint; one encoding per message.

    Two sockets at most, for CURVE belongs to a socket, not to an address: `ipc://` endpoints are guarded by the file
    system, `tcp://` ones by keys when there are any.

    Attributes:
        counts: `sent`, `expired` (a plan that came too late), `dropped` (a queue refused it).
    """

    def __init__(
        self, endpoints: Sequence[str], *, keys: Path | None = None, tap: Callable[[bytes, int], None] | None = None
    ) -> None:
        """Bind; `tap` is given every message as it is sent, and the time.

        Raises:
            ConfigError: An address is malformed, in use, not of this host, or leaves the host without keys.
        """
        self.counts: Counter[str] = Counter()
        self._tap = tap
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._authenticator: Authenticator | None = None
        self._plain: zmq.Socket[bytes] | None = None
        self._secure: zmq.Socket[bytes] | None = None
        self._files: list[Path] = []
        try:
            for endpoint in endpoints:
                require_keys_outside_loopback(endpoint, keys)
                bind(self._socket_for(endpoint, keys), endpoint)
                if endpoint.startswith("ipc:///"):
                    self._files.append(Path(endpoint.removeprefix("ipc://")))
        except BaseException:
            self.close()
            raise

    def send(self, message: Message, *, now_ns: int) -> bool:
        """Send at once or not at all; False when the plan is expired or a queue refused it."""
        if isinstance(message, Plan) and now_ns > message.valid_until_ns:
            self.counts["expired"] += 1
            return False
        data = pack(message)
        if self._tap is not None:
            self._tap(data, now_ns)
        sent = True
        for socket in (self._plain, self._secure):
            if socket is not None:
                try:
                    socket.send(data, zmq.NOBLOCK)
                except zmq.Again:
                    sent = False
        self.counts["sent" if sent else "dropped"] += 1
        return sent

    def close(self, *, linger_s: float = 0.0) -> None:
        """Let go of the addresses, giving the last messages `linger_s` to leave."""
        for socket in (self._plain, self._secure):
            if socket is not None:
                socket.close(linger=round(linger_s * 1000))
        if self._authenticator is not None:
            self._authenticator.stop()
        self._plain = self._secure = self._authenticator = None
        self._context.term()
        while self._files:
            self._files.pop().unlink(missing_ok=True)  # libzmq leaves its sockets lying

    def _socket_for(self, endpoint: str, keys: Path | None) -> zmq.Socket[bytes]:
        if keys is None or not endpoint.startswith("tcp://"):
            if self._plain is None:
                self._plain = self._socket()
            return self._plain
        if self._secure is None:
            self._secure = self._socket()
            self._authenticator = secure_server(self._secure, load_keys(keys), self._context)
        return self._secure

    def _socket(self) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.PUB)
        socket.linger = 0
        socket.sndhwm = _QUEUE
        return socket


def bind(socket: zmq.Socket[bytes], endpoint: str) -> None:
    """Bind without taking an address from a living process or a file from its owner.

    Raises:
        ConfigError: The address is taken, too long or not of this host.
    """
    path = endpoint.removeprefix("ipc://") if endpoint.startswith("ipc://") else ""
    if path:
        _require_free(path)
    umask = os.umask(0o077)  # an ipc socket is a file: only this user may connect
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"{endpoint} is in use by another program; stop it or choose another address") from error
        raise ConfigError(f"cannot bind {endpoint} ({error.strerror}); choose a free address of this host") from error
    finally:
        os.umask(umask)


def _require_free(path: str) -> None:
    """Refuse an ipc path that libzmq would steal (a live socket) or delete (any other file)."""
    if len(os.fsencode(path)) > MAX_IPC_PATH:
        raise ConfigError(
            f"ipc path {path} is longer than the {MAX_IPC_PATH} bytes of a unix socket; choose a shorter one"
        )
    abstract = path.startswith("@")
    if not abstract:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(Path(path).stat().st_mode):
                raise ConfigError(f"{path} is a file and would be deleted; choose another ipc path")
        if not Path(path).parent.is_dir():
            raise ConfigError(f"the directory of ipc path {path} does not exist; make it or choose another path")
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as probe:
        probe.settimeout(0.5)
        try:
            probe.connect("\0" + path[1:] if abstract else path)
        except (FileNotFoundError, ConnectionRefusedError):
            return
        except OSError as error:
            raise ConfigError(
                f"ipc path {path} cannot be used ({error.strerror or error}); choose another path"
            ) from error
    raise ConfigError(
        f"ipc path {path} is in use by another program, whose subscribers it would steal; stop it or choose "
        "another path"
    )
