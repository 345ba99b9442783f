"""The network learns, and its file answers as it does; needs the `train` extra."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

WHY = "the train extra is not installed here: pip install -e .[train]"
torch = pytest.importorskip("torch", reason=WHY)
pytest.importorskip("efficientnet_lite_pytorch", reason=WHY)
pytest.importorskip("onnx", reason=WHY)
pytest.importorskip("sklearn", reason=WHY)

from stream_agent.messages import FrameHeader  # noqa: E402
from stream_agent.perception.onnx import OnnxRecogniser  # noqa: E402
from stream_agent.training.annotations import ACTIONS, INSTRUMENTS  # noqa: E402
from stream_agent.training.augment import Sample  # noqa: E402
from stream_agent.training.fitting import fit_late, targets  # noqa: E402
from stream_agent.training.network import Early, EarlyRunner, Heads, Late, Recogniser, export  # noqa: E402

pytestmark = pytest.mark.timeout(900)


def made_samples(count: int) -> list[Sample]:
    """Grey noise, and in every other picture a bright bar in one cell: instrument 2."""
    rng = np.random.default_rng(0)
    samples = []
    for k in range(count):
        picture = rng.integers(60, 120, (224, 320, 3), dtype=np.uint8)
        presence = np.zeros(7, dtype=np.float32)
        cells = np.zeros((6, 7, 10), dtype=np.float32)
        if k % 2:
            row, column = int(rng.integers(1, 6)), int(rng.integers(1, 9))
            picture[row * 32 : row * 32 + 32, column * 32 - 16 : column * 32 + 48] = 250
            presence[2], cells[2, row, column] = 1.0, 1.0
        samples.append(Sample(picture, frozenset((k,)), presence, cells, 0))
    return samples


def heads() -> Heads:
    return Heads(
        slopes=np.full(7, 0.8),
        offsets=np.full(7, 0.1),
        prior_logits=np.linspace(-2, 1, 7),
        presence=np.linspace(0.05, 0.95, 35).reshape(7, 5),
        sharpness=0.7,
        outside_weights=np.linspace(-0.01, 0.01, 2560)[:, None],
        outside_bias=np.array([-1.0]),
    )


def test_the_loss_falls_and_the_file_answers_like_torch(tmp_path: Path) -> None:
    samples = made_samples(32)
    early = EarlyRunner()
    stored = np.stack([early(sample.picture) for sample in samples])
    lines: list[str] = []
    late, losses = fit_late(
        stored, targets(samples), np.arange(32), presence_by_action=heads().presence, epochs=6, seed=0, tell=lines.append,
        batch=8,
    )  # fmt: skip
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
    assert lines[-1].startswith("step 24/24")

    model = Recogniser(Early(), late, heads()).eval()
    metadata = {"actions": ACTIONS, "instruments": INSTRUMENTS}
    for half, tolerance in ((False, 1e-4), (True, 0.02)):
        path = tmp_path / "model.onnx"
        export(model, path, metadata, half=half)
        recogniser = OnnxRecogniser(path, actions=ACTIONS, instruments=INSTRUMENTS)
        for sample in samples[:4]:
            with torch.inference_mode():
                wanted = [part[0].tolist() for part in model(torch.from_numpy(sample.picture[None]))]
            header = FrameHeader(stream_id="", session_id="", seq=0, pts_s=0.0, captured_ns=0)
            found = recogniser.evidence(header, sample.picture)
            assert found.instruments == pytest.approx(wanted[0], abs=tolerance)
            assert found.actions == pytest.approx(wanted[1], abs=tolerance)
            assert found.out_of_body == pytest.approx(wanted[2][0], abs=tolerance)


def test_folding_the_normalisation_changes_nothing() -> None:
    from stream_agent.training.encoder import encode, load_encoder

    picture = made_samples(2)[1].picture
    with torch.inference_mode():
        features = Late().eval()(Early().eval()(torch.from_numpy(picture[None])))[2]
    ours = torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1).numpy()
    assert ours == pytest.approx(encode(load_encoder(), [picture]), abs=1e-3)
