from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import yaml

from stream_agent import __version__, cli
from stream_agent.config import AgentConfig, load_config
from stream_agent.errors import SourceError
from stream_agent.workers import child_environment

_REPOSITORY = Path(__file__).resolve().parent.parent


class FakeAgent(types.ModuleType):
    """Stands in for `stream_agent.agent`; keeps what `run` was called with."""

    def __init__(self) -> None:
        super().__init__("stream_agent.agent")
        self.config = AgentConfig()
        self.summary: Path | None = None
        self.error: BaseException | None = None

    def run(self, config: AgentConfig, summary: Path | None = None) -> int:
        self.config, self.summary = config, summary
        if self.error is not None:
            raise self.error
        return 7


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> FakeAgent:
    import stream_agent

    fake = FakeAgent()
    monkeypatch.setitem(sys.modules, "stream_agent.agent", fake)
    monkeypatch.setattr(stream_agent, "agent", fake, raising=False)
    return fake


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    path = tmp_path / "demo.yaml"
    path.write_text("source:\n  uri: other.mp4\nplanner:\n  valid_s: 3\n")
    return path


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_options_and_overrides_come_in_any_order(agent: FakeAgent, preset: Path, order: int) -> None:
    parts = [
        ["--config", str(preset)],
        ["source.uri=a file.mp4", "source.pace=max"],
        ["--summary", "sum.json"],
        ["sinks.jsonl=out.jsonl"],
    ]
    arguments = [argument for part in parts[order:] + parts[:order] for argument in part]
    assert call("run", *arguments) == 7
    config = agent.config
    assert (config.source.uri, config.source.pace, config.planner.valid_s) == ("a file.mp4", "max", 3.0)
    assert (config.sinks.jsonl, agent.summary) == (Path("out.jsonl"), Path("sum.json"))


@pytest.mark.parametrize(
    "video",
    [
        "case.mp4",
        "0012",
        "/dev/video0",
        "rtsp://host/live?a.b=c",
        "a: b.mp4",
        'qu"ote.mp4',
        "./x=y.mp4",
        "null",
        "🫀.mp4",
    ],
)
def test_an_argument_that_is_no_setting_is_the_source(agent: FakeAgent, video: str) -> None:
    assert call("run", video, "planner.horizon=2") == 7
    assert (agent.config.source.uri, agent.config.planner.horizon) == (video, 2)


def test_two_sources_are_a_mistake(agent: FakeAgent, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", "a.mp4", "b.mp4") == 2
    assert capsys.readouterr().err.startswith("error: a.mp4 and b.mp4 are both sources")


def test_our_errors_are_one_message_each_line_marked_with_their_exit_code(
    agent: FakeAgent, capsys: pytest.CaptureFixture[str]
) -> None:
    agent.error = SourceError("x.mp4 does not exist\nneither does y.mp4")
    assert call("run") == SourceError.exit_code
    assert capsys.readouterr().err == "error: x.mp4 does not exist\nerror: neither does y.mp4\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "sorce.uri=x"], "did you mean source?"),
        (["run", "x=1"], "is not section.key=value"),
        (["run", "--config", "/nosuch.yaml"], "config file /nosuch.yaml does not exist"),
        (["run", "--nosuch"], "No such option"),
        (["nosuch"], "No such command"),
        (["keys"], "Missing option '--out'"),
    ],
)
def test_a_mistake_on_the_command_line_is_exit_code_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    assert words in "\n".join(lines)


def test_ctrl_c_during_the_start_is_no_traceback(agent: FakeAgent, capsys: pytest.CaptureFixture[str]) -> None:
    agent.error = KeyboardInterrupt()
    assert call("run") == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_bug_of_ours_is_not_dressed_up(agent: FakeAgent) -> None:
    agent.error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        cli.main(["run"])


def test_what_show_prints_is_a_preset_of_the_same_configuration(
    tmp_path: Path, preset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("config", "show", "--config", str(preset), "source.pace=2x", "sinks.jsonl=o.jsonl") == 0
    shown = tmp_path / "shown.yaml"
    shown.write_text(capsys.readouterr().out)
    assert load_config(shown) == load_config(preset, ["source.pace=2x", "sinks.jsonl=o.jsonl"])


def test_the_schema_names_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    def keys(tree: dict[str, object], prefix: str = "") -> list[str]:
        found = []
        for name, value in tree.items():
            nested = isinstance(value, dict) and name != "options"
            found += keys(value, f"{prefix}{name}.") if nested else [f"{prefix}{name}"]  # type: ignore[arg-type]
        return found

    assert call("config", "schema") == 0
    text = capsys.readouterr().out
    for key in keys(AgentConfig().model_dump(mode="json")):
        assert f"  {key}=" in text, key
    assert "source.pace=realtime   (realtime | max or number > 0, <= 1000)" in text
    assert call("config", "schema", "--json") == 0
    assert "properties" in json.loads(capsys.readouterr().out)


def test_keys_tells_what_belongs_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "keys"
    assert call("keys", "--out", str(out), "--name", "camera", "--name", "theatre-2") == 0
    assert f"{out / 'theatre-2'}  move to host theatre-2" in capsys.readouterr().out
    assert (out / "theatre-2" / "client.curve_secret").is_file()
    assert call("keys", "--out", str(out)) == 2


def test_grab_and_doctor_take_settings_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("grab", "x.mp4", "source.pace=max", "transport.bind=tcp://127.0.0.1:5") == 2
    assert call("doctor", "sinks.jsonl=/nosuch/out.jsonl") == 1
    assert "mkdir -p /nosuch" in capsys.readouterr().out


def script(*arguments: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, str(_REPOSITORY / "run_agent.py"), *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=child_environment(),
    )


def test_the_script_runs_from_anywhere() -> None:
    out, err = script("--version").communicate()
    assert (out.decode().strip(), err) == (f"stream_agent, version {__version__}", b"")
    out, _ = script("config", "show").communicate()
    assert yaml.safe_load(out)["source"]["uri"] == "synthetic:"


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    """As in `run_agent.py config schema | head -1`."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    process = script("config", "schema", stdout=write_end)
    os.close(write_end)
    _, err = process.communicate()
    assert err == b""
    assert process.returncode == 1


def test_the_command_line_loads_nothing_heavy() -> None:
    code = (
        "import sys, stream_agent.cli; print([m for m in ('cv2','av','zmq','rich.live','torch') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, env=child_environment(), check=True).stdout
    assert out.decode().strip() == "[]"
