"""Fit the late part of the network on stored activations of its frozen part.

Three losses: presence of each instrument, each cell of the map where people drew boxes, and, for pictures with an action but no
instrument labels (clips a person corrected), the action's likelihood by its instruments. Activations are mixed in style
between pictures (Zhou et al., *Domain Generalization with MixStyle*, ICLR 2021), and the weights of the last third of the
steps are averaged (Izmailov et al., *Averaging Weights*, UAI 2018).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from stream_agent.training.augment import Sample
from stream_agent.training.network import Half, Late, Matrix

BATCH: Final = 32
RATE: Final = 5e-4
HEAD_RATE: Final = 2e-3
DECAY: Final = 2e-2
AVERAGED_FROM: Final = 0.7
"""Share of the steps after which weights are averaged."""
CELL_WEIGHT: Final = 3.0
ACTION_WEIGHT: Final = 0.3

Floats = NDArray[np.float32]
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """Labels of stored activations; NaN where unknown.

    Attributes:
        presence: (n, 7).
        cells: (n, 6, 7, 10).
        actions: (n,) index, -1 for none.
    """

    presence: Floats
    cells: Floats
    actions: NDArray[np.int64]


def targets(samples: Sequence[Sample]) -> Targets:
    """The samples' labels as arrays."""
    return Targets(
        presence=np.stack([sample.presence for sample in samples]),
        cells=np.stack([sample.cells for sample in samples]),
        actions=np.array([sample.action for sample in samples]),
    )


def fit_late(
    activations: Half,
    known: Targets,
    rows: NDArray[np.int64],
    *,
    presence_by_action: Matrix,
    epochs: float,
    seed: int,
    tell: Tell,
    batch: int = BATCH,
) -> tuple[Late, list[float]]:
    """The late part fitted on some rows of the activations, (n, 112, 14, 20), and the loss of every step.

    Args:
        activations: What the frozen part says of each sample.
        known: Their labels.
        rows: Which of them to fit on.
        presence_by_action: P(instrument | action), (7, 5).
        epochs: How often each row is used; may be a fraction.
        seed: Of weights, order and mixing.
        tell: Takes lines of progress.
        batch: Rows per step.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    late = Late().to(memory_format=torch.channels_last).train()
    heads = [*late.where.parameters(), late.offset]
    optimiser = torch.optim.AdamW(
        [{"params": late.stages.parameters(), "lr": RATE}, {"params": heads, "lr": HEAD_RATE}], weight_decay=DECAY
    )
    rates = (RATE, HEAD_RATE)
    steps = max(int(len(rows) * epochs / batch), 1)
    order = np.concatenate([rng.permutation(rows) for _ in range(math.ceil(epochs) + 1)])
    share = np.nan_to_num(np.nanmean(known.presence[rows], axis=0), nan=0.5)
    balance = torch.tensor(np.clip((1 - share) / np.maximum(share, 0.01), 0.5, 10.0) ** 0.7, dtype=torch.float32)
    table = torch.tensor(presence_by_action, dtype=torch.float32)
    averaged: dict[str, Any] = {}
    count, losses, began = 0, [], time.monotonic()
    for step in range(steps):
        chosen = np.sort(order[step * batch : (step + 1) * batch])
        factor = min(1.0, (step + 1) / 15) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        inputs = torch.from_numpy(activations[chosen].astype(np.float32)).contiguous(memory_format=torch.channels_last)
        pooled, cells, _ = late(_mix_styles(inputs, rng))
        loss = (
            _presence_loss(pooled, known.presence[chosen], balance)
            + CELL_WEIGHT * _cell_loss(cells[:, :6], known.cells[chosen], balance[:6])
            + ACTION_WEIGHT * _action_loss(pooled, known.presence[chosen], known.actions[chosen], table)
        )
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(late.parameters(), 5.0)
        optimiser.step()
        losses.append(float(loss.detach()))
        if step >= AVERAGED_FROM * steps:
            count += 1
            for name, value in late.state_dict().items():
                mean = averaged.setdefault(name, value.detach().clone())
                mean += (value.detach() - mean) / count
        if step % 20 == 19 or step == steps - 1:
            tell(f"step {step + 1}/{steps}, loss {np.mean(losses[-20:]):.3f}, {time.monotonic() - began:.0f} s")
    late.load_state_dict(averaged)
    return late.eval(), losses


def _mix_styles(inputs: Any, rng: np.random.Generator) -> Any:  # noqa: ANN401 - torch is not typed here
    """Half of the time, each picture's channel means and deviations moved towards another picture's."""
    if rng.random() < 0.5:
        return inputs
    mean, spread = inputs.mean((2, 3), keepdim=True), inputs.std((2, 3), keepdim=True) + 1e-5
    other = torch.from_numpy(rng.permutation(len(inputs)))
    own = torch.from_numpy(rng.beta(0.3, 0.3, (len(inputs), 1, 1, 1)).astype(np.float32))
    return (inputs - mean) / spread * (own * spread + (1 - own) * spread[other]) + own * mean + (1 - own) * mean[other]


def _masked(values: Any, known: Any) -> Any:  # noqa: ANN401
    return (values * known).sum() / known.sum().clamp(min=1)


def _presence_loss(pooled: Any, presence: Floats, balance: Any) -> Any:  # noqa: ANN401
    wanted = torch.from_numpy(presence)
    smooth = torch.nan_to_num(wanted) * 0.96 + 0.02
    loss = functional.binary_cross_entropy_with_logits(pooled, smooth, pos_weight=balance, reduction="none")
    return _masked(loss, ~wanted.isnan())


def _cell_loss(cells: Any, wanted: Floats, balance: Any) -> Any:  # noqa: ANN401
    inside = torch.from_numpy(wanted)
    weight = (3.0 * balance.sqrt())[None, :, None, None]
    loss = functional.binary_cross_entropy_with_logits(
        cells, torch.nan_to_num(inside), pos_weight=weight, reduction="none"
    )
    return _masked(loss, ~inside.isnan())


def _action_loss(pooled: Any, presence: Floats, actions: NDArray[np.int64], table: Any) -> Any:  # noqa: ANN401
    """Cross entropy of the action where no instrument is known: the action teaches what is usually held for it."""
    rows = torch.from_numpy(np.isnan(presence).all(1) & (actions >= 0))
    if not rows.any():
        return pooled.sum() * 0.0
    chance = torch.sigmoid(pooled[rows])[:, :, None]
    likelihood = torch.log(chance * table + (1 - chance) * (1 - table)).sum(1)
    return functional.cross_entropy(likelihood, torch.from_numpy(actions)[rows])


def answers(late: Late, activations: Half, rows: NDArray[np.int64]) -> tuple[Matrix, Matrix]:
    """Log odds of presence, (n, 7), and mean and maximum over space of the last features, (n, 2560)."""
    logits, pooled = [], []
    with torch.inference_mode():
        for first in range(0, len(rows), BATCH):
            part = activations[rows[first : first + BATCH]].astype(np.float32)
            presence, _, features = late(torch.from_numpy(part).contiguous(memory_format=torch.channels_last))
            logits.append(presence.numpy())
            pooled.append(torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1).numpy())
    return np.concatenate(logits).astype(np.float64), np.concatenate(pooled).astype(np.float64)
