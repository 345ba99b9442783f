"""A LoRA adapter's folder, looked through before an engine reads it: safetensors alone, a rank engines take, sums that agree."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Final

from stream_agent.errors import ConfigError
from stream_agent.planner.model_files import MANIFEST

LARGEST_RANK: Final = 64
"""vLLM takes room for adapters of this rank."""

WEIGHTS: Final = "adapter_model.safetensors"
"""As peft names it."""

_SETTINGS = "adapter_config.json"
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib"}


def adapter_directory(path: Path) -> Path:
    """Its absolute path.

    Raises:
        ConfigError: It is none, holds a pickle, has too large a rank, or differs from the sums beside it.
    """
    settings = path / _SETTINGS
    if not (path / WEIGHTS).is_file() or not settings.is_file():
        raise ConfigError(f"adapter {path} has no {WEIGHTS} with {settings.name}; save it with peft's save_pretrained")
    pickled = next((found for found in sorted(path.rglob("*")) if found.suffix in _PICKLES), None)
    if pickled is not None:
        raise ConfigError(f"{pickled} may hold a pickle, which runs code when it is read; delete it")
    try:
        rank = json.loads(settings.read_text(encoding="utf-8")).get("r")
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"{settings} is not readable JSON ({error}); copy it again") from error
    if not isinstance(rank, int) or not 0 < rank <= LARGEST_RANK:
        raise ConfigError(f"{settings}: r={rank} is not between 1 and {LARGEST_RANK}; train a smaller adapter")
    _compare(path)
    return path.resolve()


def _compare(path: Path) -> None:
    manifest = path / MANIFEST
    if not manifest.is_file():
        return
    for line in manifest.read_text(encoding="utf-8").splitlines():
        wanted, _, name = line.partition("  ")
        file = path / name
        if Path(name).name != name or not file.is_file():
            raise ConfigError(f"{manifest}: {name} is not there; copy the adapter again")
        if hashlib.sha256(file.read_bytes()).hexdigest() != wanted:
            raise ConfigError(f"{file} is not the file it was since {MANIFEST} was written; copy the adapter again")
