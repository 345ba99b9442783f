"""The fitted label model of a procedure pack: a back-off n-gram over actions, with durations.

The distribution over the action after a history h of labels is interpolated from short contexts to long ones, with a
Dirichlet prior of concentration c centred on the shorter context (MacKay & Peto, "A hierarchical Dirichlet language
model", Natural Language Engineering 1, 1995):

    p_0(a) = 1 / (A - 1) for every action but the current one
    p_k(a) = (count(h_k, a) + c p_(k-1)(a)) / (count(h_k) + c),   h_k = the last k labels, k = 0 … order - 1

k = 0 counts actions whatever came before, without the current one. Two neighbouring clips never share an action, so the
current one has probability 0 at every level. A context that reaches the beginning of the case starts with `^`.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from stream_agent.errors import ConfigError
from stream_agent.located_yaml import Location, json_line, read_text
from stream_agent.planner.durations import DurationDistribution

START = "^"
"""Stands before the first action of a case; no action can have this name."""

SCHEMA = 1
_CACHE_SIZE = 4096


class ContextCounts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often each action followed one context, oldest label first; fractions are an expert's pseudo-counts."""

    context: tuple[str, ...]
    next: dict[str, float]


class ModelFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What `planner.json` holds.

    Attributes:
        version: `SCHEMA`.
        statement: Where the counts come from, under which licence, and what they are not good for.
        actions: The pack's, in its order.
        procedures: How many recorded procedures were counted; 0 for an expert's order.
        order: Longest n-gram: `order` - 1 labels of context.
        concentration: c of the formula above.
        counts: One entry per context that was seen.
        durations: One distribution per action.
    """

    version: int
    statement: Annotated[str, msgspec.Meta(min_length=1, max_length=4000)]
    actions: tuple[str, ...]
    procedures: Annotated[int, msgspec.Meta(ge=0)]
    order: Annotated[int, msgspec.Meta(ge=1, le=16)]
    concentration: Annotated[float, msgspec.Meta(gt=0, le=1e6)]
    counts: tuple[ContextCounts, ...]
    durations: dict[str, DurationDistribution]


class ModelFileError(ConfigError):
    """Parts of a model file contradict each other; `location` is where."""

    def __init__(self, message: str, location: Location) -> None:
        super().__init__(message)
        self.location = location


class Support(msgspec.Struct, frozen=True):
    """The counts behind one probability: `count` of `total` moments after `context`."""

    context: tuple[str, ...]
    count: float
    total: float


class NgramModel:
    """Next-action probabilities and durations from label history alone; nothing about it changes but a cache."""

    def __init__(self, file: ModelFile, *, digest: str = "") -> None:
        """Check and index `file`.

        Raises:
            ModelFileError: Its parts contradict each other.
        """
        _check(file)
        self.file = file
        self.digest = digest
        self.actions = file.actions
        self.durations = file.durations
        self._known = frozenset(file.actions)
        self._counts = {entry.context: entry.next for entry in file.counts}
        self._cache: dict[tuple[str, ...], dict[str, float]] = {}

    def next_probabilities(self, labels: Sequence[str], *, complete: bool = True) -> dict[str, float]:
        """Probability of each action after `labels` (oldest first, the last one current); sums to 1.

        The current action is left out unless it is unknown. Unknown labels hide what lies before them. `complete` says
        that `labels` begin with the case: False when older ones were folded away.
        """
        return dict(self.after(self.context(labels, complete=complete)))

    def after(self, context: tuple[str, ...]) -> Mapping[str, float]:
        """The probabilities after a context made by `context()`; remembered, so not to be changed."""
        known = self._cache.get(context)
        if known is None:
            if len(self._cache) >= _CACHE_SIZE:
                self._cache.clear()
            known = self._cache[context] = self._compute(context)
        return known

    def context(self, labels: Sequence[str], *, complete: bool = True) -> tuple[str, ...]:
        """The labels looked at: the newest known ones, at most `order` - 1, with `^` where the case begins."""
        longest = self.file.order - 1
        context: list[str] = []
        for label in reversed(labels):
            if label not in self._known or len(context) >= max(longest, 1):
                return tuple(reversed(context))
            context.append(label)
        if complete and len(context) < longest:
            context.append(START)
        return tuple(reversed(context))

    def support(self, context: Sequence[str], action: str, *, least: float) -> Support:
        """The longest end of `context` seen `least` times or more, and how often `action` followed it."""
        whole = tuple(context)
        for start in range(len(whole)):
            suffix = whole[start:]
            counts = self._counts.get(suffix)
            if counts is not None:
                total = sum(counts.values())
                if total >= least:
                    return Support(suffix, counts.get(action, 0.0), total)
        counts = self._without(self._counts.get((), {}), whole[-1] if whole else START)
        return Support((), counts.get(action, 0.0), sum(counts.values()))

    def _compute(self, context: tuple[str, ...]) -> dict[str, float]:
        current = context[-1] if context else START
        candidates = [action for action in self.actions if action != current]
        probabilities = dict.fromkeys(candidates, 1 / len(candidates))
        concentration = self.file.concentration
        for length in range(min(len(context), self.file.order - 1) + 1):
            counts = self._counts.get(context[len(context) - length :])
            if counts is None:
                if length == 0:
                    continue
                break  # a longer context cannot have been seen either
            counts = self._without(counts, current)
            total = sum(counts.values()) + concentration
            probabilities = {
                action: (counts.get(action, 0.0) + concentration * prior) / total
                for action, prior in probabilities.items()
            }
        return probabilities

    @staticmethod
    def _without(counts: Mapping[str, float], action: str) -> dict[str, float]:
        return {name: count for name, count in counts.items() if name != action}


def load_model(path: Path) -> NgramModel:
    """The model in a `planner.json`.

    Raises:
        ConfigError: It is not one; file, line and remedy are named.
    """
    text = read_text(path)
    raw = text.encode()
    try:
        return NgramModel(msgspec.json.decode(raw, type=ModelFile), digest=hashlib.sha256(raw).hexdigest()[:12])
    except ModelFileError as error:
        raise ConfigError(f"{path}:{json_line(text, error.location)}: {error}") from error
    except msgspec.ValidationError as error:
        line = json_line(text, _location(str(error)))
        raise ConfigError(f"{path}:{line}: {error}; correct it or fit the model again") from error
    except msgspec.DecodeError as error:
        byte = re.search(r"\(byte (\d+)\)", str(error))
        line = raw[: int(byte[1])].count(b"\n") + 1 if byte else text.count("\n") + 1
        raise ConfigError(f"{path}:{line}: {error}; correct it or fit the model again") from error
    except RecursionError as error:
        raise ConfigError(f"{path}:1: nested too deeply; fit the model again") from error


def _location(message: str) -> Location:
    """The path msgspec ends a message with, ``- at `$.counts[3].next` ``, as keys and indices."""
    path = re.search(r"`\$(.*)`$", message)
    parts = re.findall(r"\.(\w+)|\[(\d+)\]", path[1]) if path else []
    return tuple(key or int(index) for key, index in parts)


def encode_model(file: ModelFile) -> bytes:
    """`planner.json`: one line per context, so that a refit shows as a readable difference."""
    pretty = msgspec.to_builtins(file)
    lines = ["{"]
    for key, value in pretty.items():
        if key in ("counts", "durations"):
            entries = (
                [_json(entry) for entry in value]
                if key == "counts"
                else [f"{_json(action)}: {_json(entry)}" for action, entry in value.items()]
            )
            opening, closing = "[]" if key == "counts" else "{}"
            body = ",\n".join(f"    {entry}" for entry in entries)
            lines.append(f"  {_json(key)}: {opening}\n{body}\n  {closing},")
        else:
            lines.append(f"  {_json(key)}: {_json(value)},")
    lines[-1] = lines[-1].removesuffix(",")
    return ("\n".join([*lines, "}"]) + "\n").encode()


def _json(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=-1).decode()


def _check(file: ModelFile) -> None:
    """Refuse parts that contradict each other.

    Raises:
        ModelFileError: The first that do.
    """
    if file.version != SCHEMA:
        raise ModelFileError(
            f"version={file.version} is not {SCHEMA}, which is read here; fit the model again", ("version",)
        )
    known = set(file.actions)
    if len(known) != len(file.actions) or START in known:
        raise ModelFileError(f"actions={list(file.actions)} are not distinct names; correct them", ("actions",))
    seen: set[tuple[str, ...]] = set()
    for index, entry in enumerate(file.counts):
        problem = _context_problem(entry, file, known) or ("it is given twice; merge the two" * (entry.context in seen))
        if problem:
            shown = " → ".join(entry.context) or "(any)"
            raise ModelFileError(f"counts after {shown}: {problem}", ("counts", index))
        seen.add(entry.context)
    if set(file.durations) != known:
        raise ModelFileError("durations must name each of actions once; add or remove entries", ("durations",))
    for action, duration in file.durations.items():
        problem = duration.problem()
        if problem:
            raise ModelFileError(f"durations of {action}: {problem}", ("durations", action))


def _context_problem(entry: ContextCounts, file: ModelFile, known: set[str]) -> str:
    if len(entry.context) >= file.order:
        return f"the context is longer than order={file.order} allows; raise order"
    if not set(entry.context[1:]) <= known or not set(entry.context[:1]) <= known | {START}:
        return "the context names an unknown action; use those in actions"
    for action, count in entry.next.items():
        if action not in known:
            return f"{action} is an unknown action; use those in actions"
        if not math.isfinite(count) or count < 0:
            return f"{action} has count {count}; counts are finite and 0 or more"
    if entry.context and entry.next.get(entry.context[-1], 0) > 0:
        return f"{entry.context[-1]} follows itself; join neighbouring clips"
    return ""
