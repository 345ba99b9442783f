"""Pictures made of labelled pictures: other zooms, colours, smoke, blur, frame shapes, and instruments moved to other scenes.

A recogniser that has seen six procedures knows their livers better than their instruments. Pasting an instrument's box
into another procedure's scene parts the two (Ghiasi et al., *Simple Copy-Paste*, CVPR 2021); pasted tissue makes the seam
worthless as a sign. All is drawn from the generator given, so a seed fixes every picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from stream_agent.perception.protocol import THUMBNAIL_HEIGHT, THUMBNAIL_WIDTH, Thumbnail

GRID: Final = (7, 10)
"""Cells of the last feature map of a 224 by 320 picture, rows by columns."""
LEAST_VISIBLE: Final = 0.4
"""A box of which less than this share stays in the picture makes its instrument's presence unknown."""

Box = tuple[int, float, float, float, float]
"""Instrument, left, top, width, height; relative to the picture."""
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A picture larger than the thumbnail and what is known of it.

    Attributes:
        picture: (H, W, 3) uint8 RGB.
        video: Where it comes from.
        presence: (7,) 1, 0, or NaN where unknown.
        boxes: Of the instruments' tips; None where nobody drew any.
        action: Index, -1 for none.
    """

    picture: Thumbnail
    video: int
    presence: Floats
    boxes: tuple[Box, ...] | None
    action: int


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """A picture of the thumbnail's size to train on.

    Attributes:
        picture: (224, 320, 3) uint8 RGB.
        videos: All videos it shows a part of.
        presence: (7,) 1, 0, or NaN where unknown.
        cells: (6, 7, 10) whether an instrument's tip is in a cell; NaN where unknown.
        action: Index, -1 for none.
    """

    picture: Thumbnail
    videos: frozenset[int]
    presence: Floats
    cells: Floats
    action: int


def plain(scene: Scene) -> Sample:
    """The scene as run time sees it."""
    picture = cv2.resize(scene.picture, (THUMBNAIL_WIDTH, THUMBNAIL_HEIGHT), interpolation=cv2.INTER_AREA)
    return Sample(
        picture=np.asarray(picture, dtype=np.uint8),
        videos=frozenset((scene.video,)),
        presence=scene.presence,
        cells=_cells(scene.boxes, scene.presence),
        action=scene.action,
    )


def augment(scene: Scene, others: Sequence[Scene], rng: np.random.Generator, *, paste: float = 0.5) -> Sample:
    """One new sample of a scene; instruments pasted with probability `paste` come from `others`, which have boxes."""
    picture, boxes, presence = _move(scene, rng)
    videos = {scene.video}
    action = scene.action
    if others and rng.random() < paste:
        donor = others[int(rng.integers(len(others)))]
        picture, pasted = _paste(picture, donor, rng)
        if pasted is not None:
            videos.add(donor.video)
            action = -1  # what a scene with another instrument in it would be done to, nobody knows
            presence = presence.copy()
            presence[pasted[0]] = 1.0
            boxes = None if boxes is None else (*boxes, pasted)
    if rng.random() < 0.3:
        picture = _patch(picture, rng)
    return Sample(
        picture=_look(picture, rng),
        videos=frozenset(videos),
        presence=presence,
        cells=_cells(boxes, presence),
        action=action,
    )


def _cells(boxes: Sequence[Box] | None, presence: Floats) -> Floats:
    """Cells whose centre is in a box, and the cell of each box's centre, (6, 7, 10); NaN without boxes or against the row."""
    rows, columns = GRID
    cells = np.full((6, rows, columns), np.nan, dtype=np.float32)
    if boxes is None:
        return cells
    cells[presence[:6] == 0] = 0.0
    named = {box[0] for box in boxes}
    for index in range(6):
        if presence[index] == 1 and index in named:
            cells[index] = 0.0
    across, down = (np.arange(columns) + 0.5) / columns, (np.arange(rows) + 0.5) / rows
    for index, left, top, width, height in boxes:
        if presence[index] != 1:
            continue
        inside = np.outer((down >= top) & (down <= top + height), (across >= left) & (across <= left + width))
        cells[index][inside] = 1.0
        row = int(np.clip((top + height / 2) * rows, 0, rows - 1))
        cells[index, row, int(np.clip((left + width / 2) * columns, 0, columns - 1))] = 1.0
    return cells


def _move(scene: Scene, rng: np.random.Generator) -> tuple[Thumbnail, tuple[Box, ...] | None, Floats]:
    """Zoom, shift, turn, mirror and stretch; far only where boxes tell what is still to be seen."""
    height, width = scene.picture.shape[:2]
    far = scene.boxes is not None
    zoom = np.exp(rng.uniform(-0.2, 0.45 if far else 0.12))
    stretch = np.exp(rng.uniform(-0.15, 0.15))
    angle = np.deg2rad(rng.uniform(-15, 15))
    reach = 0.12 if far else 0.03
    scale = np.array([THUMBNAIL_WIDTH / width * zoom * stretch, THUMBNAIL_HEIGHT / height * zoom / stretch])
    if rng.random() < 0.5:
        scale[0] = -scale[0]
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = turn @ np.diag(scale)
    middle = np.array([THUMBNAIL_WIDTH, THUMBNAIL_HEIGHT]) * (0.5 + rng.uniform(-reach, reach, 2))
    offset = middle - linear @ np.array([width / 2, height / 2])
    matrix = np.hstack([linear, offset[:, None]])
    # Averaging before the warp stands for area reduction: the warp itself takes single pixels.
    picture = cv2.blur(scene.picture, (2, 2)) if width > 1.5 * THUMBNAIL_WIDTH else scene.picture
    warped = cv2.warpAffine(picture, matrix, (THUMBNAIL_WIDTH, THUMBNAIL_HEIGHT), flags=cv2.INTER_LINEAR)
    if scene.boxes is None:
        return np.asarray(warped, dtype=np.uint8), None, scene.presence
    presence = scene.presence.copy()
    boxes: list[Box] = []
    for index, left, top, box_width, box_height in scene.boxes:
        corners = np.array(
            [[left, top], [left + box_width, top], [left, top + box_height], [left + box_width, top + box_height]]
        )
        moved = corners * [width, height] @ linear.T + offset
        moved = moved / [THUMBNAIL_WIDTH, THUMBNAIL_HEIGHT]
        low, high = moved.min(0), moved.max(0)
        cut_low, cut_high = np.clip(low, 0, 1), np.clip(high, 0, 1)
        visible = np.prod(cut_high - cut_low) / max(np.prod(high - low), 1e-6)
        if visible >= LEAST_VISIBLE:
            (x, y), (across, down) = cut_low.tolist(), (cut_high - cut_low).tolist()
            boxes.append((index, x, y, across, down))
    for index, *_ in scene.boxes:
        if not any(box[0] == index for box in boxes):
            presence[index] = np.nan
    return np.asarray(warped, dtype=np.uint8), tuple(boxes), presence


def _paste(picture: Thumbnail, donor: Scene, rng: np.random.Generator) -> tuple[Thumbnail, Box | None]:
    """Blend one instrument's box of the donor into the picture; None if every box of the donor overlaps another."""
    assert donor.boxes is not None
    alone = [box for box in donor.boxes if not any(_overlap(box, other) for other in donor.boxes if other is not box)]
    alone = [box for box in alone if donor.presence[box[0]] == 1]
    if not alone:
        return picture, None
    index, left, top, width, height = alone[int(rng.integers(len(alone)))]
    tall, wide = donor.picture.shape[:2]
    margin = rng.uniform(0.05, 0.3)
    x0, x1 = (int(np.clip(v * wide, 0, wide)) for v in (left - margin * width, left + (1 + margin) * width))
    y0, y1 = (int(np.clip(v * tall, 0, tall)) for v in (top - margin * height, top + (1 + margin) * height))
    crop = donor.picture[y0:y1, x0:x1]
    if min(crop.shape[:2]) < 12:
        return picture, None
    zoom = np.exp(rng.uniform(-0.35, 0.3))
    size = (
        int(np.clip((x1 - x0) * THUMBNAIL_WIDTH / wide * zoom, 10, 0.7 * THUMBNAIL_WIDTH)),
        int(np.clip((y1 - y0) * THUMBNAIL_HEIGHT / tall * zoom, 10, 0.7 * THUMBNAIL_HEIGHT)),
    )
    crop = np.asarray(cv2.resize(crop, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    if rng.random() < 0.25:
        crop = crop[::-1]
    x, y = _place(size, rng)
    blended = _blend(picture, crop, x, y, rng)
    return blended, (
        index,
        x / THUMBNAIL_WIDTH,
        y / THUMBNAIL_HEIGHT,
        size[0] / THUMBNAIL_WIDTH,
        size[1] / THUMBNAIL_HEIGHT,
    )


def _place(size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
    """A left upper corner that keeps the patch in the middle four fifths, where scopes show something."""
    room_x, room_y = THUMBNAIL_WIDTH - size[0], THUMBNAIL_HEIGHT - size[1]
    return int(room_x * rng.uniform(0.12, 0.88)), int(room_y * rng.uniform(0.08, 0.92))


def _blend(picture: Thumbnail, crop: Thumbnail, x: int, y: int, rng: np.random.Generator) -> Thumbnail:
    """Crop over picture with a soft edge, brought part of the way to the brightness of what it covers."""
    height, width = crop.shape[:2]
    soft = max(min(height, width) // 5, 2)
    mask = np.zeros((height, width), dtype=np.float32)
    mask[soft // 2 : height - soft // 2, soft // 2 : width - soft // 2] = 1.0
    if rng.random() < 0.5:
        mask[:] = 0.0
        cv2.ellipse(
            mask, (width // 2, height // 2), (width // 2 - soft // 3, height // 2 - soft // 3), 0, 0, 360, 1.0, -1
        )
    mask = np.asarray(cv2.blur(mask, (soft, soft)), dtype=np.float32)[..., None]
    out = picture.copy()
    under = out[y : y + height, x : x + width].astype(np.float32)
    gain = np.clip((under.mean() + 20) / (crop.mean() + 20), 0.6, 1.6) ** rng.uniform(0.0, 0.8)
    out[y : y + height, x : x + width] = np.clip(mask * crop * gain + (1 - mask) * under, 0, 255).astype(np.uint8)
    return out


def _overlap(one: Box, other: Box) -> bool:
    return (
        min(one[1] + one[3], other[1] + other[3]) > max(one[1], other[1]) + 0.02
        and min(one[2] + one[4], other[2] + other[4]) > max(one[2], other[2]) + 0.02
    )


def _patch(picture: Thumbnail, rng: np.random.Generator) -> Thumbnail:
    """A small piece of the picture put elsewhere in it, so that a seam says nothing."""
    size = (int(rng.uniform(16, 50)), int(rng.uniform(14, 40)))
    (x, y), (to_x, to_y) = _place(size, rng), _place(size, rng)
    return _blend(picture, picture[y : y + size[1], x : x + size[0]].copy(), to_x, to_y, rng)


def _look(picture: Thumbnail, rng: np.random.Generator) -> Thumbnail:
    """Colour, contrast, smoke, blur, noise and the black surround of a scope."""
    out = picture.astype(np.float32) / 255.0
    if rng.random() < 0.8:
        out = out ** np.exp(rng.uniform(-0.4, 0.4))
        out = out * np.exp(rng.uniform(-0.25, 0.25, 3) * rng.random() + rng.uniform(-0.3, 0.2)).astype(np.float32)
        grey = out.mean(2, keepdims=True)
        out = grey + (out - grey) * np.float32(np.exp(rng.uniform(-0.6, 0.35)))
    if rng.random() < 0.15:
        cloud = cv2.resize(
            rng.random((4, 6)).astype(np.float32), (THUMBNAIL_WIDTH, THUMBNAIL_HEIGHT), interpolation=cv2.INTER_CUBIC
        )
        thick = np.clip(cloud, 0, 1)[..., None] * np.float32(rng.uniform(0.2, 0.6))
        out = out * (1 - thick) + thick * np.float32(rng.uniform(0.5, 0.85))
    if rng.random() < 0.25:
        out = np.asarray(cv2.GaussianBlur(out, (0, 0), rng.uniform(0.4, 1.4)), dtype=np.float32)
    if rng.random() < 0.25:
        out = out + rng.normal(0, rng.uniform(0.005, 0.03), out.shape).astype(np.float32)
    if rng.random() < 0.25:
        mask = np.zeros(out.shape[:2], dtype=np.float32)
        middle = (int(THUMBNAIL_WIDTH * rng.uniform(0.46, 0.54)), int(THUMBNAIL_HEIGHT * rng.uniform(0.46, 0.54)))
        radius = rng.uniform(0.52, 0.62)
        cv2.ellipse(mask, middle, (int(230 * radius), int(270 * radius)), 0, 0, 360, 1.0, -1)
        out = out * np.maximum(mask[..., None], np.float32(0.02))
    return np.asarray(np.clip(out * 255.0, 0, 255), dtype=np.uint8)
