from __future__ import annotations

from typing import Any

import pytest

from stream_agent.messages import LADDER, Memory, Plan, RankedAction
from stream_agent.planner.ladder import abstention, choose

MEMORY = Memory(stream_id="cam", session_id="s", case_id="case", now_pts_s=5.0, current="a")
RANKED = (RankedAction("b", 0.5), RankedAction("c", 0.3), RankedAction("d", 0.2))


def plan(source: str, **changes: Any) -> Plan:
    fields: dict[str, Any] = {
        "stream_id": "cam",
        "session_id": "s",
        "case_id": "case",
        "request_id": 0 if source == "statistical" else 4,
        "seq": 9 if source == "statistical" else 8,
        "pts_s": 5.0,
        "captured_ns": 1000,
        "valid_until_ns": 2000,
        "source": source,
        "planner": source,
        "current_action": "a",
        "ranked": RANKED,
        "expected_onset_s": 3.0,
        "expected_onset_interval_s": (1.0, 9.0),
    }
    return Plan(**(fields | changes))


def chosen(
    *,
    now_ns: int = 1500,
    gate: str = "",
    memory: Memory = MEMORY,
    statistical: Plan | None = None,
    worker_plan: Plan | None = None,
    worker_state: str = "thinking",
) -> Plan:
    return choose(
        now_ns=now_ns,
        gate=gate,
        memory=memory,
        statistical=statistical or plan("statistical"),
        worker_plan=worker_plan,
        worker_state=worker_state,
    )


def reports(of: Plan) -> dict[str, str]:
    """Rung → what the plan says of it; checks that all are there, in order, and one of them used."""
    assert tuple(report.rung for report in of.rungs) == LADDER
    assert [report.rung for report in of.rungs if report.reason == "used"] == [of.source]
    assert all(report.reason for report in of.rungs)
    return {report.rung: report.reason for report in of.rungs}


def test_without_a_worker_the_statistical_planner_answers() -> None:
    best = chosen(worker_state="no worker is configured")
    assert (best.source, best.ranked, best.seq) == ("statistical", RANKED, 9)
    assert reports(best)["vlm"] == "no worker is configured"
    assert reports(best)["fused"] == "no answer of a model to fuse"


def test_a_valid_answer_of_the_worker_goes_before_the_statistical_one() -> None:
    best = chosen(worker_plan=plan("vlm"))
    assert (best.source, best.request_id, best.seq) == ("vlm", 4, 8)
    assert reports(best)["statistical"] == "a higher rung answered"


def test_a_fused_answer_is_the_highest_rung() -> None:
    best = chosen(worker_plan=plan("fused"))
    assert best.source == "fused"
    assert reports(best)["vlm"] == reports(best)["statistical"] == "a higher rung answered"


@pytest.mark.parametrize(("now_ns", "source"), [(1999, "vlm"), (2000, "vlm"), (2001, "statistical")])
def test_an_answer_stands_to_its_last_nanosecond_and_no_longer(now_ns: int, source: str) -> None:
    best = chosen(now_ns=now_ns, statistical=plan("statistical", valid_until_ns=9000), worker_plan=plan("vlm"))
    assert best.source == source
    if source == "statistical":
        assert reports(best)["vlm"] == "its answer expired; thinking"


@pytest.mark.parametrize("current", ["b", None])
def test_an_answer_for_an_action_that_is_over_is_passed_over(current: str | None) -> None:
    now = Memory(stream_id="cam", session_id="s", case_id="case", now_pts_s=5.0, current=current)
    best = chosen(memory=now, worker_plan=plan("vlm"))
    assert best.source == "statistical"
    assert reports(best)["vlm"] == "its answer was for a, which is over; thinking"


def test_an_answer_for_another_case_is_passed_over() -> None:
    best = chosen(worker_plan=plan("vlm", case_id="last case"))
    assert best.source == "statistical"
    assert reports(best)["vlm"] != "used"


def test_when_every_answer_has_expired_there_is_an_abstention() -> None:
    best = chosen(now_ns=2001, worker_plan=plan("vlm"))
    assert (best.source, best.abstained, best.abstain_reason) == ("abstain", True, "every answer expired")
    assert best.ranked == ()
    assert reports(best)["vlm"].startswith("its answer expired")
    assert reports(best)["statistical"] == "its answer expired"


def test_an_abstaining_statistical_planner_leaves_the_last_rung() -> None:
    silent = plan("abstain", abstained=True, abstain_reason="nothing is known", ranked=())
    best = chosen(statistical=silent)
    assert (best.source, best.abstain_reason) == ("abstain", "nothing is known")
    assert reports(best)["statistical"] == "nothing is known"


@pytest.mark.parametrize("worker_plan", [None, plan("vlm"), plan("fused")])
def test_behind_a_closed_gate_nothing_is_ranked_and_every_rung_says_why(worker_plan: Plan | None) -> None:
    best = chosen(gate="black", worker_plan=worker_plan)
    assert (best.source, best.abstained, best.abstain_reason) == ("abstain", True, "gate: black")
    assert not best.ranked and not best.chain
    assert best.expected_onset_s is None and best.expected_onset_interval_s is None
    told = reports(best)
    assert told["vlm"] == told["statistical"] == "gate: black"


def test_an_abstention_keeps_the_frame_and_drops_every_claim() -> None:
    silent = abstention(plan("vlm"), "no frame for 3 s")
    assert (silent.seq, silent.captured_ns, silent.current_action) == (8, 1000, "a")
    assert (silent.abstained, silent.abstain_reason, silent.source) == (True, "no frame for 3 s", "abstain")
    assert not silent.ranked and not silent.chain and not silent.rungs
    assert silent.expected_onset_s is None
