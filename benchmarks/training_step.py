"""What does a step of LoRA fine-tuning cost in true shapes: time, throughput, memory?

    python -m benchmarks.training_step --shapes qwen2.5-vl-7b

The product's own path (`train sft`): prompts of the lanes, the backend's encoding, TRL's trainer with our loss, the adapter and
the batch of configs/train_lora.yaml or of `--config FILE section.key=value`. Weights are random (true_shapes.py), cases and frames
are drawn (lessons.py); the work is that of the real ones. Every number of examples in memory at a time, with and without
checkpointing, in each round, each on fresh weights; `ratio` is against the case that is configured. What does not fit is a row that
says so.

`prompt_per_s` and `learned_per_s` are tokens of the prompts with their pictures, and of the answers; what fills a batch up is no
token and is told as `padded_share`. `encoding_share` is the part of a step in which examples become tensors on the CPU.
`model_use` is the operations that the model needs (training_cost.py) over what the GPU's data sheet allows in the time,
`hardware_use` the same with those that checkpointing repeats. `held_gb` and `reserved_gb` are the most that tensors took and that
was reserved for them. On a CPU there are ratios and shares alone: its times say nothing about a GPU's.
"""  # noqa: D400

from __future__ import annotations

import importlib.util
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.lessons import CLIPS, FRAME, lessons
from benchmarks.report import Report, Row, arguments, figure, first_line, row_of, run_main
from benchmarks.training_cost import Read, needed_operations, repeated_operations
from stream_agent.config import configs_directory
from stream_agent.errors import ConfigError
from stream_agent.planner.model_cost import ModelShape, present_device, shape_of
from stream_agent.planner.model_files import go_offline
from stream_agent.training.config import TrainingConfig, load_training
from stream_agent.training.data import Example

if TYPE_CHECKING:
    from benchmarks.timed_training import Steps
    from benchmarks.true_shapes import RandomModel

_QUESTION: Final = first_line(__doc__)
_METHOD: Final = "lora_step"
_TINY: Final = "tiny"
_SHAPES: Final = ("qwen2.5-vl-7b", "qwen2.5-vl-3b", _TINY)
_NEEDED: Final = ("torch", "transformers", "tokenizers", "accelerate", "peft", "trl", "datasets", "PIL")
_PACKAGE: Final = {"PIL": "pillow"}
_PRESET: Final = configs_directory() / "train_lora.yaml"
_UNREAD: Final = ("data.sap=unread", "data.frames=unread", "planner.model=unread")
"""What a training must name and nothing here reads."""
_AT_ONCE: Final = (1, 2, 4, 8)
_HALF: Final = ("torch.bfloat16", "torch.float16")


@dataclass(frozen=True, slots=True)
class Case:
    """How a batch goes through the model."""

    at_once: int
    checkpointing: bool

    def named(self, shapes: str) -> str:
        """The row's case."""
        return f"{shapes}_at_once_{self.at_once}{'_checkpointing' * self.checkpointing}"

    def told(self, config: TrainingConfig) -> TrainingConfig:
        """The configuration of it."""
        changed = {"at_once": self.at_once, "checkpointing": self.checkpointing}
        return config.model_copy(update={"optimiser": config.optimiser.model_copy(update=changed)})


def main() -> int:
    parser = arguments(_QUESTION)
    parser.add_argument("--shapes", default=_TINY, choices=_SHAPES, help="whose sizes the random model has")
    parser.add_argument("--config", type=Path, default=_PRESET, help="YAML file of a training")
    parser.add_argument("--at-once", default=None, help="comma-separated numbers of examples in memory at a time")
    parser.add_argument("--steps", type=int, default=None, help="measured of each case in each round")
    parser.add_argument("--rounds", type=int, default=None, help="of all cases")
    parser.add_argument("settings", nargs="*", metavar="section.key=value", help="of the training")
    options = parser.parse_args()
    config = _config(options.config, options.settings)
    cases = _cases(config, options.at_once)
    steps = _positive("--steps", options.steps, 2 if options.quick else 6)
    rounds = _positive("--rounds", options.rounds, 1 if options.quick else 2)
    warm = 1 if options.quick else 2
    require_libraries()
    go_offline()
    _require_room(options.shapes, config)
    report = Report(
        "training_step",
        _QUESTION,
        {"shapes": options.shapes, "weights": "random", "steps": steps, "warm_up": warm, "rounds": rounds},
        columns=(
            "state",
            "examples_per_s",
            "prompt_per_s",
            "learned_per_s",
            "encoding_share",
            "padded_share",
            "held_gb",
            "reserved_gb",
            "model_use",
            "hardware_use",
        ),
    )
    with tempfile.TemporaryDirectory() as folder:
        _measure(report, options.shapes, config, cases, Path(folder), warm=warm, steps=steps, rounds=rounds)
    return report.finish(options)


def require_libraries() -> None:
    """Make sure that a training can be run here.

    Raises:
        ConfigError: Something is not installed.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        packages = " ".join(_PACKAGE.get(name, name) for name in missing)
        raise ConfigError(
            f"{', '.join(missing)} not installed, and a step of fine-tuning needs all of {', '.join(_NEEDED)}; "
            f"pip install {packages}"
        )


def _config(preset: Path, settings: Sequence[str]) -> TrainingConfig:
    config = load_training(preset, (*_UNREAD, *settings))
    if config.lora.quantised:
        raise ConfigError("lora.quantised=true packs stored weights, and these are drawn; set lora.quantised=false")
    if config.optimiser.shared_beginnings:
        raise ConfigError(
            "optimiser.shared_beginnings=true has no examples side by side to count; set optimiser.shared_beginnings=false"
        )
    return config


def _cases(config: TrainingConfig, words: str | None) -> list[Case]:
    """The numbers that divide the batch, each without and with checkpointing.

    Raises:
        ConfigError: One that is asked for does not.
    """
    batch = config.optimiser.batch
    try:
        numbers = [int(word) for word in words.split(",")] if words else [n for n in _AT_ONCE if batch % n == 0]
    except ValueError as error:
        raise ConfigError(f"--at-once {words} is no list of whole numbers; write it as 1,2,4") from error
    for number in numbers:
        if number < 1 or batch % number:
            raise ConfigError(f"--at-once {number} does not divide optimiser.batch={batch}; choose divisors")
    return [Case(number, again) for number in numbers for again in (False, True)]


def _positive(option: str, given: int | None, otherwise: int) -> int:
    if given is not None and given < 1:
        raise ConfigError(f"{option} {given} measures nothing; give at least 1")
    return given or otherwise


def _require_room(shapes: str, config: TrainingConfig) -> None:
    import torch

    if shapes != _TINY and (config.planner.device == "cpu" or not torch.cuda.is_available()):
        raise ConfigError(
            f"--shapes {shapes} needs a CUDA GPU, and none is used here; take --shapes {_TINY}, whose ratios a CPU can tell"
        )


# ------------------------------------------------------------------------------------------------------ measuring


def _measure(
    report: Report,
    shapes: str,
    config: TrainingConfig,
    cases: Sequence[Case],
    folder: Path,
    *,
    warm: int,
    steps: int,
    rounds: int,
) -> None:
    from benchmarks.timed_training import CountedBatches, out_of_memory, train_steps
    from benchmarks.true_shapes import RandomModel, write_model

    planner = config.planner
    model = write_model(shapes, folder / "model")
    try:
        base = RandomModel(model, device=planner.device, dtype=planner.dtype, threads=planner.threads)
    except ImportError as error:  # older versions of transformers read no picture without torchvision
        said = " ".join(str(error).split())
        raise ConfigError(f"transformers cannot read pictures here: {said[:120]}; pip install torchvision") from error
    # A sample gives one example or more, so none comes twice, and there are more frames than the encoder keeps, as in a training.
    taught = lessons(config, count=max(24, (warm + steps) * config.optimiser.batch))
    batches = CountedBatches(base, taught, longest=planner.context_tokens)
    shape = shape_of(base.files)
    kind = str(base.model.dtype)
    _tell_setting(report, config, base, shape, taught)
    measured: dict[Case, list[Steps]] = {case: [] for case in cases}
    failed: set[Case] = set()
    for number in range(rounds):
        for case in cases:
            if case in failed:
                continue
            base.let_go()
            try:
                done = train_steps(base, batches, case.told(config), folder / "trainer", warm=warm, steps=steps)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                failed.add(case)
                continue
            measured[case].append(done)
            print(f"round {number + 1} of {rounds}: {case.named(shapes)}", flush=True)
    told = _Told(shapes, shape, base.device.type == "cuda", _rate(report, kind))
    reference = Case(config.optimiser.at_once or config.optimiser.batch, config.optimiser.checkpointing)
    kept = measured.get(reference) if reference not in failed else None
    report.rows += [
        told.none_of(case) if case in failed else told.row(case, measured[case], kept, itself=case == reference)
        for case in cases
    ]
    if not kept:
        report.notes.append(f"no ratios: {reference.named(shapes)}, which is configured, was not measured")


def _tell_setting(
    report: Report, config: TrainingConfig, base: RandomModel, shape: ModelShape, taught: Sequence[Example]
) -> None:
    """What was measured on, for the filed result."""
    device = _device_name(base)
    report.device = re.sub(r"[^a-z0-9]+", "_", device.lower())
    report.settings |= {
        "device": device,
        "dtype": str(base.model.dtype),
        "parameters": shape.parameters,
        "frame": FRAME,
        "clips": CLIPS,
        "examples": len(taught),
        "tasks": sorted({example.task for example in taught}),
        "config": config.model_dump(mode="json", exclude={"data": {"sap", "frames"}, "planner": {"model"}}),
    }
    report.notes.append(f"random weights in the shapes of {report.settings['shapes']}, drawn cases; {device}")
    if base.device.type == "cpu":
        report.notes.append("on a CPU the ratios and shares say something, the times do not")


def _device_name(base: RandomModel) -> str:
    if base.device.type != "cuda":
        return "cpu"
    import torch

    known = present_device()
    return known.name if known else str(torch.cuda.get_device_name(base.device))


def _rate(report: Report, kind: str) -> float | None:
    """Operations per second by the data sheet, for numbers of 16 bits; None where it is not known."""
    if report.device == "cpu":
        return None
    known = present_device()
    if known is None or kind not in _HALF:
        report.notes.append(
            "no use of the GPU is told: its data sheet is not known here, or the numbers are of 32 bits"
        )
        return None
    report.notes.append(f"100 % use is {known.bf16_per_s / 1e12:.0f} TFLOP/s, {known.name}'s data sheet for bfloat16")
    return known.bf16_per_s


# ------------------------------------------------------------------------------------------------------ telling


@dataclass(frozen=True, slots=True)
class _Told:
    """Writes rows.

    Attributes:
        on_gpu: Whether times and memory are those of a GPU, and may be told by themselves.
        rate: Its operations per second; None if that is not known.
    """

    shapes: str
    shape: ModelShape
    on_gpu: bool
    rate: float | None

    def none_of(self, case: Case) -> Row:
        """The row of what does not fit."""
        return figure(_METHOD, case.named(self.shapes), 0, state="out of memory")

    def row(self, case: Case, rounds: Sequence[Steps], reference: Sequence[Steps] | None, *, itself: bool) -> Row:
        """Step times of all rounds, and what follows from them."""
        steps = [step for one in rounds for step in one.steps]
        parts = [part for step in steps for part in step.parts]
        read = [one for part in parts for one in part.read]
        seconds = sum(step.seconds for step in steps)
        tokens, learned = sum(one.tokens for one in read), sum(one.learned for one in read)
        more: dict[str, Any] = {
            "state": "",
            "trained_parameters": rounds[0].trained,
            "tokens_per_example": tokens / len(read),
            "picture_tokens_per_example": sum(one.seen for one in read) / len(read),
            "learned_per_example": learned / len(read),
            "encoding_share": sum(part.encoded_s for part in parts) / seconds,
            "padded_share": 1 - tokens / sum(part.places for part in parts),
        }
        if self.on_gpu:
            more |= {
                "examples_per_s": len(read) / seconds,
                "prompt_per_s": (tokens - learned) / seconds,
                "learned_per_s": learned / seconds,
                "held_gb": max(one.allocated for one in rounds) / 1e9,
                "reserved_gb": max(one.reserved for one in rounds) / 1e9,
                **self._use(case, rounds[0].trained, read, seconds),
            }
        compared = None if reference is None or itself else [_steps_ms(one) for one in reference]
        times = [_steps_ms(one) for one in rounds]
        return row_of(_METHOD, case.named(self.shapes), times, reference_ms=compared, **more)

    def _use(self, case: Case, trained: int, read: Sequence[Read], seconds: float) -> dict[str, float]:
        if self.rate is None:
            return {}
        needed = needed_operations(self.shape, trained, read)
        again = repeated_operations(self.shape, trained, read) if case.checkpointing else 0.0
        allowed = self.rate * seconds
        return {"model_use": needed / allowed, "hardware_use": (needed + again) / allowed}


def _steps_ms(one: Steps) -> list[float]:
    return [1000 * step.seconds for step in one.steps]


if __name__ == "__main__":
    run_main(main)
