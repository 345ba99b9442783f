"""A trial's folder: what each part may be asked about, and every way in which the comparison would prove nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from stream_agent.errors import ConfigError
from stream_agent.planner.backends.adapters import WEIGHTS
from stream_agent.procedure import load_pack
from stream_agent.prompts import PromptFactory
from stream_agent.training.config import load_training
from stream_agent.training.trial import load_trial

PACK = load_pack(Path("cholecystectomy"))
VIDEOS = ("VID01", "VID02", "VID04", "VID05", "VID13")
PARTS = (("VID01", "VID13"), ("VID02",), ("VID04", "VID05"))


def write_adapter(folder: Path, without: Sequence[str] = (), **over: Any) -> Path:
    """An adapter's folder as training leaves it, but for its weights, which nobody reads here."""
    given: dict[str, Any] = {
        "data.sap": "sap.json",
        "data.validation": 0,
        "data.exclude": f"[{','.join(without)}]",
        "planner.model": "models/base",
        "planner.form": "indirect",
        "planner.memory": "labels_only",
    } | {name.replace("__", "."): value for name, value in over.items()}
    config = load_training(None, [f"{name}={value}" for name, value in given.items()])
    folder.mkdir(parents=True)
    (folder / WEIGHTS).write_bytes(str(folder).encode())
    (folder / "adapter_config.json").write_text('{"r": 4}')
    (folder / "training.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    prompt = PromptFactory(PACK, config.planner).digest
    left = [video for video in VIDEOS if video not in without]
    record = {
        "base_digest": "b" * 12,
        "config_digest": config.digest(),
        "data": {"fitted_on": left, "chosen_by": [], "prompt": prompt},
    }
    (folder / "record.json").write_text(json.dumps(record))
    return folder


def change(adapter: Path, key: str, value: object) -> None:
    """One entry of its record, `a.b` for a nested one."""
    path = adapter / "record.json"
    record = json.loads(path.read_text())
    *outer, last = key.split(".")
    inner = record
    for name in outer:
        inner = inner[name]
    inner[last] = value
    path.write_text(json.dumps(record))


def refit(adapter: Path, without: Sequence[str] = (), **over: Any) -> None:
    shutil.rmtree(adapter)
    write_adapter(adapter, without, **over)


@pytest.fixture
def trial(tmp_path: Path) -> Path:
    folder = tmp_path / "trial"
    write_adapter(folder / "tuned")
    for number, part in enumerate(PARTS, 1):
        write_adapter(folder / f"part-{number}" / "tuned", part, lora__start_from=folder / f"part-{number}" / "start")
    return folder


@pytest.fixture
def begun(trial: Path) -> Path:
    """The same with what each adapter began with."""
    for place, part in zip((trial, *(trial / f"part-{number}" for number in (1, 2, 3))), ((), *PARTS), strict=True):
        write_adapter(place / "start", part, optimiser__epochs=7)
    return trial


def test_a_part_may_be_asked_about_what_it_was_not_fitted_on(trial: Path) -> None:
    found = load_trial(trial)
    assert found.unseen == PARTS
    assert found.videos == VIDEOS
    assert list(found.taught) == ["adapter"]
    for adapter, videos in zip(found.taught["adapter"].parts, found.unseen, strict=True):
        assert not adapter.seen & set(videos)


def test_parts_stand_in_the_order_of_their_numbers(trial: Path) -> None:
    (trial / "part-3").rename(trial / "part-10")
    assert load_trial(trial).parts == ("part-1", "part-2", "part-10")


def test_what_each_adapter_began_with_is_compared_too(begun: Path) -> None:
    found = load_trial(begun)
    assert list(found.taught) == ["start", "adapter"], "trained by another configuration, and asked alike"
    assert found.candidate is found.taught["adapter"].whole


def test_who_was_ended_by_hand_is_named(trial: Path) -> None:
    change(trial / "part-2" / "tuned", "ended_early", True)
    assert load_trial(trial).ended_early == ("part-2/tuned",)


def test_one_part_is_none(trial: Path) -> None:
    for number in (2, 3):
        shutil.rmtree(trial / f"part-{number}")
    with pytest.raises(ConfigError, match=r"has 1 folders part-1.*--parts 5.*--adapter"):
        load_trial(trial)


def test_every_video_is_left_out_exactly_once(trial: Path) -> None:
    shutil.rmtree(trial / "part-2")
    with pytest.raises(ConfigError, match="no part leaves out VID02, which the candidate was fitted on"):
        load_trial(trial)
    write_adapter(trial / "part-2" / "tuned", ("VID02", "VID04"))
    with pytest.raises(ConfigError, match="part-2 and part-3 both leave out VID04"):
        load_trial(trial)
    refit(trial / "part-2" / "tuned")
    with pytest.raises(ConfigError, match="part-2/tuned was fitted on all videos of the candidate"):
        load_trial(trial)


def test_a_part_of_another_trial_is_refused(trial: Path) -> None:
    change(trial / "part-3" / "tuned", "data.fitted_on", ["VID01", "VID02", "VID13", "VID15"])
    with pytest.raises(ConfigError, match="part-3/tuned was fitted on VID15, which the candidate was not"):
        load_trial(trial)


def test_an_unfinished_part_is_refused(trial: Path, begun: Path) -> None:
    shutil.rmtree(begun / "part-3" / "start")
    with pytest.raises(ConfigError, match="part-3 has no start, others of the trial have"):
        load_trial(begun)
    shutil.rmtree(trial / "part-3" / "tuned")
    with pytest.raises(ConfigError, match=r"part-3/tuned has no adapter_model.safetensors"):
        load_trial(trial)


@pytest.mark.parametrize("key", ["began_with", "data.chosen_by"])
def test_what_a_part_has_seen_in_any_way_is_not_asked_of_it(trial: Path, key: str) -> None:
    """Left out of its own fitting, and still seen: by what it began with, or when its step was chosen."""
    change(trial / "part-1" / "tuned", key, {"fitted_on": ["VID13"]} if key == "began_with" else ["VID13"])
    with pytest.raises(ConfigError, match="part-1/tuned has seen VID13, which it would be asked about"):
        load_trial(trial)


def test_a_start_that_has_seen_its_part_is_refused(begun: Path) -> None:
    refit(begun / "part-2" / "start", (), optimiser__epochs=7)
    with pytest.raises(ConfigError, match="part-2/start has seen VID02, which it would be asked about"):
        load_trial(begun)


def test_a_test_video_in_any_record_is_refused(begun: Path) -> None:
    change(begun / "part-2" / "start", "data.chosen_by", ["VID73"])
    with pytest.raises(ConfigError, match="VID73: a test video"):
        load_trial(begun)


def test_a_part_trained_otherwise_than_the_candidate_is_refused(trial: Path) -> None:
    part = trial / "part-2" / "tuned"
    refit(part, PARTS[1], optimiser__epochs=3)
    with pytest.raises(ConfigError, match=r"part-2/tuned was trained with optimiser\.epochs=3\.0.*tuned with 50"):
        load_trial(trial)
    refit(part, PARTS[1], planner__knowledge="none")
    with pytest.raises(ConfigError, match="part-2/tuned was trained with prompts "):
        load_trial(trial)
    refit(part, PARTS[1])
    change(part, "base_digest", "c" * 12)
    with pytest.raises(
        ConfigError, match=r"part-2/tuned was trained with base model cccccccccccc.*tuned with bbbbbbbbbbbb"
    ):
        load_trial(trial)


def test_a_start_that_is_asked_otherwise_is_refused(begun: Path) -> None:
    refit(begun / "start", (), planner__permutations=1)
    with pytest.raises(ConfigError, match=r"start was trained with planner\.permutations 1"):
        load_trial(begun)
