"""Whether a candidate may be put to use: first whether its record proves anything, then whether it is not inferior.

Not inferior means on each of three axes, over the same samples, beside the model in use:

    accuracy     top-1 SLAcc, paired bootstrap over videos: the interval of the difference ends above -margin
    calibration  ECE of the first answer, at most a margin above
    latency      p99 of the time to an answer, at most a ratio above

That no difference was found is not enough; with few samples none ever is. So the *lower end* of the interval has to clear the
margin, and a small record fails (Piaggio et al., JAMA 308, 2012, on reporting non-inferiority). Pure: records in, judgements out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from stream_agent.evaluation import metrics
from stream_agent.evaluation.dataset import TEST_VIDEOS
from stream_agent.evaluation.metrics import Difference, Outcome
from stream_agent.models.margins import Margins
from stream_agent.models.record import Answered, EvaluationRecord, Side

_NAMED = 4
"""Videos or samples that a message names at most."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis's finding.

    Attributes:
        name: `accuracy`, `calibration` or `latency`.
        passed: Whether the candidate is not inferior on it.
        finding: The figures, the rule and, when it failed, what to do.
    """

    name: str
    passed: bool
    finding: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the gate found; `passed` when every axis is."""

    axes: tuple[Axis, ...]

    @property
    def passed(self) -> bool:
        """Whether the candidate may be put to use."""
        return all(axis.passed for axis in self.axes)


def objections(record: EvaluationRecord, margins: Margins) -> list[str]:
    """Why the record proves nothing, one line per reason; empty for a sound one."""
    found = [*_about_the_record(record)]
    for role, side in (("candidate", record.candidate), ("in_use", record.in_use)):
        found.extend(f"{role}: {reason}" for reason in (*_leaks(side), *_missing_axes(side)))
    found.extend(_unpaired(record))
    videos, samples = len({one.video for one in record.candidate.answers}), len(record.candidate.answers)
    for what, counted, least in (("videos", videos, margins.least_videos), ("samples", samples, margins.least_samples)):
        if counted < least:
            found.append(f"the record covers {counted} {what}, at least {least} are needed; evaluate on more")
    return found


def judge(record: EvaluationRecord, margins: Margins) -> Judgement:
    """The three axes of a sound record."""
    ours = [one.outcome for one in record.candidate.answers]
    theirs = [one.outcome for one in record.in_use.answers]
    return Judgement((_accuracy(ours, theirs, margins), _calibration(ours, theirs, margins), _latency(record, margins)))


def _accuracy(ours: Sequence[Outcome], theirs: Sequence[Outcome], margins: Margins) -> Axis:
    found: Difference = metrics.paired_bootstrap(ours, theirs)
    passed = found.low >= -margins.accuracy_points
    text = (
        f"SLAcc@1 {metrics.slacc(ours, 1):.1f} against {metrics.slacc(theirs, 1):.1f}: {found.value:+.1f} points, 95 % "
        f"{found.low:+.1f} … {found.high:+.1f}; the lower end must be {-margins.accuracy_points:+.1f} or more"
    )
    remedy = "" if passed else "; improve the model, or evaluate on more videos if the interval is only wide"
    return Axis("accuracy", passed, text + remedy)


def _calibration(ours: Sequence[Outcome], theirs: Sequence[Outcome], margins: Margins) -> Axis:
    errors = metrics.ece(ours), metrics.ece(theirs)
    difference = errors[0] - errors[1]
    passed = difference <= margins.calibration  # false for NaN, too
    text = (
        f"ECE {errors[0]:.3f} against {errors[1]:.3f}: {difference:+.3f}; {margins.calibration:+.3f} or less is allowed"
    )
    remedy = (
        "" if passed else "; fit its temperature on training videos, an adapter's by `train gate --fit-temperature`"
    )
    return Axis("calibration", passed, text + remedy)


def _latency(record: EvaluationRecord, margins: Margins) -> Axis:
    ours, theirs = (_p99_ms(side) for side in (record.candidate, record.in_use))
    ratio = max(ours, margins.latency_floor_ms) / max(theirs, margins.latency_floor_ms)
    passed = ratio <= margins.latency_ratio
    text = (
        f"p99 {ours:.2f} ms against {theirs:.2f} ms in the same run: ratio {ratio:.2f} (below {margins.latency_floor_ms:g} ms "
        f"counts as that); {margins.latency_ratio:g} or less is allowed"
    )
    return Axis("latency", passed, text + ("" if passed else "; make it smaller, or evaluate on a quiet machine"))


def _p99_ms(side: Side) -> float:
    taken = [one.elapsed_ms for one in side.answers if one.elapsed_ms is not None]
    return float(np.percentile(taken, 99)) if taken else math.nan


def _about_the_record(record: EvaluationRecord) -> Iterator[str]:
    if record.track != "causal":
        yield (
            f"track={record.track} shows the first frame of the action that is asked for; evaluate on the causal track"
        )
    if not record.candidate.files:
        yield "candidate.files is empty, so the record is about no model; write it with the model's sha256 sums"
    if record.kind == "adapter" and not record.candidate.base:
        yield "candidate.base is empty, an adapter belongs to one base model; write the base model's digest"


def _leaks(side: Side) -> Iterator[str]:
    """Test videos anywhere, and videos that a model was asked about after it had seen them."""
    fitted = set(side.fitted_on)
    if tests := fitted & TEST_VIDEOS:
        yield f"fitted_on has {_some(tests)} of the test split, which no model may be fitted on; fit without them"
    asked: Counter[str] = Counter(video for fold in side.folds for video in set(fold.asked))
    if tests := set(asked) & TEST_VIDEOS:
        yield (
            f"asked about {_some(tests)} of the test split, and promoting is choosing; cross-validate on training videos"
        )
    if twice := {video for video, folds in asked.items() if folds > 1}:
        yield f"{_some(twice)} asked in two folds; ask each video once"
    for number, fold in enumerate(side.folds, 1):
        if seen := set(fold.fitted_on) & set(fold.asked):
            yield f"fold {number} was fitted on {_some(seen)} and asked about it; hold out what is asked"
        elif set(fold.fitted_on) != fitted - set(fold.asked):
            differing = set(fold.fitted_on) ^ (fitted - set(fold.asked))
            yield (
                f"fold {number} was not fitted as the model was: {_some(differing)} differs; fit folds on the model's "
                "own videos without those asked"
            )
    if stray := {one.video for one in side.answers} - set(asked):
        yield f"{_some(stray)} answered in no fold; name in folds who answered it"


def _missing_axes(side: Side) -> Iterator[str]:
    """Answers that lack what an axis is computed from."""
    if not side.answers:
        yield "it has no answers; evaluate it"
        return
    for axis, lacking, remedy in (
        ("accuracy", [one for one in side.answers if not one.target], "write the action that came"),
        ("calibration", [one for one in side.answers if not _states_probabilities(one)], "state one per ranked action"),
        ("latency", [one for one in side.answers if one.elapsed_ms is None], "measure how long each answer takes"),
    ):
        if lacking:
            what = {"accuracy": "target", "calibration": "probabilities", "latency": "elapsed_ms"}[axis]
            yield (
                f"{axis} cannot be judged: {len(lacking)} of {len(side.answers)} answers lack {what} "
                f"({_sample_name(lacking[0])}); {remedy}"
            )
    if all(not one.ranked for one in side.answers):
        yield "calibration cannot be judged: every answer is an abstention; lower the planner's threshold"


def _states_probabilities(one: Answered) -> bool:
    return len(one.probabilities) == len(one.ranked) == len(set(one.ranked))


def _unpaired(record: EvaluationRecord) -> Iterator[str]:
    ours, theirs = (
        {(one.video, one.index): (one.target, one.following) for one in side.answers}
        for side in (record.candidate, record.in_use)
    )
    for role, side, samples in (("candidate", record.candidate, ours), ("in_use", record.in_use, theirs)):
        if len(side.answers) != len(samples):
            yield f"{role}: a sample is answered twice; write one answer per sample"
    if differing := set(ours) ^ set(theirs):
        yield f"{_some(f'{video}/{index}' for video, index in differing)} answered by one side alone; ask both the same"
    elif differing := {sample for sample in ours if ours[sample] != theirs[sample]}:
        yield f"{_some(f'{video}/{index}' for video, index in differing)} has two truths; read one annotation for both"


def _sample_name(one: Answered) -> str:
    return f"{one.video}/{one.index}"


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = len(ordered) - _NAMED
    return ", ".join(ordered[:_NAMED]) + (f" and {more} more" if more > 0 else "")
