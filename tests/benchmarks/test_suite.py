from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import suite
from stream_agent import benchmarking, cli
from stream_agent.errors import ConfigError

MADE_UP = """
import json, sys
print("a table of {name}")
row = {{"method": "ours", "case": "1080p", "p50_ms": 1.0, "p99_ms": 2.0, "ratio": {ratio}}}
target = {{"name": "t", "met": {ratio} <= 1.5, "guarded": {ratio} <= 4.0, "method": "ours", "case": "1080p",
          "reads": "ratio", "value": {ratio}, "rule": "<=", "limit": 1.5}}
print(json.dumps({{"benchmark": "{name}", "question": "How long?", "rows": [row], "targets": [target],
                  "not_run": {{"netgear_raw": "vidgear is not installed; pip install vidgear"}}, "notes": [],
                  "settings": {{"quick": "--quick" in sys.argv}}, "versions": {{}}, "better": "lower"}}))
sys.exit({ratio} > 1.5)
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose benchmarks are made up."""
    folder = tmp_path / "checkout"
    (folder / "benchmarks").mkdir(parents=True)
    for name, ratio in (("transport", 1.2), ("staleness", 2.0), ("decode", 9.0)):
        (folder / "benchmarks" / f"{name}.py").write_text(MADE_UP.format(name=name, ratio=ratio))
    (folder / "benchmarks" / "memory.py").write_text("raise SystemExit('the disk is gone')")
    (folder / "benchmarks" / "planner.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(suite, "ROOT", folder)
    return folder


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, dict[str, Any]]:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["bench", *arguments])
    printed = capsys.readouterr().out
    assert isinstance(exit_.value.code, int)
    return exit_.value.code, printed, json.loads(printed.splitlines()[-1])


@pytest.mark.usefixtures("checkout")
class TestTheCommand:
    def test_one_benchmark_prints_its_table_and_last_its_own_object(self, capsys: pytest.CaptureFixture[str]) -> None:
        code, printed, result = call(capsys, "transport", "--quick")
        assert code == 0
        assert "a table of transport" in printed
        assert result["benchmark"] == "transport"
        assert result["rows"][0]["method"] == "ours"
        assert result["settings"] == {"quick": True}

    def test_rows_of_several_say_which_benchmark_they_are_of(self, capsys: pytest.CaptureFixture[str]) -> None:
        code, _, result = call(capsys, "transport", "staleness")
        assert code == 1  # one target is missed
        assert [row["benchmark"] for row in result["rows"]] == ["transport", "staleness"]
        assert result["not_run"]["staleness: netgear_raw"].endswith("pip install vidgear")

    @pytest.mark.parametrize(("name", "code"), [("staleness", 0), ("decode", 1)])
    def test_with_guard_only_a_crossed_guard_fails(
        self, capsys: pytest.CaptureFixture[str], name: str, code: int
    ) -> None:
        assert call(capsys, name, "--guard")[0] == code

    def test_one_that_breaks_is_told_and_the_others_run(self, capsys: pytest.CaptureFixture[str]) -> None:
        code, printed, result = call(capsys, "memory", "transport", "--guard")
        assert code == 1
        assert "memory broke: ended with exit code 1: the disk is gone" in printed
        assert [row["benchmark"] for row in result["rows"]] == ["transport"]

    def test_an_unknown_name_is_told_with_the_nearest(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as exit_:
            cli.main(["bench", "transprt"])
        assert exit_.value.code == ConfigError.exit_code
        assert "there is no benchmark transprt; did you mean transport?" in capsys.readouterr().err

    def test_a_report_is_one_page_that_loads_nothing_the_same_as_markdown_and_the_json(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        folder = tmp_path / "report"
        call(capsys, "transport", "staleness", "--report", str(folder))
        page, text = (folder / "index.html").read_text(), (folder / "report.md").read_text()
        assert "src=" not in page.replace('src="data:', "")
        assert "href=" not in page
        for told in ("How long?", "ours", "1080p", "missed", "vidgear is not installed"):
            assert told in page
            assert told in text
        assert len(json.loads((folder / "result.json").read_text())["rows"]) == 2


def test_a_benchmark_that_does_not_end_is_given_up(checkout: Path) -> None:
    told: list[str] = []
    results = suite.run(["planner"], quick=True, tell=told.append, limit_s=1.0)
    assert results["planner"]["broken"] == "not over after 1 s"
    assert suite.exit_code(results, guard=True) == 1


def test_an_installed_package_without_a_checkout_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmarking, "_ROOT", tmp_path)
    with pytest.raises(SystemExit) as exit_:
        cli.main(["bench", "transport"])
    assert exit_.value.code == ConfigError.exit_code
    assert "run them in a checkout: python run_agent.py bench" in capsys.readouterr().err


def test_the_command_line_loads_no_benchmark_before_it_is_asked_to() -> None:
    import subprocess

    code = "import sys, stream_agent.cli; sys.exit(any(name.startswith('benchmarks') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


ROW = {"method": "ours", "case": "480p", "p50_ms": 1.0, "p99_ms": 2.0}


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ({"rows": [ROW]}, ""),
        ({"rows": [], "not_run": {"ours": "why"}}, ""),
        ({"rows": [], "not_run": {}}, "it has no rows, and nothing is told as not run"),
        ({"rows": [ROW, {"method": "ours", "case": "480p", "p50_ms": 1.0}]}, "a row lacks p99_ms"),
        ([ROW], "its last line is no object with rows"),
        ({"rows": {}}, "its last line is no object with rows"),
    ],
)
def test_a_result_that_other_tools_could_not_read_is_broken(result: Any, said: str) -> None:
    problem = suite.contract_problem(result)
    assert problem.startswith(said) and bool(problem) == bool(said)


def test_a_benchmark_whose_last_line_breaks_the_contract_is_told_and_fails(checkout: Path) -> None:
    (checkout / "benchmarks" / "decode.py").write_text("""print('{"rows": [{"method": "ours"}]}')""")
    results = suite.run(["decode"], quick=True, tell=lambda _: None)
    assert results["decode"]["broken"].startswith("a row lacks case, p50_ms, p99_ms")
    assert suite.exit_code(results, guard=True) == 1
