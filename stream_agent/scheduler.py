"""When to ask the planner worker, and what to drop: pure, time is an argument.

At most one request runs and one frame is pending; a newer frame replaces the pending one; a request past its deadline
is aborted. Every frame that was offered and not planned from has a named reason.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

from stream_agent.clock import NS_PER_S
from stream_agent.config import SchedulerConfig

SkipReason: TypeAlias = Literal["not_ready", "interval", "stale", "superseded"]


class Start(NamedTuple):
    """Ask the worker now, from the frame captured at `captured_ns`."""

    captured_ns: int
    deadline_ns: int


class Skip(NamedTuple):
    """Never plan from the frame captured at `captured_ns`, for this reason."""

    captured_ns: int
    reason: SkipReason


class Hold(NamedTuple):
    """The worker is busy: the frame captured at `captured_ns` is pending until a newer one replaces it."""

    captured_ns: int


class Abort(NamedTuple):
    """The running request is past its deadline."""

    captured_ns: int


Decision: TypeAlias = Start | Skip | Hold | Abort


class Scheduler:
    """The state between decisions: what runs, what is pending, when the last request began."""

    def __init__(self, config: SchedulerConfig, *, deadline_ms: float) -> None:
        self._min_interval_ns = round(config.min_interval_s * NS_PER_S)
        self._budget_ns = round(deadline_ms * 1e6)
        # Nothing is asked whose answer is expired already.
        self._max_staleness_ns = min(round(config.max_staleness_s * NS_PER_S), self._budget_ns)
        self._running: Start | None = None
        self._pending_ns: int | None = None
        self._started_ns: int | None = None

    @property
    def running(self) -> Start | None:
        """The request that the worker has."""
        return self._running

    @property
    def pending_ns(self) -> int | None:
        """Capture time of the frame that waits for the worker."""
        return self._pending_ns

    def offer(self, *, captured_ns: int, now_ns: int, ready: bool) -> tuple[Decision, ...]:
        """A new frame may be planned from; the decisions that follow, an earlier pending frame's first."""
        superseded: tuple[Decision, ...] = ()
        if self._pending_ns is not None:
            superseded = (Skip(self._pending_ns, "superseded"),)
            self._pending_ns = None
        if ready and self._running is not None:
            self._pending_ns = captured_ns
            return (*superseded, Hold(captured_ns))
        return (*superseded, self._try(captured_ns, now_ns, ready))

    def poll(self, *, now_ns: int, ready: bool) -> tuple[Decision, ...]:
        """Time has passed: abort what is past its deadline, start what is pending once the worker is free."""
        if self._running is not None:
            if now_ns <= self._running.deadline_ns:
                return ()
            expired = Abort(self._running.captured_ns)
            self._running = None
            return (expired,)  # the pending frame waits for the next look: the worker has not let go yet
        return self._start_pending(now_ns, ready)

    def finished(self) -> None:
        """The worker has answered, failed or died; it has nothing running any more."""
        self._running = None

    def _start_pending(self, now_ns: int, ready: bool) -> tuple[Decision, ...]:
        if self._pending_ns is None:
            return ()
        captured_ns, self._pending_ns = self._pending_ns, None
        return (self._try(captured_ns, now_ns, ready),)

    def _try(self, captured_ns: int, now_ns: int, ready: bool) -> Start | Skip:
        if not ready:
            return Skip(captured_ns, "not_ready")
        if now_ns - captured_ns > self._max_staleness_ns:
            return Skip(captured_ns, "stale")
        if self._started_ns is not None and now_ns - self._started_ns < self._min_interval_ns:
            return Skip(captured_ns, "interval")
        # The deadline counts from capture: a frame that waited has less of it left.
        self._running = Start(captured_ns, captured_ns + self._budget_ns)
        self._started_ns = now_ns
        return self._running
