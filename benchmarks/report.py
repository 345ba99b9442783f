"""What every benchmark ends with: a table for people and one last line of JSON for programs.

A benchmark fills a `Report` with rows and with what could not be run; `finish` judges the rows by configs/targets.yaml, prints
all of it and, with `--save`, files it under results/. Times are milliseconds throughout. A ratio is always against a
method of the same run, and a row tells its rounds, so that compare.py knows how far the run itself moved.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, Literal, NoReturn

import numpy as np

from benchmarks.targets import Verdict, load_targets, verdicts
from stream_agent.errors import StreamAgentError

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
    "peft",
    "pyzmq",
    "torch",
    "torchcodec",
    "transformers",
    "trl",
    "vidgear",
    "vllm",
)
CDF_LEVELS = (0, 1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99, 99.9, 100)
"""Percentiles that a row's `cdf_ms` tells, for plots."""

BUSY_LOAD = 1.5
_BUSY = (
    " **The machine was busy with other work: times are not to be compared with any others, ratios and counts may be.**"
)

PEERS = {
    "imagezmq": "imagezmq_*",
    "vidgear": "netgear_*",
    "iceoryx2": "iceoryx2",
    "torchcodec": "torchcodec",
    "imageio-ffmpeg": "ffmpeg_null",
}
"""Package to install → methods that need it."""


@dataclass(frozen=True, slots=True)
class Row:
    """One method in one case; quantiles in milliseconds.

    Attributes:
        ratio: Against the case's reference method, paired within rounds; None for the reference or without one.
        more: Further figures for the JSON line, and for the table where they are named in `Report.columns`.
    """

    method: str
    case: str
    p50_ms: float
    p95_ms: float
    p99_ms: float
    n: int
    ratio: float | None = None
    more: dict[str, Any] = field(default_factory=dict)


def row_of(
    method: str,
    case: str,
    rounds_ms: Sequence[Sequence[float]],
    *,
    reference_ms: Sequence[Sequence[float]] | None = None,
    **more: object,
) -> Row:
    """The row of what a method measured in each round; `reference_ms` are the rounds of the method it is told against."""
    values = [value for one in rounds_ms for value in one]
    p50, p95, p99 = quantiles_ms(values)
    medians = [median(one) for one in rounds_ms if one]
    ratios = [] if reference_ms is None else round_ratios(rounds_ms, reference_ms)
    own: dict[str, Any] = {"rounds_ms": medians, "spread": spread(medians), "cdf_ms": cdf_ms(values)}
    if ratios:
        own["round_ratios"] = ratios
    return Row(method, case, p50, p95, p99, len(values), median(ratios) if ratios else None, {**own, **more})


def figure(method: str, case: str, n: int, ratio: float | None = None, **more: object) -> Row:
    """A row that tells something else than times."""
    return Row(method, case, float("nan"), float("nan"), float("nan"), n, ratio, more)


def on_off_rows(rounds_ms: dict[str, list[list[float]]], **more: object) -> list[Row]:
    """Two rows, without something and with it, in this order; the second tells its p99 over the first's.

    A round's p99 hangs on one or two of its frames, so the ratio is of all rounds together; `round_ratios` are those of single
    rounds, and their range is the noise.
    """
    (off, without), (on, having) = rounds_ms.items()
    rows = [row_of("ours", case, rounds, max_ms=_largest(rounds)) for case, rounds in ((off, without), (on, having))]
    of_rounds = [
        quantiles_ms(own)[2] / quantiles_ms(other)[2]
        for own, other in zip(having, without, strict=True)
        if own and other
    ]
    told = {"round_ratios": of_rounds, "p50_ratio": rows[1].p50_ms / rows[0].p50_ms, **more}
    ratio = rows[1].p99_ms / rows[0].p99_ms
    return [rows[0], dataclasses.replace(rows[1], ratio=ratio, more={**rows[1].more, **told})]


def _largest(rounds_ms: Sequence[Sequence[float]]) -> float:
    return max((value for one in rounds_ms for value in one), default=float("nan"))


@dataclass(slots=True)
class Report:
    """One benchmark's outcome.

    Attributes:
        benchmark: The file's name without its ending.
        question: As asked in the file's docstring.
        settings: What it was run with.
        columns: Keys of `Row.more` that the table shows.
        better: Whether a smaller or a larger `ratio` is the better one.
        device: What did the work, as a word of the filed result's name.
    """

    benchmark: str
    question: str
    settings: dict[str, Any]
    columns: tuple[str, ...] = ()
    better: Literal["lower", "higher"] = "lower"
    device: str = "cpu"
    rows: list[Row] = field(default_factory=list)
    not_run: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    load_before: tuple[float, ...] = field(default_factory=os.getloadavg)

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain data."""
        return {
            "benchmark": self.benchmark,
            "question": self.question,
            "rows": [_row(row) for row in self.rows],
            "targets": [verdict.as_json() for verdict in self.verdicts()],
            "better": self.better,
            "not_run": self.not_run,
            "notes": self.notes,
            "settings": self.settings,
            "machine": {**machine(), "load_before": self.load_before, "load_after": os.getloadavg()},
            "versions": versions(),
            "commit": commit(),
            "at": f"{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d %H:%M} UTC",
        }

    def verdicts(self) -> list[Verdict]:
        """What the targets say of the rows.

        Raises:
            ConfigError: configs/targets.yaml is wrong.
        """
        return verdicts(load_targets(), self.benchmark, [_row(row) for row in self.rows])

    def table(self) -> str:
        """The rows, what the targets say of them, what was not run, and the notes, as Markdown."""
        head = ["method", "case", "p50 ms", "p95 ms", "p99 ms", "n", "ratio", *self.columns]
        cells = [head, *(self._cells(row) for row in self.rows)]
        widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
        lines = [_line(line, widths) for line in cells]
        lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        judged = self.verdicts()
        lines += [""] * bool(judged or self.not_run or self.notes)
        lines += [f"- {words(verdict)}" for verdict in judged]
        lines += [f"- {method}: not run: {reason}" for method, reason in self.not_run.items()]
        lines += [f"- {note}" for note in self.notes]
        return "\n".join(lines)

    def finish(self, options: argparse.Namespace) -> int:
        """Print, file it if asked, and return the exit code: 1 when a target is missed, or a guard alone with `--guard`."""
        plain = self.as_json()
        table = self.table()
        print(f"\n{self.question}\n\n{table}\n", flush=True)
        if options.save:
            saved = RESULTS / f"{self.benchmark}_{self.device}_{datetime.datetime.now(tz=datetime.UTC):%Y%m}.md"
            saved.parent.mkdir(parents=True, exist_ok=True)
            saved.write_text(self._page(table, plain), encoding="utf-8")
            print(f"filed as {saved.relative_to(ROOT)}")
        print(json.dumps(plain, separators=(",", ":")), flush=True)
        judged = self.verdicts()
        return int(not all(verdict.guarded if options.guard else verdict.met for verdict in judged))

    def _cells(self, row: Row) -> list[str]:
        return [
            row.method,
            row.case,
            _number(row.p50_ms),
            _number(row.p95_ms),
            _number(row.p99_ms),
            str(row.n),
            "" if row.ratio is None else f"{row.ratio:.2f}",
            *(_cell(row.more.get(column)) for column in self.columns),
        ]

    def _page(self, table: str, plain: dict[str, Any]) -> str:
        box = plain["machine"]
        return (
            f"# {self.question}\n\n"
            f"`{' '.join(['python', '-m', f'benchmarks.{self.benchmark}', *sys.argv[1:]])}`, commit {plain['commit']}, "
            f"{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d %H:%M} UTC. "
            f"{'' if self.device == 'cpu' else f'GPU {self.device}, '}{box['cpu']}, {box['cores']} cores, "
            f"{box['memory_gb']} GB, Linux {box['kernel']}, Python {box['python']}. Load average over the minute before "
            f"{self.load_before[0]:.1f}, at the end {box['load_after'][0]:.1f} (this benchmark's own work included)."
            f"{_BUSY if self.load_before[0] >= BUSY_LOAD else ''}\n\n"
            f"{table}\n\n"
            f"```json\n{json.dumps(plain, separators=(',', ':'))}\n```\n"
        )


def arguments(question: str) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks share."""
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--quick", action="store_true", help="a short run of at most half a minute; noisier")
    parser.add_argument("--save", action="store_true", help="file the result under benchmarks/results/")
    parser.add_argument("--guard", action="store_true", help="fail on crossed guards alone, not on missed targets")
    return parser


def run_main(main: Callable[[], int]) -> NoReturn:
    """End the process with a benchmark's exit code; a mistake of the outside world is one line, no traceback."""
    try:
        raise SystemExit(main())
    except StreamAgentError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def first_line(docstring: str | None) -> str:
    """The question: the first line of a benchmark's docstring."""
    return (docstring or "").strip().partition("\n")[0]


def quantiles_ms(values_ms: Sequence[float]) -> tuple[float, float, float]:
    """p50, p95 and p99; NaN without values."""
    if not values_ms:
        return (float("nan"),) * 3
    p50, p95, p99 = np.percentile(np.asarray(values_ms), [50, 95, 99])
    return float(p50), float(p95), float(p99)


def cdf_ms(values_ms: Sequence[float]) -> list[float]:
    """The values at `CDF_LEVELS`, to five digits; empty without values."""
    if not values_ms:
        return []
    return [float(f"{value:.5g}") for value in np.percentile(np.asarray(values_ms), CDF_LEVELS)]


def round_ratios(rounds: Sequence[Sequence[float]], references: Sequence[Sequence[float]]) -> list[float]:
    """Median of each round over the reference's median in the same round: what disturbs a round disturbs both."""
    pairs = zip(rounds, references, strict=True)
    return [median(own) / median(other) for own, other in pairs if own and other and median(other)]


def paired_ratio(values: Sequence[float], references: Sequence[float]) -> float:
    """Median over rounds of value / reference of the same round."""
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
    return plain | {key: _plain(value) for key, value in row.more.items()}


def _plain(value: object) -> object:
    """Floats to five digits, lists of them, too."""
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return _rounded(value) if isinstance(value, float) else value


def _rounded(value: float) -> float | None:
    """Five significant digits; None for NaN and infinities, which JSON does not know."""
    return float(f"{value:.5g}") if np.isfinite(value) else None


def words(verdict: Verdict) -> str:
    """A verdict in words."""
    target = verdict.target
    state = "met" if verdict.met else "MISSED"
    if not verdict.guarded:
        state += f", and its guard {target.rule} {target.guard:g} is crossed"
    where = f"{verdict.method}, {verdict.case}"
    return f"{target.name} ({where}): {target.reads} {_number(verdict.value)}, target {target.rule} {target.limit:g}: {state}"


def not_installed(error: ImportError, method: str) -> str:
    """What to tell of a peer whose library is missing."""
    package = next((name for name, methods in PEERS.items() if fnmatchcase(method, methods)), str(error.name))
    return f"{package} is not installed; pip install {package}"


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
