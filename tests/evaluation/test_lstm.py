"""The LSTM of the PS baseline on drawn pictures; skipped where torch is not installed."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from stream_agent.evaluation.protocols import NotRunError, Training
from stream_agent.evaluation.samples import Question

pytest.importorskip("torch", reason="torch is not installed; pip install stream-agent[train]")
pytest.importorskip("efficientnet_lite_pytorch", reason="the encoder is not installed; pip install stream-agent[train]")

pytestmark = pytest.mark.filterwarnings("ignore")  # torch and the encoder warn about themselves


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """A bright picture for every video of which the next action is a clipping, a dark one for the others."""
    for name, shade in (("VID01", 250), ("VID02", 5), ("VID06", 250), ("VID08", 5)):
        (tmp_path / name).mkdir()
        assert cv2.imwrite(str(tmp_path / name / "000030.png"), np.full((60, 80, 3), shade, np.uint8))
    return tmp_path


def test_it_learns_from_frames_and_answers_where_there_are_some(frames: Path) -> None:
    from stream_agent.evaluation.dataset import SapClip
    from stream_agent.evaluation.lstm import fit_lstm

    videos = {
        name: (
            SapClip(name, 0, 0, "Tissue Retraction", "Tissue Retraction"),
            SapClip(name, 1, 31, target, target, is_sample=True, near_frames_s=(30, 31)),
        )
        for name, target in (("VID01", "Vessel Clipping"), ("VID02", "Dissection"))
    }
    model = fit_lstm(Training(videos, {}, "causal").samples(), frames)
    for name, target in (("VID06", "Vessel Clipping"), ("VID08", "Dissection")):
        shares = model.probabilities(Question(name, ("Tissue Retraction",), (0,), 30, (30,)))
        assert shares is not None
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert max(shares, key=lambda action: shares[action]) == target
    assert model.probabilities(Question("VID06", ("Dissection",), (0,), 50, (50,))) is None


def test_without_a_single_frame_it_is_not_run(tmp_path: Path) -> None:
    from stream_agent.evaluation.lstm import fit_lstm

    with pytest.raises(NotRunError, match="holds no near frame"):
        fit_lstm([], tmp_path)


def test_a_broken_picture_is_named(frames: Path) -> None:
    from stream_agent.evaluation.lstm import LstmModel, _Lstm

    (frames / "VID06" / "000040.png").write_bytes(b"no picture")
    with pytest.raises(NotRunError, match=r"000040\.png is no picture"):
        LstmModel(_Lstm(), frames).probabilities(Question("VID06", ("Dissection",), (0,), 40, (40,)))
