"""Whether activations are computed twice instead of kept (Chen et al., arXiv:1604.06174), in the installed version's own word."""

from __future__ import annotations

import dataclasses
import warnings

import transformers

# peft and TRL still say the old names, and whoever trains can do nothing about it.
warnings.filterwarnings("ignore", message="`(is_)?gradient_checkpointing", category=FutureWarning)

_NOW, _BEFORE = "activation_checkpointing", "gradient_checkpointing"


def recomputing(wanted: bool) -> dict[str, bool]:
    """The argument of a trainer that says so; transformers had another name for it, which warns where it is the old one."""
    known = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    return {_NOW if _NOW in known else _BEFORE: wanted}
