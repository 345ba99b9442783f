"""A recording of ours through the importer that Rerun's viewer opens it with, and our pictures out of what that makes."""

from __future__ import annotations

import subprocess
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
import rerun_cli
from rerun.chunk import RrdReader

from tests.recording.sessions import count


@pytest.fixture(scope="module")
def opened(lockstep_session: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The chunks that `rerun FILE.mcap` would show."""
    folder = tmp_path_factory.mktemp("rerun")
    program = Path(rerun_cli.__file__).parent / "rerun"
    done = subprocess.run(
        [program, "mcap", "convert", lockstep_session, "-o", folder / "session.rrd"],
        env={"HOME": str(folder), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chunks: list[Any] = RrdReader(str(folder / "session.rrd")).stream().to_chunks()
    return chunks


def test_every_picture_is_there_and_decodes(opened: list[Any], lockstep_session: Path) -> None:
    samples = []
    for chunk in opened:
        batch = chunk.to_record_batch()
        if chunk.entity_path == "/video" and "VideoStream:sample" in batch.schema.names:
            samples += [bytes(value[0]) for value in batch.column("VideoStream:sample").to_pylist()]
    assert len(samples) == count(lockstep_session, "/video") > 100
    codec: Any = av.CodecContext.create("h264", "r")
    pictures = []
    for at, sample in enumerate(samples):
        packet = av.Packet(sample)
        packet.pts, packet.time_base = at, Fraction(1, 10)
        pictures += codec.decode(packet)
    pictures += codec.decode(None)
    assert len(pictures) == len(samples)
    assert (pictures[0].width, pictures[0].height) == (160, 96)


def test_every_message_is_there(opened: list[Any], lockstep_session: Path) -> None:
    for topic in ("/plan", "/clip", "/frame", "/choice"):
        rows = sum(chunk.num_rows for chunk in opened if chunk.entity_path == topic and not chunk.is_static)
        assert rows == count(lockstep_session, topic) > 0, topic
