"""Pairs for preference training (DPO, Rafailov et al., arXiv:2305.18290), built without anybody's judgement; pure.

    example ─▶ its answer, if right and allowed ──────────────────────────▶ chosen
            └▶ the same prompt answered otherwise: breaks a rule, or is wrong ─▶ rejected, at most `per_sample` of them

The rejected ones are those that matter most: first what breaks a rule of the pack, then what a teacher wrote and was refused,
then the actions that the pack's label model holds likeliest, which are the tempting mistakes. Every pair differs in its reward
(`rewards.py`), so the training signal and the verifiers of run time cannot disagree. A sample whose truth breaks a rule makes none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pydantic import Field, model_validator

from stream_agent.config import Section
from stream_agent.procedure import ProcedurePack
from stream_agent.prompts import CODES
from stream_agent.training.config import TrainingConfig
from stream_agent.training.data import Example, Task, plan_answer, require_training_only
from stream_agent.training.distill import Response
from stream_agent.training.rewards import AnswerForm, RewardConfig, Situation, broken_rules, objections, reward


class PreferenceConfig(Section):
    """Which pairs are built, and how hard they pull."""

    per_sample: int = Field(default=2, ge=1, le=16, description="Rejected responses per example at most.")
    responses: Path | None = Field(
        default=None, description="responses.jsonl of `train distill`: what a teacher wrote, right and wrong."
    )
    loss: Literal["sigmoid", "ipo"] = Field(default="sigmoid", description="DPO's own, or IPO's (arXiv:2310.12036).")
    beta: float = Field(default=0.1, gt=0, le=10, description="How dear it is to leave the reference.")


class PreferenceTraining(TrainingConfig):
    """The configuration of `train dpo`."""

    preference: PreferenceConfig = PreferenceConfig()
    rewards: RewardConfig = RewardConfig()

    @model_validator(mode="after")
    def _asks_what_has_a_reward(self) -> PreferenceTraining:
        require_rewarded(self.data.tasks)
        return self


def require_rewarded(tasks: Iterable[Task]) -> None:
    """Make sure that every task has a reward.

    Raises:
        ValueError: One has none.
    """
    if other := [task for task in tasks if task not in get_args(AnswerForm)]:
        raise ValueError(
            f"data.tasks={other}: only rank and plan have a reward; set data.tasks=[rank], or teach the others by `train sft`"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """One prompt with two responses.

    Attributes:
        example: Its prompt is what is asked.
        chosen: Right, and breaks no rule.
        rejected: Worth less.
        why: `label`, or the rule that it breaks.
    """

    example: Example
    chosen: str
    rejected: str
    why: str


def situation_of(example: Example, pack: ProcedurePack) -> Situation:
    """What responses to a `rank` or `plan` example are judged by.

    Raises:
        ValueError: It is of another task.
    """
    form: AnswerForm
    match example.task:
        case "rank" | "plan" as form:
            return Situation(
                form=form,
                choices=example.choices,
                target=example.target,
                following=example.following or "",
                broken=broken_rules(pack, example.memory, example.choices),
                current=example.memory.current,
            )
    raise ValueError(f"task={example.task} has no reward; give examples of rank or plan")


def pairs(
    made: Sequence[Example],
    pack: ProcedurePack,
    config: PreferenceConfig,
    rewards: RewardConfig,
    *,
    written: Iterable[Response] = (),
) -> tuple[list[Pair], Counter[str]]:
    """Pairs of all examples in their order, and how many examples made none, by reason.

    Args:
        made: Of training videos, of `rank` or `plan`.
        pack: Whose rules count.
        config: How many.
        rewards: A pair's two sides must differ by it.
        written: Answers of a teacher to the same samples; those refused are rejected first, those kept are chosen.

    Raises:
        ConfigError: An example or an answer is of a test video.
    """
    written = list(written)
    require_training_only([*(example.video for example in made), *(row.video for row in written)])
    found: list[Pair] = []
    none: Counter[str] = Counter()
    for example in made:
        asked = situation_of(example, pack)
        own = [row for row in written if row.task == example.task and (row.video, row.index) == _key(example)]
        chosen = next((row.text for row in own if row.kept), example.answer)
        if against := objections(chosen, asked):
            none[against[0]] += 1
            continue
        worth = reward(chosen, asked, rewards).total
        refused = [row.text for row in own if not row.kept and objections(row.text, asked) not in ((), ("format",))]
        candidates = dict.fromkeys([*refused, *_otherwise(example, asked, pack)])
        worse = [text for text in candidates if reward(text, asked, rewards).total < worth]
        worse.sort(key=lambda text: not _breaks(text, asked))  # stable: what breaks a rule first
        if not worse:
            none["nothing is worse"] += 1
        found += [Pair(example, chosen, text, _why(text, asked)) for text in worse[: config.per_sample]]
    return found, none


def _otherwise(example: Example, asked: Situation, pack: ProcedurePack) -> list[str]:
    """The example answered with each other choice first, the most tempting one first."""
    likely = pack.next_action_probabilities(example.memory.labels)
    others = [name for name in asked.choices if name not in (example.target, asked.current)]
    others.sort(key=lambda name: -likely.get(name, 0.0))
    if asked.form == "rank":
        return [CODES[asked.choices.index(name)] for name in others]
    return [plan_answer(pack, example.memory, name) for name in others]


def _breaks(text: str, asked: Situation) -> bool:
    return any(reason not in ("format", "label") for reason in objections(text, asked))


def _why(text: str, asked: Situation) -> str:
    against = objections(text, asked)
    return next((reason for reason in against if reason not in ("format", "label")), (*against, "reward")[0])


def _key(example: Example) -> tuple[str, int]:
    return example.video, example.index
