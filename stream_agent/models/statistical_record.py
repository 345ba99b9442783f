"""Makes the evaluation record of a statistical model: cross-validated beside the one in use, timed question by question.

The files themselves cannot be asked about the videos they were fitted on. So each is fitted again without the videos asked, by
the code of `train statistical`, which chooses its settings anew each time, and on the training videos alone: promoting is
choosing, and test videos choose nothing. That these answers are about *these* files is checked twice: the counts of
planner.json must be exactly those of the videos it is said to be fitted on, and a model fitted on all of them must answer as
the files do. Times are the files' own.

A model in use that today's code no longer fits brings the answers of the record it was promoted with.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from stream_agent.config import PlannerConfig
from stream_agent.errors import ConfigError
from stream_agent.evaluation.baselines import PlanPredictor
from stream_agent.evaluation.dataset import TRAIN_VIDEOS, load_presence, load_sap
from stream_agent.evaluation.lineup import ngram_planner, trained_planner
from stream_agent.evaluation.metrics import Outcome
from stream_agent.evaluation.protocols import Answer, Forecast, ProtocolName, Questions, Training, folds
from stream_agent.evaluation.samples import Sample
from stream_agent.models.model_files import file_sha256, model_files
from stream_agent.models.record import EvaluationRecord, FittedFold, Side, answered, make_record
from stream_agent.planner.ensemble import FILE_NAME
from stream_agent.planner.ngram import load_model
from stream_agent.planner.statistical import StatisticalPlanner
from stream_agent.procedure import load_pack
from stream_agent.training import statistical as trainer

ASKINGS: Final = 9
"""Each question is put so often to both, and the least time counts: whatever else the machine does only ever adds to it."""

LEAST_AGREEMENT: Final = 0.95
"""Share of samples on which a model fitted again must have the same first answer as the files."""

MOST_SHIFT: Final = 0.03
"""And by how much the probability of that answer may differ in the mean."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One of the two.

    Attributes:
        name: For people and messages.
        folder: Where planner.json and ensemble.json lie.
        without: Training videos that it was fitted without.
        option: What of the command line names those.
        record: The record it was promoted with; None for a pack's own model and for a candidate.
    """

    name: str
    folder: Path
    without: frozenset[str] = frozenset()
    option: str = "--without"
    record: EvaluationRecord | None = None


class Bench:
    """The questions that both are asked, and the models to ask."""

    def __init__(self, pack: Path, sap: Path, signals: Path | None, protocol: ProtocolName) -> None:
        """Read the annotation of the training videos; nothing of another video is kept.

        Raises:
            ConfigError: A file cannot be read.
        """
        self._pack = pack
        self.videos = {name: clips for name, clips in load_sap(sap).items() if name in TRAIN_VIDEOS}
        self._presence = {} if signals is None else load_presence(signals, self.videos)
        self._parts = folds(protocol, self.videos)
        self._fitted: dict[tuple[tuple[str, ...], bool], PlanPredictor] = {}
        questions = Questions(self.videos, self._presence)
        self.asked: tuple[Sample, ...] = tuple(
            sample for name in sorted(self.videos) for sample in questions.samples(name, "causal", "ground_truth")
        )
        self.data = {sap.name: file_sha256(sap)}
        if signals is not None:
            files = [signals / f"video{name.removeprefix('VID')}.csv" for name in sorted(self._presence)]
            self.data |= {path.name: file_sha256(path) for path in files}

    @property
    def fits(self) -> int:
        """How many models are fitted per contender."""
        return len(self._parts) + 1

    def side(self, contender: Contender, on_fit: Callable[[str], None]) -> Side:
        """Answers of the contender's recipe, each by a model that had not seen the video; not timed yet.

        Raises:
            ConfigError: The files are not what fitting on those videos gives.
        """
        files = model_files(contender.folder)
        fitted_on, with_memory = self.require_same_answers(contender)
        on_fit(contender.name)
        made, outcomes = self.cross_validated(fitted_on, with_memory=with_memory, on_fit=lambda: on_fit(contender.name))
        return Side(
            name=contender.name,
            files=files,
            fitted_on=fitted_on,
            folds=made,
            answers=answered(outcomes, [0.0] * len(outcomes)),
        )

    def require_same_answers(self, contender: Contender) -> tuple[tuple[str, ...], bool]:
        """Videos the files were fitted on, and whether over the memory, after a model fitted on them answered as they do.

        Raises:
            ConfigError: The counts are of other videos, or the answers differ.
        """
        fitted_on, with_memory = self._fitted_on(contender), (contender.folder / FILE_NAME).is_file()
        files, again = PlanPredictor(self.planner(contender.folder)), self._fit(fitted_on, with_memory=with_memory)
        pairs = [(files.predict(sample.question), again.predict(sample.question)) for sample in self.asked]
        same = statistics.fmean(first.ranked[:1] == second.ranked[:1] for first, second in pairs)
        shift = statistics.fmean(_shift(first, second) for first, second in pairs)
        if same < LEAST_AGREEMENT or shift > MOST_SHIFT:
            raise ConfigError(
                f"{contender.folder} is not what this program fits on those {len(fitted_on)} videos: "
                f"the first answer is the same for {100 * same:.1f} % of the samples ({100 * LEAST_AGREEMENT:g} % are needed), its "
                f"probability {shift:.3f} away ({MOST_SHIFT:g} are allowed); fit it again with `train statistical`"
            )
        return fitted_on, with_memory

    def cross_validated(
        self, fitted_on: Sequence[str], *, with_memory: bool, on_fit: Callable[[], None] = lambda: None
    ) -> tuple[tuple[FittedFold, ...], list[Outcome]]:
        """What models fitted on `fitted_on` answer to every question, none having seen the video it is asked about.

        Raises:
            ConfigError: A model over the memory is wanted, and there are no signals.
        """
        made: list[FittedFold] = []
        outcomes: dict[tuple[str, int], Outcome] = {}
        for part in self._parts:
            rest = tuple(name for name in fitted_on if name not in part.test)
            predictor = self._fit(rest, with_memory=with_memory)
            made.append(FittedFold(rest, part.test))
            for sample in self.asked:
                if sample.question.video in part.test:
                    outcome = Answer(sample, predictor.predict(sample.question), 0.0).outcome
                    outcomes[outcome.video, outcome.index] = outcome
            on_fit()
        return tuple(made), [outcomes[sample.question.video, sample.index] for sample in self.asked]

    def planner(self, folder: Path) -> StatisticalPlanner:
        """The planner of the files in a folder, as a run would have it."""
        return StatisticalPlanner(load_pack(self._pack, fitted=folder), PlannerConfig())

    def elapsed_ms(self, folders: Sequence[Path]) -> list[list[float]]:
        """Per folder and sample, the least of `ASKINGS` times; every question goes to each in turn, first and second by turns.

        The median of five let a busy machine refuse a model that was as fast: p99 5.7 ms against 1.6 ms of near equals.
        """
        predictors = [PlanPredictor(self.planner(folder)) for folder in folders]
        for predictor in predictors:
            for sample in self.asked:
                predictor.predict(sample.question)  # warms up what is kept per context
        taken: list[list[list[float]]] = [[[] for _ in self.asked] for _ in predictors]
        for asking in range(ASKINGS):
            for place, sample in enumerate(self.asked):
                order = range(len(predictors)) if (asking + place) % 2 == 0 else reversed(range(len(predictors)))
                for which in order:
                    began = time.perf_counter()
                    predictors[which].predict(sample.question)
                    taken[which][place].append(1000 * (time.perf_counter() - began))
        return [[round(min(times), 4) for times in each] for each in taken]

    def _fitted_on(self, contender: Contender) -> tuple[str, ...]:
        """The videos the files were fitted on, which their counts must bear out."""
        if unknown := contender.without - set(self.videos):
            raise ConfigError(
                f"{contender.name}: {', '.join(sorted(unknown))} is not a training video of the annotation; name some of its "
                f"{len(self.videos)}"
            )
        names = tuple(name for name in sorted(self.videos) if name not in contender.without)
        found = load_model(contender.folder / "planner.json").file
        counted = trainer.count(self.videos, names, order=found.order, concentration=found.concentration)
        if msgspec.structs.replace(counted, statement=found.statement) != found:
            raise ConfigError(
                f"{contender.folder / 'planner.json'} holds the counts of {found.procedures} procedures, and not those of the "
                f"{len(names)} training videos that {contender.name} is said to be fitted on; name those left out with "
                f"{contender.option}, and the annotation it was fitted on"
            )
        return names

    def _fit(self, names: Sequence[str], *, with_memory: bool) -> PlanPredictor:
        """The recipe on some videos; fitted once, for two contenders may have the same ones."""
        known = self._fitted.get((tuple(names), with_memory))
        if known is not None:
            return known
        videos = {name: self.videos[name] for name in names}
        presence = {name: self._presence[name] for name in videos if name in self._presence}
        if with_memory and not presence:
            raise ConfigError(f"{FILE_NAME} is fitted on instruments; name the folder of their signals with --signals")
        recipe = trained_planner if with_memory else ngram_planner
        made = self._fitted[tuple(names), with_memory] = PlanPredictor(recipe(Training(videos, presence, "causal")))
        return made


def statistical_record(
    candidate: Contender,
    in_use: Contender,
    bench: Bench,
    *,
    command: str,
    on_fit: Callable[[str], None] = lambda _: None,
) -> EvaluationRecord:
    """The record of the two on the bench's questions.

    Raises:
        ConfigError: Files are not what they are said to be, or the model in use can be asked no longer.
    """
    ours = bench.side(candidate, on_fit)
    try:
        theirs = bench.side(in_use, on_fit)
    except ConfigError as error:
        theirs = _promoted_with(in_use, ours, bench.data, error)
    times = bench.elapsed_ms([candidate.folder, in_use.folder])
    return make_record(
        "statistical", _timed(ours, times[0]), _timed(theirs, times[1]), data=bench.data, command=command
    )


def _promoted_with(in_use: Contender, ours: Side, data: Mapping[str, str], why: ConfigError) -> Side:
    """The answers the model in use was promoted with, if they are to the same questions."""
    if in_use.record is None:
        raise why
    side = in_use.record.candidate
    known = {(one.video, one.index): one for one in side.answers}
    wanted = [(one.video, one.index) for one in ours.answers]
    if in_use.record.data != data or not set(wanted) <= set(known):
        raise ConfigError(
            f"{in_use.name} cannot be fitted again here ({why}), and its own record is about other data; evaluate with the "
            "annotation and signals it was promoted with"
        ) from why
    return msgspec.structs.replace(side, answers=tuple(known[sample] for sample in wanted))


def _timed(side: Side, elapsed_ms: Sequence[float]) -> Side:
    timed = zip(side.answers, elapsed_ms, strict=True)
    return msgspec.structs.replace(
        side, answers=tuple(msgspec.structs.replace(one, elapsed_ms=taken) for one, taken in timed)
    )


def _shift(first: Forecast, second: Forecast) -> float:
    """How far apart the two put the first one's first answer; 1 when only one of them answers."""
    if not first.ranked or not second.ranked:
        return float(first.ranked != second.ranked)
    stated = dict(zip(second.ranked, second.probabilities, strict=True))
    return abs(first.probabilities[0] - stated.get(first.ranked[0], 0.0))
