"""A recording as tables: plans, clips and frames, for CSV and Parquet."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from stream_agent.errors import RecordingError
from stream_agent.messages import RANKED, ClipEvent, Plan
from stream_agent.recording.reader import RecordingFile
from stream_agent.recording.records import FrameRecord

_NS_PER_MS = 1e6


class Table(NamedTuple):
    """Column names, and rows of values in their order."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]


def tables(recording: RecordingFile) -> dict[str, Table]:
    """`plans`, `clips` (the closed ones) and `frames`; times in seconds of media time unless the name says otherwise."""
    return {"plans": _plans(recording), "clips": _clips(recording), "frames": _frames(recording)}


def write_csv(recording: RecordingFile, folder: Path) -> list[Path]:
    """One CSV per table, UTF-8 with a header; missing values are empty.

    Raises:
        RecordingError: The folder cannot be written to.
    """
    written = []
    for name, table in tables(recording).items():
        path = _place(folder, f"{name}.csv")
        try:
            with path.open("w", encoding="utf-8", newline="") as file:
                out = csv.writer(file, lineterminator="\n")
                out.writerow(table.columns)
                out.writerows([_cell(value) for value in row] for row in table.rows)
        except OSError as error:
            raise _unwritten(path, error) from error
        written.append(path)
    return written


def write_parquet(recording: RecordingFile, folder: Path) -> list[Path]:
    """One Parquet file per table.

    Raises:
        RecordingError: The package `pyarrow` is missing, or the folder cannot be written to.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise RecordingError("--parquet needs the package pyarrow; install stream-agent[parquet]") from error
    written = []
    for name, table in tables(recording).items():
        path = _place(folder, f"{name}.parquet")
        columns = zip(*table.rows, strict=True) if table.rows else ((),) * len(table.columns)
        made = pyarrow.table({column: list(values) for column, values in zip(table.columns, columns, strict=True)})
        try:
            pyarrow.parquet.write_table(made, path)
        except OSError as error:
            raise _unwritten(path, error) from error
        written.append(path)
    return written


def _plans(recording: RecordingFile) -> Table:
    ranked = [f"{what}_{place}" for place in range(1, RANKED + 1) for what in ("next", "probability")]
    columns = (
        *("pts_s", "seq", "captured_ns", "published_ns", "valid_until_ns", "latency_ms", "source", "planner"),
        *("abstained", "abstain_reason", "current_action", "current_confidence"),
        *ranked,
        *("expected_onset_s", "onset_from_s", "onset_to_s", "progress", "safety", "model", "knowledge", "config"),
    )
    return Table(columns, [_plan(plan) for _, plan in recording.messages(Plan)])


def _plan(plan: Plan) -> tuple[Any, ...]:
    ranked: list[Any] = []
    for place in range(RANKED):
        ranked += [plan.ranked[place].action, plan.ranked[place].probability] if plan.ranked else [None, None]
    onset = plan.expected_onset_interval_s or (None, None)
    return (
        *(plan.pts_s, plan.seq, plan.captured_ns, plan.published_ns, plan.valid_until_ns),
        *((plan.published_ns - plan.captured_ns) / _NS_PER_MS, plan.source, plan.planner),
        *(plan.abstained, plan.abstain_reason or None, plan.current_action, plan.current_confidence),
        *ranked,
        *(plan.expected_onset_s, *onset, plan.progress, " | ".join(plan.safety)),
        *(plan.hashes.model, plan.hashes.knowledge, plan.hashes.config),
    )


def _clips(recording: RecordingFile) -> Table:
    columns = ("action", "start_s", "end_s", "confidence", "decided_s")
    rows = [
        (event.clip.action, event.clip.start_pts_s, event.clip.end_pts_s, event.clip.confidence, event.decided_pts_s)
        for _, event in recording.messages(ClipEvent)
        if event.kind == "closed"
    ]
    return Table(columns, rows)


def _frames(recording: RecordingFile) -> Table:
    pack = recording.pack
    columns = (
        *("pts_s", "session_id", "seq", "captured_ns", "gate", "recogniser", "passed_over"),
        *(f"action:{name}" for name in pack.actions),
        *(f"instrument:{name}" for name in pack.instruments),
    )
    return Table(columns, [_frame(frame, pack.actions, pack.instruments) for frame in _seen(recording)])


def _seen(recording: RecordingFile) -> Iterator[FrameRecord]:
    for _, frame in recording.messages(FrameRecord):
        yield frame


def _frame(frame: FrameRecord, actions: tuple[str, ...], instruments: tuple[str, ...]) -> tuple[Any, ...]:
    return (
        *(frame.pts_s, frame.session_id, frame.seq, frame.captured_ns, frame.gate or None, frame.recogniser or None),
        len(frame.passed_over),
        *(frame.actions or (None,) * len(actions)),
        *(frame.instruments or (None,) * len(instruments)),
    )


def _cell(value: object) -> object:
    """Text as a spreadsheet shows it: what begins like a formula is quoted."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value


def _place(folder: Path, name: str) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritten(folder, error) from error
    return folder / name


def _unwritten(path: Path, error: OSError) -> RecordingError:
    return RecordingError(f"{path} cannot be written: {error.strerror}; name a writable folder")
