from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_agent.messages import (
    LADDER,
    RANKED,
    Abort,
    ActionTotal,
    ChainStep,
    Clip,
    ClipEvent,
    Evidence,
    FrameHeader,
    FromWorker,
    Hashes,
    Health,
    Memory,
    Notice,
    Plan,
    PlanFailure,
    PlanRequest,
    PlanUpdate,
    RankedAction,
    RungReport,
    ToWorker,
)

HEADER = FrameHeader(stream_id="cam", session_id="s", seq=4, pts_s=1.5, captured_ns=7, signals=(0.0, 1.0))
MEMORY = Memory(
    stream_id="cam",
    session_id="s",
    case_id="c",
    now_pts_s=9.0,
    clips=(Clip("a", 0.0, 4.0, 0.9), Clip("b", 4.0, 6.0, 0.8)),
    folded=(ActionTotal("a", 3, 20.0),),
    current="c",
    near=HEADER,
)
PLAN = Plan(
    stream_id="cam",
    session_id="s",
    case_id="c",
    request_id=3,
    seq=4,
    pts_s=1.5,
    captured_ns=7,
    valid_until_ns=9,
    source="vlm",
    planner="scripted",
    rungs=tuple(RungReport(rung, "used") for rung in LADDER),
    ranked=(RankedAction("a", 0.5, "why"), RankedAction("b", 0.3), RankedAction("c", 0.2)),
    expected_onset_s=2.0,
    expected_onset_interval_s=(1.0, 3.0),
    chain=(ChainStep("a", 0.5, 2.0),),
    spans_ms={"total": 1.0},
    hashes=Hashes(model="abc"),
)
EVERY = [
    HEADER,
    Evidence(seq=4, pts_s=1.5, actions=(0.5, 0.5), instruments=(0.1,), out_of_body=0.2),
    ClipEvent("closed", Clip("a", 0.0, 1.0, 0.5), 2.0),
    MEMORY,
    PlanRequest(request_id=3, memory=MEMORY, deadline_ns=8, goal="g"),
    PLAN,
    PlanUpdate(stream_id="cam", session_id="s", request_id=3, seq=4, text="because"),
    PlanFailure(3, "cancelled"),
    Abort(3),
    Health(stream_id="cam", sent_ns=1, state="ok", parts={"source": "ok"}),
    Notice("odd"),
]


@pytest.mark.parametrize("message", EVERY, ids=lambda message: type(message).__name__)
def test_every_message_survives_both_encodings(message: msgspec.Struct) -> None:
    for codec in (msgspec.msgpack, msgspec.json):
        assert codec.decode(codec.encode(message), type=type(message)) == message


@pytest.mark.parametrize("message", EVERY, ids=lambda message: type(message).__name__)
def test_no_message_can_be_changed(message: msgspec.Struct) -> None:
    with pytest.raises(AttributeError):
        setattr(message, message.__struct_fields__[0], None)


@pytest.mark.parametrize("message", [message for message in EVERY if isinstance(message, PlanRequest | Abort)])
def test_a_worker_tells_its_messages_apart(message: PlanRequest | Abort) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=ToWorker) == message


@pytest.mark.parametrize(
    "message", [message for message in EVERY if isinstance(message, Plan | PlanUpdate | PlanFailure)]
)
def test_the_agent_tells_a_workers_messages_apart(message: Plan | PlanUpdate | PlanFailure) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=FromWorker) == message


def test_a_request_is_no_answer() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(PlanFailure(1, "x")), type=ToWorker)


@pytest.mark.parametrize(
    ("field", "value"), [("seq", "4"), ("pts_s", "1.5"), ("source", "oracle"), ("ranked", [["a", "much"]])]
)
def test_a_field_of_another_type_is_refused_and_named(field: str, value: Any) -> None:
    wire = msgspec.json.decode(msgspec.json.encode(PLAN)) | {field: value}
    with pytest.raises(msgspec.ValidationError, match=field):
        msgspec.json.decode(msgspec.json.encode(wire), type=Plan)


def test_labels_are_the_closed_clips_then_the_open_one() -> None:
    assert MEMORY.labels == ("a", "b", "c")
    assert msgspec.structs.replace(MEMORY, current=None).labels == ("a", "b")


def test_a_plan_ranks_three_and_the_ladder_ends_in_abstention() -> None:
    assert RANKED == 3
    assert LADDER[-1] == "abstain"
    assert len(set(LADDER)) == 4


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_a_clip_lasts_from_its_start_to_its_end(start_s: float, lasts_s: float) -> None:
    assert Clip("a", start_s, start_s + lasts_s, 1.0).duration_s == pytest.approx(lasts_s, abs=1e-6)
