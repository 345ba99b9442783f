"""Features: what each number means, and that none is ever missing or endless."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_agent.messages import ActionTotal, Clip, InstrumentUse, Memory
from stream_agent.planner.features import (
    instrument_features,
    instrument_names,
    label_features,
    label_names,
    spoken,
)

ACTIONS = ("cut", "hold", "clip")
INSTRUMENTS = ("hook", "grasper")


def memory_of(**more: object) -> Memory:
    return Memory(stream_id="", session_id="", case_id="", **({"now_pts_s": 100.0} | more))  # type: ignore[arg-type]


def named(memory: Memory) -> dict[str, float]:
    return dict(zip(label_names(ACTIONS), label_features(memory, ACTIONS), strict=True))


def time(seconds: float) -> float:
    return math.log1p(seconds / 5)


def test_label_features_read_clips_totals_and_the_open_clip() -> None:
    found = named(
        memory_of(
            folded=(ActionTotal("clip", 2, 30.0),),
            clips=(Clip("cut", 10.0, 40.0, 1.0), Clip("hold", 40.0, 70.0, 1.0)),
            current="cut",
            current_start_pts_s=70.0,
        )
    )
    assert (found["now cut"], found["before hold"], found["before that cut"], found["now hold"]) == (1, 1, 1, 0)
    assert found["clips of cut"] == pytest.approx(math.log1p(2))
    assert found["clips of clip"] == pytest.approx(math.log1p(2))
    assert found["clips"] == pytest.approx(math.log1p(5))
    assert found["time in cut"] == pytest.approx(time(60))
    assert found["time since cut"] == 0
    assert found["time since hold"] == pytest.approx(time(30))
    assert found["time in current action"] == pytest.approx(time(30))
    assert found["length of the action before"] == pytest.approx(time(30))
    assert found["time since the first action"] == pytest.approx(time(90))


def test_instrument_features_tell_in_use_from_seen_before_from_never_seen() -> None:
    hook = InstrumentUse(seen_s=20.0, uses=2, taken_pts_s=90.0, last_pts_s=100.0, recent=(0.9, 0.8, 0.4, 0.2))
    found = dict(
        zip(
            instrument_names(INSTRUMENTS),
            instrument_features(memory_of(instrument_use=(hook, InstrumentUse(recent=(0.0,) * 4))), INSTRUMENTS),
            strict=True,
        )
    )
    assert found["hook in the last 10 s"] == 0.8
    assert found["hook seen within 5 s"] == 1.0
    assert found["hook in use"] == pytest.approx(time(10))
    assert found["uses of hook"] == pytest.approx(math.log1p(2))
    assert found["grasper seen within 200 s"] == 0.0
    assert found["time since grasper"] == pytest.approx(time(3600))


def test_what_is_cited_is_said_with_its_unit_and_nothing_is_not_cited() -> None:
    assert spoken("time since Hook", time(30)) == "time since Hook: 30 s"
    assert spoken("time since Hook", time(3600)) == "time since Hook: an hour or more, or never"
    assert spoken("uses of Hook", math.log1p(3)) == "uses of Hook: 3"
    assert spoken("Hook in the last 10 s", 0.4) == "Hook in the last 10 s: 40 % of the time"
    for name in ("time in cut", "clips of cut", "Hook in the last 3 s", "Hook seen within 5 s", "now cut"):
        assert spoken(name, 0.0) == ""


label = st.sampled_from([*ACTIONS, "unknown", ""])
seconds = st.floats(0, 1e6)
use = st.builds(
    InstrumentUse,
    seen_s=seconds,
    uses=st.integers(0, 1000),
    taken_pts_s=seconds,
    last_pts_s=st.none() | seconds,
    recent=st.tuples(*[st.floats(0, 1)] * 4),
)


@given(
    st.lists(st.builds(Clip, label, seconds, seconds, st.floats(0, 1)), max_size=5),
    st.lists(st.builds(ActionTotal, label, st.integers(0, 1000), seconds), max_size=3),
    st.none() | label,
    seconds,
    seconds,
    st.lists(use, max_size=4),
)
def test_every_number_is_finite_and_bounded_whatever_is_remembered(
    clips: list[Clip],
    folded: list[ActionTotal],
    current: str | None,
    start_s: float,
    now_s: float,
    uses: list[InstrumentUse],
) -> None:
    memory = memory_of(
        now_pts_s=now_s,
        clips=tuple(clips),
        folded=tuple(folded),
        current=current,
        current_start_pts_s=start_s,
        instrument_use=tuple(uses),
    )
    labels, instruments = label_features(memory, ACTIONS), instrument_features(memory, INSTRUMENTS)
    assert len(labels) == len(label_names(ACTIONS))
    assert len(instruments) == len(instrument_names(INSTRUMENTS))
    assert all(math.isfinite(value) and 0 <= value < 20 for value in labels + instruments)
