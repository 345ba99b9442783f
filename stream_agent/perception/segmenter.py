"""From per-frame evidence to clips: an online semi-Markov filter, and the odds at which a new clip is declared.

The filter keeps hypotheses "the clip going on is of action a and began at s" with their probability given all evidence so
far (Adams and MacKay, "Bayesian Online Changepoint Detection", arXiv:0710.3742, with labelled runs; Yu, "Hidden semi-Markov
models", 2010, for explicit durations). Between two frames a clip of age d goes on with probability S(d + dt) / S(d), where S
is the fitted survival of its action; else another action begins, by the fitted order of actions. Without a fitted model
every age and every other action are alike, with mean `mean_clip_s`. Each frame multiplies by its likelihood, posterior /
prior to a power: the share of an independent look that it is worth, `evidence_per_s` times the time since the last one, so
that 10 Hz say no more than 1 Hz.

A clip is declared when its action is `declare_odds` times as probable as the open one (less and less is asked while it leads,
and none after half a minute: weak evidence never reaches high odds) and `min_dwell_s` of time was observed since its most
probable start. It begins there, in the past, where the open clip then ends.

Bounded: each action keeps its `_STARTS` most probable starts, of which no two fall in the same half second. Plain floats: for
the few that are alive they are faster than NumPy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from stream_agent.config import SegmenterConfig
from stream_agent.messages import Clip, ClipEvent
from stream_agent.perception.segmenter_model import LONGEST_S, SegmenterModel, log_survival, without_fit

_STARTS: Final = 12
_CELL_S: Final = 0.5
_SETTLED_S: Final = 30.0
_LEAST: Final = 1e-5
"""A start less probable than this is not followed for longer than a cell."""
_OLDEST_S: Final = LONGEST_S - 1


@dataclass(slots=True)
class _Mean:
    """A mean of beliefs so far."""

    total: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        self.total += value
        self.count += 1

    def absorb(self, other: _Mean) -> None:
        self.total += other.total
        self.count += other.count

    @property
    def value(self) -> float:
        return min(1.0, self.total / self.count) if self.count else 0.0


@dataclass(slots=True)
class _Run:
    """The hypothesis that the clip going on is of one action and began at one time.

    Attributes:
        start_pts_s: When.
        seen_s: Observed time of the session then.
        weight: Its probability.
        log_alive: Log S(age) at the last evidence.
    """

    start_pts_s: float
    seen_s: float
    weight: float
    log_alive: float = 0.0


@dataclass(slots=True)
class _Open:
    """The clip going on.

    Attributes:
        index: Its action.
        start_pts_s: Where it began.
        belief: In it, over the frames since it was declared in which it led or came to lead again.
        doubt: In it, since another action leads.
    """

    index: int
    start_pts_s: float
    belief: _Mean
    doubt: _Mean


class Segmenter:
    """Clips of one session; feed it rising media times."""

    def __init__(
        self,
        actions: tuple[str, ...],
        config: SegmenterConfig,
        prior: tuple[float, ...] | None = None,
        model: SegmenterModel | None = None,
    ) -> None:
        """Prepare for a closed set of actions.

        `prior` is the one inside the posteriors, uniform unless given; `model` the durations and order fitted for the pack.

        Raises:
            ValueError: No action, repeated actions, a prior that is not one positive number per action, or a model of other
                actions.
        """
        if not actions or len(set(actions)) != len(actions):
            raise ValueError(f"actions={actions} must be one or more distinct names")
        if prior is not None and (len(prior) != len(actions) or not all(0.0 < value < math.inf for value in prior)):
            raise ValueError(f"prior={prior} must hold one positive number for each of {len(actions)} actions")
        if model is not None and model.actions != actions:
            raise ValueError(f"the model is for {model.actions}, not for {actions}; fit it for this pack")
        self._actions = actions
        self._config = config
        self._prior = prior
        if model is None:
            survival, following = without_fit(actions, config.mean_clip_s)
        else:
            survival, following = log_survival(model), [list(row) for row in model.following]
        self._survival = survival
        self._following = following
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next step begins a new session."""
        self._runs: list[list[_Run]] = [[] for _ in self._actions]  # the newest start last
        self._belief = [1.0 / len(self._actions)] * len(self._actions)
        self._last_pts_s: float | None = None
        self._evidence_pts_s: float | None = None
        self._observed_s = 0.0
        self._last_observed = False
        self._open: _Open | None = None
        self._leader = -1
        self._led_from_s = 0.0

    @property
    def current(self) -> str | None:
        """The action of the open clip; None before the first."""
        return None if self._open is None else self._actions[self._open.index]

    @property
    def current_start_pts_s(self) -> float:
        """Where the open clip began; 0 before the first."""
        return 0.0 if self._open is None else self._open.start_pts_s

    @property
    def confidence(self) -> float:
        """The belief in `current` at the last step, 0 to 1; 0 before the first clip."""
        if self._open is None or self._last_pts_s is None or self._evidence_pts_s is None:
            return 0.0
        belief = self._belief[self._open.index]
        if self._last_pts_s > self._evidence_pts_s:
            ages, begin = self._pass(self._last_pts_s)
            index = self._open.index
            belief = sum(weight for weight, _ in ages[index]) + begin[index]
        return min(1.0, belief)

    def step(self, pts_s: float, posterior: tuple[float, ...]) -> tuple[ClipEvent, ...]:
        """Take one frame's posterior, in the order of the actions; what began and ended by it, oldest first.

        An empty posterior, one that is not finite and one of zeros are no evidence: time passes, the belief spreads and
        nothing opens. A frame that is not later than the last is ignored, for no time belongs to it.

        Raises:
            ValueError: A time that is not finite, a posterior of another length, or a negative probability.
        """
        if not math.isfinite(pts_s):
            raise ValueError(f"pts_s={pts_s} is not a time; skip frames without one")
        since_s = math.inf if self._last_pts_s is None else pts_s - self._last_pts_s
        likelihood = self._likelihood(posterior, min(1.0, self._config.evidence_per_s * abs(since_s)))
        if since_s <= 0.0:
            return ()
        self._last_pts_s = pts_s
        if likelihood is None:
            self._last_observed = False
            return ()
        if self._last_observed:
            self._observed_s += since_s
        self._last_observed = True
        self._observe(pts_s, likelihood)
        return self._declare(pts_s)

    def finish(self, pts_s: float) -> tuple[ClipEvent, ...]:
        """Close the open clip at `pts_s`, or at the last step if that is later, and forget everything."""
        if not math.isfinite(pts_s):
            raise ValueError(f"pts_s={pts_s} is not a time; finish with that of the last frame")
        events: tuple[ClipEvent, ...] = ()
        if self._open is not None:
            end_pts_s = max(pts_s, self._last_pts_s or 0.0)
            self._open.belief.absorb(self._open.doubt)
            events = (self._closed(self._open, end_pts_s, end_pts_s),)
        self.reset()
        return events

    def _likelihood(self, posterior: tuple[float, ...], weight: float) -> list[float] | None:
        if not posterior:
            return None
        if len(posterior) != len(self._actions):
            raise ValueError(
                f"posterior of {len(posterior)} values for {len(self._actions)} actions; they must be the pack's"
            )
        total = math.fsum(posterior) if all(map(math.isfinite, posterior)) else math.nan
        if min(posterior) < 0.0:
            raise ValueError(f"posterior={posterior} holds a negative probability")
        if not 0.0 < total < math.inf:
            return None
        values = list(posterior)
        if self._prior is not None:
            values = [value / prior for value, prior in zip(values, self._prior, strict=True)]
        peak = max(values)
        return [value / peak if weight == 1.0 else (value / peak) ** weight for value in values]

    def _pass(self, pts_s: float) -> tuple[list[list[tuple[float, float]]], list[float]]:
        """What time does until `pts_s`: weight and log S(age) of each run that goes on, and what begins, per action."""
        assert self._evidence_pts_s is not None
        following = self._following
        begin = [0.0] * len(self._actions)
        going_on: list[list[tuple[float, float]]] = []
        left = 0.0
        for index, runs in enumerate(self._runs):
            if not runs:
                going_on.append([])
                continue
            table = self._survival[index]
            aged = []
            leaving = 0.0
            for run in runs:
                age_s = pts_s - run.start_pts_s
                whole = int(age_s) if age_s < _OLDEST_S else _OLDEST_S
                low = table[whole]
                alive = low + (age_s - whole) * (table[whole + 1] - low)
                weight = run.weight * math.exp(min(0.0, alive - run.log_alive))
                leaving += run.weight - weight
                aged.append((weight, alive))
            going_on.append(aged)
            left += leaving
            for other, share in enumerate(following[index]):
                begin[other] += leaving * share
        # In a long blind time more than one clip may have come and gone: any action may be going on.
        known = math.exp((self._evidence_pts_s - pts_s) / self._config.mean_clip_s)
        unknown = (1.0 - known) * left / len(begin)
        return going_on, [known * value + unknown for value in begin]

    def _observe(self, pts_s: float, likelihood: list[float]) -> None:
        begin = likelihood
        total = 0.0
        if self._evidence_pts_s is not None:
            going_on, begin = self._pass(pts_s)
            begin = [value * factor for value, factor in zip(begin, likelihood, strict=True)]
            for runs, aged, factor in zip(self._runs, going_on, likelihood, strict=True):
                for run, (weight, alive) in zip(runs, aged, strict=True):
                    run.weight, run.log_alive = weight * factor, alive
                    total += run.weight
        self._evidence_pts_s = pts_s
        total += sum(begin)
        if total < 1e-300:  # the evidence rules out all that was believed: believe the evidence
            self._runs = [[] for _ in self._actions]
            begin, total = likelihood, sum(likelihood)
        least = _LEAST * total
        for index, value in enumerate(begin):
            runs = self._runs[index]
            if runs:
                # What began within this half second may still grow, at any frame rate.
                runs = [run for run in runs if run.weight > least or run.start_pts_s > pts_s - _CELL_S]
            if value > 0.0:
                self._begin(runs, pts_s, value)
            for run in runs:
                run.weight /= total
            self._runs[index] = runs
            self._belief[index] = sum([run.weight for run in runs])

    def _begin(self, runs: list[_Run], pts_s: float, weight: float) -> None:
        """Enter the hypothesis that the action of `runs` began at `pts_s`."""
        if runs and math.floor(runs[-1].start_pts_s / _CELL_S) == math.floor(pts_s / _CELL_S):
            newest = runs[-1]
            if newest.weight >= weight:
                newest.weight += weight
                return
            weight += newest.weight
            runs.pop()
        elif len(runs) >= _STARTS:
            runs.remove(min(runs, key=lambda run: run.weight))
        runs.append(_Run(pts_s, self._observed_s, weight))

    def _declare(self, pts_s: float) -> tuple[ClipEvent, ...]:
        open_, belief = self._open, self._belief
        peak = max(belief)
        index = belief.index(peak)
        if index != self._leader:
            self._leader, self._led_from_s = index, self._observed_s
        if open_ is not None:
            if belief[open_.index] >= peak:
                open_.belief.absorb(open_.doubt)
                open_.doubt = _Mean()
                open_.belief.add(belief[open_.index])
                return ()
            open_.doubt.add(belief[open_.index])
        rival = belief[open_.index] if open_ is not None else max((*belief[:index], *belief[index + 1 :], 0.0))
        asked = max(0.0, 1.0 - (self._observed_s - self._led_from_s) / _SETTLED_S)
        if peak < rival * self._config.declare_odds**asked:
            return ()
        # The open clip was there: what replaces it began after it.
        runs = [run for run in self._runs[index] if open_ is None or run.start_pts_s > open_.start_pts_s]
        start_pts_s, seen_s = pts_s, self._observed_s
        if runs:
            best = max(runs, key=lambda run: run.weight)
            start_pts_s, seen_s = best.start_pts_s, best.seen_s
        # A nanosecond of tolerance: sums of frame intervals fall short of the dwell by rounding.
        if self._observed_s - seen_s < self._config.min_dwell_s - 1e-9:
            return ()
        closed = () if open_ is None else (self._closed(open_, start_pts_s, pts_s),)
        self._open = _Open(index, start_pts_s, _Mean(peak, 1), _Mean())
        clip = Clip(self._actions[index], start_pts_s, pts_s, min(1.0, peak))
        return (*closed, ClipEvent("opened", clip, pts_s))

    def _closed(self, clip: _Open, end_pts_s: float, decided_pts_s: float) -> ClipEvent:
        return ClipEvent(
            "closed", Clip(self._actions[clip.index], clip.start_pts_s, end_pts_s, clip.belief.value), decided_pts_s
        )
