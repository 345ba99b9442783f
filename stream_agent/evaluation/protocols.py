"""Who is fitted on which videos and asked about which: the same folds for every planner, and no video in both.

    official   CholecT50's Rendezvous split: fitted on 35 videos, asked about 15 (57 samples)
    5fold      all videos in five parts, each asked by a planner fitted on the other four
    lovo       leave one video out: each video asked by a planner fitted on all the others
    streaming  the folds of lovo, for videos with signals: whole procedures through the agent's own code (streaming.py)

A planner is a *baseline* here whatever it is: `fit(training)` gives a predictor, a predictor answers questions.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, get_args

from stream_agent.errors import ConfigError
from stream_agent.evaluation.dataset import TEST_VIDEOS, TRAIN_VIDEOS
from stream_agent.evaluation.metrics import Outcome
from stream_agent.evaluation.samples import (
    HISTORIES,
    TRACKS,
    History,
    Presence,
    Question,
    Sample,
    Track,
    Videos,
    moments,
    samples,
)

ProtocolName: TypeAlias = Literal["official", "5fold", "lovo", "streaming"]
PROTOCOLS: tuple[ProtocolName, ...] = get_args(ProtocolName)
AT_SAMPLES: tuple[ProtocolName, ...] = PROTOCOLS[:3]
"""Those that need no signals."""

PARTS = 5

MOMENT_EVERY_S = 10
"""Onsets are asked for so often in every clip."""


@dataclass(frozen=True, slots=True)
class Fold:
    """Videos to fit on and videos to ask about."""

    train: tuple[str, ...]
    test: tuple[str, ...]


class Questions:
    """Samples and moments of every video, each made once, for folds share them."""

    def __init__(self, videos: Videos, presence: Mapping[str, Presence]) -> None:
        self._videos = videos
        self._presence = presence
        self._samples: dict[tuple[str, Track, History], list[Sample]] = {}
        self._moments: dict[str, list[Sample]] = {}

    def samples(self, name: str, track: Track, history: History) -> list[Sample]:
        """The samples of one video."""
        key = (name, track, history)
        if key not in self._samples:
            self._samples[key] = samples(
                self._videos[name], track=track, history=history, presence=self._presence.get(name)
            )
        return self._samples[key]

    def moments(self, name: str) -> list[Sample]:
        """The question put every `MOMENT_EVERY_S` seconds of one video's clips."""
        if name not in self._moments:
            self._moments[name] = moments(self._videos[name], every_s=MOMENT_EVERY_S, presence=self._presence.get(name))
        return self._moments[name]


@dataclass(frozen=True, slots=True, eq=False)
class Training:
    """What a planner may be fitted on.

    Attributes:
        videos: Clips of the training videos and of no other.
        presence: Instruments per second of those training videos that have signals.
        track: What the predictor will be asked about; a planner that looks at frames or signals is fitted for it.
        questions: Where samples are already made; they are made anew when left out.
    """

    videos: Videos
    presence: Mapping[str, Presence]
    track: Track
    questions: Questions | None = None

    def samples(self, history: History = "ground_truth") -> list[Sample]:
        """The samples of the training videos."""
        made = self.questions or Questions(self.videos, self.presence)
        return [sample for name in self.videos for sample in made.samples(name, self.track, history)]


@dataclass(frozen=True, slots=True)
class Forecast:
    """A predictor's answer.

    Attributes:
        ranked: Next actions, the likeliest first; empty for an abstention.
        probabilities: Of `ranked`; empty when none are stated.
        chain: The likeliest actions in their order, `ranked[0]` first; may be empty.
        onset_s: Seconds until each of `chain` begins; empty when unknown.
    """

    ranked: tuple[str, ...]
    probabilities: tuple[float, ...] = ()
    chain: tuple[str, ...] = ()
    onset_s: tuple[float, ...] = ()


class Predictor(Protocol):
    """A fitted planner."""

    def predict(self, question: Question) -> Forecast | None:
        """The answer; None for a question that this planner cannot be asked (it needs frames that are not there).

        Raises:
            NotRunError: Something it needs is damaged.
        """
        ...


class Baseline(Protocol):
    """A planner that is yet to be fitted.

    Attributes:
        name: Its name in every table.
        sees_track: Whether it looks at anything but labels, so that each track needs a predictor of its own.
    """

    name: str
    sees_track: bool

    def fit(self, training: Training) -> Predictor:
        """A predictor fitted on the training videos alone.

        Raises:
            NotRunError: Something it needs is not there.
        """
        ...


class Streams(Protocol):
    """The streaming protocol, as `run` needs it (streaming.py)."""

    def ask(self, training: Training, names: Sequence[str], predictors: Mapping[str, Predictor]) -> None:
        """Watch the videos `names` with models fitted on `training`, and keep what every planner answers."""
        ...


class NotRunError(Exception):
    """A planner could not be fitted or asked here; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the results: who was asked, and how."""

    planner: str
    track: Track
    history: History | Literal["segmenter"]
    protocol: ProtocolName


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """One sample, what was answered, and how long that took."""

    sample: Sample
    forecast: Forecast
    elapsed_ms: float

    @property
    def outcome(self) -> Outcome:
        """For the metrics."""
        return Outcome(
            video=self.sample.question.video,
            index=self.sample.index,
            target=self.sample.target,
            following=self.sample.following,
            ranked=self.forecast.ranked,
            probabilities=self.forecast.probabilities,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """Everything that was answered.

    Attributes:
        answers: Per setting, in the order of videos and samples.
        moments: Per planner, the answers at every `MOMENT_EVERY_S` of every clip; leave-one-video-out, or the last protocol.
        moments_protocol: Which protocol that was; empty if no moments were asked.
        not_run: Planner → why it was not run.
    """

    answers: dict[Setting, list[Answer]]
    moments: dict[str, list[Answer]]
    moments_protocol: str
    not_run: dict[str, str]


def folds(
    protocol: ProtocolName, names: Iterable[str], *, exclude: Iterable[str] = (), only: Iterable[str] = ()
) -> tuple[Fold, ...]:
    """Folds over the videos `names`, none with an empty side.

    Videos of `exclude` are neither fitted on nor asked about. With `only`, those alone are asked about, in every protocol,
    and none of them is fitted on.

    Raises:
        ConfigError: A video of `exclude` or `only` is not among `names`.
    """
    known, left_out, scored = set(names), frozenset(exclude), frozenset(only)
    for option, chosen in (("--exclude", left_out), ("--only", scored)):
        if chosen - known:
            raise ConfigError(
                f"{option} {','.join(sorted(chosen - known))}: no such video in the annotation; it has "
                f"{', '.join(sorted(known)[:4])} … ({len(known)}), name some of them"
            )
    if left_out & scored:
        raise ConfigError(f"{','.join(sorted(left_out & scored))} is in both --exclude and --only; leave one out")
    usable = sorted(known - left_out)
    if protocol == "official":
        parts = [sorted(scored or TEST_VIDEOS.intersection(usable))]
    elif protocol == "5fold":
        parts = _parts(usable, PARTS)
    else:
        parts = [sorted(scored)] if scored else [[name] for name in usable]
    fitted_on = TRAIN_VIDEOS if protocol == "official" else known
    made = []
    for part in parts:
        test = tuple(name for name in part if not scored or name in scored)
        train = tuple(name for name in usable if name in fitted_on and name not in scored and name not in part)
        if train and test:
            made.append(Fold(train, test))
    return tuple(made)


def run(
    baselines: Sequence[Baseline],
    videos: Videos,
    presence: Mapping[str, Presence],
    *,
    protocols: Sequence[ProtocolName] = AT_SAMPLES,
    exclude: Iterable[str] = (),
    only: Iterable[str] = (),
    streams: Streams | None = None,
    on_step: Callable[[str], None] = lambda _: None,
) -> Run:
    """Fit and ask every planner in every protocol, track and history.

    The streaming protocol is run by `streams`, which keeps its answers, with the planners fitted for leave-one-video-out.
    `on_step` is called once per planner and fold, with a word on what was done; `steps` says how often that will be.
    """
    questions = Questions(videos, presence)
    answers: dict[Setting, list[Answer]] = {}
    asked: dict[str, list[Answer]] = {}
    not_run: dict[str, str] = {}
    planned = {protocol: folds(protocol, videos, exclude=exclude, only=only) for protocol in protocols}
    at_samples = {protocol: parts for protocol, parts in planned.items() if protocol != "streaming"}
    with_moments = (
        "lovo" if at_samples.get("lovo") else next((name for name in reversed(at_samples) if at_samples[name]), "")
    )
    kept: dict[tuple[str, Fold], dict[Track, Predictor]] = {}
    for protocol, parts in at_samples.items():
        for fold in parts:
            for baseline in baselines:
                on_step(f"{protocol} · {baseline.name}")
                if baseline.name in not_run:
                    continue
                try:
                    predictors = _fitted(baseline, fold, videos, presence, questions)
                    if protocol == "lovo" and streams is not None:
                        kept[baseline.name, fold] = predictors
                    for track, predictor in predictors.items():
                        for history in HISTORIES:
                            setting = Setting(baseline.name, track, history, protocol)
                            answers.setdefault(setting, []).extend(
                                answer
                                for name in fold.test
                                for answer in _ask(predictor, questions.samples(name, track, history))
                            )
                    if protocol == with_moments:
                        asked.setdefault(baseline.name, []).extend(
                            answer
                            for name in fold.test
                            for answer in _ask(predictors["causal"], questions.moments(name))
                        )
                except NotRunError as reason:
                    not_run[baseline.name] = str(reason)
    for fold in planned.get("streaming", ()) if streams is not None else ():
        on_step("streaming")
        names = [name for name in fold.test if name in presence]
        # A planner that looks at the official track's frames has none to look at here.
        able = [baseline for baseline in baselines if baseline.name not in not_run and not baseline.sees_track]
        if names and streams is not None:
            predictors_of = {
                baseline.name: (
                    kept.get((baseline.name, fold)) or _fitted(baseline, fold, videos, presence, questions)
                )["causal"]
                for baseline in able
            }
            streams.ask(_training(fold, videos, presence, "causal", questions), names, predictors_of)
    for setting in [setting for setting in answers if setting.planner in not_run]:
        del answers[setting]
    for planner in not_run:
        asked.pop(planner, None)
    return Run(answers, asked, with_moments, not_run)


def steps(
    baselines: Sequence[Baseline],
    names: Iterable[str],
    *,
    protocols: Sequence[ProtocolName] = AT_SAMPLES,
    exclude: Iterable[str] = (),
    only: Iterable[str] = (),
) -> int:
    """How often `run` will call `on_step`."""
    names = list(names)
    return sum(
        (1 if protocol == "streaming" else len(baselines)) * len(folds(protocol, names, exclude=exclude, only=only))
        for protocol in protocols
    )


def _training(
    fold: Fold, videos: Videos, presence: Mapping[str, Presence], track: Track, questions: Questions
) -> Training:
    chosen = {name: videos[name] for name in fold.train}
    return Training(chosen, {name: presence[name] for name in fold.train if name in presence}, track, questions)


def _fitted(
    baseline: Baseline, fold: Fold, videos: Videos, presence: Mapping[str, Presence], questions: Questions
) -> dict[Track, Predictor]:
    if baseline.sees_track:
        return {track: baseline.fit(_training(fold, videos, presence, track, questions)) for track in TRACKS}
    return dict.fromkeys(TRACKS, baseline.fit(_training(fold, videos, presence, "causal", questions)))


def _ask(predictor: Predictor, asked: Sequence[Sample]) -> list[Answer]:
    answers = []
    for sample in asked[:1]:
        predictor.predict(sample.question)  # warms up: a planner that runs has answered before
    for sample in asked:
        began = time.perf_counter()
        forecast = predictor.predict(sample.question)
        elapsed_ms = 1000 * (time.perf_counter() - began)
        if forecast is not None:
            answers.append(Answer(sample, forecast, elapsed_ms))
    return answers


def _parts(names: Sequence[str], count: int) -> list[list[str]]:
    """The videos in `count` parts, always the same ones."""
    shuffled = sorted(names)
    random.Random(0).shuffle(shuffled)
    return [sorted(shuffled[part::count]) for part in range(count)]
