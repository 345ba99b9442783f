"""What each part of the language planner is worth: one thing changed at a time, the same samples asked, intervals over videos.

    memory          labels alone, the current action alone, and the forms with frames (LLM-SAP's ablation, i to iv)
    knowledge       the whole knowledge base, a line per action, the names
    question        asked plainly, or with the past as a row of codes
    resolution      pixels of the near frame
    model_size      several models under the same prompts
    mixed_tasks     the base model and adapters that were trained on other mixtures of tasks
    label_noise     annotated labels, recognised ones, and a share of wrong ones among those before the current
    permutations    orders of the choices that are averaged
    fusion          statistical planner, model, both as configured, both with fitted numbers
    previous_plan   without and with earlier plans and what came of them

Samples are those of all videos, causal: nothing of the action to be foreseen is shown. What is fitted (the statistical planner,
temperature and weight) is fitted on the other four parts of five. Adapters have seen the training videos, so test videos alone are
asked about with them; frames of test videos are not opened. What cannot be asked is told with its reason.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal, TypeAlias

from stream_agent.config import AgentConfig, PlannerConfig, overridden
from stream_agent.errors import ConfigError
from stream_agent.evaluation.dataset import TEST_VIDEOS, TRAIN_VIDEOS
from stream_agent.evaluation.lineup import statistical_planner
from stream_agent.evaluation.model_beliefs import Asked, Beliefs, Captions, LanguageModel, statistical_beliefs
from stream_agent.evaluation.protocols import Questions, folds
from stream_agent.evaluation.samples import History, Presence, Question, Sample, Videos
from stream_agent.procedure import ProcedurePack
from stream_agent.training.calibration import held_out, pooled, targets_of, tempered
from stream_agent.training.near_frames import NearFrames

Mixture: TypeAlias = Literal["model", "statistical", "configured", "fitted"]

NOISE: Final = (0.1, 0.2, 0.4)
PIXELS: Final = (52_884, 131_072, 262_144)
"""60, 153 and 312 image tokens of an 854x480 frame in Qwen2.5-VL."""

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Variant:
    """One way of asking.

    Attributes:
        name: As tables tell it.
        settings: Overrides of the configuration.
        history: Whose labels of the past are told.
        noise: Share of the labels before the current one that are replaced by wrong ones.
        continuous: Whether earlier answers and their outcome are told.
        frames: Whether the prompt shows frames (or reads captions), so that samples without one are not asked.
        unseen: Whether test videos alone are asked about, for the model was trained on the others.
        mixture: Whose belief is judged.
    """

    name: str
    settings: tuple[str, ...] = ()
    history: History = "ground_truth"
    noise: float = 0.0
    continuous: bool = False
    frames: bool = False
    unseen: bool = False
    mixture: Mixture = "model"


@dataclass(frozen=True, slots=True)
class Ablation:
    """A question and the ways of asking that answer it, the one that the others are compared with first."""

    name: str
    question: str
    variants: tuple[Variant, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """What one variant believed."""

    variant: Variant
    samples: tuple[Sample, ...]
    beliefs: Beliefs
    prompt: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """A variant that was not asked, and why."""

    variant: Variant
    reason: str


def ablations(models: Sequence[Path], adapters: Mapping[str, Path]) -> dict[str, Ablation]:
    """Every ablation by its name."""
    made = (
        Ablation(
            "memory",
            "What of the memory helps?",
            (
                Variant("labels only", ("planner.memory=labels_only",)),
                Variant("current action only, no frame", ("planner.memory=near_only",)),
                Variant("(i) near frame and its action", ("planner.memory=near_only",), frames=True),
                Variant("(ii) near frame or its caption only", ("planner.memory=near_picture_only",), frames=True),
                Variant(
                    "(iii, iv) labels, near frame and its action", ("planner.memory=labels_and_near",), frames=True
                ),
                Variant("all frames with labels", ("planner.memory=all_frames_with_labels",), frames=True),
            ),
        ),
        Ablation(
            "knowledge",
            "How much should be told before the question?",
            tuple(Variant(f"knowledge={form}", (f"planner.knowledge={form}",)) for form in ("none", "short", "full")),
        ),
        Ablation(
            "question",
            "Does it help to tell the past once more in the codes of the choices?",
            tuple(Variant(f"question={form}", (f"planner.question={form}",)) for form in ("plain", "coded")),
        ),
        Ablation(
            "resolution",
            "How many pixels does the near frame need?",
            tuple(
                Variant(
                    f"{pixels} pixels", ("planner.memory=labels_and_near", f"planner.max_pixels={pixels}"), frames=True
                )
                for pixels in PIXELS
            ),
        ),
        Ablation(
            "model_size",
            "What does a larger model bring?",
            tuple(Variant(path.name, (f"planner.model={path}",)) for path in models),
        ),
        Ablation(
            "mixed_tasks",
            "Does training on captions and recognition as well help planning?",
            (
                Variant("base model", unseen=True),
                *(
                    Variant(name, (f"planner.adapters.{name}={path}", f"planner.adapter={name}"), unseen=True)
                    for name, path in adapters.items()
                ),
            )
            if adapters
            else (),
        ),
        Ablation(
            "label_noise",
            "What do wrong labels of the past cost?",
            (
                Variant("annotated labels"),
                Variant("recognised labels", history="action_reg"),
                *(Variant(f"{share:.0%} of earlier labels wrong", noise=share) for share in NOISE),
            ),
        ),
        Ablation(
            "permutations",
            "How many orders of the choices should be averaged?",
            tuple(
                Variant(f"{count or 'all'} order{'' if count == 1 else 's'}", (f"planner.permutations={count}",))
                for count in (0, 1, 2)
            ),
        ),
        Ablation(
            "fusion",
            "What does the model add to the statistical planner?",
            (
                Variant("statistical planner", mixture="statistical"),
                Variant("model", mixture="model"),
                Variant("fused as configured", mixture="configured"),
                Variant("fused, temperature and weight fitted", mixture="fitted"),
            ),
        ),
        Ablation(
            "previous_plan",
            "Does it help to be told of earlier plans and what came?",
            (
                Variant("without earlier plans"),
                Variant("with the last three and what came", ("planner.remember_plans=3",), continuous=True),
            ),
        ),
    )
    return {one.name: one for one in made}


@dataclass(slots=True)
class Study:
    """The samples, and what was asked about them already; one backend is alive at a time.

    Attributes:
        config: What every variant starts from.
        pack: Its procedure.
        videos: Clips of the videos that are asked about, and fitted on in folds.
        presence: Instruments per second, for the statistical planner.
        frames: Folder of frames; without one, variants with frames are skipped.
        captions: What frames show, for the indirect form.
        tell: Takes lines of progress.
        model_name: The model last asked, with its digest.
    """

    config: AgentConfig
    pack: ProcedurePack
    videos: Videos
    presence: Mapping[str, Presence]
    frames: Path | None = None
    captions: Captions | None = None
    tell: Tell = print
    model_name: str = ""
    _asked: dict[tuple[str, Variant], Asked] = field(default_factory=dict)
    _alive: tuple[str, LanguageModel] | None = None
    _statistical: Beliefs | None = None

    async def answer(self, variant: Variant) -> Answered | Skipped:
        """What this variant believes, or why it cannot be asked.

        Raises:
            BackendError: The model failed.
            ConfigError: A setting is wrong.
        """
        config = overridden(self.config, variant.settings).planner
        if variant.mixture == "statistical":
            samples = self._samples(variant)
            return Answered(variant, tuple(samples), self._out_of_fold(samples), "")
        missing = await self._missing(variant, config)
        if missing:
            return Skipped(variant, missing)
        asked = await self._ask(variant, config)
        if not asked.samples:
            return Skipped(variant, "none of the samples has what it needs")
        beliefs = self._mixed(variant, asked, config)
        return Answered(variant, asked.samples, beliefs, asked.prompt)

    async def close(self) -> None:
        """Let go of the model."""
        if self._alive is not None:
            await self._alive[1].close()
            self._alive = None

    async def _missing(self, variant: Variant, config: PlannerConfig) -> str:
        """Why this variant cannot be asked here; empty when it can."""
        if variant.unseen and not TEST_VIDEOS & self.videos.keys():
            return "no test video is among the videos, and the adapters have seen the others"
        if not variant.frames:
            return ""
        if config.form == "indirect":
            if config.memory == "all_frames_with_labels":
                return "the indirect form reads one caption and no frames"
            return "" if self.captions is not None else "no captions are given (--captions)"
        able = (await self._model(config)).able
        if able is None or not able.pictures:
            return f"{able.model if able else 'the model'} is a text model and sees no frames"
        return "" if self.frames is not None else "no frames are given (--frames)"

    async def _ask(self, variant: Variant, config: PlannerConfig) -> Asked:
        # What is asked, whatever a table calls it: a setting that is the default changes nothing.
        key = (config.model_dump_json(), replace(variant, name="", settings=(), mixture="model"))
        if key in self._asked:
            return self._asked[key]
        pictures = None
        captions = self.captions if variant.frames and config.form == "indirect" else None
        samples = self._samples(variant)
        if variant.frames and config.form == "direct":
            assert self.frames is not None
            pictures = NearFrames(self.frames, config)
            samples = [s for s in samples if s.question.video in TRAIN_VIDEOS and pictures(s.question)]
        if captions is not None:
            samples = [s for s in samples if s.question.video in TRAIN_VIDEOS and captions(s.question)]
        model = await self._model(config)
        self.tell(f"{variant.name}: {len(samples)} samples")
        asked = await model.ask(samples, config, pictures=pictures, captions=captions, continuous=variant.continuous)
        self._asked[key] = asked
        return asked

    async def _model(self, config: PlannerConfig) -> LanguageModel:
        """The backend of a configuration, started; the one before is let go of when it is another."""
        key = repr((config.kind, config.model, config.endpoint, sorted(config.adapters.items()), config.dtype))
        if self._alive is not None and self._alive[0] == key:
            return self._alive[1]
        await self.close()
        model = LanguageModel(self.pack, config)
        self._alive = (key, model)
        able = await model.start()
        self.model_name = f"{able.model}, digest {able.digest}"
        return model

    def _samples(self, variant: Variant) -> list[Sample]:
        questions = Questions(self.videos, self.presence)
        names = [name for name in sorted(self.videos) if not variant.unseen or name in TEST_VIDEOS]
        found = [sample for name in names for sample in questions.samples(name, "causal", variant.history)]
        if not variant.noise:
            return found
        return [
            replace(sample, question=mislabelled(sample.question, variant.noise, self.pack.action_names))
            for sample in found
        ]

    def _mixed(self, variant: Variant, asked: Asked, config: PlannerConfig) -> Beliefs:
        if variant.mixture == "model":
            return tempered(asked.beliefs, config.temperature)
        statistical = self._out_of_fold(asked.samples)
        if variant.mixture == "configured":
            return pooled(statistical, tempered(asked.beliefs, config.temperature), config.fusion)
        targets = targets_of(asked.samples, self.pack.action_names)
        parts = [fold.test for fold in folds("5fold", self.videos)]
        return held_out(asked.samples, statistical, asked.beliefs, targets, config.fusion, parts)[1]

    def _out_of_fold(self, samples: Sequence[Sample]) -> Beliefs:
        """The statistical planner's beliefs about samples with annotated labels, fitted without their part of the videos."""
        if self._statistical is None or len(self._statistical) != len(samples):
            if len(self.videos) < 2:
                raise ConfigError(
                    "the ablation fusion fits on other videos than it asks about; name at least two videos"
                )
            fitter, how = statistical_planner()
            self.tell(f"statistical planner: {how}")
            self._statistical = statistical_beliefs(
                folds("5fold", self.videos), self.videos, self.presence, samples, self.pack.action_names, fitter
            )
        return self._statistical


def mislabelled(question: Question, share: float, actions: Sequence[str]) -> Question:
    """A share of the labels before the current one replaced by wrong ones, drawn per clip: always the same clips of a video, and
    with a larger share those of a smaller one among them.
    """  # noqa: D205
    labels = list(question.labels)
    for place, label in enumerate(labels[:-1]):
        drawn = random.Random(f"{question.video}/{place}")
        wrong = drawn.choice([action for action in actions if action != label])
        if drawn.random() < share:
            labels[place] = wrong
    return replace(question, labels=tuple(labels))
