from __future__ import annotations

import json
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from stream_agent.errors import ConfigError
from stream_agent.planner.model_files import MANIFEST, look_through, read_header, verified, write_manifest

TENSORS = {"model.embed_tokens.weight": ("BF16", [4, 8]), "model.norm.weight": ("F32", [8])}


def write_safetensors(path: Path, tensors: dict[str, tuple[str, list[int]]]) -> None:
    sizes = {"BF16": 2, "F32": 4}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        length = sizes[dtype]
        for axis in shape:
            length *= axis
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + length]}
        end += length
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "qwen2", "hidden_size": 8}')
    (folder / "tokenizer.json").write_text("{}")
    write_safetensors(folder / "model.safetensors", TENSORS)
    return folder


def test_a_sound_directory_is_read_without_its_weights(model: Path) -> None:
    files = look_through(model)
    assert (files.name, files.family, files.has_vision) == ("tiny", "qwen2", False)
    assert sum(tensor.elements for tensor in files.tensors.values()) == 40
    assert sum(tensor.nbytes for tensor in files.tensors.values()) == 96


def test_a_name_on_a_hub_is_refused_and_nothing_is_fetched() -> None:
    with pytest.raises(ConfigError, match="is no local directory; models are never fetched"):
        look_through(Path("Qwen/Qwen2.5-VL-7B-Instruct"))


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "processor_config.json"])
def test_code_of_its_own_is_refused_wherever_it_is_asked_for(model: Path, name: str) -> None:
    tree = json.loads((model / name).read_text()) if (model / name).is_file() else {}
    (model / name).write_text(json.dumps({**tree, "nested": [{"auto_map": {"AutoModel": "evil.Model"}}]}))
    with pytest.raises(ConfigError, match=r"asks for code of its own \(auto_map\)"):
        look_through(model)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "optimizer.pt", "training_args.bin", "sub/weights.pkl"])
def test_a_pickle_is_refused_also_beside_safetensors(model: Path, name: str) -> None:
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_bytes(b"\x80\x04.")
    with pytest.raises(ConfigError, match="may hold a pickle"):
        look_through(model)


def test_other_weight_formats_are_named_with_the_remedy(model: Path) -> None:
    (model / "model.safetensors").rename(model / "model.gguf")
    with pytest.raises(ConfigError, match=r"convert model\.gguf with"):
        look_through(model)


@pytest.mark.parametrize("broken", ["short", "long", "no header", "json", "overlap", "dtype", "empty"])
def test_a_broken_weight_file_is_told_before_it_is_mapped(model: Path, broken: str) -> None:
    path = model / "model.safetensors"
    whole = path.read_bytes()
    header = json.loads(whole[8 : 8 + struct.unpack("<Q", whole[:8])[0]])
    match broken:
        case "short":
            path.write_bytes(whole[:-1])
        case "long":
            path.write_bytes(whole + b"\0")
        case "no header":
            path.write_bytes(b"\xff" * 64)
        case "empty":
            path.write_bytes(b"")
        case "json":
            path.write_bytes(struct.pack("<Q", 4) + b"{{{{" + bytes(96))
        case "overlap":
            header["model.norm.weight"]["data_offsets"] = [0, 32]
        case "dtype":
            header["model.norm.weight"]["dtype"] = "PY"
    if broken in ("overlap", "dtype"):
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(96))
    with pytest.raises(ConfigError, match="copy the file again"):
        read_header(path)


def test_shards_are_those_of_the_index(model: Path) -> None:
    (model / "model.safetensors").unlink()
    shard = model / "model-00001-of-00001.safetensors"
    write_safetensors(shard, TENSORS)
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(TENSORS, shard.name)}))
    assert set(look_through(model).tensors) == set(TENSORS)

    index.write_text(json.dumps({"weight_map": {**dict.fromkeys(TENSORS, shard.name), "more": shard.name}}))
    with pytest.raises(ConfigError, match="names more, which no file holds"):
        look_through(model)
    for evil in ("../model.safetensors", "/etc/passwd", 7):
        index.write_text(json.dumps({"weight_map": {"a": evil}}))
        with pytest.raises(ConfigError, match="does not map tensors to safetensors files beside it"):
            look_through(model)
    index.write_text(json.dumps({"weight_map": {"a": "absent.safetensors"}}))
    with pytest.raises(ConfigError, match=r"lacks absent\.safetensors"):
        look_through(model)


def test_the_manifest_is_what_sha256sum_checks(model: Path) -> None:
    assert not verified(model).pinned
    digest = write_manifest(model)
    assert verified(model).pinned
    assert verified(model, digest=digest).digest == digest
    subprocess.run(["sha256sum", "--check", "--strict", MANIFEST], cwd=model, check=True, capture_output=True)
    assert write_manifest(model) == digest


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda folder: (folder / "tokenizer.json").write_text('{"a": 1}'), r"tokenizer\.json is not the file it was"),
        (lambda folder: (folder / "chat_template.jinja").write_text("evil"), r"chat_template\.jinja was added"),
        (lambda folder: (folder / "extra.txt").unlink(), r"extra\.txt is gone"),
        (lambda folder: (folder / MANIFEST).write_text("abc"), "is no line of sha256sum"),
    ],
)
def test_whatever_changed_since_the_manifest_is_named(model: Path, change: Any, complaint: str) -> None:
    (model / "extra.txt").write_text("x")
    write_manifest(model)
    change(model)
    with pytest.raises(ConfigError, match=complaint):
        verified(model)


def test_an_exchanged_model_with_a_manifest_of_its_own_has_another_digest(model: Path) -> None:
    digest = write_manifest(model)
    (model / MANIFEST).unlink()
    (model / "tokenizer.json").write_text('{"exchanged": true}')
    write_manifest(model)
    with pytest.raises(ConfigError, match=f"the configuration expects {digest}"):
        verified(model, digest=digest)
    with pytest.raises(ConfigError, match="expects abc"):
        verified(model, digest="abc")


def test_a_directory_without_weights_serves_only_arithmetic(model: Path) -> None:
    (model / "model.safetensors").unlink()
    assert look_through(model, weights=False).tensors == {}
    with pytest.raises(ConfigError, match=r"has neither model\.safetensors nor"):
        look_through(model)
    (model / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="holds a list, not an object"):
        look_through(model, weights=False)
