"""How often the gate closes on real in-body pictures, per training video, at ten pictures a second.

python -m stream_agent.training.gate --data ../shared/data
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import av
import cv2
import numpy as np

from stream_agent.config import GateConfig, configs_directory
from stream_agent.messages import Evidence, FrameHeader
from stream_agent.perception.gate import Gate
from stream_agent.perception.onnx import OnnxRecogniser
from stream_agent.perception.perceive import Perception
from stream_agent.training.annotations import ACTIONS, INSTRUMENTS
from stream_agent.training.pictures import BLACK_FROM_S, EXCERPTS, LabelledPicture, pictures, reduce

RATE_HZ: Final = 10.0
OTHERS: Final = ("autolaparo_zoomin_2_1920x1080.mp4", "rvimlab_endo_1280x720.mp4")
"""In-body pictures of another procedure and another hospital, seen by no fit."""


def excerpt(path: Path, perception: Perception) -> list[tuple[float, Evidence, float, float]]:
    """Media time, evidence, mean luma and variance of the Laplacian, ten times a second."""
    rows = []
    taken = -1
    perception.reset()
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            pts_s = float(frame.time or 0.0)
            if math.floor(pts_s * RATE_HZ) == taken:
                continue
            taken = math.floor(pts_s * RATE_HZ)
            picture = reduce(np.asarray(frame.to_ndarray(format="yuv420p"), dtype=np.uint8), frame.width, frame.height)
            rows.append((pts_s, perception.evidence(_header(pts_s), picture), *_measures(picture)))
    return rows


def _header(pts_s: float) -> FrameHeader:
    return FrameHeader(stream_id="", session_id="", seq=0, pts_s=pts_s, captured_ns=0)


def _measures(picture: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> tuple[float, float]:
    luma = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    return float(cv2.mean(luma)[0]), float(np.var(np.asarray(cv2.Laplacian(luma, cv2.CV_16S), dtype=np.float64)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the data folder")
    options = parser.parse_args(arguments)
    model = configs_directory() / "procedures" / "cholecystectomy" / "recogniser.onnx"
    perception = Perception(Gate(GateConfig()), OnnxRecogniser(model, actions=ACTIONS, instruments=INSTRUMENTS))
    table: dict[str, object] = {}
    files = {item.file: item for item in EXCERPTS}
    for name in (*files, *OTHERS):
        rows = excerpt(options.data / "video" / name, perception)
        item = files.get(name)
        black_s = (
            BLACK_FROM_S[item.video] - item.first_s
            if item and item.first_s + 32 > BLACK_FROM_S.get(item.video, 1e9)
            else 1e9
        )
        inside = [row for row in rows if row[0] < black_s]
        table[name] = {
            "in_body": len(inside),
            "false_closures": dict(Counter(row[1].gate for row in inside if row[1].gate)),
            "least_luma": round(min(row[2] for row in inside), 1),
            "least_laplacian_variance": round(min(row[3] for row in inside), 1),
            "out_of_body": len(rows) - len(inside),
            "closed": dict(Counter(row[1].gate for row in rows[len(inside) :])),
            "first_closed_s": next((round(row[0], 2) for row in rows if row[1].gate), None),
        }
    stills: dict[int, list[LabelledPicture]] = {}
    for still in pictures(options.data, test=False):
        if still.video in (68, 70):
            stills.setdefault(still.video, []).append(still)
    for video, items in stills.items():
        perception.reset()
        evidence = [perception.evidence(_header(still.second), still.picture) for still in items]
        table[f"VID{video} frames at 1 fps"] = {
            "in_body": len(items),
            "false_closures": dict(Counter(answer.gate for answer in evidence if answer.gate)),
            "least_luma": round(min(_measures(still.picture)[0] for still in items), 1),
            "least_laplacian_variance": round(min(_measures(still.picture)[1] for still in items), 1),
        }
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
