"""Runs benchmarks one after the other, each in a process of its own, and joins what they say."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.report import ROOT, commit, machine, versions
from benchmarks.targets import BENCHMARKS
from stream_agent.errors import ConfigError
from stream_agent.located_yaml import close_match

LIMIT_S = 3600.0
"""Longest that one benchmark may take before it is given up; a quick one takes a minute or two."""


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """The benchmarks that are asked for; all of them without a name.

    Raises:
        ConfigError: There is none of that name.
    """
    for name in names:
        if name not in BENCHMARKS:
            hint = close_match(name, BENCHMARKS) or f"; choose from {', '.join(BENCHMARKS)}"
            raise ConfigError(f"there is no benchmark {name}{hint}")
    return tuple(dict.fromkeys(names)) or BENCHMARKS


def run(
    names: Sequence[str],
    *,
    quick: bool,
    save: bool = False,
    tell: Callable[[str], None] = print,
    limit_s: float = LIMIT_S,
) -> dict[str, dict[str, Any]]:
    """Benchmark → its result; one that broke has no rows and says why in `broken`."""
    results = {}
    for name in names:
        began_s = time.monotonic()
        tell(f"{name} is running")
        results[name] = _run_one(name, quick=quick, save=save, tell=tell, limit_s=limit_s)
        tell(f"{name}: {time.monotonic() - began_s:.0f} s\n")
    return results


def joined(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One object for all of them; a single benchmark's is its own."""
    if len(results) == 1:
        return next(iter(results.values()))
    return {
        "rows": [{"benchmark": name, **row} for name, result in results.items() for row in result["rows"]],
        "targets": [{"benchmark": name, **one} for name, result in results.items() for one in result["targets"]],
        "not_run": {
            f"{name}: {what}": why for name, result in results.items() for what, why in result["not_run"].items()
        },
        "broken": {name: result["broken"] for name, result in results.items() if result.get("broken")},
        "better": {name: result.get("better", "lower") for name, result in results.items()},
        "runs": {
            name: {key: value for key, value in result.items() if key not in ("rows", "targets", "not_run")}
            for name, result in results.items()
        },
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
    }


def exit_code(results: dict[str, dict[str, Any]], *, guard: bool) -> int:
    """1 when something broke or a target is missed; with `guard`, when something broke or a guard is crossed."""
    if any(result.get("broken") for result in results.values()):
        return 1
    judged = [one for result in results.values() for one in result["targets"]]
    return int(not all(one.get("guarded", True) if guard else one["met"] for one in judged))


def _run_one(name: str, *, quick: bool, save: bool, tell: Callable[[str], None], limit_s: float) -> dict[str, Any]:
    command = [sys.executable, "-m", f"benchmarks.{name}", *["--quick"] * quick, *["--save"] * save]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return _broken(name, f"not over after {limit_s:.0f} s", tell)
    *printed, last = done.stdout.strip().splitlines() or [""]
    try:
        result = json.loads(last)
    except ValueError:
        said = (done.stderr.strip().splitlines() or ["it printed no result"])[-1]
        return _broken(name, f"ended with exit code {done.returncode}: {said[:300]}", tell)
    tell("\n".join(printed))
    problem = contract_problem(result)
    return _broken(name, problem, tell) if problem else result


def contract_problem(result: Any) -> str:  # noqa: ANN401 - whatever the last line holds
    """What a result lacks of that which other tools rely on; empty when nothing. So every run in CI tests it."""
    if not isinstance(result, dict) or not isinstance(result.get("rows"), list):
        return "its last line is no object with rows"
    if not result["rows"] and not result.get("not_run"):
        return "it has no rows, and nothing is told as not run"
    for row in result["rows"]:
        if missing := {"method", "case", "p50_ms", "p99_ms"} - row.keys():
            return f"a row lacks {', '.join(sorted(missing))}: {json.dumps(row)[:120]}"
    return ""


def _broken(name: str, reason: str, tell: Callable[[str], None]) -> dict[str, Any]:
    tell(f"{name} broke: {reason}")
    return {"benchmark": name, "rows": [], "targets": [], "not_run": {}, "broken": reason}
