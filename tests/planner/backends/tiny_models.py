"""Tiny models with random weights, built on the spot: a tokenizer of bytes and a few merges, a language model, eyes.

Their answers mean nothing; their shapes, code paths and arithmetic are those of the real families.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, TypeAlias

Family: TypeAlias = Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen2"]

_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' or 'image' in part or 'image_url' in part %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_CORPUS = (
    "The surgeon dissects Calot's triangle, clips the cystic artery and the cystic duct, and cuts between the clips.",
    "Tissue Retraction, Dissection, Vessel Clipping, Coagulation, Aspiration, Packaging: rank the three next actions.",
    '{"label": "A", "progress": "two of seven steps are done", "safety": ["critical view first"], "why": "hook in use"}',
)
_WIDTH = 64
_HEADS = 2
_PATCH = {"qwen2_vl": 14, "qwen2_5_vl": 14, "qwen3_vl": 16}


def build(family: Family, folder: Path, *, seed: int = 0, hidden_layers: int = 2, endless: bool = False) -> Path:
    """Write a model of the family, with a manifest, and return its folder; an endless one never ends a text by itself."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    from stream_agent.planner.model_files import write_manifest

    folder.mkdir(parents=True)
    tokenizer = _tokenizer()
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in _SPECIAL}
    text: dict[str, Any] = {
        "hidden_size": _WIDTH,
        "intermediate_size": 128,
        "num_hidden_layers": hidden_layers,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": 1,
        "head_dim": _WIDTH // _HEADS,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 8192,
        # Larger than real ones: otherwise every logit is next to zero and nothing can be told apart.
        "initializer_range": 0.2,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "tie_word_embeddings": False,
    }
    torch.manual_seed(seed)
    if family == "qwen2":
        config = AutoConfig.for_model("qwen2", **text)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    else:
        rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 1e6}
        if family == "qwen3_vl":
            rope["mrope_interleaved"] = True
        text |= {"rope_parameters": rope, "rope_scaling": rope}
        config = AutoConfig.for_model(
            family,
            text_config=text,
            vision_config=_eyes(family),
            image_token_id=ids["<|image_pad|>"],
            video_token_id=ids["<|video_pad|>"],
            vision_start_token_id=ids["<|vision_start|>"],
            vision_end_token_id=ids["<|vision_end|>"],
            tie_word_embeddings=False,
        )
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
        _save_processor(family, folder, tokenizer)
    # Biases and positions that start at zero, and weights of families with an initialiser of their own.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.2 if parameter.shape[-1] < 256 else 0.05)
        if endless:  # its end of a turn has logit 0, and of the others' some are above
            model.get_output_embeddings().weight[ids["<|im_end|>"]] = 0.0
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    write_manifest(folder)
    return folder


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=448,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(_SPECIAL),
        show_progress=False,
    )
    inner.train_from_iterator(_CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(_SPECIAL),
        chat_template=_TEMPLATE,
        model_max_length=8192,
    )


def _eyes(family: Family) -> dict[str, Any]:
    common = {
        "depth": 2,
        "num_heads": 2,
        "patch_size": _PATCH[family],
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    if family == "qwen2_vl":
        return {**common, "embed_dim": _WIDTH, "hidden_size": _WIDTH, "mlp_ratio": 2, "in_channels": 3}
    eyes = {**common, "hidden_size": _WIDTH, "intermediate_size": 128, "out_hidden_size": _WIDTH}
    if family == "qwen2_5_vl":
        return {**eyes, "in_chans": 3, "window_size": 112, "fullatt_block_indexes": [1]}
    return {**eyes, "in_channels": 3, "num_position_embeddings": 256, "deepstack_visual_indexes": [0]}


def _save_processor(family: Family, folder: Path, tokenizer: Any) -> None:
    patch = _PATCH[family]
    mean = [0.5, 0.5, 0.5] if family == "qwen3_vl" else [0.48145466, 0.4578275, 0.40821073]
    deviation = [0.5, 0.5, 0.5] if family == "qwen3_vl" else [0.26862954, 0.26130258, 0.27577711]
    shared = {
        "patch_size": patch,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "image_mean": mean,
        "image_std": deviation,
        "size": {"shortest_edge": 3136, "longest_edge": 12_845_056},
    }
    processor = {"qwen2_vl": "Qwen2VLProcessor", "qwen2_5_vl": "Qwen2_5_VLProcessor", "qwen3_vl": "Qwen3VLProcessor"}[
        family
    ]
    video = "Qwen3VLVideoProcessor" if family == "qwen3_vl" else "Qwen2VLVideoProcessor"
    (folder / "preprocessor_config.json").write_text(
        json.dumps({**shared, "image_processor_type": "Qwen2VLImageProcessor", "processor_class": processor})
    )
    (folder / "video_preprocessor_config.json").write_text(
        json.dumps({**shared, "video_processor_type": video, "processor_class": processor})
    )
    (folder / "chat_template.jinja").write_text(_TEMPLATE)


if __name__ == "__main__":
    import sys

    print(build(sys.argv[1], Path(sys.argv[2])))  # type: ignore[arg-type]
