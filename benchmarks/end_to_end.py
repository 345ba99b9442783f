"""How long does it take from a frame's capture to its published plan, in the whole running agent, and under faults?

`run_agent.py run` as its own processes: 1080p60 from the drawn scene and from an H.264 file, every frame looked at, plans
written to a file. The recogniser reads the action from a list, so that no model's time is in it; with the ONNX model at
10 Hz the same is told for comparison. The figure is the run's own `--summary`. The physical limit: a frame's announcement
(transport.py's 8-byte message) and one pass over its 3.1 MB for the reduced picture.

`label` and `rationale`: from a frame's capture to the ranking that a model in the worker made of it, and to the reasons it gave for
that. The model is the rehearsed one, which is told how long to take (`floor_ms`): what is above that is ours. With a real one,
`--settings planner.kind=… planner.model=…` asks it instead. `preview` is glass to glass but for the glass: from the capture of a
frame to the whole picture at a browser's socket, on this host; a screen adds up to one of its own intervals, and a browser its
drawing. While a planner hangs, its `ratio` is the pictures per second over those without.

Faults: a planner worker that never answers, one that is slow, an engine whose GPU stands still for three seconds now and then
(drilled: the rehearsed engine does), a source ten times as fast as its pictures are meant to be, a disk that is full
(`/dev/full`). `jitter` is how far the time between two published plans is from that between their frames; `startup_s` from the
start of the process to its first plan. Where a model answers, `p50` to `p99` are of the frames that the statistical planner stood
in for.
"""  # noqa: D400

from __future__ import annotations

import asyncio
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from benchmarks.browsers import picture_ages_ms
from benchmarks.inputs import KINDS, video_1080p60, write_video
from benchmarks.memory import process_name
from benchmarks.report import ROOT, Report, Row, arguments, first_line, quantiles_ms, row_of, run_main
from benchmarks.running_agent import running
from stream_agent.sinks.dashboard.process import PACKAGES

_QUESTION = first_line(__doc__)
_FULL = Path("/dev/full")
_TIMELINE = ("recogniser.kind=timeline", "recogniser.rate_hz=60")
_DRAWN = (
    *("source.uri=synthetic:", "source.synthetic_width=1920", "source.synthetic_height=1080"),
    *("source.synthetic_fps=60", "source.synthetic_speed=1"),
)
_RANK_S = 0.03
_STALL_S = 3.0
_PIECE_S = 0.005
_REHEARSED = (
    "planner.kind=rehearsed",
    f"planner.rehearsed_scores=[{{delay_s: {_RANK_S}}}]",
    f"planner.rehearsed_texts=[{{delay_s: {_RANK_S}, piece_s: {_PIECE_S}}}]",
)
_ANSWERS = "answers_1080p60"
_FULL_SET = ("fault_worker_slow",)
"""Left out of a quick run: an engine that stalls is slow as well."""
_PREVIEWS = {
    "preview_1080p60": (),
    "preview_worker_hangs": ("planner.kind=scripted", "planner.script=[{behaviour: hang}]"),
}
"""Case → settings besides those of the dashboard."""
_PREVIEW_FPS = 30
_PREVIEW_SETTLE_S = 1.0
_START_S = 60


def main() -> int:
    parser = arguments(_QUESTION)
    parser.add_argument("--seconds", type=float, default=None, help="of each run")
    parser.add_argument("--cases", default=None, help="comma-separated; all when left out")
    parser.add_argument(
        "--settings", nargs="*", default=None, help="planner.key=value of a real model, for label and rationale"
    )
    options = parser.parse_args()
    seconds = options.seconds or (4.0 if options.quick else 30.0)
    report = Report(
        "end_to_end",
        _QUESTION,
        {"seconds": seconds},
        columns=(
            "max_ms",
            "jitter_p99_ms",
            "dropped",
            "agent_cpu",
            "grabber_cpu",
            "agent_mb",
            "grabber_mb",
            "startup_s",
            "floor_ms",
            "pictures_per_s",
        ),
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        video, small, labels = folder / "video.mp4", folder / "small.mp4", folder / "labels.csv"
        labels.write_text("start_s,action\n0,Tissue Retraction\n10,Dissection\n20,Vessel Clipping\n", encoding="utf-8")
        cases = _cases(seconds, video, small, labels)
        known = (*cases, _ANSWERS, *_PREVIEWS)
        usual = [case for case in known if not (options.quick and case in _FULL_SET)]
        chosen = options.cases.split(",") if options.cases else usual
        if unknown := set(chosen) - set(known):
            parser.error(f"--cases {','.join(sorted(unknown))}: choose from {', '.join(known)}")
        read = {setting for case in chosen for setting in cases.get(case, ())}
        if f"source.uri={video}" in read:
            report.settings["video"] = video_1080p60(video, pictures=120, seconds=seconds)
        if f"source.uri={small}" in read:
            report.settings["small"] = write_video(small, KINDS["480p25_h264"], pictures=50, seconds=10 * seconds)
        for case, settings in cases.items():
            if case in chosen:
                _measure(report, folder, case, settings)
        if _ANSWERS in chosen:
            _measure_answers(report, folder, options.settings, seconds)
        _measure_previews(report, folder, [case for case in _PREVIEWS if case in chosen], seconds)
    report.notes.append("cpu: seconds of CPU per second of the run; frames are dropped by reason in the JSON line")
    report.notes.append("fault_10x_rate: 250 pictures a second; the agent looks at what it can and drops the rest")
    return report.finish(options)


def _cases(seconds: float, video: Path, small: Path, labels: Path) -> dict[str, list[str]]:
    """Settings of every run."""
    timeline, drawn = list(_TIMELINE), [*_DRAWN, f"source.synthetic_duration_s={seconds}"]
    hangs = "[{behaviour: hang}]"
    return {
        "synthetic_1080p60": [*drawn, *timeline],
        "file_1080p60": [f"source.uri={video}", *timeline, f"recogniser.labels={labels}"],
        "file_1080p60_onnx_10hz": [f"source.uri={video}", "recogniser.kind=onnx", "recogniser.rate_hz=10"],
        "fault_worker_hangs": [*drawn, *timeline, "planner.kind=scripted", f"planner.script={hangs}"],
        "fault_worker_slow": [*drawn, *timeline, "planner.kind=scripted", "planner.script=[{delay_s: 0.4}]"],
        "fault_gpu_stalls": [
            *(*drawn, *timeline, "planner.kind=rehearsed"),
            f"planner.rehearsed_scores=[{{delay_s: {_RANK_S}}}, {{delay_s: {_RANK_S}}}, {{delay_s: {_STALL_S}}}]",
        ],
        "fault_10x_rate": [
            *(f"source.uri={small}", "source.pace=10", "recogniser.kind=timeline"),
            *("recogniser.rate_hz=25", f"recogniser.labels={labels}"),
        ],
        "fault_disk_full": [*drawn, *timeline, f"sinks.jsonl={_FULL}"],
    }


def _measure(report: Report, folder: Path, case: str, settings: list[str]) -> None:
    if case == "fault_disk_full" and not _FULL.exists():
        report.not_run[case] = f"{_FULL} is not there; run it on Linux"
        return
    plans = folder / "plans.jsonl"
    began_ns = time.monotonic_ns()
    summary, usage = _run(folder, plans, settings)
    # The worker's own latency is the script's; capture to plan is the statistical's.
    total = summary["latency_ms"]["capture_to_plan_statistical"]
    published = [] if case == "fault_disk_full" else _published(plans)
    frames, wall_s = summary["frames"], summary["wall_s"]
    # At 10 Hz five of six frames are passed over by intent, the rest of the drops are losses.
    lost = {reason: count for reason, count in frames["dropped"].items() if reason != "not_sampled"}
    steps = pairwise(published)
    jitter_ms = [abs((after[1] - before[1]) - (after[0] - before[0])) / 1e6 for before, after in steps]
    more: dict[str, Any] = {
        "max_ms": total["max"],
        "jitter_p99_ms": quantiles_ms(jitter_ms)[2] if jitter_ms else None,
        "dropped": sum(lost.values()),
        "dropped_by_reason": frames["dropped"],
        "gated": frames["gated"],
        "published": frames["published"],
        "received": frames["received"],
        "unaccounted": frames["published"] - frames["received"] - sum(frames["dropped"].values()),
        "stages_ms": {stage: (span["p50"], span["p99"]) for stage, span in summary["latency_ms"].items()},
        "worker": summary["worker"],
        "sinks": summary.get("sinks", {}),
        "processes": usage,
        "startup_s": (published[0][1] - began_ns) / 1e9 if published else None,
    }
    for name, used in usage.items():
        short = name.rpartition(".")[2]
        more |= {f"{short}_cpu": used["cpu_s"] / wall_s, f"{short}_mb": used["rss_mb"]}
    report.rows.append(Row("ours", case, total["p50"], total["p95"], total["p99"], total["n"], more=more))


def _measure_answers(report: Report, folder: Path, settings: Sequence[str] | None, seconds: float) -> None:
    """Capture to what a model says of the frame: its ranking, then its reasons."""
    asked = list(_REHEARSED) if settings is None else list(settings)
    length_s = max(seconds, 8.0)  # a model gives its reasons once in some seconds
    with running(
        folder / _ANSWERS, [*_DRAWN, *_TIMELINE, *asked, f"source.synthetic_duration_s={length_s + _START_S}"]
    ) as agent:
        agent.wait_for_plans()
        time.sleep(length_s)
        agent.stop()
        labels_ms, rationales_ms = answer_ms(agent.plans())
    floor_ms = 1000 * _RANK_S if settings is None else None
    report.rows.append(row_of("label", _ANSWERS, [labels_ms], floor_ms=floor_ms, settings=asked))
    report.rows.append(row_of("rationale", _ANSWERS, [rationales_ms], settings=asked))


def answer_ms(plans: Sequence[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Milliseconds from capture to the first plan of each request, and to the first with reasons of that very frame."""
    labels: dict[int, float] = {}
    rationales: dict[int, float] = {}
    for plan in plans:
        if plan["request_id"] and not plan["abstained"]:
            since_ms = (plan["published_ns"] - plan["captured_ns"]) / 1e6
            labels.setdefault(plan["request_id"], since_ms)
            if plan["rationale_age_s"] == 0:
                rationales.setdefault(plan["request_id"], since_ms)
    return list(labels.values()), list(rationales.values())


def _measure_previews(report: Report, folder: Path, cases: Sequence[str], seconds: float) -> None:
    """Capture to a browser's socket, while all is well and while the planner hangs."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    for case in cases:
        if missing:
            report.not_run[case] = f"{missing[0]} is not installed; pip install -e '.[dashboard]'"
            continue
        settings = [*_DRAWN, *_TIMELINE, *_PREVIEWS[case], f"source.synthetic_duration_s={seconds + _START_S}"]
        settings += [
            f"sinks.dashboard.{key}" for key in ("enabled=true", "port=0", f"fps={_PREVIEW_FPS}", "max_pixels=307200")
        ]
        with running(folder / case, settings) as agent:
            port = agent.dashboard_port()
            agent.wait_for_plans()
            ages_ms, gaps_ms = asyncio.run(picture_ages_ms(port, seconds, _PREVIEW_SETTLE_S))
            agent.stop()
        calm = next((row for row in report.rows if row.case == "preview_1080p60"), None)
        rate = len(ages_ms) / seconds
        row = row_of("preview", case, [ages_ms], pictures_per_s=rate, longest_gap_ms=max(gaps_ms, default=float("nan")))
        report.rows.append(row if calm is None else replace(row, ratio=rate / calm.more["pictures_per_s"]))


def _published(path: Path) -> list[tuple[int, int]]:
    """When each statistical plan's frame was captured and the plan published, one per frame."""
    stamps: dict[int, int] = {}
    for line in path.read_bytes().splitlines():
        plan = json.loads(line)
        if plan["captured_ns"]:
            stamps.setdefault(plan["captured_ns"], plan["published_ns"])
    return sorted(stamps.items())


def _run(folder: Path, plans: Path, settings: list[str]) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """One run's summary, and CPU seconds and largest resident set of each process."""
    path = folder / "summary.json"
    command = [
        sys.executable,
        str(ROOT / "run_agent.py"),
        "run",
        f"sinks.jsonl={plans}",
        *settings,
        "sinks.console=off",
    ]
    command += [f"--summary={path}"]
    usage: dict[str, dict[str, float]] = {}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as agent:
        watched = psutil.Process(agent.pid)
        while agent.poll() is None:
            _look(watched, usage)
            time.sleep(0.25)
        errors = agent.stderr.read().decode() if agent.stderr else ""
    if agent.returncode:
        raise RuntimeError(f"the agent ended with {agent.returncode}: {errors[-500:]}")
    summary: dict[str, Any] = json.loads(path.read_bytes())
    return summary, usage


def _look(parent: psutil.Process, usage: dict[str, dict[str, float]]) -> None:
    try:
        for process in (parent, *parent.children(recursive=True)):
            times, rss = process.cpu_times(), process.memory_info().rss / 1e6
            known = usage.setdefault(process_name(process), {"cpu_s": 0.0, "rss_mb": 0.0})
            known["cpu_s"] = times.user + times.system
            known["rss_mb"] = max(known["rss_mb"], rss)
    except psutil.Error:
        pass  # it is ending


if __name__ == "__main__":
    run_main(main)
