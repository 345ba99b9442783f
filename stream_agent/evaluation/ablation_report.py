"""The report of ablations: a table and a figure each, as Markdown, JSON and PNG."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stream_agent.evaluation import metrics
from stream_agent.evaluation.ablation import Ablation, Answered, Skipped
from stream_agent.evaluation.model_beliefs import outcomes
from stream_agent.training.calibration import log_loss, targets_of

Result = tuple[Ablation, Sequence[Answered | Skipped]]


def rows(done: Sequence[Answered | Skipped], actions: Sequence[str]) -> list[dict[str, Any]]:
    """One record per variant; differences are to the first that was asked, on the samples that both were asked about."""
    reference = next((one for one in done if isinstance(one, Answered)), None)
    return [
        {"variant": one.variant.name, "skipped": one.reason}
        if isinstance(one, Skipped)
        else _row(one, reference, actions)
        for one in done
    ]


def write(results: Sequence[Result], folder: Path, actions: Sequence[str], about: Mapping[str, object]) -> list[Path]:
    """`report.md`, `results.json` and a figure per ablation in the folder; their paths."""
    paths, parts, told = [], _head(about), []
    for ablation, done in results:
        found = rows(done, actions)
        told.append({"name": ablation.name, "question": ablation.question, "variants": found})
        parts += [f"## {ablation.name.replace('_', ' ')}: {ablation.question[0].lower()}{ablation.question[1:]}", ""]
        asked = [row for row in found if "skipped" not in row]
        if asked:
            parts += [*_table(asked), ""]
            path = folder / f"{ablation.name}.png"
            _draw(ablation, asked, path)
            paths.append(path)
            parts += [f"![{ablation.name.replace('_', ' ')}]({path.name})", ""]
        parts += [f"- {row['variant']}: not asked, {row['skipped']}." for row in found if "skipped" in row]
        if not found:
            parts.append("- Not asked: " + _WANTS.get(ablation.name, "it has no variants") + ".")
        parts += [""] if parts[-1] else []
    text, data = folder / "report.md", folder / "results.json"
    text.write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8")
    data.write_text(
        json.dumps({"about": about, "ablations": told}, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        encoding="utf-8",
    )
    return [text, data, *paths]


_WANTS = {
    "model_size": "name the models with --model, twice or more",
    "mixed_tasks": "name the adapters with --adapter NAME=DIR",
}


def _row(one: Answered, reference: Answered | None, actions: Sequence[str]) -> dict[str, Any]:
    answers = outcomes(one.samples, one.beliefs, actions)
    interval, third = metrics.bootstrap_slacc(answers, 1), metrics.bootstrap_slacc(answers, 3)
    row: dict[str, Any] = {
        "variant": one.variant.name,
        "prompt": one.prompt,
        "n": len(answers),
        "videos": len({answer.video for answer in answers}),
        "slacc": [round(metrics.slacc(answers, k), 2) for k in (1, 2, 3)],
        "interval_top1": [round(interval.low, 1), round(interval.high, 1)],
        "interval_top3": [round(third.low, 1), round(third.high, 1)],
        "macro_f1": round(metrics.macro_f1(answers), 1),
        "nll": round(log_loss(one.beliefs, targets_of(one.samples, actions)), 3),
        "ece": round(metrics.ece(answers), 3),
    }
    if reference is not None and reference is not one:
        ours, theirs = _common(one, reference, actions)
        if ours:
            gain = metrics.paired_bootstrap(ours, theirs)
            row["against_first"] = {
                "n": len(ours),
                "top1": round(gain.value, 1),
                "interval": [round(gain.low, 1), round(gain.high, 1)],
                "p": round(gain.p_value, 3),
            }
    return row


def _common(
    one: Answered, other: Answered, actions: Sequence[str]
) -> tuple[list[metrics.Outcome], list[metrics.Outcome]]:
    ours, theirs = (outcomes(each.samples, each.beliefs, actions) for each in (one, other))
    shared = {(a.video, a.index) for a in ours} & {(a.video, a.index) for a in theirs}
    return [a for a in ours if (a.video, a.index) in shared], [a for a in theirs if (a.video, a.index) in shared]


def _head(about: Mapping[str, object]) -> list[str]:
    return [
        "# Ablations of the language planner",
        "",
        *(f"- {name}: {value}" for name, value in about.items()),
        "",
        "Causal track. Accuracies and macro-F1 in percent, intervals 95 %, whole videos drawn; NLL in nats; ECE of the first "
        "answer. `against the first`: top-1 points more than the table's first row on the samples of both, with its interval. "
        "An interval that holds 0 shows no difference.",
        "",
    ]


def _table(asked: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| variant | n | top-1/2/3 | 95 % @1 | macro-F1 | NLL | ECE | against the first |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in asked:
        gain = row.get("against_first")
        against = (
            f"{gain['top1']:+.1f} ({gain['interval'][0]:+.1f} to {gain['interval'][1]:+.1f}), n={gain['n']}"
            if gain
            else ""
        )
        lines.append(
            f"| {row['variant']} | {row['n']} | {'/'.join(f'{value:.1f}' for value in row['slacc'])} | "
            f"{row['interval_top1'][0]:.0f} to {row['interval_top1'][1]:.0f} | {row['macro_f1']:.1f} | {row['nll']:.2f} | "
            f"{row['ece']:.2f} | {against} |"
        )
    return lines


def _draw(ablation: Ablation, asked: Sequence[Mapping[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 1.2 + 0.45 * len(asked)))
    axis = figure.subplots()
    for offset, (which, rank, colour) in zip(
        (-0.12, 0.12), (("interval_top1", 0, "#4c78a8"), ("interval_top3", 2, "#9ecae9")), strict=True
    ):
        for place, row in enumerate(asked):
            value, (low, high) = row["slacc"][rank], row[which]
            if math.isfinite(value):
                axis.hlines(place + offset, low, high, color=colour, linewidth=2)
                axis.plot(value, place + offset, "o", color=colour, label=f"top-{rank + 1}" if place == 0 else None)
    axis.set_yticks(range(len(asked)), [f"{row['variant']} (n={row['n']})" for row in asked], fontsize=8)
    axis.set_ylim(len(asked) - 0.5, -0.5)
    axis.set_xlim(0, 100)
    axis.set_xlabel("SLAcc, %, causal, with 95 % intervals over videos", fontsize=8)
    axis.set_title(ablation.question, fontsize=9)
    axis.legend(fontsize=8, loc="lower left")
    figure.savefig(path, dpi=110, bbox_inches="tight")
