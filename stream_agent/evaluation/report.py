"""A run of the evaluation as rows, tables and files: `results.json`, `details.json`, `report.md`.

`results.json` is what other tools read: a list of rows, one per planner, track, history and protocol. Accuracies and
macro-F1 are percentages as in the paper, `ece` is a fraction (0.05 is five points); what is not defined is null. Whatever else
is known is in `details.json`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeAlias

import msgspec
import numpy as np

from stream_agent.evaluation import metrics
from stream_agent.evaluation.dataset import ACTIONS, SapClip
from stream_agent.evaluation.metrics import Outcome
from stream_agent.evaluation.protocols import Answer, Run, Setting
from stream_agent.evaluation.published import TABLE_1
from stream_agent.evaluation.samples import Videos
from stream_agent.evaluation.streaming import Streamed
from stream_agent.evaluation.streaming_report import StreamedScore, scores, tables

NAMES: Final = ("constant", "frequency", "frequency_minus_last", "most_prob", "ps", "antgpt", "statistical")
"""Planners of `results.json`; variants of one are in the details."""

CHAIN_LENGTHS: Final = (3, 5)
ANTICIPATION_HORIZONS_S: Final = (60, 120, 300)
HEADLINE: Final = "statistical"
"""Each other planner is paired with this one."""

Percentages: TypeAlias = tuple[float, float, float]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `results.json`; see the module's docstring for the units."""

    planner: str
    track: str
    history: str
    protocol: str
    n: int
    slacc: Percentages
    vlacc: Percentages
    vlacc_published: Percentages
    re_slacc: Percentages
    re_vlacc: Percentages
    macro_f1: float
    ece: float
    p99_ms: float


class Detail(msgspec.Struct, frozen=True, kw_only=True):
    """More about one row: 95 % intervals over videos, calibration, chains.

    `ece_by_chance` is what a planner whose every probability is right would show on as many answers: mean, and the value
    that 5 % of such planners exceed. `aurc` is the area under the risk-coverage curve, a fraction like the ECE.
    """

    planner: str
    track: str
    history: str
    protocol: str
    videos: int
    slacc_interval: tuple[tuple[float, float], ...]
    vlacc_interval: tuple[tuple[float, float], ...]
    ece_by_chance: tuple[float, float]
    aurc: float
    brier: float
    chains: dict[int, metrics.ChainScore]


class Paired(msgspec.Struct, frozen=True, kw_only=True):
    """Top-1 SLAcc of `HEADLINE` minus another planner's on the same samples of the causal track, true labels."""

    planner: str
    protocol: str
    difference: metrics.Difference


class Onset(msgspec.Struct, frozen=True, kw_only=True):
    """Errors of times, in seconds, over every tenth second of every clip.

    Attributes:
        planner: Whose; `median_duration` is the median length of the current action's training clips.
        n: Moments asked.
        mae_s: Mean absolute error of the time until the next action begins, whichever it is.
        anticipation: Horizon in seconds → wMAE, inMAE, outMAE of the time until each action begins, averaged over actions.
    """

    planner: str
    n: int
    mae_s: float
    anticipation: dict[int, metrics.Anticipation]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is written."""

    rows: tuple[Row, ...]
    details: tuple[Detail, ...]
    paired: tuple[Paired, ...]
    onsets: tuple[Onset, ...]
    onsets_protocol: str
    streaming: tuple[StreamedScore, ...]
    not_run: dict[str, str]


def report(run: Run, videos: Videos, streamed: Mapping[str, Streamed] | None = None) -> Report:
    """What the run amounts to, with what the streaming protocol answered."""
    streamed = streamed or {}
    answered = all_answers(run, streamed)
    is_sample = {(clip.video, clip.index): clip.is_sample for clips in videos.values() for clip in clips}
    outcomes = {setting: [answer.outcome for answer in answers] for setting, answers in answered.items()}
    return Report(
        rows=tuple(_row(setting, answers) for setting, answers in answered.items() if answers),
        details=tuple(_detail(setting, answers) for setting, answers in answered.items() if answers),
        paired=tuple(_paired(outcomes)),
        onsets=tuple(_onsets(run, videos)),
        onsets_protocol=run.moments_protocol,
        streaming=scores(streamed, is_sample),
        not_run=run.not_run,
    )


def all_answers(run: Run, streamed: Mapping[str, Streamed]) -> dict[Setting, list[Answer]]:
    """The answers behind every row, those of the streaming protocol included."""
    in_stream = {
        Setting(planner, "causal", "segmenter", "streaming"): part.leads[0] for planner, part in streamed.items()
    }
    return run.answers | in_stream


def write(made: Report, folder: Path, *, about: Mapping[str, object], plots: Sequence[Path] = ()) -> tuple[Path, ...]:
    """`results.json`, `details.json` and `report.md` in the folder; their paths. `about` says how they were made."""
    results, details, text = folder / "results.json", folder / "details.json", folder / "report.md"
    results.write_bytes(_pretty([row for row in made.rows if row.planner in NAMES]))
    details.write_bytes(
        _pretty(
            {
                "about": about,
                "not_run": made.not_run,
                "variants": [row for row in made.rows if row.planner not in NAMES],
                "rows": made.details,
                "paired": made.paired,
                "onsets": {"protocol": made.onsets_protocol, "planners": made.onsets},
                "streaming": made.streaming,
            }
        )
    )
    text.write_text(markdown(made, about=about, plots=plots), encoding="utf-8")
    return results, details, text


def headline(made: Report, protocol: str) -> list[list[str]]:
    """The table of one protocol, causal track and true labels: header first, every cell as text."""
    lines = [
        [
            "planner",
            "n",
            "SLAcc@1/2/3",
            "95 % @1",
            "VLAcc@1/2/3",
            "Re SLAcc",
            "Re VLAcc",
            "F1",
            "ECE",
            "by chance",
            "AURC",
            "p99 ms",
        ]
    ]
    details = {(item.planner, item.track, item.history, item.protocol): item for item in made.details}
    for row in made.rows:
        if (row.track, row.history, row.protocol) == ("causal", history_of(protocol), protocol):
            detail = details[row.planner, row.track, row.history, row.protocol]
            low, high = detail.slacc_interval[0]
            lines.append(
                [
                    row.planner,
                    str(row.n),
                    _three(row.slacc),
                    f"{low:.0f}–{high:.0f}",
                    _three(row.vlacc),
                    _three(row.re_slacc),
                    _three(row.re_vlacc),
                    _number(row.macro_f1, 1),
                    _number(row.ece, 3),
                    _number(detail.ece_by_chance[0], 3),
                    _number(detail.aurc, 3),
                    _number(row.p99_ms, 2),
                ]
            )
    if len(lines) > 1:
        lines.extend([name, "not run", *[""] * (len(lines[0]) - 2)] for name in made.not_run)
    return lines


def beside(made: Report) -> list[list[str]]:
    """Table 1 as published, and ours on its track, history and split; header first."""
    lines = [["row", "n", "SLAcc", "VLAcc (14)", "Re SLAcc", "Re VLAcc"]]
    lines.extend(
        [
            f"published: {known.name}",
            str(known.n),
            *(_three(values, 2) for values in (known.slacc, known.vlacc, known.re_slacc, known.re_vlacc)),
        ]
        for known in TABLE_1
    )
    for row in made.rows:
        if (row.track, row.history, row.protocol) == ("official", "action_reg", "official"):
            values = (row.slacc, row.vlacc_published, row.re_slacc, row.re_vlacc)
            lines.append([f"ours: {row.planner}", str(row.n), *(_three(three, 2) for three in values)])
    return lines


def title(protocol: str) -> str:
    """What the headline table of a protocol is about."""
    history = "our own segmenter's history" if protocol == "streaming" else "annotated history"
    return f"{protocol}, causal track, {history}"


def history_of(protocol: str) -> str:
    """The history of a protocol's headline: annotated labels, or in the streaming protocol our own segmenter's."""
    return "segmenter" if protocol == "streaming" else "ground_truth"


def protocols_of(made: Report) -> list[str]:
    """The protocols that were run, in their order."""
    return list(dict.fromkeys(row.protocol for row in made.rows))


def markdown(made: Report, *, about: Mapping[str, object], plots: Sequence[Path] = ()) -> str:
    """The report for people."""
    parts = ["# Next-action planning on CholecT50-SAP", ""]
    parts += [f"- {key}: {value}" for key, value in about.items()]
    parts += [
        "",
        "Accuracies and macro-F1 in percent, ECE as a fraction: of the first answer, ten bins of equal width; beside it what a "
        "planner whose every probability is right would show on as many answers. AURC: area under the risk-coverage curve. "
        "Intervals: 95 %, whole videos drawn.",
        "",
    ]
    for protocol in protocols_of(made):
        parts += [f"## {title(protocol)}", "", *_table(headline(made, protocol)), ""]
    for heading, lines in tables(made.streaming):
        parts += [f"## Streaming: {heading[0].lower()}{heading[1:]}", "", *_table(lines), ""]
    parts += ["## Table 1 as published, and ours on its track, history and split", "", *_table(beside(made)), ""]
    parts += ["## Every track and history", "", *_table(_everything(made)), ""]
    if made.paired:
        parts += [f"## {HEADLINE} against the others, top-1, the same samples", "", *_table(_pairs(made)), ""]
    parts += ["## Chains, causal track, annotated history", "", *_table(_chains(made)), ""]
    if made.onsets:
        parts += [
            f"## When the next action begins (`{made.onsets_protocol}`, every 10 s of every clip)",
            "",
            "wMAE is the mean of inMAE (0 < r < h) and outMAE (r = h), r the time until an action begins, clipped at the "
            "horizon h; averaged over actions (Rivoir et al., MICCAI 2020). An action not in a planner's chain counts as h.",
            "",
            *_table(_onset_table(made)),
            "",
        ]
    if made.not_run:
        parts += ["## Not run", "", *(f"- {name}: {reason}" for name, reason in made.not_run.items()), ""]
    for path in plots:
        parts += [f"![{path.stem.replace('_', ' ')}]({path.name})", ""]
    return "\n".join(parts)


def _row(setting: Setting, answers: Sequence[Answer]) -> Row:
    outcomes = [answer.outcome for answer in answers]

    def three(metric: Callable[[Sequence[Outcome], int], float]) -> Percentages:
        first, second, third = (round(metric(outcomes, k), 2) for k in (1, 2, 3))
        return first, second, third

    return Row(
        planner=setting.planner,
        track=setting.track,
        history=setting.history,
        protocol=setting.protocol,
        n=len(outcomes),
        slacc=three(metrics.slacc),
        vlacc=three(metrics.vlacc),
        vlacc_published=three(metrics.vlacc_published),
        re_slacc=three(metrics.re_slacc),
        re_vlacc=three(metrics.re_vlacc),
        macro_f1=round(metrics.macro_f1(outcomes), 2),
        ece=round(metrics.ece(outcomes), 4),
        p99_ms=round(float(np.percentile([answer.elapsed_ms for answer in answers], 99)), 4),
    )


def _detail(setting: Setting, answers: Sequence[Answer]) -> Detail:
    outcomes = [answer.outcome for answer in answers]
    pairs = [(answer.forecast.chain, answer.sample.chain) for answer in answers if answer.forecast.chain]
    slacc = [metrics.bootstrap_slacc(outcomes, k) for k in (1, 2, 3)]
    vlacc = [metrics.bootstrap_vlacc(outcomes, k) for k in (1, 2, 3)]
    chance = metrics.expected_ece([outcome.probabilities[0] for outcome in outcomes if outcome.probabilities])
    return Detail(
        planner=setting.planner,
        track=setting.track,
        history=setting.history,
        protocol=setting.protocol,
        videos=len({outcome.video for outcome in outcomes}),
        slacc_interval=tuple((interval.low, interval.high) for interval in slacc),
        vlacc_interval=tuple((interval.low, interval.high) for interval in vlacc),
        ece_by_chance=(round(chance.value, 4), round(chance.high, 4)),
        aurc=round(metrics.aurc(outcomes), 4),
        brier=metrics.brier(outcomes),
        chains={length: metrics.chain_score(pairs, length) for length in CHAIN_LENGTHS},
    )


def _paired(outcomes: Mapping[Setting, Sequence[Outcome]]) -> Iterable[Paired]:
    for setting, theirs in outcomes.items():
        ours = outcomes.get(Setting(HEADLINE, setting.track, setting.history, setting.protocol))
        headline_of = ("causal", history_of(setting.protocol))
        if setting.planner == HEADLINE or (setting.track, setting.history) != headline_of or not ours:
            continue
        asked = {(outcome.video, outcome.index) for outcome in theirs}
        same = [outcome for outcome in ours if (outcome.video, outcome.index) in asked]
        yield Paired(
            planner=setting.planner, protocol=setting.protocol, difference=metrics.paired_bootstrap(same, theirs)
        )


def _onsets(run: Run, videos: Videos) -> Iterable[Onset]:
    for planner, answers in run.moments.items():
        told = [answer for answer in answers if answer.forecast.onset_s]
        # every planner of labels takes its times from the median durations: one of them stands for all
        if not told or planner not in (HEADLINE, "most_prob"):
            continue
        truth = [_until(videos[answer.sample.question.video], answer.sample.question.now_s) for answer in told]
        guess = [_first(answer.forecast.chain, answer.forecast.onset_s) for answer in told]
        yield Onset(
            planner="median_duration" if planner == "most_prob" else planner,
            n=len(told),
            mae_s=metrics.mean_absolute_error(
                [answer.forecast.onset_s[0] for answer in told], [answer.sample.onset_s[0] for answer in told]
            ),
            anticipation={
                horizon: errors
                for horizon in ANTICIPATION_HORIZONS_S
                if (errors := _anticipation(guess, truth, horizon)) is not None
            },
        )


def _anticipation(
    guess: Sequence[Mapping[str, float]], truth: Sequence[Mapping[str, float]], horizon_s: int
) -> metrics.Anticipation | None:
    parts = [
        part
        for action in ACTIONS
        if (
            part := metrics.anticipation_errors(
                [said.get(action, math.inf) for said in guess],
                [came.get(action, math.inf) for came in truth],
                horizon_s=horizon_s,
            )
        )
        is not None
    ]
    if not parts:
        return None
    return metrics.Anticipation(
        weighted_s=sum(part.weighted_s for part in parts) / len(parts),
        inside_s=sum(part.inside_s for part in parts) / len(parts),
        outside_s=sum(part.outside_s for part in parts) / len(parts),
    )


def _until(clips: Sequence[SapClip], now_s: int) -> dict[str, float]:
    """Seconds until each action next begins; 0 for the one going on, none for what never comes again."""
    until: dict[str, float] = {}
    for clip in reversed(clips):
        if clip.start_s > now_s:
            until[clip.action] = float(clip.start_s - now_s)
        else:
            until[clip.action] = 0.0
            break
    return until


def _first(chain: Sequence[str], onsets_s: Sequence[float]) -> dict[str, float]:
    """Each action of a chain with the first of its onsets."""
    return dict(reversed(list(zip(chain, onsets_s, strict=True))))


def _everything(made: Report) -> list[list[str]]:
    lines = [
        [
            "planner",
            "protocol",
            "track",
            "history",
            "n",
            "SLAcc",
            "VLAcc",
            "without VID42",
            "Re SLAcc",
            "Re VLAcc",
            "ECE",
        ]
    ]
    for row in made.rows:
        values = (row.slacc, row.vlacc, row.vlacc_published, row.re_slacc, row.re_vlacc)
        lines.append(
            [
                row.planner,
                row.protocol,
                row.track,
                row.history,
                str(row.n),
                *(_three(three) for three in values),
                _number(row.ece, 3),
            ]
        )
    return lines


def _pairs(made: Report) -> list[list[str]]:
    lines = [["planner", "protocol", "points better", "95 %", "p"]]
    for pair in made.paired:
        item = pair.difference
        lines.append(
            [
                pair.planner,
                pair.protocol,
                f"{item.value:+.1f}",
                f"{item.low:+.1f} … {item.high:+.1f}",
                f"{item.p_value:.4f}",
            ]
        )
    return lines


def _chains(made: Report) -> list[list[str]]:
    lines = [["planner", "protocol", *(f"T={length}: n, edit distance, exact %" for length in CHAIN_LENGTHS)]]
    for item in made.details:
        if (item.track, item.history) == ("causal", "ground_truth") and any(score.n for score in item.chains.values()):
            scores = [
                f"{score.n}, {_number(score.edit_distance, 3)}, {_number(score.exact_match, 1)}"
                for score in item.chains.values()
            ]
            lines.append([item.planner, item.protocol, *scores])
    return lines


def _onset_table(made: Report) -> list[list[str]]:
    lines = [["planner", "n", "MAE s", *(f"wMAE/inMAE/outMAE s, h={horizon} s" for horizon in ANTICIPATION_HORIZONS_S)]]
    for item in made.onsets:
        errors = [item.anticipation.get(horizon) for horizon in ANTICIPATION_HORIZONS_S]
        lines.append(
            [
                item.planner,
                str(item.n),
                f"{item.mae_s:.1f}",
                *(
                    "–" if error is None else f"{error.weighted_s:.1f}/{error.inside_s:.1f}/{error.outside_s:.1f}"
                    for error in errors
                ),
            ]
        )
    return lines


def _table(lines: Sequence[Sequence[str]]) -> list[str]:
    header, *body = ("| " + " | ".join(line) + " |" for line in lines)
    return [header, "|" + " --- |" * len(lines[0]), *body]


def _three(values: Sequence[float], digits: int = 1) -> str:
    return "/".join(_number(value, digits) for value in values)


def _number(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _pretty(content: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"
