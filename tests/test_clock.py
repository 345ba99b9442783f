from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from stream_agent.clock import NS_PER_S, Clock, ManualClock, MonotonicClock


def test_the_monotonic_clock_is_the_hosts() -> None:
    clock: Clock = MonotonicClock()
    before_ns = time.monotonic_ns()
    now_ns = clock.now_ns()
    assert before_ns <= now_ns <= time.monotonic_ns()


def test_a_manual_clock_stands_still_until_told() -> None:
    clock = ManualClock(5)
    assert clock.now_ns() == clock.now_ns() == 5
    clock.advance(seconds=1.5)
    assert clock.now_ns() == 5 + 3 * NS_PER_S // 2


@given(st.integers(0, 2**62), st.lists(st.integers(0, 2**62) | st.floats(0, 1e6), max_size=30))
def test_a_manual_clock_never_goes_back(start_ns: int, moves: list[int | float]) -> None:
    clock = ManualClock(start_ns)
    for move in moves:
        before_ns = clock.now_ns()
        if isinstance(move, int):
            clock.advance_to(move)
            assert clock.now_ns() == max(before_ns, move)
        else:
            clock.advance(seconds=move)
        assert clock.now_ns() >= before_ns
