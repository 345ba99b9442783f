"""A Hugging Face causal model with its key-value cache in our hands: what was computed for a case is not computed again.

    tokens and pictures ─▶ longest beginning that is kept ─▶ what all prompts of the batch share ─▶ their own ends, one batch

Kept is one beginning per salt: the last one computed. A new prompt of that case takes over as much of it as is the same, token by
token and picture by picture; the rest is computed once for all orders of the choices, and only their last lines once for each.

Legend: B prompts, L tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from stream_agent.errors import BackendError, ConfigError
from stream_agent.planner.backends.chat import pictures_of, rendered
from stream_agent.planner.backends.protocol import Picture, Prompt
from stream_agent.planner.model_files import ModelFiles

_CASES_KEPT: Final = 8
_PICTURES_KEPT: Final = 16


Mark: TypeAlias = int | tuple[str, int]
"""A token, or a picture's id with the number of its feature."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A prompt as the model takes it.

    Attributes:
        ids: Tokens; a picture is as many placeholders as it has features.
        marks: The same, except that placeholders carry their picture: equal marks mean equal keys and values.
        pictures: In their order.
    """

    ids: tuple[int, ...]
    marks: tuple[Mark, ...]
    pictures: tuple[Picture, ...]


@dataclass(slots=True)
class Beginning:
    """Keys and values of the first tokens of a prompt, per layer (1, heads, L, width)."""

    marks: tuple[Mark, ...] = ()
    layers: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def first(self, length: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Views of the first `length` tokens."""
        return [(keys[:, :, :length], values[:, :, :length]) for keys, values in self.layers]


class CausalModel:
    """One model in one thread."""

    def __init__(self, files: ModelFiles, *, device: str, dtype: str, threads: int, quantisation: Any = None) -> None:
        """Load it; with `quantisation`, which training alone uses, as transformers' own settings of that name say.

        Raises:
            ConfigError: It is of no kind that is understood here.
            BackendError: It does not load.
        """
        import transformers

        transformers.logging.disable_progress_bar()  # a log is lines
        self.files = files
        self.device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        if dtype == "auto":
            dtype = "bfloat16" if self.device.type == "cuda" else "float32"
        if self.device.type == "cpu":
            torch.set_num_threads(threads)
        kind = transformers.AutoModelForImageTextToText if files.has_vision else transformers.AutoModelForCausalLM
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        folder = str(files.directory)
        try:
            how: dict[str, Any] = {"dtype": getattr(torch, dtype), "use_safetensors": True}
            if quantisation is not None:
                how |= {"quantization_config": quantisation, "device_map": {"": self.device}}
            self.model = self._weights(kind, folder, {**how, **local}).eval()
            if quantisation is None:
                self.model.to(self.device)
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **local)
            self._image_processor = None
            if files.has_vision:  # not the whole processor, whose videos need torchvision
                self._image_processor = transformers.AutoImageProcessor.from_pretrained(folder, **local)
            self.tokenizer.chat_template = self.tokenizer.chat_template or _template_beside(files.directory)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise BackendError(f"transformers did not load {files.directory}: {_brief(error)}") from error
        text = self.model.config.get_text_config()
        # Windows and recurrent states cannot be cut at a token; such a model computes every prompt anew.
        self.keeps = all(kind == "full_attention" for kind in getattr(text, "layer_types", None) or ["full_attention"])
        self.image_token = getattr(self.model.config, "image_token_id", None)
        self.marks_pictures = "mm_token_type_ids" in inspect.signature(self.model.forward).parameters
        self._control = tuple(dict.fromkeys(map(str, self.tokenizer.all_special_tokens)))
        self.vocabulary = int(self.model.get_output_embeddings().weight.shape[0])
        self.ends = _end_tokens(self.model, self.tokenizer)
        self._kept: OrderedDict[str, Beginning] = OrderedDict()
        self._features: OrderedDict[tuple[str, str], dict[str, torch.Tensor]] = OrderedDict()

    def _weights(self, kind: Any, folder: str, how: dict[str, Any]) -> Any:
        """The model of its folder; a benchmark of true shapes draws one instead."""
        return kind.from_pretrained(folder, **how)

    # ------------------------------------------------------------------------------------------------ prompts

    def encode(self, prompt: Prompt) -> Encoded:
        """Tokens and pictures.

        Raises:
            BackendError: It shows a picture to a model without eyes.
        """
        pictures = tuple(pictures_of([prompt]))
        tokens = self.tokenizer.encode(rendered(prompt, self.tokenizer, self._control), add_special_tokens=False)
        if not pictures:
            return Encoded(tuple(tokens), tuple(tokens), ())
        if self._image_processor is None or tokens.count(self.image_token) != len(pictures):
            raise BackendError(
                "the model's template takes no pictures; set planner.memory=labels_only or use another model"
            )
        ids: list[int] = []
        marks: list[Mark] = []
        following = iter(pictures)
        for token in tokens:
            if token != self.image_token:
                ids.append(token)
                marks.append(token)
                continue
            picture = next(following)
            count = self._feature_count(picture)
            ids += [token] * count
            marks += [(picture.id, index) for index in range(count)]
        return Encoded(tuple(ids), tuple(marks), pictures)

    def pixels(self, picture: Picture) -> dict[str, torch.Tensor]:
        """`pixel_values` and `image_grid_thw` of one picture, kept for the next prompts that show it."""
        key = (picture.id, str(picture.image.shape))
        if key not in self._features:
            if len(self._features) >= _PICTURES_KEPT:
                self._features.popitem(last=False)
            assert self._image_processor is not None
            made = self._image_processor(
                images=[np.array(picture.image)], input_data_format="channels_last", return_tensors="pt"
            )
            self._features[key] = {name: made[name].to(self.device) for name in ("pixel_values", "image_grid_thw")}
        return self._features[key]

    def _feature_count(self, picture: Picture) -> int:
        merge = self.model.config.vision_config.spatial_merge_size
        return int(self.pixels(picture)["image_grid_thw"].prod()) // int(merge) ** 2

    # ------------------------------------------------------------------------------------------------ arithmetic

    def logits(self, prompts: Sequence[Encoded], salt: str) -> tuple[torch.Tensor, Any, int]:
        """What follows each prompt, (B, V) float32; the cache that holds them; how many tokens were taken over.

        The prompts' common beginning is computed once and kept under `salt`.
        """
        shared = min(_shared([prompt.marks for prompt in prompts]), min(len(prompt.ids) for prompt in prompts) - 1)
        known = self._kept.get(salt, Beginning()) if self.keeps else Beginning()
        taken = min(_shared([known.marks, prompts[0].marks[:shared]]), shared)
        taken = self._whole_pictures(prompts[0], taken)
        cache = self._cache(known.first(taken))
        if shared > taken:
            self._forward(prompts[0].ids[taken:shared], prompts[0], taken, cache)
        if self.keeps:
            self._keep(salt, Beginning(prompts[0].marks[:shared], _layers(cache)))
        ends = [prompt.ids[shared:] for prompt in prompts]
        if len(prompts) == 1:
            return self._forward(ends[0], prompts[0], shared, cache), cache, taken
        if any(_pictures_within(prompt, shared, len(prompt.ids)) for prompt in prompts):
            rows = [self.logits([prompt], salt)[0] for prompt in prompts]  # not the same pictures: one after another
            return torch.cat(rows), cache, taken
        return self._side_by_side(ends, prompts, shared, cache), cache, taken

    def step(self, token: int, encoded: Encoded, cache: Any, written: int) -> torch.Tensor:
        """What follows one more token, (V,); `written` tokens were written before it."""
        place = len(encoded.ids) + written
        positions = self._positions(encoded, place, place + 1)
        return self._run([token], positions, cache, logits_to_keep=1)[0]

    def forget(self) -> None:
        """Let go of everything kept: after the GPU's memory ran out."""
        self._kept.clear()
        self._features.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _forward(self, ids: Sequence[int], prompt: Encoded, start: int, cache: Any) -> torch.Tensor:
        """Compute the tokens of `prompt` from `start` on; logits behind the last, (1, V)."""
        given: dict[str, Any] = {}
        pixels = [self.pixels(picture) for picture in _pictures_within(prompt, start, start + len(ids))]
        if pixels:
            given["pixel_values"] = torch.cat([one["pixel_values"] for one in pixels])
            given["image_grid_thw"] = torch.cat([one["image_grid_thw"] for one in pixels])
        return self._run(ids, self._positions(prompt, start, start + len(ids)), cache, logits_to_keep=1, **given)

    def _side_by_side(
        self, ends: Sequence[Sequence[int]], prompts: Sequence[Encoded], start: int, cache: Any
    ) -> torch.Tensor:
        """The ends of several prompts in one row behind what they share, each blind to the others; logits of each, (B, V).

        One row instead of one per prompt: the shared keys and values are read where they lie and copied for nobody.
        """
        lengths = torch.tensor([len(end) for end in ends], device=self.device)
        owner = torch.repeat_interleave(torch.arange(len(ends), device=self.device), lengths)
        own = (owner[:, None] == owner[None]).tril()
        seen = torch.cat([torch.ones((len(owner), start), dtype=torch.bool, device=self.device), own], dim=1)
        least = torch.finfo(self.model.dtype).min
        mask = torch.zeros(seen.shape, dtype=self.model.dtype, device=self.device).masked_fill(~seen, least)
        positions = [
            self._positions(prompt, start, start + len(end)) for prompt, end in zip(prompts, ends, strict=True)
        ]
        return self._run(
            [token for end in ends for token in end],
            torch.cat(positions, dim=-1),
            cache,
            attention_mask=mask[None, None],
            logits_to_keep=lengths.cumsum(0) - 1,
        )

    def _run(self, ids: Sequence[int], positions: torch.Tensor, cache: Any, **given: Any) -> torch.Tensor:
        with torch.inference_mode():
            out = self.model(
                input_ids=torch.tensor([list(ids)], device=self.device),
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                **given,
            )
        logits: torch.Tensor = out.logits[0].float()
        return logits

    def _positions(self, prompt: Encoded, start: int, stop: int) -> torch.Tensor:
        """Rotary positions of tokens start to stop: (1, L), or (3, 1, L) for a model that sees."""
        if self.image_token is None:
            return torch.arange(start, stop, device=self.device)[None]
        if not prompt.pictures:
            return torch.arange(start, stop, device=self.device).expand(3, 1, -1)
        ids = torch.tensor([prompt.ids], device=self.device)
        grids = torch.cat([self.pixels(picture)["image_grid_thw"] for picture in prompt.pictures])
        find = self.model.model.get_rope_index
        given: dict[str, Any] = {"image_grid_thw": grids}
        if "mm_token_type_ids" in inspect.signature(find).parameters:
            given["mm_token_type_ids"] = (ids == self.image_token).int()
        whole, _ = find(ids, **given)
        if stop > whole.shape[-1]:  # what is written goes on from the largest position
            more = torch.arange(1, stop - whole.shape[-1] + 1, device=self.device) + whole.max()
            whole = torch.cat([whole, more.expand(3, 1, -1)], dim=-1)
        found: torch.Tensor = whole[:, :, start:stop]
        return found

    def _whole_pictures(self, prompt: Encoded, length: int) -> int:
        """At most `length`, and not in the middle of a picture, whose features are computed together."""
        if 0 < length < len(prompt.marks) and isinstance(mark := prompt.marks[length], tuple):
            return length - mark[1]
        return length

    def _cache(self, layers: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Any:
        """A fresh cache that begins with copies of `layers`; cutting one is done differently in every version."""
        from transformers import DynamicCache

        cache = DynamicCache() if self.keeps else DynamicCache(config=self.model.config.get_text_config())
        for index, (keys, values) in enumerate(layers):
            if keys.shape[2]:
                cache.update(keys, values, index)
        return cache

    def _keep(self, salt: str, beginning: Beginning) -> None:
        self._kept[salt] = beginning
        self._kept.move_to_end(salt)
        while len(self._kept) > _CASES_KEPT:
            self._kept.popitem(last=False)


def log_probabilities(logits: torch.Tensor, tokens: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """Of the named tokens per row, (B, tokens), over the whole vocabulary."""
    chosen = torch.tensor(tokens, device=logits.device)
    found: NDArray[np.float64] = torch.log_softmax(logits.double(), -1).gather(1, chosen).cpu().numpy()
    return found


def _layers(cache: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(layer.keys, layer.values) for layer in cache.layers]


def _shared(rows: Sequence[Sequence[object]]) -> int:
    """How many entries all rows begin with."""
    first = rows[0]
    shortest = min(len(row) for row in rows)
    return next((at for at in range(shortest) if any(row[at] != first[at] for row in rows)), shortest)


def _pictures_within(prompt: Encoded, start: int, stop: int) -> list[Picture]:
    """The pictures whose placeholders begin in start to stop."""
    begun = {mark[0] for mark in prompt.marks[start:stop] if isinstance(mark, tuple) and mark[1] == 0}
    return [picture for picture in prompt.pictures if picture.id in begun]


def _template_beside(folder: Path) -> str | None:
    """The chat template of older models with eyes, which lies in a file of its own."""
    path = folder / "chat_template.json"
    return str(json.loads(path.read_text(encoding="utf-8"))["chat_template"]) if path.is_file() else None


def _end_tokens(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Tokens after which nothing is written any more."""
    named = model.generation_config.eos_token_id
    found = [named] if isinstance(named, int) else list(named or ())
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in found:
        found.append(tokenizer.eos_token_id)
    if not found:
        raise ConfigError(
            "the model names no token that ends an answer; set eos_token_id in its generation_config.json"
        )
    return tuple(found)


def _brief(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:300]}" if lines else type(error).__name__
