"""Ablations with a rehearsed model: what is asked, of whom, what is skipped and why, and what is written."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stream_agent import cli
from stream_agent.config import load_config
from stream_agent.evaluation.ablation import Ablation, Answered, Skipped, Study, Variant, ablations, mislabelled
from stream_agent.evaluation.ablation_report import rows
from stream_agent.evaluation.dataset import ACTIONS, TEST_VIDEOS, SapClip
from stream_agent.evaluation.model_beliefs import LanguageModel
from stream_agent.evaluation.samples import Question
from stream_agent.evaluation.triplets import encode_videos
from stream_agent.planner.backends.rehearsed import RehearsedBackend
from stream_agent.procedure import load_pack

Made = dict[str, tuple[SapClip, ...]]
PACK = load_pack(Path("cholecystectomy"))
CHEAP = ("planner.kind=rehearsed", "planner.memory=labels_only", "planner.knowledge=none", "planner.permutations=1")


@pytest.fixture
def study(made_videos: Made) -> Study:
    chosen = {name: made_videos[name] for name in sorted(made_videos)[:8]}
    return Study(config=load_config(None, CHEAP), pack=PACK, videos=chosen, presence={}, tell=lambda _: None)


def answers(study: Study, variants: Sequence[Variant]) -> list[Answered | Skipped]:
    async def run() -> list[Answered | Skipped]:
        try:
            return [await study.answer(variant) for variant in variants]
        finally:
            await study.close()

    return asyncio.run(run())


def prompts_of(study: Study) -> list[str]:
    """The last prompt of each ranking that the study's model was asked for."""
    assert study._alive is not None
    backend = study._alive[1]._backend
    assert isinstance(backend, RehearsedBackend)
    return [
        "".join(part for message in prompts[-1].messages for part in message.parts if isinstance(part, str))
        for _, _, prompts in backend.calls
    ]


def test_every_variant_is_answered_or_says_why_not(study: Study) -> None:
    for name, ablation in ablations((), {}).items():
        done = answers(study, ablation.variants)
        for variant, one in zip(ablation.variants, done, strict=True):
            if isinstance(one, Skipped):
                assert variant.frames and "--frames" in one.reason, (name, one.reason)
            else:
                assert len(one.samples) == len(one.beliefs) > 0
                np.testing.assert_allclose(one.beliefs.sum(1), 1)
                for sample, belief in zip(one.samples, one.beliefs, strict=True):
                    assert belief[ACTIONS.index(sample.question.current or "")] == 0


def test_variants_ask_the_same_samples_in_other_words(study: Study) -> None:
    done = answers(study, ablations((), {})["knowledge"].variants)
    assert len({one.prompt for one in done if isinstance(one, Answered)}) == 3
    assert (
        len({tuple((s.question.video, s.index) for s in one.samples) for one in done if isinstance(one, Answered)}) == 1
    )


def test_nothing_is_asked_twice(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    own = LanguageModel.ask

    async def counted(self: LanguageModel, samples: Any, config: Any, **given: Any) -> Any:
        asked.append(config.memory)
        return await own(self, samples, config, **given)

    monkeypatch.setattr(LanguageModel, "ask", counted)
    made = ablations((), {})
    answers(study, (*made["fusion"].variants, *made["label_noise"].variants[:1], *made["permutations"].variants[1:2]))
    assert len(asked) == 1, "three mixtures of one belief, and two settings that are the study's own"


def test_a_text_model_skips_what_needs_eyes(study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = RehearsedBackend.start

    async def blind(self: RehearsedBackend) -> Any:
        return dataclasses.replace(await own(self), pictures=False)

    monkeypatch.setattr(RehearsedBackend, "start", blind)
    study.frames = tmp_path
    [skipped] = answers(study, [Variant("frames", ("planner.memory=near_only",), frames=True)])
    assert isinstance(skipped, Skipped) and "text model" in skipped.reason


def test_frames_are_shown_and_only_training_videos_are_opened(study: Study, made_videos: Made, tmp_path: Path) -> None:
    import cv2

    name = next(name for name in sorted(study.videos) if name not in TEST_VIDEOS)
    other = next(name for name in sorted(made_videos) if name in TEST_VIDEOS)
    study.videos = {name: made_videos[name], other: made_videos[other]}
    for video in (name, other):
        (tmp_path / video).mkdir()
        for second in range(0, 200, 5):
            cv2.imwrite(str(tmp_path / video / f"{second:06d}.png"), np.full((60, 80, 3), second, np.uint8))
    study.frames = tmp_path
    done = answers(study, ablations((), {})["resolution"].variants)
    assert all(isinstance(one, Answered) for one in done)
    for one in done:
        assert isinstance(one, Answered)
        assert {sample.question.video for sample in one.samples} == {name}


def test_earlier_plans_are_told_with_what_came_and_end_with_the_video(study: Study) -> None:
    async def run() -> list[str]:
        await study.answer(ablations((), {})["previous_plan"].variants[1])
        found = prompts_of(study)
        await study.close()
        return found

    found = asyncio.run(run())
    told = ["Your earlier plans" in prompt for prompt in found]
    assert told[:2] == [False, True]
    assert told.count(False) == len(study.videos), "the first sample of each"
    assert max(prompt.count("you expected") for prompt in found) == 3


def test_with_adapters_test_videos_alone_are_asked(study: Study, tmp_path: Path) -> None:
    made = ablations((), {"plan": tmp_path})["mixed_tasks"]
    done = answers(study, made.variants)
    inside = TEST_VIDEOS & study.videos.keys()
    assert inside
    for one in done:
        assert isinstance(one, Answered)
        assert {sample.question.video for sample in one.samples} == inside
    study.videos = {name: clips for name, clips in study.videos.items() if name not in TEST_VIDEOS}
    assert all(isinstance(one, Skipped) for one in answers(study, made.variants))


def test_wrong_labels_stay_the_same_ones_and_grow_with_the_share() -> None:
    labels = tuple(ACTIONS[at % 5] for at in range(40))
    question = Question("VID01", labels, tuple(range(40)), 99)
    few, many = (mislabelled(question, share, ACTIONS).labels for share in (0.2, 0.4))
    wrong = [{at for at in range(40) if given[at] != labels[at]} for given in (few, many)]
    assert wrong[0] < wrong[1]
    assert all(few[at] == many[at] for at in wrong[0])
    assert few[-1] == many[-1] == labels[-1], "the current action is known"
    later = mislabelled(Question("VID01", labels[:20], tuple(range(20)), 50), 0.4, ACTIONS)
    assert later.labels[:19] == many[:19], "a clip is taken for the same other action whenever it is told of"
    assert sum(len(w) for w in wrong) > 8


def test_a_difference_is_taken_on_the_samples_of_both(study: Study) -> None:
    done = answers(study, ablations((), {})["permutations"].variants[:2])
    first, second = done
    assert isinstance(first, Answered) and isinstance(second, Answered)
    part = Answered(second.variant, second.samples[:9], second.beliefs[:9], second.prompt)
    told = rows([first, part], ACTIONS)
    assert "against_first" not in told[0]
    assert told[1]["against_first"]["n"] == 9 and told[1]["n"] == 9
    skipped = rows([Skipped(first.variant, "because"), first, part], ACTIONS)
    assert skipped[0] == {"variant": first.variant.name, "skipped": "because"}
    assert "against_first" not in skipped[1] and "against_first" in skipped[2]


# ---------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def sap(tmp_path: Path, made_videos: Made) -> Path:
    path = tmp_path / "sap.json"
    path.write_bytes(encode_videos({name: made_videos[name] for name in sorted(made_videos)[:6]}))
    return path


def call(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main([str(argument) for argument in arguments])
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


def test_ablate_writes_a_table_and_a_figure_each(sap: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    chosen = ("memory", "permutations", "fusion", "model_size")
    assert call("ablate", "--sap", sap, "--out", out, *(f"--only={name}" for name in chosen), *CHEAP) == 0
    assert {path.name for path in out.iterdir()} == {
        "report.md",
        "results.json",
        "memory.png",
        "permutations.png",
        "fusion.png",
    }
    found = json.loads((out / "results.json").read_text())
    assert [one["name"] for one in found["ablations"]] == list(chosen), "in the order that was asked for"
    by_name = {one["name"]: one for one in found["ablations"]}
    assert len(by_name["fusion"]["variants"]) == 4
    assert by_name["model_size"]["variants"] == []
    report = (out / "report.md").read_text()
    assert "planner.permutations=1" in report and "run_agent.py ablate" in report
    assert "not asked, no frames are given (--frames)" in report
    assert "name the models with --model" in report


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (("--only", "colour"), "--only colour: no such ablation; there are memory"),
        (("--videos", "VID99"), "--videos VID99: no such video"),
        (("--adapter", "plan"), "--adapter plan is not NAME=DIR"),
        (("planner.kind=none",), "planner.kind=none is no language model"),
    ],
)
def test_wrong_arguments_are_one_line(
    sap: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], complaint: str
) -> None:
    pytest.importorskip("matplotlib")
    assert call("ablate", "--sap", sap, "--out", tmp_path / "out", *CHEAP, *more) == 2
    told = capsys.readouterr().err
    assert complaint in told and len(told.splitlines()) == 1


def test_one_ablation_is_one_question() -> None:
    for name, ablation in ablations((Path("a"), Path("b")), {"x": Path("c")}).items():
        assert isinstance(ablation, Ablation) and ablation.name == name
        assert (
            ablation.question.endswith("?") and len({v.name for v in ablation.variants}) == len(ablation.variants) > 1
        )
