"""How well does a language model rank the next action, asked through the agent's own rank lane and nothing else?

    python -m stream_agent.evaluation.zero_shot --sap ../shared/data/sap/total_video_info.json planner.kind=… planner.model=DIR

Label histories alone, of the 57 published test samples (`official`: the same questions, no frame is shown). No fusion with the
statistical planner, no fitted temperature, no training of any kind: the row to set beside the published zero-shot rows. The 57
cannot tell planners apart that are less than about 25 points from each other. What is to be chosen (`planner.question`,
`planner.knowledge`, `planner.permutations`) is chosen with `--train`, which asks about the 168 training samples instead.
"""  # noqa: D400

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

from stream_agent.config import load_config
from stream_agent.errors import ConfigError, StreamAgentError
from stream_agent.evaluation.dataset import TEST_VIDEOS, TRAIN_VIDEOS, load_sap
from stream_agent.evaluation.metrics import Outcome, re_slacc, re_vlacc, slacc, vlacc
from stream_agent.evaluation.model_beliefs import LanguageModel, outcomes
from stream_agent.evaluation.samples import TRACKS, Sample, samples
from stream_agent.models.in_use import planner_in_use
from stream_agent.procedure import load_pack
from stream_agent.training.calibration import log_loss, targets_of


async def rank(questions: Sequence[Sample], settings: Sequence[str]) -> tuple[list[Outcome], dict[str, object]]:
    """Every sample's answer, and what the answering took."""
    config = load_config(None, ["planner.memory=labels_only", *settings])
    pack = load_pack(config.procedure.pack)
    config = config.model_copy(update={"planner": planner_in_use(config.models, config.planner, pack.name)})
    model = LanguageModel(pack, config.planner)
    try:
        able = await model.start()
        asked = await model.ask(questions, config.planner)
    finally:
        await model.close()
    return outcomes(asked.samples, asked.beliefs, pack.action_names), {
        "model": able.model,
        "digest": able.digest,
        "prompt": asked.prompt,
        "knowledge": config.planner.knowledge,
        "question": config.planner.question,
        "permutations": config.planner.permutations,
        "nll": round(log_loss(asked.beliefs, targets_of(asked.samples, pack.action_names)), 3),
        "ms_per_rank_p50": asked.ms_p50,
        "cached_share": asked.cached_share,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print the row and a line of JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sap", type=Path, required=True, help="total_video_info.json of CholecT50-SAP")
    parser.add_argument("--train", action="store_true", help="ask about the training samples, to choose settings by")
    parser.add_argument(
        "--track", choices=TRACKS, default="official", help="causal asks a second earlier (default: %(default)s)"
    )
    parser.add_argument("settings", nargs="*", metavar="planner.key=value")
    given = parser.parse_args(argv)
    asked = [
        sample
        for video, clips in load_sap(given.sap).items()
        if video in (TRAIN_VIDEOS if given.train else TEST_VIDEOS)
        for sample in samples(clips, track=given.track, history="action_reg")
    ]
    if not asked:
        print(f"error: {given.sap} has no sample of these videos; name the annotation of CholecT50-SAP")
        return ConfigError.exit_code
    try:
        answers, spent = asyncio.run(rank(asked, given.settings))
    except StreamAgentError as error:
        print(f"error: {error}")
        return error.exit_code
    row: dict[str, object] = {"samples": len(answers), "videos": "training" if given.train else "test", **spent}
    for name, metric in (("SLAcc", slacc), ("VLAcc", vlacc), ("Re SLAcc", re_slacc), ("Re VLAcc", re_vlacc)):
        values = [round(metric(answers, k), 2) for k in (1, 2, 3)]
        row[name] = values
        print(f"{name:9}{'/'.join(f'{value:.2f}' for value in values)}")
    print(json.dumps(row))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
