"""What a language model's training is told: frozen sections as the agent's own, a YAML preset and `section.key=value`.

The defaults are the paper's where it states them (learning rate 1e-4, batches of 8, 50 epochs). `planner` is the agent's section:
its form, memory and knowledge decide the prompts, which must be those of the run that will use the adapter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from stream_agent.config import PlannerConfig, ProcedureConfig, Section, load_tree
from stream_agent.evaluation.samples import History, Track
from stream_agent.training.data import Task


class DataConfig(Section):
    """What is taught, from which videos."""

    sap: Path | None = Field(default=None, description="total_video_info.json of CholecT50-SAP.")
    frames: Path | None = Field(
        default=None, description="Folder of VIDnn/nnnnnn.png; for the direct form and `caption`."
    )
    captions: Path | None = Field(
        default=None, description="Lines of JSON: video, second, text; for the indirect form."
    )
    exclude: tuple[str, ...] = Field(default=(), description="Training videos to leave out.")
    track: Track = Field(default="causal", description="official shows the first second of what is to be foreseen.")
    history: History = Field(default="ground_truth", description="Labels of past clips: annotated, or as recognised.")
    tasks: tuple[Task, ...] = Field(
        default=("rank", "plan", "recognise", "caption"), min_length=1, description="Taught together."
    )
    orders: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Orders of the choices per sample and epoch; 1 with planner.permutations=1, the pack's.",
    )
    noise: float = Field(
        default=0.0, ge=0, le=1, description="Share of samples with labels as a recogniser mistakes them."
    )
    earlier_plans: bool = Field(default=False, description="Tell earlier plans, as planner.remember_plans does.")
    validation: float = Field(
        default=0.2, ge=0, lt=0.9, description="Share of the training samples, by whole videos, to choose the epoch by."
    )


class LoraConfig(Section):
    """Low-rank adapters (Hu et al., arXiv:2106.09685) on every linear layer of the language part."""

    rank: int = Field(default=16, ge=1, le=64, description="64 is the largest that vLLM is given room for.")
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.05, ge=0, lt=1)
    last_layers: int | None = Field(
        default=None, ge=1, description="Only the last so many layers, which spares the backward pass of the others."
    )
    start_from: Path | None = Field(default=None, description="Go on with this adapter instead of a new one.")
    quantised: bool = Field(
        default=False, description="QLoRA: the base model in 4 bits (needs bitsandbytes and a CUDA GPU)."
    )


class OptimiserConfig(Section):
    """How the weights move."""

    learning_rate: float = Field(default=1e-4, gt=0, lt=1)
    batch: int = Field(default=8, ge=1, le=4096, description="Examples per step.")
    at_once: int | None = Field(default=None, ge=1, description="Of them in memory at a time; unset: all.")
    epochs: float = Field(default=50.0, gt=0, le=10_000)
    max_steps: int | None = Field(default=None, ge=1, description="Stop after so many steps, for trials.")
    warmup: float = Field(default=0.03, ge=0, lt=1, description="Share of the steps in which the rate rises.")
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    weight_decay: float = Field(default=0.0, ge=0, lt=1)
    checkpointing: bool = Field(default=False, description="Compute activations twice instead of keeping them.")
    shared_beginnings: bool = Field(
        default=False, description="Text alone: compute what the examples of a batch begin with once (shared_row.py)."
    )

    @model_validator(mode="after")
    def _batches_divide(self) -> OptimiserConfig:
        if self.at_once is not None and self.batch % self.at_once:
            raise ValueError(
                f"optimiser.at_once={self.at_once} does not divide optimiser.batch={self.batch}; choose a divisor"
            )
        return self


class StoppingConfig(Section):
    """When it is enough: the best epoch by validation videos is kept."""

    watch: Literal["loss", "accuracy"] = Field(default="loss", description="accuracy: of the answer's tokens.")
    patience: int = Field(default=5, ge=1, description="Validations without a better one before the end.")
    every_steps: int | None = Field(default=None, ge=1, description="Steps between validations; unset: each epoch.")


class TrainingConfig(Section):
    """The whole of a training's configuration."""

    seed: int = Field(default=0, ge=0)
    procedure: ProcedureConfig = ProcedureConfig()
    planner: PlannerConfig = PlannerConfig()
    data: DataConfig = DataConfig()
    lora: LoraConfig = LoraConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    stopping: StoppingConfig = StoppingConfig()

    @model_validator(mode="after")
    def _names_what_it_needs(self) -> TrainingConfig:
        if self.data.sap is None:
            raise ValueError("data.sap is unset; set data.sap=FILE to your total_video_info.json")
        if self.planner.model is None:
            raise ValueError("planner.model is unset; set planner.model=DIR to the local directory of the base model")
        if self.planner.permutations == 1 and self.data.orders > 1:
            raise ValueError(
                f"data.orders={self.data.orders} teaches orders that planner.permutations=1 never asks in; set data.orders=1, or "
                "planner.permutations=0"
            )
        if self.planner.memory != "labels_only":
            if self.planner.form == "direct" and self.data.frames is None:
                raise ValueError(
                    f"planner.form=direct with planner.memory={self.planner.memory} shows frames; set data.frames=DIR, or "
                    "planner.memory=labels_only"
                )
            if self.planner.form == "indirect" and self.data.captions is None:
                raise ValueError(
                    f"planner.form=indirect with planner.memory={self.planner.memory} tells captions; set data.captions=FILE, "
                    "or planner.memory=labels_only"
                )
        return self

    def digest(self) -> str:
        """Twelve hex digits of sha256 over all of it."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]


def load_training(path: Path | None, overrides: Sequence[str] = ()) -> TrainingConfig:
    """Defaults, then the YAML file, then `section.key=value`, validated as one.

    Raises:
        ConfigError: A file, key or value is wrong; the message names it and the remedy.
    """
    return load_tree(TrainingConfig, path, overrides)
