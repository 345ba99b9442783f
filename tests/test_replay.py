"""A recorded session once more: the same decisions, or the first that differs."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stream_agent.config import overridden
from stream_agent.errors import ConfigError
from stream_agent.messages import ClipEvent, Hashes, Plan, PlanRequest
from stream_agent.procedure import load_pack
from stream_agent.prompts import PromptFactory
from stream_agent.recording.mcap_file import Entry
from stream_agent.recording.playback import tell_what_if
from stream_agent.recording.reader import RecordingFile
from stream_agent.recording.records import Choice, Commanded, Finish, FrameRecord
from stream_agent.replay import Replay, differing, what_if
from stream_agent.sinks.dashboard.control import Command, Line, NewCase, Pause, SetGoal
from tests.recording.sessions import REPOSITORY, SMALL, command, environment, record, run, tell

SCRIPT = "planner.script=[{behaviour: answer, delay_s: 0.01}, {behaviour: error}, {behaviour: garbage}]"


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lockstep session with a black passage."""
    return record(
        tmp_path_factory.mktemp("s"), "source.pace=max", "source.synthetic_duration_s=40", "source.synthetic_fps=10"
    )


@pytest.fixture(scope="module")
def live_session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session in real time with a worker that answers, fails and talks nonsense, from 25 pictures a second."""
    return record(
        tmp_path_factory.mktemp("l"),
        "source.synthetic_duration_s=6",
        "source.synthetic_speed=1",
        "planner.kind=scripted",
        "planner.valid_s=0.8",
        "planner.deadline_ms=400",
        "scheduler.min_interval_s=0.2",
        SCRIPT,
    )


def test_a_lockstep_session_replays_to_the_same_decisions(session: Path) -> None:
    done = tell("replay", session, "--verify", "--pace", "max")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "400 frames perceived" in done.stdout
    assert "every decision is the same, to the last bit" in done.stdout


def test_the_frames_after_the_last_that_was_looked_at_are_in_the_recording(tmp_path: Path) -> None:
    """The last of a video's 2,625 frames was in no record: it is told with the next frame perceived, and none came."""
    path = record(
        tmp_path,
        "source.pace=max",
        "source.synthetic_duration_s=2",
        "source.synthetic_fps=25",
        "source.synthetic_speed=1",
        "recogniser.rate_hz=4",
    )
    with RecordingFile(path) as recording:
        frames = [frame for _, frame in recording.messages(FrameRecord)]
        after = [frame.pts_s for _, end in recording.messages(Finish) for frame in end.passed_over]
    assert after[-1] == pytest.approx(1.96)
    assert len(frames) + sum(len(frame.passed_over) for frame in frames) + len(after) == 50
    done = tell("replay", path, "--verify")
    assert f"{len(frames)} frames perceived and {50 - len(frames)} passed over" in done.stdout


def test_a_session_in_real_time_with_a_worker_replays_to_the_same_decisions(live_session: Path) -> None:
    """Plan times depended on the machine, answers came when they came: all of it is in the recording."""
    done = tell("replay", live_session, "--verify")
    assert done.returncode == 0, done.stdout + done.stderr
    with RecordingFile(live_session) as recording:
        replay = Replay(recording, load_pack(recording.config.procedure.pack))
        for _ in replay.run():
            pass
        rungs = {plan.source for _, plan in recording.messages(Plan)}
    tally = replay.tally
    assert not tally.differing
    assert tally.passed_over > tally.frames, "30 pictures a second, of which 10 are looked at"
    assert tally.requests >= 3 and tally.admissions > tally.requests
    assert "vlm" in rungs and "statistical" in rungs


def test_lockstep_with_a_worker_replays_to_the_same_decisions(tmp_path: Path) -> None:
    path = record(
        tmp_path,
        "source.pace=max",
        "source.synthetic_duration_s=5",
        "planner.kind=scripted",
        "planner.charged_ms=200",
        SCRIPT,
    )
    done = tell("replay", path, "--verify")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_session_with_a_language_model_replays_to_the_same_decisions(tmp_path: Path) -> None:
    """Rankings, chains and rationales of a model in two lanes, seeded, in lockstep; a fused plan is a decision as any other."""
    path = record(
        tmp_path,
        *("source.pace=max", "source.synthetic_duration_s=5", "planner.kind=rehearsed", "planner.seed=7"),
        *("planner.charged_ms=200", "planner.deadline_ms=1500", "planner.permutations=2"),
    )
    with RecordingFile(path) as recording:
        plans = [plan for _, plan in recording.messages(Plan)]
    fused = [plan for plan in plans if plan.source == "fused"]
    assert fused
    assert any(plan.chain and plan.revision for plan in fused)
    assert any(plan.hashes.prompt for plan in fused)
    done = tell("replay", path, "--verify", "--pace", "max")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every decision is the same, to the last bit" in done.stdout


def test_a_restored_case_replays_to_the_same_decisions(tmp_path: Path) -> None:
    record(tmp_path, "source.pace=max", "source.synthetic_duration_s=4", "memory.journal=journal")
    (tmp_path / "r.mcap").unlink()
    path = record(tmp_path, "source.pace=max", "source.synthetic_duration_s=4", "memory.journal=journal")
    with RecordingFile(path) as recording:
        assert next(entry.topic for entry in recording.entries()) == "/restored"
    assert tell("replay", path, "--verify").returncode == 0


def test_what_a_user_told_the_agent_is_replayed(short_path: Path) -> None:
    """Another goal, a pause and a new case, as the dashboard sends them: plans depend on them."""
    pytest.importorskip("fastapi")
    path = short_path / "r.mcap"
    agent = subprocess.Popen(
        command(
            *("run", "--config", "demo.yaml", *SMALL, f"sinks.recording={path}", "sinks.dashboard.enabled=true"),
            *("sinks.dashboard.port=0", "source.synthetic_duration_s=600", "planner.kind=scripted"),
        ),
        env=environment(short_path),
        cwd=short_path,
        stderr=subprocess.DEVNULL,
    )
    line: Line[Command, object] | None = None
    try:
        for told in (SetGoal("Show everything twice."), Pause(True), Pause(False), NewCase("case-2")):
            wait_for(lambda: path.exists() and path.stat().st_size > 20_000)
            if line is None:
                endpoint = next((short_path / "stream_agent").glob("*/control"))
                line = Line(f"ipc://{endpoint}", Any, bind=False)
            time.sleep(1.0)  # the session goes on for a while under each of them
            assert line.send(told)
        time.sleep(1.5)
        agent.send_signal(signal.SIGINT)
        assert agent.wait(20) == 0
    finally:
        if line is not None:
            line.close()
        agent.kill()
        agent.wait()
    with RecordingFile(path) as recording:
        assert [one.command for _, one in recording.messages(Commanded)] == [
            SetGoal("Show everything twice."),
            Pause(True),
            Pause(False),
            NewCase("case-2"),
        ]
        assert {plan.case_id for _, plan in recording.messages(Plan)} == {"case", "case-2"}
        assert any("paused" in plan.abstain_reason for _, plan in recording.messages(Plan))
        goals = {request.goal for _, request in recording.messages(PlanRequest)}
        assert "Show everything twice." in goals and len(goals) == 2
    done = tell("replay", path, "--verify")
    assert done.returncode == 0, done.stdout + done.stderr


def wait_for(condition: Callable[[], object], timeout_s: float = 30.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s"
        time.sleep(0.01)


class Forged:
    """A recording in which one message says something else."""

    def __init__(self, recording: RecordingFile, topic: str, number: int, **fields: Any) -> None:
        self._recording = recording
        self._topic, self._number, self._fields = topic, number, fields
        self.config, self.described = recording.config, recording.described

    def entries(self) -> Any:
        seen = 0
        for entry in self._recording.entries():
            if entry.topic == self._topic:
                seen += 1
                if seen == self._number:
                    told = json.loads(entry.data) | self._fields
                    yield Entry(*entry[:4], json.dumps(told).encode())
                    continue
            yield entry

    def decode(self, entry: Entry) -> Any:
        return self._recording.decode(entry)


@pytest.mark.parametrize(
    ("topic", "fields", "what", "where"),
    [
        ("/frame", {"actions": [0, 0, 0, 0, 1.0]}, "plan", "current_confidence"),
        ("/plan", {"progress": "All is done."}, "plan", "progress"),
        ("/plan", {"valid_until_ns": 1}, "plan", "valid_until_ns"),
        ("/choice", {"now_ns": 12}, "plan", "published_ns"),
        ("/choice", {"worker_state": "asleep"}, "plan", "rungs[0]"),
    ],
)
def test_the_first_difference_is_named(
    session: Path, topic: str, fields: dict[str, Any], what: str, where: str
) -> None:
    with RecordingFile(session) as recording:
        replay = Replay(Forged(recording, topic, 300, **fields), load_pack(recording.config.procedure.pack))  # type: ignore[arg-type]
        for _ in replay.run():
            pass
    first = replay.tally.differences[0]
    assert first.what == what
    assert first.where.startswith(where.partition("[")[0])
    assert first.pts_s == pytest.approx(299 * 1.2, abs=0.01)


def test_another_wording_of_the_prompts_is_a_difference(live_session: Path) -> None:
    with RecordingFile(live_session) as recording:
        config = recording.config
        pack = load_pack(config.procedure.pack)
        answer = next(one.answer for _, one in recording.messages(Choice) if isinstance(one.answer, Plan))
        told = {
            digest: msgspec.to_builtins(msgspec.structs.replace(answer, hashes=Hashes(prompt=digest)))
            for digest in (PromptFactory(pack, config.planner).digest, "of-last-year")
        }
        first = []
        for digest, plan in told.items():
            replay = Replay(Forged(recording, "/choice", 20, answer=plan), pack)  # type: ignore[arg-type]
            for _ in replay.run():
                pass
            first.append([(one.what, one.session) for one in replay.tally.differences if one.what == "prompt"])
            assert digest
    assert first == [[], [("prompt", "of-last-year")]]


def test_a_missing_and_an_extra_decision_are_differences(session: Path) -> None:
    with RecordingFile(session) as recording:

        class Without(Forged):
            def entries(self) -> Any:
                plans = 0
                for entry in recording.entries():
                    plans += entry.topic == "/plan"
                    if not (entry.topic == "/plan" and plans == 20):
                        yield entry

        replay = Replay(Without(recording, "", 0), load_pack(recording.config.procedure.pack))  # type: ignore[arg-type]
        for _ in replay.run():
            pass
    kinds = [(difference.what, difference.session) for difference in replay.tally.differences]
    assert ("plan", "none") in kinds
    assert kinds[0][0] == "recording", "the gap in the numbers shows first"


def test_verify_exits_with_one_when_the_configuration_says_otherwise(tmp_path: Path, session: Path) -> None:
    """The pack's statistics changed since: what is planned now is not what was planned then."""
    pack = tmp_path / "pack"
    shutil.copytree(REPOSITORY / "configs/procedures/cholecystectomy", pack)
    path = record(tmp_path, "source.pace=max", "source.synthetic_duration_s=4", f"procedure.pack={pack}")
    rules = pack / "knowledge.md"
    rules.write_text(rules.read_text() + "\nOne more sentence.\n")
    done = tell("replay", path, "--verify")
    assert done.returncode == 1
    assert "the first: plan at 0.000 s, hashes.knowledge" in done.stdout
    assert "procedure pack is" in done.stderr


def test_numbers_may_differ_in_their_last_digits_alone() -> None:
    assert not list(differing({"a": [1.0, 2]}, {"a": [1.0 + 1e-12, 2]}))
    assert list(differing({"a": [1.0, 2]}, {"a": [1.0 + 1e-6, 2]})) == [("a[0]", 1.0, 1.0 + 1e-6)]
    assert list(differing({"a": 1}, {"b": 1})) == [("a", 1, None), ("b", None, 1)]
    assert list(differing([1], [1, 2], "x")) == [("x", "1 of them", "2 of them")]


def test_another_configuration_is_compared_moment_by_moment(session: Path) -> None:
    with RecordingFile(session) as recording:
        pack = load_pack(recording.config.procedure.pack)
        same = what_if(recording, pack, recording.config)
        assert (same.changed, same.session) == (0, same.other)
        assert same.moments == same.session["plans"] == 400
        shy = what_if(recording, pack, overridden(recording.config, ["planner.abstain_below=0.95"]))
        assert shy.other["abstained"] > shy.session["abstained"]
        assert shy.changed and all(after.startswith("abstained") for _, _, after in shy.changes)
        lines = list(tell_what_if(recording, ["planner.abstain_below=0.95"], changes=3))
        assert any("→ abstained" in line for line in lines)
        for setting in ("source.pace=1", "gate.enabled=false"):
            with pytest.raises(ConfigError, match="run it again"):
                list(tell_what_if(recording, [setting], changes=3))
        with pytest.raises(ConfigError, match="no answers of that planner"):
            list(tell_what_if(recording, ["planner.kind=scripted"], changes=3))


def test_what_if_without_the_worker_leaves_the_statistical_plans(live_session: Path) -> None:
    with RecordingFile(live_session) as recording:
        config = overridden(recording.config, ["planner.kind=none"])
        replay = Replay(recording, load_pack(config.procedure.pack), config)
        rungs = {made.source for _ in replay.run() for made in replay.made if isinstance(made, Plan)}
    assert "statistical" in rungs and "vlm" not in rungs


def test_pace_and_seek(session: Path) -> None:
    """Twenty times real time from second 300 on: 180 s of media time are 9 s, and none of the first 300 is shown."""
    folder = session.parent
    began_s = time.monotonic()
    done = run(folder, "replay", session, "--pace", "60", "--from", "300", "sinks.console=plain")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began_s > 3.0
    lines = done.stdout.splitlines()
    assert lines and lines[0].startswith(("5:", "6:")), lines[:1]
    assert "every decision is the same" in done.stdout
    beyond = tell("replay", session, "--from", "5000")
    assert beyond.returncode == 2 and "beyond" in beyond.stderr
    wrong = tell("replay", session, "--pace", "brisk")
    assert wrong.returncode == 2 and "brisk" in wrong.stderr


def test_a_recording_is_a_source(session: Path, tmp_path: Path) -> None:
    """Played again in lockstep it gives the clips of its session."""
    again = tmp_path / "again.mcap"
    done = run(tmp_path, "run", session, "source.pace=max", "sinks.console=off", f"sinks.recording={again}")
    assert done.returncode == 0, done.stderr
    with RecordingFile(session) as first, RecordingFile(again) as second:
        clips = [[event for _, event in one.messages(ClipEvent)] for one in (first, second)]
        frames = [[frame for _, frame in one.messages(FrameRecord)] for one in (first, second)]
    assert clips[0] == clips[1] and clips[0]
    assert [(f.pts_s, f.gate, f.actions) for f in frames[0]] == [(f.pts_s, f.gate, f.actions) for f in frames[1]]
    part = run(tmp_path, "run", session, "source.pace=max", "sinks.console=off", "source.start_s=400", "--summary", "s")
    assert part.returncode == 0, part.stderr
    assert json.loads((tmp_path / "s").read_text())["frames"]["published"] == 400 - 334


def test_looking_again_at_the_video_says_how_near_it_is(session: Path) -> None:
    done = tell("replay", session, "--perceive")
    assert done.returncode == 0, done.stderr
    assert "400 of 400 frames" in done.stdout and "lossy" in done.stdout


def test_real_video_recorded_and_replayed(tmp_path: Path, shared_data: Path) -> None:
    """VID43 at 10 looks a second: decisions are the same, and the recogniser sees nearly the same in the lossy video."""
    video = shared_data / "video" / "VID43_147_and_VID42_3625_a.mp4"
    path = record(tmp_path, f"source.uri={video}", "source.pace=max", "source.stop_s=5")
    done = tell("replay", path, "--verify")
    assert done.returncode == 0, done.stdout + done.stderr
    seen = tell("replay", path, "--perceive")
    assert seen.returncode == 0, seen.stderr
    line = next(line for line in seen.stdout.splitlines() if "likeliest action" in line)
    assert float(line.split(": ")[1].split("%")[0]) > 90


def test_a_file_that_is_no_recording_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "x.mcap").write_bytes(b"no")
    for arguments in (
        ("replay", tmp_path / "x.mcap", "--verify"),
        ("recording", "info", tmp_path / "x.mcap"),
        ("recording", "recover", tmp_path / "y.mcap"),
        ("run", tmp_path / "x.mcap", "sinks.console=off"),
    ):
        done = tell(*arguments)
        assert done.returncode in (2, 3, 7)
        assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr
