"""Clips, instrument rows and forecasts as short as a test needs them."""

from __future__ import annotations

import numpy as np

from stream_agent.evaluation.dataset import INSTRUMENTS, SapClip
from stream_agent.training.forecasts import Forecasts
from stream_agent.training.planner_questions import examples
from stream_agent.training.statistical import ACTIONS

D, C, R = "Dissection", "Vessel Clipping", "Tissue Retraction"


def clips(*labels: str, each_s: int = 10) -> tuple[SapClip, ...]:
    return tuple(
        SapClip("VID01", place, each_s * place, label, label, is_sample=place > 0) for place, label in enumerate(labels)
    )


def rows(seconds: int, *, clipper_from: int) -> list[tuple[int, ...]]:
    return [
        tuple(int(name == "Clipper" and second >= clipper_from) for name in INSTRUMENTS) for second in range(seconds)
    ]


def made_up(probabilities: list[list[float]], targets: list[int]) -> Forecasts:
    answers = np.array(probabilities)
    asked = tuple(examples(clips(R, ACTIONS[target]), None)[1] for target in targets)
    return Forecasts(asked, answers, answers, answers)
