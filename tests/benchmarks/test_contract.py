"""What other tools rely on: the last line of `bench NAME --quick`, and the names of methods and cases in it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks import staleness, transport
from benchmarks.pair import Consume, Round
from benchmarks.targets import BENCHMARKS

REPOSITORY = Path(__file__).resolve().parents[2]
METHODS = (
    "ours",
    "floor_8_bytes",
    "memcpy",
    "imagezmq_pubsub",
    "imagezmq_reqrep",
    "netgear_raw",
    "pyzmq_ipc",
    "iceoryx2",
)
CASES = ("480p", "1080p", "2160p")
NAMED = (
    "transport",
    "staleness",
    "decode",
    "memory",
    "recognise",
    "planner",
    "end_to_end",
    "accuracy_latency",
)


def result_of(*command: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, *command], cwd=REPOSITORY, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode in (0, 1), done.stderr[-2000:]  # 1: a target is missed, which is the machine's
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def require_rows(result: dict[str, Any]) -> None:
    assert result["rows"] or result["not_run"]
    for row in result["rows"]:
        assert isinstance(row["method"], str) and isinstance(row["case"], str)
        assert {"p50_ms", "p99_ms"} <= row.keys()
        assert all(row[key] is None or math.isfinite(row[key]) for key in ("p50_ms", "p99_ms"))


def test_there_is_a_benchmark_of_every_name_in_the_issue() -> None:
    assert set(NAMED) <= set(BENCHMARKS)
    assert all((REPOSITORY / "benchmarks" / f"{name}.py").is_file() for name in BENCHMARKS)


def test_every_carrier_of_the_contract_carries_480p_between_real_processes() -> None:
    """One short round each; a peer that is not installed is told with its pip command and is no row."""
    result = result_of(
        "-m", "benchmarks.transport", "--quick", "--guard", "--sizes", "480p", "--rounds", "1", "--frames", "10"
    )
    require_rows(result)
    measured = {row["method"] for row in result["rows"]}
    assert {"ours", "floor_8_bytes", "memcpy", "pyzmq_ipc"} <= measured
    assert measured | set(result["not_run"]) == set(METHODS)
    assert all("pip install" in why for why in result["not_run"].values())
    assert all(row["n"] > 0 and 0 < row["p50_ms"] <= row["p99_ms"] for row in result["rows"])


def test_the_ways_between_hosts_and_the_other_peers_carry_too() -> None:
    between = ["ours_tcp_raw", "ours_tcp_jpeg", "ours_tcp_curve", "ours_tcp_jpeg_curve"]
    other = ["pyzmq_tcp", "pyzmq_tcp_copy", "pyzmq_tcp_queue", "pyzmq_ipc_copy", "pyzmq_ipc_queue", "mp_queue"]
    methods = ",".join([*between, *other])
    result = result_of(
        *("-m", "benchmarks.transport", "--guard", "--sizes", "480p", "--rounds", "1", "--frames", "8"),
        *("--methods", methods),
    )
    assert {row["method"] for row in result["rows"]} == {"ours", "floor_8_bytes", *between, *other}
    assert all(row["n"] > 0 for row in result["rows"])


class MadeUp:
    """A pair that answers at once."""

    def run(self, interval_s: float, task: object, *, waits: bool = False) -> Round:
        count = 5 if isinstance(task, Consume) else task.count  # type: ignore[attr-defined]
        return Round([1.0] * count, [0.1] * count, count, [0.1 * at for at in range(count)])


@contextmanager
def made_up(methods: Sequence[str], case: str) -> Iterator[tuple[dict[str, MadeUp], dict[str, str]]]:
    yield {method: MadeUp() for method in methods}, {}


def printed(benchmark: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    monkeypatch.setattr(benchmark, "opened", made_up)
    monkeypatch.setattr(sys, "argv", [benchmark.__name__, "--quick"])
    benchmark.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return result


def test_quick_transport_tells_every_method_of_the_contract_in_every_case(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = printed(transport, monkeypatch, capsys)
    assert {(row["method"], row["case"]) for row in result["rows"]} == {
        (method, case) for method in METHODS for case in CASES
    }
    require_rows(result)


def test_every_row_of_staleness_carries_the_age_s_p99(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = printed(staleness, monkeypatch, capsys)
    assert "ours" in {row["method"] for row in result["rows"]}
    assert all(row["age_p99_ms"] == 1.0 for row in result["rows"])
    require_rows(result)
