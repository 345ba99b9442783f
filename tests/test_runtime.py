from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import zmq

from stream_agent.errors import ConfigError
from stream_agent.runtime import MAX_IPC_PATH, RuntimeDirectory, host_id, runtime_root
from stream_agent.workers import child_environment

HOLDS_ONE = """
import sys
from pathlib import Path
from stream_agent.runtime import RuntimeDirectory
directory = RuntimeDirectory(Path(sys.argv[1]))
print(directory.path, flush=True)
sys.stdin.read()
"""


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def held_by_another(root: Path) -> tuple[subprocess.Popen[str], Path]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDS_ONE, str(root)],
        env=child_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    return holder, Path(holder.stdout.readline().strip())


def end(holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.communicate(timeout=5)


def test_a_directory_is_private_and_gone_afterwards(tmp_path: Path) -> None:
    before = open_files()
    with RuntimeDirectory(tmp_path / "root") as directory:
        assert directory.path.is_dir()
        assert directory.path.stat().st_mode & 0o777 == 0o700
        assert (tmp_path / "root").stat().st_mode & 0o777 == 0o700
    assert not directory.path.exists()
    assert open_files() == before
    directory.close()  # twice is no error


def test_each_agent_has_a_directory_of_its_own(tmp_path: Path) -> None:
    with RuntimeDirectory(tmp_path) as one, RuntimeDirectory(tmp_path) as other:
        assert one.path != other.path
        assert one.endpoint("plans") != other.endpoint("plans")


def test_an_endpoint_can_be_bound(short_path: Path) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with RuntimeDirectory(short_path) as directory, context.socket(zmq.PUB) as socket:
        socket.bind(directory.endpoint("plans"))
        assert (directory.path / "plans").is_socket()
    context.term()


def test_a_living_agents_directory_is_left_alone_and_a_dead_ones_is_swept(tmp_path: Path) -> None:
    living, living_path = held_by_another(tmp_path)
    dead, dead_path = held_by_another(tmp_path)
    try:
        dead.send_signal(signal.SIGKILL)
        dead.wait(5)
        assert dead_path.exists(), "kill -9 leaves it behind"
        with RuntimeDirectory(tmp_path):
            assert living_path.exists()
            assert not dead_path.exists()
    finally:
        end(living)
        end(dead)


def test_agents_that_start_at_once_do_not_take_each_others_directory(tmp_path: Path) -> None:
    """A directory can be swept between being made and being locked; its maker must then make another.

    Each such retry once left a descriptor open.
    """
    before = open_files()
    made: list[RuntimeDirectory] = []
    start = threading.Barrier(8, timeout=10)

    def make() -> None:
        start.wait()
        made.extend(RuntimeDirectory(tmp_path) for _ in range(25))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(made) == len({directory.path for directory in made}) == 200
    assert all((directory.path / "lock").exists() for directory in made)
    assert open_files() == before + 200
    for directory in made:
        directory.close()


def test_a_path_too_long_for_a_socket_is_an_error(tmp_path: Path) -> None:
    root = tmp_path / ("x" * MAX_IPC_PATH)
    with (
        RuntimeDirectory(root) as directory,
        pytest.raises(ConfigError, match=r"longer than the 107 .* XDG_RUNTIME_DIR"),
    ):
        directory.endpoint("plans")


def test_a_root_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="set XDG_RUNTIME_DIR to a writable directory"):
        RuntimeDirectory(tmp_path / "file" / "root")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_root_of_another_user_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, -1)
    with pytest.raises(ConfigError, match="another user"):
        RuntimeDirectory(tmp_path)


def test_a_link_in_the_place_of_the_root_is_refused(tmp_path: Path) -> None:
    """Anybody can put a link into /tmp; through it the sweep once removed folders of the user's own."""
    precious = tmp_path / "home" / "folder"
    precious.mkdir(parents=True)
    (precious / "lock").touch()
    (tmp_path / "root").symlink_to(tmp_path / "home")
    with pytest.raises(ConfigError, match=r"root is a link; .* XDG_RUNTIME_DIR"):
        RuntimeDirectory(tmp_path / "root")
    assert precious.exists()


def test_the_root_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert runtime_root() == tmp_path / "stream_agent"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "nowhere"))
    assert str(os.getuid()) in runtime_root().name
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert str(os.getuid()) in runtime_root().name


def test_the_host_id_is_the_same_in_every_process_of_a_boot() -> None:
    other = subprocess.run(
        [sys.executable, "-c", "from stream_agent.runtime import host_id; print(host_id())"],
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert other.stdout.strip() == host_id() != ""
