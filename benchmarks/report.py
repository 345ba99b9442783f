"""What every benchmark ends with: a table for people and one last line of JSON for programs.

A benchmark fills a `Report` with rows, targets and what could not be run; `finish` prints it and, with `--save`, files it
under results/. Times are milliseconds throughout. A ratio is always against a method of the same run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
_PACKAGES = (
    "av",
    "iceoryx2",
    "imagezmq",
    "msgspec",
    "numpy",
    "onnxruntime",
    "opencv-python-headless",
    "pyzmq",
    "vidgear",
)


@dataclass(frozen=True, slots=True)
class Target:
    """A limit that a value has to meet.

    Attributes:
        name: What is limited, in words.
        value: As measured.
        limit: The bound.
        rule: Whether the value may be at most or must be at least the limit.
    """

    name: str
    value: float
    limit: float
    rule: Literal["<=", ">="] = "<="

    @property
    def met(self) -> bool:
        """Whether the value is on the right side of its limit; NaN never is."""
        return self.value <= self.limit if self.rule == "<=" else self.value >= self.limit


@dataclass(frozen=True, slots=True)
class Row:
    """One method in one case; quantiles in milliseconds.

    Attributes:
        ratio: Against the case's reference method, paired within rounds; None for the reference or without one.
        target: The limit that this row has to meet, if any.
        more: Further figures for the JSON line, and for the table where they are named in `Report.columns`.
    """

    method: str
    case: str
    p50_ms: float
    p95_ms: float
    p99_ms: float
    n: int
    ratio: float | None = None
    target: Target | None = None
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Report:
    """One benchmark's outcome.

    Attributes:
        benchmark: The file's name without its ending.
        question: As asked in the file's docstring.
        settings: What it was run with.
        columns: Keys of `Row.more` that the table shows.
    """

    benchmark: str
    question: str
    settings: dict[str, Any]
    columns: tuple[str, ...] = ()
    rows: list[Row] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    not_run: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    load_before: tuple[float, ...] = field(default_factory=os.getloadavg)

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain data."""
        return {
            "benchmark": self.benchmark,
            "rows": [_row(row) for row in self.rows],
            "targets": [_target(target) for target in self._targets()],
            "not_run": self.not_run,
            "settings": self.settings,
            "machine": {**machine(), "load_before": self.load_before, "load_after": os.getloadavg()},
            "versions": versions(),
            "commit": commit(),
        }

    def table(self) -> str:
        """The rows with their targets, what was not run, and the notes, as Markdown."""
        head = ["method", "case", "p50 ms", "p95 ms", "p99 ms", "n", "ratio", *self.columns, "target", "met"]
        cells = [head, *(self._cells(row) for row in self.rows)]
        widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
        lines = [_line(line, widths) for line in cells]
        lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        shown = {id(row.target) for row in self.rows}
        rest = [target for target in self.targets if id(target) not in shown]
        lines += [""] * bool(rest or self.not_run or self.notes)
        lines += [f"- {_words(target)}: {'met' if target.met else 'MISSED'}" for target in rest]
        lines += [f"- {method}: not run: {reason}" for method, reason in self.not_run.items()]
        lines += [f"- {note}" for note in self.notes]
        return "\n".join(lines)

    def finish(self, options: argparse.Namespace) -> int:
        """Print, file it if asked, and return the exit code: 1 when a target is missed."""
        plain = self.as_json()
        table = self.table()
        print(f"\n{self.question}\n\n{table}\n", flush=True)
        if options.save:
            saved = RESULTS / f"{self.benchmark}_cpu_{datetime.datetime.now(tz=datetime.UTC):%Y%m}.md"
            saved.parent.mkdir(parents=True, exist_ok=True)
            saved.write_text(self._page(table, plain), encoding="utf-8")
            print(f"filed as {saved.relative_to(ROOT)}")
        print(json.dumps(plain, separators=(",", ":")), flush=True)
        return 0 if all(target.met for target in self._targets()) else 1

    def _targets(self) -> list[Target]:
        own = [row.target for row in self.rows if row.target is not None]
        return own + [target for target in self.targets if all(target is not other for other in own)]

    def _cells(self, row: Row) -> list[str]:
        target = row.target
        return [
            row.method,
            row.case,
            _number(row.p50_ms),
            _number(row.p95_ms),
            _number(row.p99_ms),
            str(row.n),
            "" if row.ratio is None else f"{row.ratio:.2f}",
            *(_cell(row.more.get(column)) for column in self.columns),
            "" if target is None else _words(target),
            "" if target is None else ("yes" if target.met else "NO"),
        ]

    def _page(self, table: str, plain: dict[str, Any]) -> str:
        box = plain["machine"]
        return (
            f"# {self.question}\n\n"
            f"`{' '.join(['python', '-m', f'benchmarks.{self.benchmark}', *sys.argv[1:]])}`, commit {plain['commit']}, "
            f"{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d %H:%M} UTC. {box['cpu']}, {box['cores']} cores, "
            f"{box['memory_gb']} GB, Linux {box['kernel']}, Python {box['python']}. Load average over the minute before "
            f"{self.load_before[0]:.1f}, at the end {box['load_after'][0]:.1f} (this benchmark's own work included).\n\n"
            f"{table}\n\n"
            f"```json\n{json.dumps(plain, separators=(',', ':'))}\n```\n"
        )


def arguments(question: str) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks share."""
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--quick", action="store_true", help="a short run of at most half a minute; noisier")
    parser.add_argument("--save", action="store_true", help="file the result under benchmarks/results/")
    return parser


def first_line(docstring: str | None) -> str:
    """The question: the first line of a benchmark's docstring."""
    return (docstring or "").strip().partition("\n")[0]


def quantiles_ms(values_ms: Sequence[float]) -> tuple[float, float, float]:
    """p50, p95 and p99; NaN without values."""
    if not values_ms:
        return (float("nan"),) * 3
    p50, p95, p99 = np.percentile(np.asarray(values_ms), [50, 95, 99])
    return float(p50), float(p95), float(p99)


def paired_ratio(values: Sequence[float], references: Sequence[float]) -> float:
    """Median over rounds of value / reference of the same round: what disturbs a round disturbs both."""
    pairs = [value / reference for value, reference in zip(values, references, strict=True) if reference]
    return median(pairs) if pairs else float("nan")


def spread(values: Sequence[float]) -> float:
    """(max - min) / median over rounds: how noisy the machine was."""
    return (max(values) - min(values)) / median(values) if values else float("nan")


def machine() -> dict[str, Any]:
    """What the figures depend on besides the code."""
    with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
        cpu = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "unknown")
    memory_gb = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9)
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": memory_gb,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Installed versions of what is measured."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def commit() -> str:
    """The checkout's commit, with `+` when tracked files of the package differ from it."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", "stream_agent", "benchmarks/*.py")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + "+" * bool(changed)


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _row(row: Row) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "method": row.method,
        "case": row.case,
        "p50_ms": _rounded(row.p50_ms),
        "p95_ms": _rounded(row.p95_ms),
        "p99_ms": _rounded(row.p99_ms),
        "n": row.n,
    }
    if row.ratio is not None:
        plain["ratio"] = _rounded(row.ratio)
    return plain | {key: _rounded(value) if isinstance(value, float) else value for key, value in row.more.items()}


def _target(target: Target) -> dict[str, Any]:
    return {
        "name": target.name,
        "value": _rounded(target.value),
        "limit": target.limit,
        "rule": target.rule,
        "met": target.met,
    }


def _rounded(value: float) -> float | None:
    """Five significant digits; None for NaN and infinities, which JSON does not know."""
    return float(f"{value:.5g}") if np.isfinite(value) else None


def _words(target: Target) -> str:
    return f"{target.name} {_number(target.value)} {target.rule} {target.limit:g}"


def _number(value: float) -> str:
    if not np.isfinite(value):
        return "-"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.2g}"


def _cell(value: object) -> str:
    if value is None:
        return ""
    return _number(value) if isinstance(value, float) else str(value)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cell.ljust(width) if column < 2 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "| " + " | ".join(padded) + " |"
