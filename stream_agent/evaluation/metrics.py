"""How good answers are: pure functions from what was said and what came to a number.

The accuracies are those of LLM-SAP (Xu et al. 2025), settled by reproducing its published numbers; all are percentages:

    SLAcc@k    share of samples whose target is among the first k answers
    VLAcc@k    mean over videos of the same share within one video. As published it behaves as if VID42 were left out
               (14 of 15 test videos): `vlacc_published` reproduces that, `vlacc` is the one to quote
    ReAcc@k    the same two for "the target or the action after it", over the samples that have an action after it

A metric over nothing is NaN.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

UNPUBLISHED_VIDEO = "VID42"
"""The test video that the published VLAcc seems to leave out."""

CALIBRATION_BINS = 10
DRAWS = 2000
LEVEL = 0.95

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One sample's answer and truth.

    Attributes:
        video: `VIDnn`.
        index: The target clip's number in its video; with `video` it names the sample.
        target: The action that came.
        following: The action after it; empty for the last clip of a video.
        ranked: Answers, the likeliest first; empty for an abstention, which counts as wrong.
        probabilities: Of `ranked`, in its order; empty when the planner states none.
    """

    video: str
    index: int
    target: str
    following: str
    ranked: tuple[str, ...]
    probabilities: tuple[float, ...] = ()

    def hit(self, k: int) -> bool:
        """Whether the target is among the first `k`."""
        return self.target in self.ranked[:k]

    def hit_relaxed(self, k: int) -> bool:
        """Whether the target or the action after it is among the first `k`."""
        return not {self.target, self.following}.isdisjoint(self.ranked[:k])


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """How much better the first of two planners is, with its interval and two-sided bootstrap p-value."""

    value: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True, slots=True)
class Bin:
    """One bar of a reliability diagram: `n` answers of mean confidence `stated`, of which a share `observed` was right."""

    n: int
    stated: float
    observed: float


@dataclass(frozen=True, slots=True)
class Anticipation:
    """Errors of the time until an action begins, in seconds; see `anticipation_errors`."""

    weighted_s: float
    inside_s: float
    outside_s: float


@dataclass(frozen=True, slots=True)
class ChainScore:
    """Chains of one length against the truth; see `chain_score`."""

    n: int
    edit_distance: float
    exact_match: float


def slacc(outcomes: Sequence[Outcome], k: int) -> float:
    """SLAcc@k in percent."""
    return _percent([outcome.hit(k) for outcome in outcomes])


def vlacc(outcomes: Sequence[Outcome], k: int) -> float:
    """VLAcc@k in percent, over every video that has a sample."""
    return _mean(_by_video((outcome.video, outcome.hit(k)) for outcome in outcomes))


def vlacc_published(outcomes: Sequence[Outcome], k: int) -> float:
    """VLAcc@k in percent without VID42, as the published numbers seem to be."""
    return vlacc([outcome for outcome in outcomes if outcome.video != UNPUBLISHED_VIDEO], k)


def re_slacc(outcomes: Sequence[Outcome], k: int) -> float:
    """Relaxed SLAcc@k in percent, over the samples with an action after the target."""
    return _percent([outcome.hit_relaxed(k) for outcome in outcomes if outcome.following])


def re_vlacc(outcomes: Sequence[Outcome], k: int) -> float:
    """Relaxed VLAcc@k in percent, over the videos with such a sample."""
    return _mean(_by_video((outcome.video, outcome.hit_relaxed(k)) for outcome in outcomes if outcome.following))


def macro_f1(outcomes: Sequence[Outcome]) -> float:
    """Mean F1 of the first answer in percent, over every action that came or was said (as scikit-learn averages)."""
    scores = []
    said = {outcome.ranked[0] for outcome in outcomes if outcome.ranked}
    for action in sorted(said | {outcome.target for outcome in outcomes}):
        claimed = sum(outcome.ranked[:1] == (action,) for outcome in outcomes)
        came = sum(outcome.target == action for outcome in outcomes)
        right = sum(outcome.ranked[:1] == (action,) and outcome.target == action for outcome in outcomes)
        scores.append(200 * right / (claimed + came))
    return _mean(scores)


def reliability(outcomes: Sequence[Outcome], *, bins: int = CALIBRATION_BINS) -> tuple[Bin, ...]:
    """The first answer's probability against how often it was right, in bins of equal width; empty bins are left out."""
    parts: dict[int, list[tuple[float, bool]]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.probabilities:
            stated = outcome.probabilities[0]
            parts[min(int(stated * bins), bins - 1)].append((stated, outcome.hit(1)))
    return tuple(
        Bin(len(part), sum(stated for stated, _ in part) / len(part), sum(right for _, right in part) / len(part))
        for _, part in sorted(parts.items())
    )


def ece(outcomes: Sequence[Outcome], *, bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error of the first answer, 0 to 1 (Guo et al., "On Calibration", ICML 2017, eq. 3).

    NaN if a planner states no probabilities. Few samples make it large whatever the planner; `expected_ece` says how large.
    """
    parts = reliability(outcomes, bins=bins)
    total = sum(part.n for part in parts)
    return sum(part.n * abs(part.stated - part.observed) for part in parts) / total if total else math.nan


def expected_ece(
    stated: Sequence[float], *, bins: int = CALIBRATION_BINS, draws: int = 1000, seed: int = 0
) -> Interval:
    """What `ece` would show if every one of these probabilities were exactly right: mean, and 5 to 95 % of the draws.

    An error below the upper end is no evidence against a planner's calibration. NaN of no probabilities.
    """
    confidence = np.asarray(stated, dtype=np.float64)
    if not len(confidence):
        return Interval(math.nan, math.nan, math.nan)
    right = np.random.default_rng(seed).random((draws, len(confidence))) < confidence
    place = np.minimum((confidence * bins).astype(np.intp), bins - 1)
    within = (place[:, None] == np.arange(bins)).astype(np.float64)  # (n, bins)
    errors = np.abs((right - confidence) @ within).sum(1) / len(confidence)
    low, high = np.quantile(errors, [0.05, 0.95])
    return Interval(float(errors.mean()), float(low), float(high))


def aurc(outcomes: Sequence[Outcome]) -> float:
    """Area under the risk-coverage curve, 0 (best) to 1: the error rate averaged over how many answers are given.

    Geifman, Uziel & El-Yaniv, "Bias-Reduced Uncertainty Estimation", ICLR 2019. NaN without probabilities.
    """
    points = risk_coverage(outcomes)
    before = [0.0, *(coverage for coverage, _ in points)]
    return sum(risk * (coverage - last) for (coverage, risk), last in zip(points, before, strict=False)) or (
        0.0 if points else math.nan
    )


def brier(outcomes: Sequence[Outcome]) -> float:
    """Mean squared distance of the stated distribution from what came, 0 to 2 (Brier, 1950); unranked actions count 0.

    NaN if a planner states no probabilities.
    """
    scores = []
    for outcome in outcomes:
        if outcome.probabilities:
            stated = dict(zip(outcome.ranked, outcome.probabilities, strict=True))
            came = (1 - stated.pop(outcome.target, 0.0)) ** 2
            scores.append(came + sum(probability**2 for probability in stated.values()))
    return _mean(scores)


def risk_coverage(outcomes: Sequence[Outcome]) -> tuple[tuple[float, float], ...]:
    """(coverage, error rate) when only the surest answers are given, one point per distinct confidence.

    El-Yaniv & Wiener, "On the Foundations of Noise-free Selective Classification", JMLR 11, 2010.
    """
    surest = sorted(
        ((outcome.probabilities[0], outcome.hit(1)) for outcome in outcomes if outcome.probabilities),
        key=lambda item: -item[0],
    )
    points = []
    wrong = 0
    for given, (confidence, right) in enumerate(surest, start=1):
        wrong += not right
        if given == len(surest) or surest[given][0] < confidence:
            points.append((given / len(surest), wrong / given))
    return tuple(points)


def bootstrap_slacc(outcomes: Sequence[Outcome], k: int, *, draws: int = DRAWS, seed: int = 0) -> Interval:
    """SLAcc@k with its 95 % interval; whole videos are drawn, for samples of one video are not independent."""
    hits, counts = _hits_by_video(outcomes, k)
    if not len(hits):
        return Interval(math.nan, math.nan, math.nan)
    chosen = _draws(len(hits), draws, seed)
    low, high = _range(100 * hits[chosen].sum(1) / counts[chosen].sum(1))
    return Interval(slacc(outcomes, k), low, high)


def bootstrap_vlacc(outcomes: Sequence[Outcome], k: int, *, draws: int = DRAWS, seed: int = 0) -> Interval:
    """VLAcc@k with its 95 % interval over videos."""
    hits, counts = _hits_by_video(outcomes, k)
    if not len(hits):
        return Interval(math.nan, math.nan, math.nan)
    chosen = _draws(len(hits), draws, seed)
    low, high = _range(100 * (hits / counts)[chosen].mean(1))
    return Interval(vlacc(outcomes, k), low, high)


def paired_bootstrap(
    first: Sequence[Outcome], second: Sequence[Outcome], k: int = 1, *, draws: int = DRAWS, seed: int = 0
) -> Difference:
    """SLAcc@k of `first` minus that of `second` on the same samples, whole videos drawn together.

    The p-value is twice the smaller share of draws on either side of zero, with one draw added to each (Davison &
    Hinkley, "Bootstrap Methods and their Application", 1997, 4.2).

    Raises:
        ValueError: They answered different samples.
    """
    ordered = sorted(first, key=_sample), sorted(second, key=_sample)
    if [_sample(outcome) for outcome in ordered[0]] != [_sample(outcome) for outcome in ordered[1]]:
        raise ValueError("the planners answered different samples and cannot be paired")
    hits, counts = _hits_by_video(ordered[0], k)
    others, _ = _hits_by_video(ordered[1], k)
    if not len(hits):
        return Difference(math.nan, math.nan, math.nan, math.nan)
    chosen = _draws(len(hits), draws, seed)
    differences = 100 * (hits - others)[chosen].sum(1) / counts[chosen].sum(1)
    low, high = _range(differences)
    side = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return Difference(
        value=100 * float((hits - others).sum() / counts.sum()),
        low=low,
        high=high,
        p_value=min(1.0, 2 * (side + 1) / (draws + 1)),
    )


def mean_absolute_error(predicted: Sequence[float], true: Sequence[float]) -> float:
    """Mean of |predicted - true|."""
    return _mean([abs(guess - truth) for guess, truth in zip(predicted, true, strict=True)])


def anticipation_errors(
    predicted_s: Sequence[float], true_s: Sequence[float], *, horizon_s: float
) -> Anticipation | None:
    """Errors of the time until one action next begins, both clipped at the horizon; None if either part is empty.

    Rivoir et al., "Rethinking Anticipation Tasks" (MICCAI 2020, arXiv:2007.00548), and Yuan et al. (Medical Image
    Analysis 75, 2022): with r = min(true, h), inMAE is the mean absolute error where 0 < r < h, outMAE where r = h, and
    wMAE the mean of the two, so that the rare moments before the action weigh as much as all the others. The caller
    averages over actions.
    """
    guess = np.clip(np.asarray(predicted_s, dtype=np.float64), 0, horizon_s)
    truth = np.clip(np.asarray(true_s, dtype=np.float64), 0, horizon_s)
    errors = np.abs(guess - truth)
    inside, outside = (truth > 0) & (truth < horizon_s), truth >= horizon_s
    if not inside.any() or not outside.any():
        return None
    inside_s, outside_s = float(errors[inside].mean()), float(errors[outside].mean())
    return Anticipation((inside_s + outside_s) / 2, inside_s, outside_s)


def edit_distance(first: Sequence[str], second: Sequence[str]) -> int:
    """Fewest insertions, deletions and replacements that make one of the other (Levenshtein)."""
    row = list(range(len(second) + 1))
    for place, item in enumerate(first, start=1):
        above = row
        row = [place]
        for other, symbol in enumerate(second, start=1):
            row.append(min(above[other] + 1, row[-1] + 1, above[other - 1] + (item != symbol)))
    return row[-1]


def chain_score(pairs: Iterable[tuple[Sequence[str], Sequence[str]]], length: int) -> ChainScore:
    """Predicted chains against true ones of `length` actions; cases that end earlier are not asked.

    The edit distance is divided by the length (0 best), the share of chains right from end to end is in percent.
    """
    kept = [(chain[:length], truth[:length]) for chain, truth in pairs if len(truth) >= length]
    return ChainScore(
        n=len(kept),
        edit_distance=_mean([edit_distance(chain, truth) / length for chain, truth in kept]),
        exact_match=_percent([tuple(chain) == tuple(truth) for chain, truth in kept]),
    )


def _sample(outcome: Outcome) -> tuple[str, int, str]:
    return outcome.video, outcome.index, outcome.target


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _percent(values: Sequence[bool]) -> float:
    return 100 * sum(values) / len(values) if values else math.nan


def _by_video(hits: Iterable[tuple[str, bool]]) -> list[float]:
    """Percent of hits per video."""
    videos: dict[str, list[bool]] = defaultdict(list)
    for video, hit in hits:
        videos[video].append(hit)
    return [_percent(values) for values in videos.values()]


def _hits_by_video(outcomes: Sequence[Outcome], k: int) -> tuple[Numbers, Numbers]:
    """Hits and samples per video, videos by name."""
    videos: dict[str, list[bool]] = defaultdict(list)
    for outcome in outcomes:
        videos[outcome.video].append(outcome.hit(k))
    ordered = [videos[name] for name in sorted(videos)]
    return np.array([float(sum(hits)) for hits in ordered]), np.array([float(len(hits)) for hits in ordered])


def _draws(videos: int, draws: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, videos, size=(draws, videos))


def _range(values: Numbers) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
