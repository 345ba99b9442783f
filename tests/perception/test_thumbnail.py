from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_agent.messages import ColourSpace, FrameHeader
from stream_agent.perception.thumbnail import thumbnail
from stream_agent.source.protocol import Planes

Make = Callable[..., FrameHeader]


def flat_planes(width: int, height: int, y: int, u: int, v: int) -> Planes:
    planes = np.empty((height * 3 // 2, width), np.uint8)
    planes[:height] = y
    chroma = planes[height:].reshape(2, -1)
    chroma[0], chroma[1] = u, v
    planes.flags.writeable = False
    return planes


@pytest.mark.parametrize(
    ("colour", "yuv", "rgb"),
    [
        ("bt601", (16, 128, 128), (0, 0, 0)),
        ("bt601", (235, 128, 128), (255, 255, 255)),
        ("bt601", (81, 90, 240), (255, 0, 0)),
        ("bt601", (145, 54, 34), (0, 255, 0)),
        ("bt601", (41, 240, 110), (0, 0, 255)),
        ("bt709", (63, 102, 240), (255, 0, 0)),
        ("bt709", (173, 42, 26), (0, 255, 0)),
        ("bt709", (32, 240, 118), (0, 0, 255)),
        ("bt601-full", (76, 85, 255), (255, 0, 0)),
        ("bt601-full", (0, 128, 128), (0, 0, 0)),
        ("bt709-full", (54, 99, 255), (255, 0, 0)),
        ("bt709-full", (255, 128, 128), (255, 255, 255)),
    ],
)
def test_the_standards_reference_colours_come_out(
    header: Make, colour: ColourSpace, yuv: tuple[int, int, int], rgb: tuple[int, int, int]
) -> None:
    picture = thumbnail(flat_planes(640, 360, *yuv), header(width=640, height=360, colour=colour))
    assert picture.shape == (224, 320, 3)
    assert picture.dtype == np.uint8
    assert np.abs(picture.astype(int) - rgb).max() <= 2  # the reference codes are rounded themselves


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 400), st.integers(1, 300), st.sampled_from([0, 90, 180, 270]))
def test_any_even_size_keeps_its_planes_apart(half_width: int, half_height: int, rotation_deg: int) -> None:
    """A height that is not a multiple of four ends U in the middle of a stacked row."""
    width, height = 2 * half_width, 2 * half_height
    head = FrameHeader(
        stream_id="s",
        session_id="t",
        seq=0,
        pts_s=0,
        captured_ns=0,
        width=width,
        height=height,
        rotation_deg=rotation_deg,
    )
    picture = thumbnail(flat_planes(width, height, 81, 90, 240), head)
    assert picture.shape == (224, 320, 3)
    assert np.abs(picture.astype(int) - (255, 0, 0)).max() <= 2


@pytest.mark.parametrize(("rotation_deg", "corner"), [(0, (0, 0)), (90, (0, -1)), (180, (-1, -1)), (270, (-1, 0))])
def test_the_picture_is_turned_clockwise_to_upright(header: Make, rotation_deg: int, corner: tuple[int, int]) -> None:
    planes = flat_planes(640, 480, 16, 128, 128).copy()
    planes[:120, :160] = 235
    picture = thumbnail(planes, header(width=640, height=480, rotation_deg=rotation_deg))
    assert picture[corner].tolist() == [255, 255, 255]
    assert sum(int(picture[y, x, 0] > 200) for y in (0, -1) for x in (0, -1)) == 1


def test_detail_finer_than_a_pixel_becomes_its_mean_and_never_a_pattern(header: Make) -> None:
    planes = flat_planes(1920, 1080, 0, 128, 128).copy()
    planes[:1080] = np.where((np.indices((1080, 1920)).sum(0) % 2).astype(bool), 36, 216)
    picture = thumbnail(planes, header(width=1920, height=1080))
    assert int(np.ptp(picture)) <= 2
    assert abs(float(picture.mean()) - (126 - 16) * 255 / 219) < 1.5


def test_it_agrees_with_the_general_area_filter(header: Make) -> None:
    planes = flat_planes(1920, 1080, 16, 128, 128).copy()
    noise = np.random.default_rng(3).integers(16, 236, (27, 48), dtype=np.uint8)
    planes[:1080] = cv2.resize(noise, (1920, 1080), interpolation=cv2.INTER_CUBIC)
    grey = cv2.resize(planes[:1080], (320, 224), interpolation=cv2.INTER_AREA)
    expected = np.clip((grey.astype(float) - 16) * 255 / 219, 0, 255)
    got = thumbnail(planes, header(width=1920, height=1080))[..., 1]
    assert np.abs(got - expected).mean() < 1.0


def test_the_planes_are_only_read(header: Make) -> None:
    planes = np.random.default_rng(0).integers(0, 256, (486, 640), dtype=np.uint8)
    before = planes.copy()
    planes.flags.writeable = False
    picture = thumbnail(planes, header(width=640, height=324))
    assert not np.shares_memory(picture, planes)
    np.testing.assert_array_equal(planes, before)


def test_planes_of_another_frame_are_refused(header: Make) -> None:
    with pytest.raises(ValueError, match="do not belong to a 320x240 frame"):
        thumbnail(flat_planes(640, 480, 16, 128, 128), header(width=320, height=240))
    with pytest.raises(ValueError, match="rotation_deg=45"):
        thumbnail(flat_planes(640, 480, 16, 128, 128), header(width=640, height=480, rotation_deg=45))
