"""The network that is trained, and the one ONNX file made of it.

EfficientNet-Lite0 with its ImageNet weights (Apache-2.0), batch normalisation folded into the convolutions. The early
part is never trained: what it says of a picture is computed once (by ONNX Runtime, several times faster than torch on a
CPU) and kept. The late part and a 1x1 convolution that says *where* each instrument is are trained; an instrument is
present as far as it is somewhere (log-mean-exp over the cells). With few procedures this generalises better than a linear
layer on averaged features, which learns the scenery.
"""

from __future__ import annotations

import io
import json
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from stream_agent.perception.protocol import THUMBNAIL_HEIGHT, THUMBNAIL_WIDTH, Thumbnail
from stream_agent.training.augment import GRID
from stream_agent.training.encoder import load_encoder

CUT: Final = 12
"""Stages before this one are frozen: the stem and blocks 0 to 10."""
CHANNELS: Final = 1280
INSTRUMENT_COUNT: Final = 7
SHARPNESS: Final = 2.0
"""Of the pooling: 0 is the mean over the cells, infinity the maximum."""
_LARGE_ELEMENTS: Final = 1024
"""Weights of at least so many elements are stored as float16."""

Half = NDArray[np.float16]
Matrix = NDArray[np.float64]


class _Block(nn.Module):  # type: ignore[misc]
    """An inverted bottleneck, with its shortcut where there is one."""

    def __init__(self, body: Any, *, shortcut: bool) -> None:  # noqa: ANN401
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Any) -> Any:  # noqa: ANN401
        return x + self.body(x) if self.shortcut else self.body(x)


def _folded(convolution: Any, norm: Any, size: list[int]) -> list[Any]:  # noqa: ANN401
    """Convolution and the batch normalisation after it, with its fixed statistics, as one convolution; `size` is updated.

    Padding is TensorFlow's: the output has ceil(size / stride) rows and columns, the odd pixel goes below and right.
    """
    kernel, stride = convolution.kernel_size[0], convolution.stride[0]
    down, across = (max((-(-extent // stride) - 1) * stride + kernel - extent, 0) for extent in size)
    size[:] = [-(-extent // stride) for extent in size]
    even = down == across and down % 2 == 0
    folded = nn.Conv2d(
        convolution.in_channels,
        convolution.out_channels,
        kernel,
        stride,
        padding=down // 2 if even else 0,
        groups=convolution.groups,
        bias=True,
    )
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    with torch.no_grad():
        folded.weight.copy_(convolution.weight * scale[:, None, None, None])
        folded.bias.copy_(norm.bias - norm.running_mean * scale)
    if even:
        return [folded]
    return [nn.ZeroPad2d((across // 2, across - across // 2, down // 2, down - down // 2)), folded]


def stages() -> list[Any]:
    """The encoder as 18 stages: stem, 16 blocks, head."""
    encoder = load_encoder()
    size = [THUMBNAIL_HEIGHT, THUMBNAIL_WIDTH]
    found: list[Any] = [nn.Sequential(*_folded(encoder._conv_stem, encoder._bn0, size), nn.ReLU6())]
    for block in encoder._blocks:
        settings = block._block_args
        layers: list[Any] = []
        if settings.expand_ratio != 1:
            layers += [*_folded(block._expand_conv, block._bn0, size), nn.ReLU6()]
        layers += [*_folded(block._depthwise_conv, block._bn1, size), nn.ReLU6()]
        layers += _folded(block._project_conv, block._bn2, size)
        same = settings.stride == 1 and settings.input_filters == settings.output_filters
        found.append(_Block(nn.Sequential(*layers), shortcut=same))
    found.append(nn.Sequential(*_folded(encoder._conv_head, encoder._bn1, size), nn.ReLU6()))
    return found


class Early(nn.Module):  # type: ignore[misc]
    """(B, 224, 320, 3) uint8 -> (B, 112, 14, 20): what is never trained."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(*stages()[:CUT])

    def forward(self, thumbnail: Any) -> Any:  # noqa: ANN401
        """Pixels to 127 +- 128, then the frozen stages."""
        return self.stages((thumbnail.permute(0, 3, 1, 2).to(torch.float32) - 127.0) / 128.0)


class Late(nn.Module):  # type: ignore[misc]
    """(B, 112, 14, 20) -> log odds of presence (B, 7), of each cell (B, 7, 7, 10), and last features (B, 1280, 7, 10)."""

    def __init__(self, *, dropout: float = 0.2) -> None:
        super().__init__()
        self.stages = nn.Sequential(*stages()[CUT:])
        self.dropout = nn.Dropout2d(dropout)
        self.where = nn.Conv2d(CHANNELS, INSTRUMENT_COUNT, 1)
        self.offset = nn.Parameter(torch.zeros(INSTRUMENT_COUNT))
        nn.init.normal_(self.where.weight, std=0.005)
        nn.init.constant_(self.where.bias, -2.0)

    def forward(self, activations: Any) -> Any:  # noqa: ANN401
        """Presence is the log-mean-exp of the cells' log odds."""
        features = self.stages(activations)
        cells = self.where(self.dropout(features))
        pooled = (torch.logsumexp(SHARPNESS * cells, (2, 3)) - math.log(GRID[0] * GRID[1])) / SHARPNESS
        return pooled + self.offset, cells, features


@dataclass(frozen=True, slots=True, eq=False)
class Heads:
    """What is fitted after the network, on videos it was not trained on.

    Attributes:
        slopes: Of each instrument's log odds, (7,), so that balanced odds are honest.
        offsets: (7,).
        prior_logits: Log odds of each instrument's presence among the 1 Hz rows, (7,).
        presence: P(instrument present | action), (7, 5).
        sharpness: Exponent on the action likelihood.
        outside_weights: Of mean and maximum over space of the last features, (2560, 1): camera out of the body.
        outside_bias: (1,).
    """

    slopes: Matrix
    offsets: Matrix
    prior_logits: Matrix
    presence: Matrix
    sharpness: float
    outside_weights: Matrix
    outside_bias: Matrix


class Recogniser(nn.Module):  # type: ignore[misc]
    """Everything as one graph: (B, 224, 320, 3) uint8 -> instruments (B, 7), actions (B, 5), out of body (B, 1)."""

    def __init__(self, early: Early, late: Late, heads: Heads) -> None:
        super().__init__()
        self.early, self.late = early, late
        self.sharpness = heads.sharpness
        for name in ("slopes", "offsets", "prior_logits", "presence", "outside_weights", "outside_bias"):
            self.register_buffer(name, torch.tensor(getattr(heads, name), dtype=torch.float32))

    def forward(self, thumbnail: Any) -> Any:  # noqa: ANN401
        """Probabilities; instruments under their natural prior, actions under equal ones."""
        pooled, _, features = self.late(self.early(thumbnail))
        logits = pooled * self.slopes + self.offsets
        balanced = torch.sigmoid(logits)[:, :, None]
        # Soft evidence: each instrument's likelihood ratio enters, not a decision on it.
        likelihood = torch.log(balanced * self.presence + (1.0 - balanced) * (1.0 - self.presence)).sum(1)
        outside = torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1) @ self.outside_weights
        return (
            torch.sigmoid(logits + self.prior_logits),
            torch.softmax(self.sharpness * likelihood, dim=1),
            torch.sigmoid(outside + self.outside_bias),
        )


class EarlyRunner:
    """The frozen part through ONNX Runtime, one thread."""

    def __init__(self) -> None:
        model = _to_onnx(Early().eval(), ["activations"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, picture: Thumbnail) -> Half:
        """(224, 320, 3) uint8 -> (112, 14, 20) float16."""
        answer: Half = self._session.run(["activations"], {"thumbnail": picture[None]})[0][0].astype(np.float16)
        return answer


def export(model: Recogniser, out: Path, metadata: dict[str, Any], *, half: bool) -> None:
    """Write the model; with `half`, large weights are stored as float16 and cast back when the session loads."""
    graph = _to_onnx(model.eval(), ["instruments", "actions", "out_of_body"])
    if half:
        _store_half(graph)
    graph.producer_name, graph.producer_version, graph.doc_string = "stream_agent", "", ""
    for key, value in metadata.items():
        entry = graph.metadata_props.add()
        entry.key, entry.value = key, value if isinstance(value, str) else json.dumps(value)
    onnx.checker.check_model(graph, full_check=True)
    out.write_bytes(graph.SerializeToString(deterministic=True))


def _to_onnx(module: Any, outputs: list[str]) -> Any:  # noqa: ANN401
    buffer = io.BytesIO()
    example = torch.zeros((1, THUMBNAIL_HEIGHT, THUMBNAIL_WIDTH, 3), dtype=torch.uint8)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a newer exporter exists; it needs a package more
        warnings.filterwarnings("ignore", message="Constant folding")  # of the paddings: ONNX Runtime folds them
        torch.onnx.export(
            module,
            (example,),
            buffer,
            input_names=["thumbnail"],
            output_names=outputs,
            opset_version=17,
            dynamo=False,
        )
    return onnx.load_from_string(buffer.getvalue())


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
