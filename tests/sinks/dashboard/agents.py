"""Agents with a dashboard, for the tests of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

REPOSITORY = Path(__file__).resolve().parents[3]
TOKEN = "a token for the tests only"
SMALL = ("source.synthetic_width=160", "source.synthetic_height=96")


class DashboardAgent:
    """An agent with a dashboard on a free port.

    Attributes:
        url: The page's address, `http://127.0.0.1:PORT`, or https.
    """

    def __init__(self, folder: Path, *settings: str) -> None:
        self.folder = folder
        self._log = folder / "stderr"
        with self._log.open("w") as stderr:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, str(REPOSITORY / "run_agent.py"), "run", "--config", "demo.yaml"),
                    *(
                        "sinks.console=off",
                        "source.loop=true",
                        "sinks.dashboard.enabled=true",
                        "sinks.dashboard.port=0",
                    ),
                    *settings,
                ],
                env={**os.environ, "XDG_RUNTIME_DIR": str(folder), "DASHBOARD_TOKEN": TOKEN},
                stderr=stderr,
                stdout=subprocess.DEVNULL,
                cwd=folder,
            )
        try:
            self.url = self._address()
        except BaseException:
            self.close()
            raise

    def _address(self) -> str:
        deadline_s = time.monotonic() + 40
        while time.monotonic() < deadline_s:
            found = re.search(r"dashboard: (https?://\S+)/", self._log.read_text())
            if found:
                return found[1]
            assert self.process.poll() is None, self._log.read_text()
            time.sleep(0.02)
        raise AssertionError(f"no address was told: {self._log.read_text()}")

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def freeze(self) -> None:
        """Stop the agent itself; its children go on."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> int:
        """Ctrl-C; the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(15)

    def told(self) -> str:
        return self._log.read_text()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


StartDashboard: TypeAlias = Callable[..., DashboardAgent]


def run_to_the_end(folder: Path, *settings: str) -> int:
    """An agent without a dashboard; its exit code."""
    command = [sys.executable, str(REPOSITORY / "run_agent.py"), "run", "--config", "demo.yaml", "sinks.console=off"]
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(folder)}
    return subprocess.run(
        [*command, *settings], env=environment, cwd=folder, capture_output=True, timeout=100
    ).returncode
