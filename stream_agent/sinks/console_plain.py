"""The plain view: one line per change, for logs and screens that are no terminal; pure, no control codes."""

from __future__ import annotations

from stream_agent.clock import NS_PER_S
from stream_agent.sinks.console_state import ConsoleState
from stream_agent.sinks.console_view import abstention, age, clean, duration, health_words, onset

_EVERY_S = 2.0


class PlainView:
    """Decides when a line is due: at once when what it says has changed, else every two seconds if plans still come."""

    def __init__(self) -> None:
        self._said: tuple[str, ...] = ()
        self._said_ns = 0
        self._said_seq = -1

    def line(self, state: ConsoleState, *, now_ns: int) -> str | None:
        """The line due now, or None."""
        if state.plan is None and (state.health is None or state.health.state == "ok"):
            return None
        gist = _gist(state, now_ns)
        seq = -1 if state.plan is None else state.plan.seq
        due = now_ns - self._said_ns >= _EVERY_S * NS_PER_S and seq != self._said_seq
        if gist == self._said and not due:
            return None
        self._said, self._said_ns, self._said_seq = gist, now_ns, seq
        return plain_line(state, now_ns=now_ns)


def plain_line(state: ConsoleState, *, now_ns: int) -> str:
    """Everything that matters on one line."""
    plan = state.plan
    words = [duration(plan.pts_s) if plan is not None else "no plan yet"]
    silent_s = state.silent_s(now_ns)
    if silent_s:
        words.append(f"NO WORD FROM THE AGENT FOR {silent_s:.0f} s")
    if plan is not None:
        going = "" if state.current_s is None else f" {duration(state.current_s)}"
        words.append(f"now: {clean(plan.current_action or 'nothing recognised yet')}{going}")
        if plan.abstained or not plan.ranked:
            words.append(f"no advice: {clean(abstention(plan))}")
        else:
            ranked = ", ".join(f"{clean(item.action)} {item.probability:.0%}" for item in plan.ranked)
            words.append(f"next: {ranked} {onset(plan)}".rstrip())
        left_s = state.valid_for_s(now_ns)
        valid = f"valid {left_s:.1f} s" if left_s >= 0 else f"EXPIRED {age(-left_s)} ago"
        words.append(f"by {plan.source}, age {age(state.age_s(now_ns))}, {valid}")
    if state.health is not None and state.health.state != "ok":
        words.append(f"DEGRADED {health_words(state)}")
    return " | ".join(words)


def _gist(state: ConsoleState, now_ns: int) -> tuple[str, ...]:
    """What makes a line worth printing when it changes; no numbers that always do."""
    plan = state.plan
    top = "" if plan is None or not plan.ranked else plan.ranked[0].action
    return (
        "" if plan is None else plan.current_action or "",
        top,
        "" if plan is None else plan.abstain_reason,
        "expired" if state.expired(now_ns) else "",
        "silent" if state.silent_s(now_ns) else "",
        "" if state.health is None or state.health.state == "ok" else health_words(state),
    )
