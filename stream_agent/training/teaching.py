"""What a configuration teaches: examples of training videos to fit, and of others of them to choose by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from stream_agent.errors import ConfigError
from stream_agent.evaluation.samples import Sample
from stream_agent.procedure import ProcedurePack, load_pack
from stream_agent.prompts import PromptFactory
from stream_agent.training.config import TrainingConfig
from stream_agent.training.data import (
    Example,
    confusion,
    examples,
    require_training_only,
    split_by_video,
    training_samples,
    training_videos,
)
from stream_agent.training.near_frames import NEAR_S, NearCaptions, NearFrames


@dataclass(frozen=True, slots=True, eq=False)
class Teaching:
    """One training's data.

    Attributes:
        pack: The procedure.
        factory: Asks as the lanes will.
        samples: Fitted on.
        held_out: Chosen by: samples of other training videos; empty without validation.
        examples: Of `samples`.
        validation: Of `held_out`, without noise, one order of the choices each.
    """

    pack: ProcedurePack
    factory: PromptFactory
    samples: list[Sample]
    held_out: list[Sample]
    examples: list[Example]
    validation: list[Example]

    def summary(self) -> dict[str, object]:
        """What a model card and a record tell of the data."""
        return {
            "fitted_on": _videos(self.samples),
            "chosen_by": _videos(self.held_out),
            "samples": len(self.samples),
            "validation_samples": len(self.held_out),
            "examples": dict(sorted(Counter(example.task for example in self.examples).items())),
            "validation_examples": dict(sorted(Counter(example.task for example in self.validation).items())),
            "prompt": self.factory.digest,
            "knowledge": self.pack.knowledge_digest,
        }


def teaching(config: TrainingConfig) -> Teaching:
    """The examples that `config` names.

    Raises:
        ConfigError: A file cannot be read, a test video would be taught, or nothing is left to teach.
    """
    data = config.data
    assert data.sap is not None
    pack = load_pack(config.procedure.pack)
    factory = PromptFactory(pack, config.planner)
    found = training_samples(data.sap, exclude=data.exclude, track=data.track, history=data.history)
    pictures = NearFrames(data.frames, config.planner) if data.frames is not None else None
    captions = NearCaptions(data.captions) if data.captions is not None else None
    if (
        config.planner.memory != "labels_only"
    ):  # else the videos to choose by might be some of which nothing is to be seen
        shown = captions if config.planner.form == "indirect" else pictures
        found = [sample for sample in found if shown is not None and shown(sample.question)]
        if not found:
            what = "data.captions" if config.planner.form == "indirect" else "data.frames"
            raise ConfigError(
                f"{what} has nothing of the {NEAR_S} s before any training sample; name those of training videos, or set "
                "planner.memory=labels_only"
            )
    fitted, held_out = split_by_video(found, share=data.validation, seed=config.seed)
    # A recogniser's mistakes are counted on the videos that are fitted, so that those to choose by stay unseen.
    names = {sample.question.video for sample in fitted}
    mistakes = confusion(training_videos(data.sap, only=sorted(names))) if data.noise else None

    def made(part: Sequence[Sample], *, orders: int, noise: float) -> list[Example]:
        return examples(
            part,
            factory,
            tasks=data.tasks,
            orders=orders,
            seed=config.seed,
            noise=noise,
            mistakes=mistakes,
            pictures=pictures,
            captions=captions,
            earlier_plans=data.earlier_plans,
        )

    taught, validation = made(fitted, orders=data.orders, noise=data.noise), made(held_out, orders=1, noise=0.0)
    require_training_only(example.video for example in (*taught, *validation))
    if not taught or (held_out and not validation):
        raise ConfigError(
            f"data.tasks={list(data.tasks)}: no sample has what they need (frames or captions under the configured form); "
            "name more tasks, or the frames and captions of more videos"
        )
    return Teaching(pack, factory, fitted, held_out, taught, validation)


def _videos(part: Sequence[Sample]) -> list[str]:
    return sorted({sample.question.video for sample in part})
