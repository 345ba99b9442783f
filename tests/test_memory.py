from __future__ import annotations

import math
import sys
import time
from collections import Counter, defaultdict
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_agent.config import MemoryConfig, SegmenterConfig
from stream_agent.memory import NearHistoryMemory
from stream_agent.messages import Clip, ClipEvent, Evidence, FrameHeader, Memory
from stream_agent.perception.segmenter import Segmenter

ACTIONS = ("a", "b", "c", "d")
INSTRUMENTS = ("hook", "grasper")


def nhfm(*, max_clips: int = 64, evict_block: int = 16, min_dwell_s: float = 0.0) -> NearHistoryMemory:
    return NearHistoryMemory(
        MemoryConfig(max_clips=max_clips, evict_block=evict_block, case_id="case-1"),
        Segmenter(ACTIONS, SegmenterConfig(mean_clip_s=5.0, min_dwell_s=min_dwell_s)),
        INSTRUMENTS,
    )


def header(pts_s: float, session: str = "s") -> FrameHeader:
    return FrameHeader(stream_id="cam", session_id=session, seq=0, pts_s=pts_s, captured_ns=round(pts_s * 1e9))


def evidence(action: str | None, *, gate: str = "", instruments: tuple[float, ...] = (), pts_s: float = 0) -> Evidence:
    posterior = () if action is None else tuple(0.9997 if name == action else 0.0001 for name in ACTIONS)
    return Evidence(seq=0, pts_s=pts_s, gate=gate, actions=posterior, instruments=instruments)


def watch(memory: NearHistoryMemory, labels: str, *, from_s: float = 0.0, each_s: float = 10.0) -> list[ClipEvent]:
    """Show one frame a second of each label in turn; what opened and closed."""
    events: list[ClipEvent] = []
    for step in range(round(len(labels) * each_s)):
        pts_s = from_s + step
        events += memory.observe(header(pts_s), evidence(labels[int(step // each_s)]))
    return events


class Step(NamedTuple):
    dt_s: float
    evidence: Evidence


steps = st.lists(
    st.builds(
        Step,
        st.sampled_from([0.0, 0.1, 1.0, 7.0]) | st.floats(-5, 60),
        st.builds(
            evidence,
            st.sampled_from([None, *ACTIONS]),
            gate=st.sampled_from(["", "", "", "black"]),
            instruments=st.sampled_from([(), (0.9, 0.1), (1.0, 1.0), (0.5, math.nan)]),
        ),
    ),
    max_size=80,
)


def totals(closed: list[Clip]) -> tuple[Counter[str], dict[str, float]]:
    counts = Counter(clip.action for clip in closed)
    durations: dict[str, float] = defaultdict(float)
    for clip in closed:
        durations[clip.action] += clip.duration_s
    return counts, durations


@settings(max_examples=150, deadline=None)
@given(steps, st.sampled_from([(2, 1), (3, 2), (5, 2), (8, 7), (64, 16)]))
def test_whatever_is_seen_the_memory_is_bounded_and_nothing_is_lost(shown: list[Step], bounds: tuple[int, int]) -> None:
    max_clips, evict_block = bounds
    memory = nhfm(max_clips=max_clips, evict_block=evict_block)
    closed: list[Clip] = []
    pts_s = 0.0
    before = memory.snapshot()
    for step in shown:
        pts_s = max(0.0, pts_s + step.dt_s)
        events = memory.observe(header(pts_s), step.evidence)
        closed += [event.clip for event in events if event.kind == "closed"]
        now = memory.snapshot()
        assert len(now.clips) <= max_clips
        assert all(left != right for left, right in pairwise(now.labels))
        counts, durations = totals(closed)
        held = totals(list(now.clips))
        for total in now.folded:
            held[0][total.action] += total.count
            held[1][total.action] += total.duration_s
        assert held[0] == counts
        assert held[1] == pytest.approx(durations)
        if now.evictions == before.evictions:
            assert now.clips[: len(before.clips)] == before.clips
            assert now.labels[: len(before.clips)] == before.labels[: len(before.clips)]
        else:
            assert now.evictions == before.evictions + 1
            assert len(now.clips) == len(before.clips) + 1 - evict_block
            assert now.clips[:-1] == before.clips[evict_block:]
        assert sum(total.count for total in now.folded) == now.evictions * evict_block
        assert now.now_pts_s >= before.now_pts_s
        assert all(seconds >= 0 for seconds in now.instrument_s)
        assert math.isfinite(sum(now.instrument_s))
        before = now


@settings(max_examples=50, deadline=None)
@given(steps, steps)
def test_a_snapshot_is_not_touched_by_what_is_seen_later(first: list[Step], later: list[Step]) -> None:
    memory = nhfm(max_clips=3, evict_block=2)
    pts_s = 0.0
    for step in first:
        pts_s = max(0.0, pts_s + step.dt_s)
        memory.observe(header(pts_s), step.evidence)
    taken = memory.snapshot()
    looked_like = repr(taken)
    for step in later:
        pts_s = max(0.0, pts_s + step.dt_s)
        memory.observe(header(pts_s), step.evidence)
    assert repr(taken) == looked_like
    with pytest.raises(AttributeError):
        taken.current = "d"  # type: ignore[misc]


@settings(max_examples=50, deadline=None)
@given(steps, steps)
def test_a_new_case_shares_nothing_with_the_last(first: list[Step], second: list[Step]) -> None:
    used, fresh = nhfm(), nhfm()
    pts_s = 0.0
    for step in first:
        pts_s = max(0.0, pts_s + step.dt_s)
        used.observe(header(pts_s), step.evidence)
    used.restore((Clip("a", 0.0, 5.0, 0.9),))
    used.new_case("case-2")
    fresh.new_case("case-2")
    assert used.snapshot() == fresh.snapshot()
    assert used.case_id == "case-2"
    pts_s = 0.0
    for step in second:
        pts_s = max(0.0, pts_s + step.dt_s)
        assert used.observe(header(pts_s), step.evidence) == fresh.observe(header(pts_s), step.evidence)
    assert repr(used.snapshot()) == repr(fresh.snapshot())


def test_the_past_is_labels_and_the_present_is_the_newest_frame() -> None:
    memory = nhfm()
    events = watch(memory, "abc")
    snapshot = memory.snapshot()
    assert [(event.kind, event.clip.action) for event in events] == [
        ("opened", "a"),
        ("closed", "a"),
        ("opened", "b"),
        ("closed", "b"),
        ("opened", "c"),
    ]
    assert [(clip.action, clip.start_pts_s, clip.end_pts_s) for clip in snapshot.clips] == [("a", 0, 10), ("b", 10, 20)]
    assert (snapshot.current, snapshot.current_start_pts_s, snapshot.now_pts_s) == ("c", 20, 29)
    assert snapshot.labels == ("a", "b", "c")
    assert snapshot.near == header(29.0)
    assert (snapshot.stream_id, snapshot.session_id, snapshot.case_id) == ("cam", "s", "case-1")
    assert snapshot.current_confidence > 0.9


def test_the_end_of_the_stream_closes_the_open_clip() -> None:
    memory = nhfm()
    watch(memory, "ab")
    (event,) = memory.finish()
    assert (event.kind, event.clip.action, event.clip.end_pts_s) == ("closed", "b", 19)
    assert memory.snapshot().labels == ("a", "b")
    assert memory.finish() == ()


def test_a_closed_gate_changes_nothing_but_time() -> None:
    memory = nhfm()
    watch(memory, "ab")
    memory.observe(header(20.0), evidence("b", instruments=(1.0, 0.0)))
    before = memory.snapshot()
    for second in range(21, 40):
        events = memory.observe(header(second), evidence("d", gate="black", instruments=(1.0, 1.0)))
        assert events == ()
    after = memory.snapshot()
    assert (after.clips, after.folded, after.evictions) == (before.clips, before.folded, before.evictions)
    assert (after.current, after.current_start_pts_s) == (before.current, before.current_start_pts_s)
    assert after.instrument_s == before.instrument_s
    assert after.instruments == ()
    assert after.now_pts_s == 39
    assert after.current_confidence < before.current_confidence


def test_instrument_seconds_add_up_over_what_was_seen() -> None:
    memory = nhfm()
    for second in range(11):
        memory.observe(header(second), evidence("a", instruments=(1.0, float(second > 5))))
    assert memory.snapshot().instrument_s == (10.0, 5.0)
    memory.observe(header(500.0), evidence("a", instruments=(1.0, 0.0)))
    assert memory.snapshot().instrument_s == (15.0, 5.0)  # a gap in the stream is not use of the hook


def test_instrument_use_is_empty_until_instruments_are_observed_and_bounded_from_then_on() -> None:
    memory = nhfm()
    watch(memory, "a")
    assert memory.snapshot().instrument_use == ()
    for second in range(10, 2000):
        memory.observe(header(second), evidence("a", instruments=(1.0, 0.0)))
    hook, grasper = memory.snapshot().instrument_use
    assert (hook.seen_s, hook.uses, hook.taken_pts_s, hook.last_pts_s) == (1990.0, 1, 10.0, 1999.0)
    assert (grasper.seen_s, grasper.uses, grasper.last_pts_s) == (0.0, 0, None)
    memory.observe(header(2000), evidence(None, gate="black", instruments=(0.0, 1.0)))
    assert memory.snapshot().instrument_use == (hook, grasper)
    memory.new_case("case-2")
    assert memory.snapshot().instrument_use == ()


def test_instruments_of_an_earlier_frame_are_not_passed_off_as_the_newest_frames() -> None:
    """A frame whose recogniser said nothing of instruments once kept those of the frame before it."""
    memory = nhfm()
    memory.observe(header(0.0), evidence("a", instruments=(1.0, 0.0)))
    memory.observe(header(1.0), evidence("a"))
    assert memory.snapshot().instruments == ()


def test_time_that_goes_back_is_survived() -> None:
    memory = nhfm()
    watch(memory, "ab")
    assert memory.observe(header(3.0), evidence("d")) == ()
    assert memory.snapshot().now_pts_s == 19
    assert memory.snapshot().current == "b"


RESTORED = (Clip("a", 100.0, 150.0, 0.9), Clip("b", 150.0, 180.0, 0.8))


def test_restored_clips_are_placed_before_the_new_stream() -> None:
    memory = nhfm()
    memory.restore(RESTORED)
    watch(memory, "c")
    snapshot = memory.snapshot()
    assert snapshot.labels == ("a", "b", "c")
    assert [(clip.start_pts_s, clip.end_pts_s) for clip in snapshot.clips] == [(-80, -30), (-30, 0)]


def test_restored_clips_that_lie_before_the_stream_keep_their_times() -> None:
    memory = nhfm()
    memory.restore(RESTORED)
    watch(memory, "c", from_s=200.0)
    assert memory.snapshot().clips == RESTORED


def test_restoring_nothing_changes_nothing() -> None:
    memory = nhfm()
    memory.restore(())
    watch(memory, "ab")
    assert memory.snapshot().labels == ("a", "b")


def test_an_action_that_goes_on_after_a_restart_is_one_clip() -> None:
    """The clip before a restart and the one after it once stood side by side under one label, as two moments."""
    memory = nhfm()
    memory.restore(RESTORED)
    watch(memory, "b")
    snapshot = memory.snapshot()
    assert snapshot.labels == ("a", "b")
    assert snapshot.current_start_pts_s == -30
    watch(memory, "bd", from_s=10.0)
    snapshot = memory.snapshot()
    assert snapshot.labels == ("a", "b", "d")
    merged = snapshot.clips[-1]
    assert (merged.start_pts_s, merged.end_pts_s) == (-30, 20)
    assert 0.8 < merged.confidence < 1.0
    assert snapshot.current_start_pts_s == 20


def test_a_journal_with_the_halves_of_one_clip_restores_to_one() -> None:
    """What a restart in the middle of an action leaves in the journal: the same label twice in a row."""
    memory = nhfm()
    memory.restore((*RESTORED, Clip("b", 180.0, 240.0, 0.5)))
    (first, second) = memory.snapshot().clips
    assert first == RESTORED[0]
    assert (second.action, second.start_pts_s, second.end_pts_s) == ("b", 150.0, 240.0)
    assert second.confidence == pytest.approx((30 * 0.8 + 60 * 0.5) / 90)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(ACTIONS), st.floats(0, 50), st.floats(0, 1)), max_size=12),
    st.lists(st.sampled_from(ACTIONS), max_size=12),
    st.sampled_from([(2, 1), (3, 2), (64, 16)]),
)
def test_labels_never_repeat_across_a_restart(
    journalled: list[tuple[str, float, float]], shown: list[str], bounds: tuple[int, int]
) -> None:
    memory = nhfm(max_clips=bounds[0], evict_block=bounds[1])
    end_s = 0.0
    clips: list[Clip] = []
    for action, lasts_s, confidence in journalled:
        clips.append(Clip(action, end_s, end_s + lasts_s, confidence))
        end_s += lasts_s
    memory.restore(tuple(clips))
    for step in range(len(shown) * 3):
        memory.observe(header(step), evidence(shown[step // 3]))
        now = memory.snapshot()
        assert all(left != right for left, right in pairwise(now.labels))
        assert all(left.end_pts_s <= right.start_pts_s + 1e-6 for left, right in pairwise(now.clips))
        assert all(clip.end_pts_s <= step + 1e-6 and 0 <= clip.confidence <= 1 for clip in now.clips)
        assert now.current_start_pts_s <= step


def held_bytes(value: Any, seen: set[int]) -> int:
    if id(value) in seen or isinstance(value, type):
        return 0
    seen.add(id(value))
    parts: list[Any] = []
    if isinstance(value, dict):
        parts = [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple):
        parts = list(value)
    else:
        parts = [getattr(value, name) for name in getattr(value, "__struct_fields__", ())]
        parts += [getattr(value, name, None) for name in getattr(type(value), "__slots__", ()) if name != "__weakref__"]
        parts += list(getattr(value, "__dict__", {}).values())
    return sys.getsizeof(value) + sum(held_bytes(part, seen) for part in parts)


def test_hours_of_stream_hold_no_more_than_its_first_minutes() -> None:
    """Invariant 4 at a reduced count: bytes and work of the last frames against those once the label list was full."""
    memory = nhfm(max_clips=16, evict_block=4)
    shown = [evidence(action, instruments=(1.0, 0.0)) for action in ACTIONS]

    def held() -> int:
        return held_bytes(memory, set()) + held_bytes(memory.snapshot(), set())

    early = 0
    at_s = []
    for frame in range(60_000):
        if frame % 10_000 == 0:
            at_s.append(time.process_time())
        memory.observe(header(frame * 0.25), shown[frame // 40 % len(shown)])
        if frame == 40 * 40 - 1:  # as many clips since the last eviction as at the end
            early = held()
    late = held()
    at_s.append(time.process_time())
    assert memory.snapshot().evictions > 300
    assert abs(late - early) <= 0.1 * early
    assert at_s[-1] - at_s[-2] < 3 * (at_s[2] - at_s[1]), "the ten thousandth frames cost more and more"


def test_an_empty_memory_is_a_valid_snapshot() -> None:
    assert nhfm().snapshot() == Memory(
        stream_id="", session_id="", case_id="case-1", now_pts_s=0.0, instrument_s=(0.0, 0.0)
    )
