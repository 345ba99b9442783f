"""SRT from a real sender on loopback, through a real ffmpeg program: the same program sends and receives."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from live_sources import check_then_lose, free_port, live_source
from made_videos import write_video
from network_sender import PERIOD_MS

from stream_agent import doctor
from stream_agent.config import AgentConfig, SourceConfig, load_config
from stream_agent.doctor import Check
from stream_agent.errors import SourceError
from stream_agent.source import open_source, srt
from stream_agent.source.srt import SrtSource, ffmpeg_with_srt

PASSPHRASE = "0123456789ab"

RECEIVER = """
import sys
from stream_agent.config import SourceConfig
from stream_agent.source.srt import SrtSource

source = SrtSource(sys.argv[1], config=SourceConfig(uri=sys.argv[1], open_timeout_s=60), notice=print)
source.open(0)
for _ in source.pictures():
    print("picture", flush=True)
"""


@pytest.fixture(autouse=True)
def libav_without_srt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(srt, "libav_opens_srt", lambda: False)


@pytest.fixture(scope="module")
def program() -> str:
    try:
        return ffmpeg_with_srt()
    except SourceError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    times_ms = range(0, 4000, PERIOD_MS)
    return write_video(tmp_path_factory.mktemp("srt") / "v.ts", times_ms=times_ms, size=(160, 128))


@contextmanager
def sender(program: str, video: Path, uri: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [program, "-nostdin", "-loglevel", "error", "-re", "-stream_loop", "-1", "-i", str(video)]
    patient = ["-connect_timeout", "60000"]  # ms; a receiver that is a Python program may take long to start
    with subprocess.Popen([*command, "-c", "copy", "-f", "mpegts", *patient, uri]) as process:
        try:
            yield process
        finally:
            process.kill()


def children() -> list[psutil.Process]:
    """Processes begun here; the fork server that other tests share lives as long as pytest."""
    found = psutil.Process().children(recursive=True)
    return [child for child in found if "multiprocessing" not in " ".join(child.cmdline())]


def receiving(pid: int) -> list[psutil.Process]:
    """The ffmpeg of process `pid` that reads an address, neither one that answers a question nor its launcher."""
    return [child for child in psutil.Process(pid).children() if child.cmdline()[1:2] == ["-nostdin"]]


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (signal.SIGSTOP, "silent for source.read_timeout_s=0.6 s"),
        (signal.SIGKILL, "silent for source.read_timeout_s=0.6 s"),
        (signal.SIGTERM, "was lost: "),  # libsrt takes a second to shut down: silence, or the end, whichever is first
    ],
)
def test_pictures_arrive_and_a_lost_sender_is_noticed(
    program: str, video: Path, loss: signal.Signals, reason: str
) -> None:
    uri = f"srt://127.0.0.1:{free_port(socket.SOCK_DGRAM)}"
    with sender(program, video, f"{uri}?mode=listener&passphrase={PASSPHRASE}") as process:
        source = live_source(f"{uri}?passphrase={PASSPHRASE}")
        assert isinstance(source, SrtSource)
        check_then_lose(source, lambda: process.send_signal(loss), reason)
        process.kill()
        process.wait()
    assert not children()


def test_options_go_to_ffmpeg(program: str, video: Path) -> None:
    port = free_port(socket.SOCK_DGRAM)
    options = {"mode": "listener", "passphrase": PASSPHRASE}
    with sender(program, video, f"srt://127.0.0.1:{port}?passphrase={PASSPHRASE}"):
        source = live_source(f"SRT://127.0.0.1:{port}", options=options)
        source.open(0)
        assert next(source.pictures()).width == 160
        source.close()
        source.close()


def test_waiting_for_a_sender_ends_in_time_and_leaves_nobody(program: str) -> None:
    """A listener writes nothing, so it would outlive a pipe that nobody reads."""
    uri = f"srt://127.0.0.1:{free_port(socket.SOCK_DGRAM)}?mode=listener&passphrase={PASSPHRASE}"
    source = open_source(SourceConfig(uri=uri, open_timeout_s=0.3), instruments=(), notice=print)
    began_s = time.monotonic()
    with pytest.raises(SourceError, match=r"mode=\*\*\*.* did not open within source.open_timeout_s=0.3; ") as caught:
        source.open(0)
    assert time.monotonic() - began_s < 2
    assert caught.value.retryable
    assert not children()


def test_the_reason_is_ffmpegs_without_the_secrets(program: str) -> None:
    port = free_port(socket.SOCK_DGRAM)
    source = live_source(
        f"srt://127.0.0.1:{port}?streamid=theatre%2Fseven&passphrase={PASSPHRASE}", options={"connect_timeout": "100"}
    )
    with pytest.raises(SourceError, match=r"cannot be opened: .*\(ffmpeg: Connection to srt://127.0.0.1.*; ") as caught:
        source.open(0)
    assert caught.value.retryable
    assert caught.value.__suppress_context__
    for secret in (PASSPHRASE, "theatre", "seven"):
        assert secret not in str(caught.value)


def test_a_complaint_that_repeats_a_value_hides_it(program: str) -> None:
    source = live_source("srt://127.0.0.1:9?latency=hunter%32hunter", options={"recv_buffer_size": "sesame"})
    with pytest.raises(SourceError, match=r"\(ffmpeg: .*\*\*\*") as caught:
        source.open(0)
    assert "hunter" not in str(caught.value)
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize("waiting", [True, False], ids=["waiting", "streaming"])
def test_ffmpeg_dies_with_a_killed_receiver(
    program: str, video: Path, waiting: bool, eventually: Callable[..., None]
) -> None:
    uri = f"srt://127.0.0.1:{free_port(socket.SOCK_DGRAM)}"
    received = f"{uri}?mode=listener"
    command = [sys.executable, "-c", RECEIVER, received]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as receiver:
        try:
            if waiting:
                eventually(lambda: receiving(receiver.pid))
            else:
                with sender(program, video, uri):
                    assert receiver.stdout is not None
                    assert receiver.stdout.readline() == b"picture\n"
            (ffmpeg,) = receiving(receiver.pid)
        finally:
            receiver.kill()
    # Whoever inherits orphans may be slow to reap them.
    eventually(lambda: not ffmpeg.is_running() or ffmpeg.status() == psutil.STATUS_ZOMBIE)


def test_the_program_on_path_is_taken_only_if_it_has_srt(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_path = tmp_path / "ffmpeg"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    on_path.write_text("#!/bin/sh\necho Input: srtp tcp\n")
    on_path.chmod(0o755)
    assert next(srt._programs()) == str(on_path)
    assert not srt._reads_srt(str(on_path))
    on_path.write_text("#!/bin/sh\necho Input: srt tcp\n")
    assert ffmpeg_with_srt() == str(on_path)


def found(config: AgentConfig) -> dict[str, Check]:
    return {check.name: check for check in [*doctor.check_srt(config), *doctor.check_source(config)]}


def test_without_a_program_one_error_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(srt, "_programs", lambda: iter(()))
    config = load_config(None, [f"source.uri=srt://127.0.0.1:9?passphrase={PASSPHRASE}"])
    with pytest.raises(SourceError, match=r"srt:// needs .*; pip install 'stream-agent\[srt\]' or install") as caught:
        live_source(config.source.uri).open(0)
    assert not caught.value.retryable
    checks = found(config)
    assert {check.state for check in checks.values()} == {"fail"}
    assert checks["SRT"].remedy == "pip install 'stream-agent[srt]' or install ffmpeg"


def test_the_doctor_tells_which_program_reads_srt(program: str, video: Path) -> None:
    uri = f"srt://127.0.0.1:{free_port(socket.SOCK_DGRAM)}"
    with sender(program, video, f"{uri}?mode=listener"):
        checks = found(load_config(None, [f"source.uri={uri}"]))
    assert (checks["SRT"].state, checks["source"].state) == ("ok", "ok")
    assert program in checks["SRT"].detail
    assert not found(AgentConfig()).get("SRT")
