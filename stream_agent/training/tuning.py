"""What every further training of an adapter shares: it begins at a fine-tuned one, goes on after a kill, and is saved whole.

    start (an adapter of `train sft`, or the base) ─▶ DPO · GRPO · a student ─▶ adapter folder with record and card

The videos to choose by must be those that the start has not been fitted on either, or they would prove nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import transformers

from stream_agent.errors import ConfigError
from stream_agent.planner.backends.causal import CausalModel
from stream_agent.training.adapter_record import fitted_on
from stream_agent.training.checkpoints import checkpoints_beside, last_checkpoint, versions
from stream_agent.training.config import TrainingConfig
from stream_agent.training.data import require_training_only
from stream_agent.training.lora import load_base, save_adapter, with_adapter
from stream_agent.training.model_card import model_card
from stream_agent.training.recomputing import recomputing
from stream_agent.training.teaching import Teaching

_REFERENCE: Final = "ref"
"""Name under which TRL keeps the frozen copy of the adapter that training began with."""


def fitted_before(config: TrainingConfig) -> tuple[str, ...]:
    """Videos that the adapter to begin with was fitted on; none for a new adapter.

    Raises:
        ConfigError: It does not say, or a test video is among them.
    """
    start = config.lora.start_from
    if start is None:
        return ()
    videos = fitted_on(start)
    require_training_only(videos)
    return videos


def require_unseen(config: TrainingConfig, lesson: Teaching) -> None:
    """Make sure that what is chosen by was not fitted by the adapter to begin with.

    Raises:
        ConfigError: It was, in part.
    """
    seen = sorted({sample.question.video for sample in lesson.held_out} & set(fitted_before(config)))
    if seen:
        raise ConfigError(
            f"lora.start_from={config.lora.start_from} was fitted on {', '.join(seen[:4])}, which is held out here; set seed, "
            "data.validation and data.exclude as in its training.yaml"
        )


def begin(config: TrainingConfig) -> tuple[CausalModel, Any]:
    """The base model, and it with the adapter to train; a new adapter is the same for the same seed.

    Raises:
        ConfigError: One of them does not load.
    """
    base = load_base(config)
    transformers.set_seed(config.seed)
    model = with_adapter(base, config.lora)
    for part in model.peft_config.values():  # a saved adapter names its base without our path; peft looks for it there
        part.base_model_name_or_path = str(base.files.directory)
    return base, model


def settings(config: TrainingConfig, checkpoints: Path, *, on_cpu: bool, rows: int = 1) -> dict[str, Any]:
    """Arguments that all of TRL's trainers take; `rows` per example stand side by side in memory."""
    optimiser = config.optimiser
    at_once = optimiser.at_once or optimiser.batch
    return {
        "output_dir": str(checkpoints),
        "per_device_train_batch_size": at_once * rows,
        "per_device_eval_batch_size": at_once * rows,
        "gradient_accumulation_steps": optimiser.batch // at_once,
        "num_train_epochs": optimiser.epochs,
        "max_steps": optimiser.max_steps or -1,
        "learning_rate": optimiser.learning_rate,
        "lr_scheduler_type": optimiser.schedule,
        "warmup_steps": optimiser.warmup,
        "weight_decay": optimiser.weight_decay,
        **recomputing(optimiser.checkpointing),
        "bf16": False,  # the base has its own type, and peft keeps the adapter in float32
        "use_cpu": on_cpu,
        "seed": config.seed,
        "data_seed": config.seed,
        "disable_dropout": True,  # or the policy and its reference would differ before anything is learnt
        "save_total_limit": 2,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
    }


def validated(config: TrainingConfig, *, best: str, greater: bool) -> dict[str, Any]:
    """Arguments of a training that keeps its best step by validation."""
    every = "epoch" if config.stopping.every_steps is None else "steps"
    return {
        "eval_strategy": every,
        "eval_steps": config.stopping.every_steps,
        **saved(config),
        "load_best_model_at_end": True,
        "metric_for_best_model": best,
        "greater_is_better": greater,
    }


def saved(config: TrainingConfig) -> dict[str, Any]:
    """Arguments that say when a checkpoint is made."""
    steps = config.stopping.every_steps
    return {"save_strategy": "epoch"} if steps is None else {"save_strategy": "steps", "save_steps": steps}


def run(
    trainer: Any,
    config: TrainingConfig,
    out: Path,
    *,
    method: str,
    title: str,
    lesson: Teaching,
    base: CausalModel,
    figures: Sequence[str],
    say: Callable[[str], None],
    **told: object,
) -> dict[str, Any]:
    """Train, going on from the last checkpoint, and write the adapter to `out`; its record.

    Args:
        trainer: One of TRL's, whose model is a peft model.
        config: As it was called with.
        out: Where to.
        method: Short name.
        title: Of the model card.
        lesson: What was taught.
        base: The base model.
        figures: Names in the trainer's log to keep, per logged step.
        say: Hears of progress.
        **told: More for the record.
    """
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.add_callback(_Told(figures, say))
    checkpoints = checkpoints_beside(out, config)
    last = last_checkpoint(checkpoints)
    if last is not None:
        say(f"going on from {last}")
    trainable = sum(part.numel() for part in trainer.model.parameters() if part.requires_grad)
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    state = trainer.state
    history = state.log_history
    best = state.best_model_checkpoint
    record = {
        "method": method,
        "base": base.files.name,
        "base_digest": base.files.digest,
        "began_with": began_with(config),
        "config_digest": config.digest(),
        "data": lesson.summary(),
        "trained_parameters": trainable,
        "steps": state.global_step,
        "epochs": round(float(state.epoch or 0), 3),
        "losses": [round(entry["loss"], 5) for entry in history if "loss" in entry],
        "figures": {name: [round(entry[name], 5) for entry in history if name in entry] for name in figures},
        "validations": [
            {
                "step": entry["step"],
                "loss": round(entry["eval_loss"], 5),
                "token_accuracy": round(
                    entry.get("eval_rewards/accuracies", entry.get("eval_mean_token_accuracy", float("nan"))), 5
                ),
            }
            for entry in history
            if "eval_loss" in entry
        ],
        "kept_step": int(Path(best).name.partition("-")[2]) if best else int(state.global_step),
        "versions": versions(),
        **told,
    }
    if _REFERENCE in trainer.model.peft_config:
        trainer.model.delete_adapter(_REFERENCE)
    card = model_card(title, config, record, lesson.pack)
    record["digest"] = save_adapter(trainer.model, out, config=config, record=record, card=card, base=base)
    shutil.rmtree(checkpoints)
    say(f"wrote {out} ({trainable:,} trained parameters), digest {record['digest']}")
    return record


def began_with(config: TrainingConfig) -> dict[str, object]:
    """What a record tells of the adapter that training began with; empty for a new one.

    Raises:
        ConfigError: It does not say what it was fitted on, or a test video is among it.
    """
    start = config.lora.start_from
    return {} if start is None else {"adapter": start.name, "fitted_on": list(fitted_before(config))}


class _Told(transformers.TrainerCallback):  # type: ignore[misc]
    """Says the figures of every logged step on a line."""

    def __init__(self, figures: Sequence[str], say: Callable[[str], None]) -> None:
        self._figures = figures
        self._say = say

    def on_log(
        self,
        args: Any,  # noqa: ARG002
        state: Any,
        control: Any,  # noqa: ARG002
        logs: dict[str, float] | None = None,
        **more: Any,  # noqa: ARG002
    ) -> None:
        """Of transformers' protocol."""
        logs = logs or {}
        names = ("eval_loss", "eval_rewards/accuracies") if "eval_loss" in logs else ("loss", *self._figures)
        shown = [f"{name} {logs[name]:.4g}" for name in names if name in logs]
        if shown:
            self._say(f"step {state.global_step} epoch {state.epoch or 0:.2f}: {', '.join(shown)}")
