"""An adapter as it is asked: looked through, by the configuration that taught it, and with no prompts but those that it learnt."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from stream_agent.config import PlannerConfig
from stream_agent.errors import ConfigError
from stream_agent.planner.backends.adapters import WEIGHTS, adapter_directory
from stream_agent.procedure import ProcedurePack, load_pack
from stream_agent.prompts import PromptFactory
from stream_agent.training.adapter_record import fitted_on, read_record
from stream_agent.training.data import require_training_only


@dataclass(frozen=True, slots=True, eq=False)
class TaughtAdapter:
    """An adapter that may be asked.

    Attributes:
        folder: Its absolute path.
        weights: First twelve hex digits of the sha256 of its weights.
        pack: The procedure that it was taught.
        planner: The planner's section as it was taught, for the `transformers` backend; names no adapter yet.
        tree: The whole of its training's configuration.
        record: What its training wrote of itself.
        prompt: Digest of the prompts.
        fitted_on: Videos that its own training fitted.
        chosen_by: Videos that chose its step.
        seen: Both, and those of the adapter that it began with.
    """

    folder: Path
    weights: str
    pack: ProcedurePack
    planner: PlannerConfig
    tree: Mapping[str, Any]
    record: Mapping[str, Any]
    prompt: str
    fitted_on: tuple[str, ...]
    chosen_by: tuple[str, ...]
    seen: frozenset[str]

    @property
    def base(self) -> str:
        """Digest of the base model that it was trained on."""
        return str(self.record.get("base_digest", ""))


def load_taught(adapter: Path, model: Path | None = None, settings: Mapping[str, Any] | None = None) -> TaughtAdapter:
    """The adapter in a folder that training wrote.

    Args:
        adapter: The folder.
        model: The base model's directory, where it is another than the adapter was trained with.
        settings: More of `planner.*`, for the backend.

    Raises:
        ConfigError: The folder is no adapter of ours, it has seen a test video, or the prompts have changed since.
    """
    folder = adapter_directory(adapter)
    record, tree = read_record(folder), _configuration(folder)
    data = record["data"]
    seen = frozenset({*fitted_on(folder), *data["chosen_by"]})
    require_training_only(seen)
    pack = load_pack(Path(tree["procedure"]["pack"]))
    planner = _section(folder, tree["planner"], record, model, settings or {})
    digest = PromptFactory(pack, planner).digest
    if digest != data.get("prompt"):
        raise ConfigError(
            f"{folder.name} was taught with prompts of digest {data.get('prompt')}, those of now have {digest}; evaluate it "
            "with the version that trained it, or train again"
        )
    return TaughtAdapter(
        folder=folder,
        weights=hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()[:12],
        pack=pack,
        planner=planner,
        tree=tree,
        record=record,
        prompt=digest,
        fitted_on=tuple(data["fitted_on"]),
        chosen_by=tuple(data["chosen_by"]),
        seen=seen,
    )


def _configuration(folder: Path) -> dict[str, Any]:
    try:
        tree: dict[str, Any] = yaml.safe_load((folder / "training.yaml").read_text(encoding="utf-8"))
        _ = tree["planner"]["model"], tree["procedure"]["pack"], tree["data"]["exclude"], tree["lora"]["start_from"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{folder} has no training.yaml of a training ({type(error).__name__}); name an adapter that `train` wrote"
        ) from error
    return tree


def _section(
    folder: Path, trained: Mapping[str, Any], record: Mapping[str, Any], model: Path | None, settings: Mapping[str, Any]
) -> PlannerConfig:
    """Pinned to the base model that was trained, for its answers are filed under that name."""
    told = {**trained, "kind": "transformers", "dtype": "auto", "adapters": {}, "adapter": ""}
    told["digest"] = record.get("base_digest") or trained.get("digest")
    if model is not None:
        told["model"] = str(model)
    try:
        return PlannerConfig.model_validate({**told, **settings})
    except ValidationError as error:
        raise ConfigError(f"{folder}/training.yaml: {error.errors()[0]['msg']}; correct it or train again") from error
