"""`run_agent.py models`: what each command says, and how it refuses."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from stream_agent import cli
from stream_agent.models.model_files import model_files
from tests.models.made_models import BASE, SHIPPED, adapter, record_of, side, statistical_model, written


def call(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["models", *map(str, arguments)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture
def promoted(tmp_path: Path, better: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A registry made from the command line with one statistical model."""
    folder = tmp_path / "registry"
    record = written(record_of(better, SHIPPED), tmp_path / "record.json")
    assert call("promote", better, "--record", record, "--registry", folder) == 0
    told = capsys.readouterr().out
    assert "accuracy: SLAcc@1 60.0 against 60.0: +0.0 points" in told
    assert told.endswith(f"runs take it with models.registry={folder}\n")
    return folder


def test_a_refusal_has_its_own_exit_code_and_a_line_per_reason(
    tmp_path: Path, better: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    worse = record_of(better, SHIPPED, ours=side({"x": ""}, right=2, sure=0.6, ms=9.0))
    record = written(worse, tmp_path / "record.json")
    assert call("promote", better, "--record", record, "--registry", tmp_path / "registry") == 8
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" on ")[2].partition(":")[0] for line in lines] == ["accuracy", "calibration", "latency"]
    assert not (tmp_path / "registry" / "registry.json").exists()


def test_other_margins_may_be_named(tmp_path: Path, better: Path, capsys: pytest.CaptureFixture[str]) -> None:
    worse = record_of(better, SHIPPED, ours=side({"x": ""}, right=2, sure=0.4))
    record = written(worse, tmp_path / "record.json")
    shipped = (SHIPPED.parents[1] / "model_gate.yaml").read_text()
    loose = tmp_path / "loose.yaml"
    loose.write_text(shipped.replace("accuracy_points: 5", "accuracy_points: 50"))
    command = ("promote", better, "--record", record, "--registry", tmp_path / "registry")
    assert call(*command, "--margins", loose) == 0
    loose.write_text(shipped.replace("accuracy_points: 5", "accuracy_points: 500"))
    assert call(*command, "--margins", loose) == 2
    assert "loose.yaml:" in capsys.readouterr().err


def test_list_show_and_verify_tell_what_is_there(
    promoted: Path, better: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = model_files(better)["planner.json"]
    assert call("list", "--registry", promoted) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[0] == "statistical/cholecystectomy"
    assert listed[1] == "    0  the pack's own"
    assert listed[2].startswith(f"  * 1  {digest[:12]}  ")
    assert call("show", "--registry", promoted) == 0
    shown = capsys.readouterr().out
    assert "version 1, in use" in shown
    assert f"{digest}  planner.json" in shown
    assert "latency: p99" in shown
    assert call("show", "0", "--registry", promoted) == 0
    assert call("show", "5", "--registry", promoted) == 2
    assert call("verify", "--registry", promoted) == 0
    assert "1 version, 0 damaged" in capsys.readouterr().out
    (promoted / "versions" / "statistical-cholecystectomy-0001" / "record.json").write_text("{}")
    assert call("verify", "--registry", promoted) == 1
    assert "damaged: statistical/cholecystectomy version 1, in use: " in capsys.readouterr().out


def test_one_command_rolls_back(promoted: Path, better: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digest = model_files(better)["planner.json"][:12]
    assert call("rollback", "--registry", promoted) == 0
    assert f"back from version 1 ({digest}) to version 0, the pack's own model" in capsys.readouterr().out
    assert call("rollback", "--registry", promoted) == 2
    assert "there is no version before it" in capsys.readouterr().err


def test_with_both_kinds_the_kind_is_asked_for(
    promoted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = adapter(tmp_path / "adapter", value=1.0)
    found = record_of(made, None)
    found = msgspec.structs.replace(found, candidate=msgspec.structs.replace(found.candidate, temperature=0.84))
    record = written(found, tmp_path / "adapter.json")
    assert call("promote", made, "--record", record, "--registry", promoted) == 0
    settings = f"planner.adapter=promoted planner.digest={BASE} planner.temperature=0.84"
    assert capsys.readouterr().out.endswith(f"={promoted} {settings}\n")
    assert call("rollback", "--registry", promoted) == 2
    assert "--kind" in capsys.readouterr().err
    assert call("show", "--kind", "adapter", "--registry", promoted) == 0
    assert f"base      {BASE}" in capsys.readouterr().out
    assert call("rollback", "--kind", "adapter", "--registry", promoted) == 0
    assert "the base model without adapter" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["list", "show", "verify", "rollback"])
def test_a_registry_that_is_not_there_is_told(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(command, "--registry", tmp_path / "absent") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "does not exist" in line
    assert not (tmp_path / "absent").exists()


def test_a_candidate_that_is_none_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = tmp_path / "record.json"
    assert call("promote", tmp_path, "--record", record, "--registry", tmp_path / "r") == 2
    assert "holds no model" in capsys.readouterr().err
    model = statistical_model(tmp_path / "model", procedures=3)
    assert call("promote", model, "--record", record, "--registry", tmp_path / "r") == 2
    assert f"record {record} cannot be read" in capsys.readouterr().err
    assert call("record", tmp_path, "--sap", record, "--out", record, "--registry", tmp_path / "r") == 2
