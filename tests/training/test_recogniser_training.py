"""The recogniser's training from end to end; needs the `train` extra."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

WHY = "the train extra is not installed here: pip install -e .[train]"
torch = pytest.importorskip("torch", reason=WHY)
pytest.importorskip("efficientnet_lite_pytorch", reason=WHY)
pytest.importorskip("onnx", reason=WHY)
pytest.importorskip("sklearn", reason=WHY)

from stream_agent.errors import ConfigError  # noqa: E402
from stream_agent.perception.onnx import OnnxRecogniser  # noqa: E402
from stream_agent.training.annotations import ACTIONS, INSTRUMENTS  # noqa: E402
from stream_agent.training.recogniser import train  # noqa: E402
from stream_agent.training.recogniser_examples import corrected_scenes  # noqa: E402

pytestmark = pytest.mark.timeout(900)


def test_a_corrected_list_that_names_an_unknown_action_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("start_s,action,confidence\n0,Sewing,0.9\n")
    with pytest.raises(ConfigError, match="Sewing"):
        corrected_scenes(tmp_path / "none.mp4", path, -1)


@pytest.mark.slow
def test_a_quick_training_on_real_pictures_leaves_out_what_it_is_told_to(shared_data: Path, tmp_path: Path) -> None:
    labels = tmp_path / "corrected.csv"
    labels.write_text("start_s,action,confidence\n1,Dissection,0.9\n4,,\n")
    video = shared_data / "video" / "VID25_324_and_VID43_743_a.mp4"
    report = json.loads(
        train(shared_data, tmp_path / "quick.onnx", exclude=["VID70"], corrected=[(video, labels)], quick=True)
    )
    assert set(report["pictures"]) == {"68"}
    assert report["corrected_pictures"] == 6
    assert report["loss"]["last"] < report["loss"]["first"]
    assert set(report["untouched_test_videos"]["pictures"]) == {"73", "74"}
    assert report["file"]["bytes"] < 20_000_000
    OnnxRecogniser(tmp_path / "quick.onnx", actions=ACTIONS, instruments=INSTRUMENTS)
