from __future__ import annotations

import numpy as np
import pytest

from stream_agent.training.augment import Sample, Scene, augment, plain

NO_ROW = np.zeros(7, dtype=np.float32)


def scene(instrument: int | None, *, video: int, boxes: bool = True, bright: int = 255) -> Scene:
    """A dark picture with one bright rectangle, an instrument, in its middle."""
    picture = np.full((360, 640, 3), 40, dtype=np.uint8)
    presence = NO_ROW.copy()
    if instrument is None:
        return Scene(picture, video, presence, () if boxes else None, 0)
    picture[120:240, 220:420] = bright
    presence[instrument] = 1.0
    box = (instrument, 220 / 640, 120 / 360, 200 / 640, 120 / 360)
    return Scene(picture, video, presence, (box,) if boxes else None, 0)


def brightness(sample: Sample) -> np.ndarray:
    """Mean of each cell, (7, 10)."""
    return np.asarray(sample.picture.mean(2).reshape(7, 32, 10, 32).mean((1, 3)))


def test_a_plain_sample_marks_the_cells_of_the_box_and_no_others() -> None:
    sample = plain(scene(2, video=68))
    assert sample.picture.shape == (224, 320, 3)
    assert sample.cells[2].sum() == 3 * 4 or sample.cells[2].sum() == 3 * 3
    assert sample.cells[2, 3, 5] == 1.0
    assert sample.cells[2, 0].sum() == 0.0
    assert np.nansum(sample.cells[[0, 1, 3, 4, 5]]) == 0.0


def test_without_boxes_nothing_is_said_of_cells() -> None:
    assert np.isnan(plain(scene(2, video=43, boxes=False)).cells).all()


def test_an_instrument_the_row_names_and_nobody_boxed_is_unknown_in_every_cell() -> None:
    boxed = scene(None, video=68)
    presence = NO_ROW.copy()
    presence[4] = 1.0
    sample = plain(Scene(boxed.picture, 68, presence, (), 0))
    assert np.isnan(sample.cells[4]).all()
    assert (sample.cells[3] == 0.0).all()


def test_boxes_follow_the_picture_through_zoom_turn_and_mirror() -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        sample = augment(scene(3, video=68), (), rng)
        if sample.presence[3] != 1 or np.ptp(sample.picture) < 60:
            continue
        inside = sample.cells[3] == 1
        assert brightness(sample)[inside].mean() > brightness(sample)[~inside].mean()


def test_a_pasted_instrument_brings_its_label_and_forgets_the_action() -> None:
    rng = np.random.default_rng(1)
    sample = augment(scene(None, video=68), [scene(5, video=70)], rng, paste=1.0)
    assert sample.presence.tolist() == [0, 0, 0, 0, 0, 1, 0]
    assert sample.cells[5].sum() >= 1
    assert sample.videos == {68, 70}
    assert sample.action == -1


def test_a_pasted_instrument_says_nothing_of_cells_where_nobody_drew_boxes() -> None:
    sample = augment(scene(2, video=43, boxes=False), [scene(5, video=70)], np.random.default_rng(1), paste=1.0)
    assert sample.presence[[2, 5]].tolist() == [1, 1]
    assert np.isnan(sample.cells).all()


def test_the_same_generator_gives_the_same_picture() -> None:
    first, second = (augment(scene(2, video=68), [scene(5, video=70)], np.random.default_rng(7)) for _ in range(2))
    assert (first.picture == second.picture).all()
    assert np.array_equal(first.cells, second.cells, equal_nan=True)


@pytest.mark.parametrize("seed", range(5))
def test_labels_are_zero_one_or_unknown(seed: int) -> None:
    sample = augment(scene(0, video=68), [scene(4, video=70)], np.random.default_rng(seed), paste=1.0)
    for values in (sample.presence, sample.cells):
        assert set(np.unique(values[~np.isnan(values)])) <= {0.0, 1.0}
