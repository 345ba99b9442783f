"""What an adapter and its fusion are worth, cross-validated: `run_agent.py train evaluate --trial`.

    each training video ─▶ asked of the adapter that was fitted without it, of a statistical planner fitted without it, of the base
        out of fold: temperature and fusion weight that judge a part are fitted on the other parts' answers
    all those answers ─▶ temperature and fusion weight ─▶ the samples of the test videos, each asked once, of the candidate that was
        fitted on all training videos, the statistical planner that was, and the base

So no weight that judges a sample, of a network or of the fusion, was fitted on its video. Two mixtures remain: the answers that a
part's two numbers are fitted on come from adapters and planners that have seen that part, and the settings of the statistical
planner were chosen on all training videos.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any, Final

import numpy as np

from stream_agent.config import FusionConfig
from stream_agent.evaluation.model_beliefs import Beliefs
from stream_agent.evaluation.protocols import Fold
from stream_agent.evaluation.samples import Sample
from stream_agent.training.calibration import Fit, fit, held_out, targets_of
from stream_agent.training.panel import HISTORY, TRACK, Panel
from stream_agent.training.report_rows import Weighed, measured, rows_of, weighed
from stream_agent.training.taught_adapter import TaughtAdapter
from stream_agent.training.trial import Trial, load_trial

_BASE: Final = "base"
_OUT_OF_FOLD: Final = "base, out of fold"


@dataclass(frozen=True, slots=True, eq=False)
class _Said:
    """One side's beliefs about the samples of the training videos, out of fold, and of the test videos."""

    unseen: Beliefs
    tests: Beliefs


def evaluate_trial(
    folder: Path,
    sap: Path,
    *,
    signals: Path | None = None,
    model: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    keep: Path | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Rows of the training videos out of fold, rows of the test videos, and how the fusion was fitted for each.

    Args:
        folder: What `train gate --parts N` wrote.
        sap: `total_video_info.json`.
        signals: Folder of `videoNN.csv`, for the statistical planner.
        model: The base model's directory, where it is another than the adapters were trained with.
        settings: More of `planner.*`, for the backend.
        keep: Folder for everybody's beliefs: those of base and statistical planner are the same for the next trial.
        say: Hears of progress.

    Raises:
        ConfigError: As `load_trial` and `Panel`.
        BackendError: The model failed.
    """
    trial = load_trial(folder, model, settings)
    for early in trial.ended_early:
        say(f"{early} was ended by hand, before its configuration says")
    panel = Panel(trial.candidate, sap, signals=signals, keep=keep, say=say)
    unseen, tests = panel.samples(trial.videos), panel.samples(panel.tests)
    folds = [Fold(tuple(v for v in panel.training if v not in part), part) for part in trial.unseen]
    beside = panel.statistical("statistical, out of fold", folds, unseen)
    statistical = panel.statistical("statistical", [Fold(panel.training, panel.tests)], tests)
    said = _asked(panel, trial, unseen, tests)

    fusion, targets = trial.candidate.planner.fusion, targets_of(unseen, panel.actions)
    crossed = {
        name: out_of_fold(unseen, beside, said[name].unseen, panel.actions, fusion, trial.unseen)
        for name in trial.taught
    }
    fits = {name: fit(beside, said[name].unseen, targets, fusion) for name in trial.taught}
    own = {name: weighed(found, statistical, said[name].tests, fusion) for name, found in fits.items()}
    nested = {name: mixed for name, (mixed, _) in crossed.items()}
    return {
        "trial": folder.name,
        "track": TRACK,
        "history": HISTORY,
        "samples": len(tests),
        "out_of_fold_samples": len(unseen),
        "training_videos": len(trial.videos),
        "parts": [list(videos) for videos in trial.unseen],
        "ended_early": list(trial.ended_early),
        "statistical_planner": panel.how,
        "fitted": {
            name: {
                "weights": trial.taught[name].whole.weights,
                **_numbers(fits[name]),
                "per_part": [
                    {"weights": adapter.weights, **_numbers(found)}
                    for adapter, found in zip(trial.taught[name].parts, crossed[name][1], strict=True)
                ],
            }
            for name in trial.taught
        },
        "out_of_fold": measured(rows_of(said[_BASE].unseen, beside, nested, fusion), unseen, panel.actions),
        "rows": measured(rows_of(said[_BASE].tests, statistical, own, fusion), tests, panel.actions),
    }


def out_of_fold(
    samples: Sequence[Sample],
    statistical: Beliefs,
    own: Beliefs,
    actions: Sequence[str],
    fusion: FusionConfig,
    parts: Sequence[Sequence[str]],
) -> tuple[Weighed, list[Fit]]:
    """An adapter's beliefs weighed part by part with numbers fitted on the other parts, and those numbers, one per part."""
    calibrated, mixed, fits = held_out(samples, statistical, own, targets_of(samples, actions), fusion, parts)
    weights, temperatures = [found.weight for found in fits], [found.temperature for found in fits]
    told = f"w={min(weights):.3g} to {max(weights):.3g}, T={min(temperatures):.3g} to {max(temperatures):.3g}"
    return Weighed(own, calibrated, mixed, told), fits


def _asked(panel: Panel, trial: Trial, unseen: Sequence[Sample], tests: Sequence[Sample]) -> dict[str, _Said]:
    """What the base and each training's adapters said; the training videos' samples each by the part that leaves its video out."""
    inside = [np.array([sample.question.video in videos for sample in unseen]) for videos in trial.unseen]
    wanted: dict[str, tuple[TaughtAdapter | None, Sequence[Sample]]] = {
        _OUT_OF_FOLD: (None, unseen),
        _BASE: (None, tests),
    }
    for name, crossed in trial.taught.items():
        for part, adapter, own in zip(trial.parts, crossed.parts, inside, strict=True):
            wanted[f"{name} of {part}"] = (adapter, list(compress(unseen, own)))
        wanted[name] = (crossed.whole, tests)
    said = panel.language(wanted)
    found = {_BASE: _Said(said[_OUT_OF_FOLD], said[_BASE])}
    for name in trial.taught:
        joined = np.zeros_like(said[_OUT_OF_FOLD])
        for part, own in zip(trial.parts, inside, strict=True):
            joined[own] = said[f"{name} of {part}"]
        found[name] = _Said(joined, said[name])
    return found


def _numbers(found: Fit) -> dict[str, float]:
    return {"temperature": found.temperature, "fusion_weight": found.weight}
