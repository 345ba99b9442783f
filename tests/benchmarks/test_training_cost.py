"""The arithmetic of a fine-tuning step, and what its benchmark refuses before it loads anything heavy."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from benchmarks import training_step
from benchmarks.lessons import lessons
from benchmarks.training_cost import Read, needed_operations, repeated_operations
from stream_agent.errors import ConfigError
from stream_agent.planner.model_cost import ModelShape, Vision
from stream_agent.training.config import load_training

EYES = Vision(parameters=500, cell_px=28, merge=2, layers=1, width=8, full_layers=1, window_patches=0)
SHAPE = ModelShape(
    name="tiny",
    family="qwen2_5_vl",
    text_parameters=1000,
    embedding_parameters=64,
    head_parameters=64,
    tied=False,
    layers=2,
    heads=2,
    kv_heads=1,
    head_size=4,
    vision=EYES,
)


def test_the_frozen_weights_cost_two_passes_the_adapters_three_and_the_eyes_one() -> None:
    blind = Read(tokens=10, learned=2, seen=0)
    attention = 4 * 2 * 2 * 4 * 10 * 10 / 2
    assert needed_operations(SHAPE, 100, [blind]) == 4 * 1000 * 10 + 6 * 100 * 10 + 3 * attention + 4 * 64 * 2
    assert repeated_operations(SHAPE, 100, [blind]) == 2 * 1100 * 10 + attention
    seeing = Read(tokens=10, learned=2, seen=3)
    eyes = needed_operations(SHAPE, 100, [seeing]) - needed_operations(SHAPE, 100, [blind])
    assert eyes == EYES.operations(3) > 0
    assert needed_operations(SHAPE, 100, [blind, seeing]) == 2 * needed_operations(SHAPE, 100, [blind]) + eyes


def test_less_than_full_training_is_needed() -> None:
    """6 N L would be told for a step that costs 4 N L."""
    long = Read(tokens=1000, learned=1, seen=0)
    wide = ModelShape("wide", "qwen2", 10**9, 0, 0, True, 1, 1, 1, 1, None)
    assert needed_operations(wide, 0, [long]) == pytest.approx(4e12, rel=1e-3)


def test_all_numbers_that_divide_the_batch_are_cases() -> None:
    config = training_step._config(training_step._PRESET, ("optimiser.batch=6", "optimiser.at_once=2"))
    assert [case.named("tiny") for case in training_step._cases(config, None)] == [
        "tiny_at_once_1",
        "tiny_at_once_1_checkpointing",
        "tiny_at_once_2",
        "tiny_at_once_2_checkpointing",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--at-once", "3"], "--at-once 3 does not divide optimiser.batch=8"),
        (["--at-once", "two"], "--at-once two is no list"),
        (["--steps", "0"], "--steps 0 measures nothing"),
        (["lora.quantised=true"], "lora.quantised=true packs stored weights"),
        (["optimiser.shared_beginnings=true"], "optimiser.shared_beginnings=false"),
        (["optimiser.bach=8"], "did you mean batch"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_line(
    monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["training_step", *words])
    with pytest.raises(ConfigError, match="(?s)" + said.replace("=", r"\=")) as refused:
        training_step.main()
    assert len(str(refused.value)) < 200


def test_a_library_that_is_missing_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(name: str) -> ModuleSpec | None:
        return None if name in ("peft", "PIL") else ModuleSpec(name, None)

    monkeypatch.setattr(importlib.util, "find_spec", found)
    monkeypatch.setattr(sys, "argv", ["training_step"])
    with pytest.raises(ConfigError, match=r"^peft, PIL not installed.*pip install peft pillow$"):
        training_step.main()


def test_lessons_that_would_need_captions_are_refused() -> None:
    config = load_training(training_step._PRESET, (*training_step._UNREAD, "data.tasks=[caption]"))
    with pytest.raises(ConfigError, match="needs captions, and none are drawn"):
        lessons(config, count=2)


def test_the_preset_is_the_one_that_the_documentation_trains_with() -> None:
    assert training_step._PRESET.name == "train_lora.yaml" and Path(training_step._PRESET).is_file()
