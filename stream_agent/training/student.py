"""Distillation, second half: `run_agent.py train distill`. A student learns what a teacher wrote and how sure it was.

    training samples ─▶ Teacher (`distill.py`) ─▶ OUT.responses ─▶ written plans, captions ─▶ cross-entropy ──┐
                                                              └▶ beliefs over the codes ───▶ KL ─────────────┴▶ adapter

    loss = (1 - w) · cross-entropy of the answer + w · T² · KL(teacher || student) over the codes of the choices

as Hinton et al. (arXiv:1503.02531) weigh soft and hard targets. Only samples whose plan was kept are learnt from. The videos to
choose by are judged on the annotated truth, and the teacher is not asked to plan for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import datasets
import numpy as np
import torch
import transformers

from stream_agent.errors import BackendError, ConfigError
from stream_agent.evaluation.dataset import load_presence
from stream_agent.evaluation.samples import Sample
from stream_agent.planner.backends import build_backend
from stream_agent.planner.backends.causal import CausalModel
from stream_agent.procedure import load_pack
from stream_agent.prompts import CODES, PromptFactory
from stream_agent.training.checkpoints import checkpoints_beside
from stream_agent.training.data import Example, split_by_video, training_samples
from stream_agent.training.distill import RESPONSES, DistillTraining, Response, Responses, Teacher, read_responses
from stream_agent.training.lora import IGNORED, Batches, require_free
from stream_agent.training.near_frames import NearCaptions, NearFrames
from stream_agent.training.teaching import Teaching, teaching
from stream_agent.training.tuning import begin, require_unseen, run, saved, settings, validated

ANSWERS: Final = ".responses"
"""Appended to the name of the folder that is written."""

_FIGURES: Final = ("grad_norm",)


def ask(config: DistillTraining, folder: Path, *, say: Callable[[str], None] = print) -> Path:
    """Have the teacher answer what it has not answered yet; the file of responses.

    Raises:
        ConfigError: There is no teacher, or it cannot do what is needed.
        BackendError: It failed several times in a row.
    """
    data, planner, given = config.data, config.planner, config.distill.teacher
    if given is None or data.sap is None:
        raise ConfigError(
            "distill.teacher is unset; set distill.teacher.kind=openai and distill.teacher.endpoint=https://HOST/v1"
        )
    pack = load_pack(config.procedure.pack)
    factory = PromptFactory(pack, planner)
    found = training_samples(data.sap, exclude=data.exclude, track=data.track, history=data.history)
    fitted, held_out = split_by_video(found, share=data.validation, seed=config.seed)
    if config.distill.signals is not None:
        fitted, held_out = (_with_instruments(part, config.distill.signals) for part in (fitted, held_out))
    frames = None if data.frames is None else NearFrames(data.frames, planner)
    told = None if data.captions is None else NearCaptions(data.captions)

    async def teach() -> Responses:
        with _as_the_teacher():
            backend = build_backend(given)
        try:
            with _as_the_teacher():
                able = await backend.start()
            book = Responses(folder, teacher=f"{able.model} {able.digest}", prompts=factory.digest)
            teacher = Teacher(backend, factory, config.distill, planner, name=able.model)
            await teacher.teach(fitted, book, also_captioned=held_out, pictures=frames, captions=told, told=say)
            return book
        finally:
            await backend.close()

    book = asyncio.run(teach())
    say(book.tally())
    book.write_captions()
    return folder / RESPONSES


@contextmanager
def _as_the_teacher() -> Iterator[None]:
    """A backend speaks of its section as the agent calls it; here it has another name."""
    try:
        yield
    except (ConfigError, BackendError) as error:
        raise type(error)(str(error).replace("planner.", "distill.teacher.")) from error


def train(config: DistillTraining, out: Path, *, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Ask the teacher, fine-tune the student on what was kept, and write the adapter to `out`; its record.

    Without `distill.teacher` the answers that lie in `OUT.responses` are learnt from as they are.

    Raises:
        ConfigError: Something is missing or wrong, a test video would be trained on, or `out` is taken.
        BackendError: The teacher failed.
    """
    require_free(out)
    if config.planner.model is None:
        raise ConfigError("planner.model is unset; set planner.model=DIR to the local directory of the student")
    folder = out.with_name(out.name + ANSWERS)
    written = folder / RESPONSES
    if config.distill.teacher is not None:
        ask(config, folder, say=say)
    rows = read_responses(written)
    captions = folder / "captions.jsonl"
    if config.data.captions is None and captions.is_file() and captions.stat().st_size:
        asked = config.model_copy(update={"data": config.data.model_copy(update={"captions": captions})})
    else:
        asked = config
    lesson = teaching(asked)
    require_unseen(config, lesson)
    lessons = taught(lesson, rows)
    if not lessons:
        raise ConfigError(f"{written}: nothing that was kept is about a sample to fit; ask the teacher for more")
    soft = sum(bool(one.belief) for one in lessons)
    say(f"{len(lessons)} examples to fit, {soft} with a soft target; {len(lesson.validation)} to choose by")
    checkpoints = checkpoints_beside(out, config)
    base, model = begin(config)
    longest = config.planner.context_tokens
    truth = [Lesson(example, ()) for example in lesson.validation]
    desks = {"fitted": Desk(base, lessons, longest=longest), "validation": Desk(base, truth, longest=longest)}
    trainer = _trainer(config, model, base, desks, checkpoints)
    kept = [row for row in rows if row.kept]
    return run(
        trainer,
        config,
        out,
        method="distill",
        title="Distillation",
        lesson=replace(lesson, examples=[one.example for one in lessons]),
        base=base,
        figures=_FIGURES,
        say=say,
        responses={"asked": len(rows), "kept": len(kept), "soft_targets": soft},
    )


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """An example with the teacher's belief over its choices, in their order; empty where there is none."""

    example: Example
    belief: tuple[float, ...]


def taught(lesson: Teaching, rows: Sequence[Response]) -> list[Lesson]:
    """The lesson's examples that a teacher has proved right on: its plans as answers, its beliefs as soft targets."""
    plans = {(row.video, row.index): row for row in rows if row.kept and row.task == "plan"}
    captioned = {(row.video, row.index) for row in rows if row.kept and row.task == "caption"}
    found = []
    for example in lesson.examples:
        key = (example.video, example.index)
        match example.task:
            case "plan" if key in plans:
                found.append(Lesson(replace(example, answer=plans[key].text), ()))
            case "rank" if key in plans:
                found.append(Lesson(example, _over(example.choices, plans[key].belief)))
            case "caption" | "recognise" if key in captioned:
                found.append(Lesson(example, ()))
    return found


class Desk:
    """Lessons as tensors: those of `Batches`, with beliefs over the codes' tokens."""

    def __init__(self, base: CausalModel, lessons: Sequence[Lesson], *, longest: int) -> None:
        """Encode them once.

        Raises:
            ConfigError: One is longer than `longest` tokens, or shows a picture to a model without eyes.
        """
        self._batches = Batches(base, [one.example for one in lessons], longest=longest)
        self._beliefs = [one.belief for one in lessons]
        self._width = max((len(belief) for belief in self._beliefs), default=0)
        tokens = [base.tokenizer.encode(code, add_special_tokens=False) for code in CODES[: self._width]]
        if any(len(token) != 1 for token in tokens):
            raise ConfigError("the student's tokenizer does not make one token of each code; use another model")
        self._codes = [token[0] for token in tokens]

    def __len__(self) -> int:
        return len(self._beliefs)

    def __call__(self, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        """Of those numbers: (B, L) tensors, `beliefs` (B, codes), zeros where there is none, and `codes` (codes,)."""
        batch = self._batches([{"numbers": [number]} for number in numbers])
        beliefs = torch.zeros((len(numbers), self._width))
        for row, number in enumerate(numbers):
            belief = self._beliefs[number]
            beliefs[row, : len(belief)] = torch.tensor(belief)
        return {**batch, "beliefs": beliefs, "codes": torch.tensor(self._codes, dtype=torch.long)}


def soft_loss(logits: torch.Tensor, beliefs: torch.Tensor, temperature: float) -> torch.Tensor:
    """Mean of T² · KL(teacher || student) over rows with a belief; (B, codes) both, a code without belief is no choice.

    Hinton et al. (arXiv:1503.02531), section 2.1: the square keeps the gradient's size whatever T is. Zero without any belief.
    """
    has = beliefs.sum(-1) > 0
    if not has.any():
        return logits.sum() * 0.0
    teacher, student = beliefs[has], logits[has].float()
    student = (student / temperature).masked_fill(teacher == 0, -torch.inf).log_softmax(-1)
    softened = teacher.clamp_min(torch.finfo(teacher.dtype).tiny).log() / temperature
    teacher = softened.masked_fill(teacher == 0, -torch.inf).softmax(-1)
    gap = torch.where(teacher > 0, teacher * (teacher.clamp_min(1e-30).log() - student), 0.0)
    return temperature**2 * gap.sum(-1).mean()


class _Trainer(transformers.Trainer):  # type: ignore[misc]
    """Both losses of one forward pass."""

    def __init__(self, *, soft_weight: float, soft_temperature: float, **given: Any) -> None:
        super().__init__(**given)
        self._weight = soft_weight
        self._temperature = soft_temperature
        self.model_accepts_loss_kwargs = True  # the loss is divided by the tokens of the whole batch here

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        labels, beliefs, codes = (inputs.pop(name) for name in ("labels", "beliefs", "codes"))
        outputs = model(**inputs, use_cache=False)
        answers, asked = labels[:, 1:], outputs.logits[:, :-1]
        learnt = answers != IGNORED
        tokens = learnt.sum() if num_items_in_batch is None else num_items_in_batch
        hard = torch.nn.functional.cross_entropy(asked[learnt].float(), answers[learnt], reduction="sum") / tokens
        first = learnt.int().argmax(1)
        at_code = asked[torch.arange(len(first), device=first.device), first][:, codes]
        steps = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
        soft = soft_loss(at_code, beliefs, self._temperature) / steps
        weight = self._weight if model.training else 0.0  # videos to choose by are judged on the truth
        loss = (1 - weight) * hard + weight * soft
        return (loss, outputs) if return_outputs else loss


def _trainer(
    config: DistillTraining, model: Any, base: CausalModel, desks: Mapping[str, Desk], checkpoints: Path
) -> _Trainer:
    chooses = len(desks["validation"]) > 0
    arguments = settings(config, checkpoints, on_cpu=base.device.type == "cpu")
    del arguments["disable_dropout"]  # TRL's own; dropout is wanted here
    best = validated(config, best="eval_loss", greater=False) if chooses else saved(config)

    def rows(part: str) -> datasets.Dataset:
        return datasets.Dataset.from_list([{"number": n, "of": part} for n in range(len(desks[part]))])

    patience = config.stopping.patience
    return _Trainer(
        soft_weight=config.distill.soft_weight,
        soft_temperature=config.distill.soft_temperature,
        model=model,
        args=transformers.TrainingArguments(**arguments, **best, label_names=["labels"]),
        train_dataset=rows("fitted"),
        eval_dataset=rows("validation") if chooses else None,
        processing_class=base.tokenizer,
        data_collator=lambda features: desks[features[0]["of"]]([int(feature["number"]) for feature in features]),
        callbacks=[transformers.EarlyStoppingCallback(early_stopping_patience=patience)] if chooses else [],
    )


def _over(choices: Sequence[str], belief: Mapping[str, float]) -> tuple[float, ...]:
    """The belief in the order of the choices, summing to 1; empty for none."""
    if not belief:
        return ()
    values = np.array([belief.get(choice, 0.0) for choice in choices])
    return tuple(float(value) for value in values / values.sum())


def _with_instruments(found: Sequence[Sample], folder: Path) -> list[Sample]:
    """The samples with the instruments of the seconds up to theirs, where the folder has them."""
    presence = load_presence(folder, sorted({sample.question.video for sample in found}))
    return [
        replace(
            sample,
            question=replace(sample.question, presence=presence[sample.question.video][: sample.question.now_s + 1]),
        )
        if sample.question.video in presence
        else sample
        for sample in found
    ]
