"""The evaluation record: what a candidate and the model in use answered to the same questions, in one run.

Both sides are in one file, so that whatever is compared was measured side by side: the same samples, the same machine, the
same minute. A side's answers come from cross-validation or from videos held out of its fitting; either way every *fold* says
which videos its model was fitted on and which it was asked about, and nothing else is taken on trust (`gate.py` reads it).
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import msgspec

from stream_agent import __version__
from stream_agent.errors import UNDECODABLE, ConfigError
from stream_agent.evaluation.metrics import Outcome
from stream_agent.models.model_files import Kind, digest_of

SCHEMA: Final = 1
MOST_BYTES: Final = 50_000_000

Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Answered(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One sample's answer and truth; the fields of `Outcome`, and how long it took.

    Attributes:
        video: `VIDnn`.
        index: The target clip's number in its video; with `video` it names the sample.
        target: The action that came.
        following: The action after it; empty for the last clip of a video.
        ranked: Answers, the likeliest first; empty for an abstention, which counts as wrong.
        probabilities: Of `ranked`, in its order; empty when none were stated.
        elapsed_ms: From question to answer, the least when asked more than once; None when it was not measured.
    """

    video: str
    index: int
    target: str
    following: str = ""
    ranked: tuple[str, ...] = ()
    probabilities: tuple[Share, ...] = ()
    elapsed_ms: Annotated[float, msgspec.Meta(ge=0)] | None = None

    @property
    def outcome(self) -> Outcome:
        """For the metrics."""
        return Outcome(self.video, self.index, self.target, self.following, self.ranked, self.probabilities)


class FittedFold(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Videos that a model was fitted on, and videos that this very model was asked about."""

    fitted_on: tuple[str, ...]
    asked: tuple[str, ...]


class Side(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One of the two that are compared.

    Attributes:
        name: For people.
        files: sha256 of the model's files (`model_files`); empty for a base model without an adapter.
        base: An adapter's base model, by its manifest digest (`planner.digest`); empty for a statistical model.
        temperature: That an adapter is to be asked at (`planner.temperature`), fitted where the gate was told to.
        fitted_on: Videos that these files were fitted on; empty when they were fitted on none.
        folds: Who answered which videos. A fold's model is these files, or one fitted as they were without the videos asked.
        answers: One per sample; the same samples on both sides.
    """

    name: str
    files: dict[str, Sha256]
    base: str = ""
    temperature: Annotated[float, msgspec.Meta(gt=0, le=100)] = 1.0
    fitted_on: tuple[str, ...]
    folds: tuple[FittedFold, ...]
    answers: tuple[Answered, ...]


class EvaluationRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What `models promote` asks for.

    Attributes:
        version: `SCHEMA`.
        kind: Of both sides.
        made_at: UTC, ISO 8601.
        code: Commit of this package with `+` for changes on top, or its version where it is no checkout (`code_version`).
        command: What was run, for a person to run again.
        track: `causal`, or `official`, which shows the first frame of the answer.
        data: sha256 of every annotation or signals file that was read, by name.
        candidate: To be put to use.
        in_use: What is in use now.
    """

    version: int = SCHEMA
    kind: Kind
    made_at: str
    code: Annotated[str, msgspec.Meta(min_length=1)]
    command: str
    track: str
    data: Annotated[dict[str, Sha256], msgspec.Meta(min_length=1)]
    candidate: Side
    in_use: Side

    @property
    def digests(self) -> tuple[str, str]:
        """Names of the candidate and of the model in use, as in plans."""
        return digest_of(self.kind, self.candidate.files), digest_of(self.kind, self.in_use.files)


def answered(outcomes: Sequence[Outcome], elapsed_ms: Sequence[float]) -> tuple[Answered, ...]:
    """A side's answers from the evaluation's outcomes and the milliseconds each took."""
    return tuple(
        Answered(
            video=outcome.video,
            index=outcome.index,
            target=outcome.target,
            following=outcome.following,
            ranked=outcome.ranked,
            probabilities=outcome.probabilities,
            elapsed_ms=taken,
        )
        for outcome, taken in zip(outcomes, elapsed_ms, strict=True)
    )


def make_record(
    kind: Kind, candidate: Side, in_use: Side, *, data: Mapping[str, str], command: str, track: str = "causal"
) -> EvaluationRecord:
    """A record of the two sides, stamped with now and with the code that is running."""
    return EvaluationRecord(
        kind=kind,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        code=code_version(),
        command=command,
        track=track,
        data=dict(data),
        candidate=candidate,
        in_use=in_use,
    )


def write_record(record: EvaluationRecord, path: Path) -> None:
    """Write the record as JSON; a half-written one is never seen under its name.

    Raises:
        ConfigError: The file cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.part")
    try:
        unfinished.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
        unfinished.replace(path)
    except OSError as error:
        raise ConfigError(f"record {path} cannot be written ({error.strerror}); name a file in a folder") from error


def read_record(path: Path) -> EvaluationRecord:
    """The record in a file, of the right shape; whether it proves anything is for the gate.

    Raises:
        ConfigError: The file is missing, too large, or no record.
    """
    remedy = "name a file that `models record` or a training gate wrote"
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"record {path} cannot be read ({error.strerror}); {remedy}") from error
    if len(raw) > MOST_BYTES:
        raise ConfigError(f"record {path} is larger than {MOST_BYTES} bytes; {remedy}")
    try:
        record = msgspec.json.decode(raw, type=EvaluationRecord)
    except UNDECODABLE as error:
        raise ConfigError(f"record {path} is no evaluation record ({error}); {remedy}") from error
    if record.version != SCHEMA:
        raise ConfigError(f"record {path} has version {record.version}, this program reads {SCHEMA}; evaluate again")
    return record


def code_version() -> str:
    """The checkout's commit, with `+` when tracked files of the package differ from it; else the package's version."""
    package = Path(__file__).resolve().parent.parent
    if not (package.parent / ".git").exists():
        return __version__
    try:
        head = _git(package, "rev-parse", "--short=12", "HEAD")
        changed = _git(package, "status", "--porcelain", "--untracked-files=no", "--", ".")
    except (OSError, subprocess.SubprocessError):
        return __version__
    return head + "+" * bool(changed)


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True, timeout=10)
    return done.stdout.strip()
