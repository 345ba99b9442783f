"""A made-up procedure: a sequence of actions with durations, drawn by seed from a pack's own statistics."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from stream_agent.messages import Clip

_SHORTEST_S = 0.5
"""Shortest clip drawn: long enough to be recognised."""


def synthetic_timeline(
    *,
    next_probabilities: Callable[[Sequence[str]], Mapping[str, float]],
    duration_s: Callable[[str, float], float],
    total_s: float,
    seed: int = 0,
) -> tuple[Clip, ...]:
    """Clips that cover [0, total_s) without gaps, no two neighbours alike; the same on every machine for one seed.

    Args:
        next_probabilities: Labels so far → weight of each next action; weights need not sum to 1.
        duration_s: Action and quantile in (0, 1) → its real duration.
        total_s: Length drawn; the last clip is cut there.
        seed: Draws actions and quantiles.

    Raises:
        ValueError: No action but the current one has a positive weight.
    """
    draw = random.Random(seed)  # Its doubles are specified; no libm or SIMD is in the way.
    clips: list[Clip] = []
    labels: list[str] = []
    start_s = 0.0
    while start_s < total_s:
        weights = {
            action: weight
            for action, weight in sorted(next_probabilities(tuple(labels)).items())
            if weight > 0 and action not in labels[-1:]
        }
        if not weights:
            raise ValueError(f"no next action has a positive weight after {labels[-3:]}; check the pack's statistics")
        action = _drawn(weights, draw.random())
        quantile = 0.05 + 0.9 * draw.random()
        end_s = start_s + max(duration_s(action, quantile), _SHORTEST_S)
        if total_s - end_s < _SHORTEST_S:  # No sliver of a clip at the end.
            end_s = total_s
        clips.append(Clip(action=action, start_pts_s=start_s, end_pts_s=end_s, confidence=1.0))
        labels.append(action)
        start_s = end_s
    return tuple(clips)


def _drawn(weights: Mapping[str, float], uniform: float) -> str:
    """The action at `uniform`, in [0, 1), of the cumulated weights."""
    left = uniform * sum(weights.values())
    for action, weight in weights.items():
        left -= weight
        if left < 0:
            return action
    return action
