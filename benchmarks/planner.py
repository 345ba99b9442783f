"""How soon does a language model answer, in both lanes and for many streams at once?

Any backend behind the planner's protocol: `python -m benchmarks.planner planner.kind=openai planner.endpoint=…`, or vllm, or
transformers with planner.model=DIR. Without settings: the rehearsed backend, which waits as long as it is told, so that what is
measured on top is ours (prompts, lanes, asyncio); and, where torch and transformers are installed, a tiny vision language
model with random weights on the CPU.

The rank lane is open loop: every stream asks every half second (or once per deadline, if that is longer), on its own phase,
with a new picture; latency counts from when a request was due, and one that is not answered by its deadline is aborted, a
miss, and counts as late as the deadline. `goodput` is answers in time per second. `no_reuse` gives every request a salt of
its own, so that no prefix cache helps; `1_order` asks with one order of the choices; `with_rationales` has every stream write
rationales meanwhile. The rationale lane is measured one after the other: time to the first piece, from piece to piece, and
to the end.

The physical limit (`x_floor`) is arithmetic: every weight read once or every operation done once, whichever takes longer
(planner/model_cost.py), on this GPU by its data sheet or on this CPU by its measured bandwidth and matrix rate. For the
rehearsed backend it is the time that it was told to wait.
"""  # noqa: D400

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import importlib.util
import runpy
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks import cross_check
from benchmarks.histories import drawn_memory
from benchmarks.prompting import prompt_renderer, request_of, stable_share
from benchmarks.report import ROOT, Report, arguments, first_line, quantiles_ms, row_of, run_main
from stream_agent.config import PlannerConfig, load_config
from stream_agent.errors import BackendError, ConfigError
from stream_agent.messages import Memory
from stream_agent.planner.backends import build_backend
from stream_agent.planner.backends.protocol import Backend, Call
from stream_agent.planner.model_cost import Device, Weights, floor_of, present_device, shape_of
from stream_agent.planner.model_files import look_through
from stream_agent.planner.near_picture import reduced_size
from stream_agent.planner.rank_lane import RankLane, choices_of
from stream_agent.procedure import ProcedurePack, load_pack
from stream_agent.prompts import PromptFactory, rationale_schema

_QUESTION = first_line(__doc__)
_TINY_KIND = "tiny_transformers"
_CROSS_CHECK = "vllm_bench_serve"
_TINY = ROOT / "tests" / "planner" / "backends" / "tiny_models.py"
_INTERVAL_S = 0.5
_AHEAD_S = 0.1
_CLIPS = 17
_FRAME = (1920, 1080)
_REHEARSED_S = 0.03
_PIECE_S = 0.005
_REHEARSED = [
    "planner.kind=rehearsed",
    f"planner.rehearsed_scores=[{{delay_s: {_REHEARSED_S}}}]",
    f"planner.rehearsed_texts=[{{delay_s: {_REHEARSED_S}, piece_s: {_PIECE_S}}}]",
]


@dataclass(slots=True)
class Load:
    """What one case asks of a backend.

    Attributes:
        streams: How many ask.
        reuse: Whether requests of a stream share a prefix cache.
        permutations: Orders of the choices; 0 for all.
        rationales: Whether every stream writes rationales meanwhile.
    """

    streams: int
    reuse: bool = True
    permutations: int = 0
    rationales: bool = False

    def named(self, kind: str) -> str:
        """The row's case."""
        words = [kind, f"{self.streams}_stream{'s' * (self.streams > 1)}"]
        words += ["no_reuse"] * (not self.reuse) + ["1_order"] * (self.permutations == 1)
        return "_".join(words + ["with_rationales"] * self.rationales)


@dataclass(slots=True)
class Answers:
    """What came of a load: latency per answer in time, misses and failures by reason."""

    latencies_ms: list[float] = field(default_factory=list)
    missed: int = 0
    failed: dict[str, int] = field(default_factory=dict)

    @property
    def due(self) -> int:
        """How many were asked."""
        return len(self.latencies_ms) + self.missed


def main() -> int:
    parser = arguments(_QUESTION)
    parser.add_argument("--streams", default=None, help="comma-separated numbers of streams")
    parser.add_argument("--seconds", type=float, default=None, help="of each load")
    parser.add_argument("settings", nargs="*", metavar="planner.key=value", help="the backend, as for run")
    options = parser.parse_args()
    report = Report(
        "planner",
        _QUESTION,
        {"interval_s": _INTERVAL_S, "clips": _CLIPS, "frame": _FRAME, "backends": {}},
        columns=("due", "missed_share", "goodput_per_s", "cached_share", "floor_ms", "x_floor"),
    )
    with tempfile.TemporaryDirectory() as folder:
        for kind, settings in _backends(report, options.settings, Path(folder)).items():
            config = load_config(None, settings).planner
            try:
                asyncio.run(_measure(report, kind, config, options))
            except (ConfigError, BackendError) as error:
                report.not_run[kind] = str(error).splitlines()[0]
    _tell_not_asked(report, options.settings)
    report.notes.append(
        "a request that is not answered in time counts as late as its deadline; failures are in the JSON line"
    )
    return report.finish(options)


def _tell_not_asked(report: Report, settings: Sequence[str]) -> None:
    """What of the question this run leaves open, and the command that answers it."""
    config = load_config(None, list(settings)).planner
    command = "python -m benchmarks.planner planner.kind=vllm planner.model=DIR"
    if "fp8" not in (config.quantization or "").lower():
        reason = f"not asked for: {command} planner.quantization=fp8" if present_device() else "it needs a GPU"
        report.not_run["fp8"] = reason
    if config.kind == "none":
        installed = importlib.util.find_spec("vllm") is not None
        report.not_run["vllm"] = f"not asked for: {command}" if installed else "vllm is not installed (docs/serving.md)"
        report.not_run["openai"] = "not asked for: planner.kind=openai planner.endpoint=http://HOST:PORT/v1"
        report.not_run[_CROSS_CHECK] = cross_check.why_not(None, None)


def _backends(report: Report, settings: Sequence[str], folder: Path) -> dict[str, list[str]]:
    """The backend that is asked for, or those that run anywhere."""
    if settings:
        return {str(load_config(None, settings).planner.kind): list(settings)}
    found = {"rehearsed": _REHEARSED}
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        report.not_run[_TINY_KIND] = f"{missing[0]} is not installed; pip install -e '.[transformers]'"
        return found
    if not _TINY.is_file():
        report.not_run[_TINY_KIND] = f"{_TINY.relative_to(ROOT)}, which builds it, is not there"
        return found
    try:
        model = runpy.run_path(str(_TINY))["build"]("qwen2_5_vl", folder / "tiny-qwen2_5_vl")
    except ImportError as error:
        said = " ".join(str(error).split())
        report.not_run[_TINY_KIND] = f"transformers cannot build it here: {said[:120]}; pip install torchvision"
        return found
    found[_TINY_KIND] = [
        "planner.kind=transformers",
        f"planner.model={model}",
        "planner.device=cpu",
        "planner.deadline_ms=2000",
        "planner.max_pixels=25088",
        "planner.context_tokens=8192",
        "planner.rationale_tokens=32",
    ]
    return found


async def _measure(report: Report, kind: str, config: PlannerConfig, options: argparse.Namespace) -> None:
    """Every load of one backend, then its rationales."""
    pack = load_pack(Path("cholecystectomy"))
    seconds = options.seconds or (2.0 if options.quick else 10.0)
    numbers = [int(word) for word in options.streams.split(",")] if options.streams else None
    streams = numbers or ([1] if kind == _TINY_KIND else [1, 4] if options.quick else [1, 2, 4, 8, 16, 32])
    loads = [Load(count, reuse) for count in streams for reuse in (True, False)]
    loads += [Load(streams[0], permutations=1)]
    loads += [Load(count, rationales=True) for count in dict.fromkeys((streams[0], streams[-1]))]
    async with _started(config) as (backend, told):
        report.settings["backends"][kind] = {**told, "deadline_ms": config.deadline_ms, "seconds": seconds}
        await _ask(backend, pack, config, Load(1), 1.0)  # warm
        for load in loads:
            before = dataclasses.replace(backend.usage())
            answers = await _ask(backend, pack, config, load, seconds)
            after = backend.usage()
            read = after.prompt_tokens - before.prompt_tokens
            floor_ms = _rank_floor_ms(backend, pack, config, load)
            values = answers.latencies_ms + [config.deadline_ms] * answers.missed
            report.rows.append(
                row_of(
                    "rank",
                    load.named(kind),
                    [values],
                    due=answers.due,
                    missed_share=answers.missed / max(1, answers.due),
                    goodput_per_s=len(answers.latencies_ms) / (_asked(config, seconds) * _interval_s(config)),
                    cached_share=(after.cached_tokens - before.cached_tokens) / read if read else None,
                    floor_ms=floor_ms,
                    x_floor=None if floor_ms is None or not values else quantiles_ms(values)[0] / floor_ms,
                    failed=answers.failed,
                )
            )
        await _write(report, kind, backend, pack, config, 3 if options.quick else 20)
        await _cross_check(report, kind, backend, pack, config, told["model"], 4 if options.quick else 20)


@asynccontextmanager
async def _started(config: PlannerConfig) -> AsyncIterator[tuple[Backend, dict[str, Any]]]:
    backend = build_backend(config)
    began_s = time.monotonic()
    try:
        able = await backend.start()
        yield (
            backend,
            {"model": able.model, "digest": able.digest, "notes": able.notes, "start_s": time.monotonic() - began_s},
        )
    finally:
        await backend.close()


# ------------------------------------------------------------------------------------------------------ rank lane


async def _ask(backend: Backend, pack: ProcedurePack, config: PlannerConfig, load: Load, seconds: float) -> Answers:
    """Keep the rate for `seconds`, whatever becomes of the requests."""
    factory = PromptFactory(pack, config)
    lane = RankLane(backend, factory, pack.action_names, permutations=load.permutations, temperature=config.temperature)
    size = _picture_size(config)
    answers = Answers()
    start_s = time.monotonic() + _AHEAD_S
    interval_s = _interval_s(config)
    asked = _asked(config, seconds)

    async def one(stream: int, index: int) -> None:
        due_s = start_s + (stream / load.streams + index) * interval_s
        await asyncio.sleep(max(0.0, due_s - _AHEAD_S - time.monotonic()))
        request = request_of(pack, _moment(pack, stream, index), size)  # not all at once: a picture is 1 MB
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        salt = f"stream {stream}" if load.reuse else f"stream {stream}, request {index}"
        limit_s = due_s + config.deadline_ms / 1000
        call = Call(f"{salt} {index} {time.monotonic_ns()}", deadline_ns=round(limit_s * 1e9), salt=salt)
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + limit_s - time.monotonic()):
                await lane.rank([request], call)
            answers.latencies_ms.append(1000 * (time.monotonic() - due_s))
        except TimeoutError:
            answers.missed += 1
        except BackendError as error:
            answers.missed += 1
            answers.failed[str(error)[:80]] = answers.failed.get(str(error)[:80], 0) + 1

    writers = [
        asyncio.create_task(_keep_writing(backend, factory, pack, config, stream))
        for stream in range(load.streams if load.rationales else 0)
    ]
    try:
        async with asyncio.TaskGroup() as group:
            for stream in range(load.streams):
                for index in range(asked):
                    group.create_task(one(stream, index))
    finally:
        for writer in writers:
            writer.cancel()
        await asyncio.gather(*writers, return_exceptions=True)
    return answers


def _interval_s(config: PlannerConfig) -> float:
    """As the scheduler asks: no more than one request of a stream at a time."""
    return max(_INTERVAL_S, config.deadline_ms / 1000)


def _asked(config: PlannerConfig, seconds: float) -> int:
    return max(2, round(seconds / _interval_s(config)))


async def _keep_writing(
    backend: Backend, factory: PromptFactory, pack: ProcedurePack, config: PlannerConfig, stream: int
) -> None:
    """One rationale after the other, at the lower priority that they have in the product."""
    choices = pack.action_names
    for index in range(1_000_000):
        request = request_of(pack, _moment(pack, stream, index), _picture_size(config))
        call = Call(f"writer {stream} {index} {time.monotonic_ns()}", priority=3, salt=f"stream {stream}")
        try:
            async for _ in backend.generate(
                factory.rationale(request, choices),
                call,
                max_tokens=config.rationale_tokens,
                schema=rationale_schema(choices),
            ):
                pass
        except BackendError:
            await asyncio.sleep(0.1)  # counted by the rationale rows; here it is only a load


def _moment(pack: ProcedurePack, stream: int, index: int) -> Memory:
    """A stream's memory at one of its requests: the same past, a frame of its own."""
    memory = drawn_memory(pack, clips=_CLIPS, folded=0, seed=stream)
    assert memory.near is not None
    now_s = memory.now_pts_s + index * _INTERVAL_S
    near = msgspec.structs.replace(memory.near, seq=1 + stream + 1000 * index, pts_s=now_s)
    return msgspec.structs.replace(memory, now_pts_s=now_s, near=near)


def _picture_size(config: PlannerConfig) -> tuple[int, int]:
    return reduced_size(*_FRAME, max_pixels=config.max_pixels, side_multiple=config.side_multiple)


# ------------------------------------------------------------------------------------------------------ rationale lane


async def _write(
    report: Report, kind: str, backend: Backend, pack: ProcedurePack, config: PlannerConfig, count: int
) -> None:
    """Rows of rationales, one after the other."""
    factory = PromptFactory(pack, config)
    first_ms, between_ms, whole_ms = [], [], []
    failed: dict[str, int] = {}
    for index in range(count):
        memory = _moment(pack, 0, index)
        choices = choices_of(pack.action_names, memory.current)
        prompt = factory.rationale(request_of(pack, memory, _picture_size(config)), choices)
        call = Call(f"rationale {index} {time.monotonic_ns()}", priority=3, salt="stream 0")
        stamps = [time.perf_counter()]
        pieces = backend.generate(prompt, call, max_tokens=config.rationale_tokens, schema=rationale_schema(choices))
        try:
            stamps += [time.perf_counter() async for _ in pieces]
        except BackendError as error:
            failed[str(error)[:80]] = failed.get(str(error)[:80], 0) + 1
            continue
        if len(stamps) > 1:
            steps_ms = [1000 * float(step) for step in np.diff(stamps)]
            first_ms.append(steps_ms[0])
            between_ms += steps_ms[1:]
            whole_ms.append(1000 * (stamps[-1] - stamps[0]))
    floor_ms = _decode_floor_ms(backend, pack, config)
    for method, values, floor in (
        ("rationale_first_piece", first_ms, _rank_floor_ms(backend, pack, config, Load(1, permutations=1))),
        ("rationale_next_piece", between_ms, floor_ms),
        ("rationale_whole", whole_ms, None),
    ):
        x_floor = None if floor is None or not values else quantiles_ms(values)[0] / floor
        more: dict[str, Any] = {"floor_ms": floor, "x_floor": x_floor, "failed": failed}
        report.rows.append(row_of(method, f"{kind}_1_stream", [values], **more))


# ------------------------------------------------------------------------------------------------------ cross-check


async def _cross_check(
    report: Report, kind: str, backend: Backend, pack: ProcedurePack, config: PlannerConfig, served: str, count: int
) -> None:
    """Time to first token beside what vLLM's own benchmark says of the same server (cross_check.py)."""
    reason = cross_check.why_not(config.model, config.endpoint if config.kind == "openai" else None)
    if reason:
        report.not_run[_CROSS_CHECK] = reason
        return
    assert config.model is not None and config.endpoint is not None
    factory = PromptFactory(pack, config)
    before = dataclasses.replace(backend.usage())
    first_ms = []
    for index in range(1 + count):  # one to warm up
        memory = _moment(pack, 0, index)
        choices = choices_of(pack.action_names, memory.current)
        prompt = factory.rationale(request_of(pack, memory, _picture_size(config)), choices)
        call = Call(f"cross-check {index} {time.monotonic_ns()}", salt=f"cross-check {index} {time.monotonic_ns()}")
        stamps = [time.perf_counter()]
        pieces = backend.generate(
            prompt, call, max_tokens=cross_check.OUTPUT_TOKENS, schema=rationale_schema(choices)
        )  # to its end: the server tells the prompt's length with the last piece
        stamps += [time.perf_counter() async for _ in pieces]
        first_ms.append(1000 * (stamps[1] - stamps[0]))
    read = backend.usage().prompt_tokens - before.prompt_tokens
    tokens = round(read / (1 + count))
    try:
        theirs = await asyncio.to_thread(
            cross_check.vllm_bench_ms,
            endpoint=config.endpoint,
            served_model=served,
            model=config.model,
            prompt_tokens=tokens,
            count=count,
        )
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        report.not_run[_CROSS_CHECK] = str(error).splitlines()[0]
        return
    reference = [theirs["first_ms"]]
    report.rows += [
        row_of("first_token_ours", f"{kind}_cross_check", [first_ms[1:]], reference_ms=reference, prompt_tokens=tokens),
        row_of(
            _CROSS_CHECK,
            f"{kind}_cross_check",
            reference,
            prompt_tokens=theirs["prompt_tokens"],
            next_token_p50_ms=quantiles_ms(theirs["next_ms"])[0],
        ),
    ]


# ------------------------------------------------------------------------------------------------------ roofline


def _rank_floor_ms(backend: Backend, pack: ProcedurePack, config: PlannerConfig, load: Load) -> float | None:
    """The least time of one rank request; None where neither model nor device is known."""
    if config.kind == "rehearsed":
        return 1000 * config.rehearsed_scores[0].delay_s or None
    if config.model is None:
        return None
    render = prompt_renderer(pack, config)
    before, after = (render(_moment(pack, 0, index)) for index in (0, 1))
    text = len(backend.tokens(after) or ()) or len(after) // 4
    cached = round(text * stable_share(before, after)) if load.reuse else 0
    # A perfect engine reads what the orders share once; each has its own last lines.
    orders = load.permutations or len(pack.action_names) - 1
    question = len(backend.tokens(after[-200:]) or ()) or 50
    width, height = _picture_size(config)
    floor = floor_of(
        shape_of(look_through(config.model, weights=False)),
        _device(config),
        weights=_weights(config),
        frame=(height, width),
        max_pixels=config.max_pixels,
        new_text_tokens=text - cached + (orders - 1) * question,
        cached_tokens=cached,
    )
    return 1000 * floor.rank_s


def _decode_floor_ms(backend: Backend, pack: ProcedurePack, config: PlannerConfig) -> float | None:
    if config.kind == "rehearsed":
        return 1000 * config.rehearsed_texts[0].piece_s or None
    if config.model is None:
        return None
    text = len(backend.tokens(prompt_renderer(pack, config)(_moment(pack, 0, 0))) or ()) or 1024
    shape = shape_of(look_through(config.model, weights=False))
    floor = floor_of(shape, _device(config), weights=_weights(config), cached_tokens=text)
    return 1000 * floor.decode_s


def _weights(config: PlannerConfig) -> Weights:
    """How the blocks are stored, by what the engine was told."""
    told = (config.quantization or "").lower()
    return "fp8" if "fp8" in told else "int4" if told.startswith(("awq", "gptq")) else "bf16"


_measured: dict[int, Device] = {}


def _device(config: PlannerConfig) -> Device:
    """This machine's GPU, or its CPU as numpy finds it with the backend's number of threads."""
    gpu = present_device()
    if gpu is not None and config.device != "cpu":
        return gpu
    if config.threads not in _measured:
        # Weights in 32 bits, which the arithmetic counts with 16: so half the bandwidth.
        _measured[config.threads] = Device("cpu", 0.0, _bandwidth() / 2, _matrix_rate(), _matrix_rate())
    return _measured[config.threads]


def _bandwidth() -> float:
    """Bytes per second that one pass over an array larger than any cache reads."""
    values = np.ones(64_000_000, np.float32)
    return max(values.nbytes / _seconds(lambda: values.sum()) for _ in range(5))


def _matrix_rate() -> float:
    """Operations per second of a product of matrices."""
    side = 1024
    matrix = np.ones((side, side), np.float32)
    return max(2 * side**3 / _seconds(lambda: matrix @ matrix) for _ in range(5))


def _seconds(work: Any) -> float:  # noqa: ANN401
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


if __name__ == "__main__":
    run_main(main)
