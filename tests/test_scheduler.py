from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_agent.config import SchedulerConfig
from stream_agent.scheduler import Abort, Decision, Hold, Scheduler, Skip, Start

MS = 1_000_000


def scheduler(*, min_interval_s: float = 0.0, max_staleness_s: float = 0.5, deadline_ms: float = 400) -> Scheduler:
    return Scheduler(
        SchedulerConfig(min_interval_s=min_interval_s, max_staleness_s=max_staleness_s), deadline_ms=deadline_ms
    )


def offer(to: Scheduler, captured_ms: int, now_ms: int | None = None, *, ready: bool = True) -> tuple[Decision, ...]:
    return to.offer(captured_ns=captured_ms * MS, now_ns=(captured_ms if now_ms is None else now_ms) * MS, ready=ready)


def poll(at: Scheduler, now_ms: int, *, ready: bool = True) -> tuple[Decision, ...]:
    return at.poll(now_ns=now_ms * MS, ready=ready)


def test_the_first_fresh_frame_starts_a_request() -> None:
    assert offer(scheduler(), 100) == (Start(100 * MS, 500 * MS),)


def test_the_deadline_counts_from_capture_not_from_submission() -> None:
    assert offer(scheduler(), 100, now_ms=300) == (Start(100 * MS, 500 * MS),)


def test_nothing_starts_while_the_worker_is_not_ready() -> None:
    lazy = scheduler()
    assert offer(lazy, 100, ready=False) == (Skip(100 * MS, "not_ready"),)
    assert lazy.running is None
    assert lazy.pending_ns is None


def test_a_stale_frame_is_not_planned_from() -> None:
    patient = {"max_staleness_s": 0.3}
    assert offer(scheduler(**patient), 100, now_ms=400) == (Start(100 * MS, 500 * MS),)
    assert offer(scheduler(**patient), 100, now_ms=401) == (Skip(100 * MS, "stale"),)


def test_a_frame_whose_deadline_has_passed_is_stale() -> None:
    """With a deadline shorter than `max_staleness_s` a pending frame was once started only to be aborted."""
    busy = scheduler(max_staleness_s=0.5, deadline_ms=50)
    offer(busy, 100)
    offer(busy, 110)
    assert poll(busy, 161) == (Abort(100 * MS),)
    assert poll(busy, 161) == (Skip(110 * MS, "stale"),)


def test_requests_keep_their_distance() -> None:
    calm = scheduler(min_interval_s=0.2)
    offer(calm, 100)
    calm.finished()
    assert offer(calm, 299) == (Skip(299 * MS, "interval"),)
    assert offer(calm, 300) == (Start(300 * MS, 700 * MS),)


def test_a_newer_frame_replaces_the_pending_one() -> None:
    busy = scheduler()
    offer(busy, 100)
    assert offer(busy, 110) == (Hold(110 * MS),)
    assert offer(busy, 120) == (Skip(110 * MS, "superseded"), Hold(120 * MS))
    assert busy.pending_ns == 120 * MS


def test_the_pending_frame_starts_when_the_worker_is_free_and_keeps_its_deadline() -> None:
    busy = scheduler()
    offer(busy, 100)
    offer(busy, 110)
    assert poll(busy, 200) == ()
    busy.finished()
    assert poll(busy, 300) == (Start(110 * MS, 510 * MS),)
    assert busy.pending_ns is None


def test_a_pending_frame_that_went_stale_is_skipped() -> None:
    busy = scheduler(max_staleness_s=0.1)
    offer(busy, 100)
    offer(busy, 110)
    busy.finished()
    assert poll(busy, 300) == (Skip(110 * MS, "stale"),)
    assert poll(busy, 301) == ()


def test_a_pending_frame_of_a_worker_that_died_is_skipped() -> None:
    busy = scheduler()
    offer(busy, 100)
    offer(busy, 110)
    busy.finished()
    assert poll(busy, 120, ready=False) == (Skip(110 * MS, "not_ready"),)


def test_a_request_past_its_deadline_is_aborted_once() -> None:
    slow = scheduler()
    offer(slow, 100)
    assert poll(slow, 500) == ()
    assert poll(slow, 501) == (Abort(100 * MS),)
    assert slow.running is None
    assert poll(slow, 502) == ()


def test_after_an_abort_the_pending_frame_has_its_turn() -> None:
    slow = scheduler()
    offer(slow, 100)
    offer(slow, 450)
    assert poll(slow, 501) == (Abort(100 * MS),), "the worker has not let go yet"
    assert poll(slow, 502) == (Start(450 * MS, 850 * MS),)


step = st.one_of(
    st.tuples(st.just("offer"), st.integers(0, 900), st.booleans()),
    st.tuples(st.just("poll"), st.just(0), st.booleans()),
    st.tuples(st.just("finished"), st.just(0), st.just(True)),
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 300), step), max_size=80),
    st.sampled_from([0.0, 0.05, 0.5]),
    st.sampled_from([0.1, 0.5]),
    st.sampled_from([50.0, 400.0]),
)
def test_whatever_happens_one_request_runs_and_every_frame_is_accounted_for(
    story: list[tuple[int, tuple[str, int, bool]]], min_interval_s: float, max_staleness_s: float, deadline_ms: float
) -> None:
    made = scheduler(min_interval_s=min_interval_s, max_staleness_s=max_staleness_s, deadline_ms=deadline_ms)
    stale_after_ns = min(max_staleness_s * 1000, deadline_ms) * MS
    now_ms, serial = 1000, 0
    running: Start | None = None
    last_start_ms: int | None = None
    offered: list[int] = []
    ends: Counter[int] = Counter()
    for passed_ms, (kind, age_ms, ready) in story:
        now_ms += passed_ms
        if kind == "finished":
            made.finished()
            running = None
            continue
        if kind == "offer":
            serial += 1
            captured_ns = (now_ms - age_ms) * MS + serial  # no two frames are captured at once
            offered.append(captured_ns)
            decisions = made.offer(captured_ns=captured_ns, now_ns=now_ms * MS, ready=ready)
        else:
            decisions = made.poll(now_ns=now_ms * MS, ready=ready)
        for decision in decisions:
            match decision:
                case Abort(captured_ns):
                    assert running is not None and running.captured_ns == captured_ns
                    assert now_ms * MS > running.deadline_ns
                    running = None
                case Start(captured_ns, deadline_ns):
                    assert running is None, "two at a time"
                    assert ready
                    assert now_ms * MS - captured_ns <= stale_after_ns
                    assert deadline_ns == captured_ns + round(deadline_ms * MS)
                    assert last_start_ms is None or now_ms - last_start_ms >= min_interval_s * 1000
                    running, last_start_ms = decision, now_ms
                    ends[captured_ns] += 1
                case Skip(captured_ns, reason):
                    assert reason in ("not_ready", "interval", "stale", "superseded")
                    assert reason != "stale" or now_ms * MS - captured_ns > stale_after_ns
                    ends[captured_ns] += 1
                case Hold(captured_ns):
                    assert made.pending_ns == captured_ns == offered[-1]
        assert made.running == running
        assert kind != "poll" or running is None or now_ms * MS <= running.deadline_ns
        waiting = {made.pending_ns} - {None}
        assert all(ends[captured_ns] == (captured_ns not in waiting) for captured_ns in offered)


@pytest.mark.parametrize("ready", [True, False])
def test_a_poll_of_an_idle_scheduler_decides_nothing(ready: bool) -> None:
    assert poll(scheduler(), 5, ready=ready) == ()
