"""Models of true shapes with random weights: the work of the real ones, answers that mean nothing, no hub.

The numbers are those of the public config.json of Qwen2.5-VL-7B-Instruct and 3B-Instruct, read in copies on huggingface.co:
unsloth/Qwen2.5-VL-7B-Instruct and huihui-ai/Qwen2.5-VL-3B-Instruct-abliterated. What the first leaves out of the eyes is
transformers' default, and the second spells it out. `tiny` has their parts and no size, for a CPU.

Qwen's vocabulary is not here. The tokenizer is a stand-in: byte pairs learnt from this checkout's own texts, so many that our
prompts and answers come out as long as with Qwen's (a rank prompt 1,726 for 1,723 tokens, a plan prompt 1,788 for 1,782, a plan
175 for 170).
"""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.report import ROOT
from stream_agent.planner.backends.causal import CausalModel
from stream_agent.planner.model_files import look_through

_EYES: Final = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "in_chans": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
_TEXT: Final = {"max_position_embeddings": 128_000, "rms_norm_eps": 1e-6, "hidden_act": "silu"}
_SECTIONS: Final = (16, 24, 24)
"""Halves of a head's rotary pairs that turn with time, height and width."""

SHAPES: Final[Mapping[str, Mapping[str, Any]]] = {
    "qwen2.5-vl-7b": {
        "text": {
            **_TEXT,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152_064,
        },
        "eyes": {**_EYES, "out_hidden_size": 3584},
        "sections": _SECTIONS,
        "tied": False,
    },
    "qwen2.5-vl-3b": {
        "text": {
            **_TEXT,
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "vocab_size": 151_936,
        },
        "eyes": {**_EYES, "out_hidden_size": 2048},
        "sections": _SECTIONS,
        "tied": True,
    },
    "tiny": {
        "text": {
            **_TEXT,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "vocab_size": 4096,
        },
        "eyes": {
            **_EYES,
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
        },
        "sections": (4, 6, 6),
        "tied": False,
    },
}
"""What `--shapes` takes."""

_WORDS: Final = 4000
_SPECIAL: Final = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_TEMPLATE: Final = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] -%}
{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}
{%- endfor %}{% endif %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}
"""
_PROCESSOR: Final = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "patch_size": 14,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "size": {"shortest_edge": 3136, "longest_edge": 12_845_056},
}


class RandomModel(CausalModel):
    """The product's model with weights that are drawn where they will stand; they can be let go and drawn again."""

    def __init__(self, folder: Path, *, device: str, dtype: str, threads: int) -> None:
        self._drawn: tuple[Any, str, dict[str, Any]] | None = None
        super().__init__(look_through(folder, weights=False), device=device, dtype=dtype, threads=threads)

    def _weights(self, kind: Any, folder: str, how: dict[str, Any]) -> Any:  # noqa: ANN401
        import transformers

        self._drawn = kind, folder, how
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        torch.manual_seed(0)
        with torch.device(self.device):  # a copy from the CPU would take longer than all that is measured
            return kind.from_config(config, dtype=how["dtype"])

    def draw(self) -> None:
        """Fresh weights, with nothing left on them of an earlier training.

        Raises:
            RuntimeError: They do not fit.
        """
        assert self._drawn is not None
        self.model = self._weights(*self._drawn).eval()

    def let_go(self) -> None:
        """Give the weights' memory back."""
        self.model = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def write_model(shapes: str, folder: Path) -> Path:
    """The folder of a model without its weights: configuration, tokenizer, how pictures are cut."""
    import transformers

    folder.mkdir(parents=True)
    tokenizer = _tokenizer()
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in _SPECIAL}
    given = SHAPES[shapes]
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": list(given["sections"])}
    ends = {"bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"], "pad_token_id": None}
    config = transformers.AutoConfig.for_model(
        "qwen2_5_vl",
        text_config={
            **given["text"],
            **ends,
            "rope_parameters": rope,
            "rope_scaling": rope,
            "tie_word_embeddings": given["tied"],
        },
        vision_config=dict(given["eyes"]),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=given["tied"],
    )
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(_PROCESSOR), encoding="utf-8")
    return folder


def _tokenizer() -> Any:  # noqa: ANN401
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    texts = [*ROOT.glob("configs/procedures/*/knowledge.md"), *ROOT.glob("docs/*.md")]
    trainer = trainers.BpeTrainer(
        vocab_size=_WORDS + len(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(_SPECIAL),
        show_progress=False,
    )
    inner.train_from_iterator((path.read_text(encoding="utf-8") for path in sorted(texts)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(_SPECIAL),
        chat_template=_TEMPLATE,
    )
