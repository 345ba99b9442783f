"""How well does a language model rank the next action, asked through the agent's own rank lane and nothing else?

    python -m stream_agent.evaluation.zero_shot --sap ../shared/data/sap/total_video_info.json planner.kind=… planner.model=DIR

Label histories alone, of the 57 published test samples (`official`: the same questions, no frame is shown). No fusion with the
statistical planner, no fitted temperature, no training of any kind: the row to set beside the published zero-shot rows. The 57
cannot tell planners apart that are less than about 25 points from each other.
"""  # noqa: D400

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stream_agent.config import load_config
from stream_agent.errors import StreamAgentError
from stream_agent.evaluation.dataset import TEST_VIDEOS, load_sap
from stream_agent.evaluation.metrics import Outcome, re_slacc, re_vlacc, slacc, vlacc
from stream_agent.evaluation.samples import Sample, as_memory, samples
from stream_agent.messages import RANKED, PlanRequest
from stream_agent.planner.backends import build_backend
from stream_agent.planner.backends.protocol import Call
from stream_agent.planner.rank_lane import RankLane
from stream_agent.procedure import load_pack
from stream_agent.prompts import PromptFactory


async def rank(questions: Sequence[Sample], settings: Sequence[str]) -> tuple[list[Outcome], dict[str, object]]:
    """Every sample's answer, and what the answering took."""
    config = load_config(None, ["planner.memory=labels_only", *settings])
    pack, planner = load_pack(config.procedure.pack), config.planner
    backend = build_backend(planner)
    lane = RankLane(
        backend,
        PromptFactory(pack, planner),
        pack.action_names,
        permutations=planner.permutations,
        temperature=planner.temperature,
    )
    outcomes, spent_s = [], []
    try:
        able = await backend.start()
        lane.check_codes()
        for number, sample in enumerate(questions):
            request = PlanRequest(request_id=number, memory=as_memory(sample.question), deadline_ns=0)
            begun = time.perf_counter()
            [belief] = await lane.rank([request], Call(f"zero-shot-{number}", salt="evaluation"))
            spent_s.append(time.perf_counter() - begun)
            best = np.argsort(-belief, kind="stable")[:RANKED]
            outcomes.append(
                Outcome(
                    sample.question.video,
                    sample.index,
                    sample.target,
                    sample.following,
                    tuple(pack.action_names[place] for place in best),
                    tuple(float(belief[place]) for place in best),
                )
            )
        usage = backend.usage()
    finally:
        await backend.close()
    return outcomes, {
        "model": able.model,
        "digest": able.digest,
        "ms_per_rank_p50": round(float(np.median(spent_s)) * 1000, 1),
        "cached_share": round(usage.cached_tokens / max(1, usage.prompt_tokens), 3),
    }


def main() -> int:
    """Print the row and a line of JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sap", type=Path, required=True, help="total_video_info.json of CholecT50-SAP")
    parser.add_argument("settings", nargs="*", metavar="planner.key=value")
    given = parser.parse_args()
    asked = [
        sample
        for video, clips in load_sap(given.sap).items()
        if video in TEST_VIDEOS
        for sample in samples(clips, track="official", history="action_reg")
    ]
    try:
        outcomes, spent = asyncio.run(rank(asked, given.settings))
    except StreamAgentError as error:
        print(f"error: {error}")
        return error.exit_code
    row: dict[str, object] = {"samples": len(outcomes), **spent}
    for name, metric in (("SLAcc", slacc), ("VLAcc", vlacc), ("Re SLAcc", re_slacc), ("Re VLAcc", re_vlacc)):
        values = [round(metric(outcomes, k), 2) for k in (1, 2, 3)]
        row[name] = values
        print(f"{name:9}{'/'.join(f'{value:.2f}' for value in values)}")
    print(json.dumps(row))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
