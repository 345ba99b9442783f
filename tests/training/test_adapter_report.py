"""What is said of an adapter: asked as it was trained, weighed on videos it has not seen, and compared on the test samples."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("trl")
pytest.importorskip("llguidance")
pytest.importorskip("sklearn")

from stream_agent.errors import ConfigError
from stream_agent.training.adapter_report import evaluate_adapter
from stream_agent.training.report_rows import table
from stream_agent.training.sft import train
from tests.planner.backends import tiny_models
from tests.training.test_data import clips, written
from tests.training.test_sft import settings
from tests.training.test_trial_report import ORDERS

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning", "default::UserWarning"),
]


@pytest.fixture(scope="module")
def sap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = ("VID01", "VID02", "VID04", "VID05", "VID13", "VID15", "VID18", "VID22", "VID73", "VID06", "VID14")
    folder = tmp_path_factory.mktemp("sap")
    videos = {
        name: clips(name, *ORDERS[at % len(ORDERS)], every_s=30 + at, shift_s=at) for at, name in enumerate(names)
    }
    return written(folder / "sap.json", videos)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, sap: Path) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    model = tiny_models.build("qwen2", folder / "qwen2")
    train(settings(sap, model, optimiser__max_steps=4), folder / "taught", say=lambda _: None)
    return folder / "taught"


def test_every_row_is_over_the_test_samples_and_the_weight_over_unseen_training_videos(
    sap: Path, adapter: Path
) -> None:
    lines: list[str] = []
    found = evaluate_adapter(adapter, sap, say=lines.append)
    record = json.loads((adapter / "record.json").read_text())
    assert found["samples"] == 4 + 5 + 4, "clips with one before them, of the three test videos"
    assert found["chosen_by_samples"] == record["data"]["validation_samples"]
    rows = found["rows"]
    assert len(rows) == 6 and rows["zero-shot"]["nll"] != rows["adapter"]["nll"]
    assert rows["adapter"]["SLAcc"] == rows["adapter, fitted temperature"]["SLAcc"], "a temperature changes no order"
    assert rows["statistical"]["minus_statistical"]["value"] == 0
    assert 0 <= found["fusion_weight"] <= 5 and found["temperature"] > 0
    told = table(rows).splitlines()
    assert len(told) == 8 and len({line.count("|") for line in told}) == 1


def test_without_videos_held_out_nothing_is_fitted_and_all_else_is_told(
    sap: Path, adapter: Path, tmp_path: Path
) -> None:
    whole = settings(sap, adapter.parent / "qwen2", optimiser__max_steps=2, data__validation=0)
    train(whole, tmp_path / "whole", say=lambda _: None)
    found = evaluate_adapter(tmp_path / "whole", sap, say=lambda _: None)
    assert list(found["rows"]) == ["zero-shot", "adapter", "statistical", "fused as configured (w=0.2, T=1)"]
    assert found["samples"] == 13 and found["chosen_by_samples"] == 0
    assert not {"temperature", "fusion_weight", "chosen_by"} & found.keys()


def test_what_is_kept_is_not_asked_again_and_gives_the_same_report(sap: Path, adapter: Path, tmp_path: Path) -> None:
    said: list[list[str]] = [[], []]
    first, second = (evaluate_adapter(adapter, sap, keep=tmp_path / "kept", say=lines.append) for lines in said)
    assert first == second
    assert [line.split(":")[0] for line in said[0]] == [
        "statistical",
        "statistical beside",
        "base beside",
        "base",
        "held",
        "test",
    ]
    assert said[1] == []
    files = sorted((tmp_path / "kept").iterdir())
    assert len(files) == 6
    another = tmp_path / "another"
    train(
        settings(sap, adapter.parent / "qwen2", optimiser__max_steps=2, optimiser__learning_rate=0.02),
        another,
        say=lambda _: None,
    )
    more: list[str] = []
    evaluate_adapter(another, sap, keep=tmp_path / "kept", say=more.append)
    assert [line.split(":")[0] for line in more] == ["held", "test"], "another adapter beside the same base"
    for path in files:
        path.write_text("{}")
    with pytest.raises(ConfigError, match="holds no beliefs"):
        evaluate_adapter(adapter, sap, keep=tmp_path / "kept", say=lambda _: None)


def test_prompts_that_have_changed_since_are_refused(sap: Path, adapter: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json", "training.yaml"):
        (copy / name).write_bytes((adapter / name).read_bytes())
    record = json.loads((adapter / "record.json").read_text())
    record["data"]["prompt"] = "0" * 12
    (copy / "record.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="was taught with prompts of digest 000000000000"):
        evaluate_adapter(copy, sap, say=lambda _: None)
    record["data"]["fitted_on"] = ["VID73"]
    (copy / "record.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="VID73: a test video"):
        evaluate_adapter(copy, sap, say=lambda _: None)
    (copy / "record.json").unlink()
    with pytest.raises(ConfigError, match="name an adapter that `train` wrote"):
        evaluate_adapter(copy, sap, say=lambda _: None)


def test_a_changed_adapter_is_refused(sap: Path, adapter: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in adapter.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    with (copy / "adapter_model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    with pytest.raises(ConfigError, match="is not the file it was"):
        evaluate_adapter(copy, sap, say=lambda _: None)


def test_another_base_than_the_adapter_was_trained_on_is_refused(sap: Path, adapter: Path, tmp_path: Path) -> None:
    """Its answers would have been kept under the name of the one that was meant."""
    other = tmp_path / "other"
    shutil.copytree(adapter.parent / "qwen2", other, ignore=shutil.ignore_patterns("manifest.sha256"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.01}))
    with pytest.raises(ConfigError, match="name the model that was meant"):
        evaluate_adapter(adapter, sap, model=other, keep=tmp_path / "kept", say=lambda _: None)
