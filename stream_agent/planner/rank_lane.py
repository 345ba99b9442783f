"""The rank lane: one prefill, one decode step, a distribution over the closed set; nothing is written, so nothing is parsed.

    orders of the choices ─▶ prompts ─▶ log-probability of each code ─▶ mean over orders per action ─▶ softmax(· / temperature)

A language model prefers some codes and places whatever stands there (Zheng et al., ICLR 2024, arXiv:2309.03882). With every
action once in every place (cyclic shifts), the mean of the log-probabilities takes that preference off all actions alike. What is
going on is no choice. What the model gives no probability gets none here either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from stream_agent.errors import BackendError, ConfigError
from stream_agent.messages import RANKED, PlanRequest
from stream_agent.planner.backends.protocol import Backend, Call
from stream_agent.prompts import CODES, PromptFactory

_SILENT: Final = -np.inf


class RankLane:
    """Ranks next actions with one backend."""

    def __init__(
        self, backend: Backend, factory: PromptFactory, actions: Sequence[str], *, permutations: int, temperature: float
    ) -> None:
        """`permutations` 0 puts every action in every place."""
        self._backend = backend
        self._factory = factory
        self._actions = tuple(actions)
        self._permutations = permutations
        self._temperature = temperature

    def check_codes(self) -> None:
        """Make sure that each code is one token and no two are the same.

        Raises:
            ConfigError: They are not, for this model's tokenizer.
        """
        codes = CODES[: len(self._actions)]
        tokens = [self._backend.tokens(code) for code in codes]
        wrong = [code for code, token in zip(codes, tokens, strict=True) if token is not None and len(token) != 1]
        known = [token for token in tokens if token is not None]
        if wrong or len(set(known)) != len(known):
            raise ConfigError(
                f"the model's tokenizer does not make one token of each of {', '.join(wrong or codes)}, which stand for the "
                "actions; use another model, or a pack with fewer actions"
            )

    async def rank(
        self, requests: Sequence[PlanRequest], call: Call, captions: Sequence[str] = ()
    ) -> list[NDArray[np.float64]]:
        """Per request the distribution over the pack's actions, (actions,), 0 at the current one; all in one batch.

        Raises:
            BackendError: The engine failed, gave what is no number, or gave fewer than three actions a probability.
        """
        prompts, codes, asked = [], [], []
        for index, request in enumerate(requests):
            choices = self._factory.choices(request.memory.current)
            orders = cyclic_orders(choices, self._permutations)
            prompts += self._factory.ranking(request, orders, captions[index] if captions else "")
            codes += [CODES[: len(choices)]] * len(orders)
            asked.append(orders)
        width = len(CODES[: len(self._actions)])
        # One call for all of one width; imagined requests may have one choice more than the first.
        scores: list[NDArray[np.float64]] = [np.empty(0)] * len(prompts)
        for size in range(1, width + 1):
            same = [place for place, code in enumerate(codes) if len(code) == size]
            if same:
                rows = await self._backend.score([prompts[p] for p in same], [codes[p] for p in same], call)
                _check(rows, (len(same), size))
                for place, row in zip(same, rows, strict=True):
                    scores[place] = row
        beliefs, start = [], 0
        for request, orders in zip(requests, asked, strict=True):
            beliefs.append(self._belief(orders, scores[start : start + len(orders)], request.memory.current))
            start += len(orders)
        return beliefs

    def _belief(
        self, orders: Sequence[Sequence[str]], scores: Sequence[NDArray[np.float64]], current: str | None
    ) -> NDArray[np.float64]:
        log_mean = np.full(len(self._actions), _SILENT)
        place = {action: index for index, action in enumerate(self._actions)}
        total = np.zeros(len(orders[0]))
        for order, row in zip(orders, scores, strict=True):
            if not np.isfinite(row).any():
                raise BackendError(
                    "the model gives none of the actions a probability; its answer format is not understood"
                )
            by_action = dict(zip(order, row - _log_sum_exp(row), strict=True))
            total += np.array([by_action[action] for action in orders[0]])
        for action, mean in zip(orders[0], total / len(orders), strict=True):
            if action != current:  # listed for its code's sake at most, and never next
                log_mean[place[action]] = mean
        given, possible = int(np.isfinite(log_mean).sum()), len(choices_of(orders[0], current))
        if given < min(RANKED, possible):
            raise BackendError(f"the model gives only {given} of {possible} actions a probability")
        belief = np.exp((log_mean - log_mean.max()) / self._temperature)
        normalised: NDArray[np.float64] = belief / belief.sum()
        return normalised


def choices_of(actions: Sequence[str], current: str | None) -> tuple[str, ...]:
    """What may come next: every action but the one going on."""
    return tuple(action for action in actions if action != current)


def cyclic_orders(choices: Sequence[str], count: int) -> list[tuple[str, ...]]:
    """`count` cyclic shifts, evenly spread; 0 or too many gives them all, each choice once in each place."""
    n = len(choices)
    count = n if not 0 < count < n else count
    starts = [round(index * n / count) for index in range(count)]
    return [(*choices[start:], *choices[:start]) for start in starts]


def _check(scores: NDArray[np.float64], shape: tuple[int, int]) -> None:
    if scores.shape != shape:
        raise BackendError(f"the engine gave scores of shape {scores.shape}, not {shape}")
    if np.isnan(scores).any() or np.isposinf(scores).any():
        raise BackendError("the engine gave scores that are no numbers (NaN)")


def _log_sum_exp(row: NDArray[np.float64]) -> float:
    top = float(row.max())
    return top + float(np.log(np.exp(row - top).sum()))
