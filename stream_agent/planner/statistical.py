"""The planner that always has an answer: label history and durations of a procedure pack, in under a millisecond.

Probabilities come from the pack's model over the whole memory (planner/ensemble.py) where it has one, else, and always for
the chain's later steps, from its n-gram (planner/ngram.py); onsets from its durations (planner/durations.py), cautions
and the phase from its rules. Every sentence cites counts; nothing is made up. What depends on the last few labels alone is
built once per context and kept. A rationale of the model adds the observations that spoke most for its action.

An onset is a median with its 10 % to 90 % range, given how long the current action has lasted already; later onsets of the
chain add the median durations of the actions between. A chain step's probability is that of the chain up to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeVar

import msgspec

from stream_agent.clock import NS_PER_S
from stream_agent.config import PlannerConfig
from stream_agent.messages import RANKED, ChainStep, Hashes, Memory, Plan, PlanRequest, RankedAction
from stream_agent.planner.ladder import abstention
from stream_agent.planner.ngram import START
from stream_agent.planner.protocol import unanswered
from stream_agent.procedure import ProcedurePack
from stream_agent.rules import CaseFacts

FEWEST_MOMENTS: Final = 10
"""A rationale cites the longest context that was counted at least so often."""

BEAM: Final = 4
"""Chains followed at once while the likeliest one is looked for."""

CITED: Final = 2
"""Observations that a rationale of the model cites at most."""

_CACHE_SIZE: Final = 4096

KeyT = TypeVar("KeyT")
ValueT = TypeVar("ValueT")


class StatisticalPlanner:
    """Plans from the memory's labels and times; one thread uses it."""

    name = "statistical"

    def __init__(self, pack: ProcedurePack, config: PlannerConfig, *, told_of_changes: bool = False) -> None:
        """Plans from the models of `pack`.

        `told_of_changes` is for questions that are put only where the current action is known to end, as the samples of
        a benchmark are; live nobody knows, and the plan says what comes next whenever that may be.
        """
        self._pack = pack
        self._config = config
        self._told_of_changes = told_of_changes
        self._model = pack.model
        self._valid_ns = round(config.valid_s * NS_PER_S)
        self._abstain_below = config.abstain_below
        self._ensemble = pack.ensemble
        digests = [pack.model.digest] if pack.ensemble is None else [pack.model.digest, pack.ensemble.digest]
        self._hashes = Hashes(model="+".join(digests), knowledge=pack.knowledge_digest)
        self._median_s = {action: pack.duration_s(action, 0.5) for action in pack.action_names}
        self._phase_texts = {
            phase.name: f"Phase {index} of {len(pack.phases)}, {phase.name}: {phase.description}"
            for index, phase in enumerate(pack.phases, start=1)
        }
        self._chains: dict[tuple[tuple[str, ...], str, int], tuple[tuple[str, float], ...]] = {}
        self._rationales: dict[tuple[tuple[str, ...], str], str] = {}

    def told_of_changes(self) -> StatisticalPlanner:
        """The same planner for questions that are put only where the current action is known to end."""
        return StatisticalPlanner(self._pack, self._config, told_of_changes=True)

    def plan(self, request: PlanRequest) -> Plan:
        """Three ranked next actions; an abstention before the first frame, or when too unsure.

        Whatever the memory holds, it never fails.
        """
        memory = request.memory
        asked = unanswered(request, source="statistical", planner=self.name, valid_ns=self._valid_ns)
        if memory.near is None:
            return abstention(msgspec.structs.replace(asked, hashes=self._hashes), "no frame has arrived yet")
        facts = self._pack.facts(memory)
        context = self._model.context(memory.labels, complete=not memory.folded)
        probabilities, ranked = self._ranked(memory, context)
        if ranked[0].probability < self._abstain_below:
            unsure = f"no action is likely enough: {ranked[0].probability:.2f} is below {self._abstain_below:g}"
            return abstention(msgspec.structs.replace(asked, hashes=self._hashes), unsure)
        onset_s, interval_s = self._onset(facts)
        return msgspec.structs.replace(
            asked,
            ranked=ranked,
            distribution=tuple(probabilities.get(action, 0.0) for action in self._pack.action_names),
            progress=self._progress(facts),
            safety=self._safety(memory, facts, ranked),
            expected_onset_s=onset_s,
            expected_onset_interval_s=interval_s,
            chain=() if onset_s is None else self._chain(context, ranked[0], request.horizon, onset_s),
            hashes=self._hashes,
        )

    def _ranked(self, memory: Memory, context: tuple[str, ...]) -> tuple[Mapping[str, float], tuple[RankedAction, ...]]:
        """The probability of every action that may come next, and the likeliest three with their evidence."""
        counted = self._model.after(context)
        if self._ensemble is None:
            return counted, tuple(
                RankedAction(action, counted[action], self._counts_cited(context, action)) for action in _best(counted)
            )
        head, features = self._ensemble.head(memory)
        probabilities = self._ensemble.mixed(head, features, counted)
        if not self._told_of_changes:
            probabilities = self._ensemble.unless_ending(memory, head, features, probabilities, counted)
        ranked = []
        for action in _best(probabilities):
            cited = self._ensemble.reasons(head, features, action, most=CITED)
            text = "; ".join([self._counts_cited(context, action), *cited])
            ranked.append(RankedAction(action, probabilities[action], text))
        return probabilities, tuple(ranked)

    def _counts_cited(self, context: tuple[str, ...], action: str) -> str:
        return _remembered(self._rationales, (context, action), lambda: self._rationale(context, action))

    def _likeliest_chain(self, context: tuple[str, ...], top: str, horizon: int) -> tuple[tuple[str, float], ...]:
        """Beam search from the top action, taken as certain, over imagined histories; no action follows itself."""
        complete = context[:1] == (START,)
        past = context[1:] if complete else context
        beams: list[tuple[tuple[str, float], ...]] = [((top, 1.0),)]
        for _ in range(horizon - 1):
            grown: list[tuple[tuple[str, float], ...]] = []
            for chain in beams:
                imagined = (*past, *(action for action, _ in chain))
                following = self._model.after(self._model.context(imagined, complete=complete))
                grown.extend(
                    (*chain, (action, chain[-1][1] * probability)) for action, probability in following.items()
                )
            grown.sort(key=lambda chain: -chain[-1][1])
            beams = grown[:BEAM]
        return beams[0]

    def _chain(
        self, context: tuple[str, ...], top: RankedAction, horizon: int, onset_s: float
    ) -> tuple[ChainStep, ...]:
        steps = []
        key = (context, top.action, horizon)
        for action, share in _remembered(self._chains, key, lambda: self._likeliest_chain(*key)):
            steps.append(ChainStep(action, top.probability * share, round(onset_s, 1)))
            onset_s += self._median_s[action]
        return tuple(steps)

    def _onset(self, facts: CaseFacts) -> tuple[float | None, tuple[float, float] | None]:
        durations = self._model.durations.get(facts.current or "")
        if durations is None:
            return None, None
        low, middle, high = (round(durations.remaining_s(facts.current_s, level), 1) for level in (0.1, 0.5, 0.9))
        return middle, (low, high)

    def _safety(self, memory: Memory, facts: CaseFacts, ranked: tuple[RankedAction, ...]) -> tuple[str, ...]:
        cautions = self._pack.cautions(memory, ranked, facts=facts)
        top = self._pack.action(ranked[0].action)
        return cautions if top is None else (*cautions, *top.safety)

    def _rationale(self, context: tuple[str, ...], action: str) -> str:
        """The counts behind a rank, with the context that they were made in."""
        procedures = self._model.file.procedures
        support = self._model.support(context, action, least=FEWEST_MOMENTS if procedures else 1)
        where = _after(support.context)
        if procedures:
            return (
                f"{where} → {action} ({support.count:g} of {support.total:g} such moments in {procedures} procedures)"
            )
        return (
            f"{where} → {action} (weight {support.count:g} of {support.total:g} in an expert's order; no recorded "
            "procedure, n=0)"
        )

    def _progress(self, facts: CaseFacts) -> str:
        phase = self._pack.phase(facts)
        parts = [] if phase is None else [self._phase_texts[phase.name]]
        clips = sum(facts.counts.values())
        if clips == 0:
            parts.append("No action has been recognised yet.")
            return " ".join(parts)
        done = ", ".join(
            f"{action} {facts.counts[action]}× ({_spoken(facts.seconds[action])})"
            for action in sorted(facts.counts, key=lambda name: -facts.seconds[name])
        )
        now = "" if facts.current is None else f"; now {facts.current} for {_spoken(facts.current_s)}"
        total_s = sum(facts.seconds.values())
        parts.append(f"{clips} {'action' if clips == 1 else 'actions'} in {_spoken(total_s)}: {done}{now}.")
        return " ".join(parts)


def _best(probabilities: Mapping[str, float]) -> list[str]:
    """The likeliest actions; sorted() keeps the pack's order among equals, so that ties fall the same way every time."""
    return sorted(probabilities, key=lambda action: -probabilities[action])[:RANKED]


def _remembered(known: dict[KeyT, ValueT], key: KeyT, build: Callable[[], ValueT]) -> ValueT:
    """What is known under `key`, built once; the whole cache is dropped when full."""
    if key not in known:
        if len(known) >= _CACHE_SIZE:
            known.clear()
        known[key] = build()
    return known[key]


def _after(context: tuple[str, ...]) -> str:
    """`after A, B`, or `at the beginning`, or `whatever came before`."""
    if not context:
        return "whatever came before"
    if context == (START,):
        return "at the beginning"
    if context[0] == START:
        return f"at the beginning, after {', '.join(context[1:])}"
    return f"after {', '.join(context)}"


def _spoken(seconds: float) -> str:
    """`42 s`, `7 min` or `1 h 20 min`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
