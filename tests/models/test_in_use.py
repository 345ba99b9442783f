"""A run takes what was promoted, says so in every plan, and goes back with one command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stream_agent import cli
from stream_agent.config import AgentConfig, load_config
from stream_agent.doctor import check_pack_and_recogniser
from stream_agent.errors import ConfigError
from stream_agent.models.in_use import describe, pack_in_use, pack_of_session, planner_in_use
from stream_agent.models.promotion import promote
from stream_agent.models.registry import Registry, Version
from stream_agent.procedure import load_pack
from stream_agent.workers import child_environment
from tests.models.made_models import BASE, SHIPPED, adapter, record_of, statistical_model, written

PACK = Path("cholecystectomy")
RUN_AGENT = Path(__file__).resolve().parents[2] / "run_agent.py"


@pytest.fixture
def registry(tmp_path: Path, better: Path) -> Path:
    """A registry with one statistical model in use."""
    folder = tmp_path / "registry"
    record = written(record_of(better, SHIPPED), tmp_path / "record.json")
    promote(better, record, registry=folder, pack=PACK)
    return folder


def configured(*settings: str) -> AgentConfig:
    return load_config(None, settings)


def complaint(*settings: str) -> str:
    with pytest.raises(ConfigError) as caught:
        configured(*settings)
    return str(caught.value)


def hashes_in_plans(folder: Path, *settings: str) -> list[dict[str, str]]:
    """`hashes` of every plan of a run on the drawn scene."""
    plans = folder / "plans.jsonl"
    command: list[str | Path] = [sys.executable, RUN_AGENT, "run", "--config", "demo.yaml", f"sinks.jsonl={plans}"]
    command += ["source.pace=max", "source.synthetic_duration_s=3", "source.synthetic_fps=10", "sinks.console=off"]
    command += ["source.synthetic_width=160", "source.synthetic_height=96", *settings]
    subprocess.run(command, env=child_environment(), check=True, timeout=100, cwd=folder)
    return [json.loads(line)["hashes"] for line in plans.read_text().splitlines()]


def models_in_plans(folder: Path, *settings: str) -> set[str]:
    return {hashes["model"] for hashes in hashes_in_plans(folder, *settings)}


def test_every_plan_of_a_run_names_the_promoted_model_until_it_is_rolled_back(tmp_path: Path, registry: Path) -> None:
    own = load_pack(PACK)
    assert own.ensemble is not None
    shipped = {f"{own.model.digest}+{own.ensemble.digest}"}
    [version] = Registry(registry).slot("statistical", "cholecystectomy").versions
    use = f"models.registry={registry}"
    assert models_in_plans(tmp_path, use) == {version.digest} != shipped
    with Registry(registry).changing():
        Registry(registry).roll_back("statistical", "cholecystectomy")
    assert models_in_plans(tmp_path, use) == shipped
    assert models_in_plans(tmp_path, use, "models.statistical=1") == {version.digest}


def test_a_run_does_not_start_with_a_damaged_model(tmp_path: Path, registry: Path) -> None:
    (registry / "versions" / "statistical-cholecystectomy-0001" / "planner.json").write_text("{}")
    command: list[str | Path] = [sys.executable, RUN_AGENT, "run", f"models.registry={registry}", "sinks.console=off"]
    ended = subprocess.run(command, env=child_environment(), capture_output=True, text=True, timeout=100, cwd=tmp_path)
    assert ended.returncode == 2
    [line] = ended.stderr.strip().splitlines()
    assert "planner.json is not the file that was promoted" in line
    assert "`models rollback`" in line


def test_the_doctor_tells_what_is_in_use_and_what_would_stop_the_run(registry: Path) -> None:
    config = configured(f"models.registry={registry}")
    [promoted] = [check for check in check_pack_and_recogniser(config) if check.name == "promoted models"]
    assert promoted.state == "ok"
    assert "statistical version 1 (" in promoted.detail
    assert "adapter none" in promoted.detail
    (registry / "versions" / "statistical-cholecystectomy-0001" / "planner.json").unlink()
    [failed] = check_pack_and_recogniser(config)
    assert failed.state == "fail"


def test_a_registry_must_be_there_and_be_named(tmp_path: Path) -> None:
    assert "models.registry=DIR" in complaint("planner.adapter=promoted")
    assert "models.registry=DIR" in complaint("models.statistical=1")
    assert "models.registry=DIR" in complaint("models.adapter=1")
    absent = configured(f"models.registry={tmp_path / 'absent'}")
    with pytest.raises(ConfigError, match="does not exist"):
        pack_in_use(absent.models, absent.procedure)
    assert "only the planner's adapter" in complaint(
        f"models.registry={tmp_path}", "planner.captioner={kind: rehearsed, adapter: promoted}"
    )


def test_an_unknown_version_is_told_from_those_there_are(registry: Path) -> None:
    config = configured(f"models.registry={registry}", "models.statistical=7")
    with pytest.raises(ConfigError, match=r"version 7 is none of 0 … 1"):
        pack_in_use(config.models, config.procedure)


def test_an_empty_registry_changes_nothing(tmp_path: Path) -> None:
    config = configured(f"models.registry={tmp_path}", "planner.adapter=promoted")
    assert pack_in_use(config.models, config.procedure).digest() == load_pack(PACK).digest()
    assert planner_in_use(config.models, config.planner, "cholecystectomy").adapter == ""


def test_a_session_is_replayed_with_the_model_it_had(tmp_path: Path, registry: Path, better: Path) -> None:
    """The recording keeps the pack's digest, in which the promoted model is; what is in use by now is something else."""
    config = configured(f"models.registry={registry}")
    then = pack_in_use(config.models, config.procedure).digest()
    later = statistical_model(tmp_path / "later", procedures=99)
    promote(later, written(record_of(later, better), tmp_path / "later.json"), registry=registry, pack=PACK)
    now = pack_in_use(config.models, config.procedure).digest()
    own = load_pack(PACK).digest()
    assert len({then, now, own}) == 3
    for digest in (then, now, own):
        assert pack_of_session(config.models, config.procedure, digest).digest() == digest
    assert pack_of_session(config.models, config.procedure, "0" * 12).digest() == now


def test_a_recorded_session_replays_to_the_same_plans_after_another_model_was_promoted(
    tmp_path: Path, registry: Path, better: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mcap")
    session = tmp_path / "session.mcap"
    use = f"models.registry={registry}"
    assert models_in_plans(tmp_path, use, f"sinks.recording={session}") == {version_in_use(registry).digest}
    later = statistical_model(tmp_path / "later", procedures=99)
    promote(later, written(record_of(later, better), tmp_path / "later.json"), registry=registry, pack=PACK)
    with pytest.raises(SystemExit) as ended:
        cli.main(["replay", str(session), "--verify"])
    assert ended.value.code == 0
    assert "every decision is the same, to the last bit" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        cli.main(["replay", str(session), "--what-if", "models.statistical=0"])
    assert ended.value.code == 0
    assert "moments show another first choice" in capsys.readouterr().out


def version_in_use(registry: Path) -> Version:
    slot = Registry(registry).slot("statistical", "cholecystectomy")
    version = slot.version(slot.in_use)
    assert version is not None
    return version


def test_the_promoted_adapter_is_named_by_its_digest_and_belongs_to_its_base(tmp_path: Path) -> None:
    folder = tmp_path / "registry"
    made = adapter(tmp_path / "adapter", value=1.0)
    promote(made, written(record_of(made, None), tmp_path / "record.json"), registry=folder, pack=PACK)
    [version] = Registry(folder).slot("adapter", "cholecystectomy").versions
    settings = [
        f"models.registry={folder}",
        "planner.adapter=promoted",
        "planner.kind=transformers",
        "planner.model=DIR",
    ]
    config = configured(*settings, f"planner.digest={BASE}")
    planner = planner_in_use(config.models, config.planner, "cholecystectomy")
    assert planner.adapter == version.digest
    kept = planner.adapters[version.digest]
    assert (kept / "adapter_model.safetensors").read_bytes() == (made / "adapter_model.safetensors").read_bytes()
    assert AgentConfig.model_validate_json(AgentConfig(planner=planner).model_dump_json()).planner == planner
    assert version.digest in describe(config.models, "cholecystectomy")
    for other in ([], ["planner.digest=0123456789ab"]):
        config = configured(*settings, *other)
        with pytest.raises(ConfigError, match=f"set planner.model to that model and planner.digest={BASE}"):
            planner_in_use(config.models, config.planner, "cholecystectomy")
    config = configured(*settings, "models.adapter=0")
    assert planner_in_use(config.models, config.planner, "cholecystectomy").adapter == ""


def test_the_worker_is_given_the_promoted_adapter_and_its_plans_say_so(tmp_path: Path) -> None:
    folder = tmp_path / "registry"
    made = adapter(tmp_path / "adapter", value=1.0)
    promote(made, written(record_of(made, None), tmp_path / "record.json"), registry=folder, pack=PACK)
    [version] = Registry(folder).slot("adapter", "cholecystectomy").versions
    ranks = [
        "planner.kind=rehearsed",
        "planner.adapter=promoted",
        "planner.memory=labels_only",
        "planner.charged_ms=50",
    ]
    use = [f"models.registry={folder}", *ranks, "planner.rationale=false"]
    assert {hashes["adapter"] for hashes in hashes_in_plans(tmp_path, *use)} == {"", version.digest}
    with Registry(folder).changing():
        Registry(folder).roll_back("adapter", "cholecystectomy")
    assert {hashes["adapter"] for hashes in hashes_in_plans(tmp_path, *use)} == {""}
