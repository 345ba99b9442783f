"""The rows of an adapter's report: who said what, alone and fused, every row measured alike; as figures and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from stream_agent.config import FusionConfig
from stream_agent.evaluation import metrics
from stream_agent.evaluation.model_beliefs import Beliefs, outcomes
from stream_agent.evaluation.samples import Sample
from stream_agent.training.calibration import Fit, log_loss, pooled, targets_of, tempered

ADAPTER: Final = "adapter"
"""What the adapter that is reported on is called in rows; what it began with is called otherwise."""

_STATISTICAL = "statistical"
_METRICS = {
    "SLAcc": metrics.slacc,
    "VLAcc": metrics.vlacc,
    "Re SLAcc": metrics.re_slacc,
    "Re VLAcc": metrics.re_vlacc,
}


@dataclass(frozen=True, slots=True, eq=False)
class Weighed:
    """What an adapter believes, and what temperature and fusion weight make of it.

    Attributes:
        own: As it answered, at temperature 1.
        calibrated: At a fitted temperature.
        fused: That, fused with the statistical planner by a fitted weight.
        fitted: The two numbers, in words.
    """

    own: Beliefs
    calibrated: Beliefs
    fused: Beliefs
    fitted: str


def weighed(found: Fit, statistical: Beliefs, own: Beliefs, fusion: FusionConfig) -> Weighed:
    """An adapter's beliefs under numbers that were fitted elsewhere."""
    calibrated = tempered(own, found.temperature)
    fused = pooled(statistical, calibrated, fusion.model_copy(update={"model": found.weight}))
    return Weighed(own, calibrated, fused, f"w={found.weight:.3g}, T={found.temperature:.3g}")


def rows_of(
    base: Beliefs, statistical: Beliefs, taught: Mapping[str, Weighed | Beliefs], fusion: FusionConfig
) -> dict[str, Beliefs]:
    """Everybody's beliefs under the names of the report, in its order; adapters' with fitted numbers where there are any."""
    rows = {"zero-shot": base}
    for name, said in taught.items():
        rows[name] = said.own if isinstance(said, Weighed) else said
        if isinstance(said, Weighed):
            rows[f"{name}, fitted temperature"] = said.calibrated
    rows[_STATISTICAL] = statistical
    for name, said in taught.items():
        fused = "fused" if name == ADAPTER else f"fused with {name}"
        rows[f"{fused} as configured (w={fusion.model:g}, T=1)"] = pooled(statistical, rows[name], fusion)
        if isinstance(said, Weighed):
            rows[f"{fused}, fitted ({said.fitted})"] = said.fused
    return rows


def measured(rows: Mapping[str, Beliefs], samples: Sequence[Sample], actions: Sequence[str]) -> dict[str, Any]:
    """Every row's figures; one of them is the statistical planner's, which all are compared with."""
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
                for key, value in asdict(metrics.paired_bootstrap(answers, measure[_STATISTICAL], 1)).items()
            },
        }
    return report


def table(rows: Mapping[str, Any]) -> str:
    """What `measured` found, in Markdown."""
    names = [
        "row",
        "SLAcc@1/2/3",
        "95 % @1",
        *(f"{name}@1/2/3" for name in list(_METRICS)[1:]),
        "macro-F1",
        "NLL",
        "ECE",
        "minus statistical @1",
    ]
    lines = ["| " + " | ".join(names) + " |", "| --- " * len(names) + "|"]
    for name, row in rows.items():
        cells = ["/".join(f"{value:.2f}" for value in row[metric]) for metric in _METRICS]
        cells.insert(1, f"{row['interval'][0]:.0f} to {row['interval'][1]:.0f}")
        gain = row["minus_statistical"]
        cells += [f"{row['macro_f1']:.1f}", f"{row['nll']:.3f}", f"{row['ece']:.3f}"]
        cells.append(f"{gain['value']:+.1f} ({gain['low']:+.1f} to {gain['high']:+.1f})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
