"""Agents with a dashboard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.sinks.dashboard.agents import SMALL, DashboardAgent, StartDashboard


@pytest.fixture
def start_dashboard() -> Iterator[StartDashboard]:
    """`start_dashboard(*settings)` gives an agent whose page is up."""
    with TemporaryDirectory(prefix="sa") as root:
        agents: list[DashboardAgent] = []

        def start(*settings: str) -> DashboardAgent:
            folder = Path(root) / str(len(agents))
            folder.mkdir()
            agents.append(DashboardAgent(folder, *settings))
            return agents[-1]

        yield start
        for agent in agents:
            agent.close()


@pytest.fixture(scope="module")
def one_agent() -> Iterator[DashboardAgent]:
    """An agent that several tests look at and none changes."""
    with TemporaryDirectory(prefix="sa") as root:
        agent = DashboardAgent(Path(root), *SMALL)
        yield agent
        agent.close()
