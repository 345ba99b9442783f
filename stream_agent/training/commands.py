"""The command line of training: the models of a procedure pack, and the language model's adapters."""

from __future__ import annotations

import importlib.util
import json
import shlex
from pathlib import Path
from typing import Literal

import click

from stream_agent.errors import ConfigError

_FILE = click.Path(path_type=Path)
_PACK = Path("configs/procedures/cholecystectomy")
_TUNING = ("torch", "transformers", "trl", "peft", "datasets")
_SETTINGS = click.argument("settings", nargs=-1, metavar="[section.key=value]...")
_ADAPTER = click.option(
    "--out", type=_FILE, required=True, help="Folder to write the adapter to; must not hold anything."
)


@click.group()
def train() -> None:
    """Fit the models of a procedure pack on your copy of the annotations; needs pip install stream-agent[train]."""


@train.command()
@click.option("--sap", type=_FILE, required=True, help="total_video_info.json of CholecT50-SAP.")
@click.option("--signals", type=_FILE, help="Folder of videoNN.csv: instruments at 1 Hz.")
@click.option("--exclude", multiple=True, metavar="VID,…", help="Training videos to leave out.")
@click.option("--out", type=_FILE, default=_PACK, show_default=True, help="Folder of the pack to write to.")
def statistical(sap: Path, signals: Path | None, exclude: tuple[str, ...], out: Path) -> int:
    """Fit the statistical planner, print every number of its model card, and write planner.json; with --signals, ensemble.json."""
    if signals is not None:
        _require("sklearn")
    from stream_agent.training import statistical as trainer

    trainer.train(sap, signals, _folder(out) / "planner.json", exclude=_names(exclude))
    return 0


@train.command()
@click.option("--data", type=_FILE, required=True, help="Folder with cholect50/, cholec80/, sap/ and video/.")
@click.option("--exclude", multiple=True, metavar="VID,…", help="Videos to leave out.")
@click.option(
    "--add", nargs=2, multiple=True, type=_FILE, metavar="VIDEO LABELS", help="Labels that a person corrected."
)
@click.option("--quick", is_flag=True, help="A minute instead of half an hour; the model is worse.")
@click.option("--out", type=_FILE, default=_PACK, show_default=True, help="Folder of the pack to write to.")
def recogniser(data: Path, exclude: tuple[str, ...], add: tuple[tuple[Path, Path], ...], quick: bool, out: Path) -> int:
    """Fine-tune the recogniser, print every number of its model card, and write recogniser.onnx."""
    _require("torch", "onnx", "efficientnet_lite_pytorch")
    from stream_agent.training import recogniser as trainer

    click.echo(
        trainer.train(data, _folder(out) / "recogniser.onnx", exclude=_names(exclude), corrected=add, quick=quick)
    )
    return 0


@train.command()
@click.option("--sap", type=_FILE, required=True, help="total_video_info.json of CholecT50-SAP.")
@click.option("--signals", type=_FILE, required=True, help="Folder of videoNN.csv: instruments at 1 Hz.")
@click.option("--exclude", multiple=True, metavar="VID,…", help="Videos to leave out.")
@click.option("--out", type=_FILE, default=_PACK, show_default=True, help="Folder of the pack to write to.")
def signals(sap: Path, signals: Path, exclude: tuple[str, ...], out: Path) -> int:
    """Fit what turns 1 Hz instruments into clips, print every number of its model card, write two files."""
    from stream_agent.training import signals as trainer

    trainer.train(sap, signals, _folder(out), exclude=_names(exclude))
    return 0


@train.command()
@click.option("--config", "preset", type=_FILE, help="YAML file of a training, for example configs/train_lora.yaml.")
@_ADAPTER
@_SETTINGS
def sft(preset: Path | None, out: Path, settings: tuple[str, ...]) -> int:
    """Fine-tune a language model with LoRA on training videos; killed, it goes on from its last checkpoint."""
    from stream_agent.training.config import load_training

    config = load_training(preset, settings)
    _require(*_TUNING)
    from stream_agent.training import sft as trainer

    trainer.train(config, out, say=click.echo)
    return 0


@train.command()
@click.option("--config", "preset", type=_FILE, help="YAML file of a training: its data and planner decide.")
@click.option("--out", type=_FILE, required=True, help="Folder to make; must not hold anything.")
@_SETTINGS
def export(preset: Path | None, out: Path, settings: tuple[str, ...]) -> int:
    """Write a training's conversations in the layout that LLaMA-Factory reads."""
    from stream_agent.training import export as exporter
    from stream_agent.training.config import load_training

    # No model is asked, and none needs to be there.
    counts = exporter.export(load_training(preset, ("planner.model=none", *settings)), out)
    click.echo(f"{out}: {', '.join(f'{count} conversations to {part}' for part, count in counts.items())}")
    return 0


@train.command()
@click.option("--adapter", type=_FILE, help="Folder that a training wrote; its validation videos weigh the fusion.")
@click.option("--trial", type=_FILE, help="Folder that `train gate --parts N` wrote: everything cross-validated.")
@click.option("--sap", type=_FILE, required=True, help="total_video_info.json of CholecT50-SAP.")
@click.option("--signals", type=_FILE, help="Folder of videoNN.csv: instruments at 1 Hz, for the statistical planner.")
@click.option("--model", type=_FILE, help="The base model's folder, where it is not where it was in training.")
@click.option("--keep", type=_FILE, help="Folder that keeps beliefs, so that nobody is asked twice.")
@click.option("--out", type=_FILE, help="JSON file to write; never overwritten.")
def evaluate(
    adapter: Path | None,
    trial: Path | None,
    sap: Path,
    signals: Path | None,
    model: Path | None,
    keep: Path | None,
    out: Path | None,
) -> int:
    """Rank samples with a text adapter or a trial's adapters, their base, the statistical planner and both fused."""
    if (adapter is None) == (trial is None):
        given = (
            "neither --adapter nor --trial is"
            if adapter is None
            else f"--adapter {adapter} and --trial {trial} are both"
        )
        raise ConfigError(f"{given} given; name one adapter, or the folder of one trial")
    _require("torch", "transformers", "peft", "llguidance")
    if out is not None and out.exists():
        raise ConfigError(f"--out {out} exists and is never overwritten; name another file")
    from stream_agent.training.adapter_report import evaluate_adapter
    from stream_agent.training.report_rows import table
    from stream_agent.training.trial_report import evaluate_trial

    if trial is not None:
        found = evaluate_trial(trial, sap, signals=signals, model=model, keep=keep, say=click.echo)
        first = "out_of_fold"
        click.echo(
            f"{found['out_of_fold_samples']} samples of {found['training_videos']} training videos, each asked of who was fitted "
            f"without its video ({len(found['parts'])} parts), {found['track']} track:"
        )
    else:
        assert adapter is not None
        found = evaluate_adapter(adapter, sap, signals=signals, model=model, keep=keep, say=click.echo)
        first = "chosen_by"
        click.echo(
            f"{found['chosen_by_samples']} samples of training videos that were not fitted, which chose the step:"
            if first in found
            else "no video was held out of the training, so no temperature and no weight is fitted"
        )
    if first in found:
        click.echo(table(found[first]))
    click.echo(f"{found['samples']} samples of the test videos, {found['track']} track:")
    click.echo(table(found["rows"]))
    if out is not None:
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


@train.command()
@click.option("--sap", type=_FILE, required=True, help="total_video_info.json of CholecT50-SAP.")
@click.option("--signals", type=_FILE, help="Folder of videoNN.csv: instruments at 1 Hz, for the statistical planner.")
@click.option("--frames", type=_FILE, help="Folder of VIDnn/nnnnnn.png, for prompts that show frames.")
@click.option("--captions", type=_FILE, help="Captions as lines of JSON, for planner.form=indirect.")
@click.option(
    "--history",
    type=click.Choice(["ground_truth", "action_reg"]),
    default="ground_truth",
    show_default=True,
    help="Labels of the past: annotated, or as the authors' recogniser gave them.",
)
@click.option("--config", "preset", type=_FILE, help="YAML preset that names the model.")
@click.option("--out", type=_FILE, required=True, help="YAML preset to write; the evidence goes beside it as .json.")
@_SETTINGS
def calibration(
    sap: Path,
    signals: Path | None,
    frames: Path | None,
    captions: Path | None,
    history: Literal["ground_truth", "action_reg"],
    preset: Path | None,
    out: Path,
    settings: tuple[str, ...],
) -> int:
    """Fit a language planner's temperature and its weight in the fusion on training videos."""
    from stream_agent.config import load_config
    from stream_agent.training.calibration import calibrate
    from stream_agent.training.near_frames import NearCaptions, NearFrames

    config = load_config(preset, settings)
    calibrate(
        config,
        sap,
        out,
        signals=signals,
        history=history,
        pictures=NearFrames(frames, config.planner) if frames is not None else None,
        captions=NearCaptions(captions) if captions is not None else None,
        say=click.echo,
    )
    return 0


@train.command()
@click.option("--config", "preset", type=_FILE, help="YAML file of a training, for example configs/train_distill.yaml.")
@click.option(
    "--out", type=_FILE, required=True, help="Folder to write the adapter to; OUT.responses takes the answers."
)
@click.option("--ask-only", is_flag=True, help="Have the teacher answer, and train nothing.")
@_SETTINGS
def distill(preset: Path | None, out: Path, ask_only: bool, settings: tuple[str, ...]) -> int:
    """Have a teacher answer training samples, keep what proves right, and teach it to a student."""
    from stream_agent.config import load_tree
    from stream_agent.training.distill import DistillTraining

    config = load_tree(DistillTraining, preset, settings)
    _require(*_TUNING)
    from stream_agent.training import student

    if ask_only:
        student.ask(config, out.with_name(out.name + student.ANSWERS), say=click.echo)
    else:
        student.train(config, out, say=click.echo)
    return 0


@train.command()
@click.option("--config", "preset", type=_FILE, help="YAML file of a training, for example configs/train_dpo.yaml.")
@_ADAPTER
@_SETTINGS
def dpo(preset: Path | None, out: Path, settings: tuple[str, ...]) -> int:
    """Train an adapter on pairs: right and rule-abiding responses against wrong or rule-breaking ones."""
    from stream_agent.config import load_tree
    from stream_agent.training.preference import PreferenceTraining

    config = load_tree(PreferenceTraining, preset, settings)
    _require(*_TUNING)
    from stream_agent.training import dpo as trainer

    trainer.train(config, out, say=click.echo)
    return 0


@train.command()
@click.option("--config", "preset", type=_FILE, help="YAML file of a training, for example configs/train_grpo.yaml.")
@_ADAPTER
@_SETTINGS
def grpo(preset: Path | None, out: Path, settings: tuple[str, ...]) -> int:
    """Reinforce an adapter by the agent's own verifiers: format, rank of the truth, relaxed hit, rules, length."""
    from stream_agent.config import load_tree
    from stream_agent.training.grpo import GroupTraining

    config = load_tree(GroupTraining, preset, settings)
    _require(*_TUNING)
    from stream_agent.training import grpo as trainer

    trainer.train(config, out, say=click.echo)
    return 0


@train.command()
@click.argument("method", type=click.Choice(["sft", "distill", "dpo", "grpo"]))
@click.option("--config", "preset", type=_FILE, help="YAML file of the method's training.")
@click.option("--start-config", type=_FILE, help="YAML file of the fine-tuning before it, done anew for each part.")
@click.option(
    "--parts", type=click.IntRange(1, 35), default=5, show_default=True, help="1 asks about the validation videos."
)
@click.option(
    "--fit-temperature", is_flag=True, help="Judge both sides at temperatures that are fitted on the other parts."
)
@click.option("--out", type=_FILE, required=True, help="Folder for the adapters and the evaluation record, gate.json.")
@_SETTINGS
def gate(
    method: Literal["sft", "distill", "dpo", "grpo"],
    preset: Path | None,
    start_config: Path | None,
    parts: int,
    fit_temperature: bool,
    out: Path,
    settings: tuple[str, ...],
) -> int:
    """Cross-validate METHOD on training videos, write the record for `models promote`, and say whether it may ship.

    Settings of data, planner, procedure, lora and seed hold for --start-config, too. Exit status 1: it does not ship.
    """
    from stream_agent.config import load_tree
    from stream_agent.training import adapter_gate
    from stream_agent.training.config import TrainingConfig, load_training
    from stream_agent.training.distill import DistillTraining
    from stream_agent.training.grpo import GroupTraining
    from stream_agent.training.preference import PreferenceTraining

    kinds: dict[str, type[TrainingConfig]] = {
        "sft": TrainingConfig,
        "distill": DistillTraining,
        "dpo": PreferenceTraining,
        "grpo": GroupTraining,
    }
    tuning = load_tree(kinds[method], preset, settings)
    shared = ("data.", "planner.", "procedure.", "lora.", "seed=")
    both = [setting for setting in settings if setting.startswith(shared)]
    starting = None if start_config is None else load_training(start_config, both)
    _require(*_TUNING)
    given = ["train", "gate", method, *(["--config", preset] if preset else []), "--parts", parts]
    given += [*(["--fit-temperature"] if fit_temperature else []), *settings]
    command = shlex.join(["run_agent.py", *map(str, given)])
    ships = adapter_gate.run(
        method,
        tuning,
        out,
        parts=parts,
        starting=starting,
        command=command,
        calibrated=fit_temperature,
        say=click.echo,
    )
    return 0 if ships else 1


def _require(*modules: str) -> None:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} is not installed, and training needs it; pip install stream-agent[train]"
        )


def _folder(out: Path) -> Path:
    if not out.is_dir():
        raise ConfigError(f"--out {out} is no folder; name that of a procedure pack, or make a new one first")
    return out


def _names(given: tuple[str, ...]) -> frozenset[str]:
    return frozenset(name.strip() for part in given for name in part.split(",") if name.strip())
