"""What is counted and timed, and the summary a run ends with.

A counter is a name and a reason. The names that `summary` sorts into its sections:

    frames_published, frames_received, frames_gated*, frames_dropped*      frames
    plans_published* (reason = rung), plans_abstained*, plans_due,         plans
    plans_missed, plans_expired, and any other plans_…
    worker_…, clips                                                        worker, clips
    sink_…, and any other name                                             sinks, other (only if there are any)

Those marked * are told by reason; any other name with a reason is, too. Spans and ages are kept as HDR histograms of
whole microseconds, so that a 10 h run costs what its first minute did. Recording costs about 2 µs.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, TypeAlias

import msgspec
from hdrh.histogram import HdrHistogram

_SHORTEST_US = 1
_LONGEST_US = 3_600_000_000
_DIGITS = 3
_NS_PER_US = 1000
_US_PER_MS = 1000.0
_BY_REASON = ("frames_gated", "frames_dropped", "plans_published", "plans_abstained")

Key: TypeAlias = tuple[str, str]


class Counters(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="counters"):
    """The counts a viewer shows: a cheap extract of `Telemetry.summary`, published beside `Health`.

    Attributes:
        stream_id: Which camera.
        frames: `published`, `received`.
        gated: Frames behind a closed gate, by reason.
        dropped: Frames published but never perceived, by reason.
        plans: `published`, `due`, `missed`, `expired` …
    """

    stream_id: str
    frames: dict[str, int]
    gated: dict[str, int] = {}
    dropped: dict[str, int] = {}
    plans: dict[str, int] = {}


class Telemetry:
    """Counters and histograms of one run; counting is safe from any thread, spans belong to the agent's loop."""

    def __init__(self) -> None:
        self._counts: dict[Key, int] = {}
        self._lock = threading.Lock()
        self._spans: dict[str, HdrHistogram] = {}
        self._newest_span_ns: dict[str, int] = {}
        self._age = _histogram()

    def count(self, name: str, n: int = 1, *, reason: str = "") -> None:
        """Add `n` to a counter."""
        key = (name, reason)
        with self._lock:
            self._counts[key] = self._counts.get(key, 0) + n

    def set_total(self, name: str, total: int, *, reason: str = "") -> None:
        """Replace a counter by a total that is kept elsewhere (the receiver's drops)."""
        with self._lock:
            self._counts[name, reason] = total

    def total(self, name: str) -> int:
        """A counter's value, summed over its reasons."""
        return sum(n for (counted, _), n in self.counts().items() if counted == name)

    def by_reason(self, name: str) -> dict[str, int]:
        """A counter's value per reason; counts without one are under `unspecified`."""
        return _by_reason(self.counts(), name)

    def span(self, stage: str, duration_ns: int) -> None:
        """Record how long a stage took; a negative span counts as zero."""
        histogram = self._spans.get(stage)
        if histogram is None:
            histogram = self._spans[stage] = _histogram()
        self._newest_span_ns[stage] = duration_ns
        histogram.record_value(_microseconds(duration_ns))

    def age(self, age_ns: int) -> None:
        """Record the age of the frame behind the plan on display."""
        self._age.record_value(_microseconds(age_ns))

    @property
    def spans_ms(self) -> dict[str, float]:
        """The newest span of every stage in milliseconds."""
        return {stage: ns / (_NS_PER_US * _US_PER_MS) for stage, ns in self._newest_span_ns.items()}

    def unaccounted(self) -> int:
        """Published frames that were neither received nor dropped for a named reason; zero when the books balance."""
        counts = self.counts()
        return _sum(counts, "frames_published") - _sum(counts, "frames_received") - _sum(counts, "frames_dropped")

    def counters(self, stream_id: str) -> Counters:
        """What a viewer shows while the run goes on."""
        counts = self.counts()
        plans = _section(counts, "plans_")
        return Counters(
            stream_id=stream_id,
            frames={"published": _sum(counts, "frames_published"), "received": _sum(counts, "frames_received")},
            gated=_by_reason(counts, "frames_gated"),
            dropped=_by_reason(counts, "frames_dropped"),
            plans={name: n if isinstance(n, int) else sum(n.values()) for name, n in plans.items()},
        )

    def summary(self) -> dict[str, Any]:
        """Everything measured, as plain data for JSON; counters that never moved are zero, not missing."""
        counts = self.counts()
        plans = {"due": 0, "missed": 0, "expired": 0, **_section(counts, "plans_")}
        by_source = plans.pop("published", {})
        abstained = plans.pop("abstained", {})
        known = ("frames_", "plans_", "worker_", "sink_")
        other = {name for name, _ in counts if not name.startswith(known) and name != "clips"}
        summary: dict[str, Any] = {
            "frames": {
                "published": _sum(counts, "frames_published"),
                "received": _sum(counts, "frames_received"),
                "gated": _by_reason(counts, "frames_gated"),
                "dropped": _by_reason(counts, "frames_dropped"),
            },
            "plans": {
                "published": _sum(counts, "plans_published"),
                "by_source": by_source,
                "abstained": abstained,
                **plans,
            },
            "latency_ms": {stage: _quantiles_ms(histogram) for stage, histogram in list(self._spans.items())},
            "age_ms": _quantiles_ms(self._age),
            "worker": _section(counts, "worker_"),
            "clips": _sum(counts, "clips"),
        }
        extra = {
            "sinks": _section(counts, "sink_"),
            "other": {name: _value(counts, name) for name in sorted(other)},
        }
        return summary | {name: section for name, section in extra.items() if section}

    def counts(self) -> dict[Key, int]:
        """Every counter: (name, reason) → value."""
        with self._lock:
            return dict(self._counts)


def _histogram() -> HdrHistogram:
    return HdrHistogram(_SHORTEST_US, _LONGEST_US, _DIGITS)


def _microseconds(duration_ns: int) -> int:
    return min(max(duration_ns // _NS_PER_US, 0), _LONGEST_US)


def _quantiles_ms(histogram: HdrHistogram) -> dict[str, float]:
    """`p50`, `p95`, `p99` and `max` in milliseconds and `n`; zeros when nothing was recorded."""
    n = int(histogram.get_total_count())
    if n == 0:
        return {"p50": 0.0, "p95": 0.0, "p99": 0.0, "max": 0.0, "n": 0}
    values = histogram.get_percentile_to_value_dict([50, 95, 99])
    quantiles = {f"p{percent}": values[percent] / _US_PER_MS for percent in (50, 95, 99)}
    return {**quantiles, "max": histogram.get_max_value() / _US_PER_MS, "n": n}


def _sum(counts: Mapping[Key, int], name: str) -> int:
    return sum(n for (counted, _), n in counts.items() if counted == name)


def _by_reason(counts: Mapping[Key, int], name: str) -> dict[str, int]:
    return {reason or "unspecified": n for (counted, reason), n in sorted(counts.items()) if counted == name and n}


def _value(counts: Mapping[Key, int], name: str) -> int | dict[str, int]:
    """A plain number for a counter without reasons, otherwise number per reason."""
    told_by_reason = name in _BY_REASON or any(counted == name and reason for counted, reason in counts)
    return _by_reason(counts, name) if told_by_reason else _sum(counts, name)


def _section(counts: Mapping[Key, int], prefix: str) -> dict[str, Any]:
    names = sorted({name for name, _ in counts if name.startswith(prefix)})
    return {name.removeprefix(prefix): _value(counts, name) for name in names}
