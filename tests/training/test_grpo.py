"""Reinforcement on tiny random models: the truth gains, groups are TRL's own arithmetic, equal ones are skipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stream_agent.config import load_tree
from stream_agent.errors import ConfigError
from stream_agent.training.grpo import GroupTraining
from tests.training.made_up import code_scores, tiny_training

torch = pytest.importorskip("torch")
trl = pytest.importorskip("trl")

from stream_agent.training import group_trainer, grpo, sft, tuning  # noqa: E402
from stream_agent.training.checkpoints import SUFFIX  # noqa: E402
from stream_agent.training.config import load_training  # noqa: E402
from stream_agent.training.preference import situation_of  # noqa: E402
from stream_agent.training.rewards import group_advantages, reward  # noqa: E402
from stream_agent.training.teaching import teaching  # noqa: E402
from tests.planner.backends import tiny_models  # noqa: E402

# The libraries warn of each other's names, and torch of its own parts when they are imported.
pytestmark = [
    pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning", "default::UserWarning"),
]


OWN = {"stopping.every_steps": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("qwen2", tmp_path_factory.mktemp("models") / "tiny")


def overrides(folder: Path, model: Path, **over: Any) -> list[str]:
    return tiny_training(folder, model, OWN, over)


def configured(folder: Path, model: Path, **over: Any) -> GroupTraining:
    return load_tree(GroupTraining, None, overrides(folder, model, **({"optimiser__max_steps": 8} | over)))


@pytest.fixture(scope="module")
def start(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fine-tuned a little: it answers with codes, seldom with the right one."""
    folder = tmp_path_factory.mktemp("sft")
    given = overrides(folder, model, optimiser__max_steps=12, stopping__every_steps=100, optimiser__learning_rate=0.002)
    sft.train(load_training(None, given), folder / "adapter", say=lambda _line: None)
    return folder / "adapter"


@pytest.fixture(scope="module")
def learnt(model: Path, start: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("grpo")
    record = grpo.train(configured(folder, model, lora__start_from=start), folder / "adapter", say=lambda _line: None)
    return folder / "adapter", record


def test_the_truth_gains_and_the_backend_then_answers_otherwise(
    model: Path, start: Path, learnt: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, record = learnt
    lesson = teaching(configured(tmp_path, model))
    scores = code_scores(model, {"sft": start, "grpo": folder}, lesson.examples)
    truth = [example.choices.index(example.target) for example in lesson.examples]
    before, after = (np.exp(scores[name])[np.arange(len(truth)), truth].mean() for name in ("sft", "grpo"))
    assert after > before + 0.05, "the truth's own probability has grown"
    assert (scores["grpo"].argmax(1) != scores["sft"].argmax(1)).any()
    rewards = record["figures"]["reward"]
    assert len(rewards) == record["steps"] == 8
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3])
    assert min(record["figures"]["frac_reward_zero_std"]) < 1, "some groups had something to learn from"


def test_a_killed_run_goes_on_from_its_checkpoint(
    model: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    def kill(self: Any, *given: Any, **named: Any) -> Any:
        if self.state.global_step == 6:
            raise KilledError
        return step(self, *given, **named)

    config = configured(tmp_path, model, lora__start_from=start, optimiser__at_once=2, optimiser__checkpointing=True)
    step = group_trainer.GroupTrainer.training_step
    with monkeypatch.context() as patched, pytest.raises(KilledError):
        patched.setattr(group_trainer.GroupTrainer, "training_step", kill)
        grpo.train(config, tmp_path / "cut", say=lambda _line: None)
    assert (tmp_path / f"cut{SUFFIX}" / "checkpoint-4").is_dir()
    said: list[str] = []
    record = grpo.train(config, tmp_path / "cut", say=said.append)
    assert any("going on from" in line and "checkpoint-4" in line for line in said)
    assert record["steps"] == 8
    assert len(record["figures"]["reward"]) == 8


def _trainer(config: GroupTraining, folder: Path, *, one_token: bool) -> Any:
    lesson = teaching(config)
    base, adapted = tuning.begin(config)
    prompts = [base.encode(example.prompt).ids for example in lesson.examples]
    situations = [situation_of(example, lesson.pack) for example in lesson.examples]
    return group_trainer.group_trainer(
        config, adapted, base, prompts, situations, folder / "checkpoints", one_token=one_token
    )


def test_one_pass_per_prompt_gives_what_a_pass_per_answer_gives(model: Path, start: Path, tmp_path: Path) -> None:
    """Log-probabilities, entropies and gradients, against TRL's own method on the same padded batch."""
    trainer = _trainer(configured(tmp_path, model, lora__start_from=start), tmp_path, one_token=True)
    prompts = [list(ids) for ids in trainer._prompts[:2]]
    prompts[1] = prompts[1][7:]  # of another length
    width = max(map(len, prompts))
    rows = [prompts[0]] * 3 + [prompts[1]] * 2 + [prompts[0]]
    ids = torch.tensor([[0] * (width - len(row)) + row + [token] for token, row in enumerate(rows, start=30)])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * (len(row) + 1) for row in rows])
    found = {}
    for name, kind in (("ours", group_trainer.GroupTrainer), ("theirs", trl.GRPOTrainer)):
        logps, entropy, _ = kind._get_per_token_logps_and_entropies(
            trainer, trainer.model, ids, mask, 1, compute_entropy=True
        )
        trainer.model.zero_grad()
        (logps * torch.arange(1, 7)[:, None]).sum().backward()
        gradients = [part.grad.clone() for part in trainer.model.parameters() if part.grad is not None]
        assert entropy is not None
        found[name] = (logps.detach(), entropy.detach(), *gradients)
    assert len(found["ours"]) > 4
    for ours, theirs in zip(found["ours"], found["theirs"], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_advantages_are_those_of_the_rewards_and_equal_groups_are_skipped(
    model: Path, start: Path, tmp_path: Path
) -> None:
    config = configured(tmp_path, model, lora__start_from=start)
    trainer = _trainer(config, tmp_path, one_token=True)
    lesson = teaching(config)
    size = config.group.size
    inputs: list[dict[str, Any]] = [
        {"prompt": str(number), "number": number} for number in range(3) for _ in range(size)
    ]
    trainer.model.train()
    scored = trainer._generate_and_score_completions(inputs)
    texts = trainer.processing_class.batch_decode(scored["completion_ids"], skip_special_tokens=True)
    totals = np.array(
        [
            reward(text, situation_of(lesson.examples[row["number"]], lesson.pack), config.rewards).total
            for text, row in zip(texts, inputs, strict=True)
        ]
    ).reshape(3, size)
    wanted = group_advantages(totals)
    np.testing.assert_allclose(scored["advantages"].reshape(3, size).numpy(), wanted, atol=2e-3)
    moves = wanted.any(1)
    assert (scored["completion_mask"].reshape(3, size).numpy().any(1) == moves).all()
    assert (trainer.seen, trainer.skipped) == (3, int((~moves).sum()))
    # Told to find all answers alike, nothing is learnt, nor pulled to the reference.
    trainer.reward_funcs = [lambda completions, **_: [1.0] * len(completions)]
    scored = trainer._generate_and_score_completions(inputs)
    assert not scored["completion_mask"].any()
    trainer.current_gradient_accumulation_steps = 1
    assert trainer._compute_loss(trainer.model, scored).item() == 0
    assert trainer.skipped == 3 + int((~moves).sum())


def test_written_plans_are_sampled_token_by_token(model: Path, start: Path, tmp_path: Path) -> None:
    """No plan of a random model is one: every reward is that of nonsense, every group is skipped, and it says so.

    One prompt at a time in memory, activations computed twice: as the preset has it.
    """
    config = configured(
        tmp_path,
        model,
        lora__start_from=start,
        data__tasks="[plan]",
        group__plan_tokens=32,
        group__size=2,
        optimiser__max_steps=1,
        optimiser__batch=2,
        optimiser__at_once=1,
        optimiser__checkpointing=True,
    )
    record = grpo.train(config, tmp_path / "adapter", say=lambda _line: None)
    assert record["figures"]["reward"] == [0.0]
    assert record["figures"]["frac_reward_zero_std"] == [1.0]


def test_the_recipe_is_the_default(tmp_path: Path) -> None:
    config = load_tree(
        GroupTraining, None, ["data.sap=x", "planner.model=m", "planner.memory=labels_only", "data.tasks=[rank]"]
    )
    assert (config.group.size, config.group.kl, config.optimiser.learning_rate) == (8, 0.01, 1e-6)


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (
            {"planner__form": "direct", "planner__memory": "labels_and_near", "data__frames": "x"},
            "shows frames, which GRPO",
        ),
        ({"data__tasks": "[rank, recognise]"}, "only rank and plan have a reward"),
        ({"rewards__rank": 0, "rewards__relaxed": 0}, "the truth would not matter"),
        ({"group__size": 1}, "group.size=1"),
    ],
)
def test_what_cannot_be_is_refused_in_the_configuration(
    model: Path, tmp_path: Path, over: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        configured(tmp_path, model, **over)


def test_the_preset_loads_with_what_a_user_adds(tmp_path: Path) -> None:
    given = ["data.sap=x", "planner.model=m", "planner.form=indirect", "planner.memory=labels_only"]
    config = load_tree(GroupTraining, Path("train_grpo.yaml"), given)
    assert set(config.data.tasks) <= {"rank", "plan"}
