"""What an adapter is worth beside its base and the statistical planner: `run_agent.py train evaluate --adapter`.

    chosen-by videos (of the training videos, never fitted) ─▶ temperature and fusion weight
    the 57 samples of the 15 test videos, causal track      ─▶ zero-shot · adapter · statistical · both fused, each asked once

The statistical planner that the weight is fitted beside has not seen the chosen-by videos either; the one that answers the test
samples is fitted on all 35 training videos. The chosen-by videos chose the adapter's step, too, so the weight trusts it a little
too much (`trial_report.py` fits it on videos that chose nothing); the test rows do not suffer from that. Of an adapter without
such videos nothing is fitted. The official 57 cannot tell planners apart that are less than about 25 points from each other: the
paired bootstrap beside them says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stream_agent.evaluation.model_beliefs import Beliefs
from stream_agent.evaluation.protocols import Fold
from stream_agent.training.calibration import fit, targets_of
from stream_agent.training.panel import HISTORY, TRACK, Panel
from stream_agent.training.report_rows import ADAPTER, Weighed, measured, rows_of, weighed
from stream_agent.training.taught_adapter import load_taught


def evaluate_adapter(
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
    taught = load_taught(adapter, model, settings)
    panel = Panel(taught, sap, signals=signals, keep=keep, say=say)
    asked = panel.samples(panel.tests)
    statistical = panel.statistical("statistical", [Fold(panel.training, panel.tests)], asked)
    fusion = taught.planner.fusion
    told: dict[str, Any] = {"chosen_by_samples": 0}
    if taught.chosen_by:
        held = panel.samples(taught.chosen_by)
        beside = panel.statistical("statistical beside", [Fold(taught.fitted_on, taught.chosen_by)], held)
        said = panel.language(
            {"base beside": (None, held), "base": (None, asked), "held": (taught, held), "test": (taught, asked)}
        )
        found = fit(beside, said["held"], targets_of(held, panel.actions), fusion)
        own: Weighed | Beliefs = weighed(found, statistical, said["test"], fusion)
        rows = {"zero-shot": said["base beside"], ADAPTER: said["held"], "statistical": beside}
        told = {
            "chosen_by_samples": len(held),
            "temperature": found.temperature,
            "fusion_weight": found.weight,
            "chosen_by": measured(rows, held, panel.actions),
        }
    else:
        said = panel.language({"base": (None, asked), "test": (taught, asked)})
        own = said["test"]
    return {
        "adapter": taught.folder.name,
        "weights": taught.weights,
        "track": TRACK,
        "history": HISTORY,
        "samples": len(asked),
        "statistical_planner": panel.how,
        "rows": measured(rows_of(said["base"], statistical, {ADAPTER: own}, fusion), asked, panel.actions),
        **told,
    }
