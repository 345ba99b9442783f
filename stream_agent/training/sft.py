"""Supervised fine-tuning with LoRA: `run_agent.py train sft`. TRL trains; data, encoding and what is saved are ours.

    teaching ─▶ Batches (the backend's own encoding; loss on the answer alone) ─▶ SFTTrainer + peft ─▶ adapter folder

The epoch that is kept is the best one by videos that were held out of the training videos. Killed, it goes on where the last
checkpoint was made: beside the folder it writes, `OUT.checkpoints` holds them until the adapter is whole.

Departures from LLM-SAP's fine-tuning: the answer is a code or the run-time JSON and not free text, the causal track, early stopping
(the paper states 50 epochs and no validation).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stream_agent.training.checkpoints import checkpoints_beside, last_checkpoint, versions
from stream_agent.training.config import TrainingConfig
from stream_agent.training.ended_early import EndedEarly
from stream_agent.training.lora import IGNORED, Batches, load_base, require_free, save_adapter, with_adapter
from stream_agent.training.model_card import model_card
from stream_agent.training.recomputing import recomputing
from stream_agent.training.teaching import Teaching, teaching
from stream_agent.training.tuning import began_with, require_unseen


def train(config: TrainingConfig, out: Path, *, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Fine-tune as configured and write the adapter to `out`; its record.

    Raises:
        ConfigError: Something is missing or wrong, a test video would be trained on, the adapter to begin with has seen what is
            held out, or `out` is taken.
    """
    require_free(out)
    lesson = teaching(config)
    require_unseen(config, lesson)
    told = lesson.summary()
    say(
        f"{told['samples']} samples of {len(_list(told['fitted_on']))} training videos to fit, {told['validation_samples']} of "
        f"{len(_list(told['chosen_by']))} to choose by; examples {told['examples']}"
    )
    checkpoints = checkpoints_beside(out, config)
    base = load_base(config)
    longest = config.planner.context_tokens
    shared = config.optimiser.shared_beginnings
    fitted = Batches(base, lesson.examples, longest=longest, shared=shared, group=group_size(config))
    validation = Batches(base, lesson.validation, longest=longest, shared=shared)
    model = with_adapter(base, config.lora, seed=config.seed)
    trainer = fitting_trainer(config, model, base, fitted, validation, checkpoints, say)
    last = last_checkpoint(checkpoints)
    if last is not None:
        say(f"going on from {last}")
    early = EndedEarly()
    trainer.add_callback(early)
    with early.listening(say):
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    record = _record(config, lesson, trainer, model, base)
    record |= {"began_with": began_with(config), "ended_early": early.asked}
    record["digest"] = save_adapter(
        trainer.model,
        out,
        config=config,
        record=record,
        card=model_card("Supervised fine-tuning with LoRA", config, record, lesson.pack),
        base=base,
    )
    shutil.rmtree(checkpoints)
    say(f"wrote {out} ({record['trained_parameters']:,} trained parameters), digest {record['digest']}")
    return record


def fitting_trainer(
    config: TrainingConfig,
    model: Any,
    base: Any,
    fitted: Batches,
    validation: Batches,
    checkpoints: Path,
    say: Callable[[str], None],
) -> Any:
    """TRL's trainer of the answers of `fitted`, ready to train; without `validation` no step is better than another."""
    import datasets
    import transformers
    import trl

    optimiser, stopping = config.optimiser, config.stopping
    at_once = optimiser.at_once or optimiser.batch
    groups_at_once = max(1, at_once // group_size(config))
    chooses = len(validation) > 0
    every: dict[str, Any] = {"eval_strategy": "no", "save_strategy": "epoch"}
    if stopping.every_steps is not None:
        every = {"save_strategy": "steps", "save_steps": stopping.every_steps}
    if chooses:
        every["eval_strategy"] = every["save_strategy"]
        every["eval_steps"] = stopping.every_steps
    settings = trl.SFTConfig(
        output_dir=str(checkpoints),
        per_device_train_batch_size=groups_at_once,
        per_device_eval_batch_size=at_once,
        gradient_accumulation_steps=optimiser.batch // at_once,
        num_train_epochs=optimiser.epochs,
        max_steps=optimiser.max_steps or -1,
        learning_rate=optimiser.learning_rate,
        lr_scheduler_type=optimiser.schedule,
        warmup_steps=optimiser.warmup,
        weight_decay=optimiser.weight_decay,
        **recomputing(optimiser.checkpointing),
        bf16=False,  # the base has its own type, and peft keeps the adapter in float32
        use_cpu=base.device.type == "cpu",
        seed=config.seed,
        data_seed=config.seed,
        **every,
        save_total_limit=2,
        load_best_model_at_end=chooses,
        metric_for_best_model="eval_mean_token_accuracy" if stopping.watch == "accuracy" else "eval_loss",
        greater_is_better=stopping.watch == "accuracy",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    callbacks: list[Any] = [_told(transformers, say, chooses=chooses)]
    if chooses:
        callbacks.append(transformers.EarlyStoppingCallback(early_stopping_patience=stopping.patience))
    # The two sets have their own tokens and pictures, so each row says which it belongs to.
    both = {"fitted": fitted, "validation": validation}
    rows = {of: [{**row, "of": of} for row in batches.groups] for of, batches in both.items()}
    trainer = answer_trainer(trl.SFTTrainer)(
        model=model,
        args=settings,
        train_dataset=datasets.Dataset.from_list(rows["fitted"]),
        eval_dataset=datasets.Dataset.from_list(rows["validation"]) if chooses else None,
        processing_class=base.tokenizer,
        data_collator=lambda features: both[features[0]["of"]](features),
        callbacks=callbacks,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def group_size(config: TrainingConfig) -> int:
    """Examples that stay together: with shared beginnings the orders of one sample's choices, which share most."""
    alone = config.data.tasks == ("rank",) and config.optimiser.shared_beginnings
    return config.data.orders if alone else 1


def answer_trainer(kind: Any) -> Any:
    """TRL's trainer with a loss that projects the answer's places alone onto the vocabulary.

    TRL 1.16 does so on GPUs with Triton only; elsewhere it projects every token of the prompt, and on a CPU a small model spends
    a third of its time on that. The loss is the same: mean negative log-likelihood of the answer's tokens.
    """
    import torch

    class AnswerTrainer(kind):  # type: ignore[misc]
        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            wanted = inputs["labels"][:, 1:]
            kept = (wanted != IGNORED).any(0).nonzero()[:, 0]
            given = {name: value for name, value in inputs.items() if name != "labels"}
            outputs = model(**given, use_cache=False, logits_to_keep=kept)
            logits, targets = outputs.logits.float().flatten(0, 1), wanted[:, kept].flatten()
            total = torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
            learned = targets != IGNORED
            count = learned.sum() if num_items_in_batch is None else num_items_in_batch
            right = (logits.argmax(-1) == targets)[learned].float().mean().item()
            self._metrics["train" if model.training else "eval"]["mean_token_accuracy"].append(right)
            loss = total / count
            return (loss, outputs) if return_outputs else loss

    return AnswerTrainer


def _told(transformers: Any, say: Callable[[str], None], *, chooses: bool) -> Any:
    """Says each validation's figures on a line, or each epoch's loss where nothing is validated."""

    class Told(transformers.TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self._losses: list[float] = []

        def on_log(
            self,
            args: Any,  # noqa: ARG002
            state: Any,
            control: Any,  # noqa: ARG002
            logs: dict[str, float] | None = None,
            **more: Any,  # noqa: ARG002
        ) -> None:
            logs = logs or {}
            if "loss" in logs:
                self._losses.append(float(logs["loss"]))
            if "eval_loss" in logs:
                accuracy = logs.get("eval_mean_token_accuracy", math.nan)
                self._line(state, f", validation loss {logs['eval_loss']:.4f}, token accuracy {accuracy:.4f}")

        def on_epoch_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:  # noqa: ARG002
            if not chooses:
                self._line(state, "")

        def _line(self, state: Any, more: str) -> None:
            fitted = sum(self._losses) / len(self._losses) if self._losses else math.nan
            self._losses.clear()
            say(f"epoch {state.epoch:.2f} step {state.global_step}: loss {fitted:.4f}{more}")

    return Told()


def _record(config: TrainingConfig, lesson: Teaching, trainer: Any, model: Any, base: Any) -> dict[str, Any]:
    """What happened: figures per validation, the one that was kept, what was trained on what."""
    history = trainer.state.log_history
    losses = [round(entry["loss"], 5) for entry in history if "loss" in entry]
    return {
        "method": "sft",
        "base": base.files.name,
        "base_digest": base.files.digest,
        "config_digest": config.digest(),
        "data": lesson.summary(),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "steps": trainer.state.global_step,
        "epochs": round(float(trainer.state.epoch or 0), 3),
        "losses": losses,
        "validations": [
            {
                "step": entry["step"],
                "loss": round(entry["eval_loss"], 5),
                "token_accuracy": round(entry.get("eval_mean_token_accuracy", math.nan), 5),
            }
            for entry in history
            if "eval_loss" in entry
        ],
        "kept_step": _kept(trainer.state),
        "versions": versions(),
    }


def _kept(state: Any) -> int:
    best = state.best_model_checkpoint
    return int(Path(best).name.partition("-")[2]) if best else int(state.global_step)


def _list(value: object) -> list[str]:
    assert isinstance(value, list)
    return value
