"""Folders of numbered pictures."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from made_videos import read

from stream_agent.errors import SourceError


def save(path: Path, level: int = 100, size: tuple[int, int] = (48, 64)) -> None:
    assert cv2.imwrite(str(path), np.full((*size, 3), level, np.uint8))


def test_ids_are_seconds(tmp_path: Path) -> None:
    for frame_id in (12, 9, 120):
        save(tmp_path / f"{frame_id:06d}.png", level=frame_id)
    reading = read(tmp_path)
    assert not reading.source.live
    assert reading.times_s == [9, 12, 120]
    assert reading.lumas == pytest.approx([16 + level * 219 / 255 for level in (9, 12, 120)], abs=1.5)
    assert read(tmp_path, fps=25).times_s == [9 / 25, 12 / 25, 120 / 25]
    assert read(tmp_path, start_s=10).times_s == [12, 120]


def test_sizes_may_differ_and_odd_ones_are_cut(tmp_path: Path) -> None:
    save(tmp_path / "0.png", size=(48, 64))
    save(tmp_path / "1.JPG", size=(49, 67))
    assert read(tmp_path).sizes == [(64, 48), (66, 48)]


def test_names_that_are_no_ids_are_skipped_with_one_notice(tmp_path: Path, shared_data: Path) -> None:
    duplicate = shared_data / "odd" / "000249 (1).png"
    (tmp_path / duplicate.name).write_bytes(duplicate.read_bytes())
    save(tmp_path / "000249.png")
    save(tmp_path / "000249.jpg")
    (tmp_path / "labels.json").write_text("{}")
    reading = read(tmp_path)
    assert reading.times_s == [249]
    assert reading.notices == [
        f"{tmp_path}: skipped '000249 (1).png', '000249.png': not a frame id, or a second file of one"
    ]


def test_pictures_cut_short_are_skipped_with_one_notice(tmp_path: Path, shared_data: Path) -> None:
    """OpenCV fills what is missing with grey and returns it as if nothing had happened."""
    (tmp_path / "000249.png").write_bytes((shared_data / "odd" / "truncated_000249.png").read_bytes())
    save(tmp_path / "000250.jpg")
    whole = (tmp_path / "000250.jpg").read_bytes()
    (tmp_path / "000251.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "000252.jpg").write_bytes(b"")
    (tmp_path / "000253.png").write_bytes(b"no picture IEND")
    reading = read(tmp_path)
    assert reading.times_s == [250]
    assert reading.notices == [
        f"{tmp_path}: skipped '000249.png', '000251.jpg', '000252.jpg' and 1 more: not a whole picture"
    ]


def test_a_real_video_of_frames_is_read(shared_data: Path) -> None:
    reading = read(shared_data / "cholect50" / "videos_jpg" / "VID74", at_most=3)
    assert reading.times_s == sorted(reading.times_s)
    assert reading.sizes == [(706, 396)] * 3
    assert all(30 < luma < 200 for luma in reading.lumas)


def test_no_frames_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(SourceError, match="has no numbered picture; name them by frame id"):
        read(tmp_path)


def test_only_damaged_frames_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"")
    with pytest.raises(SourceError, match="gave not a single picture"):
        read(tmp_path)


def test_starting_behind_the_last_frame_is_an_error(tmp_path: Path) -> None:
    save(tmp_path / "3.png")
    with pytest.raises(SourceError, match=r"no picture at or after source.start_s=4; its last is at 3 s, lower"):
        read(tmp_path, start_s=4)
