from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stream_agent.config import configs_directory
from stream_agent.errors import ConfigError
from stream_agent.messages import FrameHeader
from stream_agent.perception.onnx import OnnxRecogniser
from stream_agent.perception.protocol import Thumbnail

Make = Callable[..., FrameHeader]
Names = tuple[str, ...]
MODEL = configs_directory() / "procedures" / "cholecystectomy" / "recogniser.onnx"


@pytest.fixture(scope="module")
def recogniser(actions: Names, instruments: Names) -> OnnxRecogniser:
    return OnnxRecogniser(MODEL, actions=actions, instruments=instruments)


def test_evidence_is_probabilities_in_pack_order(recogniser: OnnxRecogniser, header: Make, scene: Thumbnail) -> None:
    evidence = recogniser.evidence(header(pts_s=3.0), scene)
    assert (evidence.recogniser, evidence.seq, evidence.pts_s) == ("onnx", 7, 3.0)
    assert len(evidence.actions) == 5
    assert math.fsum(evidence.actions) == pytest.approx(1.0, abs=1e-5)
    assert len(evidence.instruments) == 7
    assert all(0.0 <= value <= 1.0 for value in (*evidence.actions, *evidence.instruments))
    assert evidence.out_of_body is not None


def test_the_same_picture_gives_the_same_evidence(recogniser: OnnxRecogniser, header: Make, scene: Thumbnail) -> None:
    assert recogniser.evidence(header(), scene) == recogniser.evidence(header(), scene.copy())


def test_without_a_picture_nothing_is_known(recogniser: OnnxRecogniser, header: Make) -> None:
    assert recogniser.evidence(header(), None).actions == ()


def test_plain_pictures_are_outside_the_body(recogniser: OnnxRecogniser, header: Make) -> None:
    for level in (5, 128, 250):
        evidence = recogniser.evidence(header(), np.full((224, 320, 3), level, np.uint8))
        assert evidence.out_of_body is not None
        assert evidence.out_of_body > 0.9


def test_an_answer_that_is_not_finite_is_no_evidence(
    recogniser: OnnxRecogniser, header: Make, scene: Thumbnail, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = (np.full((1, 7), np.nan, np.float32), np.full((1, 5), 0.2, np.float32), np.zeros((1, 1), np.float32))
    monkeypatch.setattr(recogniser, "_run", lambda batch: bad)
    evidence = recogniser.evidence(header(), scene)
    assert (evidence.actions, evidence.instruments, evidence.out_of_body) == ((), (), None)


def test_the_digest_is_the_files(recogniser: OnnxRecogniser) -> None:
    assert recogniser.digest == hashlib.sha256(MODEL.read_bytes()).hexdigest()


def test_the_file_is_small_enough_to_be_committed() -> None:
    assert MODEL.stat().st_size <= 10_000_000


def test_a_model_for_other_names_is_refused(actions: Names, instruments: Names) -> None:
    with pytest.raises(ConfigError, match=r"has actions \['Dissection'.*the procedure pack has \['Sewing'\]"):
        OnnxRecogniser(MODEL, actions=("Sewing",), instruments=instruments)
    with pytest.raises(ConfigError, match="has instruments"):
        OnnxRecogniser(MODEL, actions=actions, instruments=instruments[::-1])


@pytest.mark.parametrize("content", [None, b"", b"not a model", b"\x08\x07\x12\x00"])
def test_a_missing_or_damaged_model_names_the_remedy(
    tmp_path: Path, content: bytes | None, actions: Names, instruments: Names
) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"rebuild it with run_agent\.py train recogniser"):
        OnnxRecogniser(path, actions=actions, instruments=instruments)


def test_a_model_cut_short_is_refused(tmp_path: Path, actions: Names, instruments: Names) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(MODEL.read_bytes()[:1_000_000])
    with pytest.raises(ConfigError, match="rebuild it"):
        OnnxRecogniser(path, actions=actions, instruments=instruments)
