"""Fine-tuning on tiny models with random weights: it learns, goes on after a kill, and its adapter answers in the real backend."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("trl")
pytest.importorskip("peft")
pytest.importorskip("llguidance")

import torch
import yaml

from stream_agent.cli import main
from stream_agent.config import BackendConfig, configs_directory
from stream_agent.errors import ConfigError
from stream_agent.models.model_files import digest_of, model_files
from stream_agent.planner.backends.adapters import adapter_directory
from stream_agent.planner.backends.protocol import Call
from stream_agent.planner.backends.transformers import TransformersBackend
from stream_agent.planner.model_files import MANIFEST
from stream_agent.prompts import CODES
from stream_agent.training.adapter_record import fitted_on
from stream_agent.training.checkpoints import last_checkpoint
from stream_agent.training.config import TrainingConfig, load_training
from stream_agent.training.data import Example
from stream_agent.training.lora import Batches, load_base, with_adapter
from stream_agent.training.sft import answer_trainer, train
from stream_agent.training.teaching import teaching
from tests.planner.backends import tiny_models
from tests.planner.backends.tiny_models import Family
from tests.training.test_data import DONE, clips, written

pytestmark = [
    pytest.mark.timeout(400),
    # torch, transformers and TRL warn of their own parts.
    pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning", "default::UserWarning"),
]

Tiny = Callable[[Family], Path]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder, built = tmp_path_factory.mktemp("models"), {}

    def build(family: Family) -> Path:
        if family not in built:
            built[family] = tiny_models.build(family, folder / family)
        return built[family]

    return build


@pytest.fixture(scope="module")
def sap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = ("VID01", "VID02", "VID68", "VID73")
    folder = tmp_path_factory.mktemp("sap")
    return written(folder / "sap.json", {name: clips(name, *DONE, shift_s=at) for at, name in enumerate(names)})


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A colour per action, so that there is something to see."""
    folder = tmp_path_factory.mktemp("frames")
    for at, video in enumerate(("VID01", "VID02", "VID68")):
        (folder / video).mkdir()
        for index in range(len(DONE)):
            picture = np.full((84, 112, 3), 40 * index + 20, np.uint8)
            cv2.imwrite(str(folder / video / f"{index * 40 + 38 + at:06d}.png"), picture)
    return folder


def settings(sap: Path, model: Path, **more: Any) -> TrainingConfig:
    chosen: dict[str, Any] = {
        "data.sap": sap,
        "data.tasks": "[rank]",
        "data.validation": 0.3,
        "planner.model": model,
        "planner.form": "indirect",
        "planner.memory": "labels_only",
        "planner.knowledge": "none",
        "planner.device": "cpu",
        "planner.threads": 1,
        "lora.dropout": 0,
        "optimiser.learning_rate": 0.01,
        "optimiser.batch": 4,
        "optimiser.epochs": 3,
        **{name.replace("__", "."): value for name, value in more.items()},
    }
    return load_training(None, [f"{name}={value}" for name, value in chosen.items()])


async def asked(backend: TransformersBackend, example: Example, adapter: str = "") -> list[float]:
    codes = CODES[: len(example.choices)]
    [row] = await backend.score([example.prompt], [codes], Call("1", salt="case", adapter=adapter))
    return [float(value) for value in row]


def answers(config: TrainingConfig, folder: Path, taught: list[Example]) -> tuple[Any, Any, Any, Any]:
    """Log-probabilities of the codes: base alone, base beside adapters, with the adapter, base again."""
    planner = config.planner

    async def scene() -> tuple[Any, ...]:
        given = {"kind": "transformers", "model": planner.model, "device": "cpu", "threads": 1, "context_tokens": 8192}
        alone = TransformersBackend(BackendConfig.model_validate(given))
        await alone.start()
        base = [await asked(alone, example) for example in taught]
        await alone.close()
        both = TransformersBackend(BackendConfig.model_validate({**given, "adapters": {"taught": folder}}))
        await both.start()
        try:
            before = [await asked(both, example) for example in taught]
            with_it = [await asked(both, example, "taught") for example in taught]
            after = [await asked(both, example) for example in taught]
        finally:
            await both.close()
        return base, before, with_it, after

    base, before, with_it, after = asyncio.run(scene())
    return np.array(base), np.array(before), np.array(with_it), np.array(after)


def sure(scores: Any, taught: list[Example]) -> float:
    """Mean log-probability of the right code."""
    return float(np.mean([row[CODES.index(example.answer)] for row, example in zip(scores, taught, strict=True)]))


def test_a_text_model_learns_and_its_adapter_answers_in_the_backend(tiny: Tiny, sap: Path, tmp_path: Path) -> None:
    config = settings(sap, tiny("qwen2"), data__orders=2, optimiser__epochs=8, optimiser__learning_rate=0.02)
    lines: list[str] = []
    record = train(config, tmp_path / "adapter", say=lines.append)
    assert np.mean(record["losses"][-3:]) < 0.5 * np.mean(record["losses"][:3])
    assert record["data"]["fitted_on"] and not set(record["data"]["fitted_on"]) & {"VID73"}
    assert not set(record["data"]["fitted_on"]) & set(record["data"]["chosen_by"])
    taught = teaching(config).examples
    base, before, with_it, after = answers(config, tmp_path / "adapter", taught)
    np.testing.assert_array_equal(base, before)
    np.testing.assert_array_equal(base, after)
    assert not np.allclose(base, with_it, atol=0.1)
    assert sure(with_it, taught) > sure(base, taught) + 1
    assert (base.argmax(1) != with_it.argmax(1)).any(), "another answer"


def test_a_model_with_eyes_learns_all_four_tasks_and_keeps_its_eyes(
    tiny: Tiny, sap: Path, frames: Path, tmp_path: Path
) -> None:
    captions = tmp_path / "captions.jsonl"
    captions.write_text(
        "".join(
            json.dumps({"video": video, "second": index * 40 + 38 + at, "text": f"A hook, {DONE[index]}."}) + "\n"
            for at, video in enumerate(("VID01", "VID02", "VID68"))
            for index in range(len(DONE))
        )
    )
    config = settings(
        sap,
        tiny("qwen2_5_vl"),
        data__tasks="[rank, recognise, caption]",
        data__frames=frames,
        data__captions=captions,
        planner__form="direct",
        planner__memory="labels_and_near",
        planner__context_tokens=8192,
        planner__max_pixels=12544,
        optimiser__epochs=2,
    )
    record = train(config, tmp_path / "adapter", say=lambda _: None)
    assert set(record["data"]["examples"]) == {"rank", "recognise", "caption"}
    assert np.mean(record["losses"][-2:]) < np.mean(record["losses"][:2])
    adapted = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["target_modules"]
    assert adapted and not any("visual" in name for name in adapted)
    taught = [example for example in teaching(config).examples if example.task == "rank"][:3]
    base, before, with_it, after = answers(config, tmp_path / "adapter", taught)
    np.testing.assert_array_equal(base, before)
    np.testing.assert_array_equal(base, after)
    assert not np.allclose(base, with_it, atol=0.1)


def test_a_whole_plan_can_be_taught(tiny: Tiny, sap: Path, tmp_path: Path) -> None:
    config = settings(sap, tiny("qwen2"), data__tasks="[plan]", optimiser__max_steps=6, data__validation=0)
    record = train(config, tmp_path / "adapter", say=lambda _: None)
    assert record["data"]["examples"] == {"plan": 12} and record["losses"][-1] < record["losses"][0]


def test_the_folder_holds_what_every_backend_takes(tiny: Tiny, sap: Path, tmp_path: Path) -> None:
    out = tmp_path / "adapter"
    config = settings(sap, tiny("qwen2"), optimiser__max_steps=2, data__validation=0)
    record = train(config, out, say=lambda _: None)
    names = {"adapter_model.safetensors", "adapter_config.json", "training.yaml", "record.json", "README.md", MANIFEST}
    assert {path.name for path in out.iterdir()} == names, "and no pickle"
    assert adapter_directory(out) == out.resolve()
    checked = subprocess.run(["sha256sum", "-c", "--quiet", MANIFEST], cwd=out, capture_output=True, check=False)
    assert checked.returncode == 0
    card = (out / "README.md").read_text()
    assert "planner.question=plain" in card and "planner.knowledge=none" in card
    assert "CC BY-NC-SA 4.0" in card and "None of the 15 test videos" in card and "VID68" in card
    assert TrainingConfig.model_validate(yaml.safe_load((out / "training.yaml").read_text())) == config
    assert str(tmp_path) not in (out / "adapter_config.json").read_text(), "no path of this machine"
    assert record["config_digest"] == config.digest()
    assert record["digest"] == digest_of("adapter", model_files(out)), "the name that plans and `models list` give it"
    with pytest.raises(ConfigError, match="holds something already"):
        train(config, out, say=lambda _: None)


def test_the_same_seed_gives_the_same_bytes(tiny: Tiny, sap: Path, tmp_path: Path) -> None:
    digests = set()
    for out in (tmp_path / "a", tmp_path / "b"):
        config = settings(sap, tiny("qwen2"), optimiser__max_steps=2, data__validation=0, lora__dropout=0.1)
        train(config, out, say=lambda _: None)
        digests.add((out / "adapter_model.safetensors").read_bytes())
    assert len(digests) == 1


def test_a_killed_training_goes_on_and_ends_where_an_undisturbed_one_does(
    tiny: Tiny, sap: Path, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    config = settings(sap, tiny("qwen2"), stopping__every_steps=3, optimiser__max_steps=12, lora__dropout=0.1)
    preset = tmp_path / "preset.yaml"
    preset.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    command = [sys.executable, "run_agent.py", "train", "sft", "--config", str(preset), "--out", str(cut)]
    checkpoints = cut.with_name("cut.checkpoints")
    child = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    try:
        eventually(lambda: last_checkpoint(checkpoints), timeout_s=240.0)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert not cut.exists(), "an adapter is there whole or not at all"
    (checkpoints / "checkpoint-99").mkdir()  # the kill came while one was written
    lines: list[str] = []
    torch.set_num_threads(1)
    went_on = train(config, cut, say=lines.append)
    undisturbed = train(config, whole, say=lambda _: None)
    assert any(line.startswith("going on from") for line in lines)
    assert went_on["steps"] == undisturbed["steps"] == 12 and went_on["losses"] == undisturbed["losses"]
    assert (cut / "adapter_model.safetensors").read_bytes() == (whole / "adapter_model.safetensors").read_bytes()
    assert not checkpoints.exists()


def test_ctrl_c_ends_a_training_with_the_best_step_so_far(tiny: Tiny, sap: Path, tmp_path: Path) -> None:
    config = settings(sap, tiny("qwen2"), stopping__every_steps=2, optimiser__max_steps=40)

    def interrupt(line: str) -> None:
        if line.startswith("epoch") and "step 4:" in line:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    record = train(config, tmp_path / "adapter", say=interrupt)
    assert record["ended_early"] and 4 <= record["steps"] <= 6 and record["kept_step"] in (2, 4, 6)
    assert adapter_directory(tmp_path / "adapter") and signal.getsignal(signal.SIGINT) is before


def test_checkpoints_of_another_configuration_are_not_gone_on_from(tiny: Tiny, sap: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "adapter.checkpoints" / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text("{}")
    (checkpoint.parent / "training.json").write_text("{}")
    with pytest.raises(ConfigError, match="checkpoints of another configuration"):
        train(settings(sap, tiny("qwen2")), tmp_path / "adapter", say=lambda _: None)


def test_one_row_has_the_loss_and_the_gradient_of_the_examples_side_by_side(tiny: Tiny, sap: Path) -> None:
    """And both have those of transformers' own loss over each example alone."""
    config = settings(sap, tiny("qwen2"), data__orders=4, data__validation=0)
    lesson = teaching(config)
    base = load_base(config)
    model = with_adapter(base, config.lora)
    for name, part in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(part, std=0.05)

    class Bare:
        def __init__(self) -> None:
            self._metrics: dict[str, dict[str, list[float]]] = {
                mode: {"mean_token_accuracy": []} for mode in ("train", "eval")
            }

    loss_of = answer_trainer(Bare)()
    measured = []
    for shared in (False, True):
        batches = Batches(base, lesson.examples[:8], longest=4096, shared=shared, group=4)
        batch = batches(batches.groups)
        model.zero_grad()
        loss = loss_of.compute_loss(model, dict(batch))
        loss.backward()
        gradient = {name: part.grad.clone() for name, part in model.named_parameters() if part.grad is not None}
        measured.append((loss.item(), gradient, batch["input_ids"].numel()))
    side, row = measured
    assert row[2] < 0.5 * side[2], "fewer tokens"
    assert row[0] == pytest.approx(side[0], rel=1e-4)
    for name, gradient in side[1].items():
        torch.testing.assert_close(row[1][name], gradient, atol=1e-4, rtol=1e-3)
    batches = Batches(base, lesson.examples[:8], longest=4096)
    alone = [batches([group]) for group in batches.groups]
    with torch.no_grad():
        own = [model(**{**one, "use_cache": False}).loss.item() for one in alone]
    assert np.mean(own) == pytest.approx(side[0], rel=1e-4)


def test_an_adapter_of_another_model_is_refused_and_not_half_used(tiny: Tiny, sap: Path, tmp_path: Path) -> None:
    """What finds no place in a model of one layer less is only logged by transformers, which goes on."""
    train(
        settings(sap, tiny("qwen2"), optimiser__max_steps=1, data__validation=0),
        tmp_path / "adapter",
        say=lambda _: None,
    )
    smaller = tiny_models.build("qwen2", tmp_path / "smaller", hidden_layers=1)
    config = BackendConfig.model_validate(
        {"kind": "transformers", "model": smaller, "device": "cpu", "adapters": {"taught": tmp_path / "adapter"}}
    )
    with pytest.raises(ConfigError, match="name an adapter of this very model"):
        asyncio.run(TransformersBackend(config).start())


def test_only_the_last_layers_are_adapted_where_that_is_wanted(tiny: Tiny, sap: Path) -> None:
    config = settings(sap, tiny("qwen2"), lora__last_layers=1)
    model = with_adapter(load_base(config), config.lora)
    trained = [name for name, part in model.named_parameters() if part.requires_grad]
    assert trained and all(".layers.1." in name for name in trained)


def test_training_goes_on_with_an_adapter(tiny: Tiny, sap: Path, tmp_path: Path) -> None:
    first = settings(sap, tiny("qwen2"), optimiser__max_steps=4, data__validation=0)
    told: list[str] = []
    train(first, tmp_path / "first", say=told.append)
    assert any(re.fullmatch(r"epoch \d\.\d\d step \d: loss \d\.\d+", line) for line in told), "nothing is validated"
    second = settings(
        sap, tiny("qwen2"), optimiser__max_steps=2, data__validation=0, lora__start_from=tmp_path / "first"
    )
    record = train(second, tmp_path / "second", say=lambda _: None)
    assert record["losses"][0] < json.loads((tmp_path / "first" / "record.json").read_text())["losses"][0]
    left_out = settings(
        sap, tiny("qwen2"), data__validation=0, data__exclude="[VID01]", lora__start_from=tmp_path / "first"
    )
    more = train(left_out.model_copy(update={"optimiser": second.optimiser}), tmp_path / "third", say=lambda _: None)
    assert "VID01" not in more["data"]["fitted_on"] and "VID01" in fitted_on(tmp_path / "third"), (
        "its start has seen it"
    )
    with pytest.raises(ConfigError, match="is held out here"):
        train(settings(sap, tiny("qwen2"), lora__start_from=tmp_path / "first"), tmp_path / "fourth")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"lora__quantised": "true"}, "lora.quantised=true needs a CUDA GPU"),
        ({"lora__last_layers": 9}, "lora.last_layers=9 is more than the model's 2"),
        ({"lora__start_from": "/nowhere"}, "/nowhere has no record.json that tells its videos"),
        ({"planner__context_tokens": 256, "planner__knowledge": "full"}, "planner.context_tokens=256 is less"),
        ({"planner__model": "/nowhere"}, "is no local directory"),
        ({"planner__digest": "0" * 12}, "the configuration expects 000000000000"),
        ({"data__tasks": "[recognise]"}, "no sample has what they need"),
        ({"data__exclude": "[VID73, VID99]"}, "VID99: not in"),
    ],
)
def test_what_cannot_be_trained_is_said_in_one_line(
    tiny: Tiny, sap: Path, tmp_path: Path, more: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as told:
        train(settings(sap, tiny("qwen2"), **more), tmp_path / "adapter", say=lambda _: None)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "adapter").exists()


def test_the_command_says_what_is_wrong_without_a_trace(
    tiny: Tiny, sap: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset = str(configs_directory() / "train_lora.yaml")
    for arguments, said in (
        ((), "data.sap is unset"),
        ((f"data.sap={sap}",), "planner.model is unset"),
        ((f"data.sap={sap}", f"planner.model={tiny('qwen2')}"), "shows frames; set data.frames=DIR"),
        (("optimiser.epoch=3",), "optimiser.epoch is not a known key; remove or correct it; did you mean epochs?"),
        (("optimiser.batch=8", "optimiser.at_once=3"), "does not divide optimiser.batch=8"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["train", "sft", "--config", preset, "--out", str(tmp_path / "x"), *arguments])
        told = capsys.readouterr().err
        assert ended.value.code == 2 and said in told and "Traceback" not in told


def test_frames_are_refused_where_a_batch_is_one_row(tiny: Tiny, sap: Path, frames: Path, tmp_path: Path) -> None:
    config = settings(
        sap,
        tiny("qwen2_5_vl"),
        data__frames=frames,
        planner__form="direct",
        planner__memory="labels_and_near",
        planner__context_tokens=8192,
        optimiser__shared_beginnings="true",
    )
    with pytest.raises(ConfigError, match="shared_beginnings=true is for text alone"):
        train(config, tmp_path / "adapter", say=lambda _: None)
    shutil.rmtree(tmp_path / "adapter.checkpoints", ignore_errors=True)
