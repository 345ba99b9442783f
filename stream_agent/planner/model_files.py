"""A model's files: one local directory, safetensors only, no code of its own, sha256 sums that can be pinned.

A directory is data: nothing in it is run. What would need running (an `auto_map`, pickled weights) is refused, and so is a
weight file whose length is not what its header says, before any engine maps it.

The manifest is `manifest.sha256` in the format of sha256sum, so `sha256sum -c manifest.sha256` checks it, too. It guards against
a broken copy; against an exchanged one guards its digest, named in the configuration of whoever loads the model.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stream_agent.errors import ConfigError

MANIFEST = "manifest.sha256"

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "DO_NOT_TRACK": "1",
}
"""Environment under which no library asks a hub for anything or reports home."""

DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
}  # fmt: skip
"""Bits of one element by safetensors' own names."""

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib"}
_OTHER_WEIGHTS = {".gguf", ".h5", ".msgpack", ".onnx", ".tflite"}
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_LARGEST_HEADER = 100_000_000  # safetensors' own limit
_BLOCK = 1 << 22


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor as its file's header describes it."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return self.elements * DTYPE_BITS[self.dtype] // 8


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model directory that was looked through.

    Attributes:
        directory: Absolute path.
        config: `config.json`.
        tensors: Every tensor of the weights by name; empty for a directory without weights, which only cost arithmetic may use.
        digest: First twelve hex digits of the sha256 of the manifest; empty until `verified` computed it.
        pinned: Whether the sums were checked against a manifest in the directory.
    """

    directory: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    digest: str = ""
    pinned: bool = False

    @property
    def name(self) -> str:
        """What the model is called in plans and messages."""
        return self.directory.name

    @property
    def family(self) -> str:
        """`model_type` of the configuration, for example `qwen2_5_vl`."""
        return str(self.config.get("model_type", ""))

    @property
    def has_vision(self) -> bool:
        """Whether the configuration describes eyes; that they work is for the backend to prove."""
        return isinstance(self.config.get("vision_config"), dict)


def go_offline() -> None:
    """Set the offline environment; call it before transformers, huggingface_hub or vllm is imported."""
    os.environ.update(OFFLINE)


def look_through(directory: Path, *, weights: bool = True) -> ModelFiles:
    """The model in a local directory, after everything that can be told without reading its weights was checked.

    Raises:
        ConfigError: It is no local directory, has no usable configuration, tokenizer or weights, or would need code of its own.
    """
    if not directory.is_dir():
        raise ConfigError(
            f"model {directory} is no local directory; models are never fetched: copy it here and name its folder"
        )
    directory = directory.resolve()
    config = _json(directory / "config.json")
    for path in sorted(directory.glob("*.json")):
        if not path.name.endswith(".index.json") and path.name != "tokenizer.json":
            _refuse_code(path, _json(path))
    for path in sorted(directory.rglob("*")):
        if path.suffix in _PICKLES:
            raise ConfigError(
                f"{path} may hold a pickle, which runs code when it is read; keep safetensors only and delete it"
            )
    if not weights and not any(directory.glob("*.safetensors")):
        return ModelFiles(directory, config, {})
    if not any((directory / name).is_file() for name in _TOKENIZERS) and weights:
        raise ConfigError(f"{directory} has no tokenizer.json; copy the tokenizer's files beside config.json")
    return ModelFiles(directory, config, _tensors(directory))


def verified(directory: Path, *, digest: str | None = None) -> ModelFiles:
    """As `look_through`, with every file's sha256 computed and checked against the manifest where there is one.

    Args:
        directory: The model's folder.
        digest: The digest that the caller was told to expect, in full or its first twelve or more digits; None accepts any.

    Raises:
        ConfigError: Also when a sum differs, a file is missing or not in the manifest, or the digest is another one.
    """
    files = look_through(directory)
    sums = _sums(files.directory)
    written = files.directory / MANIFEST
    pinned = written.is_file()
    if pinned:
        _compare(files.directory, _read_manifest(written), sums)
    found = hashlib.sha256(_manifest_text(sums).encode()).hexdigest()
    if digest is not None and (len(digest) < 12 or not found.startswith(digest.lower())):
        raise ConfigError(
            f"{directory} has the digest {found[:12]}, the configuration expects {digest}; "
            "name the model that was meant, or change the digest after making sure where the files are from"
        )
    return ModelFiles(files.directory, files.config, files.tensors, found[:12], pinned)


def write_manifest(directory: Path) -> str:
    """Write the sums of a directory's files into its manifest; the manifest's digest.

    Raises:
        ConfigError: The directory is no model that may be loaded, or has a manifest that says otherwise.
    """
    files = verified(directory)
    path = files.directory / MANIFEST
    if not path.is_file():
        unfinished = path.with_suffix(".part")
        unfinished.write_text(_manifest_text(_sums(files.directory)), encoding="utf-8")
        unfinished.replace(path)
    return files.digest


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, from its header alone.

    Raises:
        ConfigError: It is no safetensors file, or not as long as its header says.
    """
    remedy = "copy the file again from where it came from"
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else _LARGEST_HEADER + 1
        if length > min(_LARGEST_HEADER, size - 8):
            raise ConfigError(f"{path} is no safetensors file: no header at its start; {remedy}")
        text = file.read(length)
    try:
        header = json.loads(text)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        tensors = {
            str(name): Tensor(str(entry["dtype"]), tuple(int(axis) for axis in entry["shape"]))
            for name, entry in entries.items()
        }
        spans = sorted(tuple(map(int, entry["data_offsets"])) for entry in entries.values())
        sizes = {name: tensor.nbytes for name, tensor in tensors.items()}
        fits = all(
            sizes[name] == int(entry["data_offsets"][1]) - int(entry["data_offsets"][0])
            for name, entry in entries.items()
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ConfigError(
            f"{path} has a header that is not as safetensors writes it ({type(error).__name__}: {error}); {remedy}"
        ) from error
    end = 0
    for first, last in spans:
        fits, end = fits and first == end and last >= first, last
    if not fits or 8 + length + end != size:
        raise ConfigError(f"{path} holds {size} bytes, its header describes {8 + length + end}; {remedy}")
    return tensors


def _tensors(directory: Path) -> dict[str, Tensor]:
    index = directory / _INDEX
    if index.is_file():
        shards = _json(index).get("weight_map")
        if not isinstance(shards, dict) or not all(
            isinstance(shard, str) and Path(shard).name == shard and shard.endswith(".safetensors")
            for shard in shards.values()
        ):
            raise ConfigError(f"{index} does not map tensors to safetensors files beside it; copy it again")
        tensors: dict[str, Tensor] = {}
        for shard in sorted(set(shards.values())):
            if not (directory / shard).is_file():
                raise ConfigError(f"{directory} lacks {shard}, which its index names; copy the rest of the model")
            tensors |= read_header(directory / shard)
        absent = sorted(set(shards) - set(tensors))
        if absent:
            raise ConfigError(f"{index} names {absent[0]}, which no file holds; copy index and weights of one model")
        return tensors
    if (directory / _SINGLE).is_file():
        return read_header(directory / _SINGLE)
    other = next((path.name for path in sorted(directory.iterdir()) if path.suffix in _OTHER_WEIGHTS), None)
    remedy = (
        f"convert {other} with transformers' save_pretrained" if other else f"copy the weights beside {directory.name}/"
    )
    raise ConfigError(f"{directory} has neither {_SINGLE} nor {_INDEX}; {remedy}")


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist; name the folder that holds config.json and the weights") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not readable JSON ({error}); copy it again") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds a {type(value).__name__}, not an object; copy it again")
    return value


def _refuse_code(path: Path, tree: object) -> None:
    """An `auto_map` (or a custom pipeline) anywhere in a configuration asks for Python out of the directory."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            for key in ("auto_map", "custom_pipelines", "trust_remote_code"):
                if node.get(key):
                    raise ConfigError(
                        f"{path} asks for code of its own ({key}); only models that transformers and vLLM know are loaded: "
                        "take a release of the model without it"
                    )
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)


def _sums(directory: Path) -> dict[str, str]:
    """sha256 of every file by its path within the directory; hashing releases the GIL, so files go side by side."""
    paths = [
        path
        for path in sorted(directory.rglob("*"))
        if path.is_file()
        and path.name not in (MANIFEST, Path(MANIFEST).with_suffix(".part").name)
        and not any(part.startswith(".") for part in path.relative_to(directory).parts)
    ]
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return dict(
            zip((path.relative_to(directory).as_posix() for path in paths), pool.map(_sha256, paths), strict=True)
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _manifest_text(sums: Mapping[str, str]) -> str:
    return "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))


def _read_manifest(path: Path) -> dict[str, str]:
    sums: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        digest, space, name = line.partition("  ")
        if not space or len(digest) != 64 or not name:
            raise ConfigError(f"{path}:{number} is no line of sha256sum; write the manifest again")
        sums[name] = digest
    return sums


def _compare(directory: Path, written: Mapping[str, str], found: Mapping[str, str]) -> None:
    for name in sorted(set(written) | set(found)):
        if written.get(name) == found.get(name):
            continue
        if name not in found:
            what = f"{name} is gone"
        elif name not in written:
            what = f"{name} was added"
        else:
            what = f"{name} is not the file it was"
        raise ConfigError(
            f"{directory}: {what} since {MANIFEST} was written; copy the model again, or delete the manifest if you changed it"
        )
