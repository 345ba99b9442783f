from __future__ import annotations

import cv2
import numpy as np
import pytest

from stream_agent.config import GateConfig
from stream_agent.messages import Evidence
from stream_agent.perception.gate import Gate
from stream_agent.perception.protocol import Thumbnail


def noisy(scene: Thumbnail, seed: int) -> Thumbnail:
    noise = np.random.default_rng(seed).integers(-4, 5, scene.shape)
    return np.clip(scene.astype(int) + noise, 0, 255).astype(np.uint8)


def test_moving_sharp_pictures_pass(scene: Thumbnail) -> None:
    gate = Gate(GateConfig())
    assert [gate.picture(noisy(scene, k), k / 10) for k in range(60)] == [""] * 60


def test_a_black_picture_closes_the_gate_at_once_even_with_a_small_grey_box(scene: Thumbnail) -> None:
    gate = Gate(GateConfig())
    black = np.zeros_like(scene)
    black[8:24, 270:310] = 128
    assert gate.picture(noisy(scene, 0), 0.0) == ""
    assert gate.picture(black, 0.1) == "black"
    assert gate.picture(noisy(scene, 1), 0.2) == ""


def test_a_picture_is_frozen_once_nothing_has_changed_for_long(scene: Thumbnail) -> None:
    gate = Gate(GateConfig(frozen_s=2.0))
    reasons = [gate.picture(scene, k / 10) for k in range(25)]
    assert reasons == [""] * 20 + ["frozen"] * 5
    assert gate.picture(noisy(scene, 1), 2.5) == ""


def test_slow_change_is_change(scene: Thumbnail) -> None:
    """Compared with the last picture only, a fade of a tenth of a grey level per frame would look frozen."""
    gate = Gate(GateConfig(frozen_s=1.0, frozen_difference=0.5))
    faded = [
        np.where(np.arange(scene.size).reshape(scene.shape) % 40 < k, scene // 2, scene).astype(np.uint8)
        for k in range(40)
    ]
    assert {gate.picture(picture, k / 10) for k, picture in enumerate(faded)} == {""}


def test_pictures_held_for_less_than_the_limit_are_not_frozen(scene: Thumbnail) -> None:
    gate = Gate(GateConfig())
    assert {gate.picture(noisy(scene, k // 10), k / 10) for k in range(100)} == {""}


def test_a_moment_of_blur_passes_and_lasting_blur_does_not(scene: Thumbnail) -> None:
    gate = Gate(GateConfig(blur_s=0.6))
    ramp = np.repeat(np.linspace(60, 180, 320).astype(np.uint8)[None, :, None], 224, 0).repeat(3, 2)
    blurred = [np.roll(ramp, k, 1) for k in range(10)]
    blurred = [np.asarray(cv2.GaussianBlur(picture, (0, 0), 6), dtype=np.uint8) for picture in blurred]
    gate.picture(scene, 0.0)
    reasons = [gate.picture(picture, 0.1 * (k + 1)) for k, picture in enumerate(blurred)]
    assert reasons[:6] == [""] * 6
    assert reasons[7:] == ["blurred"] * 3


def test_a_new_session_starts_without_the_last_picture(scene: Thumbnail) -> None:
    gate = Gate(GateConfig(frozen_s=1.0))
    gate.picture(scene, 0.0)
    gate.reset()
    assert gate.picture(scene, 5.0) == ""


def test_media_time_that_falls_is_a_new_beginning(scene: Thumbnail) -> None:
    gate = Gate(GateConfig(frozen_s=1.0))
    gate.picture(scene, 100.0)
    assert gate.picture(scene, 0.0) == ""
    assert gate.picture(scene, 0.5) == ""
    assert gate.picture(scene, 1.0) == "frozen"


@pytest.mark.parametrize(
    ("probability", "reason"), [(None, ""), (0.89, ""), (0.9, "out_of_body"), (1.0, "out_of_body")]
)
def test_the_recognisers_doubt_closes_the_gate(probability: float | None, reason: str) -> None:
    evidence = Evidence(seq=0, pts_s=0.0, out_of_body=probability)
    assert Gate(GateConfig(out_of_body_probability=0.9)).evidence(evidence) == reason


def test_a_gate_switched_off_lets_everything_pass(scene: Thumbnail) -> None:
    gate = Gate(GateConfig(enabled=False))
    assert gate.picture(np.zeros_like(scene), 0.0) == ""
    assert gate.evidence(Evidence(seq=0, pts_s=0.0, out_of_body=1.0)) == ""
