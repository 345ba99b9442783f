"""How many operations a step of LoRA fine-tuning needs, by arithmetic alone.

A multiplication and an addition are two operations, as in planner/model_cost.py. Of an example of L tokens, K of them learnt, with
N weights in the blocks, A in their adapters, H in the output layer, and S(L) operations of attention (scores and values, causal):

    forward    2 (N + A) L + S(L) + 2 H K + the eyes once
    backward   2 N L + 4 A L + 2 S(L) + 2 H K

The 6 N L of full training is wrong here: no gradient is taken of the frozen N, it only passes through them (2 N L instead of
4 N L), and none passes through the eyes, which no adapter is on. With checkpointing the blocks' forward pass, 2 (N + A) L + S(L),
is done once more: work of the hardware that the model does not need, so two utilisations are told, without it and with it. Left out
as small: norms, softmax, dropout, the optimiser, and that nothing need pass back through the lowest layer's weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from stream_agent.planner.model_cost import ModelShape


@dataclass(frozen=True, slots=True)
class Read:
    """An example as the model reads it.

    Attributes:
        tokens: With its picture's and its answer's, without what fills a batch up.
        learned: Of the answer and the end of its turn.
        seen: Of its picture.
    """

    tokens: int
    learned: int
    seen: int


def needed_operations(shape: ModelShape, adapters: int, examples: Iterable[Read]) -> float:
    """Of forward and backward passes over `examples`; `adapters` counts the trained parameters."""
    return sum(
        4.0 * shape.text_parameters * one.tokens
        + 6.0 * adapters * one.tokens
        + 3.0 * _attention(shape, one.tokens)
        + 4.0 * shape.head_parameters * one.learned
        + (shape.vision.operations(one.seen) if shape.vision and one.seen else 0.0)
        for one in examples
    )


def repeated_operations(shape: ModelShape, adapters: int, examples: Iterable[Read]) -> float:
    """What checkpointing does once more."""
    return sum(
        2.0 * (shape.text_parameters + adapters) * one.tokens + _attention(shape, one.tokens) for one in examples
    )


def _attention(shape: ModelShape, tokens: int) -> float:
    return 4.0 * shape.layers * shape.heads * shape.head_size * tokens * tokens / 2
