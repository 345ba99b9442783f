"""A drawn endoscope picture: tissue that breathes behind a round vignette, instruments, smoke, a dark lens.

Everything costly is drawn once; a picture is a shifted window of it, a few saturating byte operations and polygons,
written straight into the planes. Only integer arithmetic touches pixels, so every machine draws the same.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from stream_agent.source.protocol import Planes

_BLACK, _NEUTRAL = 16, 128
_SHIFT = 4
"""Polygon corners are given to OpenCV in 1/16 px."""
_ENTER_S = 0.8
"""How long an instrument takes to come in."""
_HAZE_LUMA = 190

_Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Moment:
    """What is to be seen at one time.

    Attributes:
        time_s: Media time; moves tissue and tools.
        instruments: Names of the instruments in the picture.
        since_s: Seconds since they came in.
        haze: Smoke, from 0 (none) to 1.
        dark: Whether the lens sees nothing.
    """

    time_s: float
    instruments: Sequence[str] = ()
    since_s: float = 0.0
    haze: float = 0.0
    dark: bool = False


class Scene:
    """Draws moments of one made-up operation into planes of one size."""

    def __init__(self, width: int, height: int, *, seed: int, instruments: Sequence[str]) -> None:
        """Prepare pictures of `width` × `height` px, both even; `instruments` share the rim of the circle evenly."""
        self._width, self._height = width, height
        self._margin = max(16, height // 16 & ~1)
        self._radius = height * 27 // 50
        random = np.random.Generator(np.random.PCG64(seed))
        rows, columns = height + 2 * self._margin, width + 2 * self._margin
        self._luma = _tissue(random, rows, columns)
        self._blue = _tint(random, rows // 2, columns // 2, around=106)
        self._red = _tint(random, rows // 2, columns // 2, around=164)
        self._smoke = _clouds(random, rows, columns, cell=max(8, height // 5))
        self._ceiling = _vignette(width, height, self._radius)
        half = cv2.resize(self._ceiling, (width // 2, height // 2), interpolation=cv2.INTER_NEAREST)
        self._outside = (half == _BLACK).astype(np.uint8)
        self._neutral = np.full_like(self._outside, _NEUTRAL)
        turn = 2 * math.pi / max(len(instruments), 1)
        self._angle = {name: 0.6 + place * turn for place, name in enumerate(instruments)}

    def draw(self, planes: Planes, moment: Moment) -> None:
        """Fill `planes`, (3 height / 2, width) contiguous uint8, BT.601 studio range."""
        height, width = self._height, self._width
        luma = planes[:height]
        blue, red = planes.reshape(-1)[height * width :].reshape(2, height // 2, width // 2)
        if moment.dark:
            luma.fill(_BLACK)
            blue.fill(_NEUTRAL)
            red.fill(_NEUTRAL)
            return
        x, y = self._offset(moment.time_s, breaths_per_minute=14)
        np.copyto(luma, _window(self._luma, x, y, luma))
        np.copyto(blue, _window(self._blue, x // 2, y // 2, blue))
        np.copyto(red, _window(self._red, x // 2, y // 2, red))
        for name in moment.instruments:
            self._draw_instrument(luma, blue, red, name, moment)
        if moment.haze > 0:
            self._draw_haze(luma, blue, red, moment)
        cv2.min(luma, self._ceiling, dst=luma)
        cv2.copyTo(self._neutral, self._outside, blue)
        cv2.copyTo(self._neutral, self._outside, red)

    def _offset(self, time_s: float, *, breaths_per_minute: float) -> tuple[int, int]:
        """Even offsets in [0, 2 margin] of the window at `time_s`; even, so that chroma moves along."""
        phase = 2 * math.pi * time_s * breaths_per_minute / 60
        reach = self._margin // 2
        x = self._margin // 2 + round(reach / 2 * (1 + 0.6 * math.sin(phase * 0.37) + 0.4 * math.sin(phase * 1.13)) / 2)
        y = self._margin // 2 + round(reach / 2 * (1 + math.sin(phase)) / 2)
        return 2 * x, 2 * y

    def _draw_haze(self, luma: _Bytes, blue: _Bytes, red: _Bytes, moment: Moment) -> None:
        x, y = self._offset(moment.time_s, breaths_per_minute=55)
        clouds = cv2.subtract(_window(self._smoke, x, y, luma), _scalar((1 - moment.haze) * _HAZE_LUMA))
        cv2.max(luma, clouds, dst=luma)
        cv2.max(blue, _scalar(_NEUTRAL - 22 * (1 - moment.haze)), dst=blue)
        cv2.min(red, _scalar(_NEUTRAL + 40 * (1 - 0.8 * moment.haze)), dst=red)

    def _draw_instrument(self, luma: _Bytes, blue: _Bytes, red: _Bytes, name: str, moment: Moment) -> None:
        look = hashlib.sha256(name.encode()).digest()
        angle = self._angle.get(name, look[0] / 256 * 2 * math.pi)
        sway = 0.06 * math.sin(moment.time_s * (1.1 + look[1] / 256) + look[2])
        reach = 0.18 + 0.05 * math.sin(moment.time_s * (0.7 + look[3] / 256)) + max(0.0, 1 - moment.since_s / _ENTER_S)
        along = (math.cos(angle + sway), math.sin(angle + sway))
        across = (-along[1], along[0])
        thick = 0.045 + look[4] / 256 * 0.025
        shaft = ((1.1, thick), (reach + 0.16, thick), (reach + 0.16, -thick), (1.1, -thick))
        shine = ((1.1, thick * 0.5), (reach + 0.18, thick * 0.5), (reach + 0.18, thick * 0.15), (1.1, thick * 0.15))
        band = ((reach + 0.2, thick), (reach + 0.16, thick), (reach + 0.16, -thick), (reach + 0.2, -thick))
        gape = thick * (0.3 + 0.7 * abs(math.sin(moment.time_s * 2.2)))
        jaws = (
            ((reach + 0.17, thick * 0.8), (reach + 0.17, 0.0), (reach, gape)),
            ((reach + 0.17, 0.0), (reach + 0.17, -thick * 0.8), (reach, -gape)),
        )
        colour = (64 + look[5] // 2, 64 + look[6] // 2)
        for corners, bright, tint in (
            (shaft, 70, (_NEUTRAL, _NEUTRAL)),
            (shine, 150, (_NEUTRAL, _NEUTRAL)),
            (band, 120, colour),
            *((jaw, 185, (_NEUTRAL, _NEUTRAL)) for jaw in jaws),
        ):
            points = [
                (
                    self._width / 2 + self._radius * (out * along[0] + side * across[0]),
                    self._height / 2 + self._radius * (out * along[1] + side * across[1]),
                )
                for out, side in corners
            ]
            _fill(luma, points, bright, scale=1.0)
            _fill(blue, points, tint[0], scale=0.5)
            _fill(red, points, tint[1], scale=0.5)


def _fill(plane: _Bytes, points: list[tuple[float, float]], value: int, *, scale: float) -> None:
    corners = np.array([[round(x * scale * 2**_SHIFT), round(y * scale * 2**_SHIFT)] for x, y in points], np.int32)
    cv2.fillConvexPoly(plane, corners, value, cv2.LINE_8, _SHIFT)


def _scalar(value: float) -> _Bytes:
    """An operand for OpenCV's byte operations, whole so that no rounding of floats enters."""
    # OpenCV takes a tuple of four as a scalar; its annotations do not know that, so the cast speaks for it.
    return cast("_Bytes", (float(round(value)), 0.0, 0.0, 0.0))


def _window(drawn: _Bytes, x: int, y: int, like: _Bytes) -> _Bytes:
    view: _Bytes = drawn[y : y + like.shape[0], x : x + like.shape[1]]
    return view


def _clouds(random: np.random.Generator, rows: int, columns: int, *, cell: int) -> _Bytes:
    """Smooth noise, (rows, columns), with features of about `cell` px."""
    coarse = random.integers(0, 256, (rows // cell + 2, columns // cell + 2), dtype=np.uint8)
    smooth = cv2.resize(coarse, (columns, rows), interpolation=cv2.INTER_LINEAR_EXACT)
    return np.asarray(smooth, np.uint8)


def _tissue(random: np.random.Generator, rows: int, columns: int) -> _Bytes:
    """Luma of wet tissue: folds, vessels and highlights."""
    folds = _clouds(random, rows, columns, cell=max(8, rows // 5)).astype(np.int32)
    lobes = _clouds(random, rows, columns, cell=max(4, rows // 22)).astype(np.int32)
    grain = _clouds(random, rows, columns, cell=max(2, rows // 120)).astype(np.int32)
    ridge = np.abs(_clouds(random, rows, columns, cell=max(6, rows // 12)).astype(np.int32) - 128)
    luma = 60 + folds * 48 // 256 + lobes * 36 // 256 + grain * 30 // 256
    luma -= np.clip(8 - ridge, 0, 8) * 4
    luma += np.where((lobes > 215) & (grain > 120), 90, 0)
    return np.asarray(np.clip(luma, 24, 232), np.uint8)


def _tint(random: np.random.Generator, rows: int, columns: int, *, around: int) -> _Bytes:
    drift = _clouds(random, rows, columns, cell=max(4, rows // 7)).astype(np.int32)
    return (around - 10 + drift * 20 // 256).astype(np.uint8)


def _vignette(width: int, height: int, radius: int) -> _Bytes:
    """The brightest luma allowed per pixel: falls towards the rim, black outside the circle."""
    x = 2 * np.arange(width, dtype=np.int64) - width
    y = 2 * np.arange(height, dtype=np.int64) - height
    part = (x[None, :] ** 2 + y[:, None] ** 2) * 256 // (4 * radius**2)
    ceiling = 235 - np.clip(part - 130, 0, None) * 150 // 126
    return np.where(part < 256, np.clip(ceiling, 70, 235), _BLACK).astype(np.uint8)
