"""A recogniser for streams that carry instrument presence instead of pixels.

P(action | instruments) under equal priors, from a fitted emission table: the smoothed frequency of each set of
instruments seen together during each action, backed off to instruments as independent. Equal priors, because the
segmenter wants a likelihood: how common an action is, is its business and the planner's.
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

Probability = Annotated[float, msgspec.Meta(gt=0.0, lt=1.0)]
Count = Annotated[float, msgspec.Meta(ge=0.0)]


class EmissionTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `signals.json` holds.

    Attributes:
        about: Where it comes from, the command that made it, and its licence.
        actions: Names, in the order of `presence` and of every count.
        instruments: Names, in the order of each row of `presence` and of the keys of `counts`.
        presence: P(instrument present | action), (actions, instruments).
        counts: Seconds per action in which just this set of instruments was seen; keys such as `1010000`.
        back_off_s: Seconds of weight given to independent instruments beside the counts.
    """

    about: str
    actions: tuple[str, ...]
    instruments: tuple[str, ...]
    presence: tuple[tuple[Probability, ...], ...]
    counts: dict[str, tuple[Count, ...]]
    back_off_s: Annotated[float, msgspec.Meta(gt=0.0)]


class SignalsRecogniser:
    """Evidence from `header.signals`."""

    name: str = "signals"

    def __init__(self, table: EmissionTable, digest: str = "") -> None:
        """Take a table that `load_emission_table` has checked."""
        self.digest = digest
        self._table = table
        self._totals_s = [sum(column) for column in zip(*table.counts.values(), strict=True)] or [0.0] * len(
            table.actions
        )
        self._posteriors: dict[str, tuple[float, ...]] = {}  # at most 2 ** instruments

    def evidence(self, header: FrameHeader, thumbnail: Thumbnail | None) -> Evidence:  # noqa: ARG002 - the protocol's
        """Evidence of one header; without any action when it has no signals or one is not a number.

        Raises:
            ConfigError: The signals are not as many as the pack's instruments.
        """
        signals = header.signals
        if not signals or not all(map(math.isfinite, signals)):
            return Evidence(seq=header.seq, pts_s=header.pts_s, recogniser=self.name)
        if len(signals) != len(self._table.instruments):
            raise ConfigError(
                f"frame {header.seq} carries {len(signals)} signals, but the pack has {len(self._table.instruments)} instruments "
                f"({', '.join(self._table.instruments)}); give the source those columns or choose the pack they belong to"
            )
        instruments = tuple(min(1.0, max(0.0, value)) for value in signals)
        present = "".join("1" if value >= 0.5 else "0" for value in instruments)
        if present not in self._posteriors:
            self._posteriors[present] = self._posterior(present)
        return Evidence(
            seq=header.seq,
            pts_s=header.pts_s,
            recogniser=self.name,
            actions=self._posteriors[present],
            instruments=instruments,
        )

    def _posterior(self, present: str) -> tuple[float, ...]:
        table = self._table
        counts = table.counts.get(present, (0.0,) * len(table.actions))
        likelihoods = []
        for seen_s, total_s, presence in zip(counts, self._totals_s, table.presence, strict=True):
            independent = math.prod(p if bit == "1" else 1.0 - p for p, bit in zip(presence, present, strict=True))
            likelihoods.append((seen_s + table.back_off_s * independent) / (total_s + table.back_off_s))
        total = math.fsum(likelihoods)
        return tuple(value / total for value in likelihoods)


def load_emission_table(
    path: Path, actions: tuple[str, ...], instruments: tuple[str, ...]
) -> tuple[EmissionTable, str]:
    """The table of a `signals.json` and its sha256.

    Raises:
        ConfigError: The file is missing, not of the form above, or for other actions or instruments.
    """
    try:
        data = path.read_bytes()
        table = msgspec.json.decode(data, type=EmissionTable)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"emission table {path} cannot be used: {error}; rebuild it with python -m stream_agent.training.signals"
        ) from error
    for kind, found, wanted in (("actions", table.actions, actions), ("instruments", table.instruments, instruments)):
        if found != wanted:
            raise ConfigError(
                f"emission table {path} has {kind} {', '.join(found)}, the pack has {', '.join(wanted)}; refit it for this pack"
            )
    if (
        [len(row) for row in table.presence] != [len(instruments)] * len(actions)
        or any(len(row) != len(actions) for row in table.counts.values())
        or any(len(key) != len(instruments) or key.strip("01") for key in table.counts)
    ):
        raise ConfigError(
            f"emission table {path} has rows of a wrong length; rebuild it with python -m stream_agent.training.signals"
        )
    return table, hashlib.sha256(data).hexdigest()
