"""Cross-validation of the model over the structured memory: what it says of videos that it was not fitted on.

Settings are chosen by the log loss of 5-fold cross-validation by video on samples of the training videos, again without each
video where figures are nested.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from stream_agent.planner.ensemble import Ending, Head
from stream_agent.planner.ngram import NgramModel
from stream_agent.training.forecasts import Forecasts, joined, log_loss, mixed, unless_ending
from stream_agent.training.planner_heads import Setting, fit_ending, fit_head
from stream_agent.training.planner_questions import Example, Matrix, Rows, allowed, matrix, questions
from stream_agent.training.statistical import ACTIONS, Videos, count, folds

SHARES: Final = (0.05, 0.1, 0.2, 0.3, 0.5)
SHARPNESSES: Final = (0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8)
SETTINGS: Final = {
    False: (Setting(5.0, 100.0), Setting(5.0, 30.0), Setting(3.0, 100.0)),
    True: (Setting(3.0, 50.0, 3, 0.33), Setting(3.0, 50.0, 5, 0.33)),
}
"""By whether instruments are seen."""


class Study:
    """All questions of all videos, and models fitted on some of them."""

    def __init__(self, videos: Videos, rows: Rows, *, order: int, concentration: float) -> None:
        self.videos = videos
        self._order, self._concentration = order, concentration
        made = {name: questions(clips, rows.get(name)) for name, clips in videos.items()}
        self.asked = {name: asked for name, (asked, _, _) in made.items()}
        self.early = {name: asked for name, (_, asked, _) in made.items()}
        self.moments = {name: asked for name, (_, _, asked) in made.items()}

    def named(self, names: Iterable[str], *, full: bool, samples: bool) -> list[Example]:
        """The questions of some videos; for the full head only those with rows."""
        return [
            one
            for name in sorted(names)
            for one in self.asked[name]
            if (one.instruments is not None or not full) and (one.is_sample or not samples)
        ]

    def forecast(
        self, taught: Iterable[str], tested: Iterable[str], setting: Setting, *, full: bool, samples: bool = True
    ) -> Forecasts:
        """Answers about `tested` of models fitted on `taught`."""
        return self.answer(taught, self.named(tested, full=full, samples=samples), setting, full=full)

    def answer(self, taught: Iterable[str], asked: Sequence[Example], setting: Setting, *, full: bool) -> Forecasts:
        """Answers to any questions of models fitted on the videos `taught`; the current action is taken to end now."""
        taught = list(taught)
        head = Head(fit_head(self.named(taught, full=full, samples=False), setting, full=full), len(ACTIONS))
        file = count(self.videos, taught, order=self._order, concentration=self._concentration)
        ngram = NgramModel(file)
        rows = zip(matrix(asked, full=full).tolist(), allowed(asked), strict=True)
        own = np.array([head.probabilities(row, may_come) for row, may_come in rows]).reshape(-1, len(ACTIONS))
        answers = [ngram.next_probabilities(one.history) for one in asked]
        back_off = np.array([[answer.get(action, 0.0) for action in ACTIONS] for answer in answers])
        back_off = back_off.reshape(-1, len(ACTIONS))
        probabilities = mixed(own, back_off, share=setting.share, sharpness=setting.sharpness)
        return Forecasts(tuple(asked), own, back_off, probabilities)

    def ending(self, names: Iterable[str]) -> Ending:
        """What tells the ends of actions from other moments, fitted on `names`."""
        names = sorted(names)
        early = [one for name in names for one in self.early[name]]
        among = [one for name in names for one in self.moments[name]]
        return fit_ending(self.named(names, full=True, samples=False) + early, among)

    def choose(self, names: Iterable[str], *, full: bool) -> Setting:
        """The setting with the least cross-validated log loss over samples; the first on a tie."""
        names = sorted(names)
        losses: dict[Setting, float] = {}
        for base in SETTINGS[full]:
            found = self.five_fold(names, base, full=full)
            for share in SHARES:
                for sharpness in SHARPNESSES:
                    answers = mixed(found.own, found.back_off, share=share, sharpness=sharpness)
                    setting = replace(base, share=share, sharpness=sharpness)
                    losses[setting] = round(log_loss(answers, found.targets), 4)
        return min(losses, key=lambda setting: losses[setting])

    def five_fold(self, names: Iterable[str], setting: Setting, *, full: bool, samples: bool = True) -> Forecasts:
        """Answers about each fifth of the videos by models fitted on the others."""
        names = sorted(names)
        return joined(
            self.forecast(set(names) - set(part), part, setting, full=full, samples=samples)
            for part in folds(names)
            if self.named(part, full=full, samples=samples)
        )

    def nested(self, names: Iterable[str], *, full: bool) -> list[Forecasts]:
        """Leave-one-video-out, the setting chosen again without each video; joined into the parts of `folds`."""
        names = sorted(names)
        asked = [name for name in names if self.named([name], full=full, samples=True)]
        parts = []
        for part in folds(asked):
            found = []
            for name in part:
                rest = set(names) - {name}
                found.append(self.forecast(rest, [name], self.choose(rest, full=full), full=full))
            parts.append(joined(found))
        return parts

    def live(self, names: Iterable[str], setting: Setting) -> dict[str, tuple[Forecasts, Matrix]]:
        """Leave-one-video-out at samples and in all seconds: told that the current action ends, and (n, actions) not told.

        A second's answer is right when it names what comes after the current action, however much later.
        """
        found: dict[str, list[tuple[Forecasts, Matrix]]] = {"samples": [], "all seconds": []}
        for name in sorted(names):
            rest = set(names) - {name}
            ending = self.ending(rest)
            asked = self.named([name], full=True, samples=True), self.moments[name]
            for answers, some in zip(found.values(), asked, strict=True):
                if some:
                    told = self.answer(rest, some, setting, full=True)
                    answers.append((told, unless_ending(told, ending)))
        return {
            when: (joined(told for told, _ in answers), np.concatenate([untold for _, untold in answers]))
            for when, answers in found.items()
        }

    def leave_one_out(self, names: Iterable[str], setting: Setting, *, full: bool) -> Forecasts:
        """Answers about each video's samples by models fitted on all the others."""
        names = sorted(names)
        return joined(
            self.forecast(set(names) - {name}, [name], setting, full=full)
            for name in names
            if self.named([name], full=full, samples=True)
        )
