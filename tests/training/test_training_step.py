"""The benchmark of a fine-tuning step, on a tiny model: what it counts, what it measures, what it says of what does not fit."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("trl")
pytest.importorskip("peft")

import torch
import transformers

from benchmarks import training_step
from benchmarks.histories import drawn_memory
from benchmarks.lessons import lessons
from benchmarks.prompting import prompt_renderer
from benchmarks.timed_training import CountedBatches, Part, Step, Steps, out_of_memory, train_steps
from benchmarks.training_cost import Read, needed_operations, repeated_operations
from benchmarks.true_shapes import SHAPES, RandomModel, write_model
from stream_agent.errors import ConfigError
from stream_agent.planner.model_cost import shape_of
from stream_agent.planner.model_files import ModelFiles, look_through
from stream_agent.procedure import load_pack
from stream_agent.training.config import TrainingConfig, load_training
from stream_agent.training.lora import IGNORED, with_adapter

pytestmark = [
    pytest.mark.timeout(240),
    # torch, transformers and TRL warn of their own parts.
    pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning", "default::UserWarning"),
]

SHORT = (
    "planner.device=cpu",
    "planner.threads=1",
    "planner.knowledge=none",
    "planner.max_pixels=12544",
    "optimiser.batch=2",
)
"""Settings of a step that takes a fraction of a second."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model("tiny", tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def base(folder: Path) -> RandomModel:
    return RandomModel(folder, device="cpu", dtype="float32", threads=1)


def config_of(*settings: str) -> TrainingConfig:
    return training_step._config(training_step._PRESET, (*SHORT, *settings))


def result_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[dict[str, Any], str]:
    monkeypatch.setattr(sys, "argv", ["training_step", "--quick", "--shapes", "tiny", *words, *SHORT])
    assert training_step.main() == 0
    printed = capsys.readouterr().out
    result: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return result, printed


@pytest.mark.parametrize(("shapes", "parameters"), [("qwen2.5-vl-7b", 8_292_166_656), ("qwen2.5-vl-3b", 3_754_622_976)])
def test_a_true_shape_has_the_published_parameters(shapes: str, parameters: int, tmp_path: Path) -> None:
    """Built without memory; the arithmetic of the cost agrees with it to a thousandth."""
    folder = write_model(shapes, tmp_path / "model")
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(config)
    assert sum(part.numel() for part in model.parameters()) == parameters
    assert shape_of(look_through(folder, weights=False)).parameters == pytest.approx(parameters, rel=1e-3)


def test_prompts_are_about_as_long_as_with_the_real_vocabulary(base: RandomModel) -> None:
    """The same prompt is 1,723 tokens of 3.62 characters with the published one."""
    pack = load_pack(Path("cholecystectomy"))
    text = prompt_renderer(pack)(drawn_memory(pack, clips=5, folded=0, seed=1)).partition("<picture")[0]
    assert len(text) / len(base.tokenizer.encode(text)) == pytest.approx(3.62, rel=0.08)


def test_a_lesson_shows_a_real_frame_as_large_as_configured_and_histories_of_the_usual_lengths() -> None:
    made = lessons(load_training(training_step._PRESET, training_step._UNREAD), count=3)
    assert {example.task for example in made} == {"rank", "plan", "recognise"}
    assert {len(example.memory.clips) + 1 for example in made} == {4, 6, 8}
    [picture] = {
        part.id: part for turn in made[0].prompt.messages for part in turn.parts if not isinstance(part, str)
    }.values()
    assert picture.image.shape == (364, 672, 3)
    assert len({example.answer for example in made}) > 1


def test_what_is_counted_is_what_the_model_is_given(base: RandomModel) -> None:
    config = config_of()
    taught = lessons(config, count=4)
    batches = CountedBatches(base, taught, longest=config.planner.context_tokens)
    batch = batches([{"numbers": [0, 5]}])
    [part] = batches.parts
    assert part.places == batch["input_ids"].numel() > sum(one.tokens for one in part.read)
    for row, example, one in zip(range(2), (taught[0], taught[5]), part.read, strict=True):
        encoded = base.encode(example.prompt)
        assert one.tokens == len(encoded.ids) + one.learned
        assert one.learned == int((batch["labels"][row] != IGNORED).sum())
        assert one.seen == sum(isinstance(mark, tuple) for mark in encoded.marks) > 0


def test_the_arithmetic_is_what_torch_counts(base: RandomModel) -> None:
    """Attention that computes every score costs twice a causal one's; everything else is in the formula."""
    from torch.utils.flop_counter import FlopCounterMode

    config = config_of("lora.dropout=0")
    batches = CountedBatches(base, lessons(config, count=1), longest=config.planner.context_tokens)
    batch = batches([{"numbers": [4]}])  # a plan: many learned tokens
    [one] = batches.parts[0].read
    model = with_adapter(base, config.lora)
    base.model.set_attn_implementation("eager")
    model.enable_input_require_grads()  # so that the lowest layer passes gradients on as all others do
    labels = batch.pop("labels")
    kept = (labels[0, 1:] != IGNORED).nonzero()[:, 0]
    with FlopCounterMode(display=False) as counted:
        logits = model(**batch, use_cache=False, logits_to_keep=kept).logits
        torch.nn.functional.cross_entropy(logits[0], labels[0, 1:][kept]).backward()
    trained = sum(part.numel() for part in model.parameters() if part.requires_grad)
    shape = shape_of(base.files)
    again = 4.0 * shape.layers * shape.heads * shape.head_size * one.tokens**2 / 2
    assert counted.get_total_flops() == pytest.approx(needed_operations(shape, trained, [one]) + 3 * again, rel=0.03)
    assert repeated_operations(shape, trained, [one]) == 2.0 * (shape.text_parameters + trained) * one.tokens + again


@pytest.mark.parametrize("checkpointing", [False, True])
def test_checkpointing_computes_every_layer_twice(base: RandomModel, tmp_path: Path, checkpointing: bool) -> None:
    config = config_of(f"optimiser.checkpointing={checkpointing}", "optimiser.batch=4")
    passes: list[object] = []
    draw = base.draw

    def watched() -> None:
        draw()
        attention = base.model.model.language_model.layers[-1].self_attn  # what stands behind it is not needed twice
        attention.register_forward_hook(lambda module, *_: passes.append(module))

    base.draw = watched  # type: ignore[method-assign]
    batches = CountedBatches(base, lessons(config, count=4), longest=config.planner.context_tokens)
    done = train_steps(base, batches, config, tmp_path / "trainer", warm=1, steps=1)
    parts = 2 * len(done.steps[0].parts)
    assert len(done.steps[0].parts) == 2 and len(passes) == parts * (1 + checkpointing)
    assert not (tmp_path / "trainer").exists() or not any((tmp_path / "trainer").glob("checkpoint-*"))


def test_every_case_is_a_row_and_a_cpu_tells_ratios_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result, printed = result_of(monkeypatch, capsys, "--at-once", "1,2")
    assert [row["case"] for row in result["rows"]] == [
        "tiny_at_once_1",
        "tiny_at_once_1_checkpointing",
        "tiny_at_once_2",
        "tiny_at_once_2_checkpointing",
    ]
    assert ["ratio" in row for row in result["rows"]] == [True, True, True, False], (
        "the configured case is what all are told by"
    )
    for row in result["rows"]:
        assert row["n"] == 2 and 0 < row["p50_ms"] <= row["p95_ms"]
        assert 0 < row["encoding_share"] < 1 and 0 <= row["padded_share"] < 1
        assert row["learned_per_example"] >= 2 and row["picture_tokens_per_example"] > 0
        assert not {"examples_per_s", "held_gb", "model_use"} & row.keys()
    assert result["rows"][0]["padded_share"] == 0, "one example at a time has nothing to fill up"
    assert result["settings"]["weights"] == "random" and "unread" not in printed.splitlines()[-1]


def test_what_does_not_fit_is_a_row_and_the_rest_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    collate = CountedBatches.__call__

    def bounded(self: CountedBatches, features: Any) -> dict[str, torch.Tensor]:
        if len(features) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return collate(self, features)

    monkeypatch.setattr(CountedBatches, "__call__", bounded)
    result, printed = result_of(monkeypatch, capsys, "--at-once", "1,2")
    states = {row["case"]: (row["state"], row["p50_ms"] is None) for row in result["rows"]}
    assert states["tiny_at_once_1"] == ("", False)
    assert states["tiny_at_once_2_checkpointing"] == ("out of memory", True)
    assert "no ratios: tiny_at_once_2_checkpointing" in printed


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    assert out_of_memory(RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"))
    assert out_of_memory(torch.OutOfMemoryError("CUDA"))
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, and a true shape would be measured on it")
def test_a_true_shape_without_a_gpu_is_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["training_step", "--shapes", "qwen2.5-vl-7b"])
    with pytest.raises(ConfigError, match=r"--shapes qwen2.5-vl-7b needs a CUDA GPU.*take --shapes tiny"):
        training_step.main()


def test_a_gpu_is_told_in_rates_memory_and_use() -> None:
    """Two steps of 2 s, each two parts of one example, on a GPU that could do ten times the needed operations in that time."""
    files = ModelFiles(Path("/models/tiny"), {"model_type": "qwen2", **SHAPES["tiny"]["text"]}, {})
    shape, read = shape_of(files), Read(tokens=100, learned=10, seen=0)
    step = Step(2.0, (Part(0.1, 125, (read,)), Part(0.1, 125, (read,))))
    done = Steps((step, step), trained=500, allocated=3_000_000_000, reserved=4_000_000_000)
    needed = needed_operations(shape, 500, [read] * 4)
    told = training_step._Told("tiny", shape, on_gpu=True, rate=needed / 4.0 * 10)
    row = told.row(training_step.Case(1, checkpointing=True), [done], [done], itself=False)
    assert (row.p50_ms, row.n, row.ratio) == (2000, 2, 1.0)
    more = {
        name: row.more[name] for name in ("examples_per_s", "prompt_per_s", "learned_per_s", "held_gb", "reserved_gb")
    }
    assert more == {"examples_per_s": 1, "prompt_per_s": 90, "learned_per_s": 10, "held_gb": 3, "reserved_gb": 4}
    assert row.more["encoding_share"] == pytest.approx(0.1) and row.more["padded_share"] == pytest.approx(0.2)
    assert row.more["model_use"] == pytest.approx(0.1)
    repeated = repeated_operations(shape, 500, [read] * 4)
    assert row.more["hardware_use"] == pytest.approx(0.1 * (needed + repeated) / needed)
    without = told.row(training_step.Case(1, checkpointing=False), [done], None, itself=True)
    assert without.ratio is None and without.more["hardware_use"] == without.more["model_use"]
