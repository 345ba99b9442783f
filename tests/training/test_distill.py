"""A teacher over a real socket: what it writes is verified, kept or refused with reasons, and a killed run goes on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stream_agent.config import BackendConfig, PlannerConfig
from stream_agent.errors import BackendError, ConfigError
from stream_agent.evaluation.dataset import INSTRUMENTS, SapClip
from stream_agent.evaluation.samples import Question, Sample, samples
from stream_agent.messages import NearPicture
from stream_agent.planner.backends import build_backend
from stream_agent.procedure import ProcedurePack, load_pack
from stream_agent.prompts import PromptFactory
from stream_agent.training.distill import (
    CAPTIONS,
    RESPONSES,
    DistillConfig,
    Responses,
    Teacher,
    caption_objections,
    read_responses,
)
from stream_agent.training.near_frames import NearCaptions
from tests.planner.backends.fake_server import FakeServer

_ACTIONS = (
    "Tissue Retraction",
    "Dissection",
    "Vessel Clipping",
    "Dissection",
    "Aspiration",
    "Coagulation",
    "Dissection",
)
CAPTION = "A hook lifts the peritoneum."


@dataclass
class FakeTeacher(FakeServer):
    """Puts the first choice of every question first, and describes every frame alike."""

    caption: str = CAPTION
    unsound: bool = False

    async def _stream(self, asked: Mapping[str, Any], writer: asyncio.StreamWriter) -> str:
        schema = (asked.get("structured_outputs") or {}).get("json")
        if schema is not None and "ranked" in schema["properties"]:
            names = schema["properties"]["ranked"]["items"]["properties"]["action"]["enum"][:3]
            said = {
                "ranked": [{"action": name, "why": "it is seen"} for name in names],
                "progress": "x",
                "safety": ["y"],
            }
            text = "{" if self.unsound else json.dumps(said)
        elif any(isinstance(message["content"], list) for message in asked["messages"]):
            text = self.caption
        else:
            return await super()._stream(asked, writer)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for start in range(0, len(text), 16):
            delta = {"delta": {"content": text[start : start + 16]}, "finish_reason": None}
            await self._event(writer, {"choices": [delta]})
        await self._event(writer, {"choices": [{"delta": {}, "finish_reason": "stop"}]})
        await self._chunk(writer, "data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return "keep"


def clips(video: str) -> tuple[SapClip, ...]:
    shift = int(video.removeprefix("VID")) % 3
    return tuple(
        SapClip(video, index, 90 * index, action, action, is_sample=index > 0, next_action="")
        for index, action in enumerate(_ACTIONS[shift:])
    )


def questions(*videos: str) -> list[Sample]:
    return [s for video in videos for s in samples(clips(video), track="causal", history="ground_truth")]


def seen(question: Question) -> tuple[NearPicture, ...]:
    pixels = bytes([question.now_s % 251]) * (56 * 56 * 3)
    return (NearPicture(seq=question.now_s, pts_s=0.0, action=None, width=56, height=56, rgb=pixels),)


@pytest.fixture(scope="module")
def pack() -> ProcedurePack:
    return load_pack(Path("cholecystectomy"))


async def taught(
    server: FakeServer, pack: ProcedurePack, folder: Path, asked: Sequence[Sample], **config: Any
) -> tuple[Responses, list[str]]:
    planner = PlannerConfig(form="indirect") if config.get("captions") else PlannerConfig(memory="labels_only")
    factory = PromptFactory(pack, planner)
    backend = build_backend(BackendConfig(kind="openai", endpoint=server.url))
    lines: list[str] = []
    try:
        able = await backend.start()
        book = Responses(folder, teacher=able.model, prompts=factory.digest)
        teacher = Teacher(backend, factory, DistillConfig(**{"captions": 0, **config}), planner, name=able.model)
        await teacher.teach(asked, book, pictures=seen if config.get("captions") else None, told=lines.append)
    finally:
        await backend.close()
    return book, lines


def test_only_right_and_allowed_plans_are_kept_and_the_rest_counted_with_reasons(
    pack: ProcedurePack, tmp_path: Path
) -> None:
    """The teacher always names the first choice, which is Dissection unless that is going on, and Vessel Clipping then."""
    asked = questions("VID01", "VID02", "VID04")

    async def run() -> Responses:
        async with FakeTeacher() as server:
            return (await taught(server, pack, tmp_path, asked))[0]

    book = asyncio.run(run())
    assert len(book.found) == len(asked)
    for sample in asked:
        row = book.found["plan", sample.question.video, sample.index]
        first = "Vessel Clipping" if sample.question.current == "Dissection" else "Dissection"
        assert row.kept == (first == sample.target), row
        assert row.kept or row.reasons == ("label",)
        assert not row.belief or max(row.belief, key=row.belief.__getitem__) == sample.target
        assert not row.belief or sum(row.belief.values()) == pytest.approx(1)
    kept = sum(row.kept for row in book.found.values())
    assert 0 < kept < len(asked)
    assert f"kept {kept}" in book.tally()
    assert f"label: {len(asked) - kept}" in book.tally()
    assert read_responses(tmp_path / RESPONSES) == list(book.found.values())


def test_a_right_plan_that_breaks_a_rule_is_left_out(pack: ProcedurePack, tmp_path: Path) -> None:
    """Ten seconds of dissection, then a clip: the annotation has it, the pack's rule does not want it learnt."""
    asked = [s for s in questions("VID01") if s.target == "Vessel Clipping"]
    [hasty] = [replace(s, question=replace(s.question, starts_s=(0,), now_s=10)) for s in asked]
    assert hasty.question.labels == ("Dissection",)

    async def run() -> Responses:
        async with FakeTeacher() as server:
            return (await taught(server, pack, tmp_path, [hasty]))[0]

    [row] = asyncio.run(run()).found.values()
    assert row.reasons == ("dissection-long-enough",)


def test_what_does_not_meet_the_schema_is_left_out(pack: ProcedurePack, tmp_path: Path) -> None:
    async def run() -> Responses:
        async with FakeTeacher(unsound=True) as server:
            return (await taught(server, pack, tmp_path, questions("VID01")))[0]

    assert {row.reasons for row in asyncio.run(run()).found.values()} == {("format",)}


def test_the_budget_counts_what_is_kept(pack: ProcedurePack, tmp_path: Path) -> None:
    asked = questions("VID01", "VID02", "VID04", "VID05", "VID13")

    async def run() -> Responses:
        async with FakeTeacher() as server:
            return (await taught(server, pack, tmp_path, asked, plans=3))[0]

    book = asyncio.run(run())
    assert len(book.kept("plan")) == 3
    assert 3 < len(book.found) < len(asked)


def test_captions_come_first_and_are_what_the_plan_is_asked_with(pack: ProcedurePack, tmp_path: Path) -> None:
    asked = questions("VID01")

    async def run() -> tuple[Responses, list[dict[str, Any]]]:
        async with FakeTeacher() as server:
            return (await taught(server, pack, tmp_path, asked, captions=2))[0], server.seen

    book, sent = asyncio.run(run())
    assert [row.text for row in book.kept("caption")] == [CAPTION] * 2
    plans = [
        message["messages"][-1]["content"] for message in sent if message.get("structured_outputs", {}).get("json")
    ]
    about = [text for text in plans if isinstance(text, str) and "Which actions come next" in text]
    assert len(about) == 2, "without a frame or its caption the lanes would not ask"
    assert all(CAPTION in text for text in about)
    path = book.write_captions()
    assert path == tmp_path / CAPTIONS
    captioned = {(row.video, row.index) for row in book.kept("caption")}
    told = NearCaptions(path)
    for sample in asked:
        assert told(sample.question) == (CAPTION if (sample.question.video, sample.index) in captioned else "")


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        (CAPTION, []),
        ("A grasper holds the gallbladder, the hook dissects.", ["absent Grasper"]),
        ("Clips are set with a clip applier.", ["absent Clipper"]),
        ("The hook dissects along the", ["cut off"]),
        ("", ["empty"]),
    ],
)
def test_a_caption_must_be_whole_and_name_no_absent_instrument(text: str, reasons: list[str]) -> None:
    present = np.array([name == "Hook" for name in INSTRUMENTS], dtype=np.uint8)
    assert list(caption_objections(text, present)) == reasons


def test_a_killed_run_goes_on_where_it_was(pack: ProcedurePack, tmp_path: Path) -> None:
    """The last line may be half written; what stands before it is not asked again."""
    asked = questions("VID01", "VID02")

    async def run() -> tuple[Responses, int]:
        async with FakeTeacher() as server:
            book = (await taught(server, pack, tmp_path, asked))[0]
            return book, sum(bool(message.get("stream")) for message in server.seen)

    whole, streamed = asyncio.run(run())
    path = tmp_path / RESPONSES
    complete = path.read_bytes()
    lines = complete.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]) + lines[4][:20])
    again, streamed_again = asyncio.run(run())
    assert again.found == whole.found
    assert path.read_bytes() == complete
    assert streamed - streamed_again == 3, "three answers stood in the file"


def test_a_failing_teacher_ends_the_run_and_loses_nothing(pack: ProcedurePack, tmp_path: Path) -> None:
    asked = questions("VID01", "VID02")

    async def run() -> None:
        async with FakeTeacher() as server:
            factory = PromptFactory(pack, PlannerConfig(memory="labels_only"))
            backend = build_backend(BackendConfig(kind="openai", endpoint=server.url, retries=0))
            try:
                able = await backend.start()
                book = Responses(tmp_path, teacher=able.model, prompts=factory.digest)
                teacher = Teacher(backend, factory, DistillConfig(plans=2), factory.config, name=able.model)
                await teacher.teach(asked, book)
                server.modes.add("error_500")
                await Teacher(backend, factory, DistillConfig(), factory.config, name=able.model).teach(asked, book)
            finally:
                await backend.close()

    with pytest.raises(BackendError):
        asyncio.run(run())
    assert sum(row.kept for row in read_responses(tmp_path / RESPONSES)) == 2


def test_answers_of_two_teachers_are_not_mixed(tmp_path: Path) -> None:
    Responses(tmp_path, teacher="a", prompts="1")
    Responses(tmp_path, teacher="a", prompts="1")
    for teacher, prompts in (("b", "1"), ("a", "2")):
        with pytest.raises(ConfigError, match="give another --out"):
            Responses(tmp_path, teacher=teacher, prompts=prompts)


def test_a_test_video_is_neither_asked_about_nor_read(pack: ProcedurePack, tmp_path: Path) -> None:
    async def run() -> None:
        async with FakeTeacher() as server:
            await taught(server, pack, tmp_path / "asked", questions("VID73"))

    with pytest.raises(ConfigError, match="VID73"):
        asyncio.run(run())
    Responses(tmp_path, teacher="a", prompts="1")
    with (tmp_path / RESPONSES).open("a") as file:
        file.write('{"video": "VID73", "index": 1, "task": "plan", "text": "{}"}\n')
    with pytest.raises(ConfigError, match="VID73"):
        read_responses(tmp_path / RESPONSES)


@pytest.mark.parametrize(
    "content", [b"", b"nonsense\n", b'{"teacher": 1}\n', b'{"teacher": "a", "prompts": "1"}\n{}\n']
)
def test_a_damaged_file_is_refused_with_its_remedy(tmp_path: Path, content: bytes) -> None:
    (tmp_path / RESPONSES).write_bytes(content)
    with pytest.raises(ConfigError, match="remove it, or name another"):
        read_responses(tmp_path / RESPONSES)
