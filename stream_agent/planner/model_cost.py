"""What a model costs on a GPU, by arithmetic alone: memory, image tokens, and the least time an answer can take.

    rank lane   = vision encoder over the new picture, then the language model over the new prompt tokens
    decode step = the language model's weights and the keys and values so far, read once

Each part takes at least max(bytes / memory bandwidth, operations / matrix rate). The floor assumes that the static part of the
prompt comes from the prefix cache and that nothing else runs; a measured time is given beside it, never instead of it.

Operations count a multiplication and an addition as two. A linear layer costs 2 · weights per token, attention
4 · tokens · context · heads · head size (scores and values), halved where it is causal over the same tokens.
"""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from stream_agent.errors import ConfigError
from stream_agent.planner.model_files import ModelFiles

Weights: TypeAlias = Literal["bf16", "fp8", "int4"]

_BITS: dict[str, float] = {
    "bf16": 16.0,
    "fp8": 8.0,
    # AWQ and GPTQ in groups of 128: four bits, and per group a 16-bit scale and a 4-bit zero.
    "int4": 4.0 + 20 / 128,
}


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU by its makers' data sheet: dense rates, without sparsity.

    Attributes:
        memory_bytes: Of the card.
        bytes_per_s: Memory bandwidth.
        bf16_per_s: Operations per second of the matrix units.
        fp8_per_s: The same for 8-bit numbers; the bf16 rate where there are no such units.
    """

    name: str
    memory_bytes: float
    bytes_per_s: float
    bf16_per_s: float
    fp8_per_s: float


DEVICES = {
    device.name: device
    for device in (
        Device("b200", 180e9, 8.0e12, 2250e12, 4500e12),
        Device("h200", 141e9, 4.8e12, 989e12, 1979e12),
        Device("h100", 80e9, 3.35e12, 989e12, 1979e12),
        Device("a100", 80e9, 2.04e12, 312e12, 312e12),
        Device("l40s", 48e9, 0.864e12, 362e12, 733e12),
        Device("l4", 24e9, 0.300e12, 121e12, 242e12),
        Device("rtx4090", 24e9, 1.008e12, 165e12, 330e12),
        Device("rtx6000ada", 48e9, 0.960e12, 364e12, 728e12),
    )
}
"""GPUs whose floor can be told, by the name that `--device` takes."""


@dataclass(frozen=True, slots=True)
class Vision:
    """A picture's way into the model.

    Attributes:
        parameters: Of the encoder with its merger.
        cell_px: Side of the square of pixels that becomes one token: patch size times merge size.
        merge: Patches per token side.
        layers: Blocks of the encoder.
        width: Heads times head size of its attention.
        full_layers: Blocks whose attention sees every patch; the others see a window.
        window_patches: Patches in such a window; 0 if every block sees all.
    """

    parameters: int
    cell_px: int
    merge: int
    layers: int
    width: int
    full_layers: int
    window_patches: int

    def tokens(self, height: int, width: int, max_pixels: int | None = None) -> int:
        """Prompt tokens of a picture, scaled down to at most `max_pixels` and to whole cells on each side.

        As Qwen2-VL's `smart_resize`: round both sides to cells, and scale by area if that is too much.
        """
        cell = self.cell_px
        rows, columns = max(1, round(height / cell)), max(1, round(width / cell))
        if max_pixels is not None and rows * columns * cell * cell > max_pixels:
            shrink = math.sqrt(height * width / max_pixels)
            rows = max(1, math.floor(height / shrink / cell))
            columns = max(1, math.floor(width / shrink / cell))
        return rows * columns

    def operations(self, tokens: int) -> float:
        """To encode one picture of so many tokens."""
        patches = tokens * self.merge**2
        windowed = self.layers - self.full_layers
        seen = self.full_layers * patches + windowed * min(patches, self.window_patches or patches)
        return 2.0 * self.parameters * patches + 4.0 * patches * seen * self.width


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What of a model's configuration decides its cost.

    Attributes:
        name: Of the directory.
        family: `model_type`.
        text_parameters: Of the language model's blocks: what every prompt token passes through.
        embedding_parameters: Of the token table; read a row at a time.
        head_parameters: Of the output layer, whether tied to the table or not: read at every decode step.
        tied: Whether the output layer is the token table.
        layers, heads, kv_heads, head_size: Of the language model's attention.
        vision: None for a model without eyes.
        stored_bytes: Of the weights in the directory; 0 if they are not there.
    """

    name: str
    family: str
    text_parameters: int
    embedding_parameters: int
    head_parameters: int
    tied: bool
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    vision: Vision | None
    stored_bytes: int = 0

    @property
    def parameters(self) -> int:
        """All of them; a tied output layer counts once."""
        return (
            self.text_parameters
            + self.embedding_parameters
            + (0 if self.tied else self.head_parameters)
            + (self.vision.parameters if self.vision else 0)
        )

    def weight_bytes(self, weights: Weights) -> float:
        """In GPU memory: blocks quantised, token table, output layer and eyes in 16 bits, as vLLM keeps them."""
        rest = self.parameters - self.text_parameters
        return self.text_parameters * _BITS[weights] / 8 + rest * 2

    def kv_bytes_per_token(self, bits: int = 16) -> int:
        """Of keys and values in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_size * bits // 8

    def prefill_operations(self, new: int, cached: int = 0) -> float:
        """To read `new` tokens behind `cached` ones that are in the prefix cache, and score the next token once."""
        attention = 4.0 * self.layers * self.heads * self.head_size * new * (cached + new / 2)
        return 2.0 * self.text_parameters * new + 2.0 * self.head_parameters + attention

    def read_bytes(self, weights: Weights, context: int) -> float:
        """Of memory that one step of the language model must read."""
        return (
            self.text_parameters * _BITS[weights] / 8 + self.head_parameters * 2 + context * self.kv_bytes_per_token()
        )


@dataclass(frozen=True, slots=True)
class Floor:
    """The least time of one rank request and of one token of a rationale, and what binds it.

    Attributes:
        image_tokens: Of the new picture.
        new_tokens: Prompt tokens that are read: the picture's and the text's.
        vision_s, prefill_s: Parts of a rank request.
        decode_s: Every further token.
        bound: Per part, `memory` or `arithmetic`.
    """

    image_tokens: int
    new_tokens: int
    vision_s: float
    prefill_s: float
    decode_s: float
    bound: Mapping[str, str]

    @property
    def rank_s(self) -> float:
        """A rank request's: the prefill's last position already gives the log-probabilities."""
        return self.vision_s + self.prefill_s


def shape_of(files: ModelFiles) -> ModelShape:
    """The cost-deciding shape of a model; parameters are counted in the weights' headers where they are there.

    Raises:
        ConfigError: The configuration lacks what the arithmetic needs.
    """
    root = files.config
    text: Mapping[str, Any] = root["text_config"] if isinstance(root.get("text_config"), dict) else root
    try:
        width, layers, heads = (int(text[key]) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
        vocabulary, inner = int(text["vocab_size"]), int(text["intermediate_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{files.directory}/config.json: {error} is missing or no number, and the cost follows from it; "
            "estimates are for Qwen2-VL, Qwen2.5-VL, Qwen3-VL and dense text models of the Llama and Qwen kind"
        ) from error
    if text.get("num_experts") or text.get("num_local_experts"):
        raise ConfigError(
            f"{files.directory} is a mixture of experts, for which this arithmetic is wrong; take a dense model"
        )
    kv_heads = int(text.get("num_key_value_heads") or heads)
    head_size = int(text.get("head_dim") or width // heads)
    tied = bool(text.get("tie_word_embeddings", root.get("tie_word_embeddings", False)))
    if root is not text and "tie_word_embeddings" in root:
        tied = bool(root["tie_word_embeddings"])
    block = width * head_size * (heads + 2 * kv_heads) + heads * head_size * width + 3 * width * inner + 2 * width
    vision = _vision(root["vision_config"], files.family, width) if files.has_vision else None
    text_parameters = layers * block + width
    embedding = vocabulary * width
    if files.tensors and not root.get("quantization_config"):
        counts = {name: tensor.elements for name, tensor in files.tensors.items()}
        seen = sum(count for name, count in counts.items() if ".visual." in f".{name}" or "vision" in name)
        tables = sum(count for name, count in counts.items() if name.endswith("embed_tokens.weight"))
        outputs = sum(count for name, count in counts.items() if name.endswith("lm_head.weight"))
        text_parameters, embedding, tied = sum(counts.values()) - seen - tables - outputs, tables, outputs == 0
        if vision is not None:
            vision = Vision(
                seen,
                vision.cell_px,
                vision.merge,
                vision.layers,
                vision.width,
                vision.full_layers,
                vision.window_patches,
            )
    return ModelShape(
        name=files.name,
        family=files.family,
        text_parameters=text_parameters,
        embedding_parameters=embedding,
        head_parameters=vocabulary * width,
        tied=tied,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        vision=vision,
        stored_bytes=sum(tensor.nbytes for tensor in files.tensors.values()),
    )


def _vision(config: Mapping[str, Any], family: str, text_width: int) -> Vision:
    """The three Qwen-VL encoders differ in their block and in who sees what.

    Qwen2-VL: plain MLP of ratio 4, all attention full. Qwen2.5-VL: gated MLP, windows of 112 pixels but in four layers.
    Qwen3-VL: plain MLP of given width, full attention, three further mergers (DeepStack), a learnt position table.
    """
    layers = int(config.get("depth", 32))
    patch = int(config.get("patch_size", 14))
    merge = int(config.get("spatial_merge_size", 2))
    if family == "qwen2_vl":
        width = int(config.get("embed_dim", 1280))
        inner, matrices = int(width * float(config.get("mlp_ratio", 4))), 2
    else:
        width = int(config.get("hidden_size", 1280))
        inner, matrices = int(config.get("intermediate_size", 3420)), 3 if family == "qwen2_5_vl" else 2
    out = int(config.get("out_hidden_size", text_width))
    channels, frames = (
        int(config.get("in_channels", config.get("in_chans", 3))),
        int(config.get("temporal_patch_size", 2)),
    )
    merged = width * merge**2
    merger = merged * merged + merged * out
    deepstack = len(config.get("deepstack_visual_indexes", ()))
    parameters = (
        layers * (4 * width * width + matrices * width * inner)
        + channels * frames * patch * patch * width
        + merger * (1 + deepstack)
        + int(config.get("num_position_embeddings", 0)) * width
    )
    full, window = layers, 0
    if family == "qwen2_5_vl":
        full = len(config.get("fullatt_block_indexes", ()))
        window = (int(config.get("window_size", 112)) // patch) ** 2
    return Vision(parameters, patch * merge, merge, layers, width, full, window)


def floor_of(
    shape: ModelShape,
    device: Device,
    *,
    weights: Weights = "bf16",
    frame: tuple[int, int] = (480, 854),
    max_pixels: int | None = 262_144,
    new_text_tokens: int = 128,
    cached_tokens: int = 1024,
) -> Floor:
    """The least time of one request.

    Args:
        shape: The model.
        device: The GPU.
        weights: How its blocks are stored.
        frame: Height and width of a picture as the source gives it.
        max_pixels: What it is scaled down to; None keeps it.
        new_text_tokens: Of the prompt that no cache holds.
        cached_tokens: Of the prompt that the prefix cache holds.
    """
    rate = device.bf16_per_s if weights != "fp8" else device.fp8_per_s
    image = shape.vision.tokens(*frame, max_pixels) if shape.vision else 0
    new = image + new_text_tokens
    bound: dict[str, str] = {}

    def part(name: str, nbytes: float, operations: float, per_s: float) -> float:
        memory_s, arithmetic_s = nbytes / device.bytes_per_s, operations / per_s
        bound[name] = "memory" if memory_s >= arithmetic_s else "arithmetic"
        return max(memory_s, arithmetic_s)

    vision_s = 0.0
    if shape.vision is not None:  # never quantised by vLLM, so at the 16-bit rate
        vision_s = part("vision", shape.vision.parameters * 2, shape.vision.operations(image), device.bf16_per_s)
    prefill_s = part(
        "prefill", shape.read_bytes(weights, cached_tokens), shape.prefill_operations(new, cached_tokens), rate
    )
    context = cached_tokens + new
    decode_s = part("decode", shape.read_bytes(weights, context), shape.prefill_operations(1, context), rate)
    return Floor(image, new, vision_s, prefill_s, decode_s, bound)


def present_device() -> Device | None:
    """The first GPU of this machine with its data sheet; None where there is no GPU or none that is known here."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return device_in(answer)


def device_in(answer: str) -> Device | None:
    """The device of `name, MiB` as nvidia-smi writes it, with the memory that this card really has."""
    name, _, mebibytes = answer.strip().partition("\n")[0].rpartition(",")
    squeezed = name.lower().replace(" ", "").replace("-", "").replace("geforce", "").replace("generation", "")
    # The longest name first: an L40S is no L4.
    for known in sorted(DEVICES.values(), key=lambda device: -len(device.name)):
        if known.name in squeezed:
            memory = float(mebibytes) * 2**20 if mebibytes.strip().isdigit() else known.memory_bytes
            return Device(known.name, memory, known.bytes_per_s, known.bf16_per_s, known.fp8_per_s)
    return None
