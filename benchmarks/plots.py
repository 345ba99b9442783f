"""The plots of a report; the only file of the benchmarks that needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.pair import sizes
from benchmarks.report import CDF_LEVELS

_DPI: Final = 110
_MOST_LINES: Final = 14
_OURS: Final = "#b3261e"
_COLOURS: Final = ("#4c78a8", "#f2b134", "#72b7b2", "#b279a2", "#54a24b", "#9d755d", "#8a8f98", "#3d3d3d")


def draw(name: str, result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Every plot of one benchmark, as PNG files in the folder."""
    rows = result["rows"]
    made: dict[str, Figure | None] = {"latency": _latencies(rows)}
    if name == "staleness":
        made["age"] = _ages(rows)
    if name == "transport":
        made["roofline"] = _bytes_roofline(rows)
    if name == "planner":
        made["roofline"] = _floor_roofline(rows)
    paths = []
    for kind, figure in made.items():
        if figure is not None:
            paths.append(folder / f"{name}_{kind}.png")
            figure.savefig(paths[-1], dpi=_DPI, bbox_inches="tight")
    return paths


def _latencies(rows: list[dict[str, Any]]) -> Figure | None:
    """One field per case: which share of the frames came within which time."""
    told = [row for row in rows if row.get("cdf_ms") and row["n"] > 1]
    cases = list(dict.fromkeys(row["case"] for row in told))
    by_method = len(cases) > 6  # as many cases as methods: then a field per method
    fields = list(dict.fromkeys(row["method"] for row in told)) if by_method else cases
    if not fields:
        return None
    columns = min(3, len(fields))
    lines = -(-len(fields) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.6 * lines))
    axes = figure.subplots(lines, columns, squeeze=False)
    for index, axis in enumerate(axes.flat):
        if index >= len(fields):
            axis.set_axis_off()
            continue
        shown = [row for row in told if row["method" if by_method else "case"] == fields[index]]
        for place, row in enumerate(shown[:_MOST_LINES]):
            label = row["case" if by_method else "method"]
            axis.plot([max(value, 1e-4) for value in row["cdf_ms"]], CDF_LEVELS, **_look(label, place))
        axis.set_xscale("log")
        axis.set_title(fields[index], fontsize=9)
        axis.set_xlabel("ms", fontsize=8)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=6)
    axes[0, 0].set_ylabel("% of frames within", fontsize=8)
    return figure


def _ages(rows: list[dict[str, Any]]) -> Figure | None:
    """One field per consumer: age of the frame it takes, over time."""
    told = [row for row in rows if row.get("series")]
    cases = list(dict.fromkeys(row["case"] for row in told))
    if not cases:
        return None
    figure = Figure(figsize=(4.6 * len(cases), 3.6))
    axes = figure.subplots(1, len(cases), squeeze=False, sharey=True)[0]
    for axis, case in zip(axes, cases, strict=True):
        for place, row in enumerate([row for row in told if row["case"] == case]):
            seconds, ages = zip(*row["series"], strict=True)
            axis.plot(seconds, ages, **_look(row["method"], place))
        axis.axhline(1000 / 60, color="black", linewidth=0.6, linestyle=":")
        axis.set_yscale("log")
        axis.set_title(case, fontsize=9)
        axis.set_xlabel("seconds", fontsize=8)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=6)
    axes[0].set_ylabel("age of the frame, ms (dotted: one interval)", fontsize=8)
    return figure


def _bytes_roofline(rows: list[dict[str, Any]]) -> Figure | None:
    """Median over the bytes of a picture: what moves bytes climbs with `memcpy`, what does not stays on the 8-byte message."""
    told = [row for row in rows if row["case"] in sizes and row["p50_ms"]]
    methods = list(dict.fromkeys(row["method"] for row in told))
    if len({row["case"] for row in told}) < 2:
        return None
    figure = Figure(figsize=(6.4, 4.2))
    axis = figure.subplots()
    for place, method in enumerate(methods):
        points = sorted((_megabytes(row["case"]), row["p50_ms"]) for row in told if row["method"] == method)
        style = {"linestyle": "--", "color": "black"} if method in ("memcpy", "floor_8_bytes") else {}
        axis.plot(*zip(*points, strict=True), marker="o", markersize=3, **(_look(method, place) | style))
    axis.set_xscale("log")
    axis.set_yscale("log")
    _names(axis, "MB of one picture (YUV 4:2:0)", "median, ms")
    return figure


def _floor_roofline(rows: list[dict[str, Any]]) -> Figure | None:
    """Measured over the least time by arithmetic; the dashed line is the limit."""
    told = [row for row in rows if row.get("floor_ms") and row["p50_ms"]]
    if not told:
        return None
    figure = Figure(figsize=(6.4, 4.2))
    axis = figure.subplots()
    for place, row in enumerate(told[:_MOST_LINES]):
        look = _look(f"{row['method']}, {row['case']}", place)
        axis.plot([row["floor_ms"]], [row["p50_ms"]], marker="o", **(look | {"linestyle": ""}))
    ends = [min(row["floor_ms"] for row in told) / 2, max(row["p50_ms"] for row in told) * 2]
    axis.plot(ends, ends, color="black", linestyle="--", linewidth=0.8)
    axis.set_xscale("log")
    axis.set_yscale("log")
    _names(axis, "least time by arithmetic, ms", "median, ms")
    return figure


def _names(axis: Axes, across: str, up: str) -> None:
    axis.set_xlabel(across, fontsize=8)
    axis.set_ylabel(up, fontsize=8)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=6)


def _look(label: str, place: int) -> dict[str, Any]:
    ours = label == "ours"
    return {
        "label": label,
        "color": _OURS if ours else _COLOURS[place % len(_COLOURS)],
        "linewidth": 2.0 if ours else 1.0,
        "linestyle": "-" if place < len(_COLOURS) else "-.",
    }


def _megabytes(case: str) -> float:
    width, height = sizes[case]
    return width * height * 1.5 / 1e6
