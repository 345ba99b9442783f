"""Parts of the single benchmarks, and the quickest real one through the command."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from benchmarks import inputs, planner
from benchmarks.histories import HISTORIES, drawn_memory
from benchmarks.prompting import prompt_renderer, stable_share
from stream_agent import cli
from stream_agent.config import load_config
from stream_agent.planner.backends import build_backend
from stream_agent.procedure import load_pack


def test_the_stable_share_is_that_of_the_common_beginning() -> None:
    assert stable_share("abcd", "abxy") == 0.5
    assert stable_share("ab", "abcd") == 0.5
    assert stable_share("abcd", "abcd") == 1.0
    assert stable_share("", "") == 0.0


def test_two_moments_of_a_case_share_most_of_their_prompt_and_not_the_picture() -> None:
    pack = load_pack(Path("cholecystectomy"))
    render = prompt_renderer(pack)
    before, after = (render(planner._moment(pack, 0, index)) for index in (0, 1))
    assert 0.5 < stable_share(before, after) < 1.0
    assert before.count("<picture") == 1
    assert before.partition("<picture")[2] != after.partition("<picture")[2]


@pytest.mark.parametrize("case", HISTORIES)
def test_a_drawn_history_has_the_clips_it_is_asked_for(case: str) -> None:
    pack = load_pack(Path("cholecystectomy"))
    clips, folded = HISTORIES[case]
    memory = drawn_memory(pack, clips=clips, folded=folded, seed=3)
    assert len(memory.clips) == clips
    assert bool(memory.folded) == bool(folded)
    assert memory.current is not None and memory.near is not None


def test_a_video_holds_the_pictures_it_is_asked_for(tmp_path: Path) -> None:
    import av

    kind = inputs.Kind(128, 96, 30, "libx264", 200_000)
    inputs.write_video(tmp_path / "video.mp4", kind, pictures=10, seconds=1.0)
    with av.open(str(tmp_path / "video.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 30


def answers_of(settings: list[str], load: planner.Load) -> planner.Answers:
    config = load_config(None, ["planner.kind=rehearsed", *settings]).planner

    async def ask() -> planner.Answers:
        backend = build_backend(config)
        await backend.start()
        try:
            return await planner._ask(backend, load_pack(Path("cholecystectomy")), config, load, 1.0)
        finally:
            await backend.close()

    return asyncio.run(ask())


def test_every_due_request_is_an_answer_or_a_miss_and_latency_counts_from_when_it_was_due() -> None:
    answers = answers_of(["planner.rehearsed_scores=[{delay_s: 0.05}]"], planner.Load(3))
    assert (answers.due, answers.missed) == (6, 0)
    assert all(latency >= 50 for latency in answers.latencies_ms)


def test_a_request_that_passes_its_deadline_is_aborted_and_missed() -> None:
    settings = ["planner.rehearsed_scores=[{behaviour: hang}, {delay_s: 0.01}]", "planner.deadline_ms=200"]
    answers = answers_of(settings, planner.Load(1))
    assert (answers.due, answers.missed) == (2, 1)


def test_an_engine_that_fails_is_missed_with_its_reason() -> None:
    answers = answers_of(["planner.rehearsed_scores=[{behaviour: oom}]"], planner.Load(1))
    assert answers.missed == 2
    assert answers.failed == {"CUDA out of memory (rehearsed)": 2}


def test_a_load_is_named_by_what_it_asks() -> None:
    assert planner.Load(1).named("vllm") == "vllm_1_stream"
    assert planner.Load(8, reuse=False).named("vllm") == "vllm_8_streams_no_reuse"
    assert planner.Load(2, permutations=1, rationales=True).named("tiny") == "tiny_2_streams_1_order_with_rationales"


@pytest.mark.timeout(240)
def test_the_quickest_real_benchmark_runs_through_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """The exit code may be 1 on a slow machine: targets are not what is tested here."""
    with pytest.raises(SystemExit):
        cli.main(["bench", "planner", "--quick", "--guard"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    rank = next(row for row in result["rows"] if row["case"] == "rehearsed_1_stream" and row["method"] == "rank")
    assert rank["p50_ms"] >= 30
    assert rank["missed_share"] == 0
    assert {row["method"] for row in result["rows"]} >= {"rank", "rationale_first_piece", "rationale_next_piece"}
