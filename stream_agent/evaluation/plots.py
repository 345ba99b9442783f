"""The plots of the report; the only file of the evaluation that needs matplotlib (pip install stream-agent[eval])."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from stream_agent.evaluation import metrics
from stream_agent.evaluation.dataset import ACTIONS, SapClip
from stream_agent.evaluation.protocols import PROTOCOLS, Answer, ProtocolName, Run, Setting
from stream_agent.evaluation.samples import Videos

COLOURS: Final = {
    "Dissection": "#4c78a8",
    "Vessel Clipping": "#e45756",
    "Tissue Retraction": "#72b7b2",
    "Coagulation": "#f2b134",
    "Aspiration": "#b279a2",
}
_DPI: Final = 120
_LAST_CLIP_S: Final = 60
"""How long a video's last clip is drawn; its end is not annotated."""


def draw(run: Run, videos: Videos, folder: Path, *, planner: str) -> tuple[Path, ...]:
    """Every plot as a PNG in the folder; all but the accuracies show `planner`, by the widest protocol that was run."""
    planners = list(dict.fromkeys(setting.planner for setting in run.answers))
    if not planners:
        return ()
    shown = planner if planner in planners else planners[-1]
    protocols = [name for name in PROTOCOLS if _answers(run, shown, name)]
    widest = protocols[-1]
    answers = _answers(run, shown, widest)
    title = f"{shown}, {widest}, causal, n={len(answers)}"
    made = {
        "accuracy": _accuracy(run, planners, protocols),
        "reliability": _reliability(answers, title),
        "risk_coverage": _risk_coverage(run, planners, widest),
        "confusion": _confusion(answers, title),
        "timelines": _timelines(answers, videos, title),
    }
    paths = []
    for name, figure in made.items():
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=_DPI, bbox_inches="tight")
        paths.append(path)
    return tuple(paths)


def _answers(run: Run, planner: str, protocol: ProtocolName) -> list[Answer]:
    return run.answers.get(Setting(planner, "causal", "ground_truth", protocol), [])


def _accuracy(run: Run, planners: Sequence[str], protocols: Sequence[ProtocolName]) -> Figure:
    figure = Figure(figsize=(4.2 * len(protocols), 3.6))
    axes = figure.subplots(1, len(protocols), squeeze=False, sharey=True)[0]
    for axis, protocol in zip(axes, protocols, strict=True):
        count = 0
        for rank, colour in zip((1, 2, 3), ("#4c78a8", "#9ecae9", "#d6e6f4"), strict=True):
            for place, planner in enumerate(planners):
                outcomes = [answer.outcome for answer in _answers(run, planner, protocol)]
                if outcomes:
                    count = max(count, len(outcomes))
                    interval = metrics.bootstrap_slacc(outcomes, rank)
                    x = place + 0.26 * (rank - 2)
                    axis.bar(x, interval.value, 0.25, color=colour, label=f"top-{rank}" if place == 0 else None)
                    axis.vlines(x, interval.low, interval.high, color="black", linewidth=1)
        axis.set_xticks(range(len(planners)), planners, rotation=35, ha="right", fontsize=8)
        axis.set_title(f"{protocol}, causal, n={count}", fontsize=9)
        axis.set_ylim(0, 100)
    axes[0].set_ylabel("SLAcc, %, with 95 % intervals over videos")
    axes[0].legend(fontsize=8, loc="upper left")
    return figure


def _reliability(answers: Sequence[Answer], title: str) -> Figure:
    figure = Figure(figsize=(4, 4))
    axis = figure.subplots()
    outcomes = [answer.outcome for answer in answers]
    bins = metrics.reliability(outcomes)
    axis.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--")
    axis.plot([part.stated for part in bins], [part.observed for part in bins], color="#4c78a8", marker="o")
    for part in bins:
        axis.annotate(f" {part.n}", (part.stated, part.observed), fontsize=7, va="top")
    axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="stated probability of the first answer", ylabel="share that was right")
    chance = metrics.expected_ece([outcome.probabilities[0] for outcome in outcomes if outcome.probabilities])
    axis.set_title(f"{title}\nECE {metrics.ece(outcomes):.3f}; {chance.value:.3f} by chance alone", fontsize=9)
    return figure


def _risk_coverage(run: Run, planners: Sequence[str], protocol: ProtocolName) -> Figure:
    figure = Figure(figsize=(5, 4))
    axis = figure.subplots()
    for planner in planners:
        points = metrics.risk_coverage([answer.outcome for answer in _answers(run, planner, protocol)])
        if points:
            coverage, risk = zip(*points, strict=True)
            axis.plot(np.multiply(coverage, 100), np.multiply(risk, 100), marker=".", markersize=3, label=planner)
    axis.set(xlim=(0, 100), ylim=(0, 100), xlabel="samples answered, surest first, %", ylabel="first answer wrong, %")
    axis.set_title(f"{protocol}, causal", fontsize=9)
    if axis.lines:  # a planner may state no probabilities
        axis.legend(fontsize=8)
    return figure


def _confusion(answers: Sequence[Answer], title: str) -> Figure:
    figure = Figure(figsize=(5, 4.4))
    axis = figure.subplots()
    counts = np.zeros((len(ACTIONS), len(ACTIONS) + 1), dtype=int)
    for answer in answers:
        said = answer.forecast.ranked[0] if answer.forecast.ranked else ""
        if answer.sample.target in ACTIONS:
            counts[ACTIONS.index(answer.sample.target), ACTIONS.index(said) if said in ACTIONS else -1] += 1
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        axis.text(
            column, row, str(count), ha="center", va="center", color="white" if shares[row, column] > 0.5 else "black"
        )
    axis.set_xticks(range(len(ACTIONS) + 1), [*ACTIONS, "(none)"], rotation=35, ha="right", fontsize=8)
    axis.set_yticks(range(len(ACTIONS)), ACTIONS, fontsize=8)
    axis.set(xlabel="first answer", ylabel="next action")
    axis.set_title(title, fontsize=9)
    return figure


def _timelines(answers: Sequence[Answer], videos: Videos, title: str) -> Figure:
    """Per video: the annotated clips above, the first answers below, each over the clip that it was to foresee."""
    by_video: dict[str, list[Answer]] = {}
    for answer in answers:
        by_video.setdefault(answer.sample.question.video, []).append(answer)
    figure = Figure(figsize=(11, 0.9 + 0.34 * len(by_video)))
    axis = figure.subplots()
    for place, (name, asked) in enumerate(sorted(by_video.items())):
        spans = _spans(videos[name])
        _strip(axis, place - 0.36, [(span, clip.action) for clip, span in spans.values()])
        said = [(spans[answer.sample.index][1], (*answer.forecast.ranked, "")[0]) for answer in asked]
        _strip(axis, place, said)
    axis.set_yticks(range(len(by_video)), sorted(by_video), fontsize=7)
    axis.set_ylim(len(by_video) - 0.4, -0.6)
    axis.set_xlabel("seconds")
    axis.set_title(f"{title}: annotated actions above, predicted next actions below", fontsize=9)
    axis.legend(
        handles=[Patch(color=colour, label=action) for action, colour in COLOURS.items()],
        fontsize=7,
        ncols=5,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.45 / (0.9 + 0.34 * len(by_video)) - 0.02),
    )
    return figure


def _spans(clips: Sequence[SapClip]) -> Mapping[int, tuple[SapClip, tuple[int, int]]]:
    """Start and length of each clip, by its number."""
    ends = [*(following.start_s for _, following in pairwise(clips)), clips[-1].start_s + _LAST_CLIP_S]
    return {clip.index: (clip, (clip.start_s, end - clip.start_s)) for clip, end in zip(clips, ends, strict=True)}


def _strip(axis: Axes, bottom: float, bars: Sequence[tuple[tuple[int, int], str]]) -> None:
    axis.broken_barh(
        [span for span, _ in bars],
        (bottom, 0.32),
        facecolors=[COLOURS.get(action, "#dddddd") for _, action in bars],
        edgecolor="white",
        linewidth=0.4,
    )
