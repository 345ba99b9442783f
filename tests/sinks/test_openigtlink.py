"""The OpenIGTLink bridge of a running agent, received by pyigtl's own client over TCP."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyigtl
import pytest

from stream_agent.sinks.openigtlink import NEXT, PICTURE, PLAN
from tests.sinks.dashboard.agents import SMALL, DashboardAgent


@pytest.fixture
def agent() -> Iterator[DashboardAgent]:
    with TemporaryDirectory(prefix="sa") as root:
        running = DashboardAgent(Path(root), *SMALL, "sinks.openigtlink.port=0")
        yield running
        running.close()


@pytest.fixture
def slicer(agent: DashboardAgent) -> Iterator[Any]:
    deadline_s = time.monotonic() + 30
    while not (found := re.search(r"OpenIGTLink: 127.0.0.1:(\d+)", agent.told())):
        assert time.monotonic() < deadline_s, agent.told()
        time.sleep(0.02)
    client = pyigtl.OpenIGTLinkClient(host="127.0.0.1", port=int(found[1]))
    yield client
    client.stop()


def test_plans_and_pictures_arrive_and_an_expired_plan_is_taken_down(agent: DashboardAgent, slicer: Any) -> None:
    plan = json.loads(slicer.wait_for_message(PLAN, timeout=20).string)
    assert len(plan["ranked"]) == 3
    assert plan["ranked"][0]["action"] in slicer.wait_for_message(NEXT, timeout=20).string
    picture = slicer.wait_for_message(PICTURE, timeout=20)
    assert picture.image.shape[-1] == 3
    assert picture.image.max() > 0
    assert abs(time.time() - picture.timestamp) < 30
    agent.freeze()
    try:
        deadline_s = time.monotonic() + 20
        while "expired" not in slicer.wait_for_message(NEXT, timeout=20).string:
            assert time.monotonic() < deadline_s
    finally:
        agent.thaw()
    assert agent.stop() == 0
