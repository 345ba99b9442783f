"""Procedure packs: what loads, what does not, and that a mistake is told with file, line and remedy."""

from __future__ import annotations

import pickle
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stream_agent.config import configs_directory
from stream_agent.errors import ConfigError
from stream_agent.messages import ActionTotal, Clip, Memory, RankedAction
from stream_agent.procedure import ProcedurePack, load_pack
from stream_agent.rules import RequiresBefore

PACKS = ("cholecystectomy", "hysterectomy")
CHOLECYSTECTOMY = configs_directory() / "procedures" / "cholecystectomy"
FILES = ("pack.yaml", "rules.yaml", "knowledge.md", "planner.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the cholecystectomy pack that a test may break."""
    target = tmp_path / "pack"
    target.mkdir()
    for name in FILES:
        shutil.copy(CHOLECYSTECTOMY / name, target / name)
    return target


def line_of(path: Path, key: str) -> int:
    return next(number for number, line in enumerate(path.read_text().splitlines(), start=1) if f'"{key}"' in line)


def memory(*labels: str, current: str | None = None, now_s: float = 0.0, **more: object) -> Memory:
    clips = tuple(Clip(label, 100.0 * place, 100.0 * place + 100, 0.9) for place, label in enumerate(labels))
    values = {"stream_id": "s", "session_id": "x", "case_id": "c", "now_pts_s": 100.0 * len(labels) + now_s}
    return Memory(
        **{**values, "clips": clips, "current": current, "current_start_pts_s": 100.0 * len(labels), **more}  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("name", PACKS)
def test_a_shipped_pack_loads_by_its_name(name: str) -> None:
    pack = load_pack(Path(name))
    assert pack.name == name
    assert len(pack.digest()) == 12
    assert set(pack.model.actions) == set(pack.action_names)
    assert "Sources" in pack.knowledge


def test_the_cholecystectomy_pack_has_the_exact_actions_and_instruments_of_its_data() -> None:
    pack = load_pack(CHOLECYSTECTOMY)
    assert pack.action_names == ("Dissection", "Vessel Clipping", "Tissue Retraction", "Coagulation", "Aspiration")
    assert pack.instruments == ("Grasper", "Bipolar", "Hook", "Scissors", "Clipper", "Irrigator", "SpecimenBag")
    assert len(pack.phases) == 7
    assert pack.instruments_of("Vessel Clipping") == ("Clipper", "Grasper")
    assert pack.instruments_of("Reboot") == ()


def test_the_hysterectomy_pack_admits_that_nothing_was_counted() -> None:
    assert load_pack(Path("hysterectomy")).model.file.procedures == 0


@pytest.mark.parametrize("name", PACKS)
def test_no_action_follows_itself_and_the_rest_sum_to_one(name: str) -> None:
    pack = load_pack(Path(name))
    for action in pack.action_names:
        probabilities = pack.next_action_probabilities([action])
        assert set(probabilities) == set(pack.action_names) - {action}
        assert sum(probabilities.values()) == pytest.approx(1)


def test_durations_rise_with_the_quantile() -> None:
    pack = load_pack(CHOLECYSTECTOMY)
    for action in pack.action_names:
        values = [pack.duration_s(action, level) for level in (0.0, 0.1, 0.5, 0.9, 0.99)]
        assert values == sorted(values)
        assert values[0] > 0
    with pytest.raises(ConfigError, match="Reboot"):
        pack.duration_s("Reboot", 0.5)


def test_the_digest_follows_every_text_file(folder: Path) -> None:
    before = load_pack(folder).digest()
    assert load_pack(folder).digest() == before
    with (folder / "knowledge.md").open("a") as stream:
        stream.write("One more sentence.\n")
    assert load_pack(folder).digest() != before


def test_a_pack_can_be_handed_to_another_process() -> None:
    pack = load_pack(CHOLECYSTECTOMY)
    copy = pickle.loads(pickle.dumps(pack))
    assert copy.digest() == pack.digest()
    assert copy.next_action_probabilities(["Dissection"]) == pack.next_action_probabilities(["Dissection"])


def test_an_unknown_pack_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"appendectomy.*cholecystectomy, hysterectomy"):
        load_pack(Path("appendectomy"))


BROKEN: tuple[tuple[str, str, str, str, str], ...] = (
    ("pack.yaml", "name: cholecystectomy", "name: [", "version:", "begun in line 2"),
    ("pack.yaml", "  - name: Coagulation", "  - name: Dissection", "  - name: Dissection", "rename or remove one"),
    ("pack.yaml", "code: COA", "code: DIS", "code: DIS", "rename or remove one"),
    ("pack.yaml", "code: ASP", "kode: ASP", "kode: ASP", "did you mean code?"),
    ("pack.yaml", "    code: ASP\n", "", "name: Aspiration", "code is missing"),
    ("pack.yaml", "[Clipper, Grasper]", "[Cliper, Grasper]", "Cliper", "did you mean Clipper?"),
    (
        "pack.yaml",
        "done: [Vessel Clipping]}",
        "done: [Vessel Cliping]}",
        "Vessel Cliping",
        "did you mean Vessel Clipping?",
    ),
    ("pack.yaml", "seen: {SpecimenBag: 5}", "seen: {Bag: 5}", "{Bag: 5}", "no instrument of pack.yaml"),
    ("pack.yaml", "title: L", "title: &a L", "title: &a", "anchors and aliases are not allowed"),
    ("pack.yaml", "title: L", "title: !!python/name:os.system L", "title: !!", "is not allowed; write plain values"),
    ("pack.yaml", "title: L", "title: 5\ntitle: L", "title: L", "keep one"),
    ("pack.yaml", "name: Aspiration", "name: '[red]Aspiration'", "[red]", "correct it"),
    (
        "rules.yaml",
        "before: [Dissection]\n    text",
        "before: [Disection]\n    text",
        "Disection",
        "did you mean Dissection?",
    ),
    ("rules.yaml", "kind: at_most_between", "kind: at_most", "id: clipping-again", "at_most_between"),
    ("rules.yaml", "times: 4", "times: often", "times: often", "valid integer"),
    ("rules.yaml", "times: 4", "times: 0", "times: 0", "greater than or equal to 1"),
    ("rules.yaml", "min_s: 60", "min_s: .nan", "min_s: .nan", "correct it"),
    ("rules.yaml", "id: long-dissection", "id: energy-near-clips", "id: energy-near-clips", "rename or remove one"),
    (
        "rules.yaml",
        "instruments: [Clipper]",
        "instruments: [Clamp]",
        "instruments: [Clamp]",
        "no instrument of pack.yaml",
    ),
    (
        "planner.json",
        '"Coagulation","Aspiration"],',
        '"Coagulation","Suction"],',
        '"context":[]',
        "use those in actions",
    ),
    ("planner.json", '"order": ', '"order": "x', '"order"', "fit the model again"),
    ("planner.json", '{"Dissection":2,', '{"Dissection":-2,', '{"Dissection":-2,', "counts are finite and 0 or more"),
    ("planner.json", '{"Dissection":2,', '{"Disection":2,', '{"Disection":2,', "use those in actions"),
    (
        "planner.json",
        '["Coagulation"],"next":{',
        '["Coagulation"],"next":{"Coagulation":3,',
        '"Coagulation":3',
        "follows itself",
    ),
    ("planner.json", '"version": 1', '"version": 2', '"version": 2', "fit the model again"),
    ("planner.json", '"n":71', '"n":-1', '"n":-1', "count clips from 0"),
)


@pytest.mark.parametrize(("name", "old", "new", "line_with", "remedy"), BROKEN)
def test_a_mistake_is_told_with_file_line_and_remedy(
    folder: Path, name: str, old: str, new: str, line_with: str, remedy: str
) -> None:
    path = folder / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=remedy) as caught:
        load_pack(folder)
    lines = [number for number, line in enumerate(path.read_text().splitlines(), start=1) if line_with in line]
    assert any(f"{path}:{number}: " in str(caught.value) for number in lines), str(caught.value)


@pytest.mark.parametrize("name", ["rules.yaml", "knowledge.md", "planner.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=rf"{name}:1: the file is missing; add it"):
        load_pack(folder)


def test_an_empty_knowledge_base_is_refused(folder: Path) -> None:
    (folder / "knowledge.md").write_text(" \n")
    with pytest.raises(ConfigError, match=r"knowledge.md:1: the knowledge base is empty"):
        load_pack(folder)


def test_a_model_of_another_order_of_actions_is_refused(folder: Path) -> None:
    path = folder / "planner.json"
    text = path.read_text()
    first = '"actions": ["Dissection","Vessel Clipping"'
    assert first in text
    path.write_text(text.replace(first, '"actions": ["Vessel Clipping","Dissection"'))
    with pytest.raises(ConfigError, match="fit the model again for this pack") as caught:
        load_pack(folder)
    assert f"{path}:{line_of(path, 'actions')}: " in str(caught.value)


def test_three_actions_are_too_few(folder: Path) -> None:
    text = (folder / "pack.yaml").read_text()
    start, end = text.index("  - name: Coagulation"), text.index("\ninstruments:")
    (folder / "pack.yaml").write_text(text[:start] + text[end:])
    with pytest.raises(ConfigError, match="3 actions are fewer than 4"):
        load_pack(folder)


def test_all_mistakes_come_in_one_error(folder: Path) -> None:
    (folder / "knowledge.md").unlink()
    for name, old, new in (("rules.yaml", "times: 4", "times: 0"), ("pack.yaml", "[Clipper, Grasper]", "[Cliper]")):
        (folder / name).write_text((folder / name).read_text().replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load_pack(folder)
    assert {line.partition(":")[0] for line in str(caught.value).splitlines()} == {
        str(folder / name) for name in ("knowledge.md", "rules.yaml", "pack.yaml")
    }


def test_an_oversized_file_is_refused(folder: Path) -> None:
    (folder / "knowledge.md").write_bytes(b"x" * 1_000_001)
    with pytest.raises(ConfigError, match="larger than 1000000 bytes"):
        load_pack(folder)


def test_deep_nesting_is_refused_rather_than_followed(folder: Path) -> None:
    (folder / "rules.yaml").write_text("rules: " + "[" * 5000)
    with pytest.raises(ConfigError, match=r"rules.yaml:1: nested deeper than 24 levels"):
        load_pack(folder)
    (folder / "planner.json").write_text("[" * 100_000)
    with pytest.raises(ConfigError, match=r"planner.json:1: "):
        load_pack(folder)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(FILES), junk=st.binary(max_size=200), at=st.floats(0, 1), keep=st.booleans())
def test_random_bytes_raise_nothing_but_a_config_error(
    folder: Path, name: str, junk: bytes, at: float, keep: bool
) -> None:
    whole = (CHOLECYSTECTOMY / name).read_bytes()
    cut = int(at * len(whole))
    (folder / name).write_bytes(whole[:cut] + junk + whole[cut:] if keep else junk)
    try:
        load_pack(folder)
    except ConfigError as error:
        assert str(folder / name) in str(error)
    finally:
        (folder / name).write_bytes(whole)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.recursive(
        st.sampled_from(
            ["1", "-", "!!int ''", "!!timestamp abc", "2001-99-99", "*a", "&a b", "<<", "=", "~", "0x", "9" * 5000]
        ),
        lambda inner: st.lists(inner, max_size=3).map(lambda parts: "[" + ", ".join(parts) + "]"),
        max_leaves=6,
    ),
    key=st.sampled_from(["rules", "name", "? [a]", "1", "<<"]),
)
def test_strange_yaml_raises_nothing_but_a_config_error(folder: Path, text: str, key: str) -> None:
    (folder / "rules.yaml").write_text(f"{key}: {text}\n")
    try:
        load_pack(folder)
    except ConfigError as error:
        assert re.search(r"rules.yaml:\d+: ", str(error))
    else:
        assert text == "[]"


def _rule_ids(pack: ProcedurePack, at: Memory, action: str) -> set[str]:
    return {rule.id for rule in pack.violations(at, action)}


def test_clipping_before_dissection_is_a_violation() -> None:
    pack = load_pack(CHOLECYSTECTOMY)
    assert "dissection-before-clipping" in _rule_ids(pack, memory("Tissue Retraction"), "Vessel Clipping")
    assert _rule_ids(pack, memory("Tissue Retraction", "Dissection"), "Vessel Clipping") == set()
    assert _rule_ids(pack, memory("Tissue Retraction"), "Dissection") == set()


def test_time_counts_for_requires_before_the_open_clip_included() -> None:
    pack = load_pack(CHOLECYSTECTOMY)
    assert _rule_ids(pack, memory(current="Dissection", now_s=59), "Vessel Clipping") == {"dissection-long-enough"}
    assert _rule_ids(pack, memory(current="Dissection", now_s=60), "Vessel Clipping") == set()


def test_clipping_many_times_without_dissection_is_a_violation() -> None:
    pack = load_pack(CHOLECYSTECTOMY)
    labels = ("Dissection", *("Vessel Clipping", "Tissue Retraction") * 4)
    assert _rule_ids(pack, memory(*labels), "Vessel Clipping") == {"clipping-again-and-again"}
    assert _rule_ids(pack, memory(*labels, "Dissection"), "Vessel Clipping") == set()


def test_not_after_looks_at_folded_clips_too() -> None:
    pack = load_pack(Path("hysterectomy"))
    labels = ("Peritoneal Dissection", "Uterine Vessel Sealing")
    assert _rule_ids(pack, memory(*labels), "Colpotomy") == set()
    folded = (ActionTotal("Suturing", 1, 30.0),)
    assert _rule_ids(pack, memory(*labels, folded=folded), "Colpotomy") == {"no-colpotomy-after-closure"}


def test_cautions_come_gravest_first_and_only_for_weighty_ranks() -> None:
    pack = load_pack(CHOLECYSTECTOMY)
    likely = (RankedAction("Dissection", 0.6), RankedAction("Vessel Clipping", 0.3), RankedAction("Aspiration", 0.1))
    unlikely = (
        RankedAction("Dissection", 0.9),
        RankedAction("Vessel Clipping", 0.05),
        RankedAction("Aspiration", 0.05),
    )
    at = memory(current="Tissue Retraction", current_confidence=0.4)
    found = pack.cautions(at, likely)
    assert [text.partition(":")[0] for text in found] == ["warning", "warning", "caution", "info"]
    assert any("critical view" in text for text in found)
    assert not any("critical view" in text for text in pack.cautions(at, unlikely))


def test_an_instrument_in_view_raises_its_caution() -> None:
    pack = load_pack(CHOLECYSTECTOMY)
    ranked = (RankedAction("Tissue Retraction", 1.0),)
    clipper = (0.0, 0.0, 0.0, 0.0, 0.9, 0.0, 0.0)
    at = memory(current="Dissection", instruments=clipper, current_confidence=0.9)
    assert any("clip applier is in view" in text for text in pack.cautions(at, ranked))
    assert pack.cautions(memory(current="Dissection", current_confidence=0.9), ranked) == ()


@pytest.mark.parametrize(
    ("at", "phase"),
    [
        (memory(), "Preparation"),
        (memory("Tissue Retraction", current="Dissection"), "Calot triangle dissection"),
        (memory("Dissection", current="Vessel Clipping"), "Clipping and cutting"),
        (memory("Vessel Clipping", current="Dissection"), "Gallbladder dissection"),
        (memory("Vessel Clipping", current="Dissection", instrument_s=(0, 0, 0, 0, 0, 0, 9)), "Gallbladder packaging"),
    ],
)
def test_the_phase_follows_what_has_been_done_and_seen(at: Memory, phase: str) -> None:
    pack = load_pack(CHOLECYSTECTOMY)
    found = pack.phase(pack.facts(at))
    assert found is not None
    assert found.name == phase


def test_rules_are_typed_by_their_kind() -> None:
    assert isinstance(load_pack(CHOLECYSTECTOMY).rules[0], RequiresBefore)
