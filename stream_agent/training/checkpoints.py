"""Where a training's checkpoints lie, and from which one it goes on."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Final

from stream_agent.config import Section
from stream_agent.errors import ConfigError

SUFFIX: Final = ".checkpoints"
"""Appended to the name of the folder that is written."""

_CONFIG: Final = "training.json"
_LIBRARIES: Final = ("torch", "transformers", "trl", "peft")


def checkpoints_beside(out: Path, config: Section) -> Path:
    """The folder for checkpoints of what is written to `out`; those of another configuration are not gone on from.

    Raises:
        ConfigError: There are such.
    """
    folder = out.with_name(out.name + SUFFIX)
    written = folder / _CONFIG
    wanted = config.model_dump_json()
    begun = (
        written.is_file() and last_checkpoint(folder) is not None
    )  # a model that did not load leaves nothing to go on from
    if begun and written.read_text(encoding="utf-8") != wanted:
        raise ConfigError(
            f"{folder} holds checkpoints of another configuration; remove it to begin anew, or name another --out"
        )
    folder.mkdir(parents=True, exist_ok=True)
    written.write_text(wanted, encoding="utf-8")
    return folder


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is whole: its state is written last, and a kill may leave half of that, too."""
    found = [path for path in folder.glob("checkpoint-*") if _whole(path / "trainer_state.json")]
    return max(found, key=lambda path: int(path.name.partition("-")[2]), default=None)


def _whole(state: Path) -> bool:
    try:
        json.loads(state.read_bytes())
    except (FileNotFoundError, ValueError):
        return False
    return True


def versions() -> dict[str, str]:
    """Of the libraries that decide what a training gives."""
    return {name: importlib.metadata.version(name) for name in _LIBRARIES}
