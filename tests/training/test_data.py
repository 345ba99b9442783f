"""Conversations for training: what the lanes ask, in every memory form, and never a test video however it comes."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from stream_agent.config import PlannerConfig
from stream_agent.errors import ConfigError
from stream_agent.evaluation.dataset import SapClip
from stream_agent.evaluation.samples import Question, Sample, as_memory, samples
from stream_agent.evaluation.triplets import encode_videos
from stream_agent.messages import NearPicture, PlanRequest
from stream_agent.planner.backends.protocol import Picture
from stream_agent.planner.rationale_lane import checked
from stream_agent.procedure import load_pack
from stream_agent.prompts import CODES, PromptFactory
from stream_agent.training.config import load_training
from stream_agent.training.data import (
    TASKS,
    Example,
    confusion,
    examples,
    messages,
    pictures_of,
    require_training_only,
    split_by_video,
    training_samples,
    training_videos,
    videos_named,
)
from stream_agent.training.near_frames import NearCaptions, NearFrames
from stream_agent.training.teaching import teaching

PACK = load_pack(Path("cholecystectomy"))
TEXT: dict[str, Any] = {"form": "indirect", "memory": "labels_only", "knowledge": "none"}
FORMS = ("labels_and_near", "near_only", "near_picture_only", "labels_only", "all_frames_with_labels")


def factory(**settings: Any) -> PromptFactory:
    return PromptFactory(PACK, PlannerConfig.model_validate(settings))


def clips(video: str, *actions: str, every_s: int = 40, shift_s: int = 0) -> tuple[SapClip, ...]:
    return tuple(
        SapClip(
            video,
            index,
            index * every_s + shift_s,
            action,
            "Tissue Retraction" if action == "Coagulation" else action,
            is_sample=index > 0,
            next_action=actions[index + 1] if index + 1 < len(actions) else "",
        )
        for index, action in enumerate(actions)
    )


DONE = ("Tissue Retraction", "Dissection", "Coagulation", "Dissection", "Vessel Clipping")


def written(path: Path, videos: dict[str, tuple[SapClip, ...]]) -> Path:
    path.write_bytes(encode_videos(videos))
    return path


@pytest.fixture
def sap(tmp_path: Path) -> Path:
    """Four training videos and two test videos, each with times of its own."""
    names = ("VID01", "VID02", "VID68", "VID70", "VID73", "VID06")
    return written(tmp_path / "sap.json", {name: clips(name, *DONE, shift_s=place) for place, name in enumerate(names)})


def text_of(example: Example) -> str:
    return "".join(part for turn in example.prompt.messages for part in turn.parts if isinstance(part, str))


def pictures(question: Question) -> tuple[NearPicture, ...]:
    return tuple(
        NearPicture(
            seq=second, pts_s=float(second), action=question.current, width=2, height=1, rgb=bytes([second % 256]) * 6
        )
        for second in (question.now_s - 30, question.now_s)
    )


# ----------------------------------------------------------------------------------------------------- no test video


def test_a_file_s_test_videos_are_left_out_and_naming_one_is_an_error(sap: Path) -> None:
    found = training_samples(sap)
    assert {sample.question.video for sample in found} == {"VID01", "VID02", "VID68", "VID70"} and len(found) == 16
    for name in ("VID73", "VID06"):
        with pytest.raises(ConfigError, match=f"{name}: a test video"):
            training_samples(sap, only=["VID01", name])
    with pytest.raises(ConfigError, match="VID99: not in"):
        training_samples(sap, exclude=["VID99"])
    with pytest.raises(ConfigError, match="no sample is left"):
        training_samples(sap, exclude=["VID01", "VID02", "VID68", "VID70"])


@pytest.mark.parametrize("name", ["VID73", "vid73", "video73", "VID_073", "73", " VID06 ", "VID6", "video 111"])
def test_a_test_video_is_known_however_it_is_written(name: str) -> None:
    with pytest.raises(ConfigError, match="a test video of CholecT50"):
        require_training_only(["VID01", name])


def test_training_videos_and_those_of_others_are_let_through() -> None:
    require_training_only(["VID01", "VID110", "video68", "ward-7"])
    assert videos_named("frames/VID07/000012.png, video 31 and VIDEO") == ["VID07", "VID31"]


def test_a_test_video_under_another_name_is_known_by_its_clips(tmp_path: Path) -> None:
    path = written(tmp_path / "sap.json", {"VID01": clips("VID01", *DONE), "VID73": clips("VID73", *DONE)})
    with pytest.raises(ConfigError, match="VID01 has the very clips of VID73"):
        training_samples(path)


def test_samples_made_by_hand_of_a_test_video_give_no_examples() -> None:
    leak = samples(clips("VID80", *DONE), track="causal", history="ground_truth")
    with pytest.raises(ConfigError, match="VID80: a test video"):
        examples(leak, factory(**TEXT))


def test_a_text_that_names_a_test_video_gives_no_examples(sap: Path) -> None:
    found = training_samples(sap)[:1]
    asked = factory(form="indirect", knowledge="none")
    for words in ("A grasper, as in VID73.", "See /data/video80/000012.png"):
        with pytest.raises(ConfigError, match="a test video"):
            examples(found, asked, captions=lambda _, words=words: words)  # type: ignore[misc]


def test_frames_of_a_test_video_are_not_opened_whatever_leads_to_them(sap: Path, tmp_path: Path) -> None:
    """A folder called VID68 may be a link to VID73."""
    frames = tmp_path / "frames"
    (frames / "VID73").mkdir(parents=True)
    for second in range(200):
        cv2.imwrite(str(frames / "VID73" / f"{second:06d}.png"), np.full((60, 80, 3), second, np.uint8))
    (frames / "VID68").symlink_to("VID73")
    near = NearFrames(frames, PlannerConfig())
    question = next(sample.question for sample in training_samples(sap) if sample.question.video == "VID68")
    with pytest.raises(ConfigError, match="VID73: a test video"):
        near(question)
    with pytest.raises(ConfigError, match="VID73: a test video"):
        near(dataclasses.replace(question, video="VID73"))


def test_captions_of_a_test_video_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text(
        '{"video": "VID01", "second": 7, "text": "hook"}\n{"video": "VID14", "second": 7, "text": "hook"}\n'
    )
    with pytest.raises(ConfigError, match="VID14: a test video"):
        NearCaptions(path)
    path.write_text("nothing\n")
    with pytest.raises(ConfigError, match=r"captions.jsonl:1: .*write lines as"):
        NearCaptions(path)


def test_no_sample_of_the_authors_file_is_of_a_test_video(shared_data: Path) -> None:
    path = shared_data / "sap" / "total_video_info.json"
    found = training_samples(path)
    made = examples(found, factory(**TEXT), tasks=("rank", "plan"))
    assert (len(found), len({sample.question.video for sample in found})) == (168, 35)
    held_back = {6, 8, 10, 12, 14, 29, 32, 42, 50, 51, 73, 74, 78, 80, 111}
    assert not {int(example.video.removeprefix("VID")) for example in made} & held_back
    assert len(made) == 336


# ------------------------------------------------------------------------------------------------- what is asked


def test_what_is_taught_is_what_the_rank_lane_asks(sap: Path) -> None:
    asked = factory(**TEXT)
    found = training_samples(sap)
    for sample, example in zip(found, examples(found, asked), strict=True):
        request = PlanRequest(request_id=0, memory=as_memory(sample.question), deadline_ns=0)
        [prompt] = asked.ranking(request, [example.choices])
        assert example.prompt == prompt
        assert example.choices[CODES.index(example.answer)] == example.target == sample.target
        assert example.memory.current not in example.choices


@pytest.mark.parametrize("memory", FORMS)
@pytest.mark.parametrize("form", ["direct", "indirect"])
def test_every_memory_form_gives_the_prompt_of_run_time(sap: Path, memory: str, form: str) -> None:
    if (form, memory) == ("indirect", "all_frames_with_labels"):
        pytest.skip("the configuration refuses it")
    asked = factory(form=form, memory=memory, knowledge="short")
    found = training_samples(sap)
    made = examples(found, asked, tasks=("rank", "plan"), pictures=pictures, captions=lambda _: "a hook at Calot")
    assert Counter(example.task for example in made) == {"rank": len(found), "plan": len(found)}
    example = made[0]
    shown = len(pictures_of(example))
    expected = 0 if form == "indirect" or memory == "labels_only" else 2 if memory == "all_frames_with_labels" else 1
    assert shown == expected
    assert ("«a hook at Calot»" in text_of(example)) == (form == "indirect" and memory != "labels_only")
    assert ("Actions done so far" in text_of(example)) == (not memory.startswith("near"))


def test_the_causal_track_shows_nothing_of_the_target(sap: Path) -> None:
    """On the official track the last second is the target's own first one."""
    for track, seconds in (("causal", -1), ("official", 0)):
        for sample in training_samples(sap, track=track):  # type: ignore[arg-type]
            begins = sample.question.starts_s[-1] + 40
            assert sample.question.now_s == begins + seconds
            [example] = examples([sample], factory(**TEXT))
            assert example.memory.now_pts_s == begins + seconds


def test_a_frame_is_the_newest_before_the_question_and_of_the_current_clip(sap: Path, tmp_path: Path) -> None:
    folder = tmp_path / "frames" / "VID01"
    folder.mkdir(parents=True)
    for second_s in (28, 36, 39, 40, 41, 75):
        cv2.imwrite(str(folder / f"{second_s:06d}.png"), np.full((120, 160, 3), second_s, np.uint8))
    near = NearFrames(folder.parent, PlannerConfig())
    first, second, third = training_samples(sap, only=["VID01"])[:3]
    [shown] = near(first.question)  # asked at second 39
    assert shown.rgb[0] == 39 and shown.seq == 39 and (shown.width % 28, shown.height % 28) == (0, 0)
    [shown] = near(second.question)  # asked at 79
    assert shown.rgb[0] == 75 and shown.seq == 79, "the agent's memory says that it is the newest"
    assert near(third.question) == (), "no frame of its clip"
    several = NearFrames(folder.parent, PlannerConfig(memory="all_frames_with_labels"))
    assert [frame.rgb[0] for frame in several(second.question)] == [39, 75]


def test_what_is_not_to_be_seen_is_not_asked_about(sap: Path) -> None:
    """A caption is no frame: the direct form's question without one would be another question."""
    found = training_samples(sap)
    for form, given in (("direct", {"captions": lambda _: "hook"}), ("indirect", {"pictures": pictures})):
        assert examples(found, factory(form=form), tasks=("rank", "plan", "recognise"), **given) == []


def test_only_videos_with_frames_are_fitted_or_chosen_by(sap: Path, tmp_path: Path) -> None:
    """Of 35 training videos two had frames, and the eight to choose by had none."""
    frames = tmp_path / "frames"
    for video in ("VID02", "VID70"):
        (frames / video).mkdir(parents=True)
        for second in range(200):
            cv2.imwrite(str(frames / video / f"{second:06d}.png"), np.full((60, 80, 3), 7, np.uint8))
    settings = (f"data.sap={sap}", f"data.frames={frames}", "planner.model=none", "data.validation=0.5")
    lesson = teaching(load_training(None, settings))
    assert {lesson.samples[0].question.video, lesson.held_out[0].question.video} == {"VID02", "VID70"}
    assert lesson.examples and lesson.validation
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ConfigError, match=r"data\.frames has nothing of the 10 s before any training sample"):
        teaching(load_training(None, (*settings, f"data.frames={tmp_path / 'nothing'}")))


def test_a_plan_s_answer_meets_the_schema_of_run_time_with_the_target_first(sap: Path) -> None:
    for example in examples(training_samples(sap), factory(**TEXT), tasks=("plan",)):
        said = checked(example.answer, example.choices)
        assert said.ranked[0][0] == example.target and len(said.ranked) == 3
        assert all(why for _, why in said.ranked) and said.progress and said.safety
        assert list(json.loads(example.answer)["ranked"][0]) == ["action", "why"], "the label comes before its reason"


def test_recognition_does_not_tell_what_it_asks(sap: Path) -> None:
    found = training_samples(sap)
    made = examples(found, factory(), tasks=("recognise",), pictures=pictures)
    assert len(made) == len(found)
    for sample, example in zip(found, made, strict=True):
        assert example.target == sample.question.current == example.choices[CODES.index(example.answer)]
        assert "no action has been recognised yet" in text_of(example) and len(example.choices) == 5


def test_captions_are_taught_where_somebody_wrote_one_and_never_made_up(sap: Path) -> None:
    found = training_samples(sap)
    assert examples(found, factory(), tasks=("caption",), pictures=pictures) == []
    made = examples(
        found, factory(), tasks=("caption",), pictures=pictures, captions=lambda q: "hook" if q.video == "VID01" else ""
    )
    assert {(example.video, example.answer) for example in made} == {("VID01", "hook")}


@pytest.mark.parametrize("task", TASKS)
def test_each_task_can_be_left_out(sap: Path, task: str) -> None:
    rest = tuple(other for other in TASKS if other != task)
    made = examples(training_samples(sap), factory(), tasks=rest, pictures=pictures, captions=lambda _: "hook")
    assert {example.task for example in made} == set(rest)


# ------------------------------------------------------------------------------------------------- orders and noise


def test_with_all_orders_each_action_stands_once_in_each_place(sap: Path) -> None:
    made = examples(training_samples(sap)[:1], factory(**TEXT), orders=4)
    assert len(made) == 4
    for place in range(4):
        assert len({example.choices[place] for example in made}) == 4
    assert sorted(example.answer for example in made) == list("ABCD")


def test_the_seed_decides_the_orders(sap: Path) -> None:
    found = training_samples(sap)
    first, again, other = ([e.choices for e in examples(found, factory(**TEXT), seed=seed)] for seed in (1, 1, 2))
    assert first == again != other


def test_asked_in_one_order_at_run_time_a_code_is_always_the_same_action(sap: Path) -> None:
    alone = factory(**TEXT, permutations=1, question="coded")
    for example in examples(training_samples(sap), alone):
        assert example.choices == PACK.action_names
        assert example.answer == CODES[PACK.action_names.index(example.target)]
    asked = {e.choices for e in examples(training_samples(sap), factory(**TEXT, question="coded"))}
    assert len(asked) > 1


def test_orders_that_run_time_never_asks_in_are_not_taught(sap: Path) -> None:
    given = [
        f"data.sap={sap}",
        "planner.model=none",
        "planner.form=indirect",
        "planner.memory=labels_only",
        "data.orders=4",
    ]
    assert load_training(None, given).data.orders == 4
    with pytest.raises(ConfigError, match=r"set data\.orders=1"):
        load_training(None, [*given, "planner.permutations=1"])


def test_noise_is_the_recogniser_s_and_spares_the_nearest_label(sap: Path) -> None:
    """The made-up recogniser calls every coagulation a retraction."""
    found = training_samples(sap)
    mistakes = confusion(training_videos(sap))
    assert mistakes["Coagulation"] == {"Tissue Retraction": 4}
    for noise, there in ((0.0, True), (1.0, False)):
        made = examples(found, factory(**TEXT), noise=noise, mistakes=mistakes)
        distant = {clip.action for example in made for clip in example.memory.clips}
        assert ("Coagulation" in distant) == there
        assert [example.memory.current for example in made] == [sample.question.current for sample in found]
    with pytest.raises(ConfigError, match="VID73"):
        confusion({"VID73": clips("VID73", *DONE)})


def test_earlier_plans_are_told_with_what_came(sap: Path) -> None:
    last = training_samples(sap, only=["VID01"])[-1]
    [told], [silent] = (examples([last], factory(**TEXT), earlier_plans=flag) for flag in (True, False))
    assert "Your earlier plans" not in text_of(silent)
    assert "During Coagulation you expected" in text_of(told) and "; Dissection came." in text_of(told)
    assert last.target not in text_of(told).partition("Your earlier plans")[2].partition("Which")[0].rpartition(";")[2]


def test_the_split_is_by_whole_videos(sap: Path) -> None:
    found = training_samples(sap)
    fitted, held_out = split_by_video(found, share=0.25, seed=3)
    first, second = ({sample.question.video for sample in part} for part in (fitted, held_out))
    assert not first & second and len(second) == 1 and len(fitted) + len(held_out) == len(found)
    assert split_by_video(found, share=0.0, seed=3) == (found, [])
    with pytest.raises(ConfigError, match="cannot be split"):
        split_by_video([s for s in found if s.question.video == "VID01"], share=0.5, seed=0)


def test_a_conversation_marks_its_pictures(sap: Path) -> None:
    [example] = examples(training_samples(sap)[:1], factory(), pictures=pictures)
    told = messages(example)
    assert [turn["role"] for turn in told] == ["system", "user", "assistant"]
    assert sum(turn["content"].count("<image>") for turn in told) == len(pictures_of(example)) == 1
    assert told[-1]["content"] == example.answer
    assert isinstance(pictures_of(example)[0], Picture)


def test_the_sample_without_history_is_asked_with_all_choices() -> None:
    """VID110 of CholecT50-SAP has one."""
    nothing = Sample(Question("VID110", (), (), 30), 0, "Dissection", "", ("Dissection",), (1,))
    [example] = examples([nothing], factory(**TEXT))
    assert len(example.choices) == 5 and "none" in text_of(example)
