"""Tables of instrument presence."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_videos import read

from stream_agent.errors import SourceError

TABLE = "second,phase,Grasper,Specimen_Bag\n0,Preparation,1,0\n1,Preparation,0,0.5\n3,Clipping,0,1\n"


def table(folder: Path, text: str) -> Path:
    path = folder / "case.csv"
    path.write_bytes(text.encode())
    return path


def test_rows_become_pictures_without_pixels_in_the_order_asked_for(tmp_path: Path) -> None:
    reading = read(table(tmp_path, TABLE), instruments=("specimen bag", "GRASPER"))
    assert not reading.source.live
    assert reading.times_s == [0, 1, 3]
    assert [one.signals for one in reading.pictures] == [(0, 1), (0.5, 0), (1, 0)]
    assert all(one.write is None and one.width == 0 for one in reading.pictures)


def test_start_s_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    reading = read(
        table(tmp_path, "\ufeff" + TABLE.replace("\n", "\r\n") + "\r\n\r\n"), start_s=2, instruments=("grasper",)
    )
    assert reading.times_s == [3]


def test_a_real_table_is_read(shared_data: Path) -> None:
    names = ("specimen bag", "grasper", "hook")
    reading = read(shared_data / "cholec80" / "phase_tool_1hz" / "video01.csv", instruments=names)
    assert reading.times_s == [float(second) for second in range(len(reading.times_s))]
    assert reading.pictures[0].signals == (0, 1, 0)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "has no column 'second'; its header is ''"),
        ("time,Grasper\n0,1\n", "has no column 'second'; its header is 'time,Grasper'"),
        ("second,phase,Hook\n0,x,1\n", "has no column for Grasper; its columns are second, phase, Hook, add"),
        ("second,Grasper\n", "has no rows below its header"),
        ("second,Grasper\n0,1\n1\n", "line 3 has 1 cells, the header 2; correct"),
        ("second,Grasper\n0,1\n1,yes\n", "line 3: Grasper='yes' is not a number from 0 to 1; correct"),
        ("second,Grasper\n0,1\n1,2\n", "line 3: Grasper='2' is not a number from 0 to 1"),
        ("second,Grasper\n-1,1\n", "line 2: second='-1' is not a number of seconds >= 0"),
        ("second,Grasper\ninf,1\n", "line 2: second='inf' is not a number of seconds"),
        ("second,Grasper\nnan,1\n", "line 2: second='nan' is not a number of seconds"),
        ("second,Grasper\n0,1\n0,1\n", "line 3: second=0 does not come after 0; sort"),
    ],
)
def test_a_wrong_table_is_one_error_that_names_the_line(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(SourceError) as caught:
        read(table(tmp_path, text), instruments=("Grasper",))
    assert complaint in str(caught.value)
    assert "case.csv" in str(caught.value)


def test_what_is_no_text_or_not_there_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_bytes(b"second,Grasper\n0,\xff\xfe\n")
    with pytest.raises(SourceError, match=r"b.csv is not a readable CSV file"):
        read(tmp_path / "b.csv")
    with pytest.raises(SourceError, match=r"c.csv does not exist; correct source.uri"):
        read(tmp_path / "c.csv")
    with pytest.raises(SourceError, match=r"no row at or after source.start_s=9; its last is at 3 s"):
        read(table(tmp_path, TABLE), start_s=9)
