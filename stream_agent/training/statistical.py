"""Fits the label model of the cholecystectomy pack on CholecT50-SAP, and says how well it foresees.

    run_agent.py train statistical --sap ../shared/data/sap/total_video_info.json --out configs/procedures/cholecystectomy

Order and concentration are chosen by the log loss of 5-fold cross-validation by video over every clip that follows
another, on the 35 training videos alone. The figures printed are nested: the choice is made again inside each fold. The
57 test samples are looked at once, at the end, with the model that is written. Every run gives the same bytes.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from stream_agent.errors import ConfigError
from stream_agent.evaluation.dataset import TEST_VIDEOS, TRAIN_VIDEOS, SapClip, load_sap
from stream_agent.planner.durations import DurationDistribution, distribution
from stream_agent.planner.ngram import SCHEMA, START, ContextCounts, ModelFile, NgramModel, encode_model

ACTIONS = ("Dissection", "Vessel Clipping", "Tissue Retraction", "Coagulation", "Aspiration")
ORDERS = (1, 2, 3, 4, 5, 6)
CONCENTRATIONS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
FOLDS = 5
SHUFFLES = 3
FEWEST_DURATIONS = 5

STATEMENT = (
    "Counts of action labels and quantiles of clip durations of {procedures} training videos of CholecT50-SAP (Xu et al. "
    "2025), derived from CholecT50 (Nwoye et al., Medical Image Analysis 78, 2022), CC BY-NC-SA 4.0: non-commercial use, "
    "attribution, share alike. The annotation ends a few clips after the vessels are clipped, and some begin late, so "
    "little is known of the liver bed phase, of bagging and of closing. See docs/model_card_statistical.md."
)

Videos = Mapping[str, tuple[SapClip, ...]]


@dataclass(frozen=True, slots=True)
class Moment:
    """One question with its answer: what followed `history`."""

    history: tuple[str, ...]
    target: str


@dataclass(frozen=True, slots=True)
class Score:
    """How well a model foresees some moments.

    Attributes:
        n: Moments.
        hits: How many had the target within the first 1, 2 and 3 ranks.
        log_loss: Mean negative log probability of the target, in nats.
        calibration_error: Expected calibration error of the ranked probabilities, ten bins (Guo et al., ICML 2017).
    """

    n: int
    hits: tuple[int, int, int]
    log_loss: float
    calibration_error: float

    def __str__(self) -> str:
        top = "/".join(f"{100 * hits / self.n:.1f}" for hits in self.hits)
        return f"top-1/2/3 {top} %, log loss {self.log_loss:.3f}, calibration error {self.calibration_error:.3f}, n={self.n}"


def fit(
    videos: Videos, names: Iterable[str], *, order: int, concentration: float, held_out: Container[str] = TEST_VIDEOS
) -> ModelFile:
    """Count the clips of the videos `names`; cross-validation over all videos holds out its own instead of `TEST_VIDEOS`.

    Raises:
        ConfigError: One of them is held out or not in the file, or an action never ends.
    """
    chosen = sorted(names)
    _refuse(videos, chosen, held_out)
    return count(videos, chosen, order=order, concentration=concentration)


def _refuse(videos: Videos, chosen: Iterable[str], held_out: Container[str]) -> None:
    """Let no video through that is held out or unknown.

    Raises:
        ConfigError: One of them is.
    """
    for name in chosen:
        if name in held_out:
            raise ConfigError(f"{name} is a test video and is never fitted on; leave it out")
        if name not in videos:
            raise ConfigError(f"{name} is not in the annotation file; it has {len(videos)} videos, name one of them")


def count(videos: Videos, names: Iterable[str], *, order: int, concentration: float) -> ModelFile:
    """Count the clips of any videos, for cross-validation over all of them; what is shipped comes from `fit`."""
    chosen = sorted(names)
    counts = _contexts(videos, chosen, order=order)
    return ModelFile(
        version=SCHEMA,
        statement=STATEMENT.format(procedures=len(chosen)),
        actions=ACTIONS,
        procedures=len(chosen),
        order=order,
        concentration=concentration,
        counts=tuple(
            ContextCounts(context, {action: count for action in ACTIONS if (count := counts[context][action])})
            for context in sorted(counts, key=lambda labels: (len(labels), labels))
        ),
        durations=_durations(videos[name] for name in chosen),
    )


def _contexts(videos: Videos, names: Iterable[str], *, order: int) -> dict[tuple[str, ...], Counter[str]]:
    """What followed each context of fewer than `order` labels, and how often."""
    counts: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for name in names:
        labels = (START, *(clip.action for clip in videos[name]))
        for place in range(1, len(labels)):
            for length in range(min(order - 1, place) + 1):
                counts[labels[place - length : place]][labels[place]] += 1
    return counts


def score(parts: Iterable[tuple[NgramModel, Sequence[Moment]]]) -> Score:
    """How well each model foresees its moments, taken together; ties rank in pack order."""
    hits = [0, 0, 0]
    loss = 0.0
    forecasts: list[tuple[float, bool]] = []
    n = 0
    for model, moments in parts:
        for moment in moments:
            n += 1
            probabilities = model.next_probabilities(moment.history)
            ranked = sorted(probabilities, key=lambda action: -probabilities[action])
            for rank in range(3):
                hits[rank] += moment.target in ranked[: rank + 1]
            loss -= math.log(max(probabilities.get(moment.target, 0.0), 1e-3))
            forecasts.extend((probabilities[action], action == moment.target) for action in ranked[:3])
    return Score(n, (hits[0], hits[1], hits[2]), loss / n, calibration_error(forecasts))


def all_moments(videos: Videos, names: Iterable[str]) -> list[Moment]:
    """Every clip after the annotated ones before it, the first of a case included."""
    moments: list[Moment] = []
    for name in names:
        labels = tuple(clip.action for clip in videos[name])
        moments.extend(Moment(labels[:place], label) for place, label in enumerate(labels))
    return moments


def sample_moments(videos: Videos, names: Iterable[str]) -> list[Moment]:
    """The samples of the published protocol, with their published histories."""
    return [Moment(clip.history, clip.action) for name in names for clip in videos[name] if clip.is_sample]


def folds(names: Iterable[str], *, count: int = FOLDS, seed: int = 0) -> list[list[str]]:
    """The videos in `count` parts, the same for a seed."""
    shuffled = sorted(names)
    random.Random(seed).shuffle(shuffled)
    return [shuffled[part::count] for part in range(count)]


def choose(videos: Videos, names: Iterable[str], *, held_out: Container[str] = TEST_VIDEOS) -> tuple[int, float]:
    """Order and concentration with the least cross-validated log loss over all moments; the simpler one on a tie.

    Every setting is scored at once: a shorter order looks at fewer of the same counts, see `NgramModel`.
    """
    chosen = list(names)
    nothing: Counter[str] = Counter()
    gathered = []  # per moment, the counts of each action after its contexts of 0, 1, … labels
    candidates = []
    targets = []
    for seed in range(SHUFFLES):
        for part in folds(chosen, seed=seed):
            taught = sorted(set(chosen) - set(part))
            _refuse(videos, taught, held_out)
            counts = _contexts(videos, taught, order=max(ORDERS))
            for moment in all_moments(videos, part):
                past = (START, *moment.history)
                ends = [
                    counts.get(past[len(past) - length :], nothing) if length <= len(past) else nothing
                    for length in range(max(ORDERS))
                ]
                gathered.append([[end[action] for action in ACTIONS] for end in ends])
                candidates.append([action != past[-1] for action in ACTIONS])
                targets.append(ACTIONS.index(moment.target))
    may_come = np.array(candidates)
    seen = np.array(gathered, dtype=np.float64) * may_come[:, None]  # (moments, lengths, actions)
    asked = np.arange(len(targets))
    losses: dict[tuple[int, float], float] = {}
    for concentration in CONCENTRATIONS:
        probabilities = may_come / may_come.sum(1, keepdims=True)
        for order in range(1, max(ORDERS) + 1):
            counted = seen[:, order - 1]
            probabilities = (counted + concentration * probabilities) / (counted.sum(1, keepdims=True) + concentration)
            loss = -np.log(np.maximum(probabilities[asked, targets], 1e-3)).mean()
            losses[order, concentration] = round(float(loss), 4)
    return min(((order, concentration) for order in ORDERS for concentration in CONCENTRATIONS), key=losses.__getitem__)


def train(sap: Path, signals: Path | None, out: Path, *, exclude: Iterable[str] = ()) -> None:
    """Fit the label model, with `signals` the model over the memory too, print every figure, write both beside `out`.

    Raises:
        ConfigError: An input cannot be read, or `exclude` names no training video.
    """
    excluded = frozenset(exclude)
    videos = load_sap(sap)
    unknown = excluded - TRAIN_VIDEOS
    if unknown:
        raise ConfigError(f"--exclude {' '.join(sorted(unknown))}: not a training video; name some of the 35")
    training = sorted(TRAIN_VIDEOS - excluded)
    parts = [(sorted(set(training) - set(part)), part) for part in folds(training)]
    models = []
    for rest, part in parts:
        order, concentration = choose(videos, rest)
        models.append((NgramModel(fit(videos, rest, order=order, concentration=concentration)), part))
    print(f"nested {FOLDS}-fold cross-validation by video, {len(training)} training videos:")
    print(f"  samples      {score((model, sample_moments(videos, part)) for model, part in models)}")
    print(f"  every clip   {score((model, all_moments(videos, part)) for model, part in models)}")
    print(f"  durations    {_duration_report(videos, parts)}")
    order, concentration = choose(videos, training)
    file = fit(videos, training, order=order, concentration=concentration)
    print(f"chosen: order {order}, concentration {concentration:g}; {len(file.counts)} contexts")
    print("held-out test videos, never fitted or chosen on:")
    print(f"  samples      {score([(NgramModel(file), sample_moments(videos, sorted(TEST_VIDEOS)))])}")
    out.write_bytes(encode_model(file))
    print(f"wrote {out}")
    if signals is not None:
        from stream_agent.training import planner_model  # scikit-learn, which counting does without

        beside = out.with_name("ensemble.json")
        allowed = {name: clips for name, clips in videos.items() if name not in excluded}
        planner_model.run(allowed, signals, beside, training, order=order, concentration=concentration)


def _durations(cases: Iterable[tuple[SapClip, ...]]) -> dict[str, DurationDistribution]:
    """Durations per action; the last clip of a case has no known end and is left out.

    An action with too few whole clips takes those of all actions together, and keeps its own n.
    """
    measured: dict[str, list[float]] = {action: [] for action in ACTIONS}
    for clips in cases:
        for clip, following in pairwise(clips):
            measured[clip.action].append(float(following.start_s - clip.start_s))
    pooled = distribution([value for values in measured.values() for value in values])
    return {
        action: distribution(values)
        if len(values) >= FEWEST_DURATIONS
        else DurationDistribution(n=len(values), quantiles_s=pooled.quantiles_s)
        for action, values in measured.items()
    }


def _duration_report(videos: Videos, parts: Sequence[tuple[Sequence[str], Sequence[str]]]) -> str:
    """Coverage of the 10 to 90 % range of the time left, asked every 10 s of every held-out whole clip."""
    inside = 0
    asked = 0
    error_s = []
    for rest, part in parts:
        fitted = _durations(videos[name] for name in rest)
        for name in part:
            for clip, following in pairwise(videos[name]):
                whole_s = following.start_s - clip.start_s
                for elapsed_s in range(0, whole_s, 10):
                    low, middle, high = (fitted[clip.action].remaining_s(elapsed_s, level) for level in (0.1, 0.5, 0.9))
                    inside += low <= whole_s - elapsed_s <= high
                    asked += 1
                    error_s.append(abs(middle - (whole_s - elapsed_s)))
    middle_error_s = sorted(error_s)[len(error_s) // 2]
    return f"{100 * inside / asked:.1f} % inside the 10 to 90 % range, median error {middle_error_s:.0f} s, n={asked}"


def calibration_error(forecasts: Sequence[tuple[float, bool]], *, bins: int = 10) -> float:
    """Mean distance of stated probability and observed frequency, weighted over equal-width bins."""
    sums = [[0.0, 0.0] for _ in range(bins)]
    for probability, came in forecasts:
        part = sums[min(int(probability * bins), bins - 1)]
        part[0] += probability
        part[1] += came
    return sum(abs(stated - observed) for stated, observed in sums) / len(forecasts)
