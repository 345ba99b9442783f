"""The gate of a tuned adapter: parts held out of start and candidate alike, a record that `models promote` reads, a verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from stream_agent.config import load_tree
from stream_agent.errors import ConfigError
from stream_agent.models.gate import objections
from stream_agent.models.margins import load_margins
from stream_agent.models.record import read_record
from stream_agent.training import adapter_gate
from stream_agent.training.adapter_record import fitted_on
from stream_agent.training.calibration import tempered
from stream_agent.training.config import TrainingConfig, load_training
from stream_agent.training.preference import PreferenceTraining
from tests.training.made_up import write_sap

VIDEOS = ("VID01", "VID02", "VID04", "VID05", "VID73")

# The libraries warn of each other's names, and torch of its own parts when they are imported.
pytestmark = [
    pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning", "default::UserWarning"),
]


def overrides(folder: Path, model: Path | str, **over: Any) -> list[str]:
    sap = folder / "sap.json"
    write_sap(sap, VIDEOS)
    given = {
        "data.sap": sap,
        "data.tasks": "[rank]",
        "data.validation": 0,
        "planner.model": model,
        "planner.form": "indirect",
        "planner.memory": "labels_only",
        "planner.knowledge": "none",
        "planner.device": "cpu",
        "planner.threads": 1,
        "optimiser.max_steps": 1,
        "optimiser.batch": 4,
        "optimiser.warmup": 0,
    } | {key.replace("__", "."): value for key, value in over.items()}
    return [f"{key}={value}" for key, value in given.items()]


class Written:
    """A trainer that writes nothing but the record of what it was told."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, tuple[str, ...], Path | None]] = []

    def __call__(self, config: TrainingConfig, folder: Path) -> None:
        folder.mkdir(parents=True)
        left = {"VID01", "VID02", "VID04", "VID05"} - set(config.data.exclude)
        before = config.lora.start_from
        told = {
            "config_digest": config.digest(),
            "data": {"fitted_on": sorted(left), "chosen_by": []},
            "began_with": {} if before is None else {"fitted_on": list(fitted_on(before))},
        }
        (folder / "record.json").write_text(json.dumps(told))
        self.seen.append((folder.name, config.data.exclude, before))


def test_each_part_is_held_out_of_start_and_candidate_alike(tmp_path: Path) -> None:
    tuning = load_tree(PreferenceTraining, None, overrides(tmp_path, "m"))
    starting = load_training(None, overrides(tmp_path, "m"))
    tune, begin = Written(), Written()
    whole, contests = adapter_gate.crossvalidate(
        tuning, tune, tmp_path / "out", parts=2, starting=starting, begin=begin, say=lambda _line: None
    )
    assert sorted(video for contest in contests for video in contest.asked) == ["VID01", "VID02", "VID04", "VID05"]
    for contest in contests:
        assert contest.start is not None
        assert not set(contest.asked) & set(fitted_on(contest.tuned))
        assert not set(contest.asked) & set(fitted_on(contest.start))
    assert fitted_on(whole.tuned) == ("VID01", "VID02", "VID04", "VID05")
    assert all(before is not None and before.name == "start" for _, _, before in tune.seen)
    calls = len(tune.seen), len(begin.seen)
    adapter_gate.crossvalidate(
        tuning, tune, tmp_path / "out", parts=2, starting=starting, begin=begin, say=lambda _line: None
    )
    assert (len(tune.seen), len(begin.seen)) == calls == (3, 3), "what is there is not trained again"
    other = load_tree(PreferenceTraining, None, overrides(tmp_path, "m", preference__beta=0.3))
    with pytest.raises(ConfigError, match="trained with another configuration"):
        adapter_gate.crossvalidate(other, tune, tmp_path / "out", parts=2, starting=starting, begin=begin)


@pytest.mark.parametrize(
    ("parts", "over", "message"),
    [
        (2, {"data__validation": 0.2}, "set data.validation=0"),
        (1, {}, "holds out no video"),
        (2, {"lora__start_from": "x"}, "give --start-config"),
    ],
)
def test_what_would_prove_nothing_is_refused_before_anything_is_trained(
    tmp_path: Path, parts: int, over: dict[str, Any], message: str
) -> None:
    tuning, tune = load_tree(PreferenceTraining, None, overrides(tmp_path, "m", **over)), Written()
    with pytest.raises(ConfigError, match=message):
        adapter_gate.crossvalidate(tuning, tune, tmp_path / "out", parts=parts)
    assert not tune.seen


def test_an_adapter_is_not_asked_about_what_it_was_fitted_on(tmp_path: Path) -> None:
    tuning, tune = load_tree(PreferenceTraining, None, overrides(tmp_path, "m")), Written()
    tune(tuning, tmp_path / "tuned")
    contest = adapter_gate.Contest(None, tmp_path / "tuned", ("VID01",))
    with pytest.raises(ConfigError, match="was fitted on VID01, which it is asked about"):
        adapter_gate.gate_record(contest, [contest], tuning, command="")
    with pytest.raises(ConfigError, match="VID73"):
        tested = adapter_gate.Contest(None, tmp_path / "tuned", ("VID73",))
        adapter_gate.gate_record(tested, [tested], tuning, command="")


def test_by_one_command_to_a_record_and_a_verdict(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """Two parts on a tiny random model: the record is sound but for its size, so nothing ships."""
    pytest.importorskip("torch")
    pytest.importorskip("trl")
    from stream_agent.training.commands import train as commands
    from tests.planner.backends import tiny_models

    model = tiny_models.build("qwen2", tmp_path_factory.mktemp("models") / "tiny")
    (tmp_path / "start.yaml").write_text("optimiser: {max_steps: 1, batch: 4, warmup: 0}\n")
    given = ["--start-config", str(tmp_path / "start.yaml"), "--parts", "2", "--out", str(tmp_path / "out")]
    answer = CliRunner().invoke(
        commands, ["gate", "dpo", *given, *overrides(tmp_path, model)], catch_exceptions=False, standalone_mode=False
    )
    assert answer.return_value == 1
    assert "does not ship" in answer.output
    record = read_record(tmp_path / "out" / adapter_gate.RECORD)
    assert record.kind == "adapter"
    assert record.candidate.files != record.in_use.files
    assert len(record.candidate.answers) == len(record.in_use.answers) == 14
    assert "VID73" not in json.dumps([one.video for one in record.candidate.answers])
    assert record.candidate.base
    left = objections(record, load_margins().adapter)
    assert all("are needed; evaluate on more" in reason for reason in left), left

    fitted = ["gate", "dpo", *given, "--fit-temperature", *overrides(tmp_path, model)]
    answer = CliRunner().invoke(commands, fitted, catch_exceptions=False, standalone_mode=False)
    assert "tuned is there already" in answer.output and "tuned: temperature " in answer.output
    calibrated = read_record(tmp_path / "out" / adapter_gate.RECORD)
    assert record.candidate.temperature == record.in_use.temperature == 1.0 != calibrated.candidate.temperature
    pairs = list(zip(record.candidate.answers, calibrated.candidate.answers, strict=True))
    assert all(before.ranked == after.ranked for before, after in pairs), "a temperature changes no order"
    assert any(before.probabilities != after.probabilities for before, after in pairs)
    assert "--fit-temperature" in calibrated.command and "--fit-temperature" not in record.command


def test_a_part_s_temperature_is_fitted_on_the_other_parts_alone() -> None:
    draw = np.random.default_rng(0)
    honest = [draw.dirichlet(np.ones(5), 400) for _ in range(3)]
    targets = [np.array([draw.choice(5, p=row) for row in part]) for part in honest]
    sharp = [tempered(part, 0.5) for part in honest]
    found = adapter_gate.each_calibrated_on_the_others(sharp, targets)
    for own, before, true in zip(found, sharp, honest, strict=True):
        assert np.abs(own - true).mean() < 0.1 * np.abs(before - true).mean()
    other = [(targets[0] + 1) % 5, *targets[1:]]
    again = adapter_gate.each_calibrated_on_the_others(sharp, other)
    assert np.array_equal(found[0], again[0]) and not np.array_equal(found[1], again[1])


def test_one_part_has_no_other_to_fit_a_temperature_on(tmp_path: Path) -> None:
    tuning = load_tree(PreferenceTraining, None, overrides(tmp_path, "m"))
    with pytest.raises(ConfigError, match="--parts 1 has none; ask --parts 5"):
        adapter_gate.run("dpo", tuning, tmp_path / "out", parts=1, starting=None, command="", calibrated=True)
