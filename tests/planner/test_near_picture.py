from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_agent.messages import FrameHeader, NearPicture
from stream_agent.planner.near_picture import PictureBook, near_picture, reduced_size


@pytest.mark.parametrize(
    ("size", "most", "multiple", "reduced"),
    [
        ((854, 480), 262_144, 28, (672, 364)),  # 312 tokens of 28 x 28, as the README of shared facts has it
        ((1920, 1080), 262_144, 28, (672, 364)),
        ((854, 480), 10**6, 28, (840, 476)),  # 510 tokens
        ((1920, 1080), 262_144, 32, (672, 384)),
        ((10, 3000), 262_144, 28, (28, 2996)),
    ],
)
def test_by_hand(size: tuple[int, int], most: int, multiple: int, reduced: tuple[int, int]) -> None:
    assert reduced_size(*size, max_pixels=most, side_multiple=multiple) == reduced


@given(st.integers(32, 4000), st.integers(32, 4000), st.integers(3136, 10**6), st.sampled_from([1, 28, 32]))
def test_sides_are_multiples_and_pixels_are_bounded(width: int, height: int, most: int, multiple: int) -> None:
    w, h = reduced_size(width, height, max_pixels=most, side_multiple=multiple)
    assert w % multiple == h % multiple == 0 and w > 0 and h > 0
    assert w * h <= most or min(w, h) == multiple


def frame(width: int, height: int, rotation_deg: int = 0) -> tuple[np.ndarray, FrameHeader]:
    planes = np.full((height * 3 // 2, width), 128, np.uint8)
    planes[:height, : width // 2] = 235
    header = FrameHeader(
        stream_id="c",
        session_id="s",
        seq=3,
        pts_s=1.5,
        captured_ns=0,
        width=width,
        height=height,
        rotation_deg=rotation_deg,
    )
    return planes, header


@pytest.mark.parametrize(
    ("rotation_deg", "bright"), [(0, np.s_[:, :14]), (90, np.s_[:14]), (180, np.s_[:, -14:]), (270, np.s_[-14:])]
)
def test_the_picture_is_upright(rotation_deg: int, bright: tuple[slice, ...]) -> None:
    picture = near_picture(*frame(112, 56, rotation_deg), action="a", max_pixels=10**6, side_multiple=28)
    image = np.frombuffer(picture.rgb, np.uint8).reshape(picture.height, picture.width, 3)
    assert (picture.seq, picture.pts_s, picture.action) == (3, 1.5, "a")
    assert image[bright].mean() > 250 and image.mean() < 200


def picture(seq: int, action: str) -> NearPicture:
    return NearPicture(seq=seq, pts_s=float(seq), action=action, width=1, height=1, rgb=b"rgb")


def test_a_book_keeps_the_newest_of_each_recent_clip() -> None:
    book = PictureBook(3)
    for seq, action in enumerate("aabbcadd"):
        kept = book.add(picture(seq, action), case_id="one")
    assert [(one.seq, one.action) for one in kept] == [(4, "c"), (5, "a"), (7, "d")]
    assert [one.seq for one in book.add(None, case_id="one")] == [4, 5, 7]
    assert book.add(picture(9, "a"), case_id="two") == (picture(9, "a"),)


def test_a_book_of_one_keeps_the_newest() -> None:
    book = PictureBook(1)
    for seq, action in enumerate("abc"):
        kept = book.add(picture(seq, action), case_id="one")
    assert [one.seq for one in kept] == [2]
