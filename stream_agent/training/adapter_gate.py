"""Whether a tuned adapter may ship: cross-validated on training videos beside the adapter that it began with.

    part 1 … k of the training videos:  start fitted without it ─▶ tuned without it ─▶ both asked about it ─▶ record ─▶ gate
    all training videos:                start ────────────────────▶ tuned: the candidate ───────────────────────┘

The record is that of `models promote`, which judges it again; the verdict here is the same code's. Both sides are asked through
the agent's own rank lane, sample by sample in turn, so their times are of one minute on one machine. No test video is looked at:
whoever chooses by them has nothing left to report on.

With one part nothing is fitted anew: the videos that the candidate's own training held out are asked about. That is quick and says
less, since they have chosen the candidate's step, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from stream_agent.config import PlannerConfig
from stream_agent.errors import ConfigError
from stream_agent.evaluation.model_beliefs import Beliefs, LanguageModel, outcomes
from stream_agent.evaluation.samples import Sample
from stream_agent.models.gate import Judgement, judge, objections
from stream_agent.models.margins import load_margins
from stream_agent.models.model_files import file_sha256, model_files
from stream_agent.models.record import EvaluationRecord, FittedFold, Side, answered, make_record, write_record
from stream_agent.planner.backends.adapters import adapter_directory
from stream_agent.procedure import load_pack
from stream_agent.training.adapter_record import fitted_on, read_record
from stream_agent.training.calibration import fit_temperature, targets_of, tempered
from stream_agent.training.config import TrainingConfig
from stream_agent.training.data import require_training_only, training_samples
from stream_agent.training.near_frames import NearCaptions, NearFrames
from stream_agent.training.statistical import folds as parts_of

Method: TypeAlias = Literal["sft", "distill", "dpo", "grpo"]
METHODS: Final[tuple[Method, ...]] = get_args(Method)

RECORD: Final = "gate.json"

ConfigT = TypeVar("ConfigT", bound=TrainingConfig)
Trainer: TypeAlias = Callable[[Any, Path], object]
"""Trains as the configuration says and writes a folder."""


@dataclass(frozen=True, slots=True)
class Contest:
    """Two adapters and the videos that neither has seen.

    Attributes:
        start: What training began with; None for the base model.
        tuned: What came out.
        asked: Videos to ask both about.
    """

    start: Path | None
    tuned: Path
    asked: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What one side said to one contest's samples.

    Attributes:
        beliefs: (samples, actions).
        ms: Milliseconds, one per sample.
    """

    beliefs: Beliefs
    ms: list[float]


def crossvalidate(
    tuning: TrainingConfig,
    tune: Trainer,
    out: Path,
    *,
    parts: int,
    starting: TrainingConfig | None = None,
    begin: Trainer | None = None,
    say: Callable[[str], None] = print,
) -> tuple[Contest, list[Contest]]:
    """The candidate, and a contest per part; what lies in `out` already is not trained again.

    Args:
        tuning: Of the method under trial; `lora.start_from` and `data.exclude` are set per part.
        tune: The method.
        out: Folder for everything.
        parts: How many; 1 asks about the videos that `tuning` holds out itself.
        starting: Of the fine-tuning before it; None begins at `lora.start_from`, or at the base model.
        begin: That fine-tuning.
        say: Hears of progress.

    Raises:
        ConfigError: The parts would not be fitted as the candidate is, or a start has seen what is to be asked.
    """
    if parts > 1 and (tuning.data.validation > 0 or (starting is not None and starting.data.validation > 0)):
        raise ConfigError(
            "data.validation is not 0, so a part's model would be fitted on fewer videos than the candidate's rule says; set "
            "data.validation=0 and a number of epochs, or ask --parts 1"
        )
    if parts == 1 and tuning.data.validation == 0:
        raise ConfigError("data.validation=0 holds out no video to ask about; set data.validation, or ask --parts 5")
    if parts > 1 and tuning.lora.start_from is not None:
        raise ConfigError(
            f"lora.start_from={tuning.lora.start_from} has seen the videos that every part asks about; give --start-config, by "
            "which a start is fitted per part"
        )
    assert tuning.data.sap is not None
    found = training_samples(tuning.data.sap, exclude=tuning.data.exclude)
    names = sorted({sample.question.video for sample in found})

    def trained(folder: Path, without: Sequence[str]) -> tuple[Path | None, Path]:
        start = tuning.lora.start_from
        if starting is not None and begin is not None:
            start = folder / "start"
            _unless_there(begin, _with(starting, starting.lora.start_from, without), start, say)
        _unless_there(tune, _with(tuning, start, without), folder / "tuned", say)
        return start, folder / "tuned"

    start, tuned = trained(out, ())
    if parts == 1:
        whole = Contest(start, tuned, tuple(read_record(tuned)["data"]["chosen_by"]))
        return whole, [whole]
    contests = []
    for number, part in enumerate(parts_of(names, count=parts, seed=tuning.seed)):
        say(f"part {number + 1} of {parts}: without {', '.join(sorted(part))}")
        contests.append(Contest(*trained(out / f"part-{number + 1}", sorted(part)), tuple(sorted(part))))
    return Contest(start, tuned, tuple(names)), contests


def gate_record(
    candidate: Contest,
    contests: Sequence[Contest],
    config: TrainingConfig,
    *,
    command: str,
    calibrated: bool = False,
    say: Callable[[str], None] = print,
) -> EvaluationRecord:
    """Both sides' answers to the held-out samples of every contest, on the causal track with the labels of a recogniser.

    Args:
        candidate: Whom the record is about.
        contests: Who answers which videos.
        config: How they are asked.
        command: For the record.
        calibrated: At a temperature that is fitted on the other contests, on both sides.
        say: Hears of progress.

    Raises:
        ConfigError: An adapter was fitted on what it is asked about, or on a test video, or does not load.
        BackendError: The model failed.
    """
    assert config.data.sap is not None
    samples: list[list[Sample]] = []
    said: list[Mapping[str, Answers]] = []
    base = ""
    for contest in contests:
        seen = {*fitted_on(contest.tuned), *(fitted_on(contest.start) if contest.start is not None else ())}
        require_training_only([*seen, *contest.asked])
        if leaked := sorted(seen & set(contest.asked)):
            raise ConfigError(
                f"{contest.tuned} was fitted on {', '.join(leaked[:4])}, which it is asked about; hold out what is asked"
            )
        found = training_samples(config.data.sap, only=contest.asked, history="action_reg")
        say(f"asking both about {len(found)} samples of {len(contest.asked)} videos")
        base, answers = asyncio.run(_answers(contest, config, found))
        samples.append(found)
        said.append(answers)
    start = candidate.start
    actions = load_pack(config.procedure.pack).action_names

    def side(name: str, folder: Path | None, which: str) -> Side:
        folders = [contest.tuned if which == "tuned" else contest.start for contest in contests]
        beliefs, temperature = [answers[which].beliefs for answers in said], 1.0
        if calibrated:
            targets = [targets_of(part, actions) for part in samples]
            temperature = fit_temperature(np.concatenate(beliefs), np.concatenate(targets))
            beliefs = each_calibrated_on_the_others(beliefs, targets)
            say(f"{which}: temperature {temperature * config.planner.temperature:.3g}")
        return Side(
            name=name,
            files={} if folder is None else model_files(folder),
            base=base,
            temperature=float(f"{temperature * config.planner.temperature:.4g}"),
            fitted_on=() if folder is None else fitted_on(folder),
            folds=tuple(
                FittedFold(() if one is None else fitted_on(one), contest.asked)
                for one, contest in zip(folders, contests, strict=True)
            ),
            answers=answered(
                [one for part, own in zip(samples, beliefs, strict=True) for one in outcomes(part, own, actions)],
                [taken for answers in said for taken in answers[which].ms],
            ),
        )

    return make_record(
        "adapter",
        side(candidate.tuned.name, candidate.tuned, "tuned"),
        side("base" if start is None else start.name, start, "start"),
        data={config.data.sap.name: file_sha256(config.data.sap)},
        command=command,
    )


def each_calibrated_on_the_others(beliefs: Sequence[Beliefs], targets: Sequence[NDArray[np.intp]]) -> list[Beliefs]:
    """Each part's beliefs, (samples, actions), at the temperature that suits those of the other parts best."""
    parts = range(len(beliefs))
    temperatures = [
        fit_temperature(
            np.concatenate([beliefs[other] for other in parts if other != part]),
            np.concatenate([targets[other] for other in parts if other != part]),
        )
        for part in parts
    ]
    return [tempered(own, temperature) for own, temperature in zip(beliefs, temperatures, strict=True)]


def verdict(record: EvaluationRecord, say: Callable[[str], None] = print) -> bool:
    """Whether the candidate may ship, by the margins of `models promote`; says why."""
    margins = load_margins().adapter
    against = objections(record, margins)
    for reason in against:
        say(f"proves nothing: {reason}")
    found: Judgement = judge(record, margins)
    for axis in found.axes:
        say(f"{axis.name:11} {'not inferior' if axis.passed else 'FAILED'}: {axis.finding}")
    ships = found.passed and not against
    say("the candidate may ship; put it to use with `models promote`" if ships else "the candidate does not ship")
    return ships


def run(
    method: Method,
    tuning: TrainingConfig,
    out: Path,
    *,
    parts: int,
    starting: TrainingConfig | None,
    command: str,
    calibrated: bool = False,
    say: Callable[[str], None] = print,
) -> bool:
    """Cross-validate, write `RECORD` to `out`, and tell whether the candidate may ship.

    Raises:
        ConfigError: As `crossvalidate` and `gate_record`, or a temperature is to be fitted with nothing to fit it on.
        BackendError: The model failed.
    """
    if calibrated and parts == 1:
        raise ConfigError("--fit-temperature fits on the other parts, and --parts 1 has none; ask --parts 5")
    candidate, contests = crossvalidate(
        tuning,
        trainer_of(method, say),
        out,
        parts=parts,
        starting=starting,
        begin=None if starting is None else trainer_of("sft", say),
        say=say,
    )
    record = gate_record(candidate, contests, tuning, command=command, calibrated=calibrated, say=say)
    write_record(record, out / RECORD)
    say(f"wrote {out / RECORD}")
    return verdict(record, say)


def trainer_of(method: Method, say: Callable[[str], None]) -> Trainer:
    """The method's `train`, imported only here."""
    from importlib import import_module

    module = import_module(f"stream_agent.training.{'student' if method == 'distill' else method}")

    def train(config: TrainingConfig, folder: Path) -> object:
        result: object = module.train(config, folder, say=say)
        return result

    return train


async def _answers(
    contest: Contest, config: TrainingConfig, found: Sequence[Sample]
) -> tuple[str, Mapping[str, Answers]]:
    """The base model's digest, and each side's answers; the sides take turns in going first."""
    pack = load_pack(config.procedure.pack)
    adapters = {"tuned": contest.tuned} | ({} if contest.start is None else {"start": contest.start})
    planner = PlannerConfig.model_validate(
        {
            **config.planner.model_dump(),
            "kind": "transformers",
            "adapters": {k: adapter_directory(v) for k, v in adapters.items()},
        }
    )
    asked = {
        name: planner.model_copy(update={"adapter": name if name in adapters else ""}) for name in ("tuned", "start")
    }
    pictures = None if config.data.frames is None else NearFrames(config.data.frames, planner)
    captions = None if config.data.captions is None else NearCaptions(config.data.captions)
    model = LanguageModel(pack, planner)
    beliefs: dict[str, list[Beliefs]] = {name: [] for name in asked}
    ms: dict[str, list[float]] = {name: [] for name in asked}
    try:
        able = await model.start()
        for number, sample in enumerate(found):
            for name in (*asked,) if number % 2 else reversed((*asked,)):
                said = await model.ask([sample], asked[name], pictures=pictures, captions=captions)
                beliefs[name].append(said.beliefs)
                ms[name].append(said.ms_p50)
    finally:
        await model.close()
    return able.digest, {name: Answers(np.concatenate(beliefs[name]), ms[name]) for name in asked}


def _with(config: ConfigT, start: Path | None, without: Sequence[str]) -> ConfigT:
    return config.model_copy(
        update={
            "lora": config.lora.model_copy(update={"start_from": start}),
            "data": config.data.model_copy(update={"exclude": tuple(sorted({*config.data.exclude, *without}))}),
        }
    )


def _unless_there(train: Trainer, config: TrainingConfig, folder: Path, say: Callable[[str], None]) -> None:
    """Train it, if it is not there.

    Raises:
        ConfigError: What is there was trained otherwise.
    """
    if folder.is_dir() and any(folder.iterdir()):
        if read_record(folder)["config_digest"] != config.digest():
            raise ConfigError(f"{folder} was trained with another configuration; remove it, or name another --out")
        say(f"{folder} is there already")
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    train(config, folder)
