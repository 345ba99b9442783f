"""The table a run ends with, from `Telemetry.summary()`; readable at 80 columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from stream_agent.sinks.console_view import clean

_QUANTILES = ("p50", "p95", "p99", "max")


def print_summary(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the table to the console, by default stderr: stdout may be a pipe with plans."""
    (console or Console(stderr=True)).print(summary_table(summary))


def summary_table(summary: Mapping[str, Any]) -> RenderableType:
    """Counts on the left in words, latencies in a table."""
    return Group(_counts(summary), _latencies(summary))


def _counts(summary: Mapping[str, Any]) -> Table:
    frames, plans = summary["frames"], summary["plans"]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", width=9)
    table.add_column()
    dropped = sum(frames["dropped"].values())
    table.add_row("frames", f"{frames['published']:,} published, {frames['received']:,} perceived, {dropped:,} dropped")
    _told(table, "dropped", frames["dropped"])
    _told(table, "gated", frames["gated"])
    unaccounted = frames["published"] - frames["received"] - dropped
    if unaccounted:
        table.add_row("", Text(f"{unaccounted:,} frames unaccounted for: please report this", style="bold red"))
    table.add_row("clips", f"{summary['clips']:,}")
    extra = "".join(f", {n:,} {clean(name)}" for name, n in plans.items() if isinstance(n, int) and name != "published")
    table.add_row("plans", f"{plans['published']:,} published{extra}")
    _told(table, "by", plans["by_source"])
    for name, reasons in plans.items():
        if isinstance(reasons, Mapping) and name != "by_source":
            _told(table, clean(name), reasons)
    for section in ("worker", "sinks"):
        for name, value in summary.get(section, {}).items():
            _told(
                table,
                section,
                {name: value} if isinstance(value, int) else {f"{name} {k}": n for k, n in value.items()},
            )
    return table


def _told(table: Table, label: str, reasons: Mapping[str, int]) -> None:
    if reasons:
        ordered = sorted(reasons.items(), key=lambda item: -item[1])
        table.add_row("", f"[dim]{label}[/dim]  " + ", ".join(f"{_plain(reason)} {n:,}" for reason, n in ordered))


def _plain(text: str) -> str:
    """Text from outside, with its brackets kept from being read as markup."""
    return clean(text).replace("[", "\\[")


def _latencies(summary: Mapping[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    table.add_column("milliseconds", no_wrap=True, overflow="ellipsis", max_width=28)
    for name in _QUANTILES:
        table.add_column(name, justify="right")
    table.add_column("n", justify="right")
    stages = dict(summary["latency_ms"])
    total = stages.pop("total", None)
    for stage, quantiles in [*stages.items(), *([("total", total)] if total else [])]:
        _row(table, stage, quantiles, style="bold" if stage == "total" else "")
    _row(table, "age on display", summary["age_ms"], style="")
    return table


def _row(table: Table, name: str, quantiles: Mapping[str, float], *, style: str) -> None:
    values = [_ms(quantiles[quantile]) if quantiles["n"] else "-" for quantile in _QUANTILES]
    table.add_row(Text(clean(name)), *values, f"{int(quantiles['n']):,}", style=style)


def _ms(value: float) -> str:
    """Three significant digits up to a second, whole milliseconds above."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"
