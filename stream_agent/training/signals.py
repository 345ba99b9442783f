"""Fit the emission table of the signals recogniser, `signals.json`, and print what it reaches on left-out videos.

    python -m stream_agent.training.signals --data ../shared/data --out configs/procedures/cholecystectomy/signals.json

Training videos' 1 Hz instrument rows against their action labels (CholecT50-SAP, then the precursor annotation). Needs
nothing beyond the package itself.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec

from stream_agent.config import SegmenterConfig
from stream_agent.messages import FrameHeader
from stream_agent.perception.segmenter import Segmenter
from stream_agent.perception.signals import EmissionTable, SignalsRecogniser
from stream_agent.training.annotations import (
    ACTIONS,
    INSTRUMENTS,
    TEST_VIDEOS,
    Timeline,
    load_timelines,
    load_tool_rows,
)

BACK_OFF_S: Final = 1000.0
"""Best balanced log loss with the counts still used, among 10, 100, 1000 on left-out training videos."""
ABOUT: Final = (
    "P(instruments | action) from Cholec80 1 Hz rows and CholecT50-SAP labels of the training videos; derived data, "
    "CC BY-NC-SA 4.0; made by python -m stream_agent.training.signals --data ../shared/data --out FILE"
)

Rows: TypeAlias = Mapping[int, tuple[int, ...]]


def fit_table(videos: Iterable[tuple[Rows, Timeline]]) -> EmissionTable:
    """Count the labelled seconds of each set of instruments per action."""
    seen: Counter[tuple[str, str]] = Counter()
    for rows, timeline in videos:
        for second, row in rows.items():
            action = timeline.action(second)
            if action:
                seen["".join(map(str, row)), action] += 1
    keys = sorted({key for key, _ in seen})
    presence = []
    for action in ACTIONS:
        total = sum(seen[key, action] for key in keys)
        presence.append(
            tuple(
                round((sum(seen[key, action] for key in keys if key[j] == "1") + 0.5) / (total + 1.0), 6)
                for j in range(len(INSTRUMENTS))
            )
        )
    return EmissionTable(
        about=ABOUT,
        actions=ACTIONS,
        instruments=INSTRUMENTS,
        presence=tuple(presence),
        counts={key: tuple(float(seen[key, action]) for action in ACTIONS) for key in keys},
        back_off_s=BACK_OFF_S,
    )


def evaluate(table: EmissionTable, rows: Rows, timeline: Timeline, config: SegmenterConfig) -> dict[str, list[Any]]:
    """Per labelled CholecT50-SAP second: the action, its log probability, the frame's best and the segmenter's."""
    recogniser, segmenter = SignalsRecogniser(table), Segmenter(ACTIONS, config)
    numbers: dict[str, list[Any]] = {"action": [], "log_p": [], "frame": [], "segment": [], "opened": []}
    for second, row in sorted(rows.items()):
        header = FrameHeader(
            stream_id="", session_id="", seq=second, pts_s=second, captured_ns=0, signals=tuple(map(float, row))
        )
        posterior = recogniser.evidence(header, None).actions
        events = segmenter.step(float(second), posterior)
        action = timeline.action(second)
        if second < timeline.sap_end_s:
            numbers["opened"] += [event for event in events if event.kind == "opened"]
            if action:
                numbers["action"].append(action)
                numbers["log_p"].append(math.log(posterior[ACTIONS.index(action)]))
                numbers["frame"].append(ACTIONS[posterior.index(max(posterior))])
                numbers["segment"].append(segmenter.current)
    return numbers


def report(per_video: Sequence[dict[str, list[Any]]]) -> dict[str, Any]:
    """Accuracy, mean recall and log loss over all seconds; clips per video."""
    pooled = {key: [value for numbers in per_video for value in numbers[key]] for key in per_video[0]}
    recall, losses = {}, []
    for action in ACTIONS:
        rows = [k for k, value in enumerate(pooled["action"]) if value == action]
        if rows:
            recall[action] = round(sum(pooled["frame"][k] == action for k in rows) / len(rows), 3)
            losses.append(-sum(pooled["log_p"][k] for k in rows) / len(rows))
    seconds = len(pooled["action"])
    true = Counter(pooled["action"])
    return {
        "videos": len(per_video),
        "seconds": seconds,
        "majority": round(max(true.values()) / seconds, 3),
        "frame_accuracy": round(
            sum(a == b for a, b in zip(pooled["action"], pooled["frame"], strict=True)) / seconds, 3
        ),
        "frame_recall": recall,
        "frame_mean_recall": round(sum(recall.values()) / len(recall), 3),
        "balanced_log_loss": round(sum(losses) / len(losses), 3),
        "segmenter_accuracy": round(
            sum(a == b for a, b in zip(pooled["action"], pooled["segment"], strict=True)) / seconds, 3
        ),
        "segmenter_clips_per_video": round(len(pooled["opened"]) / len(per_video), 1),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the data folder")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    options = parser.parse_args(arguments)
    timelines = load_timelines(options.data, continue_with_precursor=True)
    videos = {video: (load_tool_rows(options.data, video), timelines[video]) for video in sorted(timelines)}
    training = {video: item for video, item in videos.items() if item[0] and video not in TEST_VIDEOS}
    config = SegmenterConfig()
    left_out = [
        evaluate(fit_table(item for other, item in training.items() if other != video), *training[video], config)
        for video in training
    ]
    table = fit_table(training.values())
    options.out.write_bytes(msgspec.json.format(msgspec.json.encode(table), indent=1) + b"\n")
    test = [evaluate(table, *item, config) for video, item in videos.items() if item[0] and video in TEST_VIDEOS]
    print(json.dumps({"left_out_training_videos": report(left_out), "untouched_test_videos": report(test)}, indent=1))


if __name__ == "__main__":
    main()
