"""Every planner that an evaluation compares; the one file of the evaluation that joins it with what fits the product's own.

A planner of the product takes part through `PackPlanner(name, fit)`, where `fit(training)` may use the fold's training videos
and nothing else: no shipped model, for that has seen the videos that are asked about.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path

from stream_agent.config import PlannerConfig
from stream_agent.evaluation.baselines import (
    AntGpt,
    Constant,
    Frequency,
    FrequencyMinusLast,
    MostProb,
    MostProbGoal,
    PackPlanner,
    Ps,
    TextBackend,
)
from stream_agent.evaluation.dataset import SapClip
from stream_agent.evaluation.protocols import Baseline, Training
from stream_agent.evaluation.streaming import SignalsModel
from stream_agent.planner.ensemble import Ensemble
from stream_agent.planner.ngram import NgramModel
from stream_agent.planner.statistical import StatisticalPlanner
from stream_agent.procedure import load_pack
from stream_agent.training import planner_model, signals
from stream_agent.training import statistical as trainer
from stream_agent.training.planner_study import Study


def ngram_planner(training: Training) -> StatisticalPlanner:
    """The shipped pack's statistical planner with its label model fitted on the fold: settings chosen inside it, too."""
    order, concentration = _chosen(training)
    return _planner(training, order, concentration, None)


def memory_planner(training: Training) -> StatisticalPlanner:
    """The same with the model over the whole memory, fitted on the fold as well; needs scikit-learn.

    Its settings are those chosen on the 35 training videos (`planner_model.CHOSEN`), so leave-one-video-out has seen them.
    """
    order, concentration = _chosen(training)
    rows = {name: tuple(tuple(row) for row in seen.tolist()) for name, seen in training.presence.items()}
    study = Study(_clips(training), rows, order=order, concentration=concentration)
    return _planner(
        training, order, concentration, Ensemble(planner_model.fit_ensemble(study, sorted(training.videos)))
    )


def trained_planner(training: Training) -> StatisticalPlanner:
    """What `train statistical` writes when it is given these videos: every setting chosen on them again, too."""
    order, concentration = _chosen(training)
    rows = {name: tuple(tuple(row) for row in seen.tolist()) for name, seen in training.presence.items()}
    study = Study(_clips(training), rows, order=order, concentration=concentration)
    chosen = {
        full: study.choose(names, full=full)
        for full, names in ((False, sorted(training.videos)), (True, sorted(rows)))
        if names
    }
    file = planner_model.fit_ensemble(study, sorted(training.videos), planner_model.CHOSEN | chosen)
    return _planner(training, order, concentration, Ensemble(file))


def statistical_planner() -> tuple[Callable[[Training], StatisticalPlanner], str]:
    """How the product's planner is fitted here, and that in words."""
    if importlib.util.find_spec("sklearn") is not None:
        return memory_planner, "label model and model over the memory, both fitted on each fold"
    return ngram_planner, "label model alone, for scikit-learn is not installed; pip install stream-agent[train]"


def _clips(training: Training) -> dict[str, tuple[SapClip, ...]]:
    return {name: tuple(clips) for name, clips in training.videos.items()}


def _chosen(training: Training) -> tuple[int, float]:
    videos = _clips(training)
    return trainer.choose(videos, videos, held_out=frozenset())


def _planner(training: Training, order: int, concentration: float, ensemble: Ensemble | None) -> StatisticalPlanner:
    """The pack's planner with these models in the place of the shipped ones, which have seen the videos asked about."""
    videos = _clips(training)
    model = NgramModel(trainer.count(videos, videos, order=order, concentration=concentration))
    pack = dataclasses.replace(load_pack(Path("cholecystectomy")), model=model, ensemble=ensemble)
    return StatisticalPlanner(pack, PlannerConfig())


def all_baselines(*, frames: Path | None, backend: TextBackend | None) -> tuple[Baseline, ...]:
    """Every planner of the evaluation, in the order of its tables."""
    return (
        Constant(),
        Frequency(),
        FrequencyMinusLast(),
        MostProb(),
        MostProbGoal(),
        Ps(frames),
        AntGpt(backend),
        PackPlanner("statistical", statistical_planner()[0]),
    )


def signals_model(training: Training) -> SignalsModel:
    """What turns instruments into clips in the agent, fitted on the fold's training videos."""
    return signals.fit(_clips(training), training.presence)
