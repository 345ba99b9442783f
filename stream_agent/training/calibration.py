"""Fit the two numbers that a language planner needs beside its weights: the rank lane's temperature and its weight in the fusion.

    model's own beliefs ─▶ temperature T: p ∝ p_m ** (1/T)                        (Guo et al., ICML 2017, arXiv:1706.04599)
    statistical planner's, each video by a planner fitted without it ─▶ w_m: p ∝ p_s · max(p_T, least) ** w_m

Both minimise the negative log-likelihood of what came next on training videos; it is convex in 1/T and in w_m, so the best is found
by narrowing an interval. What is reported of them comes from leave-one-video-out: the numbers that judge a video were fitted on all
the others. One mixture remains: the statistical beliefs of those others come from planners that have seen it.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml
from numpy.typing import NDArray

from stream_agent.config import AgentConfig, FusionConfig
from stream_agent.errors import ConfigError
from stream_agent.evaluation import metrics
from stream_agent.evaluation.dataset import TRAIN_VIDEOS, load_presence, load_sap
from stream_agent.evaluation.lineup import statistical_planner
from stream_agent.evaluation.model_beliefs import (
    Asked,
    Beliefs,
    Captions,
    LanguageModel,
    Pictures,
    outcomes,
    statistical_beliefs,
)
from stream_agent.evaluation.protocols import Questions, folds
from stream_agent.evaluation.samples import History, Sample
from stream_agent.planner.fusion import fused
from stream_agent.procedure import load_pack

COLDEST: Final = 0.1
HOTTEST: Final = 100.0
HEAVIEST: Final = 5.0
"""Bounds of the temperature and of the weight; at the hottest every belief is nearly even."""

_LEAST: Final = 1e-9
_NARROWINGS: Final = 60
_GOLDEN: Final = (math.sqrt(5) - 1) / 2

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Fit:
    """What was fitted."""

    temperature: float
    weight: float


@dataclass(frozen=True, slots=True)
class Score:
    """How good one planner's beliefs are.

    Attributes:
        slacc: Top-1, 2 and 3 in percent.
        interval: 95 % of top-1, whole videos drawn.
        nll: Mean negative log-likelihood of what came, in nats.
        ece: Of the first answer.
        ece_by_chance: What perfect probabilities would show on as many answers.
        brier: 0 to 2.
    """

    slacc: tuple[float, float, float]
    interval: tuple[float, float]
    nll: float
    ece: float
    ece_by_chance: float
    brier: float


def tempered(beliefs: Beliefs, temperature: float) -> Beliefs:
    """Every belief at another temperature, as the rank lane would have given it; an action without a probability keeps none."""
    logs = np.full(beliefs.shape, -np.inf)
    np.log(beliefs, out=logs, where=beliefs > 0)
    logs = logs / temperature
    weights = np.exp(logs - logs.max(1, keepdims=True))
    scaled: Beliefs = weights / weights.sum(1, keepdims=True)
    return scaled


def pooled(statistical: Beliefs, model: Beliefs, config: FusionConfig) -> Beliefs:
    """Each pair of beliefs as the planner fuses them; what neither holds possible is the action going on."""
    rows = []
    for ours, theirs in zip(statistical, model, strict=True):
        impossible = np.flatnonzero((ours <= 0) & (theirs <= 0))
        rows.append(fused(ours, theirs, config, current=int(impossible[0]) if len(impossible) else None))
    return np.array(rows).reshape(model.shape)


def log_loss(beliefs: Beliefs, targets: NDArray[np.intp]) -> float:
    """Mean negative log-likelihood of what came, in nats; a probability counts as at least 1e-9."""
    told = beliefs[np.arange(len(targets)), targets]
    return float(-np.log(np.maximum(told, _LEAST)).mean())


def fit_temperature(beliefs: Beliefs, targets: NDArray[np.intp]) -> float:
    """The temperature at which the beliefs explain best what came, between `COLDEST` and `HOTTEST`."""
    inverse = _least(lambda beta: log_loss(tempered(beliefs, 1 / beta), targets), 1 / HOTTEST, 1 / COLDEST)
    return 1 / inverse


def fit_weight(statistical: Beliefs, model: Beliefs, targets: NDArray[np.intp], config: FusionConfig) -> float:
    """The model's weight beside the statistical planner's, 0 to `HEAVIEST`; `model` at its temperature."""

    def loss(weight: float) -> float:
        return log_loss(pooled(statistical, model, config.model_copy(update={"model": weight})), targets)

    found = _least(loss, 0.0, HEAVIEST)
    return found if loss(found) < loss(0.0) else 0.0


def fit(statistical: Beliefs, model: Beliefs, targets: NDArray[np.intp], config: FusionConfig) -> Fit:
    """First the temperature, then the weight of the tempered beliefs."""
    temperature = fit_temperature(model, targets)
    return Fit(temperature, fit_weight(statistical, tempered(model, temperature), targets, config))


def held_out(
    samples: Sequence[Sample],
    statistical: Beliefs,
    model: Beliefs,
    targets: NDArray[np.intp],
    config: FusionConfig,
    parts: Sequence[Sequence[str]],
) -> tuple[Beliefs, Beliefs, list[Fit]]:
    """Model's and fused beliefs with numbers fitted on the videos of the other parts, and those numbers, one per part."""
    calibrated, mixed = np.zeros_like(model), np.zeros_like(model)
    fits = []
    for part in parts:
        inside = np.array([sample.question.video in part for sample in samples])
        if not inside.any():
            continue
        if inside.all():
            raise ConfigError(f"all samples are of {', '.join(part)}; give at least two videos, for one is held out")
        found = fit(statistical[~inside], model[~inside], targets[~inside], config)
        fits.append(found)
        calibrated[inside] = tempered(model[inside], found.temperature)
        weighed = config.model_copy(update={"model": found.weight})
        mixed[inside] = pooled(statistical[inside], calibrated[inside], weighed)
    return calibrated, mixed, fits


def score(samples: Sequence[Sample], beliefs: Beliefs, actions: Sequence[str]) -> Score:
    """The beliefs against what came."""
    answers = outcomes(samples, beliefs, actions)
    interval = metrics.bootstrap_slacc(answers, 1)
    first, second, third = (round(metrics.slacc(answers, k), 2) for k in (1, 2, 3))
    return Score(
        slacc=(first, second, third),
        interval=(round(interval.low, 1), round(interval.high, 1)),
        nll=round(log_loss(beliefs, targets_of(samples, actions)), 4),
        ece=round(metrics.ece(answers), 4),
        ece_by_chance=round(metrics.expected_ece([answer.probabilities[0] for answer in answers]).value, 4),
        brier=round(metrics.brier(answers), 4),
    )


def targets_of(samples: Sequence[Sample], actions: Sequence[str]) -> NDArray[np.intp]:
    """Each sample's target as its place among the actions."""
    place = {action: at for at, action in enumerate(actions)}
    return np.array([place[sample.target] for sample in samples], dtype=np.intp)


# ---------------------------------------------------------------------------------------------------- the command


def calibrate(
    config: AgentConfig,
    sap: Path,
    out: Path,
    *,
    signals: Path | None = None,
    history: History = "ground_truth",
    pictures: Pictures | None = None,
    captions: Captions | None = None,
    say: Say = print,
) -> Fit:
    """Ask the model about every training sample, fit, and write `out` (a preset) with its evidence beside it (`.json`).

    Raises:
        ConfigError: No language model is configured, prompts need frames that are not given, or a file is wrong.
        BackendError: The model failed.
    """
    planner = config.planner
    if out.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--out {out} is a preset; give it a name that ends in .yaml")
    if planner.wants_pictures and planner.form == "direct" and pictures is None:
        raise ConfigError(
            f"planner.memory={planner.memory} shows frames, and none are given; name their folder with --frames, or set "
            "planner.memory=labels_only"
        )
    if planner.wants_pictures and planner.form == "indirect" and captions is None:
        raise ConfigError(
            f"planner.form=indirect with planner.memory={planner.memory} reads captions, and none are given; name their file "
            "with --captions, or set planner.memory=labels_only"
        )
    pack = load_pack(config.procedure.pack)
    videos = {name: clips for name, clips in load_sap(sap).items() if name in TRAIN_VIDEOS}
    presence = load_presence(signals, videos) if signals is not None else {}
    questions = Questions(videos, presence)
    samples = [sample for name in sorted(videos) for sample in questions.samples(name, "causal", history)]
    if len({sample.question.video for sample in samples}) < 2:
        raise ConfigError(f"{sap} has samples of fewer than two training videos; give more, for one is held out")
    say(f"asking about {len(samples)} samples of {len(videos)} training videos")
    asked, model, digest = asyncio.run(_asked(config, samples, pictures, captions, say))
    fitter, how = statistical_planner()
    split = folds("lovo", videos)
    say(f"statistical planner: {how}")
    statistical = statistical_beliefs(split, videos, presence, samples, pack.action_names, fitter)
    made = judged(samples, statistical, asked.beliefs, pack.action_names, planner.fusion, planner.temperature)
    fitted_on = (
        f"{len(samples)} samples of {len(videos)} training videos of CholecT50-SAP; model {digest}"
        f"{' with adapter ' + planner.adapter if planner.adapter else ''}, prompt {asked.prompt}"
    )
    about = {
        "model": model,
        "digest": digest,
        "adapter": planner.adapter,
        "prompt": asked.prompt,
        "knowledge": pack.knowledge_digest,
        "permutations": planner.permutations,
        "history": history,
        "videos": sorted(videos),
        "samples": len(samples),
        "statistical_planner": how,
        "signals": sorted(presence),
        "sklearn": importlib.util.find_spec("sklearn") is not None,
    }
    _write(out, config, made.fit, fitted_on)
    out.with_suffix(".json").write_text(
        json.dumps({"about": about, **made.as_json()}, indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )
    for line in made.lines():
        say(line)
    return made.fit


@dataclass(frozen=True, slots=True)
class Judged:
    """The fit on all videos, and what leave-one-video-out says of such fits."""

    fit: Fit
    scores: Mapping[str, Score]
    gain: metrics.Difference
    spread: tuple[Fit, Fit]

    def as_json(self) -> dict[str, Any]:
        """For the evidence file."""
        low, high = self.spread
        return {
            "temperature": self.fit.temperature,
            "fusion_weight": self.fit.weight,
            "leave_one_video_out": {
                "temperature": [low.temperature, high.temperature],
                "fusion_weight": [low.weight, high.weight],
                "fused_minus_statistical_top1": _plain(self.gain),
            },
            "planners": {name: _plain(found) for name, found in self.scores.items()},
        }

    def lines(self) -> list[str]:
        """A table for a person."""
        low, high = self.spread
        told = [
            f"temperature {self.fit.temperature:.3g} (leaving one video out {low.temperature:.3g} to {high.temperature:.3g}), "
            f"fusion weight {self.fit.weight:.3g} ({low.weight:.3g} to {high.weight:.3g})",
            f"{'':34}{'top-1/2/3':>18}{'95 % @1':>12}{'NLL':>8}{'ECE':>8}{'chance':>8}{'Brier':>8}",
        ]
        for name, found in self.scores.items():
            accuracy = "/".join(f"{value:.1f}" for value in found.slacc)
            around = f"{found.interval[0]:.0f} to {found.interval[1]:.0f}"
            told.append(
                f"{name:34}{accuracy:>18}{around:>12}{found.nll:8.3f}{found.ece:8.3f}{found.ece_by_chance:8.3f}{found.brier:8.3f}"
            )
        gain = self.gain
        told.append(
            f"fused minus statistical, top-1: {gain.value:+.1f} points ({gain.low:+.1f} to {gain.high:+.1f}, p={gain.p_value:.2f})"
        )
        return told


def judged(
    samples: Sequence[Sample],
    statistical: Beliefs,
    model: Beliefs,
    actions: Sequence[str],
    config: FusionConfig,
    temperature: float = 1.0,
) -> Judged:
    """Fit on everything, and score what was configured before beside leave-one-video-out; `model` at temperature 1."""
    targets = targets_of(samples, actions)
    each = [[video] for video in dict.fromkeys(sample.question.video for sample in samples)]
    calibrated, mixed, fits = held_out(samples, statistical, model, targets, config, each)
    before = tempered(model, temperature)
    named = {
        f"model, T={temperature:g} as configured": before,
        "model, fitted T": calibrated,
        "statistical": statistical,
        f"fused, w={config.model:g} as configured": pooled(statistical, before, config),
        "fused, fitted T and w": mixed,
    }
    temperatures, weights = [found.temperature for found in fits], [found.weight for found in fits]
    return Judged(
        fit=fit(statistical, model, targets, config),
        scores={name: score(samples, beliefs, actions) for name, beliefs in named.items()},
        gain=metrics.paired_bootstrap(outcomes(samples, mixed, actions), outcomes(samples, statistical, actions)),
        spread=(Fit(min(temperatures), min(weights)), Fit(max(temperatures), max(weights))),
    )


async def _asked(
    config: AgentConfig, samples: Sequence[Sample], pictures: Pictures | None, captions: Captions | None, say: Say
) -> tuple[Asked, str, str]:
    model = LanguageModel(load_pack(config.procedure.pack), config.planner)
    done = 0

    def seen() -> None:
        nonlocal done
        done += 1
        if done % 25 == 0:
            say(f"{done} of {len(samples)}")

    try:
        able = await model.start()
        asked = await model.ask(samples, config.planner, pictures=pictures, captions=captions, seen=seen)
    finally:
        await model.close()
    return asked, able.model, able.digest


def _write(out: Path, config: AgentConfig, found: Fit, fitted_on: str) -> None:
    """The preset that was calibrated, with what was fitted."""
    tree = config.model_dump(mode="json", exclude_unset=True)
    planner = tree.setdefault("planner", {})
    planner["temperature"] = float(f"{found.temperature:.4g}")
    planner["temperature_fitted_on"] = fitted_on
    planner["fusion"] = {
        **planner.get("fusion", {}),
        "statistical": config.planner.fusion.statistical,
        "model": float(f"{found.weight:.4g}"),
        "fitted_on": fitted_on,
    }
    head = (
        "# Written by `run_agent.py train calibration`, for this model, prompt and number of orders alone.\n"
        f"# What it is worth on videos it was not fitted on: {out.with_suffix('.json').name}\n"
    )
    try:
        out.write_text(head + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"--out {out} cannot be written ({error.strerror}); name a file in a folder that exists"
        ) from error


def _least(loss: Callable[[float], float], low: float, high: float) -> float:
    """Where a convex function is least within an interval, by golden sections."""
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = loss(left), loss(right)
    for _ in range(_NARROWINGS):
        if high - low < 1e-4:
            break
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = loss(right)
    return (low + high) / 2


def _plain(record: Score | metrics.Difference) -> dict[str, Any]:
    """JSON knows no NaN: nothing was measured there."""
    fields = {name: getattr(record, name) for name in record.__slots__}
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in fields.items()}
