"""The questions put to a planner, each apart from its answer.

Two tracks. `official` is the published protocol: its last near frame is the first frame of the very action to be foreseen,
so whoever looks at it sees the answer begin. `causal` ends one second earlier: nothing of the target is visible.

Two histories. `ground_truth` names every past clip as annotated. `action_reg` is the published one: what the authors'
recogniser called the distant clips, and the annotated nearest one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from stream_agent.clock import NS_PER_S
from stream_agent.evaluation.dataset import INSTRUMENTS, SapClip
from stream_agent.instrument_use import InstrumentUseTracker
from stream_agent.messages import Clip, FrameHeader, InstrumentUse, Memory

Track: TypeAlias = Literal["official", "causal"]
History: TypeAlias = Literal["ground_truth", "action_reg"]
TRACKS: tuple[Track, ...] = get_args(Track)
HISTORIES: tuple[History, ...] = get_args(History)

LONGEST_CHAIN = 5
"""Actions of the true chain that are kept, the target first."""

Videos: TypeAlias = Mapping[str, Sequence[SapClip]]
Presence: TypeAlias = NDArray[np.uint8]
"""Instruments per second, (seconds, 7) zeros and ones, in the order of `dataset.INSTRUMENTS`."""


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """All that may be known when the next action is to be foreseen.

    Attributes:
        video: `VIDnn`.
        labels: Actions so far, oldest first, the last one going on; empty at the very beginning.
        starts_s: When each of `labels` began.
        now_s: The last second that may be looked at.
        near_frames_s: Seconds of the near frames, none after `now_s`.
        presence: Instruments in the seconds 0 … `now_s`; None where the video has no signals.
        instrument_use: How each instrument was used in those seconds, as the agent's memory keeps it; empty without signals.
        at_change: Whether it is part of the question that the action going on ends now, as a sample of the protocol says.
    """

    video: str
    labels: tuple[str, ...]
    starts_s: tuple[int, ...]
    now_s: int
    near_frames_s: tuple[int, ...] = ()
    presence: Presence | None = None
    instrument_use: tuple[InstrumentUse, ...] = ()
    at_change: bool = False

    @property
    def current(self) -> str | None:
        """The action going on; None at the very beginning."""
        return self.labels[-1] if self.labels else None


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """A question with its answer.

    Attributes:
        question: What the planner gets.
        index: The target clip's number in its video.
        target: The next action.
        following: The action after it; empty for the last clip of a video.
        chain: The target and the actions after it, at most `LONGEST_CHAIN`.
        onset_s: Seconds from the question to the start of each of `chain`.
    """

    question: Question
    index: int
    target: str
    following: str
    chain: tuple[str, ...]
    onset_s: tuple[int, ...]


def samples(
    clips: Sequence[SapClip], *, track: Track, history: History, presence: Presence | None = None
) -> list[Sample]:
    """The samples of one video, whose clips are given in the order of time."""
    seen = _Seen(presence)
    found = []
    for place, clip in enumerate(clips):
        if clip.is_sample:
            now_s = clip.start_s if track == "official" else clip.start_s - 1
            found.append(_sample(clips, place, now_s=now_s, history=history, seen=seen, at_change=True))
    return found


def moments(clips: Sequence[SapClip], *, every_s: int, presence: Presence | None = None) -> list[Sample]:
    """The question put every `every_s` seconds of every clip that another one follows, with annotated labels."""
    seen = _Seen(presence)
    return [
        _sample(clips, place, now_s=now_s, history="ground_truth", seen=seen)
        for place, (clip, following) in enumerate(pairwise(clips), start=1)
        for now_s in range(clip.start_s, following.start_s, every_s)
    ]


def as_memory(question: Question) -> Memory:
    """The question as the agent's memory would hold it; every label is certain."""
    closed = tuple(
        Clip(label, float(start), float(end), 1.0)
        for label, (start, end) in zip(question.labels[:-1], pairwise(question.starts_s), strict=True)
    )
    seen = question.presence
    return Memory(
        stream_id="evaluation",
        session_id=question.video,
        case_id=question.video,
        now_pts_s=float(question.now_s),
        clips=closed,
        current=question.current,
        current_start_pts_s=float(question.starts_s[-1]) if question.starts_s else 0.0,
        current_confidence=1.0 if question.labels else 0.0,
        instrument_s=() if seen is None else tuple(seen.sum(0, dtype=np.float64).tolist()),
        instrument_use=question.instrument_use,
        instruments=() if seen is None or not len(seen) else tuple(seen[-1].astype(np.float64).tolist()),
        near=FrameHeader(
            stream_id="evaluation",
            session_id=question.video,
            seq=question.now_s,
            pts_s=float(question.now_s),
            captured_ns=question.now_s * NS_PER_S,
        ),
    )


class _Seen:
    """What was seen of the instruments up to seconds that never fall; the agent's own code sums it up."""

    def __init__(self, presence: Presence | None) -> None:
        if presence is not None and presence.shape[1:] != (len(INSTRUMENTS),):
            raise ValueError(f"presence of shape {presence.shape} is not (seconds, {len(INSTRUMENTS)})")
        self._presence = presence
        self._rows: list[list[int]] = [] if presence is None else presence.tolist()
        self._tracker = InstrumentUseTracker(len(INSTRUMENTS))
        self._fed = 0

    def until(self, now_s: int) -> tuple[Presence | None, tuple[InstrumentUse, ...]]:
        """Presence and use in the seconds 0 … `now_s`."""
        if self._presence is None:
            return None, ()
        for second in range(self._fed, min(now_s + 1, len(self._rows))):
            self._tracker.observe(self._rows[second], pts_s=float(second), step_s=1.0 if second else 0.0)
            self._fed = second + 1
        return self._presence[: now_s + 1], self._tracker.snapshot()


def _sample(
    clips: Sequence[SapClip], place: int, *, now_s: int, history: History, seen: _Seen, at_change: bool = False
) -> Sample:
    """What is asked at `now_s` about the clip at `place`."""
    past, target, future = clips[:place], clips[place], clips[place : place + LONGEST_CHAIN]
    presence, use = seen.until(now_s)
    recognised = history == "action_reg"
    return Sample(
        question=Question(
            video=target.video,
            labels=tuple(clip.action_reg if recognised and clip is not past[-1] else clip.action for clip in past),
            starts_s=tuple(clip.start_s for clip in past),
            now_s=now_s,
            near_frames_s=tuple(second for second in target.near_frames_s if second <= now_s),
            presence=presence,
            instrument_use=use,
            at_change=at_change,
        ),
        index=target.index,
        target=target.action,
        following=target.next_action or (future[1].action if len(future) > 1 else ""),
        chain=tuple(clip.action for clip in future),
        onset_s=tuple(clip.start_s - now_s for clip in future),
    )
