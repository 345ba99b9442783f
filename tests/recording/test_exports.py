"""What is made of a recording for other programs and for people."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import av
import pytest

from stream_agent.messages import RANKED, Clip, ClipEvent, Evidence, FrameHeader, Health, Plan, RankedAction
from stream_agent.recording.figures import Span, figures
from stream_agent.recording.reader import Described, PackNames, RecordingFile
from stream_agent.recording.records import FrameRecord, PassedOver
from stream_agent.recording.report import page, summary
from tests.recording.sessions import MakeRecording, tell

SESSION = Described("1", "0.1", "monotonic", "2026-11-21T12:00:00+00:00", "e", "<b>7</b>", "c", "p", "d", "k")
PACK = PackNames("p", "Operation", ("A", "B", "C"), ("hook",))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_tables_hold_every_plan_clip_and_frame(lockstep_session: Path, tmp_path: Path) -> None:
    done = tell("recording", "export", lockstep_session, "--csv", tmp_path / "csv", "--parquet", tmp_path / "parquet")
    assert done.returncode == 0, done.stderr
    plans, clips, frames = (rows(tmp_path / "csv" / f"{name}.csv") for name in ("plans", "clips", "frames"))
    with RecordingFile(lockstep_session) as recording:
        told = [plan for _, plan in recording.messages(Plan)]
        closed = [event for _, event in recording.messages(ClipEvent) if event.kind == "closed"]
    assert len(plans) == len(frames) == len(told) == 400
    assert [row["next_1"] for row in plans] == [plan.ranked[0].action if plan.ranked else "" for plan in told]
    assert [float(row["current_confidence"]) for row in plans] == [plan.current_confidence for plan in told]
    assert [(row["action"], float(row["start_s"])) for row in clips] == [
        (event.clip.action, event.clip.start_pts_s) for event in closed
    ]
    assert {"action:Dissection", "instrument:Hook", "gate"} <= set(frames[0])
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(tmp_path / "parquet" / "plans.parquet").to_pylist()
    assert [row["next_1"] for row in table] == [plan.ranked[0].action if plan.ranked else None for plan in told]
    assert table[0]["abstained"] is False and isinstance(table[5]["published_ns"], int)


def test_the_report_stands_by_itself(lockstep_session: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("start_s,action\n0,Dissection\n40,Vessel Clipping\n200,\n300,Dissection\n")
    out = tmp_path / "report.html"
    done = tell("recording", "export", lockstep_session, "--report", out, "--labels", labels)
    assert done.returncode == 0, done.stderr
    text = out.read_text()
    assert "Judged by the labels given" in text and ">true</text>" in text and ">planned next</text>" in text
    assert not re.search(r"(src|href)=|<script|@import|url\(", text), "nothing from outside, nothing that runs"
    assert "default-src 'none'" in text
    for heading in ("Summary", "Timeline", "Clips", "Accuracy", "Cautions", "Latency", "Provenance"):
        assert f"<h2>{heading}</h2>" in text


def test_the_video_has_every_frame_at_its_time(make_recording: MakeRecording, tmp_path: Path) -> None:
    path, out = make_recording("source.synthetic_duration_s=3"), tmp_path / "overlay.mp4"
    assert tell("recording", "export", path, "--video", out).returncode == 0
    with RecordingFile(path) as recording:
        seen = list(recording.pictures())
    first = next(
        number for number, one in enumerate(seen) if one.decoded is not None
    )  # dropped, if the machine is slow
    captured = [one.frame.captured_ns for one in seen[first:]]
    with av.open(str(out)) as video:
        stream = video.streams.video[0]
        assert stream.frames == len(captured) and stream.width == 960
        times = sorted(packet.pts for packet in video.demux(stream) if packet.pts is not None)
        assert stream.time_base is not None
        assert float(times[-1] * stream.time_base) == pytest.approx((captured[-1] - captured[0]) / 1e9, abs=0.01)


def test_mistakes_of_an_export_are_one_message(lockstep_session: Path, tmp_path: Path) -> None:
    assert tell("recording", "export", lockstep_session).returncode == 2
    for option, place in (("--csv", "/proc/x"), ("--report", "/no/such/r.html"), ("--video", "/no/such/v.mp4")):
        done = tell("recording", "export", lockstep_session, option, place)
        assert done.returncode == 7 and done.stderr.count("error: ") == 1, done.stderr
    done = tell("recording", "export", lockstep_session, "--report", tmp_path / "r", "--labels", tmp_path / "none.csv")
    assert done.returncode == 2 and "none.csv" in done.stderr


def test_info_tells_what_there_is(lockstep_session: Path) -> None:
    done = tell("recording", "info", lockstep_session)
    assert done.returncode == 0
    assert "400 perceived" in done.stdout and "foxglove.CompressedVideo" in done.stdout and "whole" in done.stdout
    assert tell("recording", "recover", lockstep_session).stdout.strip().endswith("messages")


# ------------------------------------------------------------------------------------------- figures, by hand


def frame(pts_s: float, **fields: object) -> FrameRecord:
    header = FrameHeader(stream_id="e", session_id="s", seq=round(pts_s), pts_s=pts_s, captured_ns=0)
    return FrameRecord.of(header, Evidence(seq=0, pts_s=pts_s, **fields), (PassedOver(0, 0.0, "not_sampled"),))  # type: ignore[arg-type]


def plan(pts_s: float, current: str | None, *ranked: str, reason: str = "", ms: float = 5.0) -> Plan:
    return Plan(
        stream_id="e",
        session_id="s",
        case_id="c",
        seq=0,
        pts_s=pts_s,
        captured_ns=0,
        valid_until_ns=0,
        source="abstain" if reason else "statistical",
        planner="statistical",
        abstained=bool(reason),
        abstain_reason=reason,
        current_action=current,
        ranked=tuple(RankedAction(action, 0.3) for action in ranked),
        safety=("Look out.",) if current == "A" else (),
        spans_ms={"total": ms, "perceive": 1.0},
    )


MESSAGES = [
    frame(0.0),
    ClipEvent("opened", Clip("A", 0.0, 0.0, 0.9), 0.0),
    plan(0.0, "A", "B", "C", "D"),
    frame(1.0),
    plan(1.0, "A", "C", "B", "D", ms=9.0),
    frame(2.0, gate="black"),
    plan(2.0, "A", reason="gate: black"),
    frame(3.0),
    ClipEvent("closed", Clip("A", 0.0, 3.0, 0.9), 3.0),
    ClipEvent("opened", Clip("B", 3.0, 3.0, 0.8), 3.0),
    plan(3.0, "B", "A", "C", "D"),
    Health(stream_id="e", sent_ns=0, state="degraded", parts={"source": "ok", "journal": "disk full"}),
    frame(4.0),
    plan(4.0, "B", "A", "C", "D"),
]


def test_figures_worked_out_by_hand() -> None:
    found = figures(MESSAGES)
    assert (found.frames, found.plans, found.start_s, found.end_s) == (5, 5, 0.0, 4.0)
    assert found.passed_over == {"not_sampled": 5}
    assert found.recognised == [Span(0.0, 3.0, "A"), Span(3.0, 4.0, "B")]
    assert found.planned == [Span(0.0, 1.0, "B"), Span(1.0, 2.0, "C"), Span(2.0, 3.0, None), Span(3.0, 4.0, "A")]
    assert found.abstentions == {"gate: black": 1} and found.gates == {"black": 1}
    assert found.cautions == {"Look out.": (0.0, 3)}
    assert found.problems == {("journal", "disk full"): 1}
    assert [(one.stage, one.most, one.n) for one in found.latencies] == [("perceive", 1.0, 5), ("total", 9.0, 5)]
    judged = found.accuracy
    assert (judged.plans, judged.hits) == (2, [1, 2, 2]), "of the plans in A, B came next; nothing came after B"
    assert judged.changes == 0, "the last plan before the change was an abstention"


def test_labels_come_before_what_was_recognised() -> None:
    found = figures(MESSAGES, [(0.0, "A"), (1.5, "C"), (3.5, "")])
    assert found.true == [Span(0.0, 1.5, "A"), Span(1.5, 3.5, "C"), Span(3.5, 4.0, None)]
    judged = found.accuracy
    assert found.judged_by == "labels"
    assert (judged.frames, judged.recognised) == (4, 2)
    assert (judged.plans, judged.hits) == (2, [1, 2, 2])
    assert (judged.changes, judged.change_hits) == (1, [1, 1, 1])
    assert len(judged.hits) == RANKED


def test_an_empty_session_makes_a_page_too() -> None:
    text = page(SESSION, PACK, figures([]), whole=False)
    assert "The recording was cut" in text and "No clip was recognised" in text
    assert "&lt;b&gt;7&lt;/b&gt;" in text and "<b>7" not in text, "a name from outside is text"
    assert summary(SESSION, PACK, figures(MESSAGES))[2] == (
        "5 plans were published; 4 ranked next actions and 1 abstained."
    )


def test_a_cell_is_never_a_formula(tmp_path: Path) -> None:
    from stream_agent.recording.tables import _cell

    assert [_cell(value) for value in ("=1+1", "@x", "Dissection", -3.5, None)] == [
        "'=1+1",
        "'@x",
        "Dissection",
        -3.5,
        None,
    ]
