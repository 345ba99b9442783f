"""Cross-validation asks about each video once, and never a model that was fitted on it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest

from stream_agent.training.forecasts import Forecasts
from stream_agent.training.planner_heads import Setting
from stream_agent.training.planner_study import Study
from stream_agent.training.statistical import ACTIONS
from tests.training.annotated_clips import C, D, R, clips


def test_five_fold_answers_about_every_video_come_from_models_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    videos = {f"VID{k:02d}": tuple(replace(clip, video=f"VID{k:02d}") for clip in clips(R, D, C)) for k in range(1, 8)}
    study = Study(videos, {}, order=2, concentration=1.0)
    fitted_on: dict[str, set[str]] = {}

    def forecast(
        taught: Iterable[str], tested: Iterable[str], setting: Setting, *, full: bool, samples: bool = True
    ) -> Forecasts:
        asked = tuple(study.named(tested, full=full, samples=samples))
        fitted_on.update({one.video: set(taught) for one in asked})
        return Forecasts(asked, *[np.full((len(asked), len(ACTIONS)), 0.2)] * 3)

    monkeypatch.setattr(study, "forecast", forecast)
    found = study.five_fold(videos, Setting(1.0, 1.0), full=False)
    assert sorted(one.video for one in found.asked) == sorted(2 * list(videos))
    assert all(name not in taught and taught < set(videos) for name, taught in fitted_on.items())
    assert not study.named(videos, full=True, samples=True)
