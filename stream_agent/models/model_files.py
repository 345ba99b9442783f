"""What a candidate is: a folder with a statistical model or a LoRA adapter, known by the sha256 of the files that answer.

A statistical model is `planner.json` with or without `ensemble.json`, as in a procedure pack; an adapter is what peft's
`save_pretrained` writes. Only these files decide an answer, so only they name the model; a model card may be written later.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, TypeAlias

from stream_agent.errors import ConfigError

Kind: TypeAlias = Literal["statistical", "adapter"]

REQUIRED: Final[Mapping[Kind, tuple[str, ...]]] = {
    "statistical": ("planner.json",),
    "adapter": ("adapter_config.json", "adapter_model.safetensors"),
}
OPTIONAL: Final[Mapping[Kind, tuple[str, ...]]] = {"statistical": ("ensemble.json",), "adapter": ()}
DIGITS: Final = 12
_BLOCK: Final = 1 << 22


def kind_of(folder: Path) -> Kind:
    """Whether the folder holds a statistical model or an adapter.

    Raises:
        ConfigError: It holds neither, or both.
    """
    found = [kind for kind, names in REQUIRED.items() if (folder / names[0]).is_file()]
    if len(found) == 1:
        return found[0]
    held = "both kinds of model" if found else "no model"
    raise ConfigError(
        f"{folder} holds {held}; name a folder with planner.json (and ensemble.json), or one that peft saved an adapter in"
    )


def model_files(folder: Path) -> dict[str, str]:
    """sha256 of every file that decides the model's answers, by name.

    Raises:
        ConfigError: The folder holds no model, or a file of it cannot be read.
    """
    kind = kind_of(folder)
    for name in REQUIRED[kind]:
        if not (folder / name).is_file():
            raise ConfigError(f"{folder} has no {name}; copy the model's folder again, or save it with save_pretrained")
    names = [*REQUIRED[kind], *(name for name in OPTIONAL[kind] if (folder / name).is_file())]
    return {name: file_sha256(folder / name) for name in names}


def digest_of(kind: Kind, files: Mapping[str, str]) -> str:
    """The model's name in lists and plans; empty for no files, which is a base model without an adapter.

    A statistical model is named as in `Plan.hashes.model`, file by file; an adapter as in `Plan.hashes.adapter`.
    """
    if not files:
        return ""
    if kind == "statistical":
        ordered = [name for name in (*REQUIRED[kind], *OPTIONAL[kind]) if name in files]
        return "+".join(files[name][:DIGITS] for name in ordered)
    listed = "".join(f"{files[name]}  {name}\n" for name in sorted(files))
    return hashlib.sha256(listed.encode()).hexdigest()[:DIGITS]


def file_sha256(path: Path) -> str:
    """The file's sha256 in hex.

    Raises:
        ConfigError: It cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    return digest.hexdigest()
