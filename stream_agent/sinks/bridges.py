"""The bridges that a configuration names, each a supervised process that has not been started yet."""

from __future__ import annotations

import importlib.util
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from stream_agent.config import AgentConfig
from stream_agent.errors import ConfigError
from stream_agent.procedure import ProcedurePack
from stream_agent.sinks.feed import FeedJob
from stream_agent.workers import Worker

_READY_S = 30.0
_RESTARTS_PER_MINUTE = 3


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of bridge.

    Attributes:
        name: As shown to the user.
        section: Of `sinks`, which holds `fps` and `max_pixels`, too.
        switch: The key that turns it on.
        package: What it imports.
        remedy: How to get that.
    """

    name: str
    section: str
    switch: str
    package: str
    remedy: str

    def wanted(self, config: AgentConfig) -> bool:
        """Whether the configuration names it."""
        return getattr(getattr(config.sinks, self.section), self.switch) is not None

    @property
    def installed(self) -> bool:
        """Whether what it imports is there."""
        return importlib.util.find_spec(self.package) is not None


OPENIGTLINK = Kind("OpenIGTLink", "openigtlink", "port", "pyigtl", "install stream-agent[igtl]")
RERUN = Kind("Rerun", "rerun", "connect", "rerun", "install stream-agent[rerun]")
ROS2 = Kind(
    "ROS 2",
    "ros2",
    "namespace",
    "rclpy",
    "it comes with ROS 2 and not from pip: source /opt/ros/DISTRO/setup.bash and run with the Python of that ROS 2",
)
KINDS = (OPENIGTLINK, RERUN, ROS2)


def open_bridges(
    config: AgentConfig, pack: ProcedurePack, endpoint: Callable[[str], str], *, lockstep: bool
) -> list[Worker]:
    """Those that are wanted.

    Raises:
        ConfigError: One needs what is not installed.
    """
    return [
        _worker(kind, job) for kind, job in _jobs(config, pack, endpoint, lockstep) if require_installed(kind, config)
    ]


def require_installed(kind: Kind, config: AgentConfig) -> bool:
    """True; or else.

    Raises:
        ConfigError: What it imports is not there.
    """
    if not kind.installed:
        value = getattr(getattr(config.sinks, kind.section), kind.switch)
        raise ConfigError(
            f"sinks.{kind.section}.{kind.switch}={value} needs the package {kind.package}, which is not installed; "
            f"{kind.remedy}"
        )
    return True


def _jobs(
    config: AgentConfig, pack: ProcedurePack, endpoint: Callable[[str], str], lockstep: bool
) -> Iterator[tuple[Kind, dict[str, object]]]:
    sinks, transport = config.sinks, config.transport
    for kind in KINDS:
        if not kind.wanted(config):
            continue
        section = getattr(sinks, kind.section)
        feed = FeedJob(
            plans=endpoint("plans"),
            frames=transport.connect or endpoint("frames"),
            frame_keys=str(transport.keys.absolute()) if transport.connect and transport.keys else "",
            fps=section.fps,
            max_pixels=section.max_pixels,
            lockstep=lockstep,
        )
        job: dict[str, object] = {"feed": feed}
        if kind is OPENIGTLINK:
            job |= {"port": sinks.openigtlink.port}
        elif kind is RERUN:
            job |= {"connect": sinks.rerun.connect, "session": uuid.uuid4().hex, "actions": pack.action_names}
        else:
            job |= {"namespace": sinks.ros2.namespace, "discovery": sinks.ros2.discovery}
        yield kind, job


def _worker(kind: Kind, job: dict[str, object]) -> Worker:
    message = msgspec.json.encode(job)
    return Worker(
        kind.name,
        f"stream_agent.sinks.{kind.section}",
        lambda: message,
        restarts_per_minute=_RESTARTS_PER_MINUTE,
        ready_timeout_s=_READY_S,
    )
