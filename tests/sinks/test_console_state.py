from __future__ import annotations

from collections.abc import Callable

import pytest

from stream_agent.messages import Clip, ClipEvent, Health, Memory, Notice, Plan, PlanUpdate, RankedAction
from stream_agent.sinks.console_state import ConsoleState, initials

MakePlan = Callable[..., Plan]
S = 1_000_000_000


def test_age_and_expiry_run_on_without_any_message(make_plan: MakePlan) -> None:
    state = ConsoleState()
    state.take(make_plan(), arrived_ns=100 * S)
    assert (state.age_s(101 * S), state.valid_for_s(101 * S), state.expired(101 * S)) == (1.0, 1.0, False)
    assert (state.age_s(105 * S), state.valid_for_s(105 * S), state.expired(105 * S)) == (5.0, -3.0, True)


def test_in_lockstep_the_newest_message_is_the_clock(make_plan: MakePlan) -> None:
    state = ConsoleState(lockstep=True)
    state.take(make_plan(), arrived_ns=7)
    assert not state.expired(10**18)
    assert state.age_s(10**18) == 0.012
    state.take(Health(stream_id="e", sent_ns=103 * S, state="ok", parts={}), arrived_ns=8)
    assert state.expired(0)


def test_silence_is_told_after_a_while_and_ends_with_a_word(make_plan: MakePlan) -> None:
    state = ConsoleState()
    assert state.silent_s(50 * S) == 0
    state.take(make_plan(), arrived_ns=100 * S)
    assert state.silent_s(101 * S) == 0
    assert state.silent_s(104 * S) == 4
    state.take(Notice("back"), arrived_ns=104 * S)
    assert state.silent_s(104 * S) == 0


def test_elapsed_time_of_the_current_action_needs_its_start(make_plan: MakePlan) -> None:
    state = ConsoleState()
    state.take(make_plan(), arrived_ns=0)
    assert state.current_s is None
    state.take(ClipEvent("opened", Clip("Dissection", 700.0, 702.0, 0.9), 702.0), arrived_ns=0)
    assert state.current_s == pytest.approx(54.2)
    state.take(ClipEvent("closed", Clip("Dissection", 700.0, 760.0, 0.9), 762.0), arrived_ns=0)
    assert state.current_s is None
    assert [clip.action for clip in state.clips] == ["Dissection"]


def test_a_memory_snapshot_gives_a_late_viewer_the_history(make_plan: MakePlan) -> None:
    state = ConsoleState()
    clips = (Clip("A", 0.0, 5.0, 1.0), Clip("B", 5.0, 9.0, 1.0))
    memory = Memory(
        stream_id="e", session_id="s", case_id="c", now_pts_s=20.0, clips=clips, current="C", current_start_pts_s=9.0
    )
    state.take(memory, arrived_ns=0)
    assert tuple(state.clips) == clips
    assert state.open_clip == Clip("C", 9.0, 20.0, 0.0)


def test_another_case_starts_with_an_empty_screen(make_plan: MakePlan) -> None:
    state = ConsoleState()
    state.take(make_plan(), arrived_ns=0)
    state.take(ClipEvent("closed", Clip("A", 0.0, 5.0, 1.0), 5.0), arrived_ns=0)
    state.take(make_plan(case_id="another", spans_ms={}), arrived_ns=0)
    assert not state.clips
    assert state.latency_ms() == {}


def test_streamed_rationale_belongs_to_its_plan_only(make_plan: MakePlan) -> None:
    state = ConsoleState()
    ranked = (RankedAction("X", 0.6, "from the plan"), RankedAction("Y", 0.3), RankedAction("Z", 0.1))
    state.take(make_plan(request_id=4, ranked=ranked), arrived_ns=0)
    assert state.why == "from the plan"
    for text in ("both ", "ducts"):
        state.take(PlanUpdate(stream_id="e", session_id="s1", request_id=4, seq=1, text=text), arrived_ns=0)
    assert state.why == "both ducts"
    state.take(make_plan(request_id=5, ranked=ranked), arrived_ns=0)
    assert state.why == "from the plan"


def test_a_rationale_that_was_dropped_leaves_no_half_of_itself(make_plan: MakePlan) -> None:
    state = ConsoleState()
    ranked = (RankedAction("X", 0.6, "from the plan"), RankedAction("Y", 0.3), RankedAction("Z", 0.1))
    state.take(make_plan(request_id=4, ranked=ranked), arrived_ns=0)
    told = PlanUpdate(stream_id="e", session_id="s1", request_id=4, seq=1, text="1. X: half a sen")
    state.take(told, arrived_ns=0)
    dropped = PlanUpdate(stream_id="e", session_id="s1", request_id=4, seq=1, problem="cut off", final=True)
    state.take(dropped, arrived_ns=0)
    assert state.why == "from the plan"


def test_endless_rationale_does_not_fill_the_memory(make_plan: MakePlan) -> None:
    state = ConsoleState()
    state.take(make_plan(request_id=4), arrived_ns=0)
    for _ in range(100):
        state.take(PlanUpdate(stream_id="e", session_id="s1", request_id=4, seq=1, text="x" * 1000), arrived_ns=0)
    assert len(state.why) <= 4000


def test_latency_is_the_median_of_recent_plans_with_the_total_last(make_plan: MakePlan) -> None:
    state = ConsoleState()
    for total_ms in (1.0, 100.0, 3.0):
        state.take(make_plan(spans_ms={"total": total_ms, "gate": 0.5}), arrived_ns=0)
    assert list(state.latency_ms().items()) == [("gate", 0.5), ("total", 3.0)]


def test_the_pack_gives_codes_and_unknown_actions_get_initials() -> None:
    state = ConsoleState(codes={"Clipping": "CLP"})
    assert state.style("Clipping") == ("CLP", 0)
    assert state.style("Calot triangle dissection") == ("CTD", 1)
    assert [initials(name) for name in ("Clipping", "tissue_retraction", "", "  ")] == ["CLI", "TR", "?", "?"]
