"""Which differences between two results exceed the noise.

A row tells its rounds, so the noise of a run is known: a difference counts when the interval of the quotient, bootstrapped over
the rounds of both, leaves out 1 by more than `LEAST`. Times of two runs are told and never judged, since a shared machine
moves them all; only a ratio, both of whose sides were measured in one run, can be a regression.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stream_agent.errors import ConfigError

LEAST = 0.05
"""Quotients closer to 1 than this are the same, however quiet the machine was."""

_DRAWS = 4000
_COVERED = 98.0
_FEWEST = 3
_JUDGED = {"ratio": "round_ratios"}
_WITH_PEERS = ("transport", "staleness", "decode")
"""Where only our own rows are judged: a peer that became slower is no regression of ours."""

_TOLD = {"p50_ms": "rounds_ms", "fps": "rounds_fps"}


@dataclass(frozen=True, slots=True)
class Difference:
    """One key of one row in both results.

    Attributes:
        benchmark, method, case: Which row.
        key: Which of its keys.
        before, after: The values.
        low, high: Interval of after / before that the rounds allow.
        verdict: `better` or `worse` when the interval leaves out 1, else `same`; `unknown` where rounds are too few.
        judged: Whether it is a ratio of ours, so that `worse` is a regression.
    """

    benchmark: str
    method: str
    case: str
    key: str
    before: float
    after: float
    low: float
    high: float
    verdict: Literal["better", "worse", "same", "unknown"]
    judged: bool

    @property
    def regression(self) -> bool:
        """Whether this is what `bench compare` fails on."""
        return self.judged and self.verdict == "worse"

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "benchmark": self.benchmark,
            "method": self.method,
            "case": self.case,
            "key": self.key,
            "before": self.before,
            "after": self.after,
            "quotient": round(self.after / self.before, 4),
            "low": round(self.low, 4),
            "high": round(self.high, 4),
            "verdict": self.verdict,
            "regression": self.regression,
        }


def load_result(path: Path) -> dict[str, Any]:
    """A result file: what `bench` printed last, one benchmark or several, alone or as the last line of more.

    Raises:
        ConfigError: It cannot be read or holds no rows.
    """
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); name a file that `bench` wrote") from error
    for candidate in (text, *reversed([line for line in text.splitlines() if line.startswith("{")])):
        try:
            result = json.loads(candidate)
        except ValueError:
            continue
        if isinstance(result, dict) and isinstance(result.get("rows"), list):
            return result
    raise ConfigError(
        f"{path} holds no result with rows; name result.json of a report, or the last line that bench printed"
    )


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Difference]:
    """Every key that both results have, in the order of the first."""
    later = {_place(row, after): row for row in after["rows"]}
    found = []
    for row in before["rows"]:
        place = _place(row, before)
        if place in later:
            found += list(_of_row(place, row, later[place], _better(row, before)))
    return found


def missing(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Rows that only one of the two has."""
    one = {_place(row, before) for row in before["rows"]}
    other = {_place(row, after) for row in after["rows"]}
    return [" ".join(place) for place in sorted(one ^ other)]


def _of_row(
    place: tuple[str, str, str], before: Mapping[str, Any], after: Mapping[str, Any], better: str
) -> Iterator[Difference]:
    for key, rounds in {**_JUDGED, **_TOLD}.items():
        old, new = before.get(key), after.get(key)
        if not (isinstance(old, int | float) and isinstance(new, int | float) and old > 0 and new > 0):
            continue
        direction = better if key == "ratio" else "higher" if key == "fps" else "lower"
        judged = key in _JUDGED and (place[0] not in _WITH_PEERS or place[1].startswith("ours"))
        low, high = interval(before.get(rounds) or [], after.get(rounds) or [])
        yield Difference(*place, key, old, new, low, high, _verdict(low, high, direction), judged)


def interval(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """Where the quotient of the medians lies, by bootstrap over the rounds; everything is possible with too few of them."""
    old = [value for value in before if value]
    new = [value for value in after if value]
    if min(len(old), len(new)) < _FEWEST:
        return 0.0, float("inf")
    random = np.random.default_rng(1)
    drawn = [np.median(random.choice(values, (_DRAWS, len(values))), axis=1) for values in (old, new)]
    low, high = np.percentile(drawn[1] / drawn[0], [(100 - _COVERED) / 2, (100 + _COVERED) / 2])
    return float(low), float(high)


def _verdict(low: float, high: float, better: str) -> Literal["better", "worse", "same", "unknown"]:
    if not np.isfinite(high):
        return "unknown"
    if low > 1 + LEAST:
        return "worse" if better == "lower" else "better"
    if high < 1 - LEAST:
        return "better" if better == "lower" else "worse"
    return "same"


def _place(row: Mapping[str, Any], result: Mapping[str, Any]) -> tuple[str, str, str]:
    return str(row.get("benchmark", result.get("benchmark", ""))), str(row["method"]), str(row["case"])


def _better(row: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    own = row.get("better")
    whole = result.get("better", "lower")
    if isinstance(whole, dict):
        whole = whole.get(row.get("benchmark"), "lower")
    return str(own or whole)
