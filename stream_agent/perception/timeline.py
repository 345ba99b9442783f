"""A recogniser that reads the action from a list instead of the picture: for the synthetic source, tests and evaluation.

A label file is CholecT50-SAP's JSON with the video named after a `#` (`total_video_info.json#VID68`), or our own CSV with
the header `start_s,action`, or the same as a JSON list of `{"start_s": …, "action": …}`. An action lasts until the next
start; an empty action means none; the last one lasts for ever. Further columns of a CSV are for people (`dataset label` writes
its confidence).
"""

from __future__ import annotations

import csv
import json
import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from stream_agent.errors import ConfigError
from stream_agent.messages import Clip, Evidence, FrameHeader
from stream_agent.perception.protocol import Thumbnail

_NONE: Final = -1


class TimelineRecogniser:
    """One-hot evidence from known labels."""

    name: str = "timeline"

    def __init__(self, starts: Sequence[tuple[float, str]], actions: tuple[str, ...]) -> None:
        """Take `(start_s, action)` with strictly rising starts; an empty action means none until the next start.

        Raises:
            ConfigError: A start does not rise or an action is not one of `actions`.
        """
        self._starts_s: list[float] = []
        self._indices: list[int] = []
        for start_s, action in starts:
            if not math.isfinite(start_s) or (self._starts_s and start_s <= self._starts_s[-1]):
                raise ConfigError(
                    f"timeline start_s={start_s} of '{action}' must come after the one before it; sort the list"
                )
            self._starts_s.append(start_s)
            self._indices.append(_index(action, actions, "timeline"))
        count = len(actions)
        self._posteriors = [tuple(float(row == column) for column in range(count)) for row in range(count)]

    @classmethod
    def of_clips(cls, clips: Iterable[Clip], actions: tuple[str, ...]) -> TimelineRecogniser:
        """From ordered clips; between two that do not touch, and after the last, there is no action.

        Raises:
            ConfigError: Clips overlap, are out of order or name an unknown action.
        """
        starts: list[tuple[float, str]] = []
        end_s = -math.inf
        for clip in clips:
            if clip.start_pts_s < end_s or clip.end_pts_s <= clip.start_pts_s:
                raise ConfigError(
                    f"clip '{clip.action}' {clip.start_pts_s} to {clip.end_pts_s} s is empty or begins before {end_s} s, where "
                    "the clip before it ends; give ordered clips that do not overlap"
                )
            if starts and starts[-1][0] == clip.start_pts_s:
                starts.pop()
            starts += [(clip.start_pts_s, clip.action), (clip.end_pts_s, "")]
            end_s = clip.end_pts_s
        return cls(starts, actions)

    def reset(self) -> None:
        """Nothing to forget: each frame is judged by itself."""

    def evidence(self, header: FrameHeader, thumbnail: Thumbnail | None) -> Evidence:  # noqa: ARG002 - the protocol's
        """Evidence with the label's action at the frame's media time, or without any action."""
        run = bisect_right(self._starts_s, header.pts_s) - 1
        index = self._indices[run] if run >= 0 else _NONE
        actions = () if index == _NONE else self._posteriors[index]
        return Evidence(seq=header.seq, pts_s=header.pts_s, recogniser=self.name, actions=actions)


def load_labels(labels: Path, actions: tuple[str, ...]) -> tuple[tuple[float, str], ...]:
    """`(start_s, action)` of a label file, rising; `labels` may end in `#VIDEO`.

    Raises:
        ConfigError: The file is missing, not of a known form, or names an unknown action; with the line or entry.
    """
    path, _, video = str(labels).partition("#")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"label file {path} cannot be read: {error}; name another") from error
    entries = _of_json(text, path, video) if path.endswith(".json") else _of_csv(text, path)
    starts: list[tuple[float, str]] = []
    for where, start, action in entries:
        start_s = _seconds(start, where)
        if starts and start_s <= starts[-1][0]:
            raise ConfigError(
                f"{where}: start_s={start_s:g} must come after {starts[-1][0]:g}; sort the labels and drop doubles"
            )
        if not isinstance(action, str):
            raise ConfigError(f"{where}: action {action!r} is not a name; write one of {', '.join(actions)}")
        _index(action, actions, where)
        starts.append((start_s, action))
    if not starts:
        raise ConfigError(f"label file {path} holds no label; write at least one start_s,action")
    return tuple(starts)


def _of_csv(text: str, path: str) -> Iterable[tuple[str, object, object]]:
    rows = list(csv.reader(text.splitlines()))
    if not rows or [cell.strip() for cell in rows[0][:2]] != ["start_s", "action"]:
        raise ConfigError(
            f"{path}, line 1: the header must begin with 'start_s,action'; add it (JSON labels need the ending .json)"
        )
    for line, row in enumerate(rows[1:], start=2):
        if row:
            if len(row) != len(rows[0]):
                raise ConfigError(
                    f"{path}, line {line}: {len(row)} values where the header names {len(rows[0])}; correct the line"
                )
            yield f"{path}, line {line}", row[0].strip(), row[1].strip()


def _of_json(text: str, path: str, video: str) -> Iterable[tuple[str, object, object]]:
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"label file {path} is not JSON: {error}; correct the line it names") from error
    if isinstance(tree, list):
        return [
            _pair(item, "start_s", "action", f"{path}, entry {number}") for number, item in enumerate(tree, start=1)
        ]
    if not isinstance(tree, dict) or not isinstance(tree.get(video), dict):
        known = ", ".join(sorted(tree)[:60]) if isinstance(tree, dict) else "none"
        raise ConfigError(
            f"label file {path}#{video} names no video of the file; write FILE#VIDEO with one of: {known}"
        )
    pairs = [_pair(item, "Frame_id", "Action", f"{path}#{video}, clip {key}") for key, item in tree[video].items()]
    return sorted(pairs, key=lambda pair: _seconds(pair[1], pair[0]))


def _pair(item: object, start: str, action: str, where: str) -> tuple[str, object, object]:
    if not isinstance(item, dict) or start not in item or action not in item:
        raise ConfigError(f"{where} must hold '{start}' and '{action}'; correct it")
    return where, item[start], item[action]


def _seconds(value: object, where: str) -> float:
    try:
        seconds = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        seconds = math.nan
    if not math.isfinite(seconds):
        raise ConfigError(f"{where}: start {value!r} is not a number of seconds; correct it")
    return seconds


def _index(action: str, actions: tuple[str, ...], where: str) -> int:
    if not action:
        return _NONE
    if action not in actions:
        raise ConfigError(f"{where}: '{action}' is not an action of the procedure; the pack has {', '.join(actions)}")
    return actions.index(action)
