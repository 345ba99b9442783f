"""The drawn operation: right pictures at right times, its truth beside them, the same on every run."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

from stream_agent.config import SourceConfig
from stream_agent.errors import SourceError
from stream_agent.messages import Clip
from stream_agent.source import Picture, Planes, Source, open_source
from stream_agent.source.synthetic import blackouts, read_index

INSTRUMENTS = ("Grasper", "Hook", "Bipolar")
TOOLS = {"Dissection": ("Hook", "Grasper"), "Coagulation": ("bipolar",), "Pause": ()}
TIMELINE = (Clip("Pause", 0, 2, 1), Clip("Dissection", 2, 4, 1), Clip("Coagulation", 4, 8, 1))


def synthetic(**section: Any) -> Source:
    section = {"synthetic_width": 160, "synthetic_height": 96, "synthetic_fps": 10, "synthetic_speed": 1, **section}
    return open_source(
        SourceConfig(**section),
        instruments=INSTRUMENTS,
        notice=print,
        timeline=TIMELINE,
        instruments_of=TOOLS.__getitem__,
    )


def drawn(picture: Picture) -> Planes:
    assert picture.write is not None
    planes = np.empty((picture.height * 3 // 2, picture.width), np.uint8)
    picture.write(planes)
    return planes


def watch(start_s: float = 0, **section: Any) -> list[tuple[Picture, Planes]]:
    source = synthetic(**section)
    source.open(start_s)
    seen = [(picture, drawn(picture)) for picture in source.pictures()]
    source.close()
    return seen


def test_pictures_come_at_the_configured_rate_and_carry_their_number() -> None:
    seen = watch()
    assert [picture.pts_s for picture, _ in seen] == [index / 10 for index in range(80)]
    assert [read_index(planes) for _, planes in seen] == list(range(80))
    assert {(picture.width, picture.height, picture.colour) for picture, _ in seen} == {(160, 96, "bt601")}


def test_a_faster_scene_shows_fewer_pictures_of_the_same_procedure() -> None:
    assert [picture.pts_s for picture, _ in watch(synthetic_speed=4)] == [index / 10 * 4 for index in range(20)]


def test_signals_are_the_truth_in_the_given_order() -> None:
    by_time = {picture.pts_s: picture.signals for picture, _ in watch()}
    assert [by_time[time_s] for time_s in (1.9, 2.0, 4.0)] == [(0, 0, 0), (1, 1, 0), (0, 0, 1)]


def test_one_seed_draws_one_picture() -> None:
    """Pixels come from integer arithmetic only; this digest is the same on every machine."""
    first, again, other = watch(), watch(), watch(seed=8)
    assert all(np.array_equal(one, two) for (_, one), (_, two) in zip(first, again, strict=True))
    assert not np.array_equal(first[0][1], other[0][1])
    digest = hashlib.sha256(b"".join(planes.tobytes() for _, planes in first)).hexdigest()
    assert digest[:16] == "9d03418aa01d3384"


def test_start_s_gives_the_same_pictures_from_there() -> None:
    whole, part = watch(), watch(start_s=3.95)
    assert part[0][0].pts_s == 4.0
    np.testing.assert_array_equal(part[0][1], whole[40][1])


def test_tissue_moves_tools_show_and_smoke_rises() -> None:
    seen = {picture.pts_s: planes for picture, planes in watch()}
    luma = {time_s: planes[:96, 40:120].astype(int) for time_s, planes in seen.items()}
    assert np.abs(luma[1.0] - luma[0.0]).mean() > 1
    assert np.abs(luma[3.5] - luma[1.5]).mean() > np.abs(luma[1.5] - luma[1.0]).mean()
    red = {time_s: planes.reshape(-1)[96 * 160 * 5 // 4 :].max() for time_s, planes in seen.items()}
    assert red[7.9] < red[3.9]


def test_outside_the_circle_it_is_black() -> None:
    planes = watch()[30][1]
    assert planes[60:96, :10].max() == 16
    assert (planes[96:].reshape(2, 48, 80)[:, 30:, :5] == 128).all()


def test_the_lens_goes_dark_now_and_then() -> None:
    source = open_source(
        SourceConfig(synthetic_width=64, synthetic_height=64, synthetic_fps=5, synthetic_duration_s=60),
        instruments=(),
        notice=print,
    )
    source.open(0)
    dark = [picture.pts_s / 12 for picture in source.pictures() if drawn(picture)[40:64].max() == 16]
    spans = blackouts(60, seed=7)
    assert len(spans) == 2
    assert all(start_s >= 25 and 0.5 < end_s - start_s < 2 for start_s, end_s in spans)
    assert dark == pytest.approx([index / 5 for index in range(300) if any(a <= index / 5 < b for a, b in spans)])


def test_starting_behind_the_end_is_an_error() -> None:
    with pytest.raises(SourceError, match=r"start_s=8 is beyond the end of the synthetic procedure at 8 s; lower"):
        synthetic().open(8)


def test_it_must_be_open() -> None:
    with pytest.raises(SourceError, match=r"not open; call open\(\)"):
        next(synthetic().pictures())


@pytest.mark.parametrize(("width", "height"), [(64, 64), (66, 98), (1920, 1080), (480, 640)])
def test_every_size_is_drawn(width: int, height: int) -> None:
    source = synthetic(synthetic_width=width, synthetic_height=height)
    source.open(5)
    picture = next(source.pictures())
    assert read_index(drawn(picture)) == 50
