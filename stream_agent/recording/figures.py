"""What a session report says, computed: clips, plans against what came, cautions, latency, abstentions. Pure."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from stream_agent.messages import RANKED, Clip, ClipEvent, Health, Plan
from stream_agent.recording.records import Finish, FrameRecord

_QUANTILES = (50, 95, 99)


class Span(NamedTuple):
    """A run of media time with one action; None where there was none."""

    start_s: float
    end_s: float
    action: str | None


class Latency(NamedTuple):
    """Milliseconds of one stage."""

    stage: str
    p50: float
    p95: float
    p99: float
    most: float
    n: int


@dataclass(slots=True)
class Accuracy:
    """Plans and clips against labels.

    Attributes:
        frames: Perceived frames with a label; `recognised` of them were in the right action.
        plans: Plans with a ranking and a known next action; `hits[k]` of them had it among the first k + 1.
        changes: True changes of action before which a plan stood; `change_hits[k]` of those.
    """

    frames: int = 0
    recognised: int = 0
    plans: int = 0
    hits: list[int] = field(default_factory=lambda: [0] * RANKED)
    changes: int = 0
    change_hits: list[int] = field(default_factory=lambda: [0] * RANKED)


@dataclass(slots=True)
class Figures:
    """Everything the report shows.

    Attributes:
        start_s: Media time of the first frame.
        end_s: Of the last.
        clips: Recognised, in order.
        recognised: The same as spans.
        planned: The first choice on display over media time; None while there was none.
        true: The labels' spans; empty without labels.
        accuracy: Against the labels, or against the clips that followed if there are none.
        judged_by: `labels` or `clips`.
        cautions: Text → (first media time, number of plans).
        latencies: Per stage, `total` last.
        abstentions: Reason → plans.
        gates: Reason → frames.
        rungs: Rung → plans.
        problems: (part, what) → half seconds in which it was told.
    """

    start_s: float = 0.0
    end_s: float = 0.0
    frames: int = 0
    passed_over: Counter[str] = field(default_factory=Counter)
    plans: int = 0
    clips: list[Clip] = field(default_factory=list)
    recognised: list[Span] = field(default_factory=list)
    planned: list[Span] = field(default_factory=list)
    true: list[Span] = field(default_factory=list)
    accuracy: Accuracy = field(default_factory=Accuracy)
    judged_by: str = "clips"
    cautions: dict[str, tuple[float, int]] = field(default_factory=dict)
    latencies: list[Latency] = field(default_factory=list)
    abstentions: Counter[str] = field(default_factory=Counter)
    gates: Counter[str] = field(default_factory=Counter)
    rungs: Counter[str] = field(default_factory=Counter)
    problems: Counter[tuple[str, str]] = field(default_factory=Counter)


def figures(messages: Iterable[object], labels: Sequence[tuple[float, str]] | None = None) -> Figures:
    """The figures of a session from its messages in order; `labels` are (start_s, action), an empty action for none."""
    found = Figures()
    plans: list[Plan] = []
    opened: Clip | None = None
    spans: dict[str, list[float]] = {}
    for message in messages:
        match message:
            case FrameRecord():
                if not found.frames:
                    found.start_s = message.pts_s
                found.frames += 1
                found.end_s = max(found.end_s, message.pts_s)
                found.passed_over.update(passed.reason for passed in message.passed_over)
                found.gates.update([message.gate] if message.gate else [])
            case Finish():
                found.passed_over.update(passed.reason for passed in message.passed_over)
            case ClipEvent(kind, clip):
                opened = clip if kind == "opened" else None
                if kind == "closed":
                    found.clips.append(clip)
            case Plan():
                plans.append(message)
                _book(found, message)
                for stage, ms in message.spans_ms.items():
                    spans.setdefault(stage, []).append(ms)
            case Health():
                found.problems.update((part, state) for part, state in message.parts.items() if state != "ok")
    found.plans = len(plans)
    if opened is not None:  # the session ended in it
        found.clips.append(Clip(opened.action, opened.start_pts_s, found.end_s, opened.confidence))
    found.recognised = [Span(clip.start_pts_s, clip.end_pts_s, clip.action) for clip in found.clips]
    found.planned = _on_display(plans, found.end_s)
    found.latencies = [_latency(stage, spans[stage]) for stage in sorted(spans, key=lambda stage: stage == "total")]
    if labels:
        found.true = _spans(labels, found.start_s, found.end_s)
        found.judged_by = "labels"
    found.accuracy = _accuracy(plans, found.true or found.recognised)
    return found


def _book(found: Figures, plan: Plan) -> None:
    found.rungs[plan.source] += 1
    if plan.abstained:
        found.abstentions[plan.abstain_reason] += 1
    for caution in plan.safety:
        first_s, times = found.cautions.get(caution, (plan.pts_s, 0))
        found.cautions[caution] = (first_s, times + 1)


def _on_display(plans: Sequence[Plan], end_s: float) -> list[Span]:
    """The first choices as runs of media time, neighbours of one action joined."""
    runs: list[Span] = []
    for plan, following in pairwise([*plans, None]):
        assert plan is not None
        until_s = end_s if following is None else following.pts_s
        action = plan.ranked[0].action if plan.ranked else None
        if runs and runs[-1].action == action:
            runs[-1] = Span(runs[-1].start_s, max(runs[-1].end_s, until_s), action)
        elif until_s > plan.pts_s or not runs:
            runs.append(Span(plan.pts_s, max(until_s, plan.pts_s), action))
    return runs


def _spans(labels: Sequence[tuple[float, str]], start_s: float, end_s: float) -> list[Span]:
    spans = []
    for (begin_s, action), (until_s, _) in pairwise([*labels, (max(end_s, labels[-1][0]), "")]):
        begin_s, until_s = max(begin_s, start_s), min(until_s, end_s)
        if until_s > begin_s:
            spans.append(Span(begin_s, until_s, action or None))
    return spans


def _accuracy(plans: Sequence[Plan], truth: Sequence[Span]) -> Accuracy:
    """Every plan against the span it was made in and the next one with another action."""
    found = Accuracy()
    starts = [span.start_s for span in truth]
    before: Plan | None = None
    before_span = -1
    for plan in plans:
        number = bisect.bisect_right(starts, plan.pts_s) - 1
        if number < 0:
            continue
        span = truth[number]
        if span.action is not None and plan.pts_s <= span.end_s:
            found.frames += 1
            found.recognised += plan.current_action == span.action
        if number != before_span:
            if before is not None and number == before_span + 1:
                _judge(before, _next(truth, before_span), found, at_change=True)
            before_span = number
        if plan.ranked:
            _judge(plan, _next(truth, number), found, at_change=False)
        before = plan if plan.ranked else None
    return found


def _next(truth: Sequence[Span], number: int) -> str | None:
    here = truth[number].action
    return next((span.action for span in truth[number + 1 :] if span.action not in (None, here)), None)


def _judge(plan: Plan, came: str | None, found: Accuracy, *, at_change: bool) -> None:
    if came is None:
        return
    names = [entry.action for entry in plan.ranked]
    hits = found.change_hits if at_change else found.hits
    if at_change:
        found.changes += 1
    else:
        found.plans += 1
    for place in range(RANKED):
        hits[place] += came in names[: place + 1]


def _latency(stage: str, values: Sequence[float]) -> Latency:
    p50, p95, p99 = (float(value) for value in np.percentile(values, _QUANTILES))
    return Latency(stage, p50, p95, p99, max(values), len(values))
