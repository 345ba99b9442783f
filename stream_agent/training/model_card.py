"""The model card beside an adapter: what it is, what it was made from, under which terms, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stream_agent.procedure import ProcedurePack
from stream_agent.training.config import TrainingConfig

TERMS = """\
Fitted on labels of CholecT50-SAP (Xu et al., *Surgical Action Planning with Large Language Models*, 2025), derived from CholecT50
(Nwoye et al., Medical Image Analysis 78, 2022): **CC BY-NC-SA 4.0**, non-commercial use, attribution, share alike. The base model
keeps its own licence."""

_LIMITS = """\
For research. Advice to a person, never a command to a robot, and no medical device. The annotation ends a few clips after the
vessels are clipped, so little is known of what comes later. The rank lane's probabilities are not calibrated by this training."""


def model_card(method: str, config: TrainingConfig, record: Mapping[str, Any], pack: ProcedurePack) -> str:
    """The card in Markdown."""
    data, planner, optimiser, lora = record["data"], config.planner, config.optimiser, config.lora
    validations = "\n".join(
        f"| {row['step']} | {row['loss']:.4f} | {row['token_accuracy']:.4f} |"
        + (" kept |" if row["step"] == record["kept_step"] else " |")
        for row in record["validations"]
    )
    layers = "every layer" if lora.last_layers is None else f"the last {lora.last_layers} layers"
    early = ", ended by hand" if record.get("ended_early") else ""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return f"""\
---
library_name: peft
license: cc-by-nc-sa-4.0
base_model: {record["base"]}
---
# {method}: {pack.title}

An adapter of `{record["base"]}` (digest {record["base_digest"]}) that ranks the next surgical action, asked by the prompts of
`stream_agent` (digest {data["prompt"]}): use it with `planner.adapters={{name: DIR}}`, `planner.adapter=name` and the same
`planner.form={planner.form}`, `planner.memory={planner.memory}`, `planner.knowledge={planner.knowledge}`,
`planner.question={planner.question}`.

## Data and terms

{TERMS}

- Protocol: {config.data.track} track, {config.data.history} history, label noise {config.data.noise:g}.
- Examples per task: {", ".join(f"{task} {count}" for task, count in data["examples"].items())}.
- Fitted on {data["samples"]} samples of {len(data["fitted_on"])} training videos: {", ".join(data["fitted_on"])}.
- Step chosen by {data["validation_samples"]} samples of {len(data["chosen_by"])} others: {", ".join(data["chosen_by"]) or "none"}.
- None of the 15 test videos of CholecT50 was used.

## Training

Rank {lora.rank}, alpha {lora.alpha}, dropout {lora.dropout:g}, {layers}: {record["trained_parameters"]:,} trained parameters.
Learning rate {optimiser.learning_rate:g} ({optimiser.schedule}), batches of {optimiser.batch}, {record["steps"]} steps
({record["epochs"]:g} of {optimiser.epochs:g} epochs{early}), seed {config.seed}; {versions}.
The whole configuration is `training.yaml`, every figure `record.json`.

| step | validation loss | token accuracy | |
| --- | --- | --- | --- |
{validations}

## Limits

{_LIMITS}
"""
