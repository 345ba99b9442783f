"""What planners by themselves believe comes next, sample by sample: a language model asked through the agent's own prompts and rank
lane, and the statistical planner fitted without the video that is asked about.

Nothing is fused or calibrated here; who does that afterwards needs no model any more.
"""  # noqa: D205

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from stream_agent.config import PlannerConfig
from stream_agent.errors import ConfigError
from stream_agent.evaluation.metrics import Outcome
from stream_agent.evaluation.protocols import Fold, Questions, Training
from stream_agent.evaluation.samples import Presence, Question, Sample, Videos, as_memory
from stream_agent.messages import RANKED, NearPicture, PastPlan, PlanRequest
from stream_agent.planner.backends import build_backend
from stream_agent.planner.backends.protocol import Backend, Call, Capabilities
from stream_agent.planner.rank_lane import RankLane
from stream_agent.planner.statistical import StatisticalPlanner
from stream_agent.procedure import ProcedurePack
from stream_agent.prompts import PromptFactory

Beliefs: TypeAlias = NDArray[np.float64]
"""Probability of each of the pack's actions, (samples, actions); 0 at the action going on, every row sums to 1."""

Pictures: TypeAlias = Callable[[Question], tuple[NearPicture, ...]]
"""What the camera shows at a question, the near frame last; nothing where there is no frame."""

Captions: TypeAlias = Callable[[Question], str]


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """Samples with what a model believed of each.

    Attributes:
        samples: Those that were asked.
        beliefs: (samples, actions), in pack order.
        prompt: Digest of the prompts.
        ms_p50: Median time of one ranking.
        cached_share: Share of the prompts' tokens that the engine held already.
    """

    samples: tuple[Sample, ...]
    beliefs: Beliefs
    prompt: str
    ms_p50: float
    cached_share: float


class LanguageModel:
    """A backend that is started once and asked under any settings of prompts and rank lane."""

    def __init__(self, pack: ProcedurePack, config: PlannerConfig) -> None:
        """Nothing is started yet.

        Raises:
            ConfigError: `planner.kind` names no language model.
        """
        if config.kind in ("none", "scripted"):
            raise ConfigError(
                f"planner.kind={config.kind} is no language model; choose transformers, vllm, openai or rehearsed"
            )
        self._pack = pack
        self._backend: Backend = build_backend(config)
        self._ids = itertools.count()
        self.able: Capabilities | None = None

    async def start(self) -> Capabilities:
        """Load the model.

        Raises:
            ConfigError: It cannot do what is needed.
            BackendError: It does not start.
        """
        self.able = await self._backend.start()
        return self.able

    async def close(self) -> None:
        """Let go of it."""
        await self._backend.close()

    async def ask(
        self,
        samples: Sequence[Sample],
        config: PlannerConfig,
        *,
        pictures: Pictures | None = None,
        captions: Captions | None = None,
        continuous: bool = False,
        seen: Callable[[], None] = lambda: None,
    ) -> Asked:
        """The model's own belief about every sample, at temperature 1.

        Args:
            samples: In the order of videos and time.
            config: How to ask; what concerns the backend itself was settled when it was built.
            pictures: Frames for prompts that show them.
            captions: What the frames show, for the indirect form.
            continuous: Whether a prompt tells of the model's earlier answers in the same video and of what came then.
            seen: Called after each sample.

        Raises:
            BackendError: The engine failed, or gave no belief.
            ConfigError: The codes are no single tokens.
        """
        factory = PromptFactory(self._pack, config)
        lane = RankLane(
            self._backend, factory, self._pack.action_names, permutations=config.permutations, temperature=1.0
        )
        lane.check_codes()
        usage = self._backend.usage()
        tokens, cached = usage.prompt_tokens, usage.cached_tokens
        past = _Past(config.remember_plans if continuous else 0, self._pack.action_names)
        rows, spent_s = [], []
        for sample in samples:
            request = PlanRequest(
                request_id=next(self._ids),
                memory=as_memory(sample.question),
                deadline_ns=0,
                pictures=pictures(sample.question) if pictures is not None else (),
                previous=past.told(sample),
            )
            call = Call(f"ask-{request.request_id}", salt="evaluation", adapter=config.adapter)
            begun = time.perf_counter()
            [belief] = await lane.rank([request], call, [captions(sample.question)] if captions is not None else ())
            spent_s.append(time.perf_counter() - begun)
            past.answered(sample, belief)
            rows.append(belief)
            seen()
        usage = self._backend.usage()
        return Asked(
            samples=tuple(samples),
            beliefs=np.array(rows).reshape(len(rows), len(self._pack.action_names)),
            prompt=factory.digest,
            ms_p50=round(float(np.median(spent_s)) * 1000, 1) if spent_s else 0.0,
            cached_share=round((usage.cached_tokens - cached) / max(1, usage.prompt_tokens - tokens), 3),
        )


class _Past:
    """Earlier answers in one video with their outcome, as the agent tells them (planner/past_plans.py)."""

    def __init__(self, most: int, actions: Sequence[str]) -> None:
        self._actions = tuple(actions)
        self._told: deque[PastPlan] = deque(maxlen=most)
        self._video = ""

    def told(self, sample: Sample) -> tuple[PastPlan, ...]:
        if sample.question.video != self._video:
            self._video = sample.question.video
            self._told.clear()
        return tuple(self._told)

    def answered(self, sample: Sample, belief: NDArray[np.float64]) -> None:
        if sample.question.current is not None:
            best = tuple(self._actions[at] for at in _best(belief))
            self._told.append(PastPlan(during=sample.question.current, expected=best, happened=sample.target))


def statistical_beliefs(
    folds: Sequence[Fold],
    videos: Videos,
    presence: Mapping[str, Presence],
    samples: Sequence[Sample],
    actions: Sequence[str],
    fit: Callable[[Training], StatisticalPlanner],
) -> Beliefs:
    """The statistical planner's belief about each sample, by a planner of the fold whose test side holds its video.

    Raises:
        ValueError: A sample's video is on no fold's test side.
    """
    questions = Questions(videos, presence)
    rows: dict[int, tuple[float, ...]] = {}
    for fold in folds:
        places = [place for place, sample in enumerate(samples) if sample.question.video in fold.test]
        if not places:
            continue
        chosen = {name: videos[name] for name in fold.train}
        seen = {name: presence[name] for name in fold.train if name in presence}
        # A sample is put where an action ends, and that is part of the question.
        planner = fit(Training(chosen, seen, "causal", questions)).told_of_changes()
        for place in places:
            memory = as_memory(samples[place].question)
            plan = planner.plan(PlanRequest(request_id=0, memory=memory, deadline_ns=0))
            rows[place] = plan.distribution
    if len(rows) != len(samples):
        raise ValueError(f"{len(samples) - len(rows)} samples are on no fold's test side")
    return np.array([rows[place] for place in range(len(samples))]).reshape(len(samples), len(actions))


def outcomes(samples: Sequence[Sample], beliefs: Beliefs, actions: Sequence[str]) -> list[Outcome]:
    """The three likeliest actions of each belief, as the metrics take them."""
    return list(_outcomes(samples, beliefs, tuple(actions)))


def _outcomes(samples: Sequence[Sample], beliefs: Beliefs, actions: tuple[str, ...]) -> Iterator[Outcome]:
    for sample, belief in zip(samples, beliefs, strict=True):
        best = _best(belief)
        yield Outcome(
            sample.question.video,
            sample.index,
            sample.target,
            sample.following,
            tuple(actions[at] for at in best),
            tuple(float(belief[at]) for at in best),
        )


def _best(belief: NDArray[np.float64]) -> list[int]:
    return [int(at) for at in np.argsort(-belief, kind="stable")[:RANKED]]
