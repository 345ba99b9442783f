"""What accuracy is left when late answers count as wrong?

The streaming protocol (stream_agent/evaluation/streaming.py) on test videos of CholecT50's Rendezvous split that have 1 Hz
instruments: in every second the plan on display a latency earlier is asked for the clip that comes next then. The shipped
planner has seen none of these videos, and neither has what turns instruments into clips, which is fitted on the training
videos here. `right_1` counts a late answer if it still happens to be true; `left_1` counts it as wrong once it is later than
planner.deadline_ms, which is what the product does: nothing expired is shown.

Methods are rungs and what of the memory they may see (`labels`: the label model alone; `no_instruments`, `near_only`: the
whole planner with the rest blanked, not refitted; `constant`: always the most frequent action). The limit is the same answer
with no latency at all. It needs ../shared/data; nothing here is fitted on, tuned to or chosen by what it says.
"""  # noqa: D400

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.inputs import DATA
from benchmarks.report import Report, Row, arguments, figure, first_line, row_of, run_main
from stream_agent.config import AgentConfig, PlannerConfig
from stream_agent.evaluation.dataset import TEST_VIDEOS, TRAIN_VIDEOS, SapClip, load_presence, load_sap
from stream_agent.evaluation.streaming import Watched, watch
from stream_agent.messages import RANKED, Memory, Plan, PlanRequest
from stream_agent.planner.protocol import Planner
from stream_agent.planner.statistical import StatisticalPlanner
from stream_agent.procedure import load_pack
from stream_agent.training import signals

_QUESTION = first_line(__doc__)
_LATENCIES_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)


class _Blinded:
    """A planner that is shown part of the memory."""

    def __init__(self, planner: Planner, shown: Callable[[Memory], Memory]) -> None:
        self.name = planner.name
        self._planner = planner
        self._shown = shown

    def plan(self, request: PlanRequest) -> Plan:
        """The planner's, from what it is shown."""
        return self._planner.plan(msgspec.structs.replace(request, memory=self._shown(request.memory)))


def main() -> int:
    parser = arguments(_QUESTION)
    parser.add_argument("--sap", type=Path, default=DATA / "sap" / "total_video_info.json")
    parser.add_argument("--signals", type=Path, default=DATA / "cholec80" / "phase_tool_1hz")
    options = parser.parse_args()
    config = AgentConfig()
    report = Report(
        "accuracy_latency",
        _QUESTION,
        {"deadline_ms": config.planner.deadline_ms, "valid_s": config.planner.valid_s},
        columns=("right_1", "right_2", "right_3", "left_1"),
        better="higher",
    )
    if not (options.sap.is_file() and options.signals.is_dir()):
        report.not_run["all"] = f"{options.sap} or {options.signals} is not there; name them with --sap and --signals"
        return report.finish(options)
    videos = load_sap(options.sap)
    presence = load_presence(options.signals, videos)
    model = signals.fit({name: clips for name, clips in videos.items() if name in TRAIN_VIDEOS}, presence)
    names = sorted(name for name in TEST_VIDEOS if name in presence and name in videos)[: 3 if options.quick else None]
    report.settings |= {"videos": names, "fitted_on": "CholecT50's training videos"}
    for method, planner in _planners(config.planner).items():
        watched = {
            name: watch(
                name,
                presence[name],
                until_s=videos[name][-1].start_s + 1,
                pack=load_pack(Path("cholecystectomy")),
                planner=planner,
                model=model,
                config=config,
            )
            for name in names
        }
        _add_rows(report, method, watched, {name: videos[name] for name in names}, config.planner)
    report.rows.append(_constant({name: videos[name] for name in names}))
    report.notes.append(
        "shares of all seconds between the first and the last clip's start; times are those of one plan"
    )
    return report.finish(options)


def _planners(config: PlannerConfig) -> dict[str, Planner]:
    pack = load_pack(Path("cholecystectomy"))
    whole = StatisticalPlanner(pack, config)
    return {
        "statistical": whole,
        "statistical_no_instruments": _Blinded(whole, _without_instruments),
        "statistical_near_only": _Blinded(whole, lambda memory: msgspec.structs.replace(memory, clips=(), folded=())),
        "statistical_labels": StatisticalPlanner(dataclasses.replace(pack, ensemble=None), config),
    }


def _without_instruments(memory: Memory) -> Memory:
    return msgspec.structs.replace(memory, instrument_s=(), instrument_use=(), instruments=())


def _add_rows(
    report: Report,
    method: str,
    watched: dict[str, Watched],
    videos: dict[str, Sequence[SapClip]],
    config: PlannerConfig,
) -> None:
    """One row per latency."""
    for late_s in _LATENCIES_S:
        right = [0] * RANKED
        seconds = 0
        for name, clips in videos.items():
            for clip, following in pairwise(clips):
                for second in range(max(clip.start_s, 1), following.start_s):
                    seconds += 1
                    plan = watched[name].on_display(second - late_s)
                    ranked = [] if plan is None else [item.action for item in plan.ranked]
                    for best in range(RANKED):
                        right[best] += following.action in ranked[: best + 1]
        more: dict[str, Any] = {f"right_{best + 1}": count / seconds for best, count in enumerate(right)}
        more["left_1"] = more["right_1"] if 1000 * late_s <= config.deadline_ms else 0.0
        plan_ms = [one.plan_ms for one in watched.values()]
        report.rows.append(row_of(method, f"late_{late_s:g}s", plan_ms, seconds=seconds, **more))


def _constant(videos: dict[str, Sequence[SapClip]]) -> Row:
    """Dissection first, or Tissue Retraction while it goes on: nothing to be late with."""
    right = seconds = 0
    for clips in videos.values():
        for clip, following in pairwise(clips):
            held_s = following.start_s - max(clip.start_s, 1)
            seconds += held_s
            right += held_s * (
                following.action == ("Tissue Retraction" if clip.action == "Dissection" else "Dissection")
            )
    share = right / seconds
    return figure("constant", "never_late", seconds, right_1=share, left_1=share)


if __name__ == "__main__":
    run_main(main)
