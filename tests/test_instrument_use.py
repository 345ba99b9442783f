"""Instrument use: sums, shares and times that any stream leaves bounded."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_agent.instrument_use import RECENT_S, InstrumentUseTracker, use_after

presence = st.lists(st.sampled_from([0.0, 0.4, 0.5, 1.0, math.nan]), max_size=4)


def watched(*rows: tuple[float, ...], step_s: float = 1.0) -> InstrumentUseTracker:
    tracker = InstrumentUseTracker(2)
    for second, row in enumerate(rows):
        tracker.observe(row, pts_s=second * step_s, step_s=step_s if second else 0.0)
    return tracker


def test_seconds_times_and_uses_are_told_apart_per_instrument() -> None:
    first, second = watched((1, 0), (1, 0), (0, 1), *[(0, 1)] * 6, (1, 1)).snapshot()
    assert (first.seen_s, first.uses, first.taken_pts_s, first.last_pts_s) == (2.0, 2, 9.0, 9.0)
    assert (second.seen_s, second.uses, second.taken_pts_s, second.last_pts_s) == (8.0, 1, 2.0, 9.0)


def test_replayed_rows_leave_what_watching_them_leaves() -> None:
    rows = [(1, 0), (1, 0), (0, 1)]
    assert use_after(rows, 2) == watched(*rows).snapshot()
    assert use_after([], 2) == InstrumentUseTracker(2).snapshot()


def test_a_short_gap_is_not_a_new_use() -> None:
    (first, _) = watched((1, 0), (0, 0), (0, 0), (1, 0)).snapshot()
    assert (first.uses, first.taken_pts_s) == (1, 0.0)


def test_the_recent_share_rises_and_fades_with_its_time_constant() -> None:
    (used, unused) = watched((0, 0), *[(1, 0)] * 10).snapshot()
    assert used.recent == pytest.approx([1 - math.exp(-10 / constant_s) for constant_s in RECENT_S])
    assert unused.recent == (0.0,) * len(RECENT_S)
    (faded, _) = watched((0, 0), *[(1, 0)] * 10, *[(0, 0)] * 10).snapshot()
    assert faded.recent == pytest.approx(
        [share * math.exp(-10 / constant_s) for share, constant_s in zip(used.recent, RECENT_S, strict=True)]
    )


def test_the_frame_rate_does_not_matter() -> None:
    slow = watched(*[(1, 0)] * 11).snapshot()[0]
    fast = watched(*[(1, 0)] * 101, step_s=0.1).snapshot()[0]
    assert fast.seen_s == pytest.approx(slow.seen_s)
    assert fast.recent == pytest.approx(slow.recent)


def test_what_was_not_observed_changes_nothing() -> None:
    tracker = watched((1, 0))
    before = tracker.snapshot()
    tracker.observe((), pts_s=60.0, step_s=5.0)
    assert tracker.snapshot() == before


@given(st.lists(st.tuples(presence, st.floats(0, 5)), max_size=60))
def test_whatever_is_seen_shares_stay_shares(shown: list[tuple[list[float], float]]) -> None:
    tracker = InstrumentUseTracker(3)
    pts_s = 0.0
    for row, step_s in shown:
        pts_s += step_s
        tracker.observe(row, pts_s=pts_s, step_s=step_s)
        for use in tracker.snapshot():
            assert all(0 <= share <= 1 for share in use.recent)
            assert 0 <= use.seen_s <= pts_s + 1e-9
            assert use.last_pts_s is None or use.taken_pts_s <= use.last_pts_s <= pts_s
    assert len(tracker.snapshot()) == 3
