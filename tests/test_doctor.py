from __future__ import annotations

import importlib.metadata
import io
import os
import sys
import tempfile
from pathlib import Path

import pytest
from rich.console import Console

from stream_agent import doctor
from stream_agent.config import AgentConfig, load_config
from stream_agent.doctor import Check, all_checks, check_packages, check_python, core_pins, examine
from stream_agent.transport.keys import make_keys


def found(config: AgentConfig, name: str) -> Check:
    return next(check for check in all_checks(config) if check.name == name)


def test_this_machine_passes_with_the_defaults() -> None:
    file = io.StringIO()
    assert examine(AgentConfig(), Console(file=file, width=80)) == 0
    text = file.getvalue()
    assert " 0 failed" in text
    assert max(map(len, text.splitlines())) <= 80


def test_every_failure_names_its_fix(tmp_path: Path) -> None:
    config = load_config(
        None,
        [
            "source.uri=/nosuch/video.mp4",
            "procedure.pack=nosuch",
            "sinks.jsonl=/nosuch/out.jsonl",
            "sinks.publisher.bind=tcp://0.0.0.0:5571",
            "transport.keys=/nosuch/keys",
        ],
    )
    failed = {check.name: check for check in all_checks(config) if check.state == "fail"}
    assert set(failed) == {"procedure pack", "source", "disk", "transport keys", "publisher keys"}
    assert all(check.remedy for check in failed.values())
    assert examine(config, Console(file=io.StringIO())) == 1


@pytest.mark.parametrize(("version", "state"), [((3, 10, 9), "fail"), ((3, 11, 0), "ok"), ((3, 14, 1), "ok")])
def test_an_old_python_is_refused(version: tuple[int, int, int], state: str) -> None:
    assert check_python(version).state == state


def test_the_pins_are_those_of_the_project() -> None:
    assert core_pins()["pyzmq"] == importlib.metadata.version("pyzmq")


def test_packages_that_are_missing_or_other_versions_are_named() -> None:
    checks = list(
        check_packages({"no-such-package": "1.0", "pyzmq": "0.1", "rich": importlib.metadata.version("rich")})
    )
    assert [(check.name, check.state) for check in checks] == [
        ("no-such-package", "fail"),
        ("pyzmq", "warn"),
        ("packages", "ok"),
    ]
    assert checks[1].remedy == "pip install pyzmq==0.1"
    assert "1 of 3" in checks[2].detail


def test_a_package_that_breaks_on_import_does_not_end_the_examination(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "brokenpackage.py").write_text("raise RuntimeError('no CPU for this')")
    monkeypatch.syspath_prepend(tmp_path)
    checks = list(check_packages({"brokenpackage": "1.0"}))
    assert checks[0].state == "fail"
    assert "no CPU for this" in checks[0].detail


def test_an_unforeseen_failure_is_a_failed_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_root: object = None) -> None:
        raise ZeroDivisionError("surprise")

    monkeypatch.setattr(doctor, "RuntimeDirectory", broken)
    check = found(AgentConfig(), "runtime directory")
    assert (check.state, check.detail) == ("fail", "ZeroDivisionError: surprise")
    assert found(AgentConfig(), "terminal").state == "ok"


def test_a_runtime_directory_too_long_for_sockets_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    check = found(AgentConfig(), "runtime directory")
    assert check.state == "fail"
    assert "XDG_RUNTIME_DIR" in check.remedy


def test_a_sandbox_without_memory_files_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_name: str, _flags: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "memfd_create", refused)
    assert found(AgentConfig(), "shared memory").state == "fail"


def test_a_source_that_opens_tells_its_size(shared_data: Path) -> None:
    video = shared_data / "video" / "VID74_448frames_25fps_706x396.mp4"
    check = found(load_config(None, [f"source.uri={video}"]), "source")
    assert (check.state, "opens, 706x396" in check.detail) == ("ok", True)


def test_secrets_of_an_address_are_not_printed() -> None:
    config = load_config(None, ["source.uri=rtsp://user:hunter2@127.0.0.1:1/x", "source.open_timeout_s=1"])
    check = found(config, "source")
    assert check.state == "fail"
    assert "hunter2" not in check.detail + check.remedy


def test_open_secrets_fail_and_sound_keys_pass() -> None:
    with tempfile.TemporaryDirectory() as directory:
        keys = Path(directory) / "keys"
        make_keys(keys)
        config = load_config(None, [f"transport.keys={keys}"])
        assert found(config, "transport keys").state == "ok"
        (keys / "client.curve_secret").chmod(0o644)
        check = found(config, "transport keys")
        assert check.state == "fail"
        assert check.remedy.startswith("run `chmod 600")


SINKS = ("dashboard", "recording", "OpenIGTLink", "Rerun", "ROS 2")


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)


@pytest.mark.usefixtures("nothing_installed")
def test_what_is_not_installed_is_fine_until_it_is_asked_for_and_the_way_to_it_is_told() -> None:
    for name in SINKS:
        check = found(AgentConfig(), name)
        assert check.state == "ok"
        assert "not installed; not asked for. For it: " in check.detail


@pytest.mark.parametrize(
    ("name", "setting", "remedy"),
    [
        ("dashboard", "sinks.dashboard.enabled=true", "stream-agent[dashboard]"),
        ("recording", "sinks.recording=x.mcap", "stream-agent[record]"),
        ("OpenIGTLink", "sinks.openigtlink.port=18944", "stream-agent[igtl]"),
        ("Rerun", "sinks.rerun.connect=127.0.0.1:9876", "stream-agent[rerun]"),
        ("ROS 2", "sinks.ros2.namespace=x", "source /opt/ros/DISTRO/setup.bash"),
    ],
)
@pytest.mark.usefixtures("nothing_installed")
def test_what_is_asked_for_and_not_installed_fails(name: str, setting: str, remedy: str) -> None:
    check = found(load_config(None, [setting]), name)
    assert check.state == "fail"
    assert remedy in check.remedy


def test_what_is_installed_is_said_to_be() -> None:
    check = found(load_config(None, ["sinks.dashboard.enabled=true"]), "dashboard")
    assert (check.state, check.detail) == ("ok", "fastapi, uvicorn, websockets installed; asked for")


def test_a_dashboard_for_others_without_its_token_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_TOKEN", raising=False)
    settings = ["enabled=true", "host=0.0.0.0", "token_env=NO_SUCH_TOKEN", "plaintext=true"]
    check = found(load_config(None, [f"sinks.dashboard.{setting}" for setting in settings]), "dashboard")
    assert check.state == "fail"
    assert "NO_SUCH_TOKEN" in check.detail


def test_the_terminal_is_judged_by_size_and_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("LINES", "20")
    assert found(AgentConfig(), "terminal").state == "warn"
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    assert found(AgentConfig(), "terminal").state == "ok"
