"""The address chooses the source."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av
import pytest
from made_videos import read

from stream_agent.config import SourceConfig
from stream_agent.errors import SourceError
from stream_agent.source import open_source


@pytest.mark.parametrize(
    ("uri", "kind", "live"),
    [
        ("synthetic:", "SyntheticSource", False),
        ("video.mp4", "LibavSource", False),
        ("file:///data/video.mp4", "LibavSource", False),
        ("case.csv", "SignalsSource", False),
        ("/dev/video0", "LibavSource", True),
        ("device:v4l2:/dev/video0", "LibavSource", True),
        ("device:lavfi:testsrc", "LibavSource", False),
        *(
            (f"{scheme}://host/x", "LibavSource", True)
            for scheme in ("rtsp", "rtsps", "http", "https", "udp", "tcp", "RTSP")
        ),
    ],
)
def test_each_kind_of_address_has_its_source(uri: str, kind: str, live: bool) -> None:
    source = open_source(SourceConfig(uri=uri), instruments=(), notice=print)
    assert type(source).__name__ == kind
    assert source.live is live


def test_a_folder_is_one_of_frames(tmp_path: Path) -> None:
    source = open_source(SourceConfig(uri=str(tmp_path)), instruments=(), notice=print)
    assert type(source).__name__ == "FrameFolderSource"


@pytest.mark.parametrize(
    ("uri", "complaint"),
    [
        (
            "gopher://user:secret@host/x",
            r"source.uri=gopher://\*\*\*@host/x has the unknown scheme gopher://; use one of http://",
        ),
        ("device:v4l2", "is not device:FORMAT:NAME; write for example device:v4l2:/dev/video0"),
        ("device:", "is not device:FORMAT:NAME"),
    ],
)
def test_an_address_of_no_kind_is_an_error(uri: str, complaint: str) -> None:
    with pytest.raises(SourceError, match=complaint):
        open_source(SourceConfig(uri=uri), instruments=(), notice=print)


def test_any_libav_device_can_be_opened() -> None:
    if "lavfi" not in av.formats_available:
        pytest.skip("this libav has no lavfi device; install a PyAV built with it to run this test")
    reading = read("device:lavfi:testsrc=size=320x240:rate=30", at_most=4)
    assert reading.sizes == [(320, 240)] * 4
    assert reading.times_s == pytest.approx([index / 30 for index in range(4)], abs=1e-6)


def test_a_device_format_that_libav_lacks_is_named() -> None:
    with pytest.raises(SourceError, match="device:nosuch:x: the installed libav has no input format 'nosuch'; use one"):
        read("device:nosuch:x")


def test_the_synthetic_source_needs_no_libav() -> None:
    code = (
        "import sys; from stream_agent.config import SourceConfig; from stream_agent.source import open_source;"
        "open_source(SourceConfig(), instruments=(), notice=print); assert 'av' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})
