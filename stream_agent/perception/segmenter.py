"""From per-frame evidence to clips: a causal, sticky forward filter, and a dwell before a clip is declared.

Two levels. The belief follows a continuous-time Markov chain that leaves every action at rate 1 / mean_clip_s for any
other alike, and is multiplied by each frame's likelihood, posterior / prior to a power: the share of an independent look
that the frame is worth, `evidence_per_s` times the time since the last one, so that 10 Hz say no more than 1 Hz. In closed
form, with K actions, an action is kept over dt with probability 1/K + (1 - 1/K) exp(-dt K / ((K - 1) mean_clip_s)): for
small dt that is the hazard 1 - exp(-dt / mean_clip_s), and cutting dt in pieces changes nothing, so a blind minute costs
the same at 1 fps and at 60. The clips follow the belief's leader once it has led for `min_dwell_s` of observed time; the
new clip then begins where the lead was taken.

Plain floats: for a handful of actions they are faster than NumPy, and memory does not grow with the procedure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from stream_agent.config import SegmenterConfig
from stream_agent.messages import Clip, ClipEvent


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
class _Open:
    """The clip going on."""

    index: int
    start_pts_s: float
    belief: _Mean


@dataclass(slots=True)
class _Candidate:
    """The action that leads but is not declared.

    Attributes:
        index: The action.
        since_pts_s: Where it took the lead.
        led_s: Observed seconds since then.
        belief: In the candidate since then: its clip's if it wins.
        rival: In the open action since then: that clip's if the candidate loses.
    """

    index: int
    since_pts_s: float
    led_s: float
    belief: _Mean
    rival: _Mean


class Segmenter:
    """Clips of one session; feed it rising media times."""

    def __init__(
        self, actions: tuple[str, ...], config: SegmenterConfig, prior: tuple[float, ...] | None = None
    ) -> None:
        """Prepare for a closed set of actions; `prior` is the one inside the posteriors, uniform unless given.

        Raises:
            ValueError: No action, repeated actions, or a prior that is not one positive number per action.
        """
        if not actions or len(set(actions)) != len(actions):
            raise ValueError(f"actions={actions} must be one or more distinct names")
        if prior is not None and (len(prior) != len(actions) or not all(0.0 < value < math.inf for value in prior)):
            raise ValueError(f"prior={prior} must hold one positive number for each of {len(actions)} actions")
        self._actions = actions
        self._config = config
        self._prior = prior
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next step begins a new session."""
        self._belief = [1.0 / len(self._actions)] * len(self._actions)
        self._last_pts_s: float | None = None
        self._last_observed = False
        self._open: _Open | None = None
        self._candidate: _Candidate | None = None

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
        return 0.0 if self._open is None else min(1.0, self._belief[self._open.index])

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
        if self._last_pts_s is not None:
            if since_s <= 0.0:
                return ()
            self._diffuse(since_s)
        observed_s = 0.0
        if likelihood is not None:
            if self._last_observed and self._last_pts_s is not None:
                observed_s = since_s
            self._observe(likelihood)
        self._last_pts_s = pts_s
        self._last_observed = likelihood is not None
        if likelihood is None:
            return ()
        self._follow_leader(pts_s, observed_s)
        return self._declare(pts_s)

    def finish(self, pts_s: float) -> tuple[ClipEvent, ...]:
        """Close the open clip at `pts_s`, or at the last step if that is later, and forget everything."""
        if not math.isfinite(pts_s):
            raise ValueError(f"pts_s={pts_s} is not a time; finish with that of the last frame")
        events: tuple[ClipEvent, ...] = ()
        if self._open is not None:
            end_pts_s = max(pts_s, self._last_pts_s or 0.0)
            if self._candidate is not None:
                self._open.belief.absorb(self._candidate.rival)
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

    def _diffuse(self, dt_s: float) -> None:
        count = len(self._belief)
        if count > 1:
            kept = math.exp(-dt_s * count / ((count - 1) * self._config.mean_clip_s))
            spread = (1.0 - kept) / count
            self._belief = [kept * value + spread for value in self._belief]

    def _observe(self, likelihood: list[float]) -> None:
        product = [belief * value for belief, value in zip(self._belief, likelihood, strict=True)]
        total = sum(product)
        if total < 1e-300:  # the evidence rules out all that was believed: believe the evidence
            product, total = likelihood, sum(likelihood)
        self._belief = [value / total for value in product]

    def _follow_leader(self, pts_s: float, observed_s: float) -> None:
        """Keep account of who leads; a tie goes to the open action, then to the candidate."""
        belief = self._belief
        peak = max(belief)
        open_, candidate = self._open, self._candidate
        if open_ is not None and belief[open_.index] >= peak:
            if candidate is not None:
                open_.belief.absorb(candidate.rival)
                self._candidate = None
            open_.belief.add(belief[open_.index])
            return
        if candidate is None or belief[candidate.index] < peak:
            if candidate is not None and open_ is not None:
                open_.belief.absorb(candidate.rival)
            self._candidate = candidate = _Candidate(belief.index(peak), pts_s, 0.0, _Mean(), _Mean())
        else:
            candidate.led_s += observed_s
        candidate.belief.add(belief[candidate.index])
        if open_ is not None:
            candidate.rival.add(belief[open_.index])

    def _declare(self, pts_s: float) -> tuple[ClipEvent, ...]:
        candidate = self._candidate
        # A nanosecond of tolerance: sums of frame intervals fall short of the dwell by rounding.
        if candidate is None or candidate.led_s < self._config.min_dwell_s - 1e-9:
            return ()
        closed = () if self._open is None else (self._closed(self._open, candidate.since_pts_s, pts_s),)
        self._open = _Open(candidate.index, candidate.since_pts_s, candidate.belief)
        self._candidate = None
        clip = Clip(self._actions[candidate.index], candidate.since_pts_s, pts_s, candidate.belief.value)
        return (*closed, ClipEvent("opened", clip, pts_s))

    def _closed(self, clip: _Open, end_pts_s: float, decided_pts_s: float) -> ClipEvent:
        return ClipEvent(
            "closed", Clip(self._actions[clip.index], clip.start_pts_s, end_pts_s, clip.belief.value), decided_pts_s
        )
