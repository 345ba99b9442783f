"""The planner that asks a language model: prompts, the two lanes, captions and fusion, for any number of streams.

    request ─▶ [caption] ─▶ rank lane ─▶ fusion with the statistical planner ─▶ plan        within the deadline
                                                     └▶ chain, then rationale ─▶ updates      afterwards, at lower priority

A chain is ranked on over imagined histories: the top action is taken as done next, and the model is asked what follows, from labels
alone, since nobody has seen that frame. One chain is followed (beam 1), all its orders of choices in one batch.
"""

from __future__ import annotations

import itertools
import re
import secrets
import time
from collections.abc import AsyncIterator
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_agent.clock import NS_PER_S
from stream_agent.config import PlannerConfig
from stream_agent.errors import BackendError, ConfigError
from stream_agent.messages import (
    RANKED,
    ChainStep,
    Clip,
    Hashes,
    Memory,
    Plan,
    PlanRequest,
    PlanUpdate,
    RankedAction,
    Rationale,
)
from stream_agent.models.model_files import digest_of, model_files
from stream_agent.planner.backends.protocol import Backend, Call, Capabilities
from stream_agent.planner.captions import Caption, Captions
from stream_agent.planner.fusion import fused, report
from stream_agent.planner.protocol import unanswered
from stream_agent.planner.rank_lane import RankLane, choices_of
from stream_agent.planner.rationale_lane import RationaleLane, contradiction
from stream_agent.procedure import ProcedurePack
from stream_agent.prompts import PromptFactory

RANK, CAPTION, CHAIN, RATIONALE = range(4)
"""Priorities of calls: lower runs first."""

_CHAINS: Final = 256
_CAPTION_SHARE: Final = 0.5
_COUNTED_CLIPS: Final = 16
_DIGESTS: Final = re.compile(r"\b(model|prompt) ([0-9a-f]{12})\b")

Chain = tuple[tuple[str, float], ...]


class LanguagePlanner:
    """Plans with one backend, and captions with it or with another."""

    def __init__(
        self, pack: ProcedurePack, config: PlannerConfig, backend: Backend, captioner: Backend | None = None
    ) -> None:
        """Nothing is started yet.

        Raises:
            ConfigError: The pack has more actions than there are codes.
        """
        self.name = backend.name
        self.explains = config.rationale or (config.chain and config.horizon > 1)
        self._pack = pack
        self._config = config
        self._actions = pack.action_names
        self._backend = backend
        self._captioner = captioner if captioner is not None else backend
        self._factory = PromptFactory(pack, config)
        self._rank = RankLane(
            backend,
            self._factory,
            self._actions,
            permutations=config.permutations,
            temperature=config.temperature,
        )
        self._rationale = RationaleLane(backend, self._factory, max_tokens=config.rationale_tokens)
        self._captions = Captions(self._captioner, self._factory, config)
        self._valid_ns = round(config.valid_s * NS_PER_S)
        self._ids = itertools.count(1)
        self._nonce = secrets.token_hex(8)
        self._chains: dict[tuple[str, ...], Chain] = {}
        self._hashes = Hashes()

    # ------------------------------------------------------------------------------------------------ start and end

    async def start(self) -> list[str]:
        """Start the backends; what a person may want to know of them, one line each.

        Raises:
            ConfigError: A model cannot do what is configured, or a prompt does not fit it.
            BackendError: An engine failed to start.
        """
        able = await self._backend.start()
        told = [_told("planner", self._backend, able)]
        digests = [able.digest]
        eyes = able
        if self._captioner is not self._backend:
            eyes = await self._captioner.start()
            digests.append(eyes.digest)
            told.append(_told("captioner", self._captioner, eyes))
        if self._config.wants_pictures and not eyes.pictures:
            raise ConfigError(
                f"planner.memory={self._config.memory} shows the model frames, but {eyes.model} sees none; name a model with eyes"
                " or set planner.memory=labels_only"
            )
        self._rank.check_codes()
        self._hashes = Hashes(
            model="+".join(digests),
            adapter=_adapter_digest(self._config),
            prompt=self._factory.digest,
            knowledge=self._pack.knowledge_digest,
        )
        room = self._room(able)
        await self._warm_up()
        return [*told, self._fitted(), *room]

    def _fitted(self) -> str:
        config = self._config
        parts = [f"temperature {config.temperature:g} ({config.temperature_fitted_on or 'not fitted'})"]
        if config.fusion.enabled:
            parts.append(f"fusion weight {config.fusion.model:g} ({config.fusion.fitted_on or 'not fitted'})")
        told = f"planner: prompt {self._factory.digest}, {', '.join(parts)}"
        return f"{told}; {self._misfit()}" if self._misfit() else told

    def _misfit(self) -> str:
        """What the calibration was fitted for and this is not, where it names digests; empty when nothing is amiss."""
        fitted_on = f"{self._config.temperature_fitted_on} {self._config.fusion.fitted_on}"
        now = {"model": self._hashes.model.partition("+")[0], "prompt": self._factory.digest}
        other = [
            f"{part} {digest}"
            for part, digest in dict.fromkeys(_DIGESTS.findall(fitted_on))
            if now[part] and digest != now[part]
        ]
        return f"fitted for {' and '.join(other)}, so fit anew with `train calibration`" if other else ""

    def _room(self, able: Capabilities) -> list[str]:
        """How long a history fits the model, where its tokens can be counted here; pictures and captions take theirs off it.

        Raises:
            ConfigError: None does.
        """
        empty, some = (self._counted(clips) for clips in (0, _COUNTED_CLIPS))
        if empty is None or some is None:
            return []
        answer = self._config.rationale_tokens if self._config.rationale else 1
        left = able.context_tokens - empty - answer
        if left <= 0:
            raise ConfigError(
                f"planner.context_tokens={able.context_tokens} is less than the {empty} tokens of a prompt without history and "
                f"{answer} of its answer; raise it or set planner.knowledge=short"
            )
        clips = left * _COUNTED_CLIPS // max(1, some - empty)
        return [
            f"planner: a prompt takes {empty} of {able.context_tokens} tokens, and each clip more; about {clips} fit"
        ]

    def _counted(self, clips: int) -> int | None:
        """About the tokens of a prompt that tells of so many clips; None where the backend cannot tell."""
        action = max(self._actions, key=len)
        closed = tuple(Clip(action, 60.0 * at, 60.0 * at + 60.0, 1.0) for at in range(clips))
        memory = Memory(stream_id="", session_id="", case_id="", now_pts_s=60.0 * clips, clips=closed, current=action)
        request = PlanRequest(request_id=0, memory=memory, deadline_ns=0)
        choices = choices_of(self._actions, action)
        prompt = (
            self._factory.rationale(request, choices)
            if self._config.rationale
            else self._factory.ranking(request, [choices])[0]
        )
        text = "".join(part for message in prompt.messages for part in message.parts if isinstance(part, str))
        tokens = self._backend.tokens(text)
        return None if tokens is None else len(tokens)

    async def close(self) -> None:
        """Stop captions and engines."""
        await self._captions.close()
        await self._backend.close()
        if self._captioner is not self._backend:
            await self._captioner.close()

    # ------------------------------------------------------------------------------------------------ the rank lane

    async def plan(self, request: PlanRequest) -> Plan:
        """The ranking, fused where the request brings the statistical planner's.

        Raises:
            BackendError: The engine failed, or its answer is none.
        """
        if request.memory.near is None:
            raise BackendError("the request has no near frame")
        begun_ns = time.monotonic_ns()
        caption, notes = await self._caption(request)
        captioned_ns = time.monotonic_ns()
        text = caption.text if caption is not None else ""
        [belief] = await self._rank.rank([request], self._call(request, RANK), [text])
        ranked_ns = time.monotonic_ns()
        plan = self._plan(request, belief)
        plan = msgspec.structs.replace(
            plan,
            caption=text,
            caption_age_s=round(request.memory.now_pts_s - caption.pts_s, 3) if caption is not None else None,
            notes=notes,
            hashes=self._hashes,
            chain=self._chain(request, plan),
        )
        if request.patient:
            return plan  # a time that was measured differs on every run
        spans = {"rank": (ranked_ns - captioned_ns) / 1e6}
        if self._config.form == "indirect":
            spans["caption"] = (captioned_ns - begun_ns) / 1e6
        return msgspec.structs.replace(plan, spans_ms=spans)

    def _plan(self, request: PlanRequest, belief: NDArray[np.float64]) -> Plan:
        config, current = self._config.fusion, request.memory.current
        plan = unanswered(request, source="vlm", planner=self.name, valid_ns=self._valid_ns)
        if config.enabled and request.statistical:
            place = self._actions.index(current) if current is not None else None
            pooled = fused(request.statistical, belief, config, current=place)
            plan = msgspec.structs.replace(plan, source="fused", fusion=report(request.statistical, belief, config))
            belief = pooled
        best = np.argsort(-belief, kind="stable")[:RANKED]
        return msgspec.structs.replace(
            plan,
            ranked=tuple(RankedAction(self._actions[at], float(belief[at])) for at in best),
            distribution=tuple(map(float, belief)),
        )

    async def _caption(self, request: PlanRequest) -> tuple[Caption | None, tuple[str, ...]]:
        if not self._config.wants_pictures:
            return None, ()
        if self._config.form == "direct":
            return None, () if request.picture is not None else ("the frame had no picture: ranked from labels alone",)
        wait_s = max(0.05, request.budget_ms / 1000 * _CAPTION_SHARE) if request.budget_ms else 60.0
        caption, problem = await self._captions.of(request, self._call(request, CAPTION), wait_s=wait_s)
        return caption, (f"{problem}: ranked from labels alone",) if problem else ()

    # ------------------------------------------------------------------------------------------------ afterwards

    async def more(self, request: PlanRequest, plan: Plan) -> AsyncIterator[PlanUpdate]:
        """The chain and the rationale of a plan, as they come; a rationale that fails is told as a problem.

        Raises:
            BackendError: The engine is lost.
        """
        try:
            if self._config.chain and not plan.chain and request.horizon > 1:
                await self._find_chain(request, plan.ranked[0].action)
                yield _update(plan, chain=self._chain(request, plan))
            if self._config.rationale:
                async for update in self._explain(request, plan):
                    yield update
        except BackendError as error:
            if error.lost:
                raise
            yield _update(plan, problem=str(error))

    async def _explain(self, request: PlanRequest, plan: Plan) -> AsyncIterator[PlanUpdate]:
        choices = choices_of(self._actions, request.memory.current)
        async for said in self._rationale.explain(request, choices, self._call(request, RATIONALE), plan.caption):
            if isinstance(said, str):
                yield _update(plan, text=said)
                continue
            own = plan.fusion.model if plan.fusion is not None else plan.distribution
            ranked = sorted(choices, key=lambda action: -own[self._actions.index(action)])[:RANKED]
            disagreement = contradiction([action for action, _ in said.ranked], ranked)
            yield _update(plan, rationale=msgspec.structs.replace(said, contradiction=disagreement))

    async def _find_chain(self, request: PlanRequest, top: str) -> None:
        """Rank on until the horizon, and keep the result: it depends on labels alone, and on no frame."""
        memory = request.memory
        chain: Chain = ((top, 1.0),)
        while len(chain) < request.horizon:
            memory = imagined(memory, chain[-1][0])
            ahead = PlanRequest(request_id=request.request_id, memory=memory, deadline_ns=0, goal=request.goal)
            [belief] = await self._rank.rank([ahead], self._call(request, CHAIN))
            counted = self._pack.next_action_probabilities(memory.labels)
            prior = [counted.get(action, 0.0) for action in self._actions]
            if self._config.fusion.enabled:
                place = self._actions.index(chain[-1][0])
                belief = fused(prior, belief, self._config.fusion, current=place)
            best = int(np.argmax(belief))
            chain = (*chain, (self._actions[best], chain[-1][1] * float(belief[best])))
        if len(self._chains) >= _CHAINS:
            self._chains.clear()
        self._chains[self._chain_key(request, top)] = chain

    def _chain(self, request: PlanRequest, plan: Plan) -> tuple[ChainStep, ...]:
        """The chain that is known for the plan's top action, with onsets from the pack's durations."""
        top = plan.ranked[0]
        chain = self._chains.get(self._chain_key(request, top.action), ())
        durations = self._pack.model.durations.get(request.memory.current or "")
        if not chain or durations is None:
            return ()
        going_s = request.memory.now_pts_s - request.memory.current_start_pts_s
        onset_s = durations.remaining_s(going_s, 0.5)
        steps = []
        for action, share in chain:
            steps.append(ChainStep(action, top.probability * share, round(onset_s, 1)))
            onset_s += self._pack.duration_s(action, 0.5)
        return tuple(steps)

    def _chain_key(self, request: PlanRequest, top: str) -> tuple[str, ...]:
        memory = request.memory
        return (memory.stream_id, memory.case_id, str(request.horizon), str(memory.evictions), *memory.labels, top)

    # ------------------------------------------------------------------------------------------------ calls

    def _call(self, request: PlanRequest, priority: int) -> Call:
        memory = request.memory
        deadline_ns = 0
        if priority == RANK and request.budget_ms:
            deadline_ns = time.monotonic_ns() + round(request.budget_ms * 1e6)
        return Call(
            id=f"{self._nonce}-{next(self._ids)}",
            priority=priority,
            deadline_ns=deadline_ns,
            salt=f"{self._nonce}/{memory.stream_id}/{memory.case_id}",  # no cache of one case serves another
            adapter=self._config.adapter,
        )

    async def _warm_up(self) -> None:
        """One ranking for nobody, so that the first plan of a case is not the slowest; it proves the engine answers.

        Raises:
            ConfigError: Not even a prompt without history fits the model; no new process would mend that.
        """
        memory = Memory(stream_id="", session_id="", case_id="", now_pts_s=0.0, current=self._actions[0])
        request = PlanRequest(request_id=0, memory=memory, deadline_ns=0)
        try:
            await self._rank.rank([request], self._call(request, RANK))
        except BackendError as error:
            if error.too_long:
                raise ConfigError(str(error)) from error
            raise


def imagined(memory: Memory, action: str) -> Memory:
    """The memory as it will be if `action` comes next: the current clip closed, no frame seen yet."""
    clips = memory.clips
    if memory.current is not None:
        clips = (*clips, Clip(memory.current, memory.current_start_pts_s, memory.now_pts_s, memory.current_confidence))
    return msgspec.structs.replace(
        memory, clips=clips, current=action, current_start_pts_s=memory.now_pts_s, current_confidence=1.0, near=None
    )


def _update(
    plan: Plan,
    *,
    text: str = "",
    chain: tuple[ChainStep, ...] = (),
    rationale: Rationale | None = None,
    problem: str = "",
) -> PlanUpdate:
    return msgspec.structs.replace(
        PlanUpdate(
            stream_id=plan.stream_id, session_id=plan.session_id, request_id=plan.request_id, seq=plan.seq, text=text
        ),
        chain=chain,
        rationale=rationale,
        problem=problem,
    )


def _adapter_digest(config: PlannerConfig) -> str:
    """As the registry names it; a server's adapter, whose files are not here, by the name that the server knows it by."""
    folder = config.adapters.get(config.adapter)
    if folder is None or not folder.is_dir():
        return config.adapter
    return digest_of("adapter", model_files(folder))


def _told(part: str, backend: Backend, able: Capabilities) -> str:
    notes = "; ".join(able.notes)
    return f"{part}: {able.model} ({backend.name}, digest {able.digest or 'unknown'}){': ' + notes if notes else ''}"
