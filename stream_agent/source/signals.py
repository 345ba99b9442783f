"""A table of instrument presence over time, without pixels: what tool annotations such as Cholec80's are."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from stream_agent.errors import SourceError
from stream_agent.source.protocol import Picture

_TIME_COLUMN = "second"


class SignalsSource:
    """A CSV file with a column `second` and one per instrument, values 0 to 1; other columns are ignored.

    Attributes:
        live: False.
    """

    live = False

    def __init__(self, path: Path, *, instruments: Sequence[str]) -> None:
        """Read `path`; `signals` come in the order of `instruments`, whose case, spaces and underscores do not matter."""
        self._path = path
        self._instruments = tuple(instruments)
        self._rows: list[tuple[float, tuple[float, ...]]] = []

    def open(self, start_s: float) -> None:
        """Read and check the whole table, so that a bad row is found before the session begins.

        Raises:
            SourceError: The file is missing or unreadable, a column is missing, or a row is wrong (named by its line).
        """
        try:
            with self._path.open(encoding="utf-8-sig", newline="") as file:
                rows = self._checked(csv.reader(file))
        except FileNotFoundError as error:
            raise SourceError(f"{self._path} does not exist; correct source.uri") from error
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise SourceError(f"{self._path} is not a readable CSV file: {error}; save it as UTF-8 text") from error
        if not rows:
            raise SourceError(f"{self._path} has no rows below its header; give at least one second")
        self._rows = [row for row in rows if row[0] >= start_s]
        if not self._rows:
            raise SourceError(
                f"{self._path} has no row at or after source.start_s={start_s:g}; its last is at {rows[-1][0]:g} s, "
                "lower source.start_s",
                at_end=True,
            )

    def pictures(self) -> Iterator[Picture]:
        """Yield one picture without pixels per row."""
        for pts_s, signals in self._rows:
            yield Picture(pts_s=pts_s, signals=signals)

    def close(self) -> None:
        """Forget the table."""
        self._rows = []

    def _checked(self, lines: Iterator[list[str]]) -> list[tuple[float, tuple[float, ...]]]:
        header = next(lines, [])
        place = {_folded(name): column for column, name in enumerate(header)}
        if _TIME_COLUMN not in place:
            raise SourceError(
                f"{self._path} has no column {_TIME_COLUMN!r}; its header is {','.join(header)[:200]!r}, "
                "name the time column 'second'"
            )
        missing = [name for name in self._instruments if _folded(name) not in place]
        if missing:
            raise SourceError(
                f"{self._path} has no column for {', '.join(missing)}; its columns are {', '.join(header)}, add them or use "
                "the procedure pack they belong to"
            )
        columns = [place[_folded(name)] for name in self._instruments]
        rows: list[tuple[float, tuple[float, ...]]] = []
        for number, line in enumerate(lines, start=2):
            if not any(cell.strip() for cell in line):
                continue
            if len(line) != len(header):
                raise SourceError(
                    f"{self._path} line {number} has {len(line)} cells, the header {len(header)}; correct the line"
                )
            second = self._number(line[place[_TIME_COLUMN]], number, _TIME_COLUMN, most=math.inf)
            if rows and second <= rows[-1][0]:
                raise SourceError(
                    f"{self._path} line {number}: second={second:g} does not come after {rows[-1][0]:g}; "
                    "sort the rows, one per time"
                )
            signals = tuple(self._number(line[column], number, header[column], most=1.0) for column in columns)
            rows.append((second, signals))
        return rows

    def _number(self, text: str, line: int, column: str, *, most: float) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 <= value <= most or math.isinf(value):
            allowed = "a number of seconds >= 0" if math.isinf(most) else "a number from 0 to 1"
            raise SourceError(f"{self._path} line {line}: {column}={text!r} is not {allowed}; correct the cell")
        return value


def _folded(name: str) -> str:
    return name.replace(" ", "").replace("_", "").casefold()
