"""The number drawn into a picture comes back from it, through JPEG too, or not at all."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_agent.source.frame_index import read_index, write_index
from stream_agent.source.protocol import Planes


def noise(width: int = 96, height: int = 64) -> Planes:
    return np.random.default_rng(1).integers(0, 256, (height * 3 // 2, width), dtype=np.uint8)


@given(st.integers(min_value=0, max_value=2**32 - 1))
def test_every_32_bit_number_comes_back(index: int) -> None:
    planes = noise()
    write_index(planes, index)
    assert read_index(planes) == index


@settings(max_examples=20)
@given(st.integers(min_value=0, max_value=2**32 - 1), st.sampled_from([80, 90]))
def test_it_survives_jpeg(index: int, quality: int) -> None:
    planes = noise()
    write_index(planes, index)
    encoded = cv2.imencode(".jpg", cv2.cvtColor(planes, cv2.COLOR_YUV2BGR_I420), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    picture = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    assert picture is not None
    assert read_index(np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420), np.uint8)) == index


def test_numbers_wrap_at_32_bits() -> None:
    planes = noise()
    write_index(planes, 2**32 + 5)
    assert read_index(planes) == 5


@pytest.mark.parametrize("level", [0, 16, 128, 255])
def test_an_even_picture_holds_no_number(level: int) -> None:
    assert read_index(np.full((96, 64), level, np.uint8)) is None


def test_noise_and_small_pictures_hold_no_number() -> None:
    assert read_index(noise()) is None
    assert read_index(np.zeros((48, 32), np.uint8)) is None


def test_one_flipped_block_is_noticed() -> None:
    planes = noise()
    write_index(planes, 123_456)
    for row in range(5):
        for column in range(8):
            torn = planes.copy()
            block = torn[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
            block[...] = 255 - block
            assert read_index(torn) is None


def test_only_the_corner_is_touched() -> None:
    planes = noise()
    before = planes.copy()
    write_index(planes, 77)
    np.testing.assert_array_equal(planes[40:64], before[40:64])
    np.testing.assert_array_equal(planes[:64, 64:], before[:64, 64:])
