"""Opening a live source on loopback, and losing its sender; for the tests of every kind of stream."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from network_sender import PERIOD_MS

from stream_agent.config import SourceConfig
from stream_agent.errors import SourceError
from stream_agent.source import Source, open_source

READ_TIMEOUT_S = 0.6


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def live_source(uri: str, **section: Any) -> Source:
    config = SourceConfig(uri=uri, open_timeout_s=5, read_timeout_s=READ_TIMEOUT_S, **section)
    return open_source(config, instruments=(), notice=print)


def check_then_lose(source: Source, lose: Callable[[], None], reason: str) -> None:
    """Receive ten pictures, lose the sender, and see it reported in time."""
    try:
        source.open(0)
        assert source.live
        pictures = source.pictures()
        times_s = []
        for _ in range(10):
            one = next(pictures)
            assert (one.width, one.height) == (160, 128)
            times_s.append(one.pts_s)
        assert times_s[0] == 0
        assert times_s == sorted(times_s)
        assert times_s[-1] == pytest.approx(9 * PERIOD_MS / 1000, abs=0.05)
        lose()
        lost_at_s = time.monotonic()
        with pytest.raises(SourceError, match=reason) as caught:
            for _ in pictures:
                pass
        assert caught.value.retryable
        assert time.monotonic() - lost_at_s < READ_TIMEOUT_S + 1
    finally:
        source.close()
