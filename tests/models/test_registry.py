"""The registry: versions that never change, a way back, and a promotion that is whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from stream_agent.errors import ConfigError, GateError
from stream_agent.models import registry as module
from stream_agent.models.model_files import Kind, model_files
from stream_agent.models.promotion import promote
from stream_agent.models.registry import Registry, Slot
from stream_agent.workers import child_environment
from tests.models.made_models import BASE, SHIPPED, adapter, record_of, side, statistical_model, written
from tests.models.promotions_killed import put

PACK = Path("cholecystectomy")
KILLED = Path(__file__).with_name("promotions_killed.py")
RUN_AGENT = Path(__file__).resolve().parents[2] / "run_agent.py"


def promoted(candidate: Path, in_use: Path | None, registry: Path) -> int:
    """Promote with an equal record; the version's number."""
    record = written(record_of(candidate, in_use), candidate.with_suffix(".json"))
    return promote(candidate, record, registry=registry, pack=PACK)[0].number


def refusal(candidate: Path, record: Path, registry: Path) -> str:
    with pytest.raises(GateError) as caught:
        promote(candidate, record, registry=registry, pack=PACK)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def slot(folder: Path, kind: Kind = "statistical") -> Slot:
    return Registry(folder).slot(kind, "cholecystectomy")


def models(tmp_path: Path, count: int) -> list[Path]:
    return [statistical_model(tmp_path / f"model{number}", procedures=40 + number) for number in range(1, count + 1)]


def test_versions_follow_each_other_and_roll_back_to_the_packs_own(tmp_path: Path) -> None:
    folder = tmp_path / "registry"
    first, second, third = models(tmp_path, 3)
    assert promoted(first, SHIPPED, folder) == 1
    assert promoted(second, first, folder) == 2
    registry = Registry(folder)
    with registry.changing():
        left, back = registry.roll_back("statistical", "cholecystectomy")
    assert (left.number, back and back.number) == (2, 1)
    assert promoted(third, first, folder) == 3, "beside version 1, which is in use again"
    for expected in (1, 0):
        with registry.changing():
            registry.roll_back("statistical", "cholecystectomy")
        assert slot(folder).in_use == expected
    with registry.changing(), pytest.raises(ConfigError, match="at version 0, there is no version before it"):
        registry.roll_back("statistical", "cholecystectomy")
    assert [event.number for event in slot(folder).events] == [1, 2, 1, 3, 1, 0]
    assert len(slot(folder).versions) == 3


def test_a_version_holds_the_model_its_card_and_its_evidence(tmp_path: Path, better: Path) -> None:
    folder = tmp_path / "registry"
    promoted(better, SHIPPED, folder)
    [version] = slot(folder).versions
    kept = Registry(folder).intact("statistical", "cholecystectomy", version)
    assert {path.name for path in kept.iterdir()} == {"planner.json", "model_card.md", "record.json"}
    assert (kept / "planner.json").read_bytes() == (better / "planner.json").read_bytes()
    assert version.digest == model_files(better)["planner.json"][:12]
    assert [finding.partition(":")[0] for finding in version.findings] == ["accuracy", "calibration", "latency"]


def test_a_record_of_other_files_is_refused(tmp_path: Path, better: Path) -> None:
    [other] = models(tmp_path, 1)
    record = written(record_of(other, SHIPPED), tmp_path / "record.json")
    told = refusal(better, record, tmp_path / "registry")
    assert model_files(other)["planner.json"][:12] in told
    assert model_files(better)["planner.json"][:12] in told
    assert told.endswith("evaluate this candidate")


def test_a_record_beside_another_model_than_the_one_in_use_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "registry"
    first, second = models(tmp_path, 2)
    promoted(first, SHIPPED, folder)
    stale = written(record_of(second, SHIPPED), tmp_path / "stale.json")
    assert "in use is version 1" in refusal(second, stale, folder)
    again = written(record_of(first, first), tmp_path / "again.json")
    assert "is in use already" in refusal(first, again, folder)
    assert slot(folder).in_use == 1


def test_an_inferior_model_is_refused_and_nothing_changes(tmp_path: Path, better: Path) -> None:
    folder = tmp_path / "registry"
    worse = record_of(better, SHIPPED, ours=side({"x": ""}, right=2, sure=0.4))
    assert "not shown to be as good on accuracy" in refusal(better, written(worse, tmp_path / "r.json"), folder)
    assert Registry(folder).slots() == {}


def test_the_easy_videos_cannot_be_chosen(tmp_path: Path) -> None:
    folder = tmp_path / "registry"
    first, second = models(tmp_path, 2)
    everything = tuple(sorted(module_videos()))
    whole = record_of(
        first, SHIPPED, ours=side({"x": ""}, videos=everything), theirs=side({"x": ""}, videos=everything)
    )
    promote(first, written(whole, tmp_path / "whole.json"), registry=folder, pack=PACK)
    part = written(record_of(second, first), tmp_path / "part.json")
    assert f"({len(everything) - 20} videos) is not asked" in refusal(second, part, folder)


def module_videos() -> frozenset[str]:
    from stream_agent.evaluation.dataset import TRAIN_VIDEOS

    return TRAIN_VIDEOS


def test_a_candidate_that_no_run_could_load_is_refused(tmp_path: Path, better: Path) -> None:
    record = written(record_of(better, SHIPPED), tmp_path / "record.json")
    tree = json.loads((better / "planner.json").read_text())
    (better / "planner.json").write_text(json.dumps(tree | {"actions": tree["actions"][::-1]}))
    with pytest.raises(ConfigError, match=r"are not those of pack\.yaml"):
        promote(better, record, registry=tmp_path / "registry", pack=PACK)
    broken = adapter(tmp_path / "adapter", value=1.0)
    (broken / "adapter_model.safetensors").write_bytes(b"PK")
    with pytest.raises(ConfigError, match="is no safetensors file"):
        promote(broken, record, registry=tmp_path / "registry", pack=PACK)
    (broken / "adapter_config.json").write_text('{"r": 999}')
    with pytest.raises(ConfigError, match="r=999 is not between"):
        promote(broken, record, registry=tmp_path / "registry", pack=PACK)


def test_an_adapter_is_compared_with_the_base_model_first(tmp_path: Path) -> None:
    folder = tmp_path / "registry"
    first, second = adapter(tmp_path / "a1", value=1.0), adapter(tmp_path / "a2", value=2.0)
    assert promoted(first, None, folder) == 1
    assert "in use is version 1" in refusal(second, written(record_of(second, None), tmp_path / "r.json"), folder)
    assert promoted(second, first, folder) == 2
    assert slot(folder, "adapter").versions[1].base == BASE
    homeless = record_of(second, first)
    homeless = replace(homeless, candidate=replace(homeless.candidate, base=""))
    third = adapter(tmp_path / "a3", value=3.0)
    homeless = replace(homeless, candidate=replace(homeless.candidate, files=model_files(third)))
    homeless = replace(homeless, in_use=replace(homeless.in_use, files=model_files(second)))
    assert "base is empty" in refusal(third, written(homeless, tmp_path / "h.json"), folder)


@pytest.mark.parametrize("damage", ["changed", "gone", "added", "linked"])
def test_damage_is_named_and_no_rollback_goes_there(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "registry"
    first, second = models(tmp_path, 2)
    promoted(first, SHIPPED, folder)
    promoted(second, first, folder)
    registry = Registry(folder)
    kept = registry.version_folder("statistical", "cholecystectomy", 1)
    match damage:
        case "changed":
            (kept / "planner.json").write_text("{}")
        case "gone":
            (kept / "planner.json").unlink()
        case "added":
            (kept / "ensemble.json").write_text("{}")
        case "linked":
            (kept / "planner.json").unlink()
            (kept / "planner.json").symlink_to(first / "planner.json")
    with registry.changing(), pytest.raises(ConfigError, match="restore the folder from a backup"):
        registry.roll_back("statistical", "cholecystectomy")
    assert slot(folder).in_use == 2


def test_a_lost_state_is_not_an_empty_registry(tmp_path: Path, better: Path) -> None:
    folder = tmp_path / "registry"
    promoted(better, SHIPPED, folder)
    (folder / "registry.json").rename(tmp_path / "backup")
    with pytest.raises(ConfigError, match="is gone, but versions are there"):
        Registry(folder).slots()
    (folder / "registry.json").write_text("{")
    with pytest.raises(ConfigError, match="is no registry"):
        Registry(folder).slots()
    (folder / "registry.json").write_text('{"version": 2}')
    with pytest.raises(ConfigError, match="version 2"):
        Registry(folder).slots()


def test_a_promotion_killed_at_any_moment_is_whole_or_not_at_all(tmp_path: Path) -> None:
    """SIGKILL before and after every touch of the disk: what is in use is the old or the new, and the next try succeeds."""
    first, second = models(tmp_path, 2)
    record = written(record_of(second, first), tmp_path / "record.json")
    root = tmp_path / "registries"
    promoted(first, SHIPPED, root / "0")
    command: list[str | Path] = [sys.executable, KILLED, root, second, record]
    subprocess.run(command, env=child_environment(), check=True, timeout=100)
    told = []
    for moment in range(1, len(list(root.iterdir()))):
        folder = root / str(moment)
        registry = Registry(folder)
        after = slot(folder)
        told.append(after.in_use)
        version = after.version(after.in_use)
        assert version is not None
        registry.intact("statistical", "cholecystectomy", version)
        if after.in_use == 1:
            assert put(second, record, folder).number == 2
        assert {path.name for path in (folder / "versions").iterdir()} == {
            "statistical-cholecystectomy-0001",
            "statistical-cholecystectomy-0002",
        }
        for kept in slot(folder).versions:
            registry.intact("statistical", "cholecystectomy", kept)
    assert told == sorted(told), "one moment is the promotion: before it the old, after it the new"
    assert set(told) == {1, 2}


def test_two_promotions_at_once_end_in_one(tmp_path: Path) -> None:
    """Both were compared with what was in use; whoever comes second compares with what is no longer."""
    folder = tmp_path / "registry"
    candidates = models(tmp_path, 2)
    children = []
    for candidate in candidates:
        record = written(record_of(candidate, SHIPPED), candidate.with_suffix(".json"))
        command: list[str | Path] = [sys.executable, RUN_AGENT, "models", "promote", candidate]
        command += ["--record", record, "--registry", folder]
        children.append(subprocess.Popen(command, env=child_environment(), stderr=subprocess.PIPE, text=True))
    ends = [(child.communicate(timeout=60)[1], child.returncode) for child in children]
    assert sorted(code for _, code in ends) == [0, 8]
    [told] = [errors for errors, code in ends if code]
    assert "in use is version 1" in told
    assert slot(folder).in_use == 1
    assert len(slot(folder).versions) == 1


def test_whoever_waits_too_long_for_the_lock_is_refused(
    tmp_path: Path, better: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "registry"
    folder.mkdir()
    monkeypatch.setattr(module, "_WAIT_S", 0.0)
    held = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(ConfigError, match="is being changed by another process"):
        promoted(better, SHIPPED, folder)
    os.close(held)
    assert promoted(better, SHIPPED, folder) == 1


def test_a_full_disk_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "registry"
    first, second = models(tmp_path, 2)
    promoted(first, SHIPPED, folder)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        ConfigError, match=r"cannot be written \(No space left on device\); what is in use has not changed"
    ):
        promoted(second, first, folder)
    monkeypatch.undo()
    assert slot(folder).in_use == 1
    assert promoted(second, first, folder) == 2
