"""Drawn lessons: examples of fine-tuning as `train sft` makes them, on made-up cases as long as the annotated ones."""

from __future__ import annotations

import numpy as np

from benchmarks.histories import drawn_memory
from stream_agent.clock import NS_PER_S
from stream_agent.errors import ConfigError
from stream_agent.evaluation.samples import Question, Sample
from stream_agent.messages import FrameHeader, NearPicture
from stream_agent.planner.near_picture import near_picture
from stream_agent.procedure import ProcedurePack, load_pack
from stream_agent.prompts import PromptFactory
from stream_agent.source.scene import Moment, Scene
from stream_agent.training.config import TrainingConfig
from stream_agent.training.data import Example, examples

FRAME = (854, 480)
"""Of CholecT50's videos, width and height."""

CLIPS = (4, 6, 8)
"""Labels of a history: the quartiles over the 168 training samples of CholecT50-SAP."""

_INSTRUMENTS = ("grasper", "hook")


def lessons(config: TrainingConfig, *, count: int) -> list[Example]:
    """Examples of `count` drawn samples, each with a frame of its own.

    Raises:
        ConfigError: The configured tasks have nothing to ask here: captions are not drawn.
    """
    pack = load_pack(config.procedure.pack)
    frames = _Frames(config)
    made = examples(
        [_sample(pack, number) for number in range(count)],
        PromptFactory(pack, config.planner),
        tasks=config.data.tasks,
        orders=config.data.orders,
        seed=config.seed,
        pictures=frames,
    )
    if not made:
        raise ConfigError(
            f"data.tasks={list(config.data.tasks)} with planner.form={config.planner.form} needs captions, and none are drawn; set "
            "planner.form=direct, or planner.memory=labels_only and data.tasks=[rank]"
        )
    return made


class _Frames:
    """What the camera shows at a question, reduced as the configuration says."""

    def __init__(self, config: TrainingConfig) -> None:
        self._planner = config.planner
        self._scene = Scene(*FRAME, seed=7, instruments=_INSTRUMENTS)

    def __call__(self, question: Question) -> tuple[NearPicture, ...]:
        width, height = FRAME
        planes = np.empty((height * 3 // 2, width), np.uint8)
        self._scene.draw(
            planes, Moment(time_s=float(question.now_s), instruments=_INSTRUMENTS, since_s=float(question.now_s))
        )
        header = FrameHeader(
            stream_id="drawn",
            session_id=question.video,
            seq=question.now_s,
            pts_s=float(question.now_s),
            captured_ns=question.now_s * NS_PER_S,
            width=width,
            height=height,
        )
        planner = self._planner
        return (
            near_picture(
                planes,
                header,
                action=question.current,
                max_pixels=planner.max_pixels,
                side_multiple=planner.side_multiple,
            ),
        )


def _sample(pack: ProcedurePack, number: int) -> Sample:
    """A question after as many clips as the annotated samples have, and the likeliest answer to it."""
    memory = drawn_memory(pack, clips=CLIPS[number % len(CLIPS)] - 1, folded=0, seed=number)
    assert memory.current is not None
    labels = (*(clip.action for clip in memory.clips), memory.current)
    starts_s = (*(int(clip.start_pts_s) for clip in memory.clips), int(memory.current_start_pts_s))
    likely = pack.next_action_probabilities(labels)
    target = max((name for name in pack.action_names if name != memory.current), key=lambda name: likely.get(name, 0))
    question = Question(video=f"drawn-{number}", labels=labels, starts_s=starts_s, now_s=int(memory.now_pts_s))
    return Sample(question=question, index=len(labels), target=target, following="", chain=(target,), onset_s=(1,))
