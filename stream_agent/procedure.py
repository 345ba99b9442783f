"""Procedure packs: a folder that tells the agent everything it knows about one procedure.

    pack.yaml       name, goal, the closed set of actions, instruments, phases
    rules.yaml      what must come before what, and when to be careful (rules.py judges them)
    knowledge.md    surgical process, safety protocol and action descriptions, with sources; goes into prompts
    planner.json    the fitted label model (planner/ngram.py)
    ensemble.json   optional: the fitted model over the whole memory (planner/ensemble.py), which planner.json backs off
    segmenter.json  optional: how long clips last and what follows what (perception/segmenter_model.py)

Nothing in the code knows a procedure: another pack is another folder. A broken pack stops the start with one
`ConfigError` that lists every mistake with its file, line and remedy. All files are data and are never run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, Field

from stream_agent.config import Section, configs_directory
from stream_agent.errors import ConfigError
from stream_agent.located_yaml import LocatedYaml, Location, close_match, dotted, json_line, read_text
from stream_agent.messages import RANKED, Memory, RankedAction
from stream_agent.perception.segmenter_model import FILE_NAME as SEGMENTER_FILE
from stream_agent.perception.segmenter_model import SegmenterModel, load_segmenter_model
from stream_agent.planner.ensemble import FILE_NAME, Ensemble, load_ensemble
from stream_agent.planner.ngram import NgramModel, load_model
from stream_agent.rules import SEVERITIES, CaseFacts, CautionWhen, Condition, Label, Rule, Text

FEWEST_ACTIONS = RANKED + 1
"""Three ranked next actions and the current one, which is never among them."""

CAUTION_PROBABILITY = 0.1
"""A broken rule is worth a caution from this probability of the ranked action on."""

_TEXT_SUFFIXES = (".json", ".md", ".yaml")
_FITTED = ("planner.json", FILE_NAME)

T = TypeVar("T")
ModelT = TypeVar("ModelT", bound=BaseModel)


class ActionSpec(Section):
    """One action of the closed set."""

    name: Label = Field(description="As in labels, prompts and plans.")
    code: Annotated[str, Field(min_length=2, max_length=6, pattern=r"^[A-Z0-9]+$")] = Field(
        description="Short form for narrow displays."
    )
    description: Text = Field(description="What the surgeon does, in a sentence or two.")
    instruments: Annotated[tuple[Label, ...], Field(max_length=16)] = Field(
        default=(), description="Instruments it is done with, the usual one first."
    )
    safety: Annotated[tuple[Text, ...], Field(max_length=8)] = Field(
        default=(), description="What to mind whenever it is next."
    )


class Phase(Section):
    """One phase of the procedure; the last one in order whose condition holds is the one taken to be going on."""

    name: Label
    description: Text
    when: Condition = Condition()


class PackFile(Section):
    """What `pack.yaml` holds."""

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    title: Text
    version: Annotated[str, Field(min_length=1, max_length=32, pattern=r"^[0-9][0-9A-Za-z.+-]*$")]
    goal: Annotated[str, Field(min_length=1, max_length=2000)]
    actions: Annotated[tuple[ActionSpec, ...], Field(max_length=64)]
    instruments: Annotated[tuple[Label, ...], Field(max_length=64)]
    phases: Annotated[tuple[Phase, ...], Field(max_length=64)] = ()


class RulesFile(Section):
    """What `rules.yaml` holds."""

    rules: Annotated[tuple[Rule, ...], Field(max_length=256)]


@dataclass(frozen=True, slots=True, eq=False)
class ProcedurePack:
    """Everything known about one procedure; read-only once loaded.

    Attributes:
        name: Short name, lower case.
        title: For people.
        version: The pack's own.
        folder: Where it was loaded from; recognisers find their files there.
        goal: The goal of the procedure in words.
        actions: The closed set, in the order of every posterior.
        instruments: In the order of every presence vector.
        phases: In their usual order.
        knowledge: The text of `knowledge.md`.
        knowledge_digest: Twelve hex digits of its sha256.
        rules: In file order.
        model: The fitted label model.
        ensemble: The fitted model over the whole memory; None when the pack has none.
        segmenter_model: Fitted durations and order of actions; None when the pack has none.
    """

    name: str
    title: str
    version: str
    folder: Path
    goal: str
    actions: tuple[ActionSpec, ...]
    instruments: tuple[str, ...]
    phases: tuple[Phase, ...]
    knowledge: str
    knowledge_digest: str
    rules: tuple[Rule, ...]
    model: NgramModel
    ensemble: Ensemble | None
    segmenter_model: SegmenterModel | None
    _digest: str
    _by_name: Mapping[str, ActionSpec] = field(repr=False)

    @property
    def action_names(self) -> tuple[str, ...]:
        """Names of the actions, in pack order."""
        return tuple(self._by_name)

    def digest(self) -> str:
        """Twelve hex digits of sha256 over the names and bytes of the pack's text files."""
        return self._digest

    def action(self, name: str) -> ActionSpec | None:
        """The action of that name; None if the pack has none."""
        return self._by_name.get(name)

    def instruments_of(self, action: str) -> tuple[str, ...]:
        """Instruments `action` is done with, the usual one first; none for an unknown action."""
        spec = self._by_name.get(action)
        return () if spec is None else spec.instruments

    def next_action_probabilities(self, labels: Sequence[str]) -> dict[str, float]:
        """Probability of every action but the last of `labels` (the current one) to come next; sums to 1."""
        return self.model.next_probabilities(labels)

    def duration_s(self, action: str, quantile: float) -> float:
        """Seconds within which a fraction `quantile` of the clips of `action` end.

        Raises:
            ConfigError: The pack has no such action.
            ValueError: `quantile` is not in [0, 1).
        """
        durations = self.model.durations.get(action)
        if durations is None:
            raise ConfigError(
                f"action={action} is not one of {self.name}: {', '.join(self.action_names)}; use one of them"
            )
        return durations.quantile(quantile)

    def facts(self, memory: Memory) -> CaseFacts:
        """What rules and phases look at, read off `memory` once."""
        return CaseFacts(memory, self.instruments)

    def violations(self, memory: Memory, action: str) -> tuple[Rule, ...]:
        """The rules that beginning `action` now would break, in file order."""
        facts = self.facts(memory)
        return tuple(rule for rule in self.rules if rule.violated(facts, action))

    def cautions(
        self, memory: Memory, ranked: Sequence[RankedAction], *, facts: CaseFacts | None = None
    ) -> tuple[str, ...]:
        """Rules that concern a plan's ranked actions, as one line each, the gravest first.

        A broken rule counts from `CAUTION_PROBABILITY` on and for the top action always. `facts` saves reading `memory`
        again.
        """
        facts = self.facts(memory) if facts is None else facts
        weighty = [
            item.action for rank, item in enumerate(ranked) if rank == 0 or item.probability >= CAUTION_PROBABILITY
        ]
        found = [rule for rule in self.rules if any(rule.concerns(facts, action) for action in weighty)]
        found.sort(key=lambda rule: SEVERITIES.index(rule.severity))
        return tuple(rule.caution for rule in found)

    def phase(self, facts: CaseFacts) -> Phase | None:
        """The phase most likely going on: the last whose condition holds; None when none does."""
        return next((phase for phase in reversed(self.phases) if phase.when.holds(facts)), None)


def load_pack(path: Path, *, fitted: Path | None = None) -> ProcedurePack:
    """The pack in the folder `path`, or of that name in `configs/procedures`.

    `fitted` is a folder whose planner.json and ensemble.json take the place of the pack's own.

    Raises:
        ConfigError: There is none, or it is broken: every mistake with its file, line and remedy.
    """
    folder = _find(path)
    models = folder if fitted is None else fitted
    complaints: list[str] = []
    sheet = _tried(lambda: _parsed(folder / "pack.yaml", PackFile), complaints)
    ruling = _tried(lambda: _parsed(folder / "rules.yaml", RulesFile), complaints)
    knowledge = _tried(lambda: _knowledge(folder / "knowledge.md"), complaints)
    model = _tried(lambda: load_model(models / "planner.json"), complaints)
    ensemble: Ensemble | None = None
    if (models / FILE_NAME).exists():
        ensemble = _tried(lambda: load_ensemble(models / FILE_NAME), complaints)
    segmenter_model: SegmenterModel | None = None
    if sheet is not None:
        complaints.extend(_pack_mistakes(*sheet))
        if (folder / SEGMENTER_FILE).exists():
            names = tuple(spec.name for spec in sheet[1].actions)
            segmenter_model = _tried(lambda: load_segmenter_model(folder / SEGMENTER_FILE, names), complaints)
        if ruling is not None:
            complaints.extend(_rule_mistakes(*ruling, sheet[1]))
        if model is not None:
            complaints.extend(_model_mistakes(models / "planner.json", model, sheet[1]))
        if ensemble is not None:
            complaints.extend(_ensemble_mistakes(models / FILE_NAME, ensemble, sheet[1]))
    if complaints or sheet is None or ruling is None or knowledge is None or model is None:
        raise ConfigError("\n".join(complaints))
    pack = sheet[1]
    return ProcedurePack(
        name=pack.name,
        title=pack.title,
        version=pack.version,
        folder=folder,
        goal=" ".join(pack.goal.split()),
        actions=pack.actions,
        instruments=pack.instruments,
        phases=pack.phases,
        knowledge=knowledge,
        knowledge_digest=hashlib.sha256(knowledge.encode()).hexdigest()[:12],
        rules=ruling[1].rules,
        model=model,
        ensemble=ensemble,
        segmenter_model=segmenter_model,
        _digest=_digest(folder, models),
        _by_name={spec.name: spec for spec in pack.actions},
    )


def _find(path: Path) -> Path:
    library = configs_directory() / "procedures"
    for candidate in (path, library / path) if len(path.parts) == 1 else (path,):
        if (candidate / "pack.yaml").is_file():
            return candidate
    known = ", ".join(sorted(entry.parent.name for entry in library.glob("*/pack.yaml")))
    raise ConfigError(f"procedure.pack={path} is no folder with a pack.yaml; name such a folder or one of: {known}")


def _tried(load: Callable[[], T], complaints: list[str]) -> T | None:
    """What `load` returns, or None with its complaint kept, so that one start shows every mistake."""
    try:
        return load()
    except ConfigError as error:
        complaints.append(str(error))
        return None


def _parsed(path: Path, shape: type[ModelT]) -> tuple[LocatedYaml, ModelT]:
    source = LocatedYaml(path)
    return source, source.parse(shape)


def _knowledge(path: Path) -> str:
    text = read_text(path)
    if not text.strip():
        raise ConfigError(f"{path}:1: the knowledge base is empty; describe the procedure, its safety and its actions")
    return text


def _pack_mistakes(source: LocatedYaml, pack: PackFile) -> Iterator[str]:
    """What is wrong between the parts of `pack.yaml`."""
    names = tuple(spec.name for spec in pack.actions)
    if len(names) < FEWEST_ACTIONS:
        yield source.complaint(
            ("actions",),
            f"{len(names)} actions are fewer than {FEWEST_ACTIONS}, the current one and {RANKED} ranked next; add some",
        )
    for what, key, values in (
        ("actions", "name", names),
        ("actions", "code", tuple(spec.code for spec in pack.actions)),
        ("instruments", "", pack.instruments),
        ("phases", "name", tuple(phase.name for phase in pack.phases)),
    ):
        for index, value in enumerate(values):
            if value in values[:index]:
                yield source.complaint((what, index, key), f"{what}: {value} is there twice; rename or remove one")
    for index, spec in enumerate(pack.actions):
        for place, name in enumerate(spec.instruments):
            if name not in pack.instruments:
                yield _unknown(source, ("actions", index, "instruments", place), "instrument", name, pack.instruments)
    for index, phase in enumerate(pack.phases):
        yield from _condition_mistakes(source, ("phases", index, "when"), phase.when, pack)


def _rule_mistakes(source: LocatedYaml, ruling: RulesFile, pack: PackFile) -> Iterator[str]:
    """What is wrong between `rules.yaml` and `pack.yaml`."""
    names = tuple(spec.name for spec in pack.actions)
    seen: set[str] = set()
    for index, rule in enumerate(ruling.rules):
        if rule.id in seen:
            yield source.complaint(("rules", index, "id"), f"rules: {rule.id} is there twice; rename or remove one")
        seen.add(rule.id)
        for key, name in rule.references():
            if name not in names:
                yield _unknown(source, ("rules", index, *key), "action", name, names)
        if isinstance(rule, CautionWhen):
            yield from _condition_mistakes(source, ("rules", index, "when"), rule.when, pack)


def _condition_mistakes(source: LocatedYaml, location: Location, when: Condition, pack: PackFile) -> Iterator[str]:
    names = tuple(spec.name for spec in pack.actions)
    for key in ("current", "done", "not_done"):
        for place, name in enumerate(getattr(when, key)):
            if name not in names:
                yield _unknown(source, (*location, key, place), "action", name, names)
    for place, name in enumerate(when.instruments):
        if name not in pack.instruments:
            yield _unknown(source, (*location, "instruments", place), "instrument", name, pack.instruments)
    for name in when.seen:
        if name not in pack.instruments:
            yield _unknown(source, (*location, "seen", name), "instrument", name, pack.instruments)


def _unknown(source: LocatedYaml, location: Location, what: str, name: str, known: tuple[str, ...]) -> str:
    hint = close_match(name, known) or f"; use one of: {', '.join(known)}"
    return source.complaint(location, f"{dotted(location)}={name} is no {what} of pack.yaml{hint}")


def _model_mistakes(path: Path, model: NgramModel, pack: PackFile) -> Iterator[str]:
    """What is wrong between `planner.json` and `pack.yaml`."""
    names = tuple(spec.name for spec in pack.actions)
    if model.actions != names:
        line = json_line(read_text(path), ("actions",))
        yield (
            f"{path}:{line}: actions={list(model.actions)} are not those of pack.yaml in its order, "
            f"{list(names)}; fit the model again for this pack"
        )


def _ensemble_mistakes(path: Path, ensemble: Ensemble, pack: PackFile) -> Iterator[str]:
    """What is wrong between `ensemble.json` and `pack.yaml`."""
    for what, found, wanted in (
        ("actions", ensemble.file.actions, tuple(spec.name for spec in pack.actions)),
        ("instruments", ensemble.file.instruments, pack.instruments),
    ):
        if found != wanted:
            yield f"{path}:1: {what}={list(found)} are not those of pack.yaml in its order; fit the model again"


def _digest(folder: Path, models: Path) -> str:
    """Of the pack's text files, those of its fitted models taken from `models`."""
    digest = hashlib.sha256()
    paths = {path.name: path for path in folder.iterdir() if path.name not in _FITTED}
    paths |= {name: models / name for name in _FITTED}
    for _, path in sorted(paths.items()):
        if path.suffix in _TEXT_SUFFIXES and path.is_file():
            digest.update(path.name.encode() + b"\0" + read_text(path).encode() + b"\0")
    return digest.hexdigest()[:12]
