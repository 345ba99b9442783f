"""One agent as its user would run it, for benchmarks that look at it from outside while it runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.report import ROOT

_START_S = 60.0
_STOP_S = 20.0


class RunningAgent:
    """A `run_agent.py run` that writes its plans to a file."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self._folder = folder
        self._process = process

    def dashboard_port(self) -> int:
        """Where its page is; waits until it is served."""
        told = self._until_told(self._folder / "stderr", r"dashboard: http://[^:]+:(\d+)/")
        return int(told[1])

    def wait_for_plans(self) -> None:
        """Until the first plan is written."""
        self._until_told(self._folder / "plans.jsonl", r"\n")

    def plans(self) -> list[dict[str, Any]]:
        """Every whole line so far."""
        lines = (self._folder / "plans.jsonl").read_bytes().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith(b"\n")]

    def stop(self) -> None:
        """As Ctrl-C does."""
        self._process.terminate()
        self._process.wait(_STOP_S)

    def _until_told(self, file: Path, pattern: str) -> re.Match[str]:
        deadline_s = time.monotonic() + _START_S
        while time.monotonic() < deadline_s and self._process.poll() is None:
            if file.is_file() and (found := re.search(pattern, file.read_text(errors="replace"))):
                return found
            time.sleep(0.05)
        said = (self._folder / "stderr").read_text(errors="replace")
        raise TimeoutError(f"the agent told no {pattern} in {file.name}: {said[-500:]}")


@contextmanager
def running(folder: Path, settings: Sequence[str]) -> Iterator[RunningAgent]:
    """An agent with these settings, in an empty folder of its own; ended whatever happens."""
    folder.mkdir(parents=True)
    command = [sys.executable, str(ROOT / "run_agent.py"), "run", "--config", "demo.yaml", "sinks.console=off"]
    command += [f"sinks.jsonl={folder / 'plans.jsonl'}", *settings]
    with (folder / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env={**os.environ, "XDG_RUNTIME_DIR": str(folder)},
        )
    try:
        yield RunningAgent(folder, process)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def capture_to_plan_ms(plans: Sequence[dict[str, Any]], begin_ns: int, end_ns: int) -> list[float]:
    """From a frame's capture to its first plan, of the frames captured within the span."""
    stamps: dict[int, int] = {}
    for plan in plans:
        if not plan["abstained"] and begin_ns <= plan["captured_ns"] < end_ns:
            stamps.setdefault(plan["captured_ns"], plan["published_ns"])
    return [(published - captured) / 1e6 for captured, published in sorted(stamps.items())]


def span(seconds: float, settle_s: float) -> tuple[int, int]:
    """Let `settle_s` and then `seconds` go by; beginning and end of the latter, by the clock that stamps frames."""
    time.sleep(settle_s)
    begin_ns = time.monotonic_ns()
    time.sleep(seconds)
    return begin_ns, time.monotonic_ns()
