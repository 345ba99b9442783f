"""A training of a few steps by the product's own trainer, with a clock at the end of each step.

Everything between two ends of steps is in a step's time: encoding of the examples, forward and backward passes of its parts, the
optimiser, the trainer's own book-keeping. On a GPU the clock is read when it has done all it was given.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.training_cost import Read
from benchmarks.true_shapes import RandomModel
from stream_agent.training.config import TrainingConfig
from stream_agent.training.lora import IGNORED, Batches, with_adapter
from stream_agent.training.sft import fitting_trainer


@dataclass(frozen=True, slots=True)
class Part:
    """Examples that went through the model at once.

    Attributes:
        encoded_s: How long it took to put them into tensors.
        places: Tokens with what fills up the shorter examples.
        read: Each example.
    """

    encoded_s: float
    places: int
    read: tuple[Read, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the optimiser."""

    seconds: float
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Steps:
    """A training that was measured.

    Attributes:
        steps: Without those that warmed up.
        trained: Parameters of the adapter.
        allocated, reserved: Most bytes of the GPU that tensors took, and that were held for them, since the first step began; 0 on
            a CPU.
    """

    steps: tuple[Step, ...]
    trained: int
    allocated: int
    reserved: int


class CountedBatches(Batches):
    """The product's batches; what was given is told in the order it was asked for."""

    def __init__(self, base: RandomModel, *given: Any, **named: Any) -> None:  # noqa: ANN401
        super().__init__(base, *given, **named)
        self.parts: list[Part] = []

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """One batch, counted."""
        began_s = time.perf_counter()
        batch = super().__call__(features)
        encoded_s = time.perf_counter() - began_s
        ids, labels, mask = batch["input_ids"], batch["labels"], batch["attention_mask"]
        seen = (ids == self._base.image_token).sum(1)
        rows = zip(mask.sum(1).tolist(), (labels != IGNORED).sum(1).tolist(), seen.tolist(), strict=True)
        self.parts.append(Part(encoded_s, ids.numel(), tuple(Read(*row) for row in rows)))
        return batch


def train_steps(
    base: RandomModel, batches: CountedBatches, config: TrainingConfig, folder: Path, *, warm: int, steps: int
) -> Steps:
    """Draw weights, put an adapter on them, and fine-tune it for `warm` steps and then `steps` that count.

    Raises:
        RuntimeError: Also when memory runs out; `out_of_memory` tells.
    """
    base.draw()
    model = with_adapter(base, config.lora, seed=config.seed)
    optimiser = config.optimiser.model_copy(update={"max_steps": warm + steps})
    stopping = config.stopping.model_copy(update={"every_steps": None})
    told = config.model_copy(update={"optimiser": optimiser, "stopping": stopping})
    nothing = Batches(base, [], longest=config.planner.context_tokens)
    batches.parts.clear()
    trainer = fitting_trainer(told, model, base, batches, nothing, folder, lambda _line: None)
    clock = _clock(base.device)
    trainer.add_callback(clock)
    trainer.train()
    at_once = optimiser.at_once or optimiser.batch
    each = optimiser.batch // at_once
    # The loader encodes one part ahead of the model; the order is the same.
    taken = [tuple(batches.parts[at * each : (at + 1) * each]) for at in range(warm + steps)]
    seconds = [after - before for before, after in pairwise(clock.stamps_s)]
    done = [Step(spent, parts) for spent, parts in zip(seconds, taken, strict=True)]
    on_gpu = base.device.type == "cuda"
    return Steps(
        tuple(done[warm:]),
        sum(part.numel() for part in model.parameters() if part.requires_grad),
        torch.cuda.max_memory_allocated(base.device) if on_gpu else 0,
        torch.cuda.max_memory_reserved(base.device) if on_gpu else 0,
    )


def out_of_memory(error: RuntimeError) -> bool:
    """Whether it says that memory ran out, of the GPU or of a CPU's machine."""
    words = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)


def _clock(device: torch.device) -> Any:  # noqa: ANN401
    import transformers

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        """When training began and each step was done."""

        def __init__(self) -> None:
            self.stamps_s: list[float] = []

        def on_train_begin(self, *_given: Any, **_named: Any) -> None:  # noqa: ANN401
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(device)
            self._stamp()

        def on_step_end(self, *_given: Any, **_named: Any) -> None:  # noqa: ANN401
            self._stamp()

        def on_epoch_end(self, _args: Any, _state: Any, control: Any, **_named: Any) -> None:  # noqa: ANN401
            control.should_save = False  # the last step's checkpoint is no part of a step

        def _stamp(self) -> None:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            self.stamps_s.append(time.perf_counter())

    return Clock()
