"""How long do a recognised frame and a statistical plan take?

The recogniser as the agent runs it, from planes in the ring: reduced without aliasing, then the ONNX model with one and with two
threads; `reduce` is the first part alone, and its limit one pass over the planes (`read_once`). The statistical planner
answers for every frame, in the agent's loop, and must cost nothing beside 16.7 ms; its limit is the plan itself: building one
`Plan` with what it holds takes some 10 µs of Python. `cold` makes a new planner for every plan, so that nothing remembered
helps. `see` is all that a frame does to a case: gate, recogniser, segmenter, memory, plan.
"""  # noqa: D400

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.histories import HISTORIES, drawn_memory
from benchmarks.inputs import KINDS, pictures
from benchmarks.pair import sizes
from benchmarks.report import Report, arguments, first_line, row_of, run_main
from stream_agent.case import Case
from stream_agent.config import AgentConfig, PlannerConfig, RecogniserConfig
from stream_agent.errors import ConfigError
from stream_agent.messages import FrameHeader, Memory, PlanRequest
from stream_agent.perception.gate import Gate
from stream_agent.perception.perceive import Perception, build_recogniser
from stream_agent.perception.protocol import Recogniser
from stream_agent.perception.segmenter import Segmenter
from stream_agent.perception.thumbnail import thumbnail
from stream_agent.planner.statistical import StatisticalPlanner
from stream_agent.procedure import ProcedurePack, load_pack
from stream_agent.source.protocol import Planes

_QUESTION = first_line(__doc__)
_THREADS = (1, 2)
_PICTURES = 6


def main() -> int:
    parser = arguments(_QUESTION)
    parser.add_argument("--model", type=Path, default=None, help="ONNX recogniser; the pack's own when left out")
    options = parser.parse_args()
    quick = options.quick
    pack = load_pack(Path("cholecystectomy"))
    report = Report(
        "recognise",
        _QUESTION,
        {
            "pack": pack.name,
            "frames": 30 if quick else 100,
            "plans": 300 if quick else 2000,
            "rounds": 3 if quick else 5,
        },
        columns=("spread",),
    )
    cv2.setNumThreads(1)  # as in the agent
    _recognise(report, pack, options.model)
    _plan(report, pack)
    return report.finish(options)


def _recognise(report: Report, pack: ProcedurePack, model: Path | None) -> None:
    """Rows per size of picture: every method looks at the same frame, one after the other."""
    config = AgentConfig()
    shipped: dict[int, Perception] = {}
    try:
        for threads in _THREADS:
            recogniser = build_recogniser(
                RecogniserConfig(kind="onnx", model=model, threads=threads), pack, "video.mp4"
            )
            shipped[threads] = Perception(Gate(config.gate), recogniser)
    except ConfigError as error:
        report.not_run["recogniser"] = str(error)
        return
    case = Case(
        pack,
        shipped[1],
        Segmenter(pack.action_names, config.segmenter),
        StatisticalPlanner(pack, config.planner),
        memory=config.memory,
        planning=config.planner,
    )
    for size, (width, height) in sizes.items():
        shown = _shown(width, height)
        methods: dict[str, Callable[[FrameHeader, Planes], object]] = {
            "read_once": lambda _, planes: int(planes.max()),
            "reduce": lambda header, planes: thumbnail(planes, header),
        }
        for threads, perception in shipped.items():
            methods[f"recogniser_{threads}_thread{'s' * (threads > 1)}"] = partial(_look, perception.recogniser)
        methods["see"] = lambda header, planes: case.see(header, thumbnail(planes, header))
        taken: dict[str, list[list[float]]] = defaultdict(list)
        for round_ in range(report.settings["rounds"]):
            for name in methods:
                taken[name].append([])
            for index in range(report.settings["frames"]):
                header = FrameHeader(
                    stream_id="endoscope",
                    session_id=size,
                    seq=index,
                    pts_s=(round_ * report.settings["frames"] + index) / 10,
                    captured_ns=index,
                    width=width,
                    height=height,
                )
                for name, call in methods.items():
                    taken[name][-1].append(_ms(call, header, shown[index % len(shown)]))
        for name, rounds in taken.items():
            report.rows.append(
                row_of(name, size, rounds, reference_ms=None if name == "read_once" else taken["read_once"])
            )
    report.notes.append("ratio: against reading the planes once")


def _shown(width: int, height: int) -> list[Planes]:
    kind = next(kind for kind in KINDS.values() if (kind.width, kind.height) == (width, height))
    return [planes.copy() for planes in islice(pictures(kind), _PICTURES)]


def _look(recogniser: Recogniser, header: FrameHeader, planes: Planes) -> object:
    return recogniser.evidence(header, thumbnail(planes, header))


def _ms(call: Callable[[FrameHeader, Planes], object], header: FrameHeader, planes: NDArray[np.uint8]) -> float:
    began_ns = time.perf_counter_ns()
    call(header, planes)
    return (time.perf_counter_ns() - began_ns) / 1e6


def _plan(report: Report, pack: ProcedurePack) -> None:
    plans: int = report.settings["plans"]
    taken: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
    for case, (clips, folded) in HISTORIES.items():
        drawn = [drawn_memory(pack, clips=clips, folded=folded, seed=seed) for seed in range(plans)]
        for _ in range(report.settings["rounds"]):
            warm = StatisticalPlanner(pack, PlannerConfig())
            warm.plan(_request(drawn[0], 0))
            taken["warm", case].append([_planned_ms(warm, memory, index) for index, memory in enumerate(drawn)])
            taken["cold", case].append(
                [
                    _planned_ms(StatisticalPlanner(pack, PlannerConfig()), memory, index)
                    for index, memory in enumerate(drawn[: plans // 10])
                ]
            )
    for (method, case), rounds in taken.items():
        report.rows.append(row_of(f"statistical_{method}", case, rounds))


def _planned_ms(planner: StatisticalPlanner, memory: Memory, index: int) -> float:
    request = _request(memory, index)
    began_ns = time.perf_counter_ns()
    plan = planner.plan(request)
    taken_ms = (time.perf_counter_ns() - began_ns) / 1e6
    assert len(plan.ranked) == 3
    return taken_ms


def _request(memory: Memory, index: int) -> PlanRequest:
    return PlanRequest(request_id=0, memory=memory, deadline_ns=index)


if __name__ == "__main__":
    run_main(main)
