"""Rules of a procedure: declared in `rules.yaml`, judged by this code, never by a model.

The same rules add cautions to a plan, verify one, and reward one in training. Four kinds, a closed set:

    requires_before   `action` only after every one of `before` has been done (for `min_s` seconds each)
    at_most_between   `action` at most `times` since `between` was last done
    not_after         `action` no more once `after` has been done
    caution_when      no order at all: a caution while the condition `when` holds

Only the first three can be violated. Durations count the open clip too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from stream_agent.config import Section
from stream_agent.messages import Memory

Severity: TypeAlias = Literal["info", "caution", "warning"]
SEVERITIES: tuple[Severity, ...] = ("warning", "caution", "info")
"""Gravest first."""

Location: TypeAlias = tuple[str | int, ...]
Text = Annotated[str, Field(min_length=1, max_length=600)]
Label = Annotated[str, Field(min_length=1, max_length=48, pattern=r"^\w[\w ,.'()/&+-]*$")]
Seconds = Annotated[float, Field(ge=0, le=86_400)]


class CaseFacts:
    """What has happened in a case so far, read off one `Memory`.

    Attributes:
        counts: Clips per action, the folded and the open one included.
        seconds: Seconds per action, likewise.
        current: The action going on, or None.
        current_s: How long it has been going on.
        recent: Labels of the clips still held and the open one, oldest first.
        visible: Instruments present at the near frame.
        instrument_s: Seconds each instrument has been seen.
    """

    __slots__ = ("counts", "current", "current_confidence", "current_s", "instrument_s", "recent", "seconds", "visible")

    def __init__(self, memory: Memory, instruments: tuple[str, ...]) -> None:
        """Read `memory`; `instruments` are the pack's, whose order the memory's values follow."""
        counts: dict[str, int] = {}
        seconds: dict[str, float] = {}
        for total in memory.folded:
            counts[total.action] = counts.get(total.action, 0) + total.count
            seconds[total.action] = seconds.get(total.action, 0.0) + total.duration_s
        for clip in memory.clips:
            counts[clip.action] = counts.get(clip.action, 0) + 1
            seconds[clip.action] = seconds.get(clip.action, 0.0) + clip.end_pts_s - clip.start_pts_s
        current = memory.current
        self.current_s = 0.0
        if current is not None:
            self.current_s = max(0.0, memory.now_pts_s - memory.current_start_pts_s)
            counts[current] = counts.get(current, 0) + 1
            seconds[current] = seconds.get(current, 0.0) + self.current_s
        self.counts: Mapping[str, int] = counts
        self.seconds: Mapping[str, float] = seconds
        self.current = current
        self.current_confidence = memory.current_confidence
        self.recent = memory.labels
        self.visible = frozenset(
            name for name, presence in zip(instruments, memory.instruments, strict=False) if presence >= 0.5
        )
        self.instrument_s: Mapping[str, float] = dict(zip(instruments, memory.instrument_s, strict=False))

    def since(self, action: str, mark: str) -> int:
        """Clips of `action` since the last clip of `mark`; all that are known when `mark` was never done."""
        count = 0
        for label in reversed(self.recent):
            if label == mark:
                return count
            count += label == action
        # Folded clips are older than the held ones; where `mark` is among them their order is lost, so none count.
        return count if self.counts.get(mark, 0) else self.counts.get(action, 0)


class Condition(Section):
    """A conjunction over the facts of a case; what is left out does not matter.

    An empty condition always holds.
    """

    current: tuple[Label, ...] = Field(default=(), max_length=16, description="One of these is going on.")
    current_longer_than_s: Seconds | None = Field(default=None, description="The current action has lasted this long.")
    confidence_below: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="The belief in the current action is lower than this."
    )
    done: tuple[Label, ...] = Field(
        default=(), max_length=16, description="All of these have been done or are going on."
    )
    not_done: tuple[Label, ...] = Field(default=(), max_length=16, description="None of these has been done.")
    at_least_clips: Annotated[int, Field(ge=1, le=10_000)] | None = Field(
        default=None, description="So many clips have begun, of any action."
    )
    instruments: tuple[Label, ...] = Field(default=(), max_length=16, description="All of these are visible now.")
    seen: dict[Label, Seconds] = Field(
        default_factory=dict, max_length=16, description="Each instrument has been seen at least so many seconds."
    )

    def holds(self, facts: CaseFacts) -> bool:
        """Whether every part that is given is true."""
        if self.current and facts.current not in self.current:
            return False
        if self.current_longer_than_s is not None and (
            facts.current is None or facts.current_s <= self.current_longer_than_s
        ):
            return False
        if self.confidence_below is not None and (
            facts.current is None or facts.current_confidence >= self.confidence_below
        ):
            return False
        if self.at_least_clips is not None and sum(facts.counts.values()) < self.at_least_clips:
            return False
        return (
            all(action in facts.counts for action in self.done)
            and not any(action in facts.counts for action in self.not_done)
            and all(instrument in facts.visible for instrument in self.instruments)
            and all(facts.instrument_s.get(name, 0.0) >= least_s for name, least_s in self.seen.items())
        )


class _Rule(Section):
    id: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-z0-9][a-z0-9-]*$")]
    severity: Severity = "caution"
    text: Text
    source: Text

    @property
    def caution(self) -> str:
        """The rule as one line of a plan."""
        return f"{self.severity}: {self.text} ({self.source})"

    def violated(self, facts: CaseFacts, action: str) -> bool:
        """Whether beginning `action` now breaks the rule."""
        raise NotImplementedError

    def concerns(self, facts: CaseFacts, action: str) -> bool:
        """Whether a plan that ranks `action` should carry the rule as a caution."""
        return self.violated(facts, action)

    def references(self) -> tuple[tuple[Location, str], ...]:
        """Every action the rule names outside a condition, with its place in the rule."""
        raise NotImplementedError


class RequiresBefore(_Rule):
    """`action` only after every one of `before` has been done for `min_s` seconds."""

    kind: Literal["requires_before"]
    action: Label
    before: Annotated[tuple[Label, ...], Field(min_length=1, max_length=16)]
    min_s: Seconds = 0.0

    def violated(self, facts: CaseFacts, action: str) -> bool:
        """Whether beginning `action` now breaks the rule."""
        return action == self.action and any(
            needed not in facts.counts or facts.seconds[needed] < self.min_s for needed in self.before
        )

    def references(self) -> tuple[tuple[Location, str], ...]:
        """Every action the rule names, with its place in the rule."""
        return ((("action",), self.action), *((("before", place), name) for place, name in enumerate(self.before)))


class AtMostBetween(_Rule):
    """`action` at most `times` since `between` was last done."""

    kind: Literal["at_most_between"]
    action: Label
    between: Label
    times: Annotated[int, Field(ge=1, le=1000)]

    def violated(self, facts: CaseFacts, action: str) -> bool:
        """Whether beginning `action` now breaks the rule."""
        return action == self.action and facts.since(action, self.between) >= self.times

    def references(self) -> tuple[tuple[Location, str], ...]:
        """Every action the rule names, with its place in the rule."""
        return ((("action",), self.action), (("between",), self.between))


class NotAfter(_Rule):
    """`action` no more once `after` has been done or is going on."""

    kind: Literal["not_after"]
    action: Label
    after: Label

    def violated(self, facts: CaseFacts, action: str) -> bool:
        """Whether beginning `action` now breaks the rule."""
        return action == self.action and self.after in facts.counts

    def references(self) -> tuple[tuple[Location, str], ...]:
        """Every action the rule names, with its place in the rule."""
        return ((("action",), self.action), (("after",), self.after))


class CautionWhen(_Rule):
    """A caution while `when` holds, for a plan that ranks `action` (any plan if left out)."""

    kind: Literal["caution_when"]
    action: Label | None = None
    when: Condition = Condition()

    @model_validator(mode="after")
    def _says_when(self) -> CautionWhen:
        if self.action is None and self.when == Condition():
            raise ValueError(
                f"rule {self.id} names neither action nor when, so it would always apply; give one of them"
            )
        return self

    def violated(self, facts: CaseFacts, action: str) -> bool:  # noqa: ARG002 - a caution forbids nothing
        """False: a caution is advice, not an order."""
        return False

    def concerns(self, facts: CaseFacts, action: str) -> bool:
        """Whether a plan that ranks `action` should carry the caution."""
        return self.action in (None, action) and self.when.holds(facts)

    def references(self) -> tuple[tuple[Location, str], ...]:
        """Every action the rule names, with its place in the rule."""
        return () if self.action is None else ((("action",), self.action),)


Rule: TypeAlias = Annotated[RequiresBefore | AtMostBetween | NotAfter | CautionWhen, Field(discriminator="kind")]
