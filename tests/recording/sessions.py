"""Sessions for the tests of recordings: the real command line and small pictures."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from stream_agent.cli import main
from stream_agent.recording.reader import RecordingFile

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = ["source.synthetic_width=160", "source.synthetic_height=96", "sinks.console=off"]
MakeRecording = Callable[..., Path]


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(REPOSITORY / "run_agent.py"), *map(str, arguments)]


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "XDG_RUNTIME_DIR": str(folder), "COLUMNS": "200"}


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """One command of the program, to its end."""
    return subprocess.run(
        command(*arguments), env=environment(folder), cwd=folder, capture_output=True, text=True, timeout=100
    )


def record(folder: Path, *settings: str) -> Path:
    """A session recorded to `r.mcap` in `folder`."""
    path = folder / "r.mcap"
    done = run(folder, "run", "--config", "demo.yaml", *SMALL, f"sinks.recording={path}", *settings)
    assert done.returncode == 0, done.stderr
    return path


def tell(*arguments: object) -> subprocess.CompletedProcess[str]:
    """A command that starts no process, in this one."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    code = ended.value.code
    return subprocess.CompletedProcess([], code if isinstance(code, int) else 1, out.getvalue(), err.getvalue())


def count(path: Path, topic: str) -> int:
    with RecordingFile(path) as recording:
        return sum(
            recording.layout.counts[number]
            for number, channel in recording.layout.channels.items()
            if channel.topic == topic
        )
