"""A person's word on recognised labels, kept as training data.

`verdicts.jsonl` gets one line per verdict and is only ever appended to. From it one label file per case is written anew each
time, whole or not at all, in the form of `dataset label` (`start_s,action,confidence`): the accepted and corrected clips; time
that nobody judged, or whose label was rejected without another, has no action. It plays back and trains as that one does.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Literal

import msgspec

from stream_agent.errors import UNDECODABLE
from stream_agent.labelling import as_csv
from stream_agent.messages import Clip

_LOG = "verdicts.jsonl"
_UNSAFE = re.compile(r"[^A-Za-z0-9.-]+")


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """One label, judged.

    Attributes:
        stream_id: Which camera.
        case_id: The patient case.
        start_s: Media time at which the clip began.
        end_s: And ended.
        recognised: The label it had.
        action: The right one; the same when it was accepted, empty when rejected without another.
        judged_unix_s: When.
    """

    stream_id: str
    case_id: str
    start_s: float
    end_s: float
    recognised: str
    action: str
    judged_unix_s: float

    @property
    def word(self) -> Literal["accepted", "corrected", "rejected"]:
        """What was said."""
        if not self.action:
            return "rejected"
        return "accepted" if self.action == self.recognised else "corrected"


class VerdictBook:
    """The verdicts in one folder; used by one thread."""

    def __init__(self, folder: Path, stream_id: str) -> None:
        """Read what is there; a line torn by a crash is passed over."""
        self._folder = folder
        self._stream_id = stream_id
        self._kept: dict[tuple[str, str], dict[float, Verdict]] = {}
        decoder = msgspec.json.Decoder(Verdict)
        log = folder / _LOG
        for line in log.read_bytes().splitlines() if log.is_file() else ():
            try:
                self._keep(decoder.decode(line))
            except UNDECODABLE:
                continue

    def of_case(self, case_id: str) -> tuple[Verdict, ...]:
        """The newest verdict on each clip, by time."""
        kept = self._kept.get((self._stream_id, case_id), {})
        return tuple(kept[start_s] for start_s in sorted(kept))

    def judge(self, *, case_id: str, start_s: float, end_s: float, recognised: str, action: str) -> Verdict:
        """Keep a verdict; the last one on a clip counts.

        Raises:
            OSError: It cannot be written.
        """
        verdict = Verdict(
            stream_id=self._stream_id,
            case_id=case_id,
            start_s=round(start_s, 3),
            end_s=round(end_s, 3),
            recognised=recognised,
            action=action,
            judged_unix_s=round(time.time(), 3),
        )
        with (self._folder / _LOG).open("ab") as log:
            log.write(msgspec.json.encode(verdict) + b"\n")
        self._keep(verdict)
        self._write_labels(case_id)
        return verdict

    def _keep(self, verdict: Verdict) -> None:
        self._kept.setdefault((verdict.stream_id, verdict.case_id), {})[verdict.start_s] = verdict

    def _write_labels(self, case_id: str) -> None:
        clips = [
            Clip(verdict.action, verdict.start_s, verdict.end_s, 1.0)
            for verdict in self.of_case(case_id)
            if verdict.action
        ]
        name = f"{_UNSAFE.sub('_', self._stream_id)}_{_UNSAFE.sub('_', case_id)}.csv"
        path = self._folder / name
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(as_csv(clips), encoding="utf-8")
        unfinished.replace(path)
