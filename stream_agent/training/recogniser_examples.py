"""Labelled pictures, and the samples that the recogniser is taught by: the pictures themselves and others made of them."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from stream_agent.perception.protocol import Thumbnail
from stream_agent.perception.timeline import load_labels
from stream_agent.training.annotations import (
    ACTIONS,
    INSTRUMENTS,
    load_t50_boxes,
    load_timelines,
    load_tool_rows,
    one_hot,
)
from stream_agent.training.augment import Sample, Scene, augment, plain
from stream_agent.training.effort import Effort
from stream_agent.training.measures import Labels
from stream_agent.training.pictures import BLACK_FROM_S, LabelledPicture, sampled

CORRECTED_FPS: Final = 2.0
DONOR_SHARES: Final = (1.0, 1.0, 1.5, 2.0, 2.0, 2.0)
"""How often each instrument is pasted: those that few videos show more."""
RARE: Final = (3, 4, 5, 6)


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Pictures with labels.

    Attributes:
        pictures: (n,) as run time sees them.
        scenes: (n,) larger, with boxes.
        videos: (n,).
        instruments: (n, 7) 0 or 1.
        actions: (n,) index, -1 for none.
        outside: (n,) camera out of the body.
    """

    pictures: tuple[Thumbnail, ...]
    scenes: tuple[Scene, ...]
    videos: Labels
    instruments: Labels
    actions: Labels
    outside: NDArray[np.bool_]

    def by_video(self) -> dict[str, int]:
        """How many pictures each video gives."""
        return {str(video): int(np.sum(self.videos == video)) for video in np.unique(self.videos)}


def label(data: Path, items: Sequence[LabelledPicture]) -> Examples:
    """Give each picture the labels of its second."""
    timelines = load_timelines(data, continue_with_precursor=True)
    videos = sorted({item.video for item in items})
    rows = {video: load_tool_rows(data, video) for video in videos}
    boxes = {video: load_t50_boxes(data, video) for video in videos}
    instruments = np.array([rows[item.video][int(item.second)] for item in items])
    actions = np.array([one_hot(timelines[item.video].action(item.second)) for item in items])
    scenes = [
        Scene(
            picture=item.large,
            video=item.video,
            presence=instruments[k].astype(np.float32),
            boxes=boxes[item.video].get(int(item.second), ()) if boxes[item.video] else None,
            action=int(actions[k]),
        )
        for k, item in enumerate(items)
    ]
    return Examples(
        pictures=tuple(item.picture for item in items),
        scenes=tuple(scenes),
        videos=np.array([item.video for item in items]),
        instruments=instruments,
        actions=actions,
        outside=np.array([item.second >= BLACK_FROM_S.get(item.video, math.inf) for item in items]),
    )


def corrected_scenes(video: Path, labels: Path, number: int) -> list[Scene]:
    """Pictures of a video whose clips a person corrected; they have an action and no instrument labels.

    Raises:
        ConfigError: The label file is damaged, or names an action outside the closed set.
    """
    starts = load_labels(labels, ACTIONS)
    starts_s = [start_s for start_s, _ in starts]
    scenes = []
    for media_s, _, large in sampled(video, rate_fps=CORRECTED_FPS):
        run = bisect_right(starts_s, media_s) - 1
        action = starts[run][1] if run >= 0 else ""
        if action:
            nothing = np.full(len(INSTRUMENTS), np.nan, dtype=np.float32)
            scenes.append(Scene(large, number, nothing, None, ACTIONS.index(action)))
    return scenes


def make_samples(
    examples: Examples, corrected: Sequence[Scene], effort: Effort, rng: np.random.Generator
) -> list[Sample]:
    """The pictures as they are, in their order, then the made ones."""
    samples = [
        replace(plain(scene), picture=picture)
        for picture, scene in zip(examples.pictures, examples.scenes, strict=True)
    ]
    samples += [plain(scene) for scene in corrected]
    scenes = [scene for scene, outside in zip(examples.scenes, examples.outside, strict=True) if not outside]
    donors = _donors(scenes, rng)
    weights = np.array(
        [
            (2.0 if scene.boxes is not None else 1.0)
            * (1.0 + 1.5 * bool(np.any(scene.presence[list(RARE)] == 1)) + 0.5 * bool(scene.presence[1] == 1))
            for scene in (*scenes, *corrected)
        ]
    )
    chosen = rng.choice(len(weights), effort.augmented, p=weights / weights.sum())
    for index in np.sort(chosen):
        if index < len(scenes):
            samples.append(augment(scenes[index], donors, rng))
        else:
            samples.append(augment(corrected[index - len(scenes)], (), rng))
    return samples


def _donors(scenes: Sequence[Scene], rng: np.random.Generator) -> list[Scene]:
    """Scenes with boxes, those of rarer instruments more often."""
    donors: list[Scene] = []
    for index, share in enumerate(DONOR_SHARES):
        holding = [scene for scene in scenes if scene.boxes and any(box[0] == index for box in scene.boxes)]
        if holding:
            donors += [holding[k] for k in rng.integers(0, len(holding), int(100 * share))]
    return donors
