"""The ROS 2 bridge: plans as String and pictures as Image, publish-only, a process of its own.

    Feed ─messages, pictures▶ Ros2Node ─▶ NAMESPACE/plan, NAMESPACE/next, NAMESPACE/picture

Messages are those that every ROS 2 has (std_msgs, sensor_msgs), so nothing has to be built. `rclpy` comes with ROS 2 and never
from pip, and is imported in this process alone. The middleware looks for others by multicast and encrypts nothing, so discovery
is kept to this host unless the configuration says otherwise.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_agent.child import ChildSide
from stream_agent.clock import NS_PER_S
from stream_agent.errors import ConfigError
from stream_agent.messages import Plan
from stream_agent.sinks.feed import Feed, FeedJob, PlanWatch, one_line

NODE = "stream_agent"
FRAME_ID = "endoscope"
_LOOK_S = 0.02
_NICENESS = 10


class Ros2Job(msgspec.Struct, frozen=True):
    """What the bridge is told to do.

    Attributes:
        feed: Where it reads.
        namespace: Of the topics.
        discovery: `localhost`, `subnet` or `system`.
    """

    feed: FeedJob
    namespace: str
    discovery: str


def environment(discovery: str) -> dict[str, str]:
    """What confines discovery: to this host, also against peers that a shell has named; `system` leaves all as it is.

    The first variable is read by ROS 2 since Iron, the second before.
    """
    if discovery == "localhost":
        return {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", "ROS_LOCALHOST_ONLY": "1", "ROS_STATIC_PEERS": ""}
    if discovery == "subnet":
        return {"ROS_AUTOMATIC_DISCOVERY_RANGE": "SUBNET", "ROS_LOCALHOST_ONLY": "0"}
    return {}


def stamp(wall_ns: int) -> tuple[int, int]:
    """Unix nanoseconds as the seconds and nanoseconds of a ROS time."""
    return divmod(wall_ns, NS_PER_S)


def plan_json(plan: Plan) -> str:
    """The plan as in plans.md, one object."""
    return msgspec.json.encode(plan).decode()


def expiry_json(plan: Plan) -> str:
    """What takes the plan's place when its time is over."""
    return json.dumps({"type": "expired", "stream_id": plan.stream_id, "case_id": plan.case_id, "seq": plan.seq})


def fill_image(message: Any, rgb: NDArray[np.uint8], wall_ns: int) -> Any:  # noqa: ANN401 - a class that ROS generates
    """A sensor_msgs/Image with a picture (height, width, 3), uint8, stamped with its capture."""
    message.header.stamp.sec, message.header.stamp.nanosec = stamp(wall_ns)
    message.header.frame_id = FRAME_ID
    message.height, message.width = rgb.shape[:2]
    message.encoding = "rgb8"
    message.is_bigendian = 0
    message.step = 3 * rgb.shape[1]
    message.data = rgb.tobytes()
    return message


class Ros2Node:
    """The node and its three publishers."""

    def __init__(self, rclpy: ModuleType, job: Ros2Job) -> None:
        from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
        from rclpy.signals import SignalHandlerOptions
        from sensor_msgs.msg import Image
        from std_msgs.msg import String

        self._image, self._string = Image, String
        self._lockstep = job.feed.lockstep
        self._wall_minus_clock_ns = time.time_ns() - time.monotonic_ns()
        self._watch = PlanWatch(lockstep=self._lockstep)
        rclpy.init(args=None, signal_handler_options=SignalHandlerOptions.NO)  # SIGTERM is the parent's word to stop
        self._node = rclpy.create_node(NODE, namespace=job.namespace)
        newest = {"history": HistoryPolicy.KEEP_LAST, "depth": 1}
        # A plan is given to whoever joins late; a picture that is lost is lost, the next one is newer.
        kept = QoSProfile(reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL, **newest)
        passing = QoSProfile(reliability=ReliabilityPolicy.BEST_EFFORT, durability=DurabilityPolicy.VOLATILE, **newest)
        self._plan = self._node.create_publisher(String, "plan", kept)
        self._next = self._node.create_publisher(String, "next", kept)
        self._picture = self._node.create_publisher(Image, "picture", passing)

    @property
    def watched(self) -> bool:
        """Whether anybody subscribes to pictures."""
        return bool(self._picture.get_subscription_count())

    def take_plan(self, plan: Plan, now_ns: int) -> None:
        """A plan was published."""
        if self._watch.take(plan, now_ns):
            self._say(plan_json(plan), one_line(plan))

    def expire(self, now_ns: int) -> None:
        """Take down a plan whose time is over, also when the agent says nothing any more."""
        if (plan := self._watch.expired(now_ns)) is not None:
            self._say(expiry_json(plan), "expired: no plan")

    def take_picture(self, rgb: NDArray[np.uint8], captured_ns: int) -> None:
        """A picture (height, width, 3), uint8."""
        wall_ns = time.time_ns() if self._lockstep else captured_ns + self._wall_minus_clock_ns
        self._picture.publish(fill_image(self._image(), rgb, wall_ns))

    def close(self) -> None:
        """Leave the graph."""
        self._node.destroy_node()

    def _say(self, whole: str, line: str) -> None:
        for publisher, text in ((self._plan, whole), (self._next, line)):
            message = self._string()
            message.data = text
            publisher.publish(message)


def _load(discovery: str) -> ModuleType:
    """rclpy, confined; it never runs before its environment is set.

    Raises:
        ConfigError: It does not load: built for another Python, say. Or its middleware cannot be confined.
    """
    os.environ.update(environment(discovery))
    try:
        import rclpy
        from rclpy.utilities import get_rmw_implementation_identifier
    except ImportError as error:
        version = ".".join(map(str, sys.version_info[:2]))
        raise ConfigError(
            f"sinks.ros2.namespace needs rclpy, which does not load in Python {version} ({error}); source "
            "/opt/ros/DISTRO/setup.bash and run with the Python that this ROS 2 was built for, or unset sinks.ros2.namespace"
        ) from error
    middleware = str(get_rmw_implementation_identifier())
    if discovery != "system" and "zenoh" in middleware:
        raise ConfigError(
            f"sinks.ros2.discovery={discovery} is not heeded by the middleware {middleware}; confine it in its own configuration "
            "and set sinks.ros2.discovery=system, or set RMW_IMPLEMENTATION=rmw_fastrtps_cpp"
        )
    module: ModuleType = rclpy
    return module


def _run(job: Ros2Job, child: ChildSide) -> None:
    rclpy = _load(job.discovery)
    node = Ros2Node(rclpy, job)
    child.notice(f"ROS 2: /{job.namespace}/plan, next and picture, discovery: {job.discovery}")
    child.ready()
    try:
        with Feed(job.feed) as feed:
            while not child.stopped():
                now_ns = time.monotonic_ns()
                for message in feed.messages(_LOOK_S):
                    if isinstance(message, Plan):
                        node.take_plan(message, now_ns)
                node.expire(time.monotonic_ns())
                if not node.watched:
                    feed.rest()
                elif (found := feed.picture()) is not None:
                    header, rgb = found
                    node.take_picture(rgb, header.captured_ns)
    finally:
        node.close()
        rclpy.shutdown()


def main() -> int:
    """Publish until told to stop; the exit code."""
    child = ChildSide()
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)
    try:
        _run(msgspec.json.decode(child.job, type=Ros2Job), child)
    except ConfigError as error:
        child.notice(str(error))
        child.failed(str(error), error.exit_code)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
