"""Does what the agent holds grow with the length of the procedure?

Ten hours at 60 fps of stream time, as fast as it goes: first the near-history memory with its segmenter alone, two million
observations; then the whole agent in lockstep on ten hours of 1 Hz instrument signals. The physical limit: a memory of
`max_clips` clips has one size once it is full, so ten hours must hold what one hour holds, and the process what it held
after its first minute. Actions are drawn from the pack's statistics and clips of it are observed with noisy evidence.
The prompt of the rank lane is rendered every second: what that takes, how long it is, and what share of it is the
beginning of the one before, which a prefix cache need not read again (the picture never is, nor what stands behind it).
"""  # noqa: D400

from __future__ import annotations

import csv
import json
import random
import subprocess
import sys
import tempfile
import time
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec
import psutil

from benchmarks.inputs import DATA
from benchmarks.prompting import Renderer, prompt_renderer, stable_share
from benchmarks.report import ROOT, Report, arguments, figure, first_line, row_of, run_main
from stream_agent.config import MemoryConfig, SegmenterConfig
from stream_agent.memory import NearHistoryMemory
from stream_agent.messages import Clip, Evidence, FrameHeader
from stream_agent.perception.segmenter import Segmenter
from stream_agent.procedure import ProcedurePack, load_pack
from stream_agent.source.timeline import synthetic_timeline

_QUESTION = first_line(__doc__)
_HOURS = 10
_MARKS = {"1_min": 60.0, "1_h": 3600.0, "10_h": 36_000.0}


def main() -> int:
    options = arguments(_QUESTION).parse_args()
    fps = 2 if options.quick else 60
    pack = load_pack(Path("cholecystectomy"))
    report = Report(
        "memory",
        _QUESTION,
        {"hours": _HOURS, "fps": fps},
        columns=("held_kb", "clips", "folds", "prompt_chars", "prefix_share", "mb"),
    )
    renderer = prompt_renderer(pack)
    _observe(report, pack, fps, renderer, prompt_every_s=10 if options.quick else 1)
    with tempfile.TemporaryDirectory() as folder:
        rows = _HOURS * 3600 if not options.quick else 2 * 3600
        _run_agent(report, pack, Path(folder), rows)
    return report.finish(options)


def _observe(report: Report, pack: ProcedurePack, fps: int, renderer: Renderer, *, prompt_every_s: int) -> None:
    """One row per call and mark: what it took up to then, and what is held then."""
    timeline = synthetic_timeline(
        next_probabilities=pack.next_action_probabilities, duration_s=pack.duration_s, total_s=_HOURS * 3600.0, seed=7
    )
    memory = NearHistoryMemory(MemoryConfig(), Segmenter(pack.action_names, SegmenterConfig()), pack.instruments)
    taken_ms: dict[str, list[float]] = {"observe": [], "snapshot": []}
    held: dict[str, int] = {}
    marks = iter(_MARKS.items())
    mark, mark_s = next(marks)
    began_s = time.perf_counter()
    sent = prompt = ""
    shares: list[float] = []
    for index, evidence in enumerate(_evidence(pack, timeline, fps)):
        header = FrameHeader(
            stream_id="endoscope", session_id="benchmark", seq=index, pts_s=evidence.pts_s, captured_ns=index
        )
        before_ns = time.perf_counter_ns()
        memory.observe(header, evidence)
        between_ns = time.perf_counter_ns()
        snapshot = memory.snapshot()
        after_ns = time.perf_counter_ns()
        if index % fps == 0:
            taken_ms["observe"].append((between_ns - before_ns) / 1e6)
            taken_ms["snapshot"].append((after_ns - between_ns) / 1e6)
            if snapshot.current is not None and index % (fps * prompt_every_s) == 0:
                before_ns = time.perf_counter_ns()
                prompt = renderer(snapshot)
                taken_ms.setdefault("prompt", []).append((time.perf_counter_ns() - before_ns) / 1e6)
                if sent:
                    shares.append(stable_share(sent, prompt))
                sent = prompt
        if evidence.pts_s + 1.0 / fps >= mark_s - 1e-6:
            held[mark] = held_bytes(memory)
            ratio = max(held[mark], held["1_h"]) / held["1_h"] if mark == "10_h" else None
            report.rows.append(
                figure(
                    "near_history",
                    mark,
                    index + 1,
                    ratio,
                    held_kb=held[mark] / 1000,
                    clips=len(snapshot.clips),
                    folds=snapshot.evictions,
                )
            )
            for call, values in taken_ms.items():
                report.rows.append(
                    row_of(call, mark, [values], **(_prompted(prompt, shares) if call == "prompt" else {}))
                )
                values.clear()
            shares.clear()
            mark, mark_s = next(marks, ("", float("inf")))
    report.settings["observations"] = index + 1
    report.settings["observing_s"] = round(time.perf_counter() - began_s, 1)
    # A full memory holds max_clips - evict_block to max_clips clips; the tenth hour may hit another point of that saw tooth.
    report.notes.append("near_history: bytes of all that the memory holds; its ratio is after 10 h over after 1 h")


def _prompted(prompt: str, shares: list[float]) -> dict[str, Any]:
    """What a row tells of prompts."""
    return {"prompt_chars": len(prompt), "prefix_share": fmean(shares) if shares else float("nan")}


def _evidence(pack: ProcedurePack, timeline: tuple[Clip, ...], fps: int) -> Iterator[Evidence]:
    """What a recogniser would say: the action of the timeline most of the time, its instruments."""
    actions = pack.action_names
    starts_s = [clip.start_pts_s for clip in timeline]
    uses = {name: {used.casefold() for used in pack.instruments_of(name)} for name in actions}
    seen = {name: tuple(0.9 if tool.casefold() in uses[name] else 0.1 for tool in pack.instruments) for name in actions}
    peaked = {name: tuple(0.7 if other == name else 0.3 / (len(actions) - 1) for other in actions) for name in actions}
    random_ = random.Random(7)
    for index in range(_HOURS * 3600 * fps):
        pts_s = index / fps
        action = timeline[bisect_right(starts_s, pts_s) - 1].action
        said = action if random_.random() < 0.85 else random_.choice(actions)
        yield Evidence(seq=index, pts_s=pts_s, recogniser="timeline", actions=peaked[said], instruments=seen[action])


def held_bytes(thing: object, known: set[int] | None = None) -> int:
    """Bytes of an object and all that only it leads to: containers, slots, attributes and struct fields."""
    known = set() if known is None else known
    if id(thing) in known or isinstance(thing, type):
        return 0
    known.add(id(thing))
    total = sys.getsizeof(thing)
    inside: list[object] = []
    if isinstance(thing, dict):
        inside += [*thing.keys(), *thing.values()]
    elif isinstance(thing, list | tuple | set | frozenset):
        inside += thing
    elif isinstance(thing, msgspec.Struct):
        inside += [getattr(thing, name) for name in thing.__struct_fields__]
    else:
        inside += vars(thing).values() if hasattr(thing, "__dict__") else []
        inside += [getattr(thing, name) for name in getattr(thing, "__slots__", ()) if hasattr(thing, name)]
    return total + sum(held_bytes(part, known) for part in inside)


def _run_agent(report: Report, pack: ProcedurePack, folder: Path, rows: int) -> None:
    """The resident set of every process of a real run, after the first minute of stream time and at the end."""
    plans, signals = folder / "plans.jsonl", folder / "signals.csv"
    report.settings["signals"] = _write_signals(signals, pack, rows)
    command = [sys.executable, str(ROOT / "run_agent.py"), "run", f"source.uri={signals}", "source.pace=max"]
    command += ["sinks.console=off", f"sinks.jsonl={plans}", f"--summary={folder / 'summary.json'}"]
    began_s = time.perf_counter()
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    first_s = 0.0
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as agent:
        watched = psutil.Process(agent.pid)
        while agent.poll() is None:
            pts_s = _newest_pts_s(plans)
            sizes = _resident(watched)
            if pts_s >= 60.0 and sizes:
                if not first:
                    first, first_s = sizes, pts_s
                last |= sizes
            time.sleep(0.01)
        errors = agent.stderr.read().decode() if agent.stderr else ""
    if agent.returncode or not first:
        raise RuntimeError(f"the agent ended with {agent.returncode}: {errors[-500:]}")
    wall_s = time.perf_counter() - began_s
    summary = json.loads((folder / "summary.json").read_bytes())
    for name, before in first.items():
        after = last[name]
        report.rows.append(
            figure(
                f"process_{name}",
                "growth",
                summary["frames"]["received"],
                after / before,
                mb=after / 1e6,
                mb_after_first_minute=before / 1e6,
            )
        )
    report.notes.append(f"growth: resident at the end over {first_s:.0f} s of stream time after the start")
    report.notes.append(
        f"{summary['frames']['received']} frames, {summary['clips']} clips and {summary['plans']['published']} plans in "
        f"{wall_s:.0f} s"
    )


def _write_signals(path: Path, pack: ProcedurePack, rows: int) -> str:
    """A table of `rows` seconds: Cholec80's tools one operation after the other, else drawn."""
    recorded = sorted((DATA / "cholec80" / "phase_tool_1hz").glob("*.csv"))
    random_ = random.Random(7)
    written = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["second", *pack.instruments])
        while written < rows:
            for values in _recorded(recorded, pack) if recorded else _drawn(pack, random_):
                table.writerow([written, *values])
                written += 1
                if written == rows:
                    break
    return f"{rows} rows, {'Cholec80' if recorded else 'drawn'}"


def _recorded(files: list[Path], pack: ProcedurePack) -> Iterator[list[str]]:
    for path in files:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            columns = {_folded(name): name for name in rows.fieldnames or ()}
            names = [columns.get(_folded(tool)) for tool in pack.instruments]
            for row in rows:
                yield ["0" if name is None else row[name] for name in names]


def _drawn(pack: ProcedurePack, random_: random.Random) -> Iterator[list[str]]:
    for _ in range(60):
        used = random_.random()
        for _ in range(60):
            yield ["1" if random_.random() < used / 2 else "0" for _ in pack.instruments]


def _folded(name: str) -> str:
    return name.replace(" ", "").replace("_", "").casefold()


def _newest_pts_s(path: Path) -> float:
    """Media time of the last whole line; 0 before there is one."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - 65536))
            lines = file.read().split(b"\n")
        return float(json.loads(lines[-2])["pts_s"])
    except (OSError, IndexError, ValueError, KeyError):
        return 0.0


def _resident(parent: psutil.Process) -> dict[str, int]:
    """Resident bytes of the agent and of its children, by name; empty once it is gone."""
    try:
        processes = [parent, *parent.children(recursive=True)]
        sizes = {process_name(process): process.memory_info().rss for process in processes}
        return {name: size for name, size in sizes.items() if size}  # none left: it has ended
    except psutil.Error:
        return {}


def process_name(process: psutil.Process) -> str:
    """`agent`, `grabber`, … from a command line."""
    words = process.cmdline()
    modules = [word for word in words if word.startswith("stream_agent.")]
    return modules[0].removeprefix("stream_agent.") if modules else "agent"


if __name__ == "__main__":
    run_main(main)
