"""Every target of configs/targets.yaml: which rows of which benchmark it judges, and what it says of them.

A target is met or missed by each row that it matches and that holds its key. The `guard` of a ratio is what CI fails on: a
ratio is measured within one run, so a slow or busy machine moves both its sides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from stream_agent.config import Section, configs_directory
from stream_agent.located_yaml import LocatedYaml, close_match

BENCHMARKS = (
    "transport",
    "staleness",
    "decode",
    "end_to_end",
    "memory",
    "recognise",
    "planner",
    "accuracy_latency",
    "dashboard",
    "recording",
)
"""Every benchmark, in the order they are run in."""

RATIOS = ("ratio", "p50_ratio", "x_ours", "x_memcpy", "x_floor")
"""Keys of a row whose both sides were measured in one run."""

TARGETS = configs_directory() / "targets.yaml"


class Target(Section):
    """A bound on one key of some rows."""

    name: str = Field(min_length=1)
    benchmark: str
    method: str = Field(min_length=1, description="fnmatch pattern over the rows' methods.")
    case: str = Field(min_length=1, description="fnmatch pattern over the rows' cases.")
    reads: str = Field(min_length=1, description="The key of the row that is judged.")
    at_most: float | None = None
    at_least: float | None = None
    guard: float | None = Field(default=None, description="What CI fails on; for ratios alone.")
    source: str = Field(min_length=1)
    reason: str = Field(min_length=1)

    @field_validator("benchmark")
    @classmethod
    def _known(cls, benchmark: str) -> str:
        if benchmark not in BENCHMARKS:
            hint = close_match(benchmark, BENCHMARKS) or f"; choose one of {', '.join(BENCHMARKS)}"
            raise ValueError(f"benchmark={benchmark} does not exist{hint}")
        return benchmark

    @model_validator(mode="after")
    def _one_bound(self) -> Target:
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError(f"the target {self.name!r} needs either at_most or at_least; give one of them")
        if self.guard is None:
            return self
        if self.reads not in RATIOS:
            raise ValueError(
                f"the target {self.name!r} has a guard on {self.reads}, which moves with the machine; guard one of "
                f"{', '.join(RATIOS)} or leave it out"
            )
        if (self.guard < self.limit) if self.rule == "<=" else (self.guard > self.limit):
            raise ValueError(
                f"the target {self.name!r} has guard={self.guard:g}, stricter than its limit {self.limit:g}; widen it"
            )
        return self

    @property
    def limit(self) -> float:
        """The bound."""
        limit = self.at_most if self.at_most is not None else self.at_least
        assert limit is not None
        return limit

    @property
    def rule(self) -> Literal["<=", ">="]:
        """Whether a value may be at most or must be at least the limit."""
        return "<=" if self.at_most is not None else ">="

    def judges(self, row: Mapping[str, Any]) -> bool:
        """Whether a row is one of its own."""
        return fnmatchcase(row["method"], self.method) and fnmatchcase(row["case"], self.case)


class Targets(Section):
    """The file."""

    targets: tuple[Target, ...]

    @model_validator(mode="after")
    def _named_once(self) -> Targets:
        names = [target.name for target in self.targets]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two targets are named {twice!r}; rename one, for a result is told by its name")
        return self


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a target says of one row.

    Attributes:
        target: The target.
        method: Of the row.
        case: Of the row.
        value: The row's value of `target.reads`; NaN where nothing could be measured.
        best_round: The best of the value and its rounds, which is what the guard judges: a broken hot path is slow in every
            round, a busy neighbour in some.
    """

    target: Target
    method: str
    case: str
    value: float
    best_round: float

    @property
    def met(self) -> bool:
        """Whether the value is on the right side of the limit; NaN never is."""
        return _holds(self.value, self.target.rule, self.target.limit)

    @property
    def guarded(self) -> bool:
        """Whether CI lets it pass: it has no guard, or is on the right side of it."""
        return self.target.guard is None or _holds(self.best_round, self.target.rule, self.target.guard)

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        target = self.target
        return {
            "name": target.name,
            "method": self.method,
            "case": self.case,
            "reads": target.reads,
            "value": float(f"{self.value:.5g}") if math.isfinite(self.value) else None,
            "rule": target.rule,
            "limit": target.limit,
            "met": self.met,
            **({} if target.guard is None else {"guard": target.guard, "guarded": self.guarded}),
        }


def load_targets(path: Path = TARGETS) -> tuple[Target, ...]:
    """Every target of the file.

    Raises:
        ConfigError: The file is missing or wrong; each mistake with its line and remedy.
    """
    return LocatedYaml(path).parse(Targets).targets


def verdicts(targets: Iterable[Target], benchmark: str, rows: Iterable[Mapping[str, Any]]) -> list[Verdict]:
    """What the benchmark's targets say of its rows, in the order of the targets."""
    held = list(rows)
    return [
        _verdict(target, row)
        for target in targets
        if target.benchmark == benchmark
        for row in held
        if target.judges(row) and target.reads in row
    ]


def _verdict(target: Target, row: Mapping[str, Any]) -> Verdict:
    value = math.nan if row[target.reads] is None else float(row[target.reads])
    rounds = [value, *(row.get("round_ratios", ()) if target.reads == "ratio" else ())]
    best = min(rounds) if target.rule == "<=" else max(rounds)
    return Verdict(target, row["method"], row["case"], value, value if math.isnan(value) else best)


def _holds(value: float, rule: str, bound: float) -> bool:
    return value <= bound if rule == "<=" else value >= bound
