"""CholecT50's triplet labels to actions, clips and samples, and how far that agrees with the authors' own annotation.

The rule: of the verbs labelled in a frame the first of this order counts,

    clip > cut > coagulate, dissect, aspirate, irrigate > pack > retract, grasp

so a tissue retraction is one only while nothing else goes on. Cutting is part of the dissection, irrigating of the
aspiration, packing no action of the closed set. A second without a label, or with instruments that do nothing, goes on
with the action before it. A run shorter than 10 s joins the run before it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from stream_agent.errors import ConfigError
from stream_agent.evaluation.dataset import SapClip, read_annotation
from stream_agent.evaluation.samples import Videos

FEWEST_S: Final = 10
"""A shorter run of an action joins the one before it."""

NEAR_FRAMES: Final = 6
"""Near frames of a sample, spread over the clip before the target; the target's first frame comes on top, as published."""

NO_ACTION: Final = ""
"""What packing maps to: something goes on that is none of the closed set."""

_VERB_ACTION: Final = {
    "clip": "Vessel Clipping",
    "cut": "Dissection",
    "coagulate": "Coagulation",
    "dissect": "Dissection",
    "aspirate": "Aspiration",
    "irrigate": "Aspiration",
    "pack": NO_ACTION,
    "retract": "Tissue Retraction",
    "grasp": "Tissue Retraction",
}
_ORDER: Final = {
    verb: rank
    for rank, verbs in enumerate(
        (("clip",), ("cut",), ("coagulate", "dissect", "aspirate", "irrigate"), ("pack",), ("retract", "grasp"))
    )
    for verb in verbs
}
_VERB_COLUMN: Final = 7


@dataclass(frozen=True, slots=True)
class Labels:
    """What CholecT50 labels in one video.

    Attributes:
        video: `VIDnn`.
        verbs: Second → verbs of the triplets labelled in it, in file order; `null_verb` is left out.
    """

    video: str
    verbs: Mapping[int, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Timeline:
    """Runs of actions: when each began, which it was (`NO_ACTION` for none), and the second after the last one."""

    starts_s: tuple[int, ...]
    actions: tuple[str, ...]
    end_s: int

    def action(self, second: int) -> str | None:
        """What went on; None before the first label and after the last."""
        run = bisect_right(self.starts_s, second) - 1
        return self.actions[run] if run >= 0 and second < self.end_s else None


@dataclass(frozen=True, slots=True)
class ClipAgreement:
    """How one clip of the authors' fares by the rule.

    Attributes:
        clip: The authors' clip.
        frames: Labelled frames inside it.
        agreeing: Those to which the rule gives the same action.
        start_offset_s: Start by the rule minus the authors'; None if the rule begins no such clip in or near this one.
    """

    clip: SapClip
    frames: int
    agreeing: int
    start_offset_s: int | None


class _Categories(msgspec.Struct, frozen=True):
    verb: dict[str, str]


class _File(msgspec.Struct, frozen=True):
    categories: _Categories
    annotations: dict[str, list[Annotated[list[Any], msgspec.Meta(min_length=_VERB_COLUMN + 1)]]]


def load_labels(folder: Path) -> dict[str, Labels]:
    """The videos in a CholecT50 folder (`folder`/labels/VIDnn.json, or `folder`/VIDnn.json) or in one such file, by name.

    Raises:
        ConfigError: There are none, or one is damaged.
    """
    paths = (
        [folder]
        if folder.is_file()
        else sorted((folder / "labels").glob("VID*.json")) or sorted(folder.glob("VID*.json"))
    )
    if not paths:
        raise ConfigError(f"{folder} holds no labels/VIDnn.json; name the folder of CholecT50")
    return {path.stem: read_labels(path) for path in paths}


def read_labels(path: Path) -> Labels:
    """One video's labels; its name is the file's.

    Raises:
        ConfigError: The file is missing, cut short, or no label file of CholecT50.
    """
    try:
        file = msgspec.json.decode(read_annotation(path), type=_File)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}; this is not a label file of CholecT50") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not whole JSON ({error}); copy the file again") from error
    verbs: dict[int, tuple[str, ...]] = {}
    for frame, rows in file.annotations.items():
        if not frame.isdecimal():
            raise ConfigError(f"{path}: annotations has frame {frame[:20]!r}, which is no number; copy the file again")
        named = [_verb(path, frame, row[_VERB_COLUMN], file.categories.verb) for row in rows]
        verbs[int(frame)] = tuple(verb for verb in named if verb in _VERB_ACTION)
    return Labels(path.stem, dict(sorted(verbs.items())))


def frame_action(verbs: Sequence[str]) -> str | None:
    """The action of a frame by its verbs; None if nothing is done in it."""
    known = [verb for verb in verbs if verb in _ORDER]
    return _VERB_ACTION[min(known, key=lambda verb: _ORDER[verb])] if known else None


def timeline(labels: Labels) -> Timeline:
    """Runs of actions by the rule, from the first second in which something is done to the last labelled one."""
    changes: list[tuple[int, str]] = []
    for second, verbs in labels.verbs.items():
        action = frame_action(verbs)
        if action is not None and (not changes or changes[-1][1] != action):
            changes.append((second, action))
    if not changes:
        return Timeline((), (), 0)
    end_s = max(labels.verbs) + 1
    kept: list[tuple[int, str]] = []
    for (start, action), (end, _) in pairwise([*changes, (end_s, NO_ACTION)]):
        if end - start >= FEWEST_S and (not kept or kept[-1][1] != action):
            kept.append((start, action))
    if kept:
        kept[0] = (changes[0][0], kept[0][1])  # what is too short before the first run joins it
    return Timeline(tuple(start for start, _ in kept), tuple(action for _, action in kept), end_s)


def clips(labels: Labels) -> tuple[SapClip, ...]:
    """Clips by the rule, with every clip after another one a sample; our reading of which are (the authors begin later).

    Where packing came between two clips of one action they are one clip.
    """
    runs = timeline(labels)
    starts: list[tuple[int, str]] = []
    for start, action in zip(runs.starts_s, runs.actions, strict=True):
        if action != NO_ACTION and (not starts or starts[-1][1] != action):
            starts.append((start, action))
    made = []
    for index, (start, action) in enumerate(starts):
        sample = index > 0
        made.append(
            SapClip(
                video=labels.video,
                index=index,
                start_s=start,
                action=action,
                action_reg=action,
                history=tuple(past for _, past in starts[:index]),
                next_action=starts[index + 1][1] if sample and index + 1 < len(starts) else "",
                is_sample=sample,
                near_frames_s=spread_near_frames(starts[index - 1][0], start) if sample else (),
            )
        )
    return tuple(made)


def agreement(labels: Labels, authors: Sequence[SapClip]) -> list[ClipAgreement]:
    """The rule against the authors, clip by clip; their last clip has no known end and is left out."""
    ours = timeline(labels)
    compared = []
    for clip, following in pairwise(authors):
        seconds = [second for second in labels.verbs if clip.start_s <= second < following.start_s]
        starts = [
            start
            for start, action in zip(ours.starts_s, ours.actions, strict=True)
            if action == clip.action and abs(start - clip.start_s) <= max(FEWEST_S, following.start_s - clip.start_s)
        ]
        nearest = min(starts, key=lambda start: abs(start - clip.start_s), default=None)
        compared.append(
            ClipAgreement(
                clip=clip,
                frames=len(seconds),
                agreeing=sum(ours.action(second) == clip.action for second in seconds),
                start_offset_s=None if nearest is None else nearest - clip.start_s,
            )
        )
    return compared


def encode_videos(videos: Videos) -> bytes:
    """The clips in the format of total_video_info.json, which `dataset.load_sap` reads."""
    listed = {video: dict(_entries(chosen)) for video, chosen in videos.items()}
    return msgspec.json.format(msgspec.json.encode(listed), indent=4) + b"\n"


def _entries(chosen: Sequence[SapClip]) -> Iterator[tuple[str, dict[str, object]]]:
    for place, clip in enumerate(chosen):
        entry: dict[str, object] = {
            "Action": clip.action,
            "Action_Reg": clip.action_reg,
            "Frame_id": clip.start_s,
            "Test": clip.is_sample,
        }
        if clip.is_sample:
            entry |= {
                "Distant Actions": list(clip.history[:-1]),
                "Nearest Action": clip.history[-1] if clip.history else "",
                "History": [past.start_s for past in chosen[:place]],
                "Next Action": clip.next_action,
                "Near Frames": [f"{clip.video}/{second:06d}.png" for second in clip.near_frames_s],
            }
        yield str(clip.index), entry


def spread_near_frames(start_s: int, target_s: int) -> tuple[int, ...]:
    """Evenly spread over the clip before the target, its last second included, and the target's first frame."""
    last = target_s - 1
    spread = [start_s + step * (last - start_s) // (NEAR_FRAMES - 1) for step in range(NEAR_FRAMES)]
    return (*spread, target_s)


def _verb(path: Path, frame: str, index: object, names: Mapping[str, str]) -> str:
    """The verb's name; empty for -1, which stands for none."""
    number = int(index) if isinstance(index, int | float) and index == index // 1 else None
    name = "" if number == -1 else names.get(str(number))
    if name is None:
        raise ConfigError(
            f"{path}: annotations.{frame} names verb {index}, which is not in categories; copy the file again"
        )
    return name
