"""How far apart two models are that nobody means to differ: what the margins of `configs/model_gate.yaml` rest on.

    python -m stream_agent.models.margin_study --sap ../shared/data/sap/total_video_info.json \
        --signals ../shared/data/cholec80/phase_tool_1hz

The recipe of the shipped model, fitted without three drawn training videos, against the same fitted on all 35; 5-fold
cross-validation over the training videos. A margin that such models do not clear would refuse what is as good.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Final

from stream_agent.evaluation import metrics
from stream_agent.models.statistical_record import Bench

DRAWS: Final = 8
LEFT_OUT: Final = 3


def main() -> None:
    """Print a row per draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sap", type=Path, required=True)
    parser.add_argument("--signals", type=Path, required=True)
    options = parser.parse_args()
    bench = Bench(Path("cholecystectomy"), options.sap, options.signals, "5fold")
    names = sorted(bench.videos)
    _, whole = bench.cross_validated(names, with_memory=True)
    chance = metrics.expected_ece([one.probabilities[0] for one in whole if one.probabilities])
    print(
        f"all {len(names)}: SLAcc@1 {metrics.slacc(whole, 1):.1f}, ECE {metrics.ece(whole):.3f} (by chance {chance.value:.3f})"
    )
    print("| without | SLAcc@1 | points | 95 % | ECE | difference |\n| --- | --- | --- | --- | --- | --- |")
    for draw in range(DRAWS):
        without = sorted(random.Random(draw).sample(names, LEFT_OUT))
        _, part = bench.cross_validated([name for name in names if name not in without], with_memory=True)
        found = metrics.paired_bootstrap(part, whole)
        error = metrics.ece(part)
        print(
            f"| {', '.join(without)} | {metrics.slacc(part, 1):.1f} | {found.value:+.1f} | {found.low:+.1f} … {found.high:+.1f} "
            f"| {error:.3f} | {error - metrics.ece(whole):+.3f} |"
        )


if __name__ == "__main__":
    main()
