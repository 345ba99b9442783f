"""A recogniser for streams that carry instrument presence instead of pixels.

The instrument that matters most leads (a clip applier before scissors … before the grasper), as in the rule by which the
annotation's actions came from its triplets; each leading instrument has a posterior over the actions, with equal priors.
What the last one, the grasper alone, says may depend on what led before it. Nothing in view says nothing: the posterior is
flat, and whatever went on goes on.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Annotated

import msgspec

from stream_agent.errors import ConfigError
from stream_agent.messages import Evidence, FrameHeader
from stream_agent.perception.protocol import Thumbnail

Probability = Annotated[float, msgspec.Meta(gt=0.0, le=1.0)]
_PRESENT = 0.5


class SignalsTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `signals.json` holds.

    Attributes:
        about: Where it comes from, the command that made it, and its licence.
        actions: Names, in the order of every posterior.
        instruments: Names, in the order of a frame's signals.
        leading: Instruments that tell an action, the first of those present leads.
        posterior: P(action) under equal priors, by leading instrument; `X after Y` for the last of `leading`, X, where Y led
            before it and it says something else then.
    """

    about: str
    actions: tuple[str, ...]
    instruments: tuple[str, ...]
    leading: tuple[str, ...]
    posterior: dict[str, tuple[Probability, ...]]

    def mistake(self) -> str:
        """What is wrong with it; empty if nothing."""
        if not self.leading or len(set(self.leading)) != len(self.leading):
            return f"leading={list(self.leading)} must be one or more distinct instruments"
        if unknown := [name for name in self.leading if name not in self.instruments]:
            return f"leading={unknown} are no instruments"
        known = {*self.leading, *(after(self.leading[-1], name) for name in self.leading[:-1])}
        if not set(self.leading) <= set(self.posterior) <= known:
            return f"posterior has rows for {sorted(self.posterior)}, but leads are {list(self.leading)}"
        for name, row in self.posterior.items():
            if len(row) != len(self.actions) or abs(math.fsum(row) - 1.0) > 1e-6:
                return f"posterior {name}: {list(row)} must be one probability per action, summing to 1"
        return ""


def after(instrument: str, before: str) -> str:
    """The row of `instrument` where `before` led before it."""
    return f"{instrument} after {before}"


class SignalsRecogniser:
    """Evidence from `header.signals`, one look after the other."""

    name: str = "signals"

    def __init__(self, table: SignalsTable, digest: str = "") -> None:
        """Take a table without a mistake, such as `load_signals_table` gives."""
        self.digest = digest
        self._table = table
        self._places = tuple((name, table.instruments.index(name)) for name in table.leading)
        self._flat = tuple(1.0 / len(table.actions) for _ in table.actions)
        self._session_id = ""
        self.reset()

    def reset(self) -> None:
        """Forget what was seen: a new session begins."""
        self._before = ""
        self._seen = False

    def evidence(self, header: FrameHeader, thumbnail: Thumbnail | None) -> Evidence:  # noqa: ARG002 - the protocol's
        """Evidence of one header, the next of its session.

        Without any action when it has no signals, one is not a number, or no instrument was seen in the session yet.

        Raises:
            ConfigError: The signals are not as many as the pack's instruments.
        """
        if header.session_id != self._session_id:
            self._session_id = header.session_id
            self.reset()
        signals = header.signals
        if not signals or not all(map(math.isfinite, signals)):
            return Evidence(seq=header.seq, pts_s=header.pts_s, recogniser=self.name)
        if len(signals) != len(self._table.instruments):
            raise ConfigError(
                f"frame {header.seq} carries {len(signals)} signals, but the pack has {len(self._table.instruments)} instruments "
                f"({', '.join(self._table.instruments)}); give the source those columns or choose the pack they belong to"
            )
        instruments = tuple(min(1.0, max(0.0, value)) for value in signals)
        leader = next((name for name, place in self._places if instruments[place] >= _PRESENT), "")
        return Evidence(
            seq=header.seq,
            pts_s=header.pts_s,
            recogniser=self.name,
            actions=self._posterior(leader),
            instruments=instruments,
        )

    def _posterior(self, leader: str) -> tuple[float, ...]:
        if not leader:
            return self._flat if self._seen else ()
        self._seen = True
        rows = self._table.posterior
        if leader != self._table.leading[-1]:
            self._before = leader
            return rows[leader]
        return rows.get(after(leader, self._before), rows[leader])


def load_signals_table(path: Path, actions: tuple[str, ...], instruments: tuple[str, ...]) -> tuple[SignalsTable, str]:
    """The table of a `signals.json` and its sha256.

    Raises:
        ConfigError: The file is missing, not of the form above, or for other actions or instruments.
    """
    remedy = "rebuild it with python -m stream_agent.training.signals"
    try:
        data = path.read_bytes()
        table = msgspec.json.decode(data, type=SignalsTable)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"signals table {path} cannot be used: {error}; {remedy}") from error
    for kind, found, wanted in (("actions", table.actions, actions), ("instruments", table.instruments, instruments)):
        if found != wanted:
            raise ConfigError(
                f"signals table {path} has {kind} {', '.join(found)}, the pack has {', '.join(wanted)}; refit it for this pack"
            )
    if mistake := table.mistake():
        raise ConfigError(f"signals table {path}: {mistake}; {remedy}")
    return table, hashlib.sha256(data).hexdigest()
