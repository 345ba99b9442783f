from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.compare import differences, interval, load_result, missing
from stream_agent import cli
from stream_agent.errors import ConfigError


def result(ratios: list[float], times: list[float], better: str = "lower", method: str = "ours") -> dict[str, Any]:
    row = {
        "method": method,
        "case": "1080p",
        "p50_ms": sorted(times)[len(times) // 2],
        "ratio": sorted(ratios)[len(ratios) // 2],
        "rounds_ms": times,
        "round_ratios": ratios,
    }
    return {"benchmark": "transport", "better": better, "rows": [row]}


QUIET = [1.50, 1.52, 1.48, 1.51, 1.49]


def verdict(before: dict[str, Any], after: dict[str, Any], key: str = "ratio") -> str:
    [found] = [one for one in differences(before, after) if one.key == key]
    return found.verdict


def test_what_stays_within_the_rounds_own_spread_is_the_same() -> None:
    noisy = [1.0, 1.6, 1.5, 2.4, 1.9]
    assert verdict(result(QUIET, QUIET), result([1.53, 1.5, 1.47, 1.52, 1.5], QUIET)) == "same"
    assert verdict(result(noisy, QUIET), result([1.2, 1.9, 1.7, 2.5, 2.1], QUIET)) == "same"


def test_a_ratio_beyond_the_noise_is_a_regression_in_the_direction_that_is_worse() -> None:
    doubled = [value * 2 for value in QUIET]
    found = differences(result(QUIET, QUIET), result(doubled, QUIET))
    assert [one.regression for one in found if one.key == "ratio"] == [True]
    assert verdict(result(doubled, QUIET), result(QUIET, QUIET)) == "better"
    assert verdict(result(QUIET, QUIET, "higher"), result(doubled, QUIET, "higher")) == "better"


def test_times_of_two_runs_are_told_and_never_a_regression() -> None:
    found = differences(result(QUIET, QUIET), result(QUIET, [value * 9 for value in QUIET]))
    [times] = [one for one in found if one.key == "p50_ms"]
    assert (times.verdict, times.regression) == ("worse", False)


def test_a_peer_that_became_slower_is_no_regression_of_ours() -> None:
    tripled = [value * 3 for value in QUIET]
    found = differences(result(QUIET, QUIET, method="netgear_raw"), result(tripled, QUIET, method="netgear_raw"))
    assert [(one.verdict, one.regression) for one in found if one.key == "ratio"] == [("worse", False)]


def test_less_than_five_per_cent_is_the_same_however_quiet_the_machine() -> None:
    assert verdict(result([1.5] * 5, QUIET), result([1.53] * 5, QUIET)) == "same"


def test_too_few_rounds_say_nothing() -> None:
    assert interval([1.0, 1.0], [9.0, 9.0, 9.0]) == (0.0, float("inf"))
    assert verdict(result([1.5], QUIET), result([9.0], QUIET)) == "unknown"


def test_rows_of_one_result_alone_are_named() -> None:
    assert missing(result(QUIET, QUIET), result(QUIET, QUIET, method="theirs")) == [
        "transport ours 1080p",
        "transport theirs 1080p",
    ]


@pytest.mark.parametrize("text", ["", "no JSON", "{}", '{"rows": 1}'])
def test_a_file_without_a_result_is_refused_with_what_to_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="holds no result with rows; name result"):
        load_result(path)


def test_a_result_is_found_on_the_last_line_of_what_was_printed(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a table\n" + json.dumps(result(QUIET, QUIET)) + "\n")
    assert load_result(path)["benchmark"] == "transport"


@pytest.mark.parametrize(("factor", "code"), [(1.0, 0), (2.0, 1)])
def test_the_command_fails_on_a_regression_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], factor: float, code: int
) -> None:
    before, after = tmp_path / "a.json", tmp_path / "b.json"
    before.write_text(json.dumps(result(QUIET, QUIET)))
    after.write_text(json.dumps(result([value * factor for value in QUIET], [value * 9 for value in QUIET])))
    with pytest.raises(SystemExit) as exit_:
        cli.main(["bench", "compare", str(before), str(after)])
    assert exit_.value.code == code
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["regressions"] == code
