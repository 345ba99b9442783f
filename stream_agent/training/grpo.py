"""Group relative policy optimisation: `run_agent.py train grpo`, the recipe of VLA-World on DeepSeekMath's algorithm.

    prompt ─▶ a group of 8 answers, sampled ─▶ rewards (`rewards.py`) ─▶ advantages within the group ─▶ policy step
                                                                          KL 1e-2 to the adapter it began with

TRL trains. Ours are the prompts (encoded as at run time), the rewards, and two departures, both in `group_trainer.py`: groups of
equal rewards are skipped altogether, their KL included; and where only codes are asked for, a prompt is computed once per group.

Frames are not shown: TRL's sampling renders pictures itself and would train on other tokens than the lanes ask with. So the direct
form is refused; what is trained reads label histories, or captions in the indirect form.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import Field, model_validator

from stream_agent.config import Section
from stream_agent.errors import ConfigError
from stream_agent.training.config import OptimiserConfig, TrainingConfig
from stream_agent.training.preference import require_rewarded, situation_of
from stream_agent.training.rewards import RewardConfig
from stream_agent.training.teaching import teaching

if TYPE_CHECKING:
    from stream_agent.training.data import Example

_FIGURES: Final = ("reward", "reward_std", "frac_reward_zero_std", "kl", "entropy", "grad_norm")


class GroupConfig(Section):
    """How answers are sampled and how far the policy may move."""

    size: int = Field(default=8, ge=2, le=64, description="Answers per prompt.")
    kl: float = Field(default=0.01, ge=0, le=10, description="Weight of the divergence from where training began.")
    clip: float = Field(default=0.2, gt=0, lt=1, description="The policy's ratio is clipped to 1 ± this.")
    temperature: float = Field(default=1.0, gt=0, le=10, description="Of the sampling.")
    plan_tokens: int = Field(default=400, ge=32, le=4096, description="Longest written plan; a code is one token.")


class GroupTraining(TrainingConfig):
    """The configuration of `train grpo`; the learning rate is the recipe's."""

    optimiser: OptimiserConfig = OptimiserConfig(learning_rate=1e-6, epochs=1, schedule="constant", warmup=0)
    group: GroupConfig = GroupConfig()
    rewards: RewardConfig = RewardConfig()

    @model_validator(mode="after")
    def _asks_what_can_be_sampled(self) -> GroupTraining:
        require_rewarded(self.data.tasks)
        if self.planner.form == "direct" and self.planner.memory != "labels_only":
            raise ValueError(
                f"planner.form=direct with planner.memory={self.planner.memory} shows frames, which GRPO does not sample with; "
                "set planner.form=indirect or planner.memory=labels_only"
            )
        return self


def train(config: GroupTraining, out: Path, *, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Train as configured and write the adapter to `out`; its record.

    Raises:
        ConfigError: Something is missing or wrong, a test video would be trained on, or `out` is taken.
    """
    from stream_agent.training.checkpoints import checkpoints_beside
    from stream_agent.training.group_trainer import group_trainer
    from stream_agent.training.lora import require_free
    from stream_agent.training.tuning import begin, require_unseen, run

    require_free(out)
    lesson = teaching(config)
    require_unseen(config, lesson)
    situations = [situation_of(example, lesson.pack) for example in lesson.examples]
    base, model = begin(config)
    prompts = [_encoded(base, example, config) for example in lesson.examples]
    say(
        f"{len(prompts)} prompts of {len({e.video for e in lesson.examples})} training videos, {config.group.size} answers each"
    )
    trainer = group_trainer(
        config,
        model,
        base,
        prompts,
        situations,
        checkpoints_beside(out, config),
        one_token=set(config.data.tasks) == {"rank"},
    )
    return run(
        trainer,
        config,
        out,
        method="grpo",
        title="Group relative policy optimisation",
        lesson=lesson,
        base=base,
        figures=_FIGURES,
        say=say,
    )


def _encoded(base: Any, example: Example, config: GroupTraining) -> tuple[int, ...]:
    """The prompt's tokens, as the lanes ask with.

    Raises:
        ConfigError: They are too many.
    """
    ids: tuple[int, ...] = base.encode(example.prompt).ids
    answer = config.group.plan_tokens if example.task == "plan" else 1
    if len(ids) + answer > config.planner.context_tokens:
        raise ConfigError(
            f"{example.video} clip {example.index} has {len(ids)} tokens, with {answer} of an answer more than "
            f"planner.context_tokens={config.planner.context_tokens}; raise it or choose planner.knowledge=short"
        )
    return ids
