"""CholecT50-SAP as conversations: what a language model is taught is what the rank and rationale lanes ask at run time.

    total_video_info.json ─▶ training_samples ─▶ examples ─▶ prompt by our own PromptFactory, answer
                              no test video       tasks, orders of the choices, label noise, frames or captions

Four tasks. `rank` answers with the code of the next action and nothing else. `plan` answers with the rationale lane's JSON, the
label before its reason. `recognise` names the action that goes on, which the prompt then leaves out, by a frame or its caption.
`caption` describes a frame. The last two are taught (LLM-SAP trains captioning, recognition and planning together) and not asked
for at run time, except that the indirect form's captioner gets the caption prompt.

Nobody annotated why. Without a teacher (`distill.py`), `why`, `progress` and `safety` of a `plan` are sentences of the procedure
pack: the action's description, the phase that its rules find, the pack's cautions. The second and third rank are those that the
pack's label model holds likeliest. A `caption` is never made up: without one in `captions` the task is left out.

Causal unless asked otherwise: nothing at or after the target's first second is in a prompt. Pure: the same seed gives the same
examples; pixels and captions come from the caller (`near_frames.py`).
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, TypeAlias, get_args

import msgspec

from stream_agent.errors import ConfigError
from stream_agent.evaluation.dataset import TEST_VIDEOS, SapClip, load_sap
from stream_agent.evaluation.samples import History, Question, Sample, Track, as_memory, samples
from stream_agent.messages import RANKED, Memory, NearPicture, PastPlan, PlanRequest
from stream_agent.planner.backends.protocol import Message, Picture, Prompt
from stream_agent.planner.rank_lane import choices_of, cyclic_orders
from stream_agent.procedure import ProcedurePack
from stream_agent.prompts import CODES, LONGEST_WHY, PromptFactory, quoted

Task: TypeAlias = Literal["rank", "plan", "recognise", "caption"]
TASKS: Final[tuple[Task, ...]] = get_args(Task)

Confusion: TypeAlias = Mapping[str, Mapping[str, int]]
"""How often a recogniser called each action what: annotated action to label to count."""

Pictures: TypeAlias = Callable[[Question], tuple[NearPicture, ...]]
"""Frames of a question for a model's eyes, the near frame last; empty where there are none."""

Captions: TypeAlias = Callable[[Question], str]
"""What the near frame shows in words; empty where nobody said."""

_RECOGNISE_QUESTION = """\
Which action is going on in this frame?
{choices}
Answer with the code of one action and nothing else."""

_VIDEO_NAME = re.compile(r"\b(?:vid|video)[ _-]?0*(\d{1,3})(?=\D|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One prompt and what is to be answered.

    Attributes:
        video: `VIDnn`.
        index: The target clip's number in its video.
        task: What is asked.
        prompt: As the lanes of run time ask it.
        answer: The whole of what the model should write.
        target: The action that answers: the next one, or with `recognise` the one going on; of a `caption` the next one.
        following: The action after the target; None for the last clip of a video, and with `recognise`.
        choices: The closed set in the order of the prompt; `CODES[i]` stands for `choices[i]` where codes are asked for.
        memory: What the prompt was made of, for rules and rewards.
    """

    video: str
    index: int
    task: Task
    prompt: Prompt
    answer: str
    target: str
    following: str | None
    choices: tuple[str, ...]
    memory: Memory


def require_training_only(videos: Iterable[str]) -> None:
    """Let no test video through, however its name is written (`VID73`, `video73`, `73`); every trainer calls this.

    Raises:
        ConfigError: One of them is.
    """
    found = sorted({name for video in videos if (name := _canonical(video)) in TEST_VIDEOS})
    if found:
        raise ConfigError(
            f"{', '.join(found)}: a test video of CholecT50 is never trained, tuned or chosen on; leave it out"
        )


def training_samples(
    sap_path: Path,
    *,
    exclude: Iterable[str] = (),
    only: Iterable[str] | None = None,
    track: Track = "causal",
    history: History = "ground_truth",
) -> list[Sample]:
    """The samples of the file's training videos, in its order: every video but the 15 test videos and those in `exclude`.

    Args:
        sap_path: `total_video_info.json`.
        exclude: Training videos to leave out.
        only: The videos to take; None takes all that may be.
        track: `causal`, or `official`, which shows the target's first second.
        history: Which labels of past clips are told.

    Raises:
        ConfigError: The file cannot be read, `only` names a test video or an unknown one, `exclude` an unknown one, or a video
            that is not called a test video has the clips of one.
    """
    videos = training_videos(sap_path, exclude=exclude, only=only)
    return [sample for clips in videos.values() for sample in samples(clips, track=track, history=history)]


def training_videos(
    sap_path: Path, *, exclude: Iterable[str] = (), only: Iterable[str] | None = None
) -> dict[str, tuple[SapClip, ...]]:
    """Clips of the videos that may be trained on; arguments and errors as `training_samples`."""
    videos = load_sap(sap_path)
    left_out = set(exclude)
    wanted = set(videos) - TEST_VIDEOS if only is None else set(only)
    require_training_only(wanted if only is not None else ())
    unknown = sorted((wanted | left_out) - set(videos))
    if unknown:
        raise ConfigError(f"{', '.join(unknown)}: not in {sap_path}, which has {len(videos)} videos; name one of them")
    chosen = {name: clips for name, clips in videos.items() if name in wanted - left_out}
    require_training_only(chosen)
    kept_back = {_content(clips): name for name, clips in videos.items() if name in TEST_VIDEOS and clips}
    for name, clips in chosen.items():
        if (twin := kept_back.get(_content(clips))) is not None:
            raise ConfigError(f"{name} has the very clips of {twin}, a test video; leave it out")
    if not any(clip.is_sample for clips in chosen.values() for clip in clips):
        raise ConfigError(f"{sap_path}: no sample is left to train on; exclude fewer videos")
    return chosen


def split_by_video(found: Sequence[Sample], *, share: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Samples to fit and samples to choose by: whole videos, about `share` of the samples in the second part.

    Raises:
        ConfigError: There are too few videos for two parts.
    """
    counts = Counter(sample.question.video for sample in found)
    names = sorted(counts)
    random.Random(seed).shuffle(names)
    held: set[str] = set()
    for name in names:
        if sum(counts[video] for video in held) + counts[name] / 2 <= share * len(found):
            held.add(name)
    if share > 0 and not held:
        held = {min(names, key=counts.__getitem__)} if len(names) > 1 else set()
    if (share > 0 and not held) or len(held) == len(names):
        raise ConfigError(
            f"{len(names)} training videos cannot be split by video; give more videos, or set data.validation=0"
        )
    return [s for s in found if s.question.video not in held], [s for s in found if s.question.video in held]


def confusion(videos: Mapping[str, Sequence[SapClip]]) -> Confusion:
    """What the authors' recogniser called the annotated clips of training videos.

    Raises:
        ConfigError: One of them is a test video.
    """
    require_training_only(videos)
    counts: dict[str, Counter[str]] = {}
    for clips in videos.values():
        for clip in clips:
            counts.setdefault(clip.action, Counter())[clip.action_reg] += 1
    return counts


def noisy(sample: Sample, mistakes: Confusion, draw: random.Random) -> Sample:
    """The sample with its distant labels as a recogniser might have called them; the nearest one stays, as published."""
    labels = list(sample.question.labels)
    for place, label in enumerate(labels[:-1]):
        if called := mistakes.get(label):
            [labels[place]] = draw.choices(sorted(called), [called[name] for name in sorted(called)])
    return replace(sample, question=replace(sample.question, labels=tuple(labels)))


def examples(
    found: Sequence[Sample],
    factory: PromptFactory,
    *,
    tasks: Sequence[Task] = ("rank",),
    orders: int = 1,
    seed: int = 0,
    noise: float = 0.0,
    mistakes: Confusion | None = None,
    pictures: Pictures | None = None,
    captions: Captions | None = None,
    earlier_plans: bool = False,
) -> list[Example]:
    """Conversations of samples, in their order; what a sample cannot serve for (`caption` without one) is left out.

    Args:
        found: Of training videos.
        factory: Asks; its configuration decides the form and how much of the memory is told.
        tasks: Which; several are taught together.
        orders: Orders of the choices per `rank` sample: one at random, then shifts of it, so that with as many orders as
            choices each action stands once in each place. With `planner.permutations=1` the first is the pack's own.
        seed: Of the orders and the noise.
        noise: Share of samples whose distant labels are drawn from `mistakes`.
        mistakes: Of a recogniser, on training videos alone; needed for noise.
        pictures: Frames, for the direct form, `recognise` and `caption`.
        captions: Words for frames, for the indirect form and `caption`.
        earlier_plans: Tell what the pack's label model would have expected of the last clips, as the agent tells its own.

    Raises:
        ConfigError: A sample is of a test video, or a text or answer names one.
        ValueError: Noise is wanted without `mistakes`.
    """
    require_training_only(sample.question.video for sample in found)
    if noise and mistakes is None:
        raise ValueError("noise needs the mistakes of a recogniser")
    made: list[Example] = []
    for number, clean in enumerate(found):
        draw = random.Random(f"{seed} {clean.question.video} {clean.index}")
        sample = noisy(clean, mistakes, draw) if mistakes is not None and draw.random() < noise else clean
        shown = pictures(sample.question) if pictures is not None else ()
        words = captions(sample.question) if captions is not None else ""
        request = PlanRequest(
            request_id=number,
            memory=as_memory(sample.question),
            deadline_ns=0,
            pictures=shown,
            previous=_earlier(factory, sample.question.labels) if earlier_plans else (),
        )
        for task in tasks:
            made += _made(task, sample, request, words, factory, orders, draw)
    for example in made:
        require_training_only(_named(example))
    return made


def messages(example: Example) -> list[dict[str, str]]:
    """The conversation with its answer, `<image>` for each picture: the layout of LLaMA-Factory and of most tools."""
    turns = [{"role": turn.role, "content": _text(turn)} for turn in example.prompt.messages]
    return [*turns, {"role": "assistant", "content": example.prompt.answer_prefix + example.answer}]


def pictures_of(example: Example) -> list[Picture]:
    """Every picture of the prompt in its order."""
    return [part for turn in example.prompt.messages for part in turn.parts if isinstance(part, Picture)]


# -------------------------------------------------------------------------------------------------------- one task each


def _made(
    task: Task,
    sample: Sample,
    request: PlanRequest,
    caption: str,
    factory: PromptFactory,
    orders: int,
    draw: random.Random,
) -> list[Example]:
    actions = factory.pack.action_names
    memory = request.memory
    choices = list(factory.choices(memory.current))
    if factory.config.permutations != 1:  # with 1, run time asks in the pack's order alone
        draw.shuffle(choices)
    following = sample.following or None
    seen = bool(caption) if factory.config.form == "indirect" else request.picture is not None
    if factory.config.memory != "labels_only" and task != "caption" and not seen:
        return []  # the lanes would ask with a frame, or with its caption

    def example(prompt: Prompt, answer: str, order: Sequence[str]) -> Example:
        return Example(
            video=sample.question.video,
            index=sample.index,
            task=task,
            prompt=prompt,
            answer=answer,
            target=sample.target,
            following=following,
            choices=tuple(order),
            memory=memory,
        )

    match task:
        case "rank":
            shifts = cyclic_orders(choices, min(orders, len(choices)))
            asked = factory.ranking(request, shifts, caption)
            return [
                example(prompt, CODES[order.index(sample.target)], order)
                for prompt, order in zip(asked, shifts, strict=True)
            ]
        case "plan":
            offered = choices_of(actions, memory.current)
            prompt = factory.rationale(request, offered, caption)
            return [example(prompt, plan_answer(factory.pack, memory, sample.target), offered)]
        case "recognise":
            return _recognition(sample, request, caption, factory, draw)
        case "caption":
            return [example(factory.caption(request.picture), caption, ())] if request.picture and caption else []


def _recognition(
    sample: Sample, request: PlanRequest, caption: str, factory: PromptFactory, draw: random.Random
) -> list[Example]:
    """The action going on, by what is seen of it; none where nothing is seen or nothing goes on yet."""
    current = request.memory.current
    seen = bool(caption) if factory.config.form == "indirect" else request.picture is not None
    if current is None or not seen or factory.config.memory == "labels_only":
        return []
    unknown = msgspec.structs.replace(request, memory=msgspec.structs.replace(request.memory, current=None))
    system, parts = factory.context(unknown, caption)
    order = list(factory.pack.action_names)
    draw.shuffle(order)
    table = "\n".join(f"{code}: {action}" for code, action in zip(CODES, order, strict=False))
    question = _RECOGNISE_QUESTION.format(choices=table)
    return [
        Example(
            video=sample.question.video,
            index=sample.index,
            task="recognise",
            prompt=Prompt((system, Message("user", (*parts, question)))),
            answer=CODES[order.index(current)],
            target=current,
            following=None,
            choices=tuple(order),
            memory=unknown.memory,
        )
    ]


def plan_answer(pack: ProcedurePack, memory: Memory, target: str) -> str:
    """The rationale lane's JSON with `target` first, its sentences out of the pack."""
    likely = pack.next_action_probabilities(memory.labels)
    others = sorted((name for name in likely if name not in (target, memory.current)), key=lambda name: -likely[name])
    ranked = [target, *others][:RANKED]
    phase = pack.phase(pack.facts(memory))
    progress = f"{phase.name}: {phase.description}" if phase is not None else f"{len(memory.clips)} actions are done."
    rules = [rule.caution for rule in pack.violations(memory, target)]
    spec = pack.action(target)
    safety = [*rules, *(spec.safety if spec is not None else ())][:1] or [
        "Stop and look again when the anatomy is unclear."
    ]
    said = {
        "ranked": [{"action": name, "why": _why(pack, memory, name)} for name in ranked],
        "progress": quoted(progress, LONGEST_WHY),
        "safety": [quoted(line, LONGEST_WHY) for line in safety],
    }
    return json.dumps(said, ensure_ascii=False)


def _why(pack: ProcedurePack, memory: Memory, action: str) -> str:
    spec = pack.action(action)
    after = f"After {memory.current}: " if memory.current else "To begin with: "
    return quoted(after + (spec.description if spec is not None else action), LONGEST_WHY)


def _earlier(factory: PromptFactory, labels: Sequence[str]) -> tuple[PastPlan, ...]:
    """What the pack's label model would have expected of the last clips."""
    plans = []
    for place in range(max(1, len(labels) - factory.config.remember_plans), len(labels)):
        likely = factory.pack.next_action_probabilities(labels[:place])
        expected = sorted(likely, key=lambda name: -likely[name])[:RANKED]
        plans.append(PastPlan(during=labels[place - 1], expected=tuple(expected), happened=labels[place]))
    return tuple(plans)


# ------------------------------------------------------------------------------------------------------ what must not be


def _canonical(video: str) -> str:
    number = re.fullmatch(r"\s*(?:vid|video)?[ _-]?0*(\d+)\s*", video, re.IGNORECASE)
    return video if number is None else f"VID{int(number.group(1)):02d}"


def _named(example: Example) -> Iterable[str]:
    """The example's video, and every video that its texts or its pictures' names name."""
    texts = [part if isinstance(part, str) else part.id for turn in example.prompt.messages for part in turn.parts]
    yield example.video
    for text in (*texts, example.prompt.answer_prefix, example.answer):
        yield from videos_named(text)


def videos_named(text: str) -> list[str]:
    """Videos that a text or a path names, as `VIDnn`."""
    return [f"VID{int(match.group(1)):02d}" for match in _VIDEO_NAME.finditer(text)]


def _content(clips: Sequence[SapClip]) -> tuple[tuple[int, str], ...]:
    return tuple((clip.start_s, clip.action) for clip in clips)


def _text(turn: Message) -> str:
    return "".join("<image>" if isinstance(part, Picture) else part for part in turn.parts)
