"""Every planner that an evaluation compares; the one file of the evaluation that joins it with what fits the product's own.

A planner of the product takes part through `PackPlanner(name, fit)`, where `fit(training)` may use the fold's training videos
and nothing else: no shipped model, for that has seen the videos that are asked about.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

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
from stream_agent.evaluation.protocols import Baseline, Training
from stream_agent.planner.ngram import NgramModel
from stream_agent.planner.statistical import StatisticalPlanner
from stream_agent.procedure import load_pack
from stream_agent.training import statistical as trainer


def ngram_planner(training: Training) -> StatisticalPlanner:
    """The shipped pack's statistical planner with its label model fitted on the fold: settings chosen inside it, too."""
    videos = {name: tuple(clips) for name, clips in training.videos.items()}
    order, concentration = trainer.choose(videos, videos, held_out=frozenset())
    model = trainer.fit(videos, videos, order=order, concentration=concentration, held_out=frozenset())
    pack = load_pack(Path("cholecystectomy"))
    # whatever else the shipped pack holds of fitted models has seen the videos that are asked about
    fitted: dict[str, Any] = {field.name: None for field in dataclasses.fields(pack) if field.name == "ensemble"}
    fitted["model"] = NgramModel(model)
    return StatisticalPlanner(dataclasses.replace(pack, **fitted), PlannerConfig())


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
        PackPlanner("statistical", ngram_planner),
    )
