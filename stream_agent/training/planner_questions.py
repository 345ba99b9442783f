"""Annotated clips as questions with their answers: what the memory held, and which action came next.

Clips and 1 Hz instrument rows are replayed, strictly before each target begins, into the `Memory` that the agent would hold,
and read by the agent's own feature code.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from stream_agent.evaluation.dataset import INSTRUMENTS, SapClip, load_signals
from stream_agent.instrument_use import InstrumentUseTracker
from stream_agent.messages import Clip, Memory
from stream_agent.planner.features import BACK, instrument_features, instrument_names, label_features, label_names
from stream_agent.training.statistical import ACTIONS

EARLY_S: Final = 3
"""So long before its end an action is about to end."""

EVERY_S: Final = 4
"""Every so many seconds of an action are moments like any."""

LABEL_FEATURES: Final = label_names(ACTIONS)[BACK * len(ACTIONS) :]
"""Of label history: counts and times, but not which the last labels were; see planner/ensemble.py for why."""

FULL_FEATURES: Final = (*instrument_names(INSTRUMENTS), *LABEL_FEATURES[-4:])
"""Instruments and four times; everything else of label history only adds noise once instruments are seen."""

Rows = Mapping[str, tuple[tuple[int, ...], ...]]
Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One clip as a question: what the memory held the second before it began, and the answer.

    Attributes:
        video: Whose.
        history: Labels, oldest first.
        target: Index of the action that followed.
        is_sample: Whether the published protocol asks it.
        labels: `label_features`.
        instruments: `instrument_features`; None where the video has no rows.
        left_s: Seconds from what the memory held to the last one before the answer began.
    """

    video: str
    history: tuple[str, ...]
    target: int
    is_sample: bool
    labels: list[float]
    instruments: list[float] | None
    left_s: int = 0


def examples(clips: Sequence[SapClip], rows: Sequence[Sequence[int]] | None, *, noisy: bool = True) -> list[Example]:
    """Every clip of one video as a question; `noisy` histories are the published ones, with recognised labels."""
    return _asked(clips, rows, lambda _, last_s: [last_s], noisy=noisy)


def early_examples(clips: Sequence[SapClip], rows: Sequence[Sequence[int]] | None) -> list[Example]:
    """The same questions `EARLY_S` earlier, where the action before lasted that long."""
    return _asked(clips, rows, lambda first_s, last_s: [last_s - EARLY_S] if last_s - EARLY_S >= first_s else [])


def moments(clips: Sequence[SapClip], rows: Sequence[Sequence[int]] | None) -> list[Example]:
    """What comes next, asked every `EVERY_S` seconds of every clip that another follows."""
    asked = _asked(clips, rows, lambda first_s, last_s: range(first_s, last_s + 1, EVERY_S))
    return [one for one in asked if one.history]


def _asked(
    clips: Sequence[SapClip],
    rows: Sequence[Sequence[int]] | None,
    seconds: Callable[[int, int], Iterable[int]],
    *,
    noisy: bool = True,
) -> list[Example]:
    """Questions about each clip, put in the `seconds(first, last)` of the clip before, rising."""
    found: list[Example] = []
    tracker = InstrumentUseTracker(len(INSTRUMENTS))
    fed = 0
    for place, clip in enumerate(clips):
        past = clips[:place]
        labels = tuple(
            (before.action_reg if noisy and index < place - 1 else before.action) for index, before in enumerate(past)
        )
        closed = tuple(
            Clip(label, float(before.start_s), float(after.start_s), 1.0)
            for label, before, after in zip(labels, past, past[1:], strict=False)
        )
        for now_s in seconds(past[-1].start_s if past else clip.start_s - 1, clip.start_s - 1):
            while rows is not None and fed < min(now_s + 1, len(rows)):
                tracker.observe(rows[fed], pts_s=float(fed), step_s=1.0 if fed else 0.0)
                fed += 1
            memory = Memory(
                stream_id="",
                session_id="",
                case_id=clip.video,
                now_pts_s=float(max(0, now_s)),
                clips=closed,
                current=labels[-1] if labels else None,
                current_start_pts_s=float(past[-1].start_s) if past else 0.0,
                instrument_use=() if rows is None else tracker.snapshot(),
            )
            found.append(
                Example(
                    video=clip.video,
                    history=labels,
                    target=ACTIONS.index(clip.action),
                    is_sample=clip.is_sample,
                    labels=label_features(memory, ACTIONS),
                    instruments=None if rows is None else instrument_features(memory, INSTRUMENTS),
                    left_s=clip.start_s - 1 - now_s,
                )
            )
    return found


@functools.lru_cache(maxsize=128)
def questions(
    clips: tuple[SapClip, ...], rows: tuple[tuple[int, ...], ...] | None
) -> tuple[list[Example], list[Example], list[Example]]:
    """`examples` and, with rows, `early_examples` and `moments`: made once per video however many folds ask for them."""
    asked = examples(clips, rows)
    return (asked, [], []) if rows is None else (asked, early_examples(clips, rows), moments(clips, rows))


def load_rows(signals: Path, videos: Iterable[str]) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Instrument rows of the videos that have a file."""
    paths = {video: signals / f"video{int(video.removeprefix('VID')):02d}.csv" for video in videos}
    return {video: load_signals(path)[1] for video, path in paths.items() if path.is_file()}


def matrix(asked: Sequence[Example], *, full: bool) -> Matrix:
    """Features of one head, (examples, features)."""
    if full:
        return np.array([(one.instruments or []) + one.labels[-4:] for one in asked])
    return np.array([one.labels[BACK * len(ACTIONS) :] for one in asked])


def allowed(asked: Sequence[Example]) -> NDArray[np.bool_]:
    """Which actions may come: all but the current one, (examples, actions)."""
    return np.array([[action != (one.history or ("",))[-1] for action in ACTIONS] for one in asked])
