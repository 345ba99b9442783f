"""The report of a run: one HTML file that needs nothing else, the same as Markdown with its plots beside, and the JSON."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stream_agent.errors import ConfigError

_SHOWN = ("p50_ms", "p95_ms", "p99_ms", "n", "ratio")
_HIDDEN = ("rounds_ms", "rounds_fps", "round_ratios", "cdf_ms", "series", "benchmark", "better", "method", "case")
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 13px; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #d5dae0; padding: .2rem .6rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
td.met { color: #116329; } td.missed { color: #b3261e; font-weight: 600; }
img { max-width: 100%; } pre { background: #f4f6f8; padding: .8rem; overflow-x: auto; font-size: 12px; }
"""


def require_folder(folder: Path) -> None:
    """Make the folder.

    Raises:
        ConfigError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--report {folder} cannot be made ({error.strerror}); name a folder that can be written"
        ) from error


def write(results: Mapping[str, Mapping[str, Any]], joined: Mapping[str, Any], folder: Path) -> tuple[Path, ...]:
    """`index.html`, `report.md`, `result.json` and the plots; returns the first three.

    Raises:
        ConfigError: They cannot be written.
    """
    require_folder(folder)
    plots, note = _plots(results, folder)
    pages = {
        "index.html": _html(results, plots, note),
        "report.md": _markdown(results, plots, note),
        "result.json": json.dumps(joined, indent=1),
    }
    try:
        for name, text in pages.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--report {folder} cannot be written ({error.strerror}); name another folder") from error
    return tuple(folder / name for name in pages)


def _plots(results: Mapping[str, Mapping[str, Any]], folder: Path) -> tuple[dict[str, list[Path]], str]:
    """Benchmark → its plots, and why there are none."""
    try:
        from benchmarks.plots import draw
    except ImportError as error:
        return {}, f"no plots: {error.name} is not installed; pip install matplotlib"
    return {name: draw(name, result, folder) for name, result in results.items()}, ""


# ------------------------------------------------------------------------------------------------------ both


def _machine(result: Mapping[str, Any]) -> str:
    box = result.get("machine")
    if not box:
        return ""
    return (
        f"{box['cpu']}, {box['cores']} cores, {box['memory_gb']} GB, Linux {box['kernel']}, Python {box['python']}; "
        f"load {box['load_before'][0]:.1f} before, {box['load_after'][0]:.1f} after; commit {result['commit']}; {result['at']}"
    )


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What any of the rows tells as one number or word."""
    more = [
        key
        for row in rows
        for key, value in row.items()
        if key not in _SHOWN + _HIDDEN and isinstance(value, int | float | str)
    ]
    return [*_SHOWN, *dict.fromkeys(more)]


def _cells(row: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    return [str(row["method"]), str(row["case"]), *(_cell(row.get(column)) for column in columns)]


def _cell(value: object) -> str:
    if value is None or isinstance(value, list | dict):
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _judged(result: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """`met` or `missed`, and the cells of the row, per target."""
    return [
        (
            "met" if one["met"] else "missed",
            [
                one["name"],
                f"{one['method']}, {one['case']}",
                one["reads"],
                _cell(one["value"]),
                f"{one['rule']} {one['limit']:g}",
                "met" if one["met"] else "missed",
            ],
        )
        for one in result["targets"]
    ]


_TARGET_HEAD = ("target", "row", "reads", "value", "limit", "")


def _said(result: Mapping[str, Any]) -> list[str]:
    """What was not run, what broke, and notes."""
    lines = [f"not run: {name}: {reason}" for name, reason in result["not_run"].items()]
    lines += [f"broke: {result['broken']}"] if result.get("broken") else []
    return lines + list(result.get("notes", ()))


def _config(result: Mapping[str, Any]) -> str:
    return json.dumps({key: result.get(key) for key in ("settings", "versions")}, indent=1)


# ------------------------------------------------------------------------------------------------------ HTML


def _html(results: Mapping[str, Mapping[str, Any]], plots: Mapping[str, list[Path]], note: str) -> str:
    parts = [f"<p>{html.escape(note)}</p>"] if note else []
    for name, result in results.items():
        columns = _columns(result["rows"])
        parts += [f"<h2>{html.escape(result.get('question') or name)}</h2>", f"<p>{html.escape(_machine(result))}</p>"]
        parts += [
            _html_table(_TARGET_HEAD, [cells for _, cells in _judged(result)], [kind for kind, _ in _judged(result)])
        ]
        for plot in plots.get(name, ()):
            data = base64.b64encode(plot.read_bytes()).decode()
            parts.append(f'<p><img alt="{html.escape(plot.stem)}" src="data:image/png;base64,{data}"></p>')
        parts += [_html_table(("method", "case", *columns), [_cells(row, columns) for row in result["rows"]])]
        parts += [f"<p>{html.escape(line)}</p>" for line in _said(result)]
        parts += [
            f"<details><summary>configuration and versions</summary><pre>{html.escape(_config(result))}</pre></details>"
        ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>stream_agent benchmarks</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>stream_agent benchmarks</h1>\n{body}\n</body></html>\n"
    )


def _html_table(head: Sequence[str], rows: Sequence[Sequence[str]], kinds: Sequence[str] = ()) -> str:
    if not rows:
        return ""
    lines = ["<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>"]
    for index, row in enumerate(rows):
        kind = f' class="{kinds[index]}"' if kinds else ""
        lines.append("<tr>" + "".join(f"<td{kind}>{html.escape(cell)}</td>" for cell in row) + "</tr>")
    return "<table>" + "\n".join(lines) + "</table>"


# ------------------------------------------------------------------------------------------------------ Markdown


def _markdown(results: Mapping[str, Mapping[str, Any]], plots: Mapping[str, list[Path]], note: str) -> str:
    parts = ["# stream_agent benchmarks", note]
    for name, result in results.items():
        columns = _columns(result["rows"])
        parts += [f"## {result.get('question') or name}", _machine(result)]
        parts += [_markdown_table(_TARGET_HEAD, [cells for _, cells in _judged(result)])]
        parts += [f"![{plot.stem}]({plot.name})" for plot in plots.get(name, ())]
        parts += [_markdown_table(("method", "case", *columns), [_cells(row, columns) for row in result["rows"]])]
        parts += ["\n".join(f"- {line}" for line in _said(result)), f"```json\n{_config(result)}\n```"]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    escaped: Callable[[str], str] = lambda cell: cell.replace("|", "\\|")  # noqa: E731
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(escaped(cell) for cell in line) + " |" for line in lines)
