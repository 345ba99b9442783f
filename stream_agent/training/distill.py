"""Distillation, first half: a teacher writes responses for training samples, and only what proves right is kept.

    training samples ─▶ caption of the frame ─▶ written plan ─▶ verified ─▶ responses.jsonl   every answer, kept or not, and why
        (seeded order)   55 by default          63 by default            └▶ captions.jsonl    what `near_frames.NearCaptions` reads
                                   belief over the actions, every order of the choices averaged ─▶ soft target

The teacher is a backend of the agent (any OpenAI-compatible server, or a local model) and is asked by the agent's own prompts and
rank lane. A plan is kept if its top action is what came next and breaks no rule of the pack (`rewards.objections`); its belief is
kept as a soft target if it puts the truth first as well. A caption is kept if it is whole and names no instrument that the
annotation says is absent. Nothing is repaired. The second half, the student, is `student.py`.

63 and 55 are the paper's own budgets for planning and captioning (LLM-SAP, Xu et al. 2025); they count what is kept.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from stream_agent.config import BackendConfig, PlannerConfig, Section
from stream_agent.errors import UNDECODABLE, BackendError, ConfigError
from stream_agent.evaluation.dataset import INSTRUMENTS
from stream_agent.evaluation.samples import Sample, as_memory
from stream_agent.messages import NearPicture, PlanRequest
from stream_agent.planner.backends.protocol import Backend, Call
from stream_agent.planner.rank_lane import RankLane, choices_of
from stream_agent.prompts import LONGEST_CAPTION, PromptFactory, quoted, rationale_schema
from stream_agent.training.config import TrainingConfig
from stream_agent.training.data import Captions, Pictures, require_training_only
from stream_agent.training.rewards import Situation, broken_rules, objections

TaughtTask: TypeAlias = Literal["plan", "caption"]

RESPONSES: Final = "responses.jsonl"
CAPTIONS: Final = "captions.jsonl"

_FAILURES: Final = 3  # in a row: then it is not one sample that the teacher cannot do
_SEEN_AS: Final[Mapping[str, str]] = {
    "Grasper": r"grasper",
    "Bipolar": r"bipolar",
    "Hook": r"\bhook",
    "Scissors": r"scissors",
    "Clipper": r"clipper|clip applier",
    "Irrigator": r"irrigator|suction",
    "SpecimenBag": r"specimen bag|retrieval bag",
}


class DistillConfig(Section):
    """Who teaches, and how much."""

    teacher: BackendConfig | None = Field(
        default=None, description="The model that writes; as `planner`, without its other keys."
    )
    signals: Path | None = Field(
        default=None, description="Folder of 1 Hz instruments (videoNN.csv), against which captions are checked."
    )
    plans: int = Field(default=63, ge=0, le=10_000, description="Written plans to keep; the paper's budget.")
    captions: int = Field(default=55, ge=0, le=10_000, description="Captions to keep; the paper's budget.")
    plan_tokens: int = Field(default=400, ge=32, le=4096, description="Longest written plan.")
    soft_weight: float = Field(
        default=0.5, ge=0, le=1, description="Share of the soft targets in the student's loss; 0 leaves them out."
    )
    soft_temperature: float = Field(
        default=1.0, gt=0, le=20, description="Softens the teacher's and the student's belief before they are compared."
    )
    seed: int = Field(default=0, ge=0, description="Of the order in which samples are asked about.")


class DistillTraining(TrainingConfig):
    """The configuration of `train distill`."""

    distill: DistillConfig = DistillConfig()

    @model_validator(mode="after")
    def _names_what_it_needs(self) -> DistillTraining:
        if self.data.sap is None:
            raise ValueError("data.sap is unset; set data.sap=FILE to your total_video_info.json")
        if self.planner.memory != "labels_only" and self.data.frames is None and self.data.captions is None:
            raise ValueError(
                f"planner.memory={self.planner.memory} shows frames or tells captions of them; set data.frames=DIR (the teacher "
                "captions them in the indirect form), data.captions=FILE, or planner.memory=labels_only"
            )
        return self


class Response(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One answer of a teacher, with the verdict on it.

    Attributes:
        video: `VIDnn`.
        index: The target clip's number in its video.
        task: What was asked.
        second: The near frame's second, of a caption.
        text: What was written: JSON by the rationale schema, or a caption on one line.
        reasons: Why it must not be learnt from; empty if it is kept.
        belief: Probability per action, if it puts the truth first; empty otherwise and for captions.
    """

    video: str
    index: int
    task: TaughtTask
    second: int | None = None
    text: str
    reasons: tuple[str, ...] = ()
    belief: dict[str, float] = {}

    @property
    def kept(self) -> bool:
        """Whether it may be learnt from."""
        return not self.reasons


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """First line of the file: answers of two teachers or to two wordings are not mixed."""

    teacher: str
    prompts: str


class Responses:
    """The file of responses: written line by line, so that a killed run goes on where it was."""

    def __init__(self, folder: Path, *, teacher: str, prompts: str) -> None:
        """Open or begin it.

        Raises:
            ConfigError: It holds answers of another teacher or to other prompts, is damaged, or names a test video.
        """
        self._folder = folder
        self._path = folder / RESPONSES
        header = _Header(teacher, prompts)
        self.found: dict[tuple[str, str, int], Response] = {}
        if self._path.is_file():
            found, rows = _read(self._path)
            if found != header:
                raise ConfigError(
                    f"{self._path} was written by {found.teacher} (prompts {found.prompts}), now it is {teacher} (prompts "
                    f"{prompts}); give another --out, or remove the file"
                )
            for row in rows:
                self.found[row.task, row.video, row.index] = row
        else:
            folder.mkdir(parents=True, exist_ok=True)
            self._append(header)

    def add(self, row: Response) -> None:
        """Keep it; it is on the disk when this returns."""
        self._append(row)
        self.found[row.task, row.video, row.index] = row

    def kept(self, task: TaughtTask) -> list[Response]:
        """What may be learnt from."""
        return [row for row in self.found.values() if row.task == task and row.kept]

    def write_captions(self) -> Path:
        """The kept captions as `NearCaptions` reads them; the file's path."""
        path, unfinished = self._folder / CAPTIONS, self._folder / f".{CAPTIONS}.part"
        lines = [{"video": row.video, "second": row.second, "text": row.text} for row in self.kept("caption")]
        unfinished.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
        unfinished.replace(path)
        return path

    def tally(self) -> str:
        """What was kept and what was not, and why, for a person."""
        lines = []
        for task in ("plan", "caption"):
            rows = [row for row in self.found.values() if row.task == task]
            if not rows:
                continue
            why = Counter(reason for row in rows for reason in row.reasons)
            soft = f", {sum(bool(row.belief) for row in rows)} with a soft target" if task == "plan" else ""
            refused = "".join(f"; {reason}: {count}" for reason, count in why.most_common())
            lines.append(f"{task:8} asked {len(rows)}, kept {sum(row.kept for row in rows)}{soft}{refused}")
        return "\n".join(lines) or "nothing was asked"

    def _append(self, row: msgspec.Struct) -> None:
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(row) + b"\n")
            file.flush()
            os.fsync(file.fileno())


def read_responses(path: Path) -> list[Response]:
    """The answers in a file of responses, kept or not.

    Raises:
        ConfigError: It cannot be read, is none, or names a test video.
    """
    return _read(path)[1]


class Teacher:
    """Asks a started backend, and judges what it says."""

    def __init__(
        self, backend: Backend, factory: PromptFactory, config: DistillConfig, planner: PlannerConfig, *, name: str
    ) -> None:
        """`name` is the model's, as it stands in the file of responses."""
        self._backend = backend
        self._factory = factory
        self._config = config
        self._planner = planner
        self._lane = RankLane(
            backend, factory, factory.pack.action_names, permutations=0, temperature=planner.temperature
        )
        self.name = name

    async def teach(
        self,
        found: Sequence[Sample],
        book: Responses,
        *,
        also_captioned: Sequence[Sample] = (),
        pictures: Pictures | None = None,
        captions: Captions | None = None,
        told: Callable[[str], None] = lambda _line: None,
    ) -> None:
        """Ask until the budgets are kept or the samples are used up; what is in the book is not asked again.

        Args:
            found: Training samples, with instruments where a caption is to be checked against them.
            book: Where answers go.
            also_captioned: Samples whose frames are described and nothing else: those to choose by.
            pictures: Frames, for captions and the direct form.
            captions: Words for frames that are known already; then the teacher describes none.
            told: Hears of every sample.

        Raises:
            ConfigError: A sample is of a test video, or the teacher's codes are not single tokens.
            BackendError: The teacher is gone, or failed several times in a row.
        """
        require_training_only(sample.question.video for sample in (*found, *also_captioned))
        self._lane.check_codes()
        shuffled, described = list(found), [*found, *also_captioned]
        random.Random(self._config.seed).shuffle(shuffled)
        random.Random(self._config.seed).shuffle(described)
        budgets: tuple[tuple[TaughtTask, int, list[Sample]], ...] = (
            ("caption", 0 if captions is not None else self._config.captions, described),
            ("plan", self._config.plans, shuffled),
        )
        for task, budget, order in budgets:
            failures = 0
            for sample in order:
                video, index = sample.question.video, sample.index
                if len(book.kept(task)) >= budget:
                    break
                if (task, video, index) in book.found:
                    continue
                frames = pictures(sample.question) if pictures is not None else ()
                said = book.found.get(("caption", video, index))
                words = said.text if said is not None and said.kept else (captions(sample.question) if captions else "")
                try:
                    row = await (
                        self._caption(sample, frames) if task == "caption" else self._plan(sample, frames, words)
                    )
                except BackendError as error:
                    failures += 1
                    if error.lost or failures >= _FAILURES:
                        raise
                    told(f"{video} {index} {task}: the teacher failed ({error}); it is asked again in the next run")
                    continue
                failures = 0
                if row is None:
                    continue
                book.add(row)
                told(f"{video} {index} {task}: {'kept' if row.kept else 'left out, ' + ', '.join(row.reasons)}")

    async def _caption(self, sample: Sample, frames: tuple[NearPicture, ...]) -> Response | None:
        """None where there is no frame."""
        if not frames:
            return None
        question = sample.question
        tokens = self._planner.caption_tokens
        pieces = [
            piece
            async for piece in self._backend.generate(
                self._factory.caption(frames[-1]), self._call(sample, "caption"), max_tokens=tokens
            )
        ]
        text = quoted("".join(pieces), LONGEST_CAPTION)
        reasons = tuple(caption_objections(text, None if question.presence is None else question.presence[-1]))
        return Response(
            video=question.video,
            index=sample.index,
            task="caption",
            second=frames[-1].seq,
            text=text,
            reasons=reasons,
        )

    async def _plan(self, sample: Sample, frames: tuple[NearPicture, ...], caption: str) -> Response | None:
        """None where the form needs a frame or its caption and there is none."""
        if self._planner.memory != "labels_only" and not (caption if self._planner.form == "indirect" else frames):
            return None
        pack, memory = self._factory.pack, as_memory(sample.question)
        request = PlanRequest(request_id=sample.index, memory=memory, deadline_ns=0, pictures=frames)
        choices = choices_of(pack.action_names, memory.current)
        pieces = [
            piece
            async for piece in self._backend.generate(
                self._factory.rationale(request, choices, caption),
                self._call(sample, "plan"),
                max_tokens=self._config.plan_tokens,
                schema=rationale_schema(choices),
            )
        ]
        text = "".join(pieces)
        situation = Situation(
            form="plan",
            choices=choices,
            target=sample.target,
            following=sample.following,
            broken=broken_rules(pack, memory, choices),
            current=memory.current,
        )
        [belief] = await self._lane.rank([request], self._call(sample, "rank"), [caption])
        right = pack.action_names[int(np.argmax(belief))] == sample.target
        return Response(
            video=sample.question.video,
            index=sample.index,
            task="plan",
            text=text,
            reasons=objections(text, situation),
            belief=dict(zip(pack.action_names, map(float, belief), strict=True)) if right else {},
        )

    def _call(self, sample: Sample, what: str) -> Call:
        name = f"{sample.question.video}-{sample.index}"
        return Call(f"teach-{what}-{name}", salt=f"teach-{name}")


def caption_objections(text: str, present: NDArray[np.uint8] | None) -> Iterator[str]:
    """Why a caption must not be learnt from.

    Args:
        text: On one line.
        present: Instruments at the frame's second, (7,) zeros and ones in `dataset.INSTRUMENTS`' order; None where nobody knows.
    """
    if not text:
        yield "empty"
        return
    if text.endswith("...") or text[-1].isalnum() or text[-1] in ",;:-":
        yield "cut off"
    if present is None:
        return
    for name, there in zip(INSTRUMENTS, present, strict=True):
        if not there and re.search(_SEEN_AS[name], text, re.IGNORECASE):
            yield f"absent {name}"


def _read(path: Path) -> tuple[_Header, list[Response]]:
    """Header and rows; a last line that was cut off by a kill is taken away from the file."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); name a file of responses") from error
    whole = raw[: raw.rfind(b"\n") + 1]
    lines = whole.splitlines()
    try:
        header = msgspec.json.decode(lines[0] if lines else b"", type=_Header)
        rows = [msgspec.json.decode(line, type=Response) for line in lines[1:]]
    except UNDECODABLE as error:
        raise ConfigError(f"{path} is no file of responses ({error}); remove it, or name another") from error
    require_training_only(row.video for row in rows)
    if whole != raw:
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return header, rows
