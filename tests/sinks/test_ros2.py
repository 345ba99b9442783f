"""The ROS 2 bridge against a stand-in for rclpy that only writes down what it was asked to publish.

ROS 2 comes from no package index, so nothing here has met a real one: topics, message fields and the quality of service are
checked as they are handed over, and delivery is not.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stream_agent.config import load_config
from stream_agent.errors import ConfigError
from stream_agent.sinks.ros2 import FRAME_ID, environment, expiry_json, fill_image, plan_json, stamp
from tests.sinks.conftest import MakePlan
from tests.sinks.dashboard.agents import SMALL, DashboardAgent, run_to_the_end

RCLPY = """
import base64, json, os
_calls = open(os.environ["STAND_IN_CALLS"], "a", buffering=1)
def _told(**call): _calls.write(json.dumps(call) + "\\n")
def init(args, signal_handler_options):
    _told(did="init", signals=signal_handler_options, range=os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"])
def shutdown(): _told(did="shutdown")
class _Publisher:
    def __init__(self, topic, profile): self.topic = topic
    def get_subscription_count(self): return 1
    def publish(self, message):
        fields = {k: v for k, v in vars(message).items() if isinstance(v, (str, int))}
        _told(did="publish", topic=self.topic, bytes=len(message.data), **fields)
class _Node:
    def __init__(self, name, namespace): self.namespace = namespace
    def create_publisher(self, kind, topic, profile):
        _told(did="create", kind=kind.__name__, topic=f"/{self.namespace}/{topic}", **vars(profile))
        return _Publisher(topic, profile)
    def destroy_node(self): _told(did="destroy")
def create_node(name, namespace): return _Node(name, namespace)
"""
QOS = """
from types import SimpleNamespace
class QoSProfile:
    def __init__(self, **given): self.__dict__.update(given)
HistoryPolicy = SimpleNamespace(KEEP_LAST="keep_last")
ReliabilityPolicy = SimpleNamespace(RELIABLE="reliable", BEST_EFFORT="best_effort")
DurabilityPolicy = SimpleNamespace(TRANSIENT_LOCAL="transient_local", VOLATILE="volatile")
"""
IMAGE = """
from types import SimpleNamespace
class Image:
    def __init__(self): self.header = SimpleNamespace(stamp=SimpleNamespace(sec=0, nanosec=0), frame_id="")
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="sa") as root:
        yield Path(root)


@pytest.fixture
def calls(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[dict[str, Any]]]:
    """A stand-in on the path of children; what it was asked so far."""
    for name, text in {
        "rclpy/__init__.py": RCLPY,
        "rclpy/qos.py": QOS,
        "rclpy/utilities.py": "import os\ndef get_rmw_implementation_identifier(): return os.environ['STAND_IN_RMW']\n",
        "rclpy/signals.py": "class SignalHandlerOptions: NO = 'none'\n",
        "sensor_msgs/__init__.py": "",
        "sensor_msgs/msg.py": IMAGE,
        "std_msgs/__init__.py": "",
        "std_msgs/msg.py": "class String: data = ''\n",
    }.items():
        (folder / "ros" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "ros" / name).write_text(text)
    record = folder / "calls.jsonl"
    record.touch()
    monkeypatch.setenv("PYTHONPATH", str(folder / "ros"), prepend=os.pathsep)
    monkeypatch.setenv("STAND_IN_CALLS", str(record))
    monkeypatch.setenv("STAND_IN_RMW", "rmw_fastrtps_cpp")
    return lambda: [json.loads(line) for line in record.read_text().splitlines(keepends=True) if line.endswith("\n")]


def test_plans_and_pictures_are_published_and_an_expired_plan_is_taken_down(
    folder: Path, calls: Callable[[], list[dict[str, Any]]]
) -> None:
    def said(topic: str, agent: DashboardAgent, holds: str = "") -> dict[str, Any]:
        deadline_s = time.monotonic() + 30
        while not (found := [call for call in calls() if call.get("topic") == topic and holds in call.get("data", "")]):
            assert time.monotonic() < deadline_s, (agent.told(), calls()[-5:])
            time.sleep(0.05)
        return found[-1]

    agent = DashboardAgent(folder, *SMALL, "sinks.ros2.namespace=theatre/agent")
    try:
        picture = said("picture", agent)
        assert (picture["width"], picture["height"], picture["step"]) == (160, 96, 480)
        assert picture["bytes"] == 160 * 96 * 3
        plan = json.loads(said("plan", agent, '"abstained":false')["data"])
        assert len(plan["ranked"]) == 3
        agent.freeze()
        try:
            assert said("next", agent, "expired")["data"] == "expired: no plan"
        finally:
            agent.thaw()
        assert agent.stop() == 0
    finally:
        agent.close()
    made = {call["topic"]: call for call in calls() if call["did"] == "create"}
    assert set(made) == {f"/theatre/agent/{name}" for name in ("plan", "next", "picture")}
    assert made["/theatre/agent/plan"]["durability"] == "transient_local"
    assert made["/theatre/agent/picture"]["reliability"] == "best_effort"
    assert all(call["depth"] == 1 for call in made.values())
    assert calls()[0] == {"did": "init", "signals": "none", "range": "LOCALHOST"}
    assert [call["did"] for call in calls()[-2:]] == ["destroy", "shutdown"]


def test_without_rclpy_the_agent_says_what_it_needs(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"sinks\.ros2\.namespace=x needs the package rclpy.*source /opt/ros/DISTRO"):
        from stream_agent.sinks.bridges import ROS2, require_installed

        require_installed(ROS2, load_config(None, ["sinks.ros2.namespace=x"]))
    assert run_to_the_end(folder, "sinks.ros2.namespace=x", *SMALL) == ConfigError.exit_code


def test_an_rclpy_of_another_python_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sourcing ROS 2 puts its rclpy on the path of every Python, and it loads in one version of it alone."""
    (folder / "ros" / "rclpy").mkdir(parents=True)
    (folder / "ros" / "rclpy" / "__init__.py").write_text("raise ImportError('no _rclpy_pybind11')")
    monkeypatch.setenv("PYTHONPATH", str(folder / "ros"))
    agent = DashboardAgent(folder, *SMALL, "sinks.ros2.namespace=x")
    try:
        deadline_s = time.monotonic() + 30
        while "which does not load in Python 3." not in agent.told():
            assert time.monotonic() < deadline_s, agent.told()
            time.sleep(0.05)
        assert "no _rclpy_pybind11" in agent.told()
        assert agent.stop() == 0  # the agent goes on without it
    finally:
        agent.close()


@pytest.mark.usefixtures("calls")
def test_a_middleware_that_heeds_no_confinement_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """rmw_zenoh ignores the variables that keep discovery on this host."""
    monkeypatch.setenv("STAND_IN_RMW", "rmw_zenoh_cpp")
    agent = DashboardAgent(folder, *SMALL, "sinks.ros2.namespace=x")
    try:
        deadline_s = time.monotonic() + 30
        while "sinks.ros2.discovery=localhost is not heeded by the middleware rmw_zenoh_cpp" not in agent.told():
            assert time.monotonic() < deadline_s, agent.told()
            time.sleep(0.05)
        assert (folder / "calls.jsonl").read_text() == ""
    finally:
        agent.close()


def test_a_picture_fills_every_field_that_a_subscriber_reads() -> None:
    message = SimpleNamespace(header=SimpleNamespace(stamp=SimpleNamespace(sec=0, nanosec=0), frame_id=""))
    rgb = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
    fill_image(message, rgb, 1_700_000_000_250_000_000)
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (1_700_000_000, 250_000_000)
    assert (message.height, message.width, message.encoding, message.step) == (2, 4, "rgb8", 12)
    assert (message.header.frame_id, message.is_bigendian, message.data) == (FRAME_ID, 0, rgb.tobytes())


def test_a_plan_is_the_json_of_the_other_sinks_and_its_end_names_it(make_plan: MakePlan) -> None:
    plan = make_plan()
    assert json.loads(plan_json(plan))["ranked"][0]["action"] == "Clipping"
    assert json.loads(expiry_json(plan)) == {
        "type": "expired",
        "stream_id": "endoscope",
        "case_id": "case-7",
        "seq": 18230,
    }


def test_times_and_discovery() -> None:
    assert stamp(5) == (0, 5)
    assert environment("localhost")["ROS_LOCALHOST_ONLY"] == "1"
    assert environment("localhost")["ROS_STATIC_PEERS"] == ""  # another host that a shell has named
    assert environment("subnet") == {"ROS_AUTOMATIC_DISCOVERY_RANGE": "SUBNET", "ROS_LOCALHOST_ONLY": "0"}
    assert environment("system") == {}


@pytest.mark.parametrize("namespace", ["/rooted", "two//slashes", "1digit", "has space"])
def test_a_namespace_that_ros_would_refuse_is_refused_first(namespace: str) -> None:
    with pytest.raises(ConfigError, match=r"sinks\.ros2\.namespace"):
        load_config(None, [f"sinks.ros2.namespace={namespace}"])
