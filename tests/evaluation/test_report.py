"""Rows, tables and plots of a run on made-up videos."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import msgspec
import pytest

from stream_agent.evaluation import plots, report
from stream_agent.evaluation.baselines import Constant, FrequencyMinusLast, MostProb, MostProbGoal, Ps
from stream_agent.evaluation.dataset import SapClip
from stream_agent.evaluation.metrics import Anticipation
from stream_agent.evaluation.protocols import Baseline, Run, run
from stream_agent.evaluation.published import TABLE_1

Made = dict[str, tuple[SapClip, ...]]


class Statistical(MostProb):
    """Stands in for the product's planner."""

    name = report.HEADLINE


@pytest.fixture(scope="module")
def done(made_videos: Made) -> Run:
    made: list[Baseline] = [Constant(), FrequencyMinusLast(), MostProb(), MostProbGoal(), Ps(None), Statistical()]
    return run(made, made_videos, {}, protocols=["official", "5fold"])


def test_results_are_the_rows_that_other_tools_read(done: Run, tmp_path: Path, made_videos: Made) -> None:
    report.write(report.report(done, made_videos), tmp_path, about={"version": "1"})
    rows = json.loads((tmp_path / "results.json").read_text())
    assert len(rows) == 4 * 2 * 2 * 2
    assert {row["planner"] for row in rows} == {"constant", "frequency_minus_last", "most_prob", "statistical"}
    for row in rows:
        assert list(row) == [
            "planner",
            "track",
            "history",
            "protocol",
            "n",
            "slacc",
            "vlacc",
            "vlacc_published",
            "re_slacc",
            "re_vlacc",
            "macro_f1",
            "ece",
            "p99_ms",
        ]
        assert all(len(row[key]) == 3 for key in ("slacc", "vlacc", "vlacc_published", "re_slacc", "re_vlacc"))
        assert 0 <= row["slacc"][0] <= row["slacc"][1] <= row["slacc"][2] <= 100
    details = json.loads((tmp_path / "details.json").read_text())
    assert details["not_run"] == {"ps": "it looks at near frames; name their folder with --frames"}
    assert {row["planner"] for row in details["variants"]} == {"most_prob_goal"}
    assert {pair["planner"] for pair in details["paired"]} == {
        "constant",
        "frequency_minus_last",
        "most_prob",
        "most_prob_goal",
    }


def test_what_is_not_defined_is_null(made_videos: Made) -> None:
    row = report.report(run([Constant()], made_videos, {}, protocols=["official"], only=["VID42"]), made_videos).rows[0]
    assert all(math.isnan(value) for value in row.vlacc_published)
    assert json.loads(msgspec.json.encode(row))["vlacc_published"] == [None, None, None]


def test_the_text_has_every_table_and_says_what_was_not_run(done: Run, tmp_path: Path, made_videos: Made) -> None:
    made = report.report(done, made_videos)
    text = report.markdown(made, about={"version": "1"}, plots=[Path("accuracy.png")])
    assert "| ps | not run |" in text
    assert "- ps: it looks at near frames" in text
    assert "published: Qwen2.5-32B SFT, indirect | 57 | 45.61/78.95/85.96" in text
    assert "ours: statistical" in text
    assert "![accuracy](accuracy.png)" in text
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")


def test_times_are_measured_against_the_median_duration(done: Run, made_videos: Made) -> None:
    median, ours = report.report(done, made_videos).onsets
    assert (median.planner, ours.planner) == ("median_duration", "statistical")
    # the same planner under two names
    assert (median.mae_s, median.anticipation) == (ours.mae_s, ours.anticipation)
    assert isinstance(median.anticipation[60], Anticipation)


def test_the_time_until_an_action_counts_from_now(made_videos: Made) -> None:
    until = report._until(made_videos["VID06"], 45)  # 0 D, 40 V, 80 R, 120 D, 160 C, 200 D
    assert until == {"Vessel Clipping": 0, "Tissue Retraction": 35, "Dissection": 75, "Coagulation": 115}


def test_every_plot_is_a_picture(done: Run, tmp_path: Path, made_videos: Made) -> None:
    paths = plots.draw(done, made_videos, tmp_path, planner="statistical")
    assert [path.stem for path in paths] == ["accuracy", "reliability", "risk_coverage", "confusion", "timelines"]
    for path in paths:
        head = path.read_bytes()[:24]
        assert head.startswith(b"\x89PNG")
        assert min(struct.unpack(">II", head[16:24])) > 200


def test_plots_show_another_planner_where_the_named_one_was_not_run(tmp_path: Path, made_videos: Made) -> None:
    done = run([Constant()], made_videos, {}, protocols=["official"])
    assert len(plots.draw(done, made_videos, tmp_path, planner="statistical")) == 5


def test_no_answers_no_plots(tmp_path: Path, made_videos: Made) -> None:
    assert plots.draw(Run({}, {}, "", {"ps": "no frames"}), made_videos, tmp_path, planner="statistical") == ()


def test_published_rows_hold_what_a_constant_reaches() -> None:
    qwen = [row for row in TABLE_1 if row.name.startswith("Qwen2.5")]
    assert {(row.slacc[0], row.vlacc[0], row.re_slacc[0], row.re_vlacc[0]) for row in qwen} == {
        (45.61, 53.42, 67.44, 78.97)
    }
