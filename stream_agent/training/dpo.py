"""Direct preference optimisation: `run_agent.py train dpo`. TRL trains; pairs, encoding and what is saved are ours.

    teaching ─▶ pairs (`preference.py`) ─▶ Sides (the backend's own encoding) ─▶ DPOTrainer + peft ─▶ adapter folder

The reference is the adapter that `lora.start_from` names, as fine-tuning left it, or the base model without one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import trl

from stream_agent.errors import ConfigError
from stream_agent.planner.backends.causal import CausalModel
from stream_agent.training.checkpoints import checkpoints_beside
from stream_agent.training.distill import read_responses
from stream_agent.training.lora import IGNORED, Batches, require_free
from stream_agent.training.preference import Pair, PreferenceTraining, pairs
from stream_agent.training.teaching import teaching
from stream_agent.training.tuning import begin, require_unseen, run, settings, validated

_FIGURES = ("rewards/accuracies", "rewards/margins", "grad_norm")


def train(config: PreferenceTraining, out: Path, *, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Train as configured and write the adapter to `out`; its record.

    Raises:
        ConfigError: Something is missing or wrong, a test video would be trained on, or `out` is taken.
    """
    require_free(out)
    lesson = teaching(config)
    require_unseen(config, lesson)
    responses = config.preference.responses
    written = [] if responses is None else read_responses(responses)
    (found, none), (held, _) = (
        pairs(part, lesson.pack, config.preference, config.rewards, written=written)
        for part in (lesson.examples, lesson.validation)
    )
    if not found:
        raise ConfigError(f"no example makes a pair ({dict(none)}); name tasks or videos that have right answers")
    why = Counter(pair.why for pair in found)
    say(
        f"{len(found)} pairs to fit, {len(held)} to choose by; rejected for {dict(why.most_common())}; none: {dict(none)}"
    )
    checkpoints = checkpoints_beside(out, config)
    base, model = begin(config)
    longest = config.planner.context_tokens
    sides = {"fitted": Sides(base, found, longest=longest), "validation": Sides(base, held, longest=longest)}
    trainer = _trainer(config, model, base, sides, checkpoints)
    return run(
        trainer,
        config,
        out,
        method="dpo",
        title="Direct preference optimisation",
        lesson=lesson,
        base=base,
        figures=_FIGURES,
        say=say,
        pairs=len(found),
        rejected_for=dict(why),
    )


class Sides:
    """Pairs as tensors: the chosen ones above, the rejected ones below, each prompt as the backend encodes it."""

    def __init__(self, base: CausalModel, found: Sequence[Pair], *, longest: int) -> None:
        """Encode them once.

        Raises:
            ConfigError: One is longer than `longest` tokens, or shows a picture to a model without eyes.
        """
        both = [replace(pair.example, answer=text) for pair in found for text in (pair.chosen, pair.rejected)]
        self._batches = Batches(base, both, longest=longest)

    def __len__(self) -> int:
        return len(self._batches) // 2

    def __call__(self, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        """The pairs of those numbers, (2 B, L) each; what is learnt is marked in `completion_mask`."""
        batch = self._batches([{"numbers": [2 * number + side]} for side in (0, 1) for number in numbers])
        batch["completion_mask"] = (batch.pop("labels") != IGNORED).long()
        return batch


class _Trainer(trl.DPOTrainer):  # type: ignore[misc]
    """TRL's, but it takes rows as they are: `Sides` has encoded them already, as run time does."""

    def _prepare_dataset(
        self,
        dataset: Any,
        processing_class: Any,  # noqa: ARG002
        args: Any,  # noqa: ARG002
        dataset_name: str,  # noqa: ARG002
    ) -> Any:
        return dataset


def _trainer(
    config: PreferenceTraining,
    model: Any,
    base: CausalModel,
    sides: Mapping[str, Sides],
    checkpoints: Path,
) -> _Trainer:
    preference, stopping = config.preference, config.stopping
    chooses = len(sides["validation"]) > 0
    accuracy = stopping.watch == "accuracy"
    best = validated(config, best="eval_rewards/accuracies" if accuracy else "eval_loss", greater=accuracy)
    arguments = trl.DPOConfig(
        **settings(config, checkpoints, on_cpu=base.device.type == "cpu"),
        **(best if chooses else {"save_strategy": best["save_strategy"], "save_steps": best.get("save_steps", 500)}),
        beta=preference.beta,
        loss_type=[preference.loss],
        max_length=None,
    )

    def rows(part: str) -> datasets.Dataset:
        return datasets.Dataset.from_list([{"number": n, "of": part} for n in range(len(sides[part]))])

    return _Trainer(
        model=model,
        args=arguments,
        train_dataset=rows("fitted"),
        eval_dataset=rows("validation") if chooses else None,
        processing_class=base.tokenizer,
        data_collator=lambda features: sides[features[0]["of"]]([int(feature["number"]) for feature in features]),
        callbacks=[transformers.EarlyStoppingCallback(early_stopping_patience=stopping.patience)] if chooses else [],
    )
