from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import zmq

from stream_agent.errors import ConfigError
from stream_agent.transport.keys import (
    Keys,
    load_keys,
    make_keys,
    require_keys_outside_loopback,
    secure_client,
    secure_server,
)

Context = zmq.Context[zmq.Socket[bytes]]
Secure = Callable[[zmq.Socket[bytes]], None]


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    make_keys(tmp_path / "keys", ["camera", "agent", "viewer"])
    return tmp_path / "keys"


@pytest.fixture
def context() -> Iterator[Context]:
    context = zmq.Context()
    yield context
    context.term()


def subscriber(context: Context, endpoint: str, secure: Secure) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.SUB)
    socket.linger = 0
    secure(socket)
    socket.subscribe(b"")
    socket.connect(endpoint)
    return socket


def test_every_secret_exists_once_and_for_its_owner_only(keys: Path) -> None:
    secrets = sorted(str(path.relative_to(keys)) for path in keys.rglob("*.curve_secret"))
    assert secrets == [
        "agent/client.curve_secret",
        "client.curve_secret",
        "server.curve_secret",
        "viewer/client.curve_secret",
    ]
    assert all((keys / name).stat().st_mode & 0o777 == 0o600 for name in secrets)
    assert len({(keys / name).read_bytes() for name in secrets}) == 4


def test_the_serving_host_holds_everything_and_a_client_only_its_own(keys: Path) -> None:
    server, client = load_keys(keys), load_keys(keys / "agent")
    assert server.server_secret is not None
    assert len(server.allowed) == 3
    assert client.client_public in server.allowed
    assert (client.server_public, client.server_secret, client.allowed) == (server.server_public, None, frozenset())


def test_a_repr_shows_no_secret(keys: Path) -> None:
    loaded = load_keys(keys)
    assert loaded.server_secret is not None
    assert loaded.server_secret.decode() not in repr(loaded)
    assert loaded.client_secret.decode() not in repr(loaded)


def test_keys_are_never_overwritten(keys: Path) -> None:
    before = load_keys(keys)
    with pytest.raises(ConfigError, match="never overwritten; choose another directory"):
        make_keys(keys)
    assert load_keys(keys) == before


@pytest.mark.parametrize("name", ["", "../x", "a/b", "server", "allowed", ".hidden", "x" * 65])
def test_a_name_that_could_leave_the_directory_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="is not usable"):
        make_keys(tmp_path, ["camera", name])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_secret_that_others_can_read_is_refused(keys: Path, mode: int) -> None:
    (keys / "server.curve_secret").chmod(mode)
    with pytest.raises(ConfigError, match=r"chmod 600 .*server\.curve_secret"):
        load_keys(keys)


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 41, b"\xff" * 40, b"~" * 40])
def test_a_malformed_key_is_refused(keys: Path, content: bytes) -> None:
    (keys / "allowed" / "agent.curve_public").write_bytes(content)
    with pytest.raises(ConfigError, match="does not hold one CURVE key"):
        load_keys(keys)


def test_missing_keys_name_the_command_that_makes_them(tmp_path: Path, keys: Path) -> None:
    with pytest.raises(ConfigError, match=r"run_agent.py keys --out"):
        load_keys(tmp_path / "none")
    (keys / "client.curve_secret").unlink()
    with pytest.raises(ConfigError, match=r"client\.curve_secret cannot be read"):
        load_keys(keys)


def test_a_client_directory_cannot_serve(keys: Path, context: Context) -> None:
    with closing(context.socket(zmq.PUB)) as socket, pytest.raises(ConfigError, match="belong to a client"):
        secure_server(socket, load_keys(keys / "agent"), context)


def test_an_empty_allow_list_is_refused_since_nobody_could_connect(keys: Path, context: Context) -> None:
    for path in (keys / "allowed").iterdir():
        path.unlink()
    with closing(context.socket(zmq.PUB)) as socket, pytest.raises(ConfigError, match="lists no client"):
        secure_server(socket, load_keys(keys), context)


def test_only_listed_clients_hear_anything(tmp_path: Path, keys: Path, context: Context) -> None:
    make_keys(tmp_path / "other")
    ours, theirs = load_keys(keys), load_keys(tmp_path / "other")
    server = context.socket(zmq.PUB)
    server.linger = 0
    authenticator = secure_server(server, ours, context)
    port = server.bind_to_random_port("tcp://127.0.0.1")
    endpoint = f"tcp://127.0.0.1:{port}"

    def stranger(socket: zmq.Socket[bytes]) -> None:
        unknown = Keys(ours.server_public, None, theirs.client_public, theirs.client_secret, frozenset())
        secure_client(socket, unknown)

    allowed = subscriber(context, endpoint, lambda socket: secure_client(socket, load_keys(keys / "agent")))
    refused = [
        subscriber(context, endpoint, stranger),
        subscriber(context, endpoint, lambda socket: None),
        subscriber(context, endpoint, lambda socket: secure_client(socket, theirs)),  # expects another server
    ]
    try:
        for _ in range(200):
            server.send(b"hello")
            if allowed.poll(20):
                break
        assert allowed.recv(zmq.NOBLOCK) == b"hello"
        for _ in range(10):  # the refused ones have had as long; give them more
            server.send(b"hello")
            assert not any(socket.poll(10) for socket in refused)
    finally:
        for socket in (allowed, *refused, server):
            socket.close()
        authenticator.stop()


def test_a_client_taken_off_the_list_is_shut_out_at_the_next_start(keys: Path, context: Context) -> None:
    (keys / "allowed" / "agent.curve_public").unlink()
    server = context.socket(zmq.PUB)
    server.linger = 0
    authenticator = secure_server(server, load_keys(keys), context)
    endpoint = f"tcp://127.0.0.1:{server.bind_to_random_port('tcp://127.0.0.1')}"
    refused = subscriber(context, endpoint, lambda socket: secure_client(socket, load_keys(keys / "agent")))
    allowed = subscriber(context, endpoint, lambda socket: secure_client(socket, load_keys(keys / "viewer")))
    try:
        while not allowed.poll(20):
            server.send(b"hello")
        assert not refused.poll(50)
    finally:
        for socket in (allowed, refused, server):
            socket.close()
        authenticator.stop()


@pytest.mark.parametrize(
    "endpoint",
    ["ipc:///tmp/x", "inproc://x", "tcp://127.0.0.1:5", "tcp://127.8.9.1:5", "tcp://localhost:5", "tcp://[::1]:5"],
)
def test_addresses_of_this_host_need_no_keys(endpoint: str) -> None:
    require_keys_outside_loopback(endpoint, None)


@pytest.mark.parametrize(
    "endpoint", ["tcp://*:5", "tcp://0.0.0.0:5", "tcp://eth0:5", "tcp://10.0.0.1:5", "tcp://[::]:5"]
)
def test_addresses_outside_this_host_need_keys(endpoint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be encrypted; make keys"):
        require_keys_outside_loopback(endpoint, None)
    require_keys_outside_loopback(endpoint, tmp_path)


@pytest.mark.parametrize("endpoint", ["", "tcp://host", "tcp://:5", "tcp://h:99999", "udp://h:5", "http://h:5", "h:5"])
def test_what_is_no_address_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="is not an address we use"):
        require_keys_outside_loopback(endpoint, None)
