"""`dataset` and `evaluate` from the command line down to their files."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from stream_agent import cli
from stream_agent.evaluation.dataset import INSTRUMENTS, TEST_VIDEOS, TRAIN_VIDEOS, SapClip
from stream_agent.evaluation.triplets import encode_videos

Made = dict[str, tuple[SapClip, ...]]
LabelFile = Callable[[Path, Mapping[str, list[int]]], Path]


@pytest.fixture
def sap(tmp_path: Path, made_videos: Made) -> Path:
    path = tmp_path / "sap.json"
    path.write_bytes(encode_videos(made_videos))
    return path


def call(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main([str(argument) for argument in arguments])
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


def rows(folder: Path) -> list[dict[str, object]]:
    loaded: list[dict[str, object]] = json.loads((folder / "results.json").read_text())
    return loaded


def test_evaluate_writes_its_files(sap: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a" / "out"
    assert call("evaluate", "--sap", sap, "--out", out, "--planner", "constant", "--protocol", "official") == 0
    assert {path.name for path in out.iterdir()} == {
        "results.json",
        "details.json",
        "outcomes.jsonl",
        "report.md",
        "accuracy.png",
        "reliability.png",
        "risk_coverage.png",
        "confusion.png",
        "timelines.png",
    }
    shown = capsys.readouterr()
    assert "constant" in shown.out
    assert "official · constant" in shown.err
    assert {(row["planner"], row["protocol"]) for row in rows(out)} == {("constant", "official")}


def test_every_answer_is_kept_beside_what_it_was_made_from(sap: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("evaluate", "--sap", sap, "--out", out, "--planner", "most_prob", "--protocol", "official")
    assert call(*command) == 0
    first, *answers = [json.loads(line) for line in (out / "outcomes.jsonl").read_text().splitlines()]
    assert first["data"] == {sap.name: hashlib.sha256(sap.read_bytes()).hexdigest()}
    assert first["about"]["commit"]
    for row in rows(out):
        mine = [
            one for one in answers if all(one[key] == row[key] for key in ("planner", "track", "history", "protocol"))
        ]
        assert len(mine) == row["n"]
        hits = sum(one["target"] == one["ranked"][0] for one in mine)
        assert row["slacc"][0] == round(100 * hits / len(mine), 2)  # type: ignore[index]
        assert all(one["elapsed_ms"] >= 0 for one in mine)


def test_only_and_exclude_take_lists(sap: Path, tmp_path: Path, made_videos: Made) -> None:
    quick = ("--planner", "most_prob", "--protocol", "5fold")
    assert call("evaluate", "--sap", sap, "--out", tmp_path / "only", "--only", "VID05,VID18", *quick) == 0
    assert (
        call("evaluate", "--sap", sap, "--out", tmp_path / "rest", "--exclude", "VID05", "--exclude", "VID18", *quick)
        == 0
    )
    samples = sum(clip.is_sample for clips in made_videos.values() for clip in clips)
    chosen = sum(clip.is_sample for name in ("VID05", "VID18") for clip in made_videos[name])
    assert {row["n"] for row in rows(tmp_path / "only")} == {chosen}
    about = json.loads((tmp_path / "only" / "details.json").read_text())["about"]
    assert about["command"] == (
        f"`run_agent.py evaluate --sap {sap} --only VID05 --only VID18 --protocol 5fold --planner most_prob --out DIR`"
    )
    assert {row["n"] for row in rows(tmp_path / "rest")} == {samples - chosen}


def test_signals_are_read(sap: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    signals = tmp_path / "signals"
    signals.mkdir()
    quick = ("--planner", "constant", "--protocol", "official", "--signals", signals, "--out", tmp_path / "out")
    assert call("evaluate", "--sap", sap, *quick) == 2
    assert "of none of the videos" in capsys.readouterr().err
    header = ",".join(["second", "phase", *INSTRUMENTS])
    (signals / "video06.csv").write_text(f"{header}\n0,Preparation,1,0,0,0,0,0,0\n")
    assert call("evaluate", "--sap", sap, *quick) == 0
    assert json.loads((tmp_path / "out" / "details.json").read_text())["about"]["videos with signals"] == 1


def test_without_matplotlib_there_are_no_plots_and_one_line(
    sap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from stream_agent import evaluation

    monkeypatch.delattr(evaluation, "plots", raising=False)
    monkeypatch.delitem(sys.modules, "stream_agent.evaluation.plots", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    assert call("evaluate", "--sap", sap, "--out", tmp_path, "--planner", "constant", "--protocol", "official") == 0
    assert "no plots: matplotlib is not installed; pip install stream-agent[eval]" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.png"))


def test_a_text_backend_is_asked_and_its_failures_are_told(
    sap: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ("--planner", "antgpt", "--protocol", "official", "--only", "VID06")
    assert call("evaluate", "--sap", sap, "--out", tmp_path, "--text-backend", "echo dissection, tea", *quick) == 0
    assert "antgpt: 5 words in 5 answers name no action" in capsys.readouterr().out
    assert "5 words in 5 answers" in (tmp_path / "report.md").read_text()
    assert {(row["planner"], row["ece"]) for row in rows(tmp_path)} == {("antgpt", None)}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--exclude", "VID05,VID99"], "--exclude VID99: no such video"),
        (["--planner", "oracle"], "--planner oracle: there is no such planner; choose from constant"),
        (["--exclude", ",".join(sorted(TRAIN_VIDEOS)), "--protocol", "official"], "no sample was scored"),
        (["--protocol", "streaming"], "--signals"),
        (["--signals", "/nowhere"], "/nowhere is no folder"),
        (
            ["--text-backend", "false", "--planner", "antgpt", "--protocol", "official"],
            "--text-backend false ended with 1",
        ),
    ],
)
def test_a_mistake_is_one_message(
    sap: Path, tmp_path: Path, arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("evaluate", "--sap", sap, "--out", tmp_path / "out", *arguments) != 0
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert complaint in error[0]


def test_a_folder_that_cannot_be_made_is_named(sap: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert call("evaluate", "--sap", sap, "--out", tmp_path / "file" / "out") == 2
    assert "cannot be made" in capsys.readouterr().err


def test_build_makes_a_file_that_evaluate_reads(
    tmp_path: Path, sap: Path, capsys: pytest.CaptureFixture[str], label_file: LabelFile
) -> None:
    frames = {str(second): [2 if second < 30 else 4] for second in range(60)}
    label_file(tmp_path / "t50" / "labels" / "VID06.json", frames)
    made = tmp_path / "made.json"
    assert call("dataset", "build", "--cholect50", tmp_path / "t50", "--sap", sap, "--out", made) == 0
    assert "1 videos by rule, 49 as the authors annotated them" in capsys.readouterr().out
    listed = json.loads(made.read_text())
    assert set(listed) == TEST_VIDEOS | TRAIN_VIDEOS
    assert listed["VID06"]["1"]["Action"] == "Vessel Clipping"
    assert call("evaluate", "--sap", made, "--out", tmp_path, "--planner", "frequency", "--protocol", "official") == 0
    assert call("dataset", "build", "--cholect50", tmp_path / "t50", "--out", tmp_path / "no" / "made.json") == 2
    assert "cannot be written" in capsys.readouterr().err


def test_build_takes_videos_that_the_authors_do_not_have(
    tmp_path: Path, sap: Path, label_file: LabelFile, capsys: pytest.CaptureFixture[str]
) -> None:
    label_file(tmp_path / "VID999.json", {str(second): [2 if second < 30 else 4] for second in range(60)})
    made = tmp_path / "made.json"
    assert call("dataset", "build", "--cholect50", tmp_path, "--sap", sap, "--out", made) == 0
    assert "1 videos by rule, 50 as the authors annotated them" in capsys.readouterr().out


def test_verify_tells_clip_by_clip(
    tmp_path: Path, sap: Path, capsys: pytest.CaptureFixture[str], label_file: LabelFile
) -> None:
    frames = {str(second): [2 if second < 42 else 4] for second in range(80)}
    label_file(tmp_path / "t50" / "VID06.json", frames)
    assert call("dataset", "verify", "--cholect50", tmp_path / "t50", "--sap", sap) == 0
    shown = capsys.readouterr().out
    assert "Vessel Clipping" in shown
    assert "+2 s" in shown
    assert "97.5 % of 80 labelled frames inside the authors' clips agree with the rule, in 1 videos" in shown


def test_verify_needs_a_video_in_common(
    tmp_path: Path, sap: Path, capsys: pytest.CaptureFixture[str], label_file: LabelFile
) -> None:
    label_file(tmp_path / "t50" / "VID999.json", {"1": [2]})
    assert call("dataset", "verify", "--cholect50", tmp_path / "t50", "--sap", sap) == 2
    assert "no video in common" in capsys.readouterr().err


def test_stats_count(sap: Path, capsys: pytest.CaptureFixture[str], made_videos: Made) -> None:
    assert call("dataset", "stats", "--sap", sap) == 0
    assert f"50 videos, {sum(map(len, made_videos.values()))} clips" in capsys.readouterr().out
