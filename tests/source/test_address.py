"""Addresses are shown without their secrets."""

from __future__ import annotations

import pytest

from stream_agent.source.address import redacted, scheme_of


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("rtsp://user:secret@camera:554/live", "rtsp://***@camera:554/live"),
        ("rtsp://user@camera/live", "rtsp://***@camera/live"),
        ("rtsp://user:se@c/re?t@camera/live", "rtsp://***@camera/live"),
        ("rtsp://camera/live?user=a&pwd=b=c", "rtsp://camera/live?user=***&pwd=***"),
        ("srt://host:9?mode=caller&passphrase=0123456789", "srt://host:9?mode=***&passphrase=***"),
        ("rtsp://user:secret@camera/live?token=x", "rtsp://***@camera/live?token=***"),
        ("rtsp://user:secret@camera/live?mail=me@home", "rtsp://***@home"),
        ("tee:rtsp://user:secret@camera/", "tee:rtsp://***@camera/"),
        ("udp://239.0.0.1:5000", "udp://239.0.0.1:5000"),
        ("/data/a@b?c=d.mp4", "/data/a@b?c=d.mp4"),
        ("synthetic:", "synthetic:"),
    ],
)
def test_user_password_and_query_values_are_hidden(uri: str, shown: str) -> None:
    assert redacted(uri) == shown


def test_the_scheme_is_what_stands_before_the_slashes() -> None:
    assert scheme_of("RTSPS://camera/") == "rtsps"
    assert scheme_of("/dev/video0") == ""
    assert scheme_of("device:v4l2:/dev/video0") == ""
