from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from stream_agent.cli import main
from stream_agent.errors import ConfigError
from stream_agent.planner.model_cost import DEVICES, Vision, device_in, floor_of, present_device, shape_of
from stream_agent.planner.model_files import ModelFiles, Tensor
from stream_agent.planner.model_report import examine_model

EYES_25 = {
    "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "patch_size": 14, "spatial_merge_size": 2,
    "temporal_patch_size": 2, "in_chans": 3, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
}  # fmt: skip
QWEN25_VL_7B: dict[str, Any] = {
    "model_type": "qwen2_5_vl", "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "intermediate_size": 18944, "vocab_size": 152064, "tie_word_embeddings": False,
    "vision_config": {**EYES_25, "out_hidden_size": 3584},
}  # fmt: skip
QWEN25_VL_3B: dict[str, Any] = {
    "model_type": "qwen2_5_vl", "hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16,
    "num_key_value_heads": 2, "intermediate_size": 11008, "vocab_size": 151936, "tie_word_embeddings": True,
    "vision_config": {**EYES_25, "out_hidden_size": 2048},
}  # fmt: skip
QWEN2_VL_7B: dict[str, Any] = {
    **QWEN25_VL_7B, "model_type": "qwen2_vl",
    "vision_config": {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "patch_size": 14, "spatial_merge_size": 2,
                      "hidden_size": 3584, "in_chans": 3},
}  # fmt: skip
QWEN3_VL_8B: dict[str, Any] = {
    "model_type": "qwen3_vl", "tie_word_embeddings": False,
    "text_config": {"hidden_size": 4096, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
                    "head_dim": 128, "intermediate_size": 12288, "vocab_size": 151936},
    "vision_config": {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "patch_size": 16,
                      "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3, "out_hidden_size": 4096,
                      "num_position_embeddings": 2304, "deepstack_visual_indexes": [8, 16, 24]},
}  # fmt: skip
SMOLLM2_135M: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    "intermediate_size": 1536, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip


def files_of(config: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> ModelFiles:
    return ModelFiles(Path("/models/some"), config, tensors or {})


@pytest.mark.parametrize(
    ("config", "billions"),
    [(QWEN25_VL_7B, 8.29), (QWEN25_VL_3B, 3.75), (QWEN2_VL_7B, 8.29), (QWEN3_VL_8B, 8.77), (SMOLLM2_135M, 0.1345)],
)
def test_parameters_from_the_configuration_are_those_of_the_published_weights(
    config: dict[str, Any], billions: float
) -> None:
    assert shape_of(files_of(config)).parameters / 1e9 == pytest.approx(billions, rel=0.003)


def test_image_tokens_are_those_that_the_processor_makes() -> None:
    """854x480 with Qwen2.5-VL's own processor: 510, 312, 153 and 60 tokens."""
    vision = shape_of(files_of(QWEN25_VL_7B)).vision
    assert vision is not None
    assert [vision.tokens(480, 854, budget) for budget in (None, 262_144, 131_072, 52_884)] == [510, 312, 153, 60]


def test_keys_and_values_per_token() -> None:
    assert shape_of(files_of(QWEN25_VL_7B)).kv_bytes_per_token() == 2 * 28 * 4 * 128 * 2
    assert shape_of(files_of(QWEN3_VL_8B)).kv_bytes_per_token() == 2 * 36 * 8 * 128 * 2


def test_weights_shrink_with_their_format_but_eyes_and_tables_do_not() -> None:
    shape = shape_of(files_of(QWEN25_VL_7B))
    assert shape.weight_bytes("bf16") == pytest.approx(16.58e9, rel=0.003)
    assert shape.vision is not None
    kept = 2 * (shape.parameters - shape.text_parameters)
    assert shape.weight_bytes("fp8") == pytest.approx(kept + shape.text_parameters)
    assert shape.weight_bytes("int4") == pytest.approx(kept + shape.text_parameters * (4 + 20 / 128) / 8)


def test_the_floor_of_a_decode_step_is_the_weights_over_the_bandwidth() -> None:
    shape = shape_of(files_of(QWEN25_VL_7B))
    floor = floor_of(shape, DEVICES["h200"], max_pixels=262_144, new_text_tokens=128, cached_tokens=0)
    assert floor.bound == {"vision": "arithmetic", "prefill": "arithmetic", "decode": "memory"}
    weights = 2 * (shape.text_parameters + shape.head_parameters)
    assert floor.decode_s == pytest.approx((weights + 440 * 57344) / 4.8e12)
    assert (floor.image_tokens, floor.new_tokens) == (312, 440)
    linear = 2 * shape.text_parameters * 440 / 989e12
    assert linear < floor.prefill_s < 1.1 * linear
    assert floor.rank_s == floor.vision_s + floor.prefill_s


def test_a_cached_prompt_costs_its_attention_but_not_its_layers() -> None:
    shape = shape_of(files_of(QWEN25_VL_7B))
    short, long = shape.prefill_operations(100, 0), shape.prefill_operations(100, 4000)
    assert short < long < 1.15 * short
    assert shape.prefill_operations(4100, 0) > 30 * short


def test_windows_make_wide_pictures_cheaper() -> None:
    windowed = Vision(0, 28, 2, 32, 1280, 4, 64)
    full = Vision(0, 28, 2, 32, 1280, 32, 0)
    assert full.operations(312) / windowed.operations(312) == pytest.approx(32 * 1248 / (4 * 1248 + 28 * 64))


def test_a_model_without_eyes_has_no_picture_to_read() -> None:
    floor = floor_of(shape_of(files_of(SMOLLM2_135M)), DEVICES["l4"])
    assert (floor.image_tokens, floor.vision_s) == (0, 0.0)
    assert "vision" not in floor.bound


def test_headers_of_weights_are_counted_before_the_configuration_is_believed() -> None:
    tensors = {
        "visual.blocks.0.weight": Tensor("BF16", (10, 10)),
        "model.embed_tokens.weight": Tensor("BF16", (1000, 8)),
        "model.layers.0.mlp.weight": Tensor("BF16", (30, 10)),
    }
    shape = shape_of(files_of({**QWEN25_VL_7B, "hidden_size": 8, "vocab_size": 1000}, tensors))
    assert shape.parameters == 8400
    assert shape.vision is not None
    assert (shape.vision.parameters, shape.text_parameters, shape.tied) == (100, 300, True)
    assert shape.stored_bytes == 16800


@pytest.mark.parametrize("key", ["hidden_size", "vocab_size"])
def test_a_configuration_that_says_too_little_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        shape_of(files_of({name: value for name, value in SMOLLM2_135M.items() if name != key}))
    with pytest.raises(ConfigError, match="mixture of experts"):
        shape_of(files_of({**SMOLLM2_135M, "num_experts": 128}))


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ("NVIDIA H200, 143771\n", "h200"),
        ("NVIDIA L40S, 46068", "l40s"),
        ("NVIDIA L4, 23034", "l4"),
        ("NVIDIA A100-SXM4-80GB, 81920\nNVIDIA L4, 1", "a100"),
        ("NVIDIA GeForce RTX 4090, 24564", "rtx4090"),
        ("NVIDIA RTX 6000 Ada Generation, 49140", "rtx6000ada"),
        ("Some Other Card, 4096", None),
        ("", None),
    ],
)
def test_the_card_is_known_by_what_nvidia_smi_calls_it(answer: str, name: str | None) -> None:
    device = device_in(answer)
    assert (device.name if device else None) == name


def test_no_gpu_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert present_device() is None
    (tmp_path / "config.json").write_text(json.dumps(QWEN25_VL_7B))
    file = io.StringIO()
    assert examine_model(tmp_path, console=Console(file=file, width=100)) == 0
    assert "name one for memory and floor: --device" in file.getvalue()


def test_the_command_prints_memory_image_tokens_and_floor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    (tmp_path / "config.json").write_text(json.dumps(QWEN25_VL_7B))
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--model", str(tmp_path), "--device", "h200"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "8.292 billion parameters" in printed
    assert "510 at full size, 312 at 262,144 px" in printed
    assert "rank ms" in printed


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["--model", "/nosuch"], 2, "is no local directory"),
        (["--model", "{here}", "--device", "abacus"], 2, "choose one of b200, h200"),
        (["--model", "{here}", "--frame", "big"], 2, "write WIDTHxHEIGHT"),
        (["--device", "h200"], 2, "name its folder with --model DIR"),
    ],
)
def test_mistakes_are_one_line_each(
    arguments: list[str], code: int, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2_135M))
    with pytest.raises(SystemExit) as ended:
        main(["doctor", *(argument.format(here=tmp_path) for argument in arguments)])
    assert ended.value.code == code
    assert complaint in capsys.readouterr().err
