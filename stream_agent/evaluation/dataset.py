"""CholecT50-SAP as published: clips, samples, the split, and the 1 Hz signals of the same videos.

The annotations are the authors' own file `total_video_info.json` (LLM-SAP, Xu et al. 2025): 50 videos, 403 clips, 225
samples. Its names mislead in two places: `Test: true` marks a sample, whatever its split, and a sample's `Action` is the
target while its `Next Action` is the one after that. Frame ids are seconds at 1 fps, from 0.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_agent.errors import ConfigError

TEST_VIDEOS = frozenset(f"VID{number:02d}" for number in (6, 8, 10, 12, 14, 29, 32, 42, 50, 51, 73, 74, 78, 80, 111))
"""Test videos of CholecT50's Rendezvous split (Nwoye & Padoy, arXiv:2204.05235): 57 samples."""

TRAIN_VIDEOS = frozenset(
    f"VID{number:02d}"
    for number in (
        *(1, 2, 4, 5, 13, 15, 18, 22, 23, 25, 26, 27, 31, 35, 36, 40, 43, 47, 48, 49, 52, 56, 57, 60, 62, 65, 66, 68),
        *(70, 75, 79, 92, 96, 103, 110),
    )
)
"""The other 35 videos, training and validation together: 168 samples."""

INSTRUMENTS = ("Grasper", "Bipolar", "Hook", "Scissors", "Clipper", "Irrigator", "SpecimenBag")
"""Columns of a signals file, in order."""

ACTIONS = ("Dissection", "Vessel Clipping", "Tissue Retraction", "Coagulation", "Aspiration")
"""The closed set of the annotation, in the order of the cholecystectomy pack."""

_MAX_BYTES = 50_000_000
_FRAME_NAME = r"^\w+/\d{6}\.png$"


@dataclass(frozen=True, slots=True)
class SapClip:
    """One annotated clip.

    Attributes:
        video: `VIDnn`.
        index: Its number in the annotation; clips before the first index of a video were not annotated.
        start_s: Second at which it begins; it ends where the next clip begins, the last one of a video at no known time.
        action: What was done, by annotation.
        action_reg: What the authors' recogniser called it.
        history: A sample's label history as published, oldest first: recognised labels, then the annotated nearest one.
        next_action: A sample's action after `action`; empty for the last clip of a video.
        is_sample: Whether `action` is a target of the protocol, to be foreseen from `history`.
        near_frames_s: Seconds of a sample's near frames as published; the last is the target's own first frame.
    """

    video: str
    index: int
    start_s: int
    action: str
    action_reg: str
    history: tuple[str, ...] = ()
    next_action: str = ""
    is_sample: bool = False
    near_frames_s: tuple[int, ...] = ()


class _Entry(msgspec.Struct, frozen=True):
    action: str = msgspec.field(name="Action")
    action_reg: str = msgspec.field(name="Action_Reg")
    frame_id: Annotated[int, msgspec.Meta(ge=0)] = msgspec.field(name="Frame_id")
    is_sample: bool = msgspec.field(name="Test")
    distant: tuple[str, ...] = msgspec.field(name="Distant Actions", default=())
    nearest: str = msgspec.field(name="Nearest Action", default="")
    following: str = msgspec.field(name="Next Action", default="")
    near_frames: tuple[Annotated[str, msgspec.Meta(pattern=_FRAME_NAME)], ...] = msgspec.field(
        name="Near Frames", default=()
    )


def load_sap(path: Path) -> dict[str, tuple[SapClip, ...]]:
    """Clips per video in the order of time, videos in the order of the file.

    Raises:
        ConfigError: The file is missing, cut short or not CholecT50-SAP.
    """
    try:
        videos = msgspec.json.decode(read_annotation(path), type=dict[str, dict[str, _Entry]])
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}; this is not the total_video_info.json of CholecT50-SAP") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not whole JSON ({error}); copy the file again") from error
    return {video: _clips(path, video, entries) for video, entries in videos.items()}


def load_signals(path: Path) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """Phase and instrument presence per second of one video: (seconds,) names and (seconds, 7) zeros and ones.

    Raises:
        ConfigError: The file is missing, has other columns, leaves out a second, or holds other values than 0 and 1.
    """
    lines = read_annotation(path).decode("utf-8", errors="replace").splitlines()
    rows = csv.reader(lines)
    header = next(rows, [])
    expected = ["second", "phase", *INSTRUMENTS]
    if header != expected:
        raise ConfigError(f"{path}:1: columns {header} are not {expected}; name a phase_tool_1hz file")
    phases: list[str] = []
    presence: list[tuple[int, ...]] = []
    for line, row in enumerate(rows, start=2):
        if len(row) != len(expected) or row[0] != str(len(phases)) or not set(row[2:]) <= {"0", "1"}:
            raise ConfigError(f"{path}:{line}: {','.join(row)[:60]} is not second {len(phases)}; copy the file again")
        phases.append(row[1])
        presence.append(tuple(int(value) for value in row[2:]))
    return tuple(phases), tuple(presence)


def load_presence(folder: Path, names: Iterable[str]) -> dict[str, NDArray[np.uint8]]:
    """Instrument presence (seconds, 7) of those videos of which the folder of signals has a file.

    Raises:
        ConfigError: There is no such folder, it has a file of none of the videos, or a file is damaged.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder; name the one that holds videoNN.csv at 1 Hz")
    found = {}
    for name in names:
        path = folder / f"video{name.removeprefix('VID')}.csv"
        if path.is_file():
            found[name] = np.array(load_signals(path)[1], dtype=np.uint8).reshape(-1, len(INSTRUMENTS))
            found[name].flags.writeable = False
    if not found:
        raise ConfigError(f"{folder} holds videoNN.csv of none of the videos; name the folder of 1 Hz signals itself")
    return found


def read_annotation(path: Path) -> bytes:
    """The bytes of an annotation file.

    Raises:
        ConfigError: It cannot be read, or is far too large for one.
    """
    try:
        with path.open("rb") as stream:
            raw = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); name an existing file") from error
    if len(raw) > _MAX_BYTES:
        raise ConfigError(f"{path} is larger than {_MAX_BYTES} bytes; name an annotation file")
    return raw


def _clips(path: Path, video: str, entries: Mapping[str, _Entry]) -> tuple[SapClip, ...]:
    if not all(key.isdecimal() for key in entries):
        raise ConfigError(f"{path}: {video} has a clip whose key is no number; copy the file again")
    clips = []
    for key, entry in sorted(entries.items(), key=lambda item: item[1].frame_id):
        nearest = (entry.nearest,) if entry.nearest else ()
        clips.append(
            SapClip(
                video=video,
                index=int(key),
                start_s=entry.frame_id,
                action=entry.action,
                action_reg=entry.action_reg,
                history=(*entry.distant, *nearest),
                next_action=entry.following,
                is_sample=entry.is_sample,
                near_frames_s=tuple(int(name[-10:-4]) for name in entry.near_frames),
            )
        )
    return tuple(clips)
