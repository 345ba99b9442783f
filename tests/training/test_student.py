"""A student on tiny random models: it takes over what a teacher wrote and believed, from the teacher's server to the adapter."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from stream_agent.config import load_tree
from stream_agent.errors import BackendError, ConfigError
from stream_agent.training.distill import RESPONSES, DistillTraining, Response, Responses, read_responses
from tests.training.made_up import code_scores, tiny_training
from tests.training.test_distill import FakeTeacher

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from stream_agent.training import student  # noqa: E402
from stream_agent.training.commands import train as commands  # noqa: E402
from stream_agent.training.teaching import teaching  # noqa: E402
from tests.planner.backends import tiny_models  # noqa: E402

# The libraries warn of each other's names, and torch of its own parts when they are imported.
pytestmark = [
    pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning", "default::UserWarning"),
]


OWN = {
    "data.tasks": "[rank, plan]",
    "distill.captions": 0,
    "lora.dropout": 0,
    "optimiser.max_steps": 10,
    "stopping.every_steps": 100,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("qwen2", tmp_path_factory.mktemp("models") / "tiny")


def overrides(folder: Path, model: Path, **over: Any) -> list[str]:
    return tiny_training(folder, model, OWN, over)


def configured(folder: Path, model: Path, **over: Any) -> DistillTraining:
    return load_tree(DistillTraining, None, overrides(folder, model, **over))


@pytest.fixture
def teacher() -> Iterator[FakeTeacher]:
    """A server in a thread of its own, as the command meets it."""
    server, loop = FakeTeacher(), asyncio.new_event_loop()
    ready, ended = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with server:
            ready.set()
            await ended.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(10)
    yield server
    loop.call_soon_threadsafe(ended.set)
    thread.join(10)
    loop.close()


def written(config: DistillTraining, folder: Path, *, sure: float) -> list[Response]:
    """Answers as a teacher would leave them: every plan right, every belief `sure` of the truth."""
    book = Responses(folder, teacher="a", prompts="1")
    actions = teaching(config).pack.action_names
    for example in teaching(config).examples:
        if example.task != "plan":
            continue
        rest = (1 - sure) / (len(example.choices) - 1)
        belief = dict.fromkeys(actions, 0.0) | dict.fromkeys(example.choices, rest) | {example.target: sure}
        book.add(
            Response(
                video=example.video,
                index=example.index,
                task="plan",
                text=example.answer.replace("After", "Since"),
                belief=belief,
            )
        )
    return list(book.found.values())


def test_from_the_teacher_s_server_to_an_adapter_by_one_command(
    teacher: FakeTeacher, model: Path, tmp_path: Path
) -> None:
    """Asked over a socket, verified, taught; a second run asks nothing again."""
    given = overrides(tmp_path, model, distill__teacher__kind="openai", distill__teacher__endpoint=teacher.url)
    answer = CliRunner().invoke(
        commands, ["distill", "--out", str(tmp_path / "adapter"), *given], catch_exceptions=False
    )
    assert answer.exit_code == 0, answer.output
    rows = read_responses(tmp_path / "adapter.responses" / RESPONSES)
    assert 0 < sum(row.kept for row in rows) < len(rows)
    assert "kept" in answer.output
    assert "label" in answer.output
    record = json.loads((tmp_path / "adapter" / "record.json").read_text())
    assert record["responses"]["kept"] == sum(row.kept for row in rows)
    assert record["losses"][-1] < record["losses"][0]
    asked = len(teacher.seen)
    CliRunner().invoke(commands, ["distill", "--ask-only", "--out", str(tmp_path / "adapter"), *given])
    again = [
        message for message in teacher.seen[asked:] if "ranked" in json.dumps(message.get("structured_outputs", ""))
    ]
    assert not again


def test_the_student_takes_over_the_teacher_s_belief(model: Path, tmp_path: Path) -> None:
    """With soft targets alone the divergence falls, and its belief in the truth comes nearer to the teacher's."""
    config = configured(tmp_path, model, data__tasks="[rank]", distill__soft_weight=1, optimiser__max_steps=20)
    plans = configured(tmp_path, model, data__tasks="[plan]")
    written(plans, tmp_path / "adapter.responses", sure=0.7)
    record = student.train(config, tmp_path / "adapter", say=lambda _line: None)
    assert np.mean(record["losses"][-4:]) < 0.5 * np.mean(record["losses"][:4])
    asked = teaching(config).examples
    scores = code_scores(model, {"student": tmp_path / "adapter"}, asked)
    truth = [example.choices.index(example.target) for example in asked]

    def belief(name: str) -> float:
        rows = np.exp(scores[name]) / np.exp(scores[name]).sum(1, keepdims=True)
        return float(np.abs(rows[np.arange(len(truth)), truth] - 0.7).mean())

    assert belief("student") < belief("") - 0.05
    assert (scores["student"].argmax(1) != scores[""].argmax(1)).any()


def test_what_the_teacher_wrote_is_what_is_learnt(model: Path, tmp_path: Path) -> None:
    config = configured(tmp_path, model)
    rows = written(config, tmp_path / "responses", sure=0.7)
    lesson = teaching(config)
    lessons = student.taught(lesson, rows[1:])
    left_out = (rows[0].video, rows[0].index)
    assert left_out not in {(one.example.video, one.example.index) for one in lessons}
    plans = [one for one in lessons if one.example.task == "plan"]
    assert len(plans) == len(rows) - 1
    assert all("Since" in one.example.answer for one in plans)
    for one in lessons:
        if one.example.task == "rank":
            assert sum(one.belief) == pytest.approx(1)
            assert one.belief[one.example.choices.index(one.example.target)] == pytest.approx(0.7)


def test_the_soft_loss_against_a_case_worked_by_hand() -> None:
    """Teacher (3/4, 1/4), student (1/2, 1/2): 3/4 ln 3/2 + 1/4 ln 1/2; rows without a belief count for nothing."""
    beliefs = torch.tensor([[0.75, 0.25, 0.0], [0.0, 0.0, 0.0]])
    logits = torch.tensor([[2.0, 2.0, 9.0], [1.0, 5.0, 2.0]])
    wanted = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    assert student.soft_loss(logits, beliefs, 1.0).item() == pytest.approx(wanted, rel=1e-5)
    # At T = 2 the teacher's odds 3 become sqrt 3.
    odds = np.sqrt(3)
    p = odds / (1 + odds)
    softer = 4 * (p * np.log(2 * p) + (1 - p) * np.log(2 * (1 - p)))
    assert student.soft_loss(logits, beliefs, 2.0).item() == pytest.approx(softer, rel=1e-5)
    assert student.soft_loss(logits, torch.zeros(2, 3), 1.0).item() == 0


def test_a_student_without_answers_says_so(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="responses"):
        student.train(configured(tmp_path, model), tmp_path / "adapter")
    with pytest.raises(ConfigError, match=r"distill\.teacher is unset"):
        student.ask(configured(tmp_path, model), tmp_path / "responses")
    Responses(tmp_path / "other.responses", teacher="a", prompts="1")
    with pytest.raises(ConfigError, match="nothing that was kept"):
        student.train(configured(tmp_path, model), tmp_path / "other")


def test_the_preset_loads_with_what_a_user_adds() -> None:
    config = load_tree(DistillTraining, Path("train_distill.yaml"), ["data.sap=x", "planner.model=m", "data.frames=f"])
    assert (config.distill.plans, config.distill.captions) == (63, 55)


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ("http://nowhere.invalid:8000/v1", "distill.teacher.plaintext=true"),
        ("http://127.0.0.1:9/v1", "no server of distill.teacher.endpoint answers"),
    ],
)
def test_a_teacher_that_cannot_be_asked_is_told_by_the_keys_of_the_training(
    model: Path, tmp_path: Path, endpoint: str, said: str
) -> None:
    """It was told by the agent's keys, planner.endpoint and planner.plaintext, which are the student's here."""
    given = overrides(tmp_path, model, distill__teacher__kind="openai", distill__teacher__endpoint=endpoint)
    config = load_tree(DistillTraining, None, given)
    with pytest.raises((ConfigError, BackendError), match=re.escape(said)):
        student.ask(config, tmp_path / "responses", say=lambda _: None)
