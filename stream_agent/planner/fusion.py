"""One distribution out of two: the statistical planner's and the language model's, log-linearly.

    p(a) ∝ p_s(a) ** w_s · max(p_m(a), least) ** w_m      a ≠ current

(Genest & Zidek, Statistical Science 1986: the logarithmic opinion pool.) The floor bounds what a model can do: it never changes
the odds of two actions by more than (1 / least) ** w_m. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from stream_agent.config import FusionConfig
from stream_agent.messages import Fusion, Plan

_LEAST_STATISTICAL = 1e-6

Beliefs: TypeAlias = Sequence[float] | NDArray[np.float64]


def fused(statistical: Beliefs, model: Beliefs, config: FusionConfig, *, current: int | None) -> NDArray[np.float64]:
    """The pool of two distributions over the pack's actions, (actions,); 0 at `current`."""
    p_s = np.maximum(np.asarray(statistical, dtype=float), _LEAST_STATISTICAL)
    p_m = np.maximum(np.asarray(model, dtype=float), config.least_belief)
    log_p = config.statistical * np.log(p_s) + config.model * np.log(p_m)
    if current is not None:
        log_p[current] = -np.inf
    p = np.exp(log_p - log_p.max())
    pooled: NDArray[np.float64] = p / p.sum()
    return pooled


def report(statistical: Beliefs, model: Beliefs, config: FusionConfig) -> Fusion:
    """What was pooled, for the plan."""
    return Fusion(
        statistical_weight=config.statistical,
        model_weight=config.model,
        fitted_on=config.fitted_on,
        statistical=tuple(float(p) for p in statistical),
        model=tuple(float(p) for p in model),
    )


def distribution_of(plan: Plan, actions: Sequence[str]) -> tuple[float, ...]:
    """A plan's distribution over `actions`; where it tells only its three, the others share the rest evenly.

    Empty for an abstention: it holds no belief.
    """
    if plan.abstained or not plan.ranked:
        return ()
    if len(plan.distribution) == len(actions):
        return plan.distribution
    told = {item.action: item.probability for item in plan.ranked}
    others = [action for action in actions if action not in told and action != plan.current_action]
    rest = max(0.0, 1.0 - sum(told.values())) / len(others) if others else 0.0
    return tuple(told.get(action, rest if action in others else 0.0) for action in actions)
