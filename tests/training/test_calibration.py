"""The language planner's temperature and weight: the arithmetic on made-up beliefs, the command with a rehearsed model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from stream_agent import cli
from stream_agent.config import FusionConfig, load_config
from stream_agent.evaluation.dataset import ACTIONS, TEST_VIDEOS, TRAIN_VIDEOS, SapClip
from stream_agent.evaluation.samples import Question, Sample
from stream_agent.evaluation.triplets import encode_videos
from stream_agent.training.calibration import (
    HOTTEST,
    fit_temperature,
    fit_weight,
    held_out,
    judged,
    log_loss,
    pooled,
    targets_of,
    tempered,
)

FUSION = FusionConfig()


def draw(n: int, sharpness: float, seed: int = 0) -> tuple[Any, Any]:
    """True beliefs, (n, 5) with a 0 at the action going on, and what came, drawn from them."""
    rng = np.random.default_rng(seed)
    weights = np.exp(sharpness * rng.normal(size=(n, 5)))
    weights[np.arange(n), rng.integers(0, 5, n)] = 0
    beliefs = weights / weights.sum(1, keepdims=True)
    return beliefs, np.array([rng.choice(5, p=row) for row in beliefs])


def asked(targets: Any, videos: int = 10) -> list[Sample]:
    return [
        Sample(Question(f"VID{at % videos:02d}", ("x",), (0,), at), at, ACTIONS[target], "", (), ())
        for at, target in enumerate(targets)
    ]


def test_the_temperature_of_beliefs_made_too_sure_is_found() -> None:
    true, targets = draw(4000, 1.5)
    for factor in (0.5, 1.0, 4.0):
        assert fit_temperature(tempered(true, 1 / factor), targets) == pytest.approx(factor, rel=0.1)


def test_a_temperature_keeps_the_ranking_and_what_is_impossible() -> None:
    beliefs, _ = draw(50, 2.0)
    warm = tempered(beliefs, 7.0)
    np.testing.assert_array_equal(np.argsort(warm, axis=1), np.argsort(beliefs, axis=1))
    np.testing.assert_array_equal(warm == 0, beliefs == 0)
    np.testing.assert_allclose(warm.sum(1), 1)
    np.testing.assert_allclose(tempered(beliefs, 1.0), beliefs)


def test_beliefs_about_nothing_are_flattened_and_given_no_weight() -> None:
    statistical, targets = draw(2000, 1.0)
    noise, _ = draw(2000, 2.0, seed=5)
    noise = np.where(statistical == 0, 0, noise + 0.01)
    noise /= noise.sum(1, keepdims=True)
    assert fit_temperature(noise, targets) > HOTTEST / 20
    assert fit_weight(statistical, noise, targets, FUSION) < 0.1


def test_two_halves_of_what_is_known_are_weighed_alike() -> None:
    """Each knows one of two independent parts whose sum is log p."""
    rng = np.random.default_rng(1)
    parts = rng.normal(size=(2, 4000, 5))
    both = np.exp(parts.sum(0))
    targets = np.array([rng.choice(5, p=row / row.sum()) for row in both])
    ours, theirs = (np.exp(part) / np.exp(part).sum(1, keepdims=True) for part in parts)
    config = FUSION.model_copy(update={"least_belief": 1e-6})
    assert fit_weight(ours, theirs, targets, config) == pytest.approx(1.0, abs=0.1)
    fused = pooled(ours, theirs, config.model_copy(update={"model": 1.0}))
    np.testing.assert_allclose(fused, both / both.sum(1, keepdims=True), atol=1e-3)


def test_no_sample_is_judged_by_numbers_fitted_on_its_video() -> None:
    """Turning one video's targets round must change the numbers of the others and not its own."""
    beliefs, targets = draw(200, 1.5)
    even = np.where(beliefs == 0, 0, 0.25)
    samples = asked(targets)
    each = [[f"VID{number:02d}"] for number in range(10)]
    _, _, before = held_out(samples, even, beliefs, targets, FUSION, each)
    changed = targets.copy()
    own = np.array([sample.question.video == "VID03" for sample in samples])
    changed[own] = np.argmin(np.where(beliefs == 0, 2, beliefs), axis=1)[own]
    _, _, after = held_out(samples, even, beliefs, changed, FUSION, each)
    assert before[3] == after[3]
    assert all(one != other for number, (one, other) in enumerate(zip(before, after, strict=True)) if number != 3)


def test_held_out_scores_are_worse_than_scores_on_what_was_fitted() -> None:
    beliefs, targets = draw(60, 1.0)
    even = np.where(beliefs == 0, 0, 0.25)
    made = judged(asked(targets), even, tempered(beliefs, 0.2), ACTIONS, FUSION)
    best = log_loss(tempered(tempered(beliefs, 0.2), made.fit.temperature), targets)
    assert best <= made.scores["model, fitted T"].nll + 1e-4
    assert made.scores["model, fitted T"].nll < made.scores["model, T=1 as configured"].nll
    assert made.spread[0].temperature <= made.fit.temperature <= made.spread[1].temperature


def test_targets_are_places_in_the_pack() -> None:
    assert targets_of(asked(np.array([4, 0])), ACTIONS).tolist() == [4, 0]


# ---------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def sap(tmp_path: Path) -> Path:
    orders = (ACTIONS[:4], ACTIONS[1:4], (ACTIONS[2], ACTIONS[0], ACTIONS[3]))
    videos = {}
    for name in sorted(TEST_VIDEOS | TRAIN_VIDEOS)[:12]:
        labels = orders[int(name.removeprefix("VID")) % 3]
        videos[name] = tuple(
            SapClip(name, index, 40 * index, label, label, is_sample=index > 0) for index, label in enumerate(labels)
        )
    path = tmp_path / "sap.json"
    path.write_bytes(encode_videos(videos))
    return path


def call(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main([str(argument) for argument in arguments])
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


REHEARSED = ("planner.kind=rehearsed", "planner.memory=labels_only", "planner.knowledge=none")


def test_the_command_writes_a_preset_that_says_what_it_was_fitted_on(
    sap: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset, out = tmp_path / "own.yaml", tmp_path / "fitted.yaml"
    preset.write_text(yaml.safe_dump({"planner": {"permutations": 2, "fusion": {"model": 0.4}}}))
    assert call("train", "calibration", "--sap", sap, "--config", preset, "--out", out, *REHEARSED) == 0
    planner = load_config(out).planner
    assert (planner.kind, planner.memory, planner.permutations) == ("rehearsed", "labels_only", 2)
    evidence = json.loads(out.with_suffix(".json").read_text())
    assert planner.temperature == pytest.approx(evidence["temperature"], rel=1e-3)
    assert planner.fusion.model == pytest.approx(evidence["fusion_weight"], abs=1e-3)
    assert planner.fusion.fitted_on == planner.temperature_fitted_on
    assert evidence["about"]["prompt"] in planner.temperature_fitted_on
    assert set(evidence["about"]["videos"]) <= TRAIN_VIDEOS
    assert f"{evidence['about']['samples']} samples of {len(evidence['about']['videos'])} training" in (
        planner.temperature_fitted_on
    )
    assert evidence["planners"].keys() == {
        "model, T=1 as configured",
        "model, fitted T",
        "statistical",
        "fused, w=0.4 as configured",
        "fused, fitted T and w",
    }
    assert "fused minus statistical" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (("planner.kind=none",), "planner.kind=none is no language model"),
        (("planner.kind=rehearsed",), "planner.memory=labels_and_near shows frames.*--frames"),
        (("planner.kind=rehearsed", "planner.form=indirect"), "planner.form=indirect.*--captions"),
    ],
)
def test_what_cannot_be_calibrated(
    sap: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: tuple[str, ...], complaint: str
) -> None:
    assert call("train", "calibration", "--sap", sap, "--out", tmp_path / "x.yaml", *settings) == 2
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    assert re.search(complaint, told)


def test_out_is_a_preset(sap: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("train", "calibration", "--sap", sap, "--out", tmp_path / "x.json", *REHEARSED) == 2
    assert "ends in .yaml" in capsys.readouterr().err
    assert call("train", "calibration", "--sap", sap, "--out", tmp_path / "no" / "x.yaml", *REHEARSED) == 2
    assert "cannot be written" in capsys.readouterr().err
