"""A cross-validated report: nobody is asked about what it has seen, and no part is judged by numbers fitted on it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stream_agent.cli import main
from stream_agent.config import FusionConfig
from stream_agent.evaluation.dataset import ACTIONS
from stream_agent.evaluation.samples import Question, Sample
from stream_agent.training.report_rows import table
from stream_agent.training.trial_report import evaluate_trial, out_of_fold
from tests.planner.backends import tiny_models
from tests.training.test_data import DONE, clips, written

pytestmark = [
    pytest.mark.timeout(120),
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


def copied(trial: Path, folder: Path, **over: Any) -> Path:
    """The trial without its starts; `scale` makes other weights of it."""
    shutil.copytree(trial, folder, ignore=shutil.ignore_patterns("start", "manifest.sha256"))
    if "scale" in over:
        import safetensors.numpy

        for path in folder.rglob("adapter_model.safetensors"):
            weights = safetensors.numpy.load_file(path)
            safetensors.numpy.save_file({name: over["scale"] * one for name, one in weights.items()}, path)
    return folder


def rows_said(lines: list[str]) -> list[str]:
    return [line.split(":")[0] for line in lines]


def test_both_tables_with_everybody_asked_once_and_out_of_fold(
    trial: Path, sap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stream_agent.training.panel import Panel

    asked: dict[str, Any] = {}
    language = Panel.language

    def spied(panel: Panel, wanted: Mapping[str, Any]) -> dict[str, Any]:
        asked.update(wanted)
        return language(panel, wanted)

    monkeypatch.setattr(Panel, "language", spied)
    lines: list[str] = []
    found = evaluate_trial(trial, sap, keep=tmp_path / "kept", say=lines.append)
    for adapter, samples in asked.values():
        assert adapter is None or not adapter.seen & {sample.question.video for sample in samples}
    for name in ("start", "adapter"):
        parts = [samples for row, (_, samples) in asked.items() if row.startswith(f"{name} of part-")]
        assert sum(map(len, parts)) == TRAINING_SAMPLES == found["out_of_fold_samples"]
    assert found["samples"] == TEST_SAMPLES
    assert rows_said(lines) == [
        "statistical, out of fold",
        "statistical",
        "base, out of fold",
        "base",
        *("start of part-1", "start of part-2", "start", "adapter of part-1", "adapter of part-2", "adapter"),
    ]
    for part in ("out_of_fold", "rows"):
        rows = found[part]
        assert len(rows) == 2 + 2 * 4
        assert rows["adapter"]["nll"] != rows["start"]["nll"] != rows["zero-shot"]["nll"]
        assert rows["adapter"]["SLAcc"] == rows["adapter, fitted temperature"]["SLAcc"], "it changes no order"
        assert rows["statistical"]["minus_statistical"]["value"] == 0
        assert len(table(rows).splitlines()) == 12
    last = list(found["rows"])[-1]
    assert last.startswith("fused, fitted (w=") and f"w={found['fitted']['adapter']['fusion_weight']:.3g}," in last
    per_part = found["fitted"]["adapter"]["per_part"]
    assert len(per_part) == 2 and per_part[0]["weights"] != per_part[1]["weights"]
    assert sorted(video for part in found["parts"] for video in part) == list(NAMES[:6])

    again: list[str] = []
    assert evaluate_trial(trial, sap, keep=tmp_path / "kept", say=again.append) == found
    assert again == []
    without = evaluate_trial(copied(trial, tmp_path / "without"), sap, keep=tmp_path / "kept", say=again.append)
    assert again == []
    assert "start" not in without["rows"] and without["rows"]["adapter"] == found["rows"]["adapter"]
    other = copied(trial, tmp_path / "other", scale=np.float32(1.5))
    evaluate_trial(other, sap, keep=tmp_path / "kept", say=again.append)
    assert rows_said(again) == ["adapter of part-1", "adapter of part-2", "adapter"], (
        "another trial beside the same base"
    )


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["train", "evaluate", *map(str, arguments)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_by_one_command_to_two_tables_and_a_file(
    trial: Path, sap: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.json"
    folder = copied(trial, tmp_path / "trial")
    assert call("--trial", folder, "--sap", sap, "--out", out) == 0
    told = capsys.readouterr().out
    assert (
        f"{TRAINING_SAMPLES} samples of 6 training videos, each asked of who was fitted without its video (2 parts)"
        in told
    )
    assert f"{TEST_SAMPLES} samples of the test videos, causal track:" in told
    found = json.loads(out.read_text())
    assert told.count("| zero-shot |") == 2 and table(found["rows"]) in told and table(found["out_of_fold"]) in told
    shutil.rmtree(folder / "part-2")
    assert call("--trial", folder, "--sap", sap) == 2
    error = capsys.readouterr().err
    assert "has 1 folders part-1" in error and len(error.splitlines()) == 1


@pytest.mark.parametrize("given", [(), ("--adapter", "a", "--trial", "b")])
def test_one_adapter_or_one_trial_is_named(given: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--sap", "sap.json", *given) == 2
    error = capsys.readouterr().err
    assert "name one adapter, or the folder of one trial" in error and len(error.splitlines()) == 1
