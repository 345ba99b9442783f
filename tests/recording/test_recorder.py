"""The recorder on real sessions: lossless in lockstep, killed, starved of disk, and never in the agent's way."""

from __future__ import annotations

import json
import random
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from stream_agent.config import load_config
from stream_agent.errors import RecordingError
from stream_agent.messages import Evidence, FrameHeader, Health
from stream_agent.procedure import load_pack
from stream_agent.recording.mcap_file import RecordingWriter, scan
from stream_agent.recording.reader import RecordingFile
from stream_agent.recording.records import FrameRecord
from stream_agent.recording.sink import RecordingSink
from stream_agent.recording.video import VideoDecoder, VideoEncoder, is_key, planes_of
from stream_agent.source.frame_index import read_index
from stream_agent.telemetry import Telemetry
from tests.recording.sessions import SMALL, MakeRecording, command, count, environment, run

RECORDER = "stream_agent.recording.recorder"


class Session:
    """An agent that records, while it runs."""

    def __init__(self, folder: Path, *settings: str) -> None:
        self.folder = folder
        self.path = folder / "r.mcap"
        self.process = subprocess.Popen(
            command("run", "--config", "demo.yaml", *SMALL, f"sinks.recording={self.path}", *settings),
            env=environment(folder),
            cwd=folder,
            stderr=subprocess.PIPE,
            text=True,
        )

    def recorder(self, *, after: int = 0) -> psutil.Process:
        """The recorder; the next one, if `after` names one that was killed: it takes its time to be gone."""
        found: list[psutil.Process] = []

        def there() -> bool:
            found[:] = [one for one in self._recorders() if one.pid != after]
            return bool(found)

        until(there, "a recorder")
        return found[0]

    def _recorders(self) -> list[psutil.Process]:
        try:
            return [
                one
                for one in psutil.Process(self.process.pid).children()
                if one.status() != psutil.STATUS_ZOMBIE and RECORDER in one.cmdline()
            ]
        except psutil.NoSuchProcess:
            return []

    def planned(self, plans: int = 5) -> None:
        """Wait until so many more plans are in the file."""
        known = self._plans()
        until(lambda: self._plans() >= known + plans, f"{plans} more plans in the file")

    def _plans(self) -> int:
        try:
            return count(self.path, "/plan")
        except RecordingError:
            return 0  # not there yet, or a write is going on

    def interrupt(self) -> str:
        self.process.send_signal(signal.SIGINT)
        _, told = self.process.communicate(timeout=20)
        assert self.process.returncode == 0, told
        return told

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def until(condition: object, what: str, timeout_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    assert callable(condition)
    while not condition():
        assert time.monotonic() < deadline_s, f"{what} did not come about within {timeout_s:g} s"
        time.sleep(0.005)


@pytest.fixture
def folder(short_path: Path) -> Iterator[Path]:
    yield short_path


def test_every_perceived_frame_of_lockstep_is_recorded_with_its_picture(lockstep_session: Path) -> None:
    """The drawn scene carries its frame number in its pixels: each picture is its own frame's."""
    numbers = []
    with RecordingFile(lockstep_session) as recording:
        assert recording.layout.whole
        assert recording.described.clock == "virtual"
        for frame, decoded in recording.pictures():
            assert decoded is not None, f"frame {frame.seq} has no picture"
            if frame.gate != "black":
                numbers.append((frame.seq, read_index(planes_of(decoded))))
    assert len(numbers) > 300
    wrong = [(seq, found) for seq, found in numbers if found not in (seq, None)]
    assert not wrong
    assert sum(found is not None for _, found in numbers) > 0.9 * len(numbers)


def test_what_is_published_is_recorded(lockstep_session: Path) -> None:
    plans = (lockstep_session.parent / "plans.jsonl").read_bytes().splitlines()
    with RecordingFile(lockstep_session) as recording:
        recorded = [entry.data for entry in recording.entries({"/plan"})]
        assert recording.config.source.pace == "max"
        assert recording.pack.name == "cholecystectomy"
        order = [entry.sequence for entry in recording.entries() if entry.topic != "/video"]
    assert recorded == plans
    assert order == list(range(1, len(order) + 1)), "numbered as they happened, without a gap"


def test_times_are_capture_times(make_recording: MakeRecording) -> None:
    path = make_recording("source.synthetic_duration_s=3")
    now_ns = time.time_ns()
    with RecordingFile(path) as recording:
        frames = [(entry.log_ns, frame.captured_ns) for entry, frame in recording.messages(FrameRecord)]
        pictures = {entry.log_ns for entry in recording.entries({"/video"})}
    offsets = {log_ns - captured_ns for log_ns, captured_ns in frames}
    assert len(offsets) == 1, "one offset from the session's clock to Unix time"
    assert 0 < now_ns - frames[-1][0] < 600e9
    assert {log_ns for log_ns, _ in frames} >= pictures and len(pictures) > 20


def test_a_finished_recording_reads_with_mcaps_own_reader(lockstep_session: Path) -> None:
    from mcap.reader import make_reader

    with lockstep_session.open("rb") as file:
        summary = make_reader(file, validate_crcs=True).get_summary()
        assert summary is not None
        names = {schema.name for schema in summary.schemas.values()}
        assert {"foxglove.CompressedVideo", "stream_agent.Plan", "stream_agent.FrameRecord"} <= names
        for schema in summary.schemas.values():
            if schema.encoding == "jsonschema":
                assert json.loads(schema.data)["type"] == "object"


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_a_killed_recorder_loses_a_second_and_never_the_index(folder: Path, kills: int) -> None:
    """Killed at random moments, under an agent that goes on; then the agent is killed, too, and the file recovered."""
    rng = random.Random(kills)
    recovered = 0
    for attempt in range(kills):
        place = folder / f"{attempt}"
        place.mkdir()
        session = Session(place, "source.synthetic_duration_s=600")
        try:
            session.planned()
            time.sleep(rng.random() * 0.6)  # the random moment
            recorder = session.recorder()
            killed_ns = time.time_ns()
            recorder.kill()
            if attempt % 2:
                session.process.kill()
            else:
                session.recorder(after=recorder.pid)
                session.planned()
                assert "recorder ended by signal 9; starting it again" in session.interrupt()
        finally:
            session.close()
        done = run(place, "recording", "recover", session.path)
        assert done.returncode == 0, done.stderr
        recovered += 1
        with RecordingFile(session.path) as recording, session.path.open("rb") as file:
            assert recording.layout.whole and scan(file, session.path).whole
            times = [entry.log_ns for entry in recording.entries() if entry.topic == "/plan"]
        before = [time_ns for time_ns in times if time_ns < killed_ns]
        assert killed_ns - before[-1] < 1.5e9, "at most the last second, and what a crowded machine adds"
        if not attempt % 2:
            assert times[-1] > killed_ns, "and the session goes on in the same file"
    assert recovered == kills


def test_a_full_disk_is_told_and_the_agent_goes_on(folder: Path) -> None:
    """The recorder may not write beyond a limit, as on a full disk; later it may again."""
    session = Session(folder, "source.synthetic_duration_s=600", f"sinks.publisher.bind=ipc://{folder}/p")
    try:
        session.planned()
        recorder = session.recorder()
        limit = session.path.stat().st_size + 20_000
        resource.prlimit(recorder.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        time.sleep(2.5)  # several chunks that do not fit
        resource.prlimit(recorder.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        session.planned(30)  # long enough for the part to be told well again
        told = session.interrupt()
    finally:
        session.close()
    assert "are not in the recording" in told
    with RecordingFile(session.path) as recording:
        assert recording.layout.whole
        parts = [health.parts["recording"] for _, health in recording.messages(Health)]
        assert any("cannot write" in part for part in parts), "written once there was room again"
        assert parts[-1] == "ok"
        plans = [entry.log_ns for entry in recording.entries({"/plan"})]
    assert max(np.diff(plans)) > 0.5e9, "what happened meanwhile is missing"
    verify = run(folder, "replay", session.path, "--verify")
    assert verify.returncode == 1
    assert "messages that were lost" in verify.stdout


def test_a_recorder_that_hangs_holds_nobody_up(folder: Path) -> None:
    """Stopped, it takes no message and copies no picture; the agent plans on, and gets a new one."""
    session = Session(folder, "source.synthetic_duration_s=600", f"sinks.jsonl={folder}/plans.jsonl")
    plans = folder / "plans.jsonl"
    try:
        session.planned()
        recorder = session.recorder()
        recorder.suspend()
        begun = plans.stat().st_size
        until(lambda: not recorder.is_running() or recorder.status() == psutil.STATUS_ZOMBIE, "the end of the hung one")
        assert plans.stat().st_size > begun + 10_000, "it planned all the while"
        session.planned()
        told = session.interrupt()
    finally:
        session.close()
    assert "recorder gave no sign of life" in told
    with RecordingFile(session.path) as recording:
        assert recording.layout.whole


def test_a_recording_is_never_overwritten(folder: Path) -> None:
    (folder / "r.mcap").write_bytes(b"an operation of last year")
    done = run(folder, "run", *SMALL, f"sinks.recording={folder}/r.mcap", "source.synthetic_duration_s=1")
    assert done.returncode == 2
    assert "never overwritten" in done.stderr and "Traceback" not in done.stderr
    assert (folder / "r.mcap").read_bytes() == b"an operation of last year"
    done = run(folder, "run", *SMALL, "sinks.recording=/no/such/folder/r.mcap")
    assert done.returncode == 2 and "/no/such/folder" in done.stderr


def test_a_folder_gets_a_file_named_after_the_time(folder: Path) -> None:
    done = run(folder, "run", *SMALL, f"sinks.recording={folder}", "source.synthetic_duration_s=1", "source.pace=max")
    assert done.returncode == 0, done.stderr
    assert len(list(folder.glob("2*-*.mcap"))) == 1


def test_without_video_the_messages_are_recorded_all_the_same(make_recording: MakeRecording) -> None:
    path = make_recording("source.pace=max", "source.synthetic_duration_s=3", "sinks.recorder.video=false")
    assert count(path, "/video") == 0 and count(path, "/frame") == 90


def test_secrets_of_an_address_are_not_recorded(folder: Path) -> None:
    address = "source.uri=rtsp://surgeon:hunter2@10.0.0.7/a?token=abc"
    config = load_config(None, [address, "source.options.passphrase=opensesame", f"sinks.recording={folder}"])
    sink = RecordingSink(
        folder,
        config,
        load_pack(config.procedure.pack),
        lambda name: f"ipc://{folder}/{name}",
        lockstep=False,
        telemetry=Telemetry(),
        now_ns=0,
    )
    job = sink.worker._job()
    sink.finish()
    assert b"hunter2" not in job and b"token=abc" not in job and b"opensesame" not in job and b"10.0.0.7" in job
    assert not list(folder.glob("*.mcap")), "a session that never began leaves no empty file"


def test_a_recorder_that_cannot_write_is_one_message(folder: Path) -> None:
    """The disk is full from the start: the limit lets not even the beginning of the file be written."""
    session = subprocess.run(
        ["bash", "-c", 'ulimit -f 1; exec "$@"', "bash", *command("run", *SMALL, f"sinks.recording={folder}/r.mcap")],
        env=environment(folder),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert session.returncode == 7
    assert session.stderr.count("error: ") == 1 and "cannot be written" in session.stderr
    assert not (folder / "r.mcap").exists()


def test_pictures_have_a_key_picture_every_second_and_no_b_frames() -> None:
    encoder, decoder = VideoEncoder(crf=20), VideoDecoder()
    rng = np.random.default_rng(3)
    smooth = np.cumsum(rng.integers(-2, 3, (144, 128)), axis=1).astype(np.uint8)
    keys = []
    for number in range(25):
        planes = np.roll(smooth, number, axis=1).copy()
        data = encoder.encode(planes, number * 100_000_000, "bt601")
        keys.append(is_key(data))
        decoded = decoder.decode(data)
        assert decoded is not None, "one in, one out: nothing waits for a later picture"
        assert np.abs(planes_of(decoded).astype(int) - planes).mean() < 12
    assert [number for number, key in enumerate(keys) if key] == [0, 10, 20]
    larger = encoder.encode(np.zeros((288, 256), np.uint8), 2_500_000_000, "bt709-full")
    assert is_key(larger), "another size begins anew"


def test_a_writer_does_not_go_on_in_the_file_of_another_format(tmp_path: Path) -> None:
    path = tmp_path / "r.mcap"
    RecordingWriter(path, [], metadata={"other": {}}, attachments={}, library="x").close()
    done = run(tmp_path, "recording", "info", path)
    assert done.returncode == 7 and "Traceback" not in done.stderr


def test_the_header_survives_its_record() -> None:
    header = FrameHeader(
        stream_id="e",
        session_id="s",
        seq=7,
        pts_s=0.7,
        captured_ns=70,
        width=8,
        height=6,
        place="ring",
        layout="yuv420p",
    )

    evidence = Evidence(seq=7, pts_s=0.7, recogniser="onnx", actions=(0.25, 0.75), out_of_body=0.1)
    record = FrameRecord.of(header, evidence)
    assert record.evidence() == evidence
    back = record.header()
    assert (back.seq, back.width, back.layout, back.place) == (7, 8, "yuv420p", "none")
