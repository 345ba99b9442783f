"""What the recogniser is fitted on: labelled pictures, pictures made of them, and made pictures of no body."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from stream_agent.errors import ConfigError
from stream_agent.perception.protocol import Thumbnail
from stream_agent.training.annotations import INSTRUMENTS
from stream_agent.training.augment import Sample
from stream_agent.training.effort import Effort
from stream_agent.training.fitting import Tell, answers, fit_late, targets
from stream_agent.training.measures import Matrix
from stream_agent.training.network import EarlyRunner, Half, Late
from stream_agent.training.outside import outside_pictures
from stream_agent.training.pictures import pictures
from stream_agent.training.recogniser_examples import corrected_scenes, label, make_samples

SEED: Final = 2025
MADE: Final = 0
"""Stands for the video of pictures that are made."""


class Material:
    """Samples, encoded once by the frozen part of the network.

    Attributes:
        examples: The labelled pictures; the first samples are these as they are.
        corrected: How many pictures of clips that a person corrected there are.
        outside: Made pictures of no body, by family; the last samples are these.
        untrained: What the late part as published says of the labelled pictures, (n, 2560).
    """

    def __init__(
        self,
        data: Path,
        *,
        exclude: Collection[int],
        corrected: Sequence[tuple[Path, Path]],
        effort: Effort,
        tell: Tell,
    ) -> None:
        """Read and make the pictures.

        Raises:
            ConfigError: No pictures are left, or a corrected label file cannot be used.
        """
        rng = np.random.default_rng(SEED)
        items = [item for item in pictures(data, test=False, every=effort.every) if item.video not in exclude]
        if not items:
            raise ConfigError(
                f"{data} has no labelled pictures outside {[f'VID{video:02d}' for video in sorted(exclude)]}; exclude fewer videos"
            )
        self.examples = label(data, items)
        scenes = [scene for k, pair in enumerate(corrected) for scene in corrected_scenes(*pair, -1 - k)]
        self.corrected = len(scenes)
        self.outside = outside_pictures(rng, effort.outside)
        samples = make_samples(self.examples, scenes, effort, rng)
        tell(f"{len(items)} pictures, {len(scenes)} of corrected clips, {effort.augmented} made of them")
        nothing, nowhere = np.zeros(len(INSTRUMENTS), dtype=np.float32), np.zeros_like(samples[0].cells)
        flat = [picture for family in self.outside.values() for picture in family]
        samples += [Sample(picture, frozenset((MADE,)), nothing, nowhere, -1) for picture in flat]
        self._real = np.arange(len(items))
        self._made = np.arange(len(samples) - len(flat), len(samples))
        self._videos = [sample.videos for sample in samples]
        self._known = targets(samples)
        self._stored = _activations(EarlyRunner(), [sample.picture for sample in samples], tell)
        self._effort = effort
        self.untrained = answers(Late().eval(), self._stored, self._real)[1]

    def fit(self, *, without: Collection[int], presence: Matrix, tell: Tell) -> tuple[Late, list[float]]:
        """The late part fitted on the samples that show nothing of some videos, and its loss by step.

        Real black pictures are not fitted on: they only calibrate the gate's output.
        """
        dropped = set(without)
        black = set(np.flatnonzero(self.examples.outside).tolist())
        shown = [k for k, videos in enumerate(self._videos) if not (videos & dropped) and k not in black]
        return fit_late(
            self._stored, self._known, np.array(shown, dtype=np.int64), presence_by_action=presence,
            epochs=self._effort.epochs, seed=SEED, tell=tell, batch=self._effort.batch,
        )  # fmt: skip

    def answers(self, late: Late) -> tuple[Matrix, Matrix, Matrix]:
        """Log odds and features of the labelled pictures, and features of the made ones of no body."""
        scores, features = answers(late, self._stored, np.concatenate([self._real, self._made]))
        count = len(self._real)
        return scores[:count], features[:count], features[count:]


def _activations(early: EarlyRunner, samples: Sequence[Thumbnail], tell: Tell) -> Half:
    """What the frozen part says of each picture."""
    first = early(samples[0])
    stored = np.empty((len(samples), *first.shape), dtype=np.float16)
    for k, picture in enumerate(samples):
        stored[k] = early(picture)
        if k % 1000 == 999:
            tell(f"encoded {k + 1}/{len(samples)} pictures")
    return stored
