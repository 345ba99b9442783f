"""What an adapter is worth beside its base and the statistical planner: `run_agent.py train evaluate`.

    chosen-by videos (of the training videos, never fitted) ─▶ temperature and fusion weight
    the 57 samples of the 15 test videos, causal track      ─▶ zero-shot · adapter · statistical · both fused, each asked once

The statistical planner that the weight is fitted beside has not seen the chosen-by videos either; the one that answers the test
samples is fitted on all 35 training videos. The chosen-by videos chose the adapter's step, too, so the weight trusts it a little
too much; the test rows do not suffer from that. The official 57 cannot tell planners apart that are less than about 25 points from
each other: the paired bootstrap beside them says so.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import ValidationError

from stream_agent import __version__
from stream_agent.config import PlannerConfig
from stream_agent.errors import ConfigError
from stream_agent.evaluation import metrics
from stream_agent.evaluation.dataset import TEST_VIDEOS, load_presence, load_sap
from stream_agent.evaluation.lineup import statistical_planner
from stream_agent.evaluation.model_beliefs import Beliefs, LanguageModel, outcomes, statistical_beliefs
from stream_agent.evaluation.protocols import Fold, Questions
from stream_agent.evaluation.samples import Sample
from stream_agent.planner.backends.adapters import WEIGHTS, adapter_directory
from stream_agent.procedure import ProcedurePack, load_pack
from stream_agent.prompts import PromptFactory
from stream_agent.training.calibration import fit, log_loss, pooled, targets_of, tempered
from stream_agent.training.data import require_training_only
from stream_agent.training.kept_beliefs import KeptBeliefs

_NAME = "taught"
"""What the adapter is called in the backend."""

_METRICS = {
    "SLAcc": metrics.slacc,
    "VLAcc": metrics.vlacc,
    "Re SLAcc": metrics.re_slacc,
    "Re VLAcc": metrics.re_vlacc,
}


def evaluate(
    adapter: Path,
    sap: Path,
    *,
    signals: Path | None = None,
    model: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    keep: Path | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Rows for the 57, and how the fusion was fitted.

    Args:
        adapter: A folder that training wrote.
        sap: `total_video_info.json`.
        signals: Folder of `videoNN.csv`, for the statistical planner.
        model: The base model's directory, where it is another than the adapter was trained with.
        settings: More of `planner.*`, for the backend.
        keep: Folder for everybody's beliefs: those of base and statistical planner are the same for the next adapter.
        say: Hears of progress.

    Raises:
        ConfigError: The folder is no adapter of ours, was fitted on a test video, or the prompts have changed since.
        BackendError: The model failed.
    """
    folder, kept = adapter_directory(adapter), KeptBeliefs(keep)
    planner, record = _asked_as_trained(folder, model, settings or {})
    weights = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()[:12]
    fitted_on, chosen_by = record["data"]["fitted_on"], record["data"]["chosen_by"]
    require_training_only([*fitted_on, *chosen_by])
    pack = load_pack(Path(record.get("pack", "cholecystectomy")))
    digest = PromptFactory(pack, planner).digest
    if digest != record["data"]["prompt"]:
        raise ConfigError(
            f"{folder.name} was taught with prompts of digest {record['data']['prompt']}, those of now have {digest}; evaluate it "
            "with the version that trained it, or train again"
        )
    if not chosen_by:
        raise ConfigError(
            f"{folder.name} was trained without validation videos, so no weight can be fitted; train with data.validation"
        )
    videos = load_sap(sap)
    presence = load_presence(signals, videos) if signals is not None else {}
    questions = Questions(videos, presence)
    tests = sorted(TEST_VIDEOS & videos.keys())
    asked = [s for name in tests for s in questions.samples(name, "causal", "action_reg")]
    held = [s for name in chosen_by for s in questions.samples(name, "causal", "action_reg")]
    fitter, how = statistical_planner()
    about = _circumstances(sap, presence, record, planner, how)
    training = sorted(videos.keys() - TEST_VIDEOS)
    splits = {
        "statistical beside": (held, Fold(tuple(fitted_on), tuple(chosen_by))),
        "statistical": (asked, Fold(tuple(training), tuple(tests))),
    }
    answers: dict[str, Beliefs] = {}
    for name, (part, fold) in splits.items():
        wanted = {**about, "row": name, "fitted_on": list(fold.train), "asked": _named(part)}
        known = kept.find(wanted)
        if known is None:
            say(f"{name}: fitted on {len(fold.train)} videos ({how})")
            known = statistical_beliefs([fold], videos, presence, part, pack.action_names, fitter)
            kept.keep(wanted, known)
        answers[name] = known
    alone = planner.model_copy(update={"adapter": ""})
    asked_of = {"base beside": (alone, held), "base": (alone, asked), "held": (planner, held), "test": (planner, asked)}
    wishes = {
        name: {
            **about,
            "row": name,
            "adapter": weights if config.adapter else "",
            "prompt": digest,
            "asked": _named(part),
        }
        for name, (config, part) in asked_of.items()
    }
    answers |= {name: known for name, wish in wishes.items() if (known := kept.find(wish)) is not None}
    missing = {name: questions for name, questions in asked_of.items() if name not in answers}
    if missing:
        for name, beliefs in asyncio.run(_beliefs(pack, planner, missing, say)).items():
            answers[name] = beliefs
            kept.keep(wishes[name], beliefs)
    beside, statistical = answers["statistical beside"], answers["statistical"]
    found = fit(beside, answers["held"], targets_of(held, pack.action_names), planner.fusion)
    weighed = planner.fusion.model_copy(update={"model": found.weight})
    warm = tempered(answers["test"], found.temperature)
    rows = {
        "zero-shot": answers["base"],
        "adapter": answers["test"],
        "adapter, fitted temperature": warm,
        "statistical": statistical,
        f"fused as configured (w={planner.fusion.model:g}, T=1)": pooled(statistical, answers["test"], planner.fusion),
        f"fused, fitted (w={found.weight:.3g}, T={found.temperature:.3g})": pooled(statistical, warm, weighed),
    }
    report = _report(rows, asked, pack.action_names)
    return {
        "adapter": folder.name,
        "weights": weights,
        "track": "causal",
        "history": "action_reg",
        "samples": len(asked),
        "chosen_by_samples": len(held),
        "temperature": found.temperature,
        "fusion_weight": found.weight,
        "statistical_planner": how,
        "rows": report,
        "chosen_by": _report(
            {"zero-shot": answers["base beside"], "adapter": answers["held"], "statistical": beside},
            held,
            pack.action_names,
        ),
    }


def table(found: Mapping[str, Any], part: str = "rows") -> str:
    """The report in Markdown; `part` is `rows`, of the test samples, or `chosen_by`, of the videos that chose the step."""
    names = [
        "row",
        "SLAcc@1/2/3",
        "95 % @1",
        *(f"{name}@1/2/3" for name in list(_METRICS)[1:]),
        "macro-F1",
        "NLL",
        "ECE",
    ]
    names.append("minus statistical @1")
    lines = ["| " + " | ".join(names) + " |", "| --- " * len(names) + "|"]
    for name, row in found[part].items():
        cells = ["/".join(f"{value:.2f}" for value in row[metric]) for metric in _METRICS]
        cells.insert(1, f"{row['interval'][0]:.0f} to {row['interval'][1]:.0f}")
        gain = row["minus_statistical"]
        cells += [f"{row['macro_f1']:.1f}", f"{row['nll']:.3f}", f"{row['ece']:.3f}"]
        cells.append(f"{gain['value']:+.1f} ({gain['low']:+.1f} to {gain['high']:+.1f})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _circumstances(
    sap: Path, presence: Mapping[str, Any], record: Mapping[str, Any], planner: PlannerConfig, how: str
) -> dict[str, object]:
    """What the answers of base and statistical planner depend on, but for the videos."""
    return {
        "version": __version__,
        "sap": hashlib.sha256(sap.read_bytes()).hexdigest()[:16],
        "signals": {name: int(rows.sum()) for name, rows in sorted(presence.items())},
        "base": record.get("base_digest", ""),
        "permutations": planner.permutations,
        "dtype": planner.dtype,
        "statistical_planner": how,
    }


def _named(part: Sequence[Sample]) -> list[str]:
    return [f"{sample.question.video}/{sample.index}" for sample in part]


def _asked_as_trained(
    folder: Path, model: Path | None, settings: Mapping[str, Any]
) -> tuple[PlannerConfig, dict[str, Any]]:
    """The planner's section as the adapter was trained, with the adapter in it, and the record."""
    try:
        tree = yaml.safe_load((folder / "training.yaml").read_text(encoding="utf-8"))
        record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        trained = tree["planner"]
        _ = record["data"]["fitted_on"], record["data"]["chosen_by"], record["data"]["prompt"]
        record["pack"] = tree["procedure"]["pack"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{folder} has no training.yaml with record.json ({type(error).__name__}: {error}); name a folder that `train` wrote"
        ) from error
    told = {**trained, "kind": "transformers", "dtype": "auto", "adapters": {_NAME: str(folder)}, "adapter": _NAME}
    if model is not None:
        told["model"] = str(model)
    try:
        return PlannerConfig.model_validate({**told, **settings}), record
    except ValidationError as error:
        raise ConfigError(f"{folder}/training.yaml: {error.errors()[0]['msg']}; correct it or train again") from error


async def _beliefs(
    pack: ProcedurePack,
    planner: PlannerConfig,
    wanted: Mapping[str, tuple[PlannerConfig, Sequence[Sample]]],
    say: Callable[[str], None],
) -> dict[str, Beliefs]:
    """One model, started once, asked with and without its adapter."""
    model = LanguageModel(pack, planner)
    found: dict[str, Beliefs] = {}
    try:
        await model.start()
        for name, (config, samples) in wanted.items():
            asked = await model.ask(samples, config)
            say(f"{name}: {len(samples)} samples, {asked.ms_p50:.0f} ms per ranking")
            found[name] = asked.beliefs
    finally:
        await model.close()
    return found


def _report(rows: Mapping[str, Beliefs], samples: Sequence[Sample], actions: Sequence[str]) -> dict[str, Any]:
    targets = targets_of(samples, actions)
    measure = {name: outcomes(samples, beliefs, actions) for name, beliefs in rows.items()}
    report = {}
    for name, answers in measure.items():
        interval = metrics.bootstrap_slacc(answers, 1)
        report[name] = {
            **{label: [round(metric(answers, k), 2) for k in (1, 2, 3)] for label, metric in _METRICS.items()},
            "interval": [round(interval.low, 1), round(interval.high, 1)],
            "macro_f1": round(metrics.macro_f1(answers), 2),
            "nll": round(log_loss(np.asarray(rows[name]), targets), 4),
            "ece": round(metrics.ece(answers), 4),
            "minus_statistical": {
                key: round(value, 2)
                for key, value in asdict(metrics.paired_bootstrap(answers, measure["statistical"], 1)).items()
            },
        }
    return report
