from __future__ import annotations

import re
import subprocess
from pathlib import Path

import msgspec
import pytest

from stream_agent.errors import ConfigError
from stream_agent.evaluation.metrics import Outcome
from stream_agent.models.model_files import digest_of, kind_of, model_files
from stream_agent.models.record import answered, code_version, read_record, write_record
from stream_agent.planner.ensemble import load_ensemble
from stream_agent.planner.ngram import load_model
from tests.models.made_models import SHIPPED, record_of, statistical_model, written


def complaint(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_record(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_record_is_read_as_it_was_written(better: Path, tmp_path: Path) -> None:
    made = record_of(better, SHIPPED)
    assert read_record(written(made, tmp_path / "record.json")) == made
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["record.json"]


def test_what_is_no_record_is_told_in_a_line(better: Path, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    assert "cannot be read" in complaint(path)
    path.write_bytes(b"\xff\xfe")
    assert "is no evaluation record" in complaint(path)
    path.write_text('{"version": 1}')
    assert "missing required field `kind`" in complaint(path)
    whole = msgspec.to_builtins(record_of(better, SHIPPED))
    path.write_bytes(msgspec.json.encode(whole | {"surprise": 1}))
    assert "unknown field `surprise`" in complaint(path)
    path.write_bytes(msgspec.json.encode(whole | {"version": 9}))
    assert "version 9" in complaint(path)
    path.write_bytes(msgspec.json.encode(whole | {"data": {}}))
    assert "data" in complaint(path)
    path.write_bytes(msgspec.json.encode(whole | {"code": ""}))
    assert "code" in complaint(path)


def test_a_record_cannot_be_written_into_nowhere(better: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        write_record(record_of(better, SHIPPED), tmp_path / "absent" / "record.json")


def test_outcomes_become_answers_and_back() -> None:
    outcome = Outcome("VID01", 3, "Dissection", "Coagulation", ("Dissection",), (0.5,))
    [answer] = answered([outcome], [1.5])
    assert answer.outcome == outcome
    assert answer.elapsed_ms == 1.5


def test_a_statistical_model_is_called_what_its_plans_call_it() -> None:
    ensemble = load_ensemble(SHIPPED / "ensemble.json")
    called = f"{load_model(SHIPPED / 'planner.json').digest}+{ensemble.digest}"
    assert digest_of("statistical", model_files(SHIPPED)) == called


def test_a_folder_holds_one_kind_of_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no model"):
        kind_of(tmp_path)
    folder = statistical_model(tmp_path / "both", procedures=1)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="both kinds"):
        kind_of(folder)


def test_the_code_is_named_by_its_commit() -> None:
    head = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True
    ).stdout.strip()
    if not head:
        pytest.skip("not in a git checkout")
    assert re.fullmatch(re.escape(head) + r"\+?", code_version())
