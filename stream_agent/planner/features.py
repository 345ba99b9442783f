"""What the planner's model looks at: numbers read off one `Memory`, the same in training and at run time.

Two groups, so that either can be missing: `label_features` from clips and time, `instrument_features` from the use of
instruments. Every number is finite and bounded whatever the memory holds; an unknown label is no label.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from stream_agent.instrument_use import RECENT_S
from stream_agent.messages import Memory

BACK = 3
"""How many of the newest labels are looked at one by one."""

LONGEST_S = 3600.0
"""Times are cut off here: what was longer ago is long ago."""


SINCE_S = (5.0, 20.0, 60.0, 200.0)
"""Time constants at which "seen a while ago" fades into "long ago"."""

IN_USE_S = 2.0
"""An instrument seen within this time is in use."""

PER_INSTRUMENT = len(RECENT_S) + len(SINCE_S) + 4

_PAST_ALL_S = 1e6


def label_names(actions: Sequence[str]) -> tuple[str, ...]:
    """What each number of `label_features` is, in words."""
    names = [f"{_BACK[back]} {action}" for back in range(BACK) for action in actions]
    names += [f"clips of {action}" for action in actions]
    names += [f"time in {action}" for action in actions]
    names += [f"time since {action}" for action in actions]
    return (*names, "clips", "time in current action", "length of the action before", "time since the first action")


def label_features(memory: Memory, actions: Sequence[str]) -> list[float]:
    """The numbers named by `label_names`."""
    index = {action: place for place, action in enumerate(actions)}
    count = len(actions)
    now_s = memory.now_pts_s
    values = [0.0] * (BACK * count)
    clips = [0] * count
    spent_s = [0.0] * count
    since_s = [LONGEST_S] * count
    for total in memory.folded:
        place = index.get(total.action)
        if place is not None:
            clips[place] += total.count
            spent_s[place] += total.duration_s
    for clip in memory.clips:
        place = index.get(clip.action)
        if place is not None:
            clips[place] += 1
            spent_s[place] += clip.end_pts_s - clip.start_pts_s
            since_s[place] = now_s - clip.end_pts_s
    current_s = now_s - memory.current_start_pts_s if memory.current is not None else 0.0
    place = index.get(memory.current or "")
    if place is not None:
        clips[place] += 1
        spent_s[place] += current_s
        since_s[place] = 0.0
    for back, label in enumerate(reversed(memory.labels[-BACK:])):
        place = index.get(label)
        if place is not None:
            values[back * count + place] = 1.0
    first_s = memory.clips[0].start_pts_s if memory.clips else memory.current_start_pts_s
    before_s = memory.clips[-1].duration_s if memory.clips else 0.0
    values += [_many(number) for number in clips]
    values += [_time(seconds) for seconds in spent_s]
    values += [_time(seconds) for seconds in since_s]
    values += [_many(sum(clips)), _time(current_s), _time(before_s), _time(now_s - first_s)]
    return values


def instrument_names(instruments: Sequence[str]) -> tuple[str, ...]:
    """What each number of `instrument_features` is, in words."""
    names: list[str] = []
    for instrument in instruments:
        names += [f"{instrument} in the last {constant_s:g} s" for constant_s in RECENT_S]
        names += [f"{instrument} seen within {constant_s:g} s" for constant_s in SINCE_S]
        names += [
            f"time with {instrument}",
            f"time since {instrument}",
            f"uses of {instrument}",
            f"{instrument} in use",
        ]
    return tuple(names)


def instrument_features(memory: Memory, instruments: Sequence[str]) -> list[float]:
    """The numbers named by `instrument_names`; zeros where an instrument was not observed."""
    values: list[float] = []
    now_s = memory.now_pts_s
    for use, _ in zip(memory.instrument_use, instruments, strict=False):
        since_s = _PAST_ALL_S if use.last_pts_s is None else max(0.0, now_s - use.last_pts_s)
        in_use_s = now_s - use.taken_pts_s if since_s <= IN_USE_S else 0.0
        values += use.recent
        values += [math.exp(-since_s / constant_s) for constant_s in SINCE_S]
        values += [_time(use.seen_s), _time(since_s), _many(use.uses), _time(in_use_s)]
    return values + [0.0] * (len(instruments) * PER_INSTRUMENT - len(values))


def spoken(name: str, value: float) -> str:
    """A feature with its value for a person; empty for nothing at all and for one that says no more than another."""
    if name.startswith(_TIMES):
        seconds = round(5.0 * math.expm1(value))
        if seconds >= LONGEST_S:
            return f"{name}: an hour or more, or never" if name.startswith(_SINCE) else f"{name}: an hour or more"
        return f"{name}: {seconds} s" if seconds else ""
    if name.startswith(_COUNTS):
        count = round(math.expm1(value))
        return f"{name}: {count}" if count else ""
    percent = round(100 * value) if " in the last " in name else 0
    return f"{name}: {percent} % of the time" if percent else ""


_SINCE = "time since "
_TIMES = ("time ", "length ")
_COUNTS = ("clips", "uses ")
_BACK = ("now", "before", "before that")


def _time(seconds: float) -> float:
    return math.log1p(min(max(seconds, 0.0), LONGEST_S) / 5.0)


def _many(number: float) -> float:
    return math.log1p(number)
