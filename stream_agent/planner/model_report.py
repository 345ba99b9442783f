"""`run_agent.py doctor --model DIR`: what a model needs and how fast it can be at best, before anything is loaded."""

from __future__ import annotations

import re
from pathlib import Path

from rich.console import Console
from rich.table import Table

from stream_agent.errors import ConfigError
from stream_agent.planner.model_cost import (
    DEVICES,
    Device,
    Floor,
    ModelShape,
    Weights,
    floor_of,
    present_device,
    shape_of,
)
from stream_agent.planner.model_files import look_through, verified, write_manifest

_WEIGHTS: tuple[Weights, ...] = ("bf16", "fp8", "int4")
_BUDGETS_PX = (None, 262_144, 131_072, 65_536)
_CONTEXT = 2048
_STREAMS = 8
_ENGINE_BYTES = 3e9  # CUDA context, captured graphs and activations of vLLM


def examine_model(
    directory: Path,
    *,
    device: str | None = None,
    frame: str = "854x480",
    pin: bool = False,
    console: Console | None = None,
) -> int:
    """Check a model's files and print its cost; 0, for whatever is wrong is raised.

    Args:
        directory: The model's folder; without weights only the cost is told.
        device: A name of `DEVICES`; None takes this machine's GPU.
        frame: WIDTHxHEIGHT of the source.
        pin: Write the manifest.
        console: Where to print.

    Raises:
        ConfigError: The files may not be loaded, or `device` or `frame` is none.
    """
    console = console or Console()
    width, height = _size(frame)
    chosen = _device(device)
    files = look_through(directory, weights=False)
    if pin and files.tensors:
        write_manifest(directory)
    if files.tensors:
        files = verified(directory)
        state = "sums checked against manifest.sha256" if files.pinned else "no manifest yet: --pin writes one"
        console.print(f"{files.name}: files ok, digest {files.digest} ({state})")
    else:
        console.print(f"{files.name}: no weights here; what follows is from config.json alone")
    shape = shape_of(files)
    eyes = f"{shape.vision.parameters / 1e9:.3f} of them eyes" if shape.vision else "no eyes: it plans from captions"
    console.print(
        f"{shape.family}, {shape.parameters / 1e9:.3f} billion parameters, {eyes}; "
        f"{shape.kv_bytes_per_token() / 1024:.0f} KiB of keys and values per token"
    )
    if shape.vision is not None:
        told = ", ".join(
            f"{shape.vision.tokens(height, width, budget)} at {'full size' if budget is None else f'{budget:,} px'}"
            for budget in _BUDGETS_PX
        )
        console.print(f"image tokens of {frame}: {told}")
    if chosen is None:
        console.print(
            f"no GPU that is known here; name one for memory and floor: --device {'|'.join(DEVICES)}", soft_wrap=True
        )
        return 0
    console.print(_floors(shape, chosen, (height, width)))
    console.print(
        "floor: max(bytes / bandwidth, operations / rate), 1024 prompt tokens cached, 128 new ones and the picture; "
        "m: memory binds, a: arithmetic binds. A real engine is slower.",
        style="dim",
    )
    return 0


def _floors(shape: ModelShape, device: Device, frame: tuple[int, int]) -> Table:
    gigabytes = device.memory_bytes / 1e9
    table = Table(
        title=f"{device.name}: {gigabytes:.0f} GB, {device.bytes_per_s / 1e12:g} TB/s, {device.bf16_per_s / 1e12:g} TFLOP/s",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for heading in ("weights", "pixels", "memory", "rank ms", "vision", "prefill", "decode ms"):
        table.add_column(heading, justify="left" if heading == "weights" else "right")
    for weights in _WEIGHTS:
        needed = shape.weight_bytes(weights) + _STREAMS * _CONTEXT * shape.kv_bytes_per_token() + _ENGINE_BYTES
        memory = f"{needed / 1e9:.1f} GB" + ("" if needed < 0.9 * device.memory_bytes else " too much")
        for budget in _BUDGETS_PX if shape.vision else (None,):
            floor = floor_of(shape, device, weights=weights, frame=frame, max_pixels=budget)
            table.add_row(
                weights,
                "all" if budget is None else f"{budget:,}",
                memory,
                f"{floor.rank_s * 1000:.2f}",
                _part(floor.vision_s, floor, "vision"),
                _part(floor.prefill_s, floor, "prefill"),
                _part(floor.decode_s, floor, "decode"),
            )
    return table


def _part(seconds: float, floor: Floor, name: str) -> str:
    return f"{seconds * 1000:.2f} {floor.bound[name][0]}" if name in floor.bound else "-"


def _device(name: str | None) -> Device | None:
    if name is None:
        return present_device()
    if name.lower() not in DEVICES:
        raise ConfigError(f"--device {name} is not known; choose one of {', '.join(DEVICES)}")
    return DEVICES[name.lower()]


def _size(frame: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{2,5})x(\d{2,5})", frame)
    if match is None:
        raise ConfigError(f"--frame {frame} is no size; write WIDTHxHEIGHT, for example 1920x1080")
    return int(match[1]), int(match[2])
