"""The configuration: frozen sections, one per stage; a YAML preset and `section.key=value` override the defaults.

Each stage takes its own section, never the whole tree. Rules that span sections live in one validator on
`AgentConfig`. Nothing found out at run time is written back.
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from stream_agent.errors import ConfigError

PROMOTED = "promoted"
"""`planner.adapter=promoted` means the one that the registry has in use."""

_PACKAGE = Path(__file__).resolve().parent


def configs_directory() -> Path:
    """Where presets and procedure packs lie: the checkout's `configs/`, or the copy inside an installed wheel."""
    checkout = _PACKAGE.parent / "configs"
    return checkout if checkout.is_dir() else _PACKAGE / "_configs"


class Section(BaseModel):
    """Base of every section: immutable, unknown keys refused, so that a typing error is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


SectionT = TypeVar("SectionT", bound=Section)


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
        description="A video file, a folder of numbered frames, a .csv of 1 Hz signals, a recorded .mcap, /dev/videoN, an "
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

    kind: Literal["auto", "timeline", "signals", "recorded", "onnx"] = Field(
        default="auto",
        description="auto: timeline for synthetic, signals for a signals source, recorded for a recording, onnx for pixels.",
    )
    rate_hz: float = Field(default=10.0, gt=0, le=240, description="Frames looked at per second of media time.")
    labels: Path | None = Field(default=None, description="Label file of the timeline recogniser.")
    model: Path | None = Field(default=None, description="ONNX model; the pack's own when unset.")
    threads: int = Field(default=1, ge=1, le=16)


class SegmenterConfig(Section):
    """How evidence becomes clips."""

    mean_clip_s: float = Field(
        default=60.0, gt=0, description="Expected clip length where the pack has no fitted durations (segmenter.json)."
    )
    min_dwell_s: float = Field(
        default=2.0, ge=0, description="A clip must have been observed this long before it is declared."
    )
    evidence_per_s: float = Field(
        default=0.5,
        gt=0,
        le=1000,
        description="How many independent looks a second of evidence is worth: neighbouring frames repeat each other's mistakes.",
    )
    # What it trades, clips found against false ones and delay: docs/model_card_signals.md.
    declare_odds: float = Field(
        default=40.0, ge=1, description="A new action must be this many times as probable as the open one."
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


class ModelsConfig(Section):
    """Which promoted models a run takes (`models promote`)."""

    registry: Path | None = Field(
        default=None,
        description="Folder of promoted models: its statistical model in use replaces the pack's own; for its adapter set "
        "planner.adapter=promoted.",
    )
    statistical: int | None = Field(
        default=None, ge=0, description="This version instead of the one in use; 0 is the pack's own."
    )
    adapter: int | None = Field(
        default=None, ge=0, description="This version instead of the one in use; 0 is the base model alone."
    )


class ScriptedStep(Section):
    """One behaviour of the scripted planner."""

    behaviour: Literal["answer", "hang", "crash", "garbage", "error"] = "answer"
    delay_s: float = Field(default=0.0, ge=0)
    ranked: tuple[str, ...] = Field(default=(), description="Actions to rank; empty ranks in pack order.")


class RehearsedScore(Section):
    """What a rehearsed backend does when it is asked to score."""

    behaviour: Literal["answer", "nan", "nothing", "oom", "error", "dead", "hang", "stuck", "crash"] = Field(
        default="answer",
        description="nothing: no candidate is reported; dead: the engine is lost; hang: never answers, but can be cancelled; "
        "stuck: blocks the whole worker; crash: ends its process.",
    )
    delay_s: float = Field(default=0.0, ge=0)
    beliefs: dict[str, float] = Field(
        default_factory=dict, description="Log-probability per action; those not named get a seeded one."
    )
    position_bias: float = Field(
        default=0.0, ge=0, description="Added to the first choice, and ever less to later ones."
    )


class RehearsedText(Section):
    """What a rehearsed backend does when it is asked to write."""

    behaviour: Literal["answer", "truncated", "wrong_schema", "oom", "error", "dead", "hang", "crash"] = "answer"
    delay_s: float = Field(default=0.0, ge=0, description="Before the first piece.")
    piece_s: float = Field(default=0.0, ge=0, description="Between two pieces.")
    text: str | None = Field(default=None, description="Written as it stands, whatever was asked.")


class BackendConfig(Section):
    """One language model: in this process's worker, or behind an address."""

    kind: Literal["none", "scripted", "rehearsed", "transformers", "vllm", "openai"] = Field(
        default="none",
        description="none: no worker, the statistical planner alone; scripted, rehearsed: tests and drills without a model.",
    )
    model: Path | None = Field(
        default=None,
        description="Local directory of the model: config.json, tokenizer, safetensors; nothing is fetched.",
    )
    digest: str | None = Field(
        default=None, pattern="^[0-9a-f]{12,64}$", description="The model's manifest digest; another is refused."
    )
    endpoint: str | None = Field(
        default=None,
        pattern="^https?://",
        description="openai: address of the server, up to /v1; plans and pictures go there.",
    )
    fallback_endpoints: tuple[Annotated[str, Field(pattern="^https?://")], ...] = Field(
        default=(), description="openai: servers of the same model that take over while the first is unwell."
    )
    served_model: str | None = Field(
        default=None, description="openai: the model's name there; its only one when unset."
    )
    api_key_env: str | None = Field(
        default=None,
        pattern="^[A-Za-z_][A-Za-z0-9_]*$",
        description="openai: environment variable that holds the key.",
    )
    plaintext: bool = Field(
        default=False, description="openai: allow http:// to another host, on a network that is protected itself."
    )
    connect_timeout_s: float = Field(default=2.0, gt=0)
    request_timeout_s: float = Field(default=30.0, gt=0, description="Longest silence of a server or engine.")
    retries: int = Field(default=1, ge=0, le=10, description="Further tries of a request within its deadline.")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        default="auto", description="auto: bfloat16 on a GPU, float32 on the CPU."
    )
    threads: int = Field(default=2, ge=1, le=256, description="CPU threads of a model on the CPU.")
    quantization: str | None = Field(default=None, description="vllm: fp8, awq, …; unset takes the model's own.")
    kv_cache_dtype: str = Field(default="auto", description="vllm: auto or fp8.")
    gpu_memory: float = Field(default=0.85, gt=0, le=1, description="Share of the GPU's memory for weights and cache.")
    kv_cache_gb: float | None = Field(
        default=None, gt=0, description="vllm: size of the cache where no share is meant."
    )
    context_tokens: int = Field(default=4096, ge=256, description="Longest prompt with its answer.")
    parallel: int = Field(default=16, ge=1, le=1024, description="Prompts computed at once.")
    eager: bool = Field(default=False, description="No CUDA graphs: starts sooner, answers later.")
    adapters: dict[str, Path] = Field(default_factory=dict, description="LoRA adapters: name to local directory.")
    adapter: str = Field(
        default="",
        description="The adapter used; empty for the base model; promoted: the one in use in models.registry.",
    )
    rehearsed_scores: tuple[RehearsedScore, ...] = Field(
        default=(RehearsedScore(),), min_length=1, description="What the rehearsed backend scores, in turn, for ever."
    )
    rehearsed_texts: tuple[RehearsedText, ...] = Field(
        default=(RehearsedText(),), min_length=1, description="What the rehearsed backend writes, in turn, for ever."
    )
    seed: int = Field(default=0, ge=0, description="Of the rehearsed backend's beliefs.")

    @model_validator(mode="after")
    def _the_kind_has_what_it_needs(self) -> BackendConfig:
        if self.kind in ("transformers", "vllm") and self.model is None:
            raise ValueError(f"kind={self.kind} needs a model; set planner.model=DIR to a local directory of one")
        if self.kind == "openai" and self.endpoint is None:
            raise ValueError("kind=openai needs a server; set planner.endpoint=http://HOST:PORT/v1")
        if PROMOTED in self.adapters:
            raise ValueError(f"adapters has one called {PROMOTED}, which means the registry's; give it another name")
        if self.adapter and self.adapter != PROMOTED and self.adapter not in self.adapters:
            raise ValueError(
                f"adapter={self.adapter} is none of adapters={sorted(self.adapters)}; add it with its directory"
            )
        return self


class FusionConfig(Section):
    """How the model's belief and the statistical planner's become one: p ∝ p_s ** statistical · p_m ** model."""

    enabled: bool = Field(default=True, description="false shows the model's own ranking, the ladder's rung vlm.")
    statistical: float = Field(default=1.0, ge=0, le=10)
    model: float = Field(
        default=0.2,
        ge=0,
        le=10,
        description="0.2 with least_belief=0.02 lets a model that was never fitted overturn only what the statistical planner "
        "holds less than 2.2 times as likely.",
    )
    least_belief: float = Field(
        default=0.02, gt=0, lt=0.5, description="The model's probability of any action counts as at least this."
    )
    fitted_on: str = Field(default="", description="What the weights were fitted on; empty says that they were not.")


class PlannerConfig(BackendConfig):
    """The planner worker and what every plan promises."""

    deadline_ms: float = Field(default=500.0, gt=0, description="From capture; later answers are expired.")
    valid_s: float = Field(default=2.0, gt=0, description="How long after capture a plan may be shown as current.")
    horizon: int = Field(default=3, ge=1, le=10, description="Actions ahead in the chain.")
    abstain_below: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="The statistical planner abstains when no action is this probable; 0 never.",
    )
    form: Literal["direct", "indirect"] = Field(
        default="direct", description="direct: the model sees the frame; indirect: it reads a caption of it."
    )
    memory: Literal["labels_and_near", "near_only", "near_picture_only", "labels_only", "all_frames_with_labels"] = (
        Field(default="labels_and_near", description="What of the memory goes into the prompt.")
    )
    knowledge: Literal["full", "short", "none"] = Field(
        default="full",
        description="How much of the pack is told first: full: knowledge.md; short: a line per action; none: their names.",
    )
    question: Literal["plain", "coded"] = Field(
        default="plain",
        description="coded: a ranking is asked with the last actions told once more in the codes of the choices, and the action "
        "going on among them; small models continue such a row better than they understand a question.",
    )
    max_frames: int = Field(default=4, ge=1, le=16, description="Pictures at most with memory=all_frames_with_labels.")
    max_pixels: int = Field(
        default=262_144, ge=3136, le=8_294_400, description="The near frame is reduced to at most so many pixels."
    )
    side_multiple: int = Field(
        default=28,
        ge=1,
        le=128,
        description="Of both sides in pixels: 28 for Qwen2-VL and Qwen2.5-VL, 32 for Qwen3-VL.",
    )
    remember_plans: int = Field(
        default=3, ge=0, le=10, description="Earlier plans, and what happened then, in the prompt; 0 turns it off."
    )
    permutations: int = Field(
        default=0,
        ge=0,
        le=64,
        description="Orders of the choices that are averaged; 0 puts every action in every place.",
    )
    temperature: float = Field(default=1.0, gt=0, le=100, description="Divides the rank lane's log-probabilities.")
    temperature_fitted_on: str = Field(default="", description="What it was fitted on; empty says that it was not.")
    fusion: FusionConfig = FusionConfig()
    rationale: bool = Field(default=True, description="Have the model say why, after it ranked.")
    rationale_tokens: int = Field(default=240, ge=16, le=4096, description="Longest rationale.")
    rationale_every_s: float = Field(
        default=5.0, ge=0, description="While nothing changes, a new rationale after this."
    )
    rationale_max_s: float = Field(default=10.0, gt=0, description="A rationale is about its frame for so long.")
    chain: bool = Field(default=True, description="Rank on over imagined histories up to the horizon.")
    captioner: BackendConfig | None = Field(
        default=None, description="form=indirect: the model that captions; the planner's own when unset."
    )
    caption_max_age_s: float = Field(default=5.0, gt=0, description="A caption older than this is not planned from.")
    caption_refresh_s: float = Field(default=2.0, ge=0, description="A caption older than this is made anew meanwhile.")
    caption_tokens: int = Field(default=120, ge=16, le=2048)
    script: tuple[ScriptedStep, ...] = Field(
        default=(ScriptedStep(),), description="What the scripted planner does, in turn, for ever."
    )
    charged_ms: float | None = Field(
        default=None, ge=0, description="Lockstep: latency charged per worker plan; unset charges what was measured."
    )
    restarts_per_minute: int = Field(default=3, ge=0)
    ready_timeout_s: float = Field(default=600.0, gt=0)

    @property
    def wants_pictures(self) -> bool:
        """Whether anything that is asked of a model shows it the near frame."""
        return self.kind not in ("none", "scripted") and self.memory != "labels_only"

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

    @model_validator(mode="after")
    def _captions_can_be_made(self) -> PlannerConfig:
        if self.captioner is not None and self.captioner.kind in ("none", "scripted"):
            raise ValueError(
                f"planner.captioner.kind={self.captioner.kind} writes no captions; choose rehearsed, transformers, vllm or openai"
            )
        if self.captioner is not None and self.captioner.adapter == PROMOTED:
            raise ValueError(
                "planner.captioner.adapter=promoted: only the planner's adapter is promoted; name one of planner.captioner.adapters"
            )
        if self.form == "indirect" and self.memory == "all_frames_with_labels":
            raise ValueError("planner.memory=all_frames_with_labels shows frames; use planner.form=direct with it")
        if self.caption_refresh_s > self.caption_max_age_s:
            raise ValueError(
                f"planner.caption_refresh_s={self.caption_refresh_s} is more than planner.caption_max_age_s="
                f"{self.caption_max_age_s}, so captions would be out of date before they are renewed; lower it"
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


class RecorderConfig(Section):
    """What a recording holds besides messages."""

    video: bool = Field(default=True, description="Record the pictures that were perceived, as H.264.")
    crf: int = Field(default=23, ge=10, le=40, description="x264's quality: 18 looks like the original, 30 is coarse.")


def _is_loopback(host: str) -> bool:
    """Whether `host` is this one, beyond doubt: where another name leads is not known here."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class DashboardConfig(Section):
    """A web page with the picture, the plans and their age."""

    enabled: bool = Field(default=False, description="Serve it; needs stream-agent[dashboard].")
    host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address to listen on; outside loopback token_env, and a certificate or plaintext=true, are required.",
    )
    port: int = Field(default=8765, ge=0, le=65535, description="0 takes a free one; it is told at the start.")
    token_env: str | None = Field(
        default=None,
        pattern="^[A-Za-z_][A-Za-z0-9_]*$",
        description="Environment variable that holds the token a browser must know, 16 characters or more.",
    )
    allowed_hosts: tuple[str, ...] = Field(
        default=(), description="Further names under which browsers reach the page; any other is refused."
    )
    certificate: Path | None = Field(default=None, description="PEM file for https.")
    certificate_key: Path | None = Field(default=None, description="PEM file of its key.")
    plaintext: bool = Field(
        default=False, description="Allow http:// outside loopback, on a network that is protected itself."
    )
    fps: float = Field(default=10.0, gt=0, le=30, description="Pictures a second at most, while somebody watches.")
    max_pixels: int = Field(default=307_200, ge=3136, le=2_073_600, description="Pictures are reduced to so many.")
    verdicts: Path | None = Field(
        default=None,
        description="Folder that accepted and rejected labels are kept in, as training data; without it none are taken.",
    )

    @property
    def is_local(self) -> bool:
        """Whether only this host can reach the page."""
        return _is_loopback(self.host)

    @model_validator(mode="after")
    def _protected(self) -> DashboardConfig:
        if (self.certificate is None) != (self.certificate_key is None):
            raise ValueError("sinks.dashboard.certificate and certificate_key belong together; set both or neither")
        if not self.enabled or self.is_local:
            return self
        if self.token_env is None:
            raise ValueError(
                f"sinks.dashboard.host={self.host} can be reached from other hosts, so it needs a token; set "
                "sinks.dashboard.token_env=NAME of an environment variable that holds one, or use 127.0.0.1"
            )
        if self.certificate is None and not self.plaintext:
            raise ValueError(
                f"sinks.dashboard.host={self.host} can be reached from other hosts, so pictures must be encrypted; set "
                "sinks.dashboard.certificate and certificate_key, or plaintext=true on a network that is protected itself"
            )
        return self


class OpenIgtLinkConfig(Section):
    """Plans and pictures for 3D Slicer and the like, on this host alone."""

    port: int | None = Field(
        default=None, ge=0, le=65535, description="Of 127.0.0.1, usually 18944; 0 takes a free one; off when unset."
    )
    fps: float = Field(default=5.0, ge=0, le=60, description="Pictures a second at most; 0 sends none.")
    max_pixels: int = Field(default=409_920, ge=3136, le=8_294_400, description="Pictures are reduced to so many.")


class RerunConfig(Section):
    """Live logging to a Rerun viewer."""

    connect: str | None = Field(
        default=None, description="HOST:PORT of a viewer that listens, usually 127.0.0.1:9876; off when unset."
    )
    plaintext: bool = Field(
        default=False, description="Allow a viewer on another host, unencrypted, on a network that is protected itself."
    )
    fps: float = Field(default=5.0, ge=0, le=60, description="Pictures a second at most; 0 sends none.")
    max_pixels: int = Field(default=307_200, ge=3136, le=8_294_400, description="Pictures are reduced to so many.")

    @model_validator(mode="after")
    def _reachable(self) -> RerunConfig:
        if self.connect is None:
            return self
        host, _, port = self.connect.rpartition(":")
        if not host.strip("[]") or not port.isdigit() or not 0 < int(port) <= 65535:
            raise ValueError(f"sinks.rerun.connect={self.connect} is not HOST:PORT; write for example 127.0.0.1:9876")
        if not (_is_loopback(host.strip("[]")) or self.plaintext):
            raise ValueError(
                f"sinks.rerun.connect={self.connect} is another host, and Rerun encrypts nothing; use 127.0.0.1 with ssh -L, or "
                "sinks.rerun.plaintext=true on a network that is protected itself"
            )
        return self


class Ros2Config(Section):
    """Plans and pictures as ROS 2 topics."""

    namespace: str | None = Field(
        default=None,
        pattern="^[A-Za-z][A-Za-z0-9_]*(/[A-Za-z][A-Za-z0-9_]*)*$",
        description="Of the topics, for example stream_agent; needs a sourced ROS 2 (rclpy); off when unset.",
    )
    discovery: Literal["localhost", "subnet", "system"] = Field(
        default="localhost",
        description="Who may find the topics; subnet: every host of the network, unencrypted unless ROS 2 is set up with SROS2; "
        "system: as ROS 2 is set up.",
    )
    fps: float = Field(default=5.0, ge=0, le=60, description="Pictures a second at most; 0 sends none.")
    max_pixels: int = Field(default=307_200, ge=3136, le=8_294_400, description="Pictures are reduced to so many.")


class SinksConfig(Section):
    """Where plans go."""

    console: Annotated[Literal["auto", "live", "plain", "off"], BeforeValidator(_off)] = Field(
        default="auto", description="auto: the live view on a terminal, plain lines elsewhere."
    )
    jsonl: Path | None = Field(default=None, description="File that gets one JSON object per published plan.")
    publisher: PublisherConfig = PublisherConfig()
    dashboard: DashboardConfig = DashboardConfig()
    openigtlink: OpenIgtLinkConfig = OpenIgtLinkConfig()
    rerun: RerunConfig = RerunConfig()
    ros2: Ros2Config = Ros2Config()
    recording: Path | None = Field(
        default=None,
        description="MCAP file that the session is recorded to, or a folder for one named after the time; never overwritten.",
    )
    recorder: RecorderConfig = RecorderConfig()


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
    models: ModelsConfig = ModelsConfig()
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
        needs_registry = {
            "planner.adapter=promoted": self.planner.adapter == PROMOTED,
            f"models.statistical={self.models.statistical}": self.models.statistical is not None,
            f"models.adapter={self.models.adapter}": self.models.adapter is not None,
        }
        for setting, given in needs_registry.items():
            if given and self.models.registry is None:
                raise ValueError(f"{setting} is about a registry of models; name it with models.registry=DIR")
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
        if self.recogniser.kind == "recorded" and not self.source.uri.lower().endswith(".mcap"):
            raise ValueError(
                f"recogniser.kind=recorded reads a recording, but source.uri={self.source.uri} is none; use kind=auto"
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
    return load_tree(AgentConfig, path, overrides)


def load_tree(kind: type[SectionT], path: Path | None, overrides: Sequence[str]) -> SectionT:
    """As `load_config`, for another tree of sections (training has its own).

    Raises:
        ConfigError: A file, key or value is wrong; the message names it and what is allowed.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        tree = _read_yaml(path)
    for override in overrides:
        _apply(tree, override, kind)
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_complaints(error, kind))) from error


def overridden(config: AgentConfig, overrides: Sequence[str]) -> AgentConfig:
    """`config` with `section.key=value` overrides, validated as one.

    Raises:
        ConfigError: A key or value is wrong; the message names it and what is allowed.
    """
    tree = config.model_dump(mode="json")
    for override in overrides:
        _apply(tree, override, AgentConfig)
    try:
        return AgentConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_complaints(error, AgentConfig))) from error


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


def _apply(tree: dict[str, Any], override: str, kind: type[BaseModel]) -> None:
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
    node[parts[-1]] = _value(_annotation(parts, kind), text)


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
    none = value is None and text in ("~", "null", "Null", "NULL")  # `!` and `# no address` are nothing to YAML, too
    return text if wants_text and not none and text[0] not in "\"'" else value


def _complaints(error: ValidationError, kind: type[BaseModel]) -> Iterable[str]:
    ours = kind is AgentConfig
    wrong = error.errors()
    within = {item["loc"][:-1] for item in wrong}
    for item in wrong:
        if item["type"] == "too_short" and item["loc"] in within:
            continue  # pydantic counts what was right, and what was wrong is told already
        location = ".".join(str(part) for part in item["loc"] if not isinstance(part, str) or "[" not in part)
        if item["type"] == "extra_forbidden":
            where = "see `run_agent.py config schema` for those that are" if ours else "remove or correct it"
            yield f"{location} is not a known key; {where}{_nearest(item['loc'], kind)}"
        elif item["type"] == "value_error":
            yield item["msg"].removeprefix("Value error, ")
        else:
            given = item.get("input")
            shown = "" if isinstance(given, dict) else f"={given}"
            where = " (`run_agent.py config schema` lists types and ranges)" if ours else ""
            remedy = f"write [{given}]" if item["type"] == "tuple_type" and isinstance(given, str) else "correct it"
            yield f"{location}{shown}: {item['msg']}; {remedy}{where}"


def _nearest(location: tuple[int | str, ...], kind: type[BaseModel]) -> str:
    """`; did you mean KEY?` when a sibling key is spelt much the same."""
    import difflib

    section = _annotation(location[:-1], kind)
    if not (isinstance(section, type) and issubclass(section, BaseModel)):
        return ""
    close = difflib.get_close_matches(str(location[-1]), list(section.model_fields), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _annotation(location: Iterable[int | str], kind: type[BaseModel]) -> object:
    """The type declared at `location` of a tree; None where nothing is."""
    found: object = kind
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
