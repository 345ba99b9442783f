"""A cross-validated report: nobody is asked about what it has seen, and no part is judged by numbers fitted on it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stream_agent.cli import main
from stream_agent.config import FusionConfig
from stream_agent.evaluation.dataset import ACTIONS
from stream_agent.evaluation.samples import Question, Sample
from stream_agent.training.panel import Panel
from stream_agent.training.report_rows import table
from stream_agent.training.trial_report import evaluate_trial, out_of_fold
from tests.planner.backends import tiny_models
from tests.training.test_data import DONE, clips, written

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning", "default::UserWarning"),
]

ORDERS = (
    DONE,
    ("Tissue Retraction", "Dissection", "Aspiration", "Dissection", "Vessel Clipping", "Dissection"),
    ("Dissection", "Vessel Clipping", "Coagulation", "Dissection", "Tissue Retraction"),
    ("Tissue Retraction", "Aspiration", "Dissection", "Vessel Clipping"),
)
NAMES = ("VID01", "VID02", "VID04", "VID05", "VID13", "VID15", "VID73", "VID06")
TRAINING_SAMPLES, TEST_SAMPLES = 4 + 5 + 4 + 3 + 4 + 5, 4 + 3
"""Clips with one before them: of the first six videos, and of the last two, which are test videos."""


# ------------------------------------------------------------------------------------------------- fitted on the others


def test_the_numbers_that_judge_a_part_do_not_depend_on_its_own_targets() -> None:
    rng = np.random.default_rng(0)
    beliefs = rng.dirichlet(np.ones(len(ACTIONS)), size=60)
    statistical = rng.dirichlet(np.ones(len(ACTIONS)), size=60)
    samples = [
        Sample(Question(f"VID{at % 6:02d}", ("x",), (0,), at), at, ACTIONS[int(belief.argmax())], "", (), ())
        for at, belief in enumerate(beliefs)
    ]
    parts = [["VID00", "VID01"], ["VID02", "VID03"], ["VID04", "VID05"]]
    turned = [
        replace(sample, target=ACTIONS[int(belief.argmin())]) if sample.question.video in parts[1] else sample
        for sample, belief in zip(samples, beliefs, strict=True)
    ]
    before, fits = out_of_fold(samples, statistical, beliefs, ACTIONS, FusionConfig(), parts)
    after, others = out_of_fold(turned, statistical, beliefs, ACTIONS, FusionConfig(), parts)
    assert fits[1] == others[1]
    assert fits[0] != others[0] and fits[2] != others[2], "the same targets decide what judges the other parts"
    own = np.array([sample.question.video in parts[1] for sample in samples])
    np.testing.assert_array_equal(before.fused[own], after.fused[own])
    np.testing.assert_array_equal(before.calibrated[own], after.calibrated[own])
    assert not np.allclose(before.fused[~own], after.fused[~own])


# ----------------------------------------------------------------------------------------------------- tiny real models


@pytest.fixture(scope="module")
def sap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    videos = {name: clips(name, *ORDERS[at % 4], every_s=30 + at, shift_s=at) for at, name in enumerate(NAMES)}
    return written(tmp_path_factory.mktemp("sap") / "sap.json", videos)


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory, sap: Path) -> Path:
    """Two parts, fine-tuned twice each on a model with random weights."""
    for library in ("torch", "peft", "trl", "llguidance", "sklearn"):
        pytest.importorskip(library)
    from stream_agent.training.adapter_gate import crossvalidate, trainer_of
    from tests.training.test_sft import settings

    folder = tmp_path_factory.mktemp("trial")
    model = tiny_models.build("qwen2", folder / "qwen2")
    first, second = (
        settings(sap, model, data__validation=0, optimiser__max_steps=2, optimiser__learning_rate=rate)
        for rate in (0.01, 0.02)
    )
    train = trainer_of("sft", lambda _: None)
    crossvalidate(second, train, folder / "trial", parts=2, starting=first, begin=train, say=lambda _: None)
    return folder / "trial"


@dataclass(frozen=True)
class Asked:
    """One evaluation of the trial: its report, what it told, and who was asked what."""

    found: dict[str, Any]
    lines: list[str]
    wanted: Mapping[str, Any]
    kept: Path


@pytest.fixture(scope="module")
def asked(trial: Path, sap: Path, tmp_path_factory: pytest.TempPathFactory) -> Asked:
    wanted: dict[str, Any] = {}
    language = Panel.language

    def spied(panel: Panel, rows: Mapping[str, Any]) -> dict[str, Any]:
        wanted.update(rows)
        return language(panel, rows)

    lines: list[str] = []
    kept = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Panel, "language", spied)
        found = evaluate_trial(trial, sap, keep=kept, say=lines.append)
    return Asked(found, lines, wanted, kept)


def rows_said(lines: list[str]) -> list[str]:
    return [line.split(":")[0] for line in lines]


def without_starts(trial: Path, folder: Path) -> Path:
    shutil.copytree(trial, folder, ignore=shutil.ignore_patterns("start", "manifest.sha256"))
    return folder


def test_nobody_is_asked_about_what_it_has_seen_and_everybody_once(asked: Asked) -> None:
    for adapter, samples in asked.wanted.values():
        assert adapter is None or not adapter.seen & {sample.question.video for sample in samples}
    for name in ("start", "adapter"):
        parts = [samples for row, (_, samples) in asked.wanted.items() if row.startswith(f"{name} of part-")]
        assert sum(map(len, parts)) == TRAINING_SAMPLES == asked.found["out_of_fold_samples"]
    assert asked.found["samples"] == TEST_SAMPLES
    assert sorted(video for part in asked.found["parts"] for video in part) == list(NAMES[:6])
    assert rows_said(asked.lines) == [
        "statistical, out of fold",
        "statistical",
        "base, out of fold",
        "base",
        *("start of part-1", "start of part-2", "start", "adapter of part-1", "adapter of part-2", "adapter"),
    ]


@pytest.mark.parametrize("part", ["out_of_fold", "rows"])
def test_a_table_has_everybody_alone_and_fused(asked: Asked, part: str) -> None:
    rows = asked.found[part]
    assert len(rows) == 2 + 2 * 4
    assert rows["adapter"]["nll"] != rows["start"]["nll"] != rows["zero-shot"]["nll"]
    assert rows["adapter"]["SLAcc"] == rows["adapter, fitted temperature"]["SLAcc"], "it changes no order"
    assert rows["statistical"]["minus_statistical"]["value"] == 0
    assert len(table(rows).splitlines()) == 12


def test_the_numbers_of_the_test_rows_are_those_fitted_on_all_parts(asked: Asked) -> None:
    fitted = asked.found["fitted"]["adapter"]
    assert f"fused, fitted (w={fitted['fusion_weight']:.3g}, T={fitted['temperature']:.3g})" in asked.found["rows"]
    first, second = fitted["per_part"]
    assert first["weights"] != second["weights"] and first["temperature"] != second["temperature"]


def test_what_is_kept_serves_again_and_the_next_trial(trial: Path, sap: Path, asked: Asked, tmp_path: Path) -> None:
    import safetensors.numpy

    said: list[str] = []
    assert evaluate_trial(trial, sap, keep=asked.kept, say=said.append) == asked.found
    other = without_starts(trial, tmp_path / "other")
    found = evaluate_trial(other, sap, keep=asked.kept, say=said.append)
    assert said == []
    assert "start" not in found["rows"] and found["rows"]["adapter"] == asked.found["rows"]["adapter"]
    for path in other.rglob("adapter_model.safetensors"):
        weights = safetensors.numpy.load_file(path)
        safetensors.numpy.save_file({name: np.float32(1.5) * one for name, one in weights.items()}, path)
    changed = evaluate_trial(other, sap, keep=asked.kept, say=said.append)
    assert rows_said(said) == ["adapter of part-1", "adapter of part-2", "adapter"], "beside the same base"
    assert changed["rows"]["adapter"] != found["rows"]["adapter"]


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["train", "evaluate", *map(str, arguments)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_by_one_command_to_two_tables_and_a_file(
    trial: Path, sap: Path, asked: Asked, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.json"
    assert call("--trial", trial, "--sap", sap, "--keep", asked.kept, "--out", out) == 0
    told = capsys.readouterr().out
    expected = (
        f"{TRAINING_SAMPLES} samples of 6 training videos, each asked of who was fitted without its video (2 parts)"
    )
    assert expected in told
    assert f"{TEST_SAMPLES} samples of the test videos, causal track:" in told
    assert table(asked.found["rows"]) in told and table(asked.found["out_of_fold"]) in told
    assert json.loads(out.read_text()) == asked.found
    alone = tmp_path / "alone"
    shutil.copytree(trial / "part-1", alone / "part-1")
    assert call("--trial", alone, "--sap", sap) == 2
    error = capsys.readouterr().err
    assert "has 1 folders part-1" in error and len(error.splitlines()) == 1


@pytest.mark.parametrize("given", [(), ("--adapter", "a", "--trial", "b")])
def test_one_adapter_or_one_trial_is_named(given: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--sap", "sap.json", *given) == 2
    error = capsys.readouterr().err
    assert "name one adapter, or the folder of one trial" in error and len(error.splitlines()) == 1
