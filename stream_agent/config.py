"""The configuration: frozen sections, one per stage; a YAML preset and `section.key=value` override the defaults.

Each stage takes its own section, never the whole tree. Rules that span sections live in one validator on
`AgentConfig`. Nothing found out at run time is written back.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from stream_agent.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parent


def configs_directory() -> Path:
    """Where presets and procedure packs lie: the checkout's `configs/`, or the copy inside an installed wheel."""
    checkout = _PACKAGE.parent / "configs"
    return checkout if checkout.is_dir() else _PACKAGE / "_configs"


class Section(BaseModel):
    """Base of every section: immutable, unknown keys refused, so that a typing error is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _pace(value: object) -> object:
    """Turn `2`, `"2"`, `"2x"` into 2.0; leave the named paces alone."""
    if value in ("realtime", "max"):
        return value
    try:
        factor = float(str(value).removesuffix("x"))
    except ValueError:
        factor = math.nan
    if not 0 < factor <= 1000:
        raise ValueError(
            f"source.pace={value} is not a pace; choose realtime, max, or N up to 1000 for N times real time"
        )
    return factor


def _off(value: object) -> object:
    """Undo YAML 1.1, which reads a plain `off` as false."""
    return "off" if value is False else value


Pace = Annotated[
    Literal["realtime", "max"] | Annotated[float, Field(gt=0, le=1000)],
    BeforeValidator(_pace),
]


class SourceConfig(Section):
    """Where frames come from and how fast."""

    uri: str = Field(
        default="synthetic:",
        description="A video file, a folder of numbered frames, a .csv of 1 Hz signals, /dev/videoN, an "
        "rtsp:// srt:// http:// udp:// tcp:// address, device:FORMAT:NAME for any libav device, or synthetic:",
    )
    stream_id: str = Field(
        default="endoscope", min_length=1, max_length=64, description="Names the camera in every message."
    )
    pace: Pace = Field(
        default="realtime",
        description="realtime, N for N times real time, or max: lockstep on a virtual clock, deterministic. Live sources "
        "have their own pace.",
    )
    loop: bool = Field(default=False, description="Start a finite source again at its end, as a new session.")
    start_s: float = Field(default=0.0, ge=0, description="Media time to start at.")
    stop_s: float | None = Field(default=None, gt=0, description="Media time to stop at.")
    open_timeout_s: float = Field(default=10.0, gt=0, description="How long opening may take before it is an error.")
    read_timeout_s: float = Field(
        default=5.0, gt=0, description="How long a live source may be silent before a reconnect."
    )
    reconnect_initial_s: float = Field(
        default=0.25, gt=0, description="First wait before a reconnect; doubles each time."
    )
    reconnect_max_s: float = Field(default=8.0, gt=0, description="Longest wait before a reconnect.")
    restarts_per_minute: int = Field(default=6, ge=0, description="How often a grabber that died is started again.")
    decode_threads: int = Field(default=2, ge=0, le=64, description="Decoder threads; 0 lets libav choose.")
    options: dict[str, str] = Field(default_factory=dict, description="Options handed to libav as they are.")
    fps: float = Field(default=1.0, gt=0, description="Frame rate of a frame folder (CholecT50 ids are seconds: 1).")
    synthetic_width: int = Field(default=960, ge=64, le=7680, multiple_of=2)
    synthetic_height: int = Field(default=540, ge=64, le=4320, multiple_of=2)
    synthetic_fps: float = Field(default=30.0, gt=0, le=240)
    synthetic_duration_s: float = Field(default=60.0, gt=0, description="Length of the synthetic procedure on screen.")
    synthetic_speed: float = Field(
        default=12.0,
        gt=0,
        le=1000,
        description="Times faster than life that the synthetic procedure plays, so that a minute shows several actions.",
    )
    seed: int = Field(default=7, ge=0, description="Draws the synthetic scene and its action timeline.")


class TransportConfig(Section):
    """How frames reach the agent and other subscribers."""

    slots: int = Field(default=8, ge=3, le=64, description="Frames the shared-memory ring holds.")
    bind: str | None = Field(
        default=None, description="tcp://HOST:PORT on which `grab` publishes encoded frames to other hosts."
    )
    connect: str | None = Field(
        default=None, description="tcp://HOST:PORT of a grabber on another host; the agent then starts none of its own."
    )
    encoding: Literal["jpeg", "raw"] = Field(default="jpeg", description="Pixels between hosts.")
    jpeg_quality: int = Field(default=90, ge=30, le=100)
    keys: Path | None = Field(
        default=None, description="Directory of CURVE keys made by `run_agent.py keys`; required outside loopback."
    )
    stall_s: float = Field(
        default=0.7, gt=0, le=10, description="A grabber without a sign of life this long is degraded."
    )


class GateConfig(Section):
    """When a picture is no ground for a plan."""

    enabled: bool = True
    black_luma: float = Field(
        # In-body pictures of the training videos have 17 and more, VID15's black passage with its grey box 1.7.
        default=8.0,
        ge=0,
        le=255,
        description="Mean luma (0 to 255) under which a picture is black.",
    )
    frozen_s: float = Field(
        default=2.0, gt=0, description="Seconds without any change after which a picture is frozen."
    )
    frozen_difference: float = Field(
        default=0.15, ge=0, description="Mean absolute luma change that still counts as none."
    )
    out_of_body_probability: float = Field(
        default=0.9, gt=0, le=1, description="The recogniser's out-of-body probability at which the gate closes."
    )
    blur_variance: float = Field(
        # In-body pictures have 57 and more; the same blurred with a sigma of 1.5 reduced pixels have 4 to 12.
        default=8.0,
        ge=0,
        description="Variance of the Laplacian of the reduced luma under which a picture is blurred.",
    )
    blur_s: float = Field(
        default=0.6, ge=0, description="Seconds of blur before the gate closes: a moving camera blurs briefly."
    )


class RecogniserConfig(Section):
    """What turns a picture into evidence."""

    kind: Literal["auto", "timeline", "signals", "onnx"] = Field(
        default="auto", description="auto: timeline for synthetic, signals for a signals source, onnx for pixels."
    )
    rate_hz: float = Field(default=10.0, gt=0, le=240, description="Frames looked at per second of media time.")
    labels: Path | None = Field(default=None, description="Label file of the timeline recogniser.")
    model: Path | None = Field(default=None, description="ONNX model; the pack's own when unset.")
    threads: int = Field(default=1, ge=1, le=16)


class SegmenterConfig(Section):
    """How evidence becomes clips."""

    mean_clip_s: float = Field(default=60.0, gt=0, description="Expected clip length: how sticky the filter is.")
    # 6 s and half a look a second: on left-out training videos with 1 Hz signals, clip F1 0.60 instead of 0.49 with 2 s and a
    # whole look (docs/model_card_recogniser.md).
    min_dwell_s: float = Field(default=6.0, ge=0, description="A new action must lead this long before a clip begins.")
    evidence_per_s: float = Field(
        default=0.5,
        gt=0,
        le=1000,
        description="How many independent looks a second of evidence is worth: neighbouring frames repeat each other's mistakes.",
    )


class MemoryConfig(Section):
    """How much of the past the planner may see."""

    max_clips: int = Field(default=64, ge=2, description="Closed clips kept before the oldest fold into counts.")
    evict_block: int = Field(
        default=16, ge=1, description="Clips folded at once, so that prompts change rarely at their start."
    )
    journal: Path | None = Field(default=None, description="File that closed clips are appended to, and restored from.")
    case_id: str = Field(
        default="case", min_length=1, max_length=128, description="The patient case; another id starts empty."
    )

    @model_validator(mode="after")
    def _block_fits(self) -> MemoryConfig:
        if self.evict_block >= self.max_clips:
            raise ValueError(
                f"memory.evict_block={self.evict_block} must be smaller than memory.max_clips={self.max_clips}; lower it"
            )
        return self


class ProcedureConfig(Section):
    """Which procedure is being watched."""

    pack: Path = Field(
        default=Path("cholecystectomy"), description="Folder of the procedure pack, or its name in configs/procedures."
    )
    goal: str | None = Field(default=None, description="Free text that replaces the pack's goal.")


class ScriptedStep(Section):
    """One behaviour of the scripted planner."""

    behaviour: Literal["answer", "hang", "crash", "garbage", "error"] = "answer"
    delay_s: float = Field(default=0.0, ge=0)
    ranked: tuple[str, ...] = Field(default=(), description="Actions to rank; empty ranks in pack order.")


class PlannerConfig(Section):
    """The planner worker and what every plan promises."""

    kind: Literal["none", "scripted"] = Field(
        default="none", description="The worker's planner; none runs the statistical alone."
    )
    deadline_ms: float = Field(default=500.0, gt=0, description="From capture; later answers are expired.")
    valid_s: float = Field(default=2.0, gt=0, description="How long after capture a plan may be shown as current.")
    horizon: int = Field(default=3, ge=1, le=10, description="Actions ahead in the chain.")
    abstain_below: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="The statistical planner abstains when no action is this probable; 0 never.",
    )
    script: tuple[ScriptedStep, ...] = Field(
        default=(ScriptedStep(),), description="What the scripted planner does, in turn, for ever."
    )
    charged_ms: float | None = Field(
        default=None, ge=0, description="Lockstep: latency charged per worker plan; unset charges what was measured."
    )
    restarts_per_minute: int = Field(default=3, ge=0)
    ready_timeout_s: float = Field(default=600.0, gt=0)

    @model_validator(mode="after")
    def _script_has_a_step(self) -> PlannerConfig:
        if not self.script:
            raise ValueError("planner.script=[] holds no step; give at least one, for example [{behaviour: answer}]")
        return self

    @model_validator(mode="after")
    def _deadline_before_expiry(self) -> PlannerConfig:
        if self.deadline_ms > self.valid_s * 1000:
            raise ValueError(
                f"planner.deadline_ms={self.deadline_ms} is later than planner.valid_s={self.valid_s} s, so an answer would be "
                "expired on arrival; lower the deadline or raise valid_s"
            )
        return self


class SchedulerConfig(Section):
    """When the worker is asked."""

    min_interval_s: float = Field(default=0.5, ge=0, description="Least time between two requests.")
    max_staleness_s: float = Field(default=0.5, gt=0, description="A frame older than this is not planned from.")


class PublisherConfig(Section):
    """Plans over ZeroMQ for other programs."""

    bind: str | None = Field(default=None, description="ipc://PATH or tcp://HOST:PORT; off when unset.")
    keys: Path | None = Field(default=None, description="CURVE keys; required outside loopback.")


class SinksConfig(Section):
    """Where plans go."""

    console: Annotated[Literal["auto", "live", "plain", "off"], BeforeValidator(_off)] = Field(
        default="auto", description="auto: the live view on a terminal, plain lines elsewhere."
    )
    jsonl: Path | None = Field(default=None, description="File that gets one JSON object per published plan.")
    publisher: PublisherConfig = PublisherConfig()


class TelemetryConfig(Section):
    """What is measured and where it is served."""

    prometheus: str | None = Field(default=None, description="HOST:PORT of a Prometheus endpoint; off when unset.")


class AgentConfig(Section):
    """The whole configuration; only `agent.py`, `workers.py` and `cli.py` see it."""

    source: SourceConfig = SourceConfig()
    transport: TransportConfig = TransportConfig()
    gate: GateConfig = GateConfig()
    recogniser: RecogniserConfig = RecogniserConfig()
    segmenter: SegmenterConfig = SegmenterConfig()
    memory: MemoryConfig = MemoryConfig()
    procedure: ProcedureConfig = ProcedureConfig()
    planner: PlannerConfig = PlannerConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    sinks: SinksConfig = SinksConfig()
    telemetry: TelemetryConfig = TelemetryConfig()

    @model_validator(mode="after")
    def _sections_agree(self) -> AgentConfig:
        if self.source.stop_s is not None and self.source.stop_s <= self.source.start_s:
            raise ValueError(
                f"source.stop_s={self.source.stop_s} is not after source.start_s={self.source.start_s}; raise it or leave it out"
            )
        if self.transport.connect is not None and self.source.pace == "max":
            raise ValueError(
                "source.pace=max needs the agent's own grabber, but transport.connect names another host's; unset one of them"
            )
        if (
            self.recogniser.kind == "timeline"
            and self.recogniser.labels is None
            and not self.source.uri.startswith("synthetic:")
        ):
            raise ValueError(
                "recogniser.kind=timeline needs recogniser.labels=FILE for this source; name the label file or use kind=auto"
            )
        return self

    @property
    def watched(self) -> str:
        """The address that frames come from: the own grabber's source, or another host's grabber."""
        return self.transport.connect or self.source.uri

    def digest(self) -> str:
        """Twelve hex digits of sha256 over all that decides plans: not where they go or how they are carried."""
        decides = self.model_dump_json(
            exclude={"sinks": True, "telemetry": True, "transport": True, "memory": {"journal"}}
        )
        return hashlib.sha256(decides.encode()).hexdigest()[:12]


def load_config(path: Path | None = None, overrides: Sequence[str] = ()) -> AgentConfig:
    """Defaults, then the YAML preset at `path`, then `section.key=value` overrides, validated as one.

    Raises:
        ConfigError: A file, key or value is wrong; the message names it and what is allowed.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        tree = _read_yaml(path)
    for override in overrides:
        _apply(tree, override)
    try:
        return AgentConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_complaints(error))) from error


def _read_yaml(path: Path) -> dict[str, Any]:
    candidates = (path, configs_directory() / path.name) if path.parent == Path() else (path,)
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        presets = ", ".join(sorted(preset.name for preset in configs_directory().glob("*.yaml")))
        raise ConfigError(f"config file {path} does not exist; presets in {configs_directory()}: {presets}")
    try:
        tree = yaml.safe_load(found.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"config file {found} is not readable YAML: {error}; correct the line it names") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"config file {found} holds a {type(tree).__name__}, not sections; start with e.g. 'source:'")
    return tree


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.split(".")
    if not equals or len(parts) < 2 or not all(parts):
        raise ConfigError(f"'{override}' is not section.key=value; write for example source.uri=video.mp4")
    node = tree
    for part in parts[:-1]:
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            raise ConfigError(f"'{override}': {part} is a value, not a section; see `run_agent.py config show`")
        node = child
    node[parts[-1]] = _value(_annotation(parts), text)


def _value(annotation: object, text: str) -> object:
    """`text` as it stands where text is wanted (a case 007, an address `synthetic:`), unless quoted; else as YAML."""
    if not text:
        return None
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # the latter for what looks like a date and is none
        return text
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    wants_text = any(member in (str, Path) for member in members)
    return text if wants_text and value is not None and text[0] not in "\"'" else value


def _complaints(error: ValidationError) -> Iterable[str]:
    for item in error.errors():
        location = ".".join(str(part) for part in item["loc"] if not isinstance(part, str) or "[" not in part)
        if item["type"] == "extra_forbidden":
            yield f"{location} is not a known key; see `run_agent.py config schema` for those that are{_nearest(item['loc'])}"
        elif item["type"] == "value_error":
            yield item["msg"].removeprefix("Value error, ")
        else:
            given = item.get("input")
            shown = "" if isinstance(given, dict) else f"={given}"
            yield f"{location}{shown}: {item['msg']}; correct it (`run_agent.py config schema` lists types and ranges)"


def _nearest(location: tuple[int | str, ...]) -> str:
    """`; did you mean KEY?` when a sibling key is spelt much the same."""
    import difflib

    section = _annotation(location[:-1])
    if not (isinstance(section, type) and issubclass(section, BaseModel)):
        return ""
    close = difflib.get_close_matches(str(location[-1]), list(section.model_fields), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _annotation(location: Iterable[int | str]) -> object:
    """The type declared at `location`; None where nothing is."""
    found: object = AgentConfig
    for part in location:
        if isinstance(found, type) and issubclass(found, BaseModel):
            field = found.model_fields.get(str(part))
            found = None if field is None else field.annotation
        else:
            found = next(iter(get_args(found)), None)  # a member of a list or of a dict of texts
    return found


def is_lockstep(source: SourceConfig) -> bool:
    """Whether a virtual clock on media time drives the session instead of the host's."""
    return source.pace == "max"


def pace_factor(source: SourceConfig) -> float:
    """Media seconds per second: 1 in real time, N, infinity in lockstep."""
    if source.pace == "max":
        return math.inf
    factor = 1.0 if source.pace == "realtime" else source.pace
    return factor * source.synthetic_speed if source.uri.startswith("synthetic:") else factor
