from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stream_agent.config import SegmenterConfig, configs_directory
from stream_agent.evaluation.dataset import ACTIONS, INSTRUMENTS, SapClip, load_presence, load_sap
from stream_agent.evaluation.samples import Presence
from stream_agent.perception.segmenter_model import load_segmenter_model
from stream_agent.perception.signals import load_signals_table
from stream_agent.training.signals import Declared, Watched, fit, in_span, main, matched, overlaps, report, watch

TOOLS = {"Dissection": "Hook", "Vessel Clipping": "Clipper", "Tissue Retraction": "Grasper", "Coagulation": "Bipolar"}


def clips_of(*starts: tuple[int, str], video: str = "VID01") -> tuple[SapClip, ...]:
    return tuple(SapClip(video, index, start_s, action, action) for index, (start_s, action) in enumerate(starts))


CLIPS = clips_of((10, "Dissection"), (60, "Vessel Clipping"), (100, "Tissue Retraction"), (140, "Dissection"))


def rows_of(clips: tuple[SapClip, ...], seconds: int) -> Presence:
    rows = np.zeros((seconds, len(INSTRUMENTS)), dtype=np.uint8)
    for clip in clips:
        rows[clip.start_s :] = 0
        rows[clip.start_s :, 0] = 1
        rows[clip.start_s :, INSTRUMENTS.index(TOOLS[clip.action])] = 1
    return rows


@pytest.fixture(scope="module")
def presence() -> dict[str, Presence]:
    return {"VID01": rows_of(CLIPS, 200)}


def test_clips_of_clear_instruments_are_found_to_the_second(presence: dict[str, Presence]) -> None:
    model = fit({"VID01": CLIPS, "VID02": CLIPS}, presence)
    watched = watch(model, CLIPS, presence["VID01"], SegmenterConfig())
    assert [(item.action, item.start_s) for item in watched.declared] == [
        (clip.action, float(clip.start_s)) for clip in CLIPS
    ]
    assert all(item.start_s < item.decided_s < item.start_s + 10 for item in watched.declared)
    numbers = report([watched])
    assert (numbers["starts"], numbers["starts_within_5s"], numbers["clip_ratio"], numbers["clip_f1"]) == (4, 1, 1, 1)
    assert numbers["found_by_action"]["Dissection"] == "2/2"
    assert numbers["accuracy_of_evidence"] == 1.0


def test_durations_are_those_of_the_clips_that_another_one_follows(presence: dict[str, Presence]) -> None:
    many = {f"VID{k}": clips_of((0, "Dissection"), (100, "Vessel Clipping"), (120, "Dissection")) for k in range(40)}
    model = fit(many, dict.fromkeys(many, presence["VID01"])).durations
    assert model.mistake() == ""
    dissection, clipping = (model.lengths[ACTIONS.index(name)] for name in ("Dissection", "Vessel Clipping"))
    assert dissection.median_s == pytest.approx(100, rel=0.2)
    assert clipping.median_s == pytest.approx(20, rel=0.2)
    assert model.following[0][1] > 0.5
    assert model.following[0][0] == 0.0


def test_a_start_is_matched_once_in_time_and_with_its_action() -> None:
    declared = [
        Declared("Dissection", 6.0, 9.0),
        Declared("Dissection", 14.0, 15.0),
        Declared("Aspiration", 61.0, 62.0),
    ]
    assert [item.start_s for _, item in matched(CLIPS, declared, same_action=True)] == [6.0]
    assert [item.start_s for _, item in matched(CLIPS, declared, same_action=False)] == [6.0, 61.0]


def test_only_the_annotated_span_counts() -> None:
    declared = tuple(Declared("Dissection", start_s, start_s) for start_s in (4.0, 5.0, 145.0, 146.0))
    assert [item.start_s for item in in_span(Watched(CLIPS, declared, (), ()))] == [5.0, 145.0]


def test_overlap_is_counted_up_to_the_last_start() -> None:
    declared = (Declared("Dissection", 0.0, 1.0), Declared("Vessel Clipping", 40.0, 41.0))
    found, said, there = overlaps(Watched(CLIPS, declared, (), ()))
    assert (found, said, there) == (2, 2, 3)


def test_grasper_alone_after_scissors_is_a_pause_when_the_labels_say_so() -> None:
    clips = clips_of((0, "Tissue Retraction"), (100, "Dissection"), (160, "Vessel Clipping"))
    rows = np.zeros((180, len(INSTRUMENTS)), dtype=np.uint8)
    rows[:, 0] = 1
    rows[100:110, INSTRUMENTS.index("Scissors")] = 1
    rows[160:, INSTRUMENTS.index("Clipper")] = 1
    posterior = fit({"VID01": clips}, {"VID01": rows}).table.posterior
    assert posterior["Scissors"].index(max(posterior["Scissors"])) == ACTIONS.index("Dissection")
    assert len(set(posterior["Grasper after Scissors"])) == 1


def test_the_command_writes_what_a_pack_loads(
    tmp_path: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sap = load_sap(shared_data / "sap" / "total_video_info.json")
    folder = shared_data / "cholec80" / "phase_tool_1hz"
    kept = ("VID01", "VID13", "VID74")
    excluded = ",".join(name for name in load_presence(folder, sap) if name not in kept)
    main(["--sap", str(shared_data / "sap" / "total_video_info.json"), "--signals", str(folder), "--out", str(tmp_path),
          "--exclude", excluded])  # fmt: skip
    printed = capsys.readouterr().out
    assert '"videos": 3' in printed and '"starts_within_5s"' in printed
    load_signals_table(tmp_path / "signals.json", ACTIONS, INSTRUMENTS)
    load_segmenter_model(tmp_path / "segmenter.json", ACTIONS)


def test_the_packs_own_models_meet_their_floor_on_test_videos(shared_data: Path) -> None:
    """They were fitted and chosen without these videos."""
    from stream_agent.evaluation.dataset import TEST_VIDEOS
    from stream_agent.training.signals import SignalsModel

    pack = configs_directory() / "procedures" / "cholecystectomy"
    table, _ = load_signals_table(pack / "signals.json", ACTIONS, INSTRUMENTS)
    model = SignalsModel(table, load_segmenter_model(pack / "segmenter.json", ACTIONS))
    videos = load_sap(shared_data / "sap" / "total_video_info.json")
    presence = load_presence(shared_data / "cholec80" / "phase_tool_1hz", TEST_VIDEOS)
    numbers = report([watch(model, videos[name], rows, SegmenterConfig()) for name, rows in presence.items()])
    assert numbers["starts_within_5s"] >= 0.70
    assert numbers["clip_ratio"] <= 1.25
