"""A running agent's Rerun bridge, received over TCP by Rerun's own server, which writes what came to a file."""

from __future__ import annotations

import io
import socket
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import psutil
import pyarrow as pa
import pytest
import rerun
import rerun_cli
from PIL import Image
from rerun.chunk import RrdReader

from stream_agent.config import load_config
from stream_agent.errors import ConfigError
from stream_agent.messages import Plan, RankedAction
from stream_agent.sinks.rerun import plan_text
from tests.sinks.conftest import MakePlan
from tests.sinks.dashboard.agents import SMALL, DashboardAgent


class Row(NamedTuple):
    """A value and its two times, in seconds of media time and of the wall clock."""

    pts_s: float
    host_s: float
    value: Any


class HeadlessViewer:
    """Rerun's server without a window; what is logged to it goes to `path`."""

    def __init__(self, folder: Path, port: int, name: str) -> None:
        self.path = folder / name
        program = Path(rerun_cli.__file__).parent / "rerun"
        self._process = subprocess.Popen(
            [program, "--bind", "127.0.0.1", "--port", str(port), "--save", str(self.path)],
            env={"HOME": str(folder), "PATH": ""},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def rows(self, entity: str, component: str) -> list[Row]:
        """What was logged to an entity and below it so far."""
        if not self.path.is_file():
            return []
        rows: list[Row] = []
        try:
            chunks = self.read(lambda file: file.stream().to_chunks())
        except (ValueError, OSError):  # nothing whole in it yet
            return []
        for chunk in chunks:
            batch = chunk.to_record_batch()
            if not chunk.entity_path.startswith(entity) or chunk.is_static or component not in batch.schema.names:
                continue
            times = [batch.column(name).cast(pa.int64()).to_pylist() for name in ("pts", "host_time")]
            rows += [
                Row(pts_ns / 1e9, host_ns / 1e9, value[0])
                for pts_ns, host_ns, value in zip(*times, batch.column(component).to_pylist(), strict=True)
                if value
            ]
        return rows

    def read(self, reading: Callable[[RrdReader], Any]) -> Any:
        """What `reading` makes of the file, between two of the server's writes: a message of which half is there is no file."""
        deadline_s = time.monotonic() + 20
        while True:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a file that is still written to has no footer yet
                try:
                    return reading(RrdReader(str(self.path)))
                except RuntimeError as error:
                    if "exceeds file size" not in str(error) or time.monotonic() > deadline_s:
                        raise
            time.sleep(0.02)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="sa") as root:
        yield Path(root)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def until(found: Callable[[], Any], agent: DashboardAgent) -> Any:
    deadline_s = time.monotonic() + 40
    while not (result := found()):
        assert time.monotonic() < deadline_s, agent.told()
        time.sleep(0.1)
    return result


def test_a_viewer_shows_the_case_loses_an_expired_plan_and_may_come_late_or_again(folder: Path) -> None:
    port = free_port()
    agent = DashboardAgent(folder, *SMALL, f"sinks.rerun.connect=127.0.0.1:{port}")
    viewers = []
    try:
        until(lambda: "no viewer at" in agent.told(), agent)
        viewers.append(first := HeadlessViewer(folder, port, "first.rrd"))
        pictures = until(lambda: first.rows("/picture", "EncodedImage:blob"), agent)
        assert Image.open(io.BytesIO(bytes(pictures[0].value))).size == (160, 96)
        assert abs(pictures[0].host_s - time.time()) < 60
        shares = until(lambda: first.rows("/probability/", "Scalars:scalars"), agent)
        assert all(0 <= row.value <= 1 for row in shares)
        until(lambda: first.rows("/clips", "StateChange:state"), agent)
        until(lambda: first.rows("/age_ms/on_display", "Scalars:scalars"), agent)
        assert until(lambda: first.rows("/plan", "TextDocument:text"), agent)

        agent.freeze()
        try:
            until(lambda: "expired" in first.rows("/plan", "TextDocument:text")[-1].value, agent)
        finally:
            agent.thaw()

        first.close()
        until(lambda: "is gone" in agent.told(), agent)
        viewers.append(second := HeadlessViewer(folder, port, "second.rrd"))
        until(lambda: second.rows("/picture", "EncodedImage:blob"), agent)
        clips = until(lambda: second.rows("/clips", "StateChange:state"), agent)
        assert clips[0].pts_s < 5  # the case's history, from before this viewer came
        assert agent.stop() == 0
    finally:
        agent.close()
        for viewer in viewers:
            viewer.close()


def test_a_bridge_that_is_killed_goes_on_in_the_same_recording(folder: Path) -> None:
    port = free_port()
    viewer = HeadlessViewer(folder, port, "viewer.rrd")
    agent = DashboardAgent(folder, *SMALL, f"sinks.rerun.connect=127.0.0.1:{port}")
    try:
        until(lambda: viewer.rows("/picture", "EncodedImage:blob"), agent)
        bridge = next(
            child
            for child in psutil.Process(agent.process.pid).children(recursive=True)
            if "stream_agent.sinks.rerun" in child.cmdline()
        )
        bridge.kill()
        killed_s = time.time()
        until(lambda: viewer.rows("/picture", "EncodedImage:blob")[-1].host_s > killed_s, agent)
        assert len(viewer.read(lambda file: file.recordings())) == 1
        assert viewer.read(lambda file: file.blueprints())  # what it proposes to show first came, too
        assert agent.stop() == 0
    finally:
        agent.close()
        viewer.close()


def test_a_viewer_that_takes_nothing_is_told_and_does_not_hold_up_the_end(folder: Path) -> None:
    """The SDK would keep 100 MB and then block, at exit as well: a listener that accepts and never reads."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        agent = DashboardAgent(folder, *SMALL, f"sinks.rerun.connect={address}")
        try:
            until(lambda: "takes nothing" in agent.told(), agent)
            began_s = time.monotonic()
            assert agent.stop() == 0
            assert time.monotonic() - began_s < 10
            assert "did not stop" not in agent.told()
        finally:
            agent.close()


def test_the_words_name_the_ranking_its_reasons_and_what_to_mind(make_plan: MakePlan) -> None:
    plan: Plan = make_plan()
    text = plan_text(plan)
    assert "Clipping 62%, Coagulation 23%, Tissue Retraction 8%" in text
    assert "- Clipping: Both structures are free." in text
    assert "- mind: Confirm the critical view of safety before clipping." in text
    abstained = make_plan(abstained=True, abstain_reason="gate: black", ranked=(), safety=(), progress="")
    assert "no plan: gate: black" in plan_text(abstained)
    unexplained = make_plan(ranked=tuple(RankedAction(item.action, item.probability) for item in plan.ranked))
    assert "- Clipping" not in plan_text(unexplained)


@pytest.mark.parametrize("address", ["9876", "localhost", "127.0.0.1:0", "127.0.0.1:70000", ":9876", "a:b"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"is not HOST:PORT; write for example 127\.0\.0\.1:9876"):
        load_config(None, [f"sinks.rerun.connect='{address}'"])


def test_another_host_needs_a_line_that_says_so() -> None:
    with pytest.raises(ConfigError, match=r"is another host, and Rerun encrypts nothing; use 127\.0\.0\.1 with ssh -L"):
        load_config(None, ["sinks.rerun.connect=10.0.0.5:9876"])
    config = load_config(None, ["sinks.rerun.connect=10.0.0.5:9876", "sinks.rerun.plaintext=true"])
    assert config.sinks.rerun.connect == "10.0.0.5:9876"


def test_the_tested_version_is_the_pinned_one() -> None:
    assert rerun.__version__ == "0.41.0"
