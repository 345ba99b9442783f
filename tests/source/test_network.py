"""Live streams from a real sender on loopback: they arrive, and a lost sender is noticed within the read timeout."""

from __future__ import annotations

import http.server
import io
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live_sources import check_then_lose, free_port, live_source
from made_videos import grey_level, write_video
from network_sender import Sender

from stream_agent.config import SourceConfig
from stream_agent.errors import SourceError
from stream_agent.source import open_source


def test_mpeg_ts_over_udp() -> None:
    port = free_port(socket.SOCK_DGRAM)
    sender = Sender(f"udp://127.0.0.1:{port}?pkt_size=1316", "mpegts")
    check_then_lose(live_source(f"udp://127.0.0.1:{port}"), sender.go_silent, "silent for source.read_timeout_s=0.6 s")
    sender.leave()


@pytest.mark.parametrize(
    ("loss", "reason"), [("silent", "silent for source.read_timeout_s"), ("leave", "the sender ended")]
)
def test_mpeg_ts_over_tcp(loss: str, reason: str) -> None:
    port = free_port()
    sender = Sender(f"tcp://127.0.0.1:{port}", "mpegts")
    source = live_source(f"tcp://127.0.0.1:{port}", options={"listen": "1"})
    check_then_lose(source, sender.go_silent if loss == "silent" else sender.leave, reason)
    sender.leave()


def test_rtsp_with_the_default_transport() -> None:
    port = free_port()
    # A process of its own: PyAV holds the GIL while its RTSP sender shakes hands, which would stop the receiver.
    command = [sys.executable, str(Path(__file__).with_name("rtsp_sender.py")), f"rtsp://127.0.0.1:{port}/theatre"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdin is not None
        source = live_source(f"rtsp://user:secret@127.0.0.1:{port}/theatre", options={"rtsp_flags": "listen"})

        def go_silent() -> None:
            print("silent", file=process.stdin, flush=True)

        check_then_lose(source, go_silent, r"rtsp://\*\*\*@127.0.0.1:\d+/theatre was lost: silent")
        process.stdin.close()
        assert process.wait(timeout=5) == 0


class _Pipe(io.RawIOBase):
    """A response body as a file to write into."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._write(bytes(data))
        return len(data)


@contextmanager
def http_server(respond: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            respond(self)

        def log_message(self, *_arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_an_endless_http_stream_is_live() -> None:
    lost = threading.Event()

    def respond(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "video/mp2t")
        request.end_headers()
        sender = Sender(_Pipe(request.wfile.write), "mpegts")
        lost.wait(10)
        sender.leave()

    with http_server(respond) as address:
        check_then_lose(live_source(f"{address}/stream"), lost.set, "was lost")


def test_a_file_on_a_web_server_is_finite_and_paced(tmp_path: Path) -> None:
    data = write_video(tmp_path / "v.mp4", options={"movflags": "faststart"}).read_bytes()

    def respond(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    with http_server(respond) as address:
        source = live_source(f"{address}/v.mp4")
        source.open(0)
        assert not source.live
        assert len(list(source.pictures())) == 10
        source.close()


@pytest.mark.parametrize(("status", "retryable"), [(401, False), (403, False), (404, True), (503, True)])
def test_http_refusals_are_retried_only_if_that_may_help(status: int, retryable: bool) -> None:
    with http_server(lambda request: request.send_error(status)) as address:
        source = live_source(address.replace("http://", "http://user:secret@"))
        with pytest.raises(SourceError, match=r"http://\*\*\*@127.0.0.1:\d+ cannot be opened") as caught:
            source.open(0)
    assert caught.value.retryable is retryable


@pytest.mark.parametrize("scheme", ["rtsp", "http", "tcp"])
def test_nobody_there_is_retryable_and_hides_the_password(scheme: str) -> None:
    source = live_source(f"{scheme}://user:secret@127.0.0.1:{free_port()}/x")
    with pytest.raises(SourceError, match="cannot be opened: connection refused; check") as caught:
        source.open(0)
    assert caught.value.retryable
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("scheme", ["tcp", "rtsp", "http"])
def test_a_server_that_says_nothing_ends_opening_in_time(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        uri = f"{scheme}://127.0.0.1:{server.getsockname()[1]}/x"
        source = open_source(SourceConfig(uri=uri, open_timeout_s=0.3), instruments=(), notice=print)
        began_s = time.monotonic()
        with pytest.raises(SourceError, match=r"did not open within source.open_timeout_s=0.3; check") as caught:
            source.open(0)
        assert time.monotonic() - began_s < 1.5
        assert caught.value.retryable


def test_a_silent_udp_address_ends_opening_in_time() -> None:
    uri = f"udp://127.0.0.1:{free_port(socket.SOCK_DGRAM)}"
    source = open_source(SourceConfig(uri=uri, open_timeout_s=0.3), instruments=(), notice=print)
    with pytest.raises(SourceError, match=r"did not open within") as caught:
        source.open(0)
    assert caught.value.retryable


def test_data_that_gives_no_picture_is_a_lost_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a key picture the reader once went on for ever, and could not even be stopped."""
    monkeypatch.setattr("stream_agent.source.libav._KEY_PICTURES_WITHIN_S", 0.0)
    port = free_port(socket.SOCK_DGRAM)
    sender = Sender(f"udp://127.0.0.1:{port}?pkt_size=1316", "mpegts", gop=100_000)
    assert sender.under_way.wait(5)
    source = live_source(f"udp://127.0.0.1:{port}")
    source.open(0)
    with pytest.raises(SourceError, match=r"was lost: what arrives gave no picture for 0.6 s; check") as caught:
        next(source.pictures())
    assert caught.value.retryable
    source.close()
    sender.leave()


def test_a_camera_that_is_not_there_is_retryable() -> None:
    source = open_source(SourceConfig(uri="/dev/video63"), instruments=(), notice=print)
    assert source.live
    with pytest.raises(SourceError, match="/dev/video63 cannot be opened: no such file") as caught:
        source.open(0)
    assert caught.value.retryable


def test_grey_levels_are_those_sent() -> None:
    port = free_port()
    sender = Sender(f"tcp://127.0.0.1:{port}", "mpegts")
    source = live_source(f"tcp://127.0.0.1:{port}?listen=1")
    source.open(0)
    for _, one in zip(range(3), source.pictures(), strict=False):
        planes = np.zeros((192, 160), np.uint8)
        assert one.write is not None
        one.write(planes)
        level = planes[:128].mean()
        assert min(abs(level - grey_level(index)) for index in range(10)) < 3
    source.close()
    sender.leave()
