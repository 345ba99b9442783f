"""Real video, recogniser, memory, a planner worker with a model, fused plans; and the worker killed midway.

The models are tiny or small and this machine has no GPU, so deadlines are wide: what is tested is that everything meets.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.planner.backends.conftest import Server

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1500), pytest.mark.filterwarnings("default")]

_REPOSITORY = Path(__file__).resolve().parents[3]
_SLOW = (
    "planner.deadline_ms=120000", "planner.valid_s=121", "scheduler.min_interval_s=1", "scheduler.max_staleness_s=5",
    "planner.rationale_tokens=120", "planner.rationale_max_s=120", "planner.max_pixels=65536", "planner.request_timeout_s=120",
    "planner.restarts_per_minute=6", "planner.permutations=2", "recogniser.rate_hz=2",
    "planner.context_tokens=8192",  # the tiny models' tokenizer makes four times as many tokens as a real one
)  # fmt: skip


class Run:
    """The product's own command on a looped video, and what it publishes."""

    def __init__(self, video: Path, folder: Path, *settings: str) -> None:
        self.plans_file, self.summary, self.log = (folder / name for name in ("plans.jsonl", "summary.json", "log"))
        command = [sys.executable, "run_agent.py", "run", str(video), *settings, *_SLOW, "source.loop=true", "sinks.console=plain",
                   f"sinks.jsonl={self.plans_file}", "--summary", str(self.summary)]  # fmt: skip
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=_REPOSITORY, stdout=log, stderr=subprocess.STDOUT)

    def plans(self) -> list[dict[str, Any]]:
        if not self.plans_file.is_file():
            return []
        lines = self.plans_file.read_text().split("\n")[:-1]
        return [plan for plan in map(json.loads, lines) if plan.get("type") == "plan"]

    def fused(self) -> list[dict[str, Any]]:
        return [plan for plan in self.plans() if plan["source"] == "fused"]

    def until(self, condition: Callable[[], object], within_s: float = 600.0) -> None:
        end = time.monotonic() + within_s
        while not condition():
            assert self.process.poll() is None, self.told()
            assert time.monotonic() < end, self.told()
            time.sleep(0.2)

    def told(self) -> str:
        return f"{self.log.read_text()[-6000:]}\nplans: {len(self.plans())}, fused: {len(self.fused())}"

    def worker(self) -> psutil.Process | None:
        children = psutil.Process(self.process.pid).children()
        return next((child for child in children if is_running(child, "stream_agent.planner.worker")), None)

    def end(self) -> dict[str, Any]:
        """Stop as with Ctrl-C; the summary."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(timeout=60) in (0, 130), self.told()
        summary: dict[str, Any] = json.loads(self.summary.read_text())
        return summary

    def clear(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(timeout=30)


@pytest.fixture
def video(shared_data: Path) -> Path:
    return shared_data / "video" / "VID43_concat_105s_854x480_25fps.mp4"


def is_running(process: psutil.Process, module: str = "") -> bool:
    """Whether a process lives, and as what was named; one that ended meanwhile does not."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE and (not module or module in process.cmdline())
    except psutil.NoSuchProcess:
        return False


def whole_run(run: Run) -> None:
    """Fused plans before the worker is killed and after, and nothing of it left behind.

    Meanwhile the last fused plan stands as long as it is valid, and the statistical planner's does after it.
    """
    try:
        run.until(run.fused)
        before = len(run.fused())
        plan = run.fused()[-1]
        assert len({ranked["action"] for ranked in plan["ranked"]}) == 3
        assert plan["current_action"] not in {ranked["action"] for ranked in plan["ranked"]}
        assert plan["hashes"]["model"]
        assert plan["fusion"]["model"] != plan["fusion"]["statistical"]

        worker = run.worker()
        assert worker is not None
        engines = worker.children(recursive=True)
        os.kill(worker.pid, signal.SIGKILL)
        killed_at = time.monotonic()
        run.until(lambda: not any(map(is_running, engines)), 20)
        run.until(lambda: run.worker() not in (None, worker))
        run.until(lambda: [plan for plan in run.fused()[before:] if plan["published_ns"] / 1e9 > killed_at + 1])
        pids = {child.pid for child in psutil.Process(run.process.pid).children(recursive=True)}
        summary = run.end()
        assert summary["plans"]["by_source"]["fused"] >= 2
        assert summary["plans"]["by_source"]["statistical"] >= 1
        end = time.monotonic() + 20
        while any(psutil.pid_exists(pid) for pid in pids):
            assert time.monotonic() < end, [psutil.Process(pid).cmdline() for pid in pids if psutil.pid_exists(pid)]
            time.sleep(0.2)
    finally:
        run.clear()


@pytest.fixture(scope="module")
def seeing(tiny: Callable[..., Path], start_server: Callable[..., Server]) -> Server:
    server = start_server(tiny("qwen2_5_vl"))
    server.wait_until_ready()
    return server


def test_direct_with_a_live_server(video: Path, seeing: Server, tmp_path: Path) -> None:
    """The README's line: `run --config configs/server.yaml planner.endpoint=…`."""
    whole_run(Run(video, tmp_path, "--config", "configs/server.yaml", f"planner.endpoint={seeing.url}"))


def test_direct_in_process(video: Path, tiny: Callable[..., Path], tmp_path: Path) -> None:
    whole_run(
        Run(video, tmp_path, "planner.kind=vllm", f"planner.model={tiny('qwen2_5_vl')}", "planner.kv_cache_gb=0.5")
    )


def test_indirect_a_text_model_plans_from_captions(video: Path, seeing: Server, smollm2: Path, tmp_path: Path) -> None:
    captioner = f"{{kind: openai, endpoint: '{seeing.url}'}}"
    settings = ("planner.kind=vllm", f"planner.model={smollm2}", "planner.form=indirect", f"planner.captioner={captioner}",
                "planner.kv_cache_gb=0.5", "planner.caption_max_age_s=120", "planner.caption_refresh_s=20",
                "planner.caption_tokens=24")  # fmt: skip
    run = Run(video, tmp_path, *settings)
    whole_run(run)
    captioned = [plan for plan in run.fused() if plan["caption"]]
    assert captioned, run.told()
    assert all(0 <= plan["caption_age_s"] <= 120 for plan in captioned)
