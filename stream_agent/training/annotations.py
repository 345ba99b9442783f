"""What the data folder says about each second of each video: its action, its instruments and its split.

Sources (see the model cards): CholecT50-SAP's clip list, the precursor annotation of action starts, Cholec80's 1 Hz rows
and CholecT50's label files. Seconds are CholecT50's frame ids.
"""

from __future__ import annotations

import csv
import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stream_agent.evaluation.dataset import INSTRUMENTS as INSTRUMENTS
from stream_agent.evaluation.dataset import TEST_VIDEOS as TEST_NAMES

ACTIONS: Final = ("Dissection", "Vessel Clipping", "Tissue Retraction", "Coagulation", "Aspiration")
TEST_VIDEOS: Final = frozenset(int(name.removeprefix("VID")) for name in TEST_NAMES)
"""CholecT50's Rendezvous test split by number: never fitted, calibrated or tuned on."""

_PRECURSOR: Final = {
    "dissect": "Dissection",
    "vesselClipping": "Vessel Clipping",
    "tissueRetraction": "Tissue Retraction",
    "coagulate": "Coagulation",
    "aspirate": "Aspiration",
    "irrigate": "Aspiration",
    "pack": "",
}
_T50_INSTRUMENTS: Final = INSTRUMENTS[:6]


@dataclass(frozen=True, slots=True)
class Timeline:
    """Action labels of one video.

    Attributes:
        starts_s: Second at which each run begins, rising.
        actions: Its action; empty where no action of the closed set goes on.
        sap_end_s: CholecT50-SAP labels the seconds before this; later runs are the precursor annotation's.
    """

    starts_s: tuple[int, ...]
    actions: tuple[str, ...]
    sap_end_s: int

    def action(self, second: float) -> str:
        """The action at a second; empty where there is none."""
        run = bisect_right(self.starts_s, second) - 1
        return self.actions[run] if run >= 0 else ""


def load_timelines(data: Path, *, continue_with_precursor: bool) -> dict[int, Timeline]:
    """Timelines by video number.

    CholecT50-SAP gives no end of a video's last clip: it ends at the precursor annotation's next start, or, for videos
    that one does not hold, one second after its start. The precursor's later runs follow if asked for.
    """
    listed = json.loads((data / "sap" / "total_video_info.json").read_text(encoding="utf-8"))
    timelines = {}
    for key, clips in listed.items():
        video = int(key.removeprefix("VID"))
        runs = sorted((int(clip["Frame_id"]), str(clip["Action"])) for clip in clips.values())
        last = runs[-1][0]
        later = [(start, action) for start, action in _precursor(data, video) if start > last]
        end = later[0][0] if later else last + 1
        rest = later if continue_with_precursor and later else [(end, "")]
        timelines[video] = Timeline(
            starts_s=tuple(start for start, _ in runs + rest),
            actions=tuple(action for _, action in runs + rest),
            sap_end_s=end,
        )
    return timelines


def _precursor(data: Path, video: int) -> list[tuple[int, str]]:
    """(start, action) of the precursor annotation, closed by (end, ""); empty where the video is missing."""
    path = data / "sap" / "meta_actions" / f"{video:03d}.json"
    if not path.is_file():
        return []
    items = json.loads(path.read_text(encoding="utf-8"))
    names = [_PRECURSOR[item["description"][4]] for item in items[1:]]
    return [(int(item["frame_id"][5]), name) for item, name in zip(items, [*names, ""], strict=True)]


def load_tool_rows(data: Path, video: int) -> dict[int, tuple[int, ...]]:
    """Instrument presence (7) per second from the Cholec80 row; empty where the video has none."""
    path = data / "cholec80" / "phase_tool_1hz" / f"video{video:02d}.csv"
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {int(row["second"]): tuple(int(row[name]) for name in INSTRUMENTS) for row in csv.DictReader(file)}


def load_t50_instruments(data: Path, video: int) -> dict[int, tuple[int, ...]]:
    """Presence of CholecT50's six instruments per labelled frame."""
    path = data / "cholect50" / "labels" / f"VID{video:02d}.json"
    annotations = json.loads(path.read_text(encoding="utf-8"))["annotations"]
    seconds = {}
    for frame, rows in annotations.items():
        seen = {int(row[1]) for row in rows}
        seconds[int(frame)] = tuple(int(index in seen) for index in range(len(_T50_INSTRUMENTS)))
    return seconds


def one_hot(action: str, actions: Sequence[str] = ACTIONS) -> int:
    """Index of the action, -1 for none."""
    return actions.index(action) if action else -1


def load_t50_boxes(data: Path, video: int) -> dict[int, tuple[tuple[int, float, float, float, float], ...]]:
    """(instrument, left, top, width, height) per labelled frame of CholecT50, relative to the picture; tips, not shafts.

    Empty where the video has no label file. Rows without an instrument or without a box are left out.
    """
    path = data / "cholect50" / "labels" / f"VID{video:02d}.json"
    if not path.is_file():
        return {}
    annotations = json.loads(path.read_text(encoding="utf-8"))["annotations"]
    return {
        int(frame): tuple(
            (int(row[1]), float(row[3]), float(row[4]), float(row[5]), float(row[6]))
            for row in rows
            if row[1] >= 0 and min(row[3:7]) >= 0
        )
        for frame, rows in annotations.items()
    }
