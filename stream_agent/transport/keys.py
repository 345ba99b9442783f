"""CURVE keys: who may listen, and proof of who speaks.

One directory belongs to the host that serves and is complete on its own; each further name gets a folder to be carried
to its host, so that every secret exists once:

    DIR/server.curve_public  server.curve_secret     the serving end
    DIR/client.curve_public  client.curve_secret     this host as a client (the first name)
    DIR/allowed/NAME.curve_public                    the allow-list: exactly these clients are let in
    DIR/NAME/server.curve_public  client.curve_…     for host NAME; move it there
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import zmq

from stream_agent.errors import ConfigError

DEFAULT_NAMES = ("camera", "agent")
PUBLIC = ".curve_public"
SECRET = ".curve_secret"
_DOMAIN = "stream_agent"
_Z85 = re.compile(rb"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RESERVED = ("allowed", "server", "client")
_TCP = re.compile(r"tcp://(?P<host>\[[^\]]+\]|[^:\[\]]+):(?P<port>\d{1,5}|\*)")


@dataclass(frozen=True, slots=True)
class Keys:
    """Z85 keys, 40 bytes each; secrets never appear in a repr.

    Attributes:
        server_public: Whom a client trusts.
        server_secret: Only on the host that serves; else None.
        client_public: This host as a client.
        client_secret: Its secret.
        allowed: Public keys of the clients that are let in; empty where nothing is served.
    """

    server_public: bytes
    server_secret: bytes | None = field(repr=False)
    client_public: bytes
    client_secret: bytes = field(repr=False)
    allowed: frozenset[bytes]


class Authenticator:
    """Lets listed clients in; runs until `stop()`. One per ZeroMQ context."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], allowed: frozenset[bytes]) -> None:
        from zmq.auth.thread import ThreadAuthenticator  # with asyncio, 50 ms that only a server with keys pays

        self._allowed = allowed
        self._thread = ThreadAuthenticator(context)
        self._thread.configure_curve_callback(_DOMAIN, credentials_provider=self)
        self._thread.start()

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether this client's public key is on the list (called by pyzmq)."""
        return domain == _DOMAIN and key in self._allowed

    def stop(self) -> None:
        """Stop letting anybody in; what is connected stays."""
        self._thread.stop()


def make_keys(directory: Path, names: Sequence[str] = DEFAULT_NAMES) -> list[Path]:
    """Make a server pair and one client pair per name; returns the folders that belong on other hosts.

    Raises:
        ConfigError: A name is unusable, or keys are there already: they are never overwritten.
    """
    names = list(dict.fromkeys(names))
    for name in names:
        if not _NAME.fullmatch(name) or name in _RESERVED:
            raise ConfigError(
                f"key name '{name}' is not usable; use letters, digits and any of . _ - but not {', '.join(_RESERVED)}"
            )
    if not names:
        raise ConfigError("no key name is given; name at least the host that serves, for example --name camera")
    if any(directory.glob("**/*.curve_*")):
        raise ConfigError(
            f"{directory} already holds keys, which are never overwritten; choose another directory or remove them"
        )
    try:
        return _write_all(directory, names)
    except OSError as error:
        raise ConfigError(
            f"keys cannot be written to {error.filename or directory} ({error.strerror}); choose a directory you may "
            "write to"
        ) from error


def load_keys(directory: Path) -> Keys:
    """The keys in a directory made by `make_keys`.

    Raises:
        ConfigError: A file is missing or malformed, or a secret can be read by others.
    """
    if not directory.is_dir():
        raise ConfigError(
            f"key directory {directory} does not exist; make one with `run_agent.py keys --out {directory}`"
        )
    server_secret = directory / f"server{SECRET}"
    return Keys(
        server_public=_read(directory / f"server{PUBLIC}"),
        server_secret=_read_secret(server_secret) if server_secret.exists() else None,
        client_public=_read(directory / f"client{PUBLIC}"),
        client_secret=_read_secret(directory / f"client{SECRET}"),
        allowed=frozenset(_read(path) for path in sorted((directory / "allowed").glob(f"*{PUBLIC}"))),
    )


def secure_server(socket: zmq.Socket[bytes], keys: Keys, context: zmq.Context[zmq.Socket[bytes]]) -> Authenticator:
    """Encrypt a socket that will bind and let in listed clients only; stop what is returned when the socket closes.

    Raises:
        ConfigError: These keys cannot serve: no server secret, or nobody on the allow-list.
    """
    if keys.server_secret is None:
        raise ConfigError(
            "these keys belong to a client: server.curve_secret is missing; serve with the directory that "
            "`run_agent.py keys` made"
        )
    if not keys.allowed:
        raise ConfigError(
            "allowed/ lists no client, so nobody could connect; put the clients' client.curve_public files there"
        )
    authenticator = Authenticator(context, keys.allowed)  # first: nobody may come in before it answers
    socket.curve_server = True
    socket.curve_publickey = keys.server_public
    socket.curve_secretkey = keys.server_secret
    socket.setsockopt(zmq.ZAP_DOMAIN, _DOMAIN.encode())
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without an authenticator nobody comes in, rather than everybody
    return authenticator


def secure_client(socket: zmq.Socket[bytes], keys: Keys) -> None:
    """Encrypt a socket that will connect, and trust only the server whose public key we hold."""
    socket.curve_serverkey = keys.server_public
    socket.curve_publickey = keys.client_public
    socket.curve_secretkey = keys.client_secret


def require_keys_outside_loopback(endpoint: str, keys: Path | None) -> None:
    """Pass `ipc://`, `inproc://` and loopback addresses, and `tcp://` ones when there are keys.

    Raises:
        ConfigError: The address is malformed, or leaves this host unencrypted.
    """
    if endpoint.startswith(("ipc://", "inproc://")):
        return
    parts = _TCP.fullmatch(endpoint)
    if parts is None or (parts["port"] != "*" and not 0 <= int(parts["port"]) <= 65535):
        raise ConfigError(
            f"{endpoint} is not an address we use; write ipc://PATH or tcp://HOST:PORT, for example tcp://127.0.0.1:5570"
        )
    if keys is None and not _is_loopback(parts["host"].strip("[]")):
        raise ConfigError(
            f"{endpoint} leaves this host, so it must be encrypted; make keys with `run_agent.py keys --out DIR` "
            "and name DIR as the `keys` beside this address, or use 127.0.0.1"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name or an interface: where it leads is not known here


def _write_all(directory: Path, names: Sequence[str]) -> list[Path]:
    directory.mkdir(parents=True, exist_ok=True)
    server_public, server_secret = zmq.curve_keypair()
    _write_new(directory / f"server{PUBLIC}", server_public, mode=0o644)
    _write_new(directory / f"server{SECRET}", server_secret, mode=0o600)
    (directory / "allowed").mkdir(exist_ok=True)
    elsewhere = []
    for number, name in enumerate(names):
        folder = directory if number == 0 else directory / name
        if number > 0:
            folder.mkdir(mode=0o700, exist_ok=True)
            _write_new(folder / f"server{PUBLIC}", server_public, mode=0o644)
            elsewhere.append(folder)
        public, secret = zmq.curve_keypair()
        _write_new(folder / f"client{PUBLIC}", public, mode=0o644)
        _write_new(folder / f"client{SECRET}", secret, mode=0o600)
        _write_new(directory / "allowed" / f"{name}{PUBLIC}", public, mode=0o644)
    return elsewhere


def _write_new(path: Path, key: bytes, *, mode: int) -> None:
    """Create with its mode from the first moment: a secret is never readable by others, however briefly."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
        stream.write(key + b"\n")


def _read_secret(path: Path) -> bytes:
    if path.exists() and path.stat().st_mode & 0o077:
        raise ConfigError(f"{path} can be read by other users, and a secret must not be; run `chmod 600 {path}`")
    return _read(path)


def _read(path: Path) -> bytes:
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(
            f"key file {path} cannot be read ({error.strerror}); make keys with `run_agent.py keys "
            "--out DIR` and copy what it says"
        ) from error
    if not _Z85.fullmatch(key):
        raise ConfigError(
            f"key file {path} does not hold one CURVE key of 40 characters; copy it anew or make new keys"
        )
    return key
