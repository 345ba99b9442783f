"""Preference training on tiny random models: the margin grows, the agent's own backend answers otherwise, a killed run goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stream_agent.config import load_tree
from stream_agent.errors import ConfigError
from stream_agent.training.preference import PreferenceTraining
from tests.training.made_up import code_scores, tiny_training

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from stream_agent.training import dpo  # noqa: E402
from stream_agent.training.checkpoints import SUFFIX  # noqa: E402
from stream_agent.training.preference import situation_of  # noqa: E402
from stream_agent.training.rewards import ranked_by  # noqa: E402
from stream_agent.training.teaching import teaching  # noqa: E402
from tests.planner.backends import tiny_models  # noqa: E402

# The libraries warn of each other's names, and torch of its own parts when they are imported.
pytestmark = [
    pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning", "default::UserWarning"),
]


OWN = {"optimiser.max_steps": 8, "stopping.every_steps": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("qwen2", tmp_path_factory.mktemp("models") / "tiny")


def configured(folder: Path, model: Path, **over: Any) -> PreferenceTraining:
    return load_tree(PreferenceTraining, None, tiny_training(folder, model, OWN, over))


@pytest.fixture(scope="module")
def learnt(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[str]]:
    folder, said = tmp_path_factory.mktemp("learnt"), list[str]()
    record = dpo.train(configured(folder, model), folder / "first", say=said.append)
    return folder / "first", record, said


def test_pairs_are_learnt_and_the_backend_then_answers_otherwise(
    model: Path, learnt: tuple[Path, dict[str, Any], list[str]], tmp_path: Path
) -> None:
    folder, record, said = learnt
    assert record["losses"][0] == pytest.approx(np.log(2), abs=1e-3), "at first the policy is its own reference"
    assert np.mean(record["losses"][-3:]) < 0.9 * record["losses"][0]
    assert record["figures"]["rewards/margins"][-1] > 0
    assert any("pairs to fit" in line for line in said)
    lesson = teaching(configured(tmp_path, model))
    scores = code_scores(model, {"dpo": folder}, lesson.examples)
    places = [example.choices.index(example.target) for example in lesson.examples]
    gained = [
        (scores["dpo"][row, place] - np.delete(scores["dpo"][row], place).mean())
        - (scores[""][row, place] - np.delete(scores[""][row], place).mean())
        for row, place in enumerate(places)
    ]
    assert np.mean(gained) > 0.1, "what was chosen gains on what was not"
    assert (scores["dpo"].argmax(1) != scores[""].argmax(1)).any(), "an answer has changed"


def test_the_reference_is_the_adapter_that_it_began_with(
    model: Path, learnt: tuple[Path, dict[str, Any], list[str]], tmp_path: Path
) -> None:
    """The loss begins at log 2 only where policy and reference agree; against the bare base it would not."""
    folder, _, _ = learnt
    again = configured(tmp_path, model, lora__start_from=folder, optimiser__max_steps=1)
    record = dpo.train(again, tmp_path / "second", say=lambda _line: None)
    assert record["losses"][0] == pytest.approx(np.log(2), abs=1e-3)
    assert record["began_with"] == {"adapter": "first", "fitted_on": ["VID01", "VID02", "VID04"]}
    assert sorted(path.name for path in (tmp_path / "second").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.sha256",
        "record.json",
        "training.yaml",
    ], "the frozen reference is not saved beside it"


def test_a_killed_run_goes_on_from_its_checkpoint(
    model: Path,
    learnt: tuple[Path, dict[str, Any], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopped hard between two checkpoints, it takes the steps that are missing, and gives what an undisturbed run gives."""
    _, whole, _ = learnt

    class KilledError(Exception):
        pass

    def kill(self: Any, *given: Any, **named: Any) -> Any:
        if self.state.global_step == 6:
            raise KilledError
        return step(self, *given, **named)

    step = dpo._Trainer.training_step
    with monkeypatch.context() as patched, pytest.raises(KilledError):
        patched.setattr(dpo._Trainer, "training_step", kill)
        dpo.train(configured(tmp_path, model), tmp_path / "cut", say=lambda _line: None)
    assert (tmp_path / f"cut{SUFFIX}" / "checkpoint-4").is_dir()
    assert not (tmp_path / "cut").exists()
    said: list[str] = []
    cut = dpo.train(configured(tmp_path, model), tmp_path / "cut", say=said.append)
    assert any("going on from" in line and "checkpoint-4" in line for line in said)
    assert cut["losses"] == pytest.approx(whole["losses"], abs=1e-4)
    assert not (tmp_path / f"cut{SUFFIX}").exists()


def test_the_best_step_by_validation_videos_is_kept(model: Path, tmp_path: Path) -> None:
    config = configured(tmp_path, model, data__validation=0.34, stopping__every_steps=2, optimiser__max_steps=6)
    record = dpo.train(config, tmp_path / "adapter", say=lambda _line: None)
    losses = {entry["step"]: entry["loss"] for entry in record["validations"]}
    assert set(losses) == {2, 4, 6}
    assert losses[record["kept_step"]] == min(losses.values())
    assert not set(record["data"]["fitted_on"]) & set(record["data"]["chosen_by"])


def test_what_the_start_was_fitted_on_cannot_be_held_out(
    model: Path, learnt: tuple[Path, dict[str, Any], list[str]], tmp_path: Path
) -> None:
    config = configured(tmp_path, model, data__validation=0.34, lora__start_from=learnt[0])
    with pytest.raises(ConfigError, match=r"was fitted on VID0., which is held out here"):
        dpo.train(config, tmp_path / "second")


def test_a_start_that_saw_a_test_video_is_refused(
    model: Path, learnt: tuple[Path, dict[str, Any], list[str]], tmp_path: Path
) -> None:
    start = shutil.copytree(learnt[0], tmp_path / "start")
    told = json.loads((start / "record.json").read_text())
    told["data"]["fitted_on"].append("VID73")
    (start / "record.json").write_text(json.dumps(told))
    with pytest.raises(ConfigError, match="VID73"):
        dpo.train(configured(tmp_path, model, lora__start_from=start), tmp_path / "second")


def test_frames_are_shown_to_a_model_that_sees(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    import cv2

    seeing = tiny_models.build("qwen2_5_vl", tmp_path_factory.mktemp("models") / "eyes")
    draw = np.random.default_rng(0)
    for video in ("VID01", "VID02", "VID04"):
        (tmp_path / "frames" / video).mkdir(parents=True)
        for second in range(500):
            if second % 90 < 7 or second % 90 > 80:
                pixels = draw.integers(0, 255, (56, 84, 3), dtype=np.uint8)
                cv2.imwrite(str(tmp_path / "frames" / video / f"{second:06d}.png"), pixels)
    config = configured(
        tmp_path,
        seeing,
        planner__form="direct",
        planner__memory="labels_and_near",
        data__frames=tmp_path / "frames",
        optimiser__max_steps=4,
        planner__max_pixels=3136,
    )
    record = dpo.train(config, tmp_path / "adapter", say=lambda _line: None)
    assert record["losses"][-1] < record["losses"][0]


def test_tasks_without_a_reward_are_refused_in_the_configuration(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"only rank and plan have a reward"):
        configured(tmp_path, model, data__tasks="[rank, caption]")


def test_pairs_rank_what_they_say(model: Path, tmp_path: Path) -> None:
    """The encoded answer is the token that the rank lane scores, with the end of the turn behind it."""
    lesson = teaching(configured(tmp_path, model))
    for example in lesson.examples:
        assert ranked_by(example.answer, "rank", situation_of(example, lesson.pack).choices) == (example.target,)


def test_the_preset_loads_with_what_a_user_adds(tmp_path: Path) -> None:
    given = ["data.sap=x", "planner.model=m", "planner.form=indirect", "planner.memory=labels_only"]
    config = load_tree(PreferenceTraining, Path("train_dpo.yaml"), given)
    assert set(config.data.tasks) <= {"rank", "plan"}
