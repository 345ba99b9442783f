from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from statistics import median

import pytest

from benchmarks import report as reports
from benchmarks.report import CDF_LEVELS, Report, cdf_ms, figure, quantiles_ms, round_ratios, row_of, spread
from benchmarks.targets import Target


@pytest.fixture
def targets(monkeypatch: pytest.MonkeyPatch) -> list[Target]:
    made: list[Target] = []
    monkeypatch.setattr(reports, "load_targets", lambda: tuple(made))
    return made


def target(name: str = "a", **more: object) -> Target:
    told = {"benchmark": "transport", "method": "ours", "case": "1080p", "reads": "ratio", "at_most": 1.5}
    return Target.model_validate({"name": name, **told, "source": "here", "reason": "so", **more})


def test_quantiles_are_those_of_the_values_and_none_without_values() -> None:
    assert quantiles_ms(range(101)) == (50.0, 95.0, 99.0)
    assert all(value != value for value in quantiles_ms([]))
    assert len(cdf_ms([1.0, 2.0])) == len(CDF_LEVELS)
    assert cdf_ms([]) == []


def test_a_ratio_is_the_median_of_the_rounds_quotients_not_the_quotient_of_the_medians() -> None:
    ours, floor = [[2.0], [30.0], [4.0]], [[1.0], [10.0], [4.0]]
    row = row_of("ours", "1080p", ours, reference_ms=floor)
    assert row.ratio == 2.0 == median(round_ratios(ours, floor))
    assert row.more["rounds_ms"] == [2.0, 30.0, 4.0]
    assert row.more["round_ratios"] == [2.0, 3.0, 1.0]


def test_a_round_without_values_has_no_ratio() -> None:
    assert round_ratios([[2.0], []], [[1.0], [1.0]]) == [2.0]
    assert row_of("ours", "1080p", [[]], reference_ms=[[1.0]]).ratio is None


def test_spread_is_the_range_over_the_median() -> None:
    assert spread([1.0, 2.0, 3.0]) == 1.0
    assert spread([1.0]) == 0.0


@pytest.mark.parametrize(("ratio", "guard", "code"), [(1.2, False, 0), (2.0, False, 1), (2.0, True, 0), (9.0, True, 1)])
def test_the_exit_code_is_of_targets_or_with_guard_of_guards_alone(
    targets: list[Target], capsys: pytest.CaptureFixture[str], ratio: float, guard: bool, code: int
) -> None:
    targets.append(target(guard=4.0))
    report = Report("transport", "How long?", {}, rows=[figure("ours", "1080p", 1, ratio)])
    assert report.finish(Namespace(save=False, guard=guard)) == code
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["targets"][0]["value"] == ratio
    assert result["targets"][0]["met"] == (ratio <= 1.5)


def test_the_last_line_is_json_without_nan(targets: list[Target], capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("transport", "How long?", {"rounds": 1}, not_run={"netgear_raw": "vidgear is not installed"})
    report.rows += [
        row_of("ours", "1080p", [[1.0, 2.0]], lost=0),
        figure("netgear_raw", "1080p", 0, share=float("nan")),
    ]
    assert report.finish(Namespace(save=False, guard=False)) == 0
    printed = capsys.readouterr().out
    result = json.loads(printed.splitlines()[-1], parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    ours, peer = result["rows"]
    assert (ours["method"], ours["case"], ours["p50_ms"], ours["n"], ours["lost"]) == ("ours", "1080p", 1.5, 2, 0)
    assert peer["p50_ms"] is None is peer["share"]
    assert result["commit"] and result["machine"]["cores"] and "numpy" in result["versions"]
    assert "netgear_raw: not run: vidgear is not installed" in printed


def test_a_value_that_is_no_number_never_meets_its_target(targets: list[Target]) -> None:
    targets.append(target(reads="share"))
    report = Report("transport", "How long?", {}, rows=[figure("ours", "1080p", 0, share=float("nan"))])
    assert [verdict.met for verdict in report.verdicts()] == [False]


def test_a_peer_that_is_missing_is_told_with_the_command_that_installs_it() -> None:
    assert reports.not_installed(ImportError("no", name="imagezmq"), "imagezmq_pubsub") == (
        "imagezmq is not installed; pip install imagezmq"
    )
    assert "pip install vidgear" in reports.not_installed(ImportError("no", name="vidgear.gears"), "netgear_raw_planes")


@pytest.mark.parametrize(("load", "told"), [(0.4, False), (6.0, True)])
def test_a_result_filed_on_a_busy_machine_says_so(
    targets: list[Target], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, load: float, told: bool
) -> None:
    monkeypatch.setattr(reports, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(reports, "ROOT", tmp_path)
    report = Report("transport", "How long?", {}, rows=[figure("ours", "1080p", 1, 1.0)], load_before=(load, 0.0, 0.0))
    report.finish(Namespace(save=True, guard=False))
    [page] = (tmp_path / "results").iterdir()
    assert ("The machine was busy" in page.read_text()) == told
