"""What bridges share: when a plan may be shown and is taken down, its one line, and which bridges a configuration names."""

from __future__ import annotations

from pathlib import Path

import pytest

from stream_agent.config import load_config
from stream_agent.errors import ConfigError
from stream_agent.procedure import load_pack
from stream_agent.sinks.bridges import KINDS, Kind, open_bridges
from stream_agent.sinks.feed import PlanWatch, one_line
from tests.sinks.conftest import MakePlan, S

SETTINGS = {
    "OpenIGTLink": "sinks.openigtlink.port=0",
    "Rerun": "sinks.rerun.connect=127.0.0.1:9876",
    "ROS 2": "sinks.ros2.namespace=agent",
}


def test_a_plan_is_taken_down_once_when_its_time_is_over(make_plan: MakePlan) -> None:
    watch = PlanWatch(lockstep=False)
    plan = make_plan()  # valid until 102 s
    assert watch.take(plan, 101 * S)
    assert watch.expired(102 * S) is None
    before = watch.shown
    assert before is plan
    assert watch.expired(102 * S + 1) is plan
    assert watch.shown is None
    assert watch.expired(200 * S) is None


def test_a_plan_that_comes_too_late_is_never_shown_and_takes_down_what_was(make_plan: MakePlan) -> None:
    watch = PlanWatch(lockstep=False)
    assert watch.take(make_plan(), 101 * S)
    late = make_plan(seq=2)
    assert not watch.take(late, 103 * S)
    assert watch.expired(103 * S) is late


def test_in_lockstep_this_host_s_clock_takes_nothing_down(make_plan: MakePlan) -> None:
    watch = PlanWatch(lockstep=True)
    assert watch.take(make_plan(), 500 * S)
    assert watch.expired(500 * S) is None


def test_one_line_is_the_ranking_or_why_there_is_none(make_plan: MakePlan) -> None:
    assert one_line(make_plan()) == "Clipping 62%, Coagulation 23%, Tissue Retraction 8%"
    assert one_line(make_plan(abstained=True, abstain_reason="gate: black", ranked=())) == "no plan: gate: black"


def test_no_bridge_is_opened_that_no_line_names() -> None:
    pack = load_pack(Path("cholecystectomy"))
    assert open_bridges(load_config(None, []), pack, lambda name: f"ipc://{name}", lockstep=False) == []


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_bridge_is_a_process_when_its_package_is_there_and_one_message_when_not(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = load_pack(Path("cholecystectomy"))
    config = load_config(None, [SETTINGS[kind.name]])
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    (worker,) = open_bridges(config, pack, lambda name: f"ipc://{name}", lockstep=False)
    assert worker.name == kind.name
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=f"needs the package {kind.package}, which is not installed; "):
        open_bridges(config, pack, lambda name: f"ipc://{name}", lockstep=False)
