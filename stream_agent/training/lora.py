"""LoRA adapters of the agent's own backends: a base model to train, what is trained of it, and what is saved.

The base is loaded and prompts are encoded by the `transformers` backend's own code (`causal.py`), so that what is trained is, token
by token, what the lanes ask at run time. What is saved is a folder that every backend takes by `planner.adapters={name: DIR}`:

    adapter_model.safetensors · adapter_config.json    peft's own format; no pickle
    training.yaml · record.json · README.md            resolved configuration, figures and hashes, model card
    manifest.sha256                                    sums of them all
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch
import yaml

from stream_agent.errors import BackendError, ConfigError
from stream_agent.models.model_files import digest_of, model_files
from stream_agent.planner.backends.adapters import adapter_directory
from stream_agent.planner.backends.causal import CausalModel
from stream_agent.planner.backends.protocol import Picture
from stream_agent.planner.model_files import MANIFEST, go_offline, verified
from stream_agent.training.config import LoraConfig, TrainingConfig
from stream_agent.training.data import Example
from stream_agent.training.shared_row import one_row

IGNORED: Final = -100
"""Label of a token that is not learned."""

_PART: Final = ".part"

_Encoded: TypeAlias = tuple[list[int], list[int], tuple[Picture, ...]]
"""Tokens, labels and pictures of an example."""


def load_base(config: TrainingConfig) -> CausalModel:
    """The base model, its files checked as the backend does.

    Raises:
        ConfigError: The directory is no model that may be loaded, or QLoRA is wanted where it cannot be.
    """
    go_offline()
    planner = config.planner
    assert planner.model is not None
    files = verified(planner.model, digest=planner.digest)
    quantisation = _four_bits(planner.device) if config.lora.quantised else None
    try:
        model = CausalModel(
            files,
            device=planner.device,
            dtype=planner.dtype,
            threads=planner.threads,
            quantisation=quantisation,
        )
    except BackendError as error:
        raise ConfigError(f"planner.model={planner.model} does not load: {error}") from error
    return model


def with_adapter(base: CausalModel, config: LoraConfig, *, seed: int = 0) -> Any:
    """The base model with a new adapter, drawn by `seed`, or with the one that `start_from` names, ready to be trained.

    Raises:
        ConfigError: The model has fewer layers than are to be adapted, or `start_from` is no adapter of it.
    """
    import peft

    if config.start_from is not None:
        folder = adapter_directory(config.start_from)
        try:
            return peft.PeftModel.from_pretrained(base.model, str(folder), is_trainable=True, local_files_only=True)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            first = (str(error).splitlines() or [""])[0][:200]
            raise ConfigError(
                f"lora.start_from={config.start_from} is no adapter of this model ({first}); name one trained on it"
            ) from error
    text = base.model.config.get_text_config()
    layers = int(text.num_hidden_layers)
    last = config.last_layers
    if last is not None and last > layers:
        raise ConfigError(f"lora.last_layers={last} is more than the model's {layers}; lower it or unset it")
    torch.manual_seed(seed)  # TRL sets its seed later, when the first weights have been drawn
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=_language_linears(base.model, first_layer=0 if last is None else layers - last),
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(base.model, settings)


def save_adapter(
    model: Any, folder: Path, *, config: TrainingConfig, record: Mapping[str, Any], card: str, base: CausalModel
) -> str:
    """Write the adapter with its configuration, record, card and sums, whole or not at all; its name in `models list` and plans.

    Raises:
        ConfigError: The folder holds something already.
    """
    require_free(folder)
    unfinished = folder.with_name(folder.name + _PART)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    model.save_pretrained(str(unfinished), safe_serialization=True, save_embedding_layers=False)
    _name_the_base(unfinished / "adapter_config.json", base.model.config)
    (unfinished / "training.yaml").write_text(
        yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True), encoding="utf-8"
    )
    (unfinished / "record.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (unfinished / "README.md").write_text(card, encoding="utf-8")
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(unfinished.iterdir())]
    (unfinished / MANIFEST).write_text("".join(lines), encoding="utf-8")
    if folder.exists():
        folder.rmdir()
    unfinished.replace(folder)
    return digest_of("adapter", model_files(folder))


def require_free(folder: Path) -> None:
    """Make sure that an adapter may be written to the folder.

    Raises:
        ConfigError: It holds something already, or is a file.
    """
    if folder.is_file() or (folder.exists() and any(folder.iterdir())):
        raise ConfigError(f"--out {folder} holds something already; name another folder, or remove it")


class Batches:
    """Examples as tensors: the prompt as the backend encodes it, the answer and the end of the turn behind it."""

    def __init__(
        self, base: CausalModel, taught: Sequence[Example], *, longest: int, shared: bool = False, group: int = 1
    ) -> None:
        """Encode them once.

        Args:
            base: Whose tokens.
            taught: The examples.
            longest: Most tokens of one.
            shared: Put a batch into one row (`shared_row.py`); text alone.
            group: Neighbouring examples that always stand in one batch together, the orders of one sample's choices.

        Raises:
            ConfigError: One is longer than `longest` tokens, or shows a picture where none can be.
        """
        self._base = base
        self._shared = shared
        self._rows = [self._row(example, longest) for example in taught]
        self._groups = [range(start, min(start + group, len(taught))) for start in range(0, len(taught), group)]
        if shared and any(pictures for _, _, pictures in self._rows):
            raise ConfigError(
                "optimiser.shared_beginnings=true is for text alone, and examples show pictures; set it to false"
            )

    def __len__(self) -> int:
        return len(self._groups)

    @property
    def groups(self) -> list[dict[str, list[int]]]:
        """The numbers of the examples of each group, for a dataset of them."""
        return [{"numbers": list(group)} for group in self._groups]

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """One batch of groups: padded on the right, (B, L) each, pixels of all pictures behind each other; or one shared row."""
        rows = [self._rows[number] for feature in features for number in feature["numbers"]]
        return self._one_row(rows) if self._shared else self._side_by_side(rows)

    def _one_row(self, rows: Sequence[_Encoded]) -> dict[str, torch.Tensor]:
        row = one_row([(ids, labels) for ids, labels, _ in rows], ignored=IGNORED)
        kind = self._base.model.dtype
        mask = torch.zeros(row.seen.shape, dtype=kind).masked_fill(~torch.from_numpy(row.seen), torch.finfo(kind).min)
        return {
            "input_ids": torch.tensor([row.ids]),
            "labels": torch.tensor([row.labels]),
            "position_ids": torch.tensor([row.positions]),
            "attention_mask": mask[None, None],
        }

    def _side_by_side(self, rows: Sequence[_Encoded]) -> dict[str, torch.Tensor]:
        width = max(len(ids) for ids, _, _ in rows)
        tokenizer = self._base.tokenizer
        padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self._base.ends[0]

        def padded(lines: Sequence[Sequence[int]], filler: int) -> torch.Tensor:
            return torch.tensor([[*line, *[filler] * (width - len(line))] for line in lines])

        ids = padded([ids for ids, _, _ in rows], padding)
        batch = {
            "input_ids": ids,
            "attention_mask": padded([[1] * len(ids) for ids, _, _ in rows], 0),
            "labels": padded([labels for _, labels, _ in rows], IGNORED),
        }
        pictures = [picture for _, _, shown in rows for picture in shown]
        if pictures:
            pixels = [self._base.pixels(picture) for picture in pictures]
            for name in ("pixel_values", "image_grid_thw"):
                batch[name] = torch.cat([one[name].cpu() for one in pixels])
            if self._base.marks_pictures:
                batch["mm_token_type_ids"] = (ids == self._base.image_token).int()
        return batch

    def _row(self, example: Example, longest: int) -> _Encoded:
        base = self._base
        try:
            encoded = base.encode(example.prompt)
        except BackendError as error:
            raise ConfigError(f"{example.video} clip {example.index}: {error}") from error
        # The token that ends a turn is the tokenizer's own; others only stop a model that missed it.
        end = base.tokenizer.eos_token_id if base.tokenizer.eos_token_id in base.ends else base.ends[0]
        answer = [*base.tokenizer.encode(example.answer, add_special_tokens=False), end]
        if len(encoded.ids) + len(answer) > longest:
            raise ConfigError(
                f"{example.video} clip {example.index} ({example.task}) has {len(encoded.ids) + len(answer)} tokens, "
                f"planner.context_tokens={longest} is less; raise it or choose planner.knowledge=short"
            )
        return [*encoded.ids, *answer], [*[IGNORED] * len(encoded.ids), *answer], encoded.pictures


def _language_linears(model: Any, *, first_layer: int) -> list[str]:
    """Full names of the linear layers of the language part's blocks, from a layer on: eyes and output layer stay as they are.

    An adapter on the eyes would not be loaded by vLLM's LoRA, and one on the output layer is nothing that TRL trains.
    """
    found = []
    for name, module in model.named_modules():
        parts = name.split(".")
        if not isinstance(module, torch.nn.Linear) or "layers" not in parts or {"visual", "vision_tower"} & set(parts):
            continue
        number = parts[parts.index("layers") + 1]
        if number.isdecimal() and int(number) >= first_layer:
            found.append(name)
    if not found:
        raise ConfigError("the model has no linear layers under `layers`; it cannot be adapted here")
    return found


def _name_the_base(path: Path, base: Any) -> None:
    """Sort what peft keeps as sets, so that the same training gives the same bytes, and name the model without our path."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = Path(str(getattr(base, "_name_or_path", ""))).name
    if isinstance(settings.get("target_modules"), list):
        settings["target_modules"].sort()
    path.write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _four_bits(device: str) -> Any:
    """Settings of a 4-bit base (Dettmers et al., arXiv:2305.14314: NF4, double quantisation, bfloat16 arithmetic).

    Raises:
        ConfigError: There is no CUDA GPU, or bitsandbytes is not installed.
    """
    import importlib.util

    if device == "cpu" or not torch.cuda.is_available():
        raise ConfigError(
            "lora.quantised=true needs a CUDA GPU, and none is used here; set lora.quantised=false for LoRA on the whole weights"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            "lora.quantised=true needs bitsandbytes; pip install bitsandbytes, or set lora.quantised=false"
        )
    import transformers

    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
