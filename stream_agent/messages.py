"""What crosses a thread, process or disk boundary: one frozen struct per arrow of the data flow.

    source ─FrameHeader→ agent ─Evidence→ segmenter ─ClipEvent→ NHFM ─Memory→ planners ─Plan→ sinks

All are msgspec structs: typed, versioned, never pickled. Times ending in `_ns` are nanoseconds of the session's clock
(`CLOCK_MONOTONIC` in real time, the virtual clock in lockstep); `pts_s` is media time in seconds. They are two facts:
latency uses the first, evaluation the second.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

SCHEMA_VERSION = 1
"""Raised whenever a field changes meaning; a reader refuses another version."""

RANKED = 3
"""How many next actions a plan ranks."""

Rung: TypeAlias = Literal["fused", "vlm", "statistical", "abstain"]
LADDER: tuple[Rung, ...] = ("fused", "vlm", "statistical", "abstain")
"""Best rung first; a plan takes the highest that has a valid answer."""

PixelLayout: TypeAlias = Literal["yuv420p", "none"]
PixelPlace: TypeAlias = Literal["ring", "raw", "jpeg", "none"]
ColourSpace: TypeAlias = Literal["bt601", "bt601-full", "bt709", "bt709-full"]


class FrameHeader(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """What is known of one captured frame besides its pixels.

    Attributes:
        version: `SCHEMA_VERSION` of the sender.
        stream_id: Which camera; the same across sessions.
        session_id: New whenever continuity is lost (reconnect, restart, loop).
        seq: From 0, +1 per published frame of a session; a gap means frames were lost.
        pts_s: Media time in seconds from the start of the stream.
        captured_ns: The session clock at decode.
        host_id: Names the boot of the host whose clock stamped `captured_ns`.
        width: Pixels, even; the stored width before rotation.
        height: Pixels, even; the stored height before rotation.
        rotation_deg: Clockwise turn that shows the picture upright: 0, 90, 180 or 270.
        layout: `yuv420p` planes, or `none` for sources without pixels.
        colour: Matrix and range of the planes.
        place: Where the pixels are: in the shared ring, after the header (raw planes or JPEG), or nowhere.
        ring: Locates the shared-memory ring when `place == "ring"`.
        slot: The slot of the ring.
        ticket: The slot's write count when this frame was complete; another value means it was overwritten.
        discontinuity: True on the first frame of a session that does not continue the last one.
        signals: Values that came with the frame instead of pixels (instrument presence 0 or 1), in the order of the
            procedure pack's instruments; empty when there are none.
    """

    version: int = SCHEMA_VERSION
    stream_id: str
    session_id: str
    seq: int
    pts_s: float
    captured_ns: int
    host_id: str = ""
    width: int = 0
    height: int = 0
    rotation_deg: int = 0
    layout: PixelLayout = "none"
    colour: ColourSpace = "bt601"
    place: PixelPlace = "none"
    ring: str = ""
    slot: int = 0
    ticket: int = 0
    discontinuity: bool = False
    signals: tuple[float, ...] = ()


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What perception says about one frame.

    Attributes:
        seq: The frame's.
        pts_s: The frame's.
        gate: Empty if the frame may be used; else why not: `black`, `frozen`, `out_of_body`, `blurred`.
        recogniser: Which member answered: `timeline`, `signals`, `onnx`; empty behind a closed gate.
        actions: Posterior over the pack's actions, in pack order, summing to 1; empty when nothing is known.
        instruments: Presence probability per instrument of the pack, in pack order; empty when not observed.
        out_of_body: Probability that the camera is outside the body; None when not estimated.
    """

    seq: int
    pts_s: float
    gate: str = ""
    recogniser: str = ""
    actions: tuple[float, ...] = ()
    instruments: tuple[float, ...] = ()
    out_of_body: float | None = None


class Clip(msgspec.Struct, frozen=True):
    """A maximal run of frames with one action; `confidence` is the mean posterior of that action over the run."""

    action: str
    start_pts_s: float
    end_pts_s: float
    confidence: float

    @property
    def duration_s(self) -> float:
        """Length in seconds of media time."""
        return self.end_pts_s - self.start_pts_s


class ClipEvent(msgspec.Struct, frozen=True, tag_field="type", tag="clip"):
    """A clip began or ended.

    Attributes:
        kind: `opened` or `closed`.
        clip: For `opened`, the end is the time of detection.
        decided_pts_s: Media time at which the segmenter knew; the start lies before it.
    """

    kind: Literal["opened", "closed"]
    clip: Clip
    decided_pts_s: float


class ActionTotal(msgspec.Struct, frozen=True):
    """Clips of one action that were folded out of the label list."""

    action: str
    count: int
    duration_s: float


class InstrumentUse(msgspec.Struct, frozen=True):
    """How one instrument has been used in a case (instrument_use.py).

    Attributes:
        seen_s: Seconds it has been seen.
        uses: How often it was taken up after some seconds unseen.
        taken_pts_s: Media time at which it was taken up last.
        last_pts_s: Media time at which it was seen last; None when it never was.
        recent: Share of the time it was lately seen, 0 to 1, one per time constant, shortest first.
    """

    seen_s: float = 0.0
    uses: int = 0
    taken_pts_s: float = 0.0
    last_pts_s: float | None = None
    recent: tuple[float, ...] = ()


class Memory(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="memory"):
    """An immutable snapshot of the near-history focus memory (LLM-SAP, eq. 1 to 3).

    Attributes:
        stream_id: Which camera.
        session_id: Session of the near frame.
        case_id: The patient case; a new one shares nothing with the last.
        now_pts_s: Media time of the snapshot.
        clips: Closed clips still held one by one, oldest first: the distant history.
        folded: Totals of closed clips that were evicted; together with `clips` nothing is lost.
        current: The action going on (its clip is open), or None before the first.
        current_start_pts_s: Where the open clip began.
        current_confidence: The segmenter's belief in `current`, 0 to 1.
        instrument_s: Seconds each instrument of the pack has been seen in this case, in pack order.
        instrument_use: How each instrument has been used, in pack order; empty when instruments were never observed.
        instruments: Presence per instrument at the near frame, in pack order; empty when not observed.
        near: Header of the newest frame, the near history; None before the first.
        evictions: How many times a block was folded; the prompt's prefix changes only when this does.
    """

    stream_id: str
    session_id: str
    case_id: str
    now_pts_s: float
    clips: tuple[Clip, ...] = ()
    folded: tuple[ActionTotal, ...] = ()
    current: str | None = None
    current_start_pts_s: float = 0.0
    current_confidence: float = 0.0
    instrument_s: tuple[float, ...] = ()
    instrument_use: tuple[InstrumentUse, ...] = ()
    instruments: tuple[float, ...] = ()
    near: FrameHeader | None = None
    evictions: int = 0

    @property
    def labels(self) -> tuple[str, ...]:
        """Action labels of the held closed clips and the open one, oldest first."""
        past = tuple(clip.action for clip in self.clips)
        return past if self.current is None else (*past, self.current)


class NearPicture(msgspec.Struct, frozen=True, kw_only=True):
    """A frame for a model's eyes: upright and reduced.

    Attributes:
        seq: The frame's.
        pts_s: The frame's.
        action: The action that went on then; None if none was known.
        width: Pixels.
        height: Pixels.
        rgb: height * width * 3 bytes.
    """

    seq: int
    pts_s: float
    action: str | None
    width: int
    height: int
    rgb: bytes


class PastPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What was expected during one clip, and what came.

    Attributes:
        during: The action that went on.
        expected: The ranked actions of the last plan made then.
        happened: The action that came next.
    """

    during: str
    expected: tuple[str, ...]
    happened: str


class PlanRequest(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="plan_request"):
    """One question to a planner.

    Attributes:
        request_id: Unique within a stream; the answer names it.
        memory: What the planner may know.
        deadline_ns: Absolute session-clock time after which an answer is expired.
        budget_ms: Milliseconds of real time from receipt after which nobody waits any more; 0 for no limit.
        patient: In lockstep: nothing may depend on which of two things is done first.
        horizon: How many actions ahead the chain speaks.
        goal: The procedure's goal in words.
        pictures: The near frame last; before it, with memory=all_frames_with_labels, one per recent clip, oldest first.
        previous: Plans of the last clips and what came, oldest first.
        statistical: The statistical planner's distribution over the pack's actions, in pack order; empty when it abstains.
    """

    request_id: int
    memory: Memory
    deadline_ns: int
    budget_ms: float = 0.0
    patient: bool = False
    horizon: int = 3
    goal: str = ""
    pictures: tuple[NearPicture, ...] = ()
    previous: tuple[PastPlan, ...] = ()
    statistical: tuple[float, ...] = ()

    @property
    def picture(self) -> NearPicture | None:
        """The near frame's picture; None when the source has none or the form needs none."""
        near = self.memory.near
        newest = self.pictures[-1] if self.pictures else None
        return newest if newest is not None and near is not None and newest.seq == near.seq else None


class RankedAction(msgspec.Struct, frozen=True):
    """A next action, its calibrated probability and the evidence for its rank."""

    action: str
    probability: float
    rationale: str = ""


class ChainStep(msgspec.Struct, frozen=True):
    """One step of a chain of actions; the onset is in seconds after the plan's frame."""

    action: str
    probability: float
    expected_onset_s: float


class RungReport(msgspec.Struct, frozen=True):
    """Why a rung of the ladder was used or passed over: `used`, or the reason."""

    rung: Rung
    reason: str


class Hashes(msgspec.Struct, frozen=True):
    """Short sha256 digests of what produced a plan; empty where there is none."""

    model: str = ""
    adapter: str = ""
    prompt: str = ""
    knowledge: str = ""
    config: str = ""


class Fusion(msgspec.Struct, frozen=True, kw_only=True):
    """How a plan's probabilities came about: p ∝ statistical ** statistical_weight · model ** model_weight.

    Attributes:
        statistical_weight: Exponent of the statistical planner's distribution.
        model_weight: Exponent of the language model's.
        fitted_on: What the weights were fitted on; empty: they were not.
        statistical: The statistical planner's distribution over the pack's actions, in pack order.
        model: The language model's.
    """

    statistical_weight: float
    model_weight: float
    fitted_on: str
    statistical: tuple[float, ...]
    model: tuple[float, ...]


class Plan(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="plan"):
    """Three ranked next actions, or an abstention with its reason.

    Attributes:
        stream_id: Which camera.
        session_id: Session of the frame behind the plan.
        case_id: The patient case.
        request_id: The request answered; 0 for the in-process planner.
        revision: 0 as first ranked; raised when a chain or a rationale was added to the very same ranking.
        seq: The frame behind the plan.
        pts_s: That frame's media time.
        captured_ns: That frame's capture time; age = now - captured_ns.
        published_ns: When the agent published the plan.
        valid_until_ns: After this the plan is expired: never shown as current.
        source: The rung that answered.
        planner: Which planner that was (`statistical`, `scripted`, `vllm` …).
        rungs: Each rung of the ladder, best first, and why it was used or passed over.
        abstained: True when there is no ranking.
        abstain_reason: Why not; empty otherwise.
        current_action: The action going on, never among the ranked.
        current_confidence: The belief in it, 0 to 1.
        ranked: Exactly three distinct actions by falling probability; empty when abstained.
        progress: Where the procedure stands, in one or two sentences.
        safety: Safety considerations and the cautions of the rules that apply.
        expected_onset_s: Seconds from the frame to the expected start of the top action; None if unknown.
        expected_onset_interval_s: Its 10 % to 90 % range; None if unknown.
        chain: The most likely sequence up to the horizon, the top action first.
        distribution: Probability of every action of the pack, in pack order; empty when the planner gives none.
        fusion: What went into the probabilities of a fused plan; None for others.
        caption: What the near frame shows, in the words that an indirect plan was made from; empty otherwise.
        caption_age_s: How much older the captioned frame is than the plan's; None without a caption.
        rationale_age_s: How much older the rationale's frame is than the plan's; None without a model's rationale.
        contradiction: Where the model's rationale and the ranking disagree; empty when they do not.
        notes: What the planner had to do without, one line each.
        spans_ms: Milliseconds spent per stage on the session's clock, `total` = captured → published.
        hashes: Of model, adapter, prompt, knowledge base and config.
    """

    stream_id: str
    session_id: str
    case_id: str
    request_id: int = 0
    revision: int = 0
    seq: int
    pts_s: float
    captured_ns: int
    published_ns: int = 0
    valid_until_ns: int
    source: Rung
    planner: str
    rungs: tuple[RungReport, ...] = ()
    abstained: bool = False
    abstain_reason: str = ""
    current_action: str | None = None
    current_confidence: float = 0.0
    ranked: tuple[RankedAction, ...] = ()
    progress: str = ""
    safety: tuple[str, ...] = ()
    expected_onset_s: float | None = None
    expected_onset_interval_s: tuple[float, float] | None = None
    chain: tuple[ChainStep, ...] = ()
    distribution: tuple[float, ...] = ()
    fusion: Fusion | None = None
    caption: str = ""
    caption_age_s: float | None = None
    rationale_age_s: float | None = None
    contradiction: str = ""
    notes: tuple[str, ...] = ()
    spans_ms: dict[str, float] = {}
    hashes: Hashes = Hashes()


class Rationale(msgspec.Struct, frozen=True, kw_only=True):
    """What a model said of a moment, whole and checked against its schema.

    Attributes:
        ranked: The three actions in the model's order, each with why.
        progress: Where the procedure stands.
        safety: What to mind.
        contradiction: Where it disagrees with the model's own ranking; empty when it does not.
    """

    ranked: tuple[tuple[str, str], ...]
    progress: str
    safety: tuple[str, ...]
    contradiction: str = ""


class PlanUpdate(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="plan_update"):
    """More for a plan already published: words as they stream, then the chain or the whole rationale.

    Attributes:
        stream_id: Which camera.
        session_id: Session of the plan's frame.
        request_id: The plan's.
        seq: The plan's frame.
        text: What follows the words so far, for a person to read.
        chain: The sequence of actions, once it is known.
        rationale: The whole of it, at its end.
        problem: Why the rationale was dropped; the ranking stands all the same.
        final: Nothing follows for this plan.
    """

    stream_id: str
    session_id: str
    request_id: int
    seq: int
    text: str = ""
    chain: tuple[ChainStep, ...] = ()
    rationale: Rationale | None = None
    problem: str = ""
    final: bool = False


class Health(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="health"):
    """The state of every part, sent when one changes and every half second.

    Attributes:
        stream_id: Which camera.
        sent_ns: When, on the session's clock.
        state: `ok`, or `degraded` when any part is.
        parts: Part → `ok`, or what is wrong with it in a few words.
        restarts: Part → how often it was restarted.
    """

    stream_id: str
    sent_ns: int
    state: Literal["ok", "degraded"]
    parts: dict[str, str]
    restarts: dict[str, int] = {}


class Notice(msgspec.Struct, frozen=True, tag_field="type", tag="notice"):
    """One line for a person: something odd happened and was survived."""

    text: str


class Abort(msgspec.Struct, frozen=True, tag_field="type", tag="abort"):
    """Agent to worker: the answer to this request is not wanted any more."""

    request_id: int
    stream_id: str = ""


class PlanFailure(msgspec.Struct, frozen=True, tag_field="type", tag="plan_failure"):
    """Worker to agent: no answer to this request, and why."""

    request_id: int
    reason: str
    stream_id: str = ""


ToWorker: TypeAlias = PlanRequest | Abort
FromWorker: TypeAlias = Plan | PlanUpdate | PlanFailure
