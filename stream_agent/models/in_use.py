"""What a run takes from the registry: the procedure pack with the promoted statistical model, the planner with the adapter.

Everything is read once, at the start, and its sums are checked: a run keeps what it began with whatever is promoted meanwhile.
Which model that was is in every plan (`Plan.hashes`), not in the configuration, which only says where to look.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from stream_agent.config import PROMOTED, ModelsConfig, PlannerConfig, ProcedureConfig
from stream_agent.errors import ConfigError
from stream_agent.models.model_files import DIGITS, Kind
from stream_agent.models.registry import Registry, Version
from stream_agent.procedure import ProcedurePack, load_pack

_LOADED_HERE: Final = ("transformers", "vllm")
"""Kinds of planner that load the adapter themselves; a server was told by whoever started it."""


def pack_in_use(models: ModelsConfig, procedure: ProcedureConfig) -> ProcedurePack:
    """The configured pack with the statistical model that is in use; the pack's own where none was promoted.

    Raises:
        ConfigError: Pack, registry or model is damaged, or there is no such version.
    """
    pack = load_pack(procedure.pack)
    found = _in_use(models, "statistical", pack.name, models.statistical)
    return pack if found is None else load_pack(procedure.pack, fitted=found[0])


def pack_of_session(models: ModelsConfig, procedure: ProcedureConfig, digest: str) -> ProcedurePack:
    """The pack with the model that a session of this pack digest had; with the one in use when none fits.

    Raises:
        ConfigError: As `pack_in_use`.
    """
    if models.registry is not None and models.statistical is None:
        own = load_pack(procedure.pack)
        if own.digest() == digest:
            return own
        registry = Registry(models.registry)
        for version in reversed(registry.slot("statistical", own.name).versions):
            folder = registry.version_folder("statistical", own.name, version.number)
            if folder.is_dir():
                pack = load_pack(procedure.pack, fitted=folder)
                if pack.digest() == digest:
                    return pack
    return pack_in_use(models, procedure)


def planner_in_use(models: ModelsConfig, planner: PlannerConfig, procedure: str) -> PlannerConfig:
    """The planner's section with the adapter that is in use in the place of `adapter: promoted`, named by its digest.

    Without a promoted adapter it is the base model; `Plan.hashes.adapter` is empty then.

    Args:
        models: Which registry, and which version if not the one in use.
        planner: As configured.
        procedure: The procedure pack's name.

    Raises:
        ConfigError: The registry or the adapter is damaged, or the adapter belongs to another base model.
    """
    if planner.adapter != PROMOTED:
        return planner
    found = _in_use(models, "adapter", procedure, models.adapter)
    if found is None:
        return planner.model_copy(update={"adapter": ""})
    folder, version = found
    if planner.kind in _LOADED_HERE and not (planner.digest or "").startswith(version.base):
        raise ConfigError(
            f"planner.digest={planner.digest or ''} is not the base model of the promoted adapter {version.digest}, which is "
            f"{version.base}; set planner.model to that model and planner.digest={version.base}"
        )
    adapters = planner.adapters | {version.digest: folder.resolve()}
    return planner.model_copy(update={"adapters": adapters, "adapter": version.digest})


def describe(models: ModelsConfig, procedure: str) -> str:
    """What of the registry is in use, in a line; empty without a registry.

    Raises:
        ConfigError: The registry is damaged.
    """
    if models.registry is None:
        return ""
    parts = []
    kinds: tuple[tuple[Kind, int | None, str], ...] = (
        ("statistical", models.statistical, "the pack's own"),
        ("adapter", models.adapter, "none"),
    )
    for kind, pinned, without in kinds:
        found = _in_use(models, kind, procedure, pinned)
        parts.append(f"{kind} {without if found is None else f'version {found[1].number} ({found[1].digest})'}")
    return f"{models.registry}: {', '.join(parts)}"


def _in_use(models: ModelsConfig, kind: Kind, procedure: str, pinned: int | None) -> tuple[Path, Version] | None:
    """Folder and version, its sums checked; None for version 0 or without a registry."""
    if models.registry is None:
        return None
    registry = Registry(models.registry)
    if not models.registry.is_dir():
        raise ConfigError(
            f"models.registry={models.registry} does not exist; make it with `models promote`, or leave it out"
        )
    slot = registry.slot(kind, procedure)
    version = slot.version(slot.in_use if pinned is None else pinned)
    if version is None:
        return None
    if kind == "adapter" and len(version.base) < DIGITS:
        raise ConfigError(f"version {version.number} names no base model; promote the adapter again with a record")
    return registry.intact(kind, procedure, version), version
