from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest

from stream_agent.config import GateConfig, RecogniserConfig, configs_directory
from stream_agent.errors import ConfigError
from stream_agent.messages import Clip, Evidence, FrameHeader
from stream_agent.perception.gate import Gate
from stream_agent.perception.perceive import Perception, build_recogniser
from stream_agent.perception.protocol import Thumbnail
from stream_agent.perception.thumbnail import thumbnail

Make = Callable[..., FrameHeader]


@dataclass(frozen=True)
class Pack:
    action_names: tuple[str, ...]
    instruments: tuple[str, ...]
    folder: Path
    name: str = "cholecystectomy"


@pytest.fixture
def pack(actions: tuple[str, ...], instruments: tuple[str, ...]) -> Pack:
    return Pack(actions, instruments, configs_directory() / "procedures" / "cholecystectomy")


class CannedRecogniser:
    name = "canned"

    def __init__(self, out_of_body: float | None = None) -> None:
        self.asked = 0
        self._out_of_body = out_of_body

    def reset(self) -> None:
        """Nothing kept."""

    def evidence(self, header: FrameHeader, thumbnail: Thumbnail | None) -> Evidence:
        self.asked += 1
        return Evidence(
            seq=header.seq,
            pts_s=header.pts_s,
            recogniser=self.name,
            actions=(0.5, 0.5),
            instruments=(1.0,),
            out_of_body=self._out_of_body,
        )


def test_a_good_picture_gives_the_recognisers_evidence(header: Make, scene: Thumbnail) -> None:
    evidence = Perception(Gate(GateConfig()), CannedRecogniser(0.1)).evidence(header(pts_s=1.0), scene)
    assert (evidence.gate, evidence.recogniser, evidence.actions) == ("", "canned", (0.5, 0.5))


def test_a_bad_picture_is_not_even_looked_at(header: Make, scene: Thumbnail) -> None:
    recogniser = CannedRecogniser()
    evidence = Perception(Gate(GateConfig()), recogniser).evidence(header(pts_s=1.0), np.zeros_like(scene))
    assert evidence == Evidence(seq=7, pts_s=1.0, gate="black")
    assert recogniser.asked == 0


def test_out_of_body_leaves_no_action_and_no_instrument(header: Make, scene: Thumbnail) -> None:
    evidence = Perception(Gate(GateConfig()), CannedRecogniser(0.99)).evidence(header(pts_s=1.0), scene)
    assert evidence == Evidence(seq=7, pts_s=1.0, gate="out_of_body", out_of_body=0.99)


def test_without_pixels_the_gate_has_nothing_to_judge(header: Make) -> None:
    assert Perception(Gate(GateConfig()), CannedRecogniser()).evidence(header(), None).gate == ""


def test_a_new_session_forgets_the_still_picture(header: Make, scene: Thumbnail) -> None:
    perception = Perception(Gate(GateConfig(frozen_s=1.0)), CannedRecogniser())
    perception.evidence(header(pts_s=0.0), scene)
    assert perception.evidence(header(pts_s=1.0), scene).gate == "frozen"
    perception.reset()
    assert perception.evidence(header(pts_s=2.0), scene).gate == ""


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("synthetic:", "timeline"),
        ("cases/video15.csv", "signals"),
        ("CASE.CSV", "signals"),
        ("rtsp://10.0.0.1/a", "onnx"),
    ],
)
def test_auto_chooses_by_the_source(uri: str, name: str, pack: Pack) -> None:
    timeline = (Clip("Dissection", 0.0, 2.0, 1.0),)
    assert build_recogniser(RecogniserConfig(), pack, uri, timeline).name == name


def test_a_label_file_comes_before_the_sources_own_timeline(tmp_path: Path, pack: Pack, header: Make) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("start_s,action\n0,Aspiration\n")
    config = RecogniserConfig(kind="timeline", labels=labels)
    recogniser = build_recogniser(config, pack, "synthetic:", (Clip("Dissection", 0.0, 2.0, 1.0),))
    assert recogniser.evidence(header(pts_s=1.0), None).actions[4] == 1.0


def test_a_timeline_without_labels_is_refused(pack: Pack) -> None:
    with pytest.raises(ConfigError, match=r"recogniser\.labels"):
        build_recogniser(RecogniserConfig(kind="timeline"), pack, "video.mp4", None)


def test_a_pack_without_a_model_says_which_file_is_missing(tmp_path: Path, actions: tuple[str, ...]) -> None:
    pack = Pack(actions, ("a",), tmp_path)
    with pytest.raises(ConfigError, match=r"recogniser\.onnx"):
        build_recogniser(RecogniserConfig(), pack, "video.mp4")
    with pytest.raises(ConfigError, match=r"signals\.json"):
        build_recogniser(RecogniserConfig(), pack, "video.csv")


def test_a_real_excerpt_passes_until_the_camera_leaves_the_body(shared_data: Path, pack: Pack, header: Make) -> None:
    perception = Perception(Gate(GateConfig()), build_recogniser(RecogniserConfig(), pack, "video.mp4"))
    reasons: dict[bool, set[str]] = {False: set(), True: set()}
    with av.open(str(shared_data / "video" / "VID15_1911_and_VID18_1261_a.mp4")) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number % 5 == 0 and frame.time is not None and frame.time > 20.0:
                planes = np.asarray(frame.to_ndarray(format="yuv420p"), dtype=np.uint8)
                head = header(pts_s=frame.time, width=frame.width, height=frame.height)
                reasons[frame.time >= 27.2].add(perception.evidence(head, thumbnail(planes, head)).gate)
    assert reasons == {False: {""}, True: {"black"}}
