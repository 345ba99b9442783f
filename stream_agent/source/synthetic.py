"""A made-up operation to watch: needs no file, camera or pack, and its ground truth is known.

A procedure takes most of an hour, a demonstration a minute: the scene plays `synthetic_speed` times faster than life.
Media time is the procedure's, so that durations and onsets mean what they mean elsewhere; what is drawn moves at the
pace of the screen.
"""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from stream_agent.config import SourceConfig
from stream_agent.errors import SourceError
from stream_agent.messages import Clip
from stream_agent.source.frame_index import read_index, write_index
from stream_agent.source.protocol import Picture, Planes
from stream_agent.source.scene import Moment, Scene

__all__ = ["SyntheticSource", "blackouts", "read_index"]

_SMOKY = ("coagul", "cauter", "ablat", "vapor", "seal")
"""Word stems of actions that burn tissue, whatever the procedure."""

_HAZE_RISE_S = 2.0
_BLACKOUT_EVERY_S = 25.0


class SyntheticSource:
    """Draws the ground-truth timeline; every picture carries its index in its pixels and its truth in `signals`.

    Attributes:
        live: False.
    """

    live = False

    def __init__(
        self,
        config: SourceConfig,
        *,
        timeline: Sequence[Clip],
        instruments: Sequence[str],
        instruments_of: Callable[[str], Sequence[str]],
    ) -> None:
        """Play `timeline`; without one, `config.synthetic_duration_s` of tissue.

        Args:
            config: Size, rate and seed.
            timeline: Clips in order, without gaps, from 0.
            instruments: Order of `signals`.
            instruments_of: Action → names of the instruments in use.
        """
        self._config = config
        self._timeline = tuple(timeline)
        self._starts_s = [clip.start_pts_s for clip in self._timeline]
        self._speed = config.synthetic_speed
        lasts_s = config.synthetic_duration_s * self._speed
        self._duration_s = self._timeline[-1].end_pts_s if self._timeline else lasts_s
        self._blackouts = blackouts(self._duration_s / self._speed, seed=config.seed)
        self._instruments = tuple(instruments)
        self._instruments_of = instruments_of
        self._scene: Scene | None = None
        self._start_s = 0.0

    def open(self, start_s: float) -> None:
        """Prepare the scene, which takes some tenths of a second at 1080p.

        Raises:
            SourceError: `start_s` lies beyond the end.
        """
        if start_s >= self._duration_s:
            raise SourceError(
                f"source.start_s={start_s:g} is beyond the end of the synthetic procedure at {self._duration_s:g} s; lower it",
                at_end=True,
            )
        config = self._config
        self._start_s = start_s
        self._scene = Scene(
            config.synthetic_width, config.synthetic_height, seed=config.seed, instruments=self._instruments
        )

    def pictures(self) -> Iterator[Picture]:
        """Yield pictures at the configured rate; `frame_index.read_index` of the n-th since media time 0 gives n."""
        if self._scene is None:
            raise SourceError("the synthetic source is not open; call open() before pictures()")
        config = self._config
        presence = {clip.action: self._presence(clip.action) for clip in self._timeline}
        index = math.ceil(self._start_s / self._speed * config.synthetic_fps - 1e-9)
        while (pts_s := index / config.synthetic_fps * self._speed) < self._duration_s:
            clip = self._clip_at(pts_s)
            yield Picture(
                pts_s=pts_s,
                width=config.synthetic_width,
                height=config.synthetic_height,
                write=partial(self._draw, self._scene, self._moment(pts_s / self._speed, clip), index),
                colour="bt601",
                signals=presence[clip.action] if clip else (0.0,) * len(self._instruments),
            )
            index += 1

    def close(self) -> None:
        """Free the scene."""
        self._scene = None

    def _draw(self, scene: Scene, moment: Moment, index: int, planes: Planes) -> None:
        scene.draw(planes, moment)
        write_index(planes, index)

    def _clip_at(self, pts_s: float) -> Clip | None:
        return self._timeline[bisect.bisect_right(self._starts_s, pts_s) - 1] if self._timeline else None

    def _presence(self, action: str) -> tuple[float, ...]:
        used = {name.casefold() for name in self._instruments_of(action)}
        return tuple(float(name.casefold() in used) for name in self._instruments)

    def _moment(self, time_s: float, clip: Clip | None) -> Moment:
        """What to draw at `time_s` of screen time."""
        dark = any(start_s <= time_s < end_s for start_s, end_s in self._blackouts)
        if clip is None:
            return Moment(time_s=time_s, dark=dark)
        since_s = time_s - clip.start_pts_s / self._speed
        smoky = any(stem in clip.action.casefold() for stem in _SMOKY)
        return Moment(
            time_s=time_s,
            instruments=tuple(self._instruments_of(clip.action)),
            since_s=since_s,
            haze=0.6 * min(since_s / _HAZE_RISE_S, 1.0) if smoky else 0.0,
            dark=dark,
        )


def blackouts(duration_s: float, *, seed: int) -> tuple[tuple[float, float], ...]:
    """When the lens sees nothing: about one (start_s, end_s) of a second per `_BLACKOUT_EVERY_S`, none at the start."""
    draw = random.Random(f"blackouts {seed}")
    spans = []
    for block in range(1, math.ceil(duration_s / _BLACKOUT_EVERY_S)):
        start_s = block * _BLACKOUT_EVERY_S + draw.random() * (_BLACKOUT_EVERY_S / 2)
        spans.append((start_s, min(start_s + 0.8 + 0.7 * draw.random(), duration_s)))
    return tuple(span for span in spans if span[0] < span[1])
