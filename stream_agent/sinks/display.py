"""The plan on display: publishes a plan to every sink, and takes it down when its time is over.

No plan leaves here past its `valid_until_ns`, and none stays up past it: an abstention with the reason takes its place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from stream_agent.messages import Plan
from stream_agent.planner.ladder import abstention
from stream_agent.sinks.jsonl import JsonlSink
from stream_agent.telemetry import Telemetry


class Outlet(Protocol):
    """Where plans go."""

    def send(self, message: Plan, *, now_ns: int) -> bool:
        """Pass `message` on at once or not at all; whether it was."""
        ...


class Display:
    """What the sinks were last told.

    Attributes:
        shown: The plan on display; None before the first.
    """

    def __init__(
        self,
        publisher: Outlet,
        jsonl: JsonlSink | None,
        telemetry: Telemetry,
        *,
        valid_ns: int,
        deadline_ns: int,
        config_digest: str,
    ) -> None:
        self.shown: Plan | None = None
        self._publisher = publisher
        self._jsonl = jsonl
        self._telemetry = telemetry
        self._valid_ns = valid_ns
        self._deadline_ns = deadline_ns
        self._config_digest = config_digest

    def show(self, plan: Plan, spans_ms: dict[str, float], *, now_ns: int) -> None:
        """Publish `plan` unless it is the very worker's answer on display; an expired one becomes an abstention."""
        shown = self.shown
        if (
            plan.request_id
            and shown is not None
            and (plan.request_id, plan.revision) == (shown.request_id, shown.revision)
        ):
            return
        if not plan.abstained and now_ns > plan.valid_until_ns:
            self._telemetry.count("plans_expired")
            plan = abstention(plan, "the answer expired before it could be published")
        if plan.abstained:
            plan = msgspec.structs.replace(plan, valid_until_ns=now_ns + self._valid_ns)
        age_ns = now_ns - plan.captured_ns
        plan = msgspec.structs.replace(
            plan,
            published_ns=now_ns,
            spans_ms={**plan.spans_ms, **spans_ms, "total": age_ns / 1e6},
            hashes=msgspec.structs.replace(plan.hashes, config=self._config_digest),
        )
        self._book(plan, age_ns, now_ns)
        self._publisher.send(plan, now_ns=now_ns)
        if self._jsonl is not None:
            self._jsonl.write(plan)
        self.shown = plan

    def expire(self, reason: Callable[[], str], *, now_ns: int) -> None:
        """Take down a plan whose time is over; without this the last one would stand for ever when frames stop coming."""
        shown = self.shown
        if shown is None or now_ns <= shown.valid_until_ns:
            return
        if not shown.abstained:
            self._telemetry.count("plans_expired")
        self.show(abstention(shown, reason()), {}, now_ns=now_ns)

    def sample_age(self, now_ns: int) -> None:
        """Record how old the frame behind the plan on display is now (age of information)."""
        if self.shown is not None:
            self._telemetry.age(now_ns - self.shown.captured_ns)

    def _book(self, plan: Plan, age_ns: int, now_ns: int) -> None:
        self.sample_age(now_ns)  # just before it is replaced: the oldest that the last one ever was
        self._telemetry.count("plans_published", reason=plan.source)
        if plan.abstained:
            self._telemetry.count("plans_abstained", reason=plan.abstain_reason)
            return
        self._telemetry.span(f"capture_to_plan_{plan.source}", age_ns)
        if age_ns > self._deadline_ns:
            self._telemetry.count("plans_missed")
