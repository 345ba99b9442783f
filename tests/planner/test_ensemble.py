"""The model file: walked as written, and refused when anything in it is not what it says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stream_agent.errors import ConfigError
from stream_agent.messages import InstrumentUse, Memory
from stream_agent.planner.ensemble import Ending, Ensemble, EnsembleFile, Forest, HeadFile, Linear, load_ensemble
from stream_agent.planner.features import instrument_names, label_names
from stream_agent.procedure import load_pack

ACTIONS = ("cut", "hold", "clip")
INSTRUMENTS = ("hook",)
LABELS = label_names(ACTIONS)[9:]
FULL = (*instrument_names(INSTRUMENTS), *LABELS[-4:])
STUMP = Forest(
    roots=(0,),
    feature=(0, -1, -1),
    threshold=(-1.0, 0.0, 0.0),
    left=(1, 0, 1),
    right=(2, 0, 0),
    leaves=((500, 300, 200), (0, 200, 800)),
)
HOOK = Linear((0.0,), (1.0,), ((-2.0,), (2.0,), (0.0,)), (1.0, -1.0, 0.0))
ENDING = Ending(("hook in use",), HOOK)


def head_file(features: tuple[str, ...], forest: Forest | None = STUMP, **more: Any) -> HeadFile:
    width = len(features)
    linear = Linear((0.0,) * width, (1.0,) * width, ((0.0,) * width,) * 3, (0.0,) * 3)
    parts: dict[str, Any] = {
        "features": features,
        "ngram_share": 0.5,
        "linear_share": 0.25,
        "sharpness": 1.0,
        "set_from": 0.1,
        "linear": linear,
        "forest": forest,
    }
    return HeadFile(**(parts | more))


def file_of(**more: Any) -> EnsembleFile:
    parts: dict[str, Any] = {
        "version": 3,
        "statement": "Made up.",
        "actions": ACTIONS,
        "instruments": INSTRUMENTS,
        "labels": head_file(LABELS),
        "full": head_file(FULL),
    }
    return EnsembleFile(**(parts | more))


def memory_of(current: str | None = "cut", *uses: InstrumentUse) -> Memory:
    return Memory(stream_id="", session_id="", case_id="", now_pts_s=9.0, current=current, instrument_use=uses)


def test_the_answer_is_the_members_without_the_current_action_mixed_with_the_back_off() -> None:
    """Current is cut: the stump goes right, (0, .2, .8); the linear member says halves; half of it is the n-gram's."""
    found = Ensemble(file_of()).probabilities(memory_of(), {"hold": 0.9, "clip": 0.1})
    assert found["hold"] == pytest.approx((0.75 * 0.2 + 0.25 * 0.5) / 2 + 0.45, abs=1e-4)
    assert sum(found.values()) == pytest.approx(1)
    assert set(found) == {"hold", "clip"}


def test_a_member_that_would_repeat_the_current_action_keeps_its_weight() -> None:
    """Each member forgets the current action before they are averaged, or one that favours it would fall silent."""
    left = msgspec.structs.replace(STUMP, threshold=(1e9, 0.0, 0.0), leaves=((980, 5, 15), (0, 200, 800)))
    model = Ensemble(file_of(labels=head_file(LABELS, left, ngram_share=0.0)))
    found = model.probabilities(memory_of(), {"hold": 0.5, "clip": 0.5})
    assert found["clip"] == pytest.approx(0.75 * 0.75 + 0.25 * 0.5, abs=0.005)


def test_a_head_without_a_forest_answers_by_its_linear_member() -> None:
    model = Ensemble(file_of(labels=head_file(LABELS, None, linear_share=1.0, ngram_share=0.0)))
    assert model.probabilities(memory_of(), {"hold": 0.9, "clip": 0.1})["hold"] == pytest.approx(0.5)


def test_a_head_sees_the_features_that_its_file_names() -> None:
    model = Ensemble(file_of(labels=head_file(("clips",), None)))
    assert model.head(memory_of())[1] == pytest.approx([math.log(2)])


def test_the_covering_set_holds_what_is_likely_enough_and_is_never_empty() -> None:
    model = Ensemble(file_of(labels=head_file(LABELS, set_from=0.3)))
    assert model.covering(model.labels, {"cut": 0.1, "hold": 0.3, "clip": 0.6}) == ("clip", "hold")
    surest = Ensemble(file_of(labels=head_file(LABELS, set_from=0.9)))
    assert surest.covering(surest.labels, {"hold": 0.4, "clip": 0.6}) == ("clip",)


def untold(model: Ensemble, memory: Memory, told: dict[str, float], back_off: dict[str, float]) -> dict[str, float]:
    head, features = model.head(memory)
    return model.unless_ending(memory, head, features, told, back_off)


def test_not_told_that_the_action_ends_it_leans_on_the_back_off_as_far_as_nothing_hints_at_an_end() -> None:
    """Hook in use for 5 s is log 2: cutting it speaks against an end, exp(1 - 2 log 2) to 1; holding for one, exp(2 log 2 - 1)."""
    model = Ensemble(file_of(ending=ENDING))
    use = InstrumentUse(recent=(1.0,) * 4, taken_pts_s=4.0, last_pts_s=9.0)
    odds = math.exp(1) / 4
    found = untold(model, memory_of("cut", use), {"hold": 0.2, "clip": 0.8}, {"hold": 0.6, "clip": 0.4})
    assert found["clip"] == pytest.approx((0.8 * odds + 0.4) / (1 + odds))
    assert sum(found.values()) == pytest.approx(1)
    held = untold(model, memory_of("hold", use), {"cut": 0.2, "clip": 0.8}, {"cut": 0.6, "clip": 0.4})
    assert held["clip"] == pytest.approx((0.8 + 0.4 * odds) / (1 + odds))


@pytest.mark.parametrize(
    ("more", "memory"),
    [
        ({}, memory_of("cut", InstrumentUse(recent=(1.0,) * 4))),
        ({"ending": ENDING}, memory_of("cut")),
        ({"ending": ENDING}, memory_of(None, InstrumentUse(recent=(1.0,) * 4))),
        ({"ending": ENDING}, memory_of("sew", InstrumentUse(recent=(1.0,) * 4))),
    ],
    ids=["no such part", "no instruments", "no action yet", "an action it does not know"],
)
def test_where_nothing_is_known_of_endings_the_answer_stays(more: dict[str, Any], memory: Memory) -> None:
    told = {"hold": 0.2, "clip": 0.8}
    assert untold(Ensemble(file_of(**more)), memory, told, {"hold": 0.6, "clip": 0.4}) == pytest.approx(told)


def test_a_file_from_before_endings_were_told_is_read() -> None:
    assert Ensemble(file_of(version=2)).file.ending is None


def test_the_head_is_chosen_by_what_was_observed() -> None:
    model = Ensemble(file_of())
    assert model.head(memory_of())[0] is model.labels
    assert model.head(memory_of("cut", InstrumentUse(recent=(0.0,) * 4)))[0] is model.full
    assert Ensemble(file_of(full=None)).full is None


def test_sharpness_above_one_makes_the_likely_likelier() -> None:
    soft = Ensemble(file_of()).probabilities(memory_of(), {"hold": 0.5, "clip": 0.5})
    sharp = Ensemble(file_of(labels=head_file(LABELS, sharpness=2.0))).probabilities(
        memory_of(), {"hold": 0.5, "clip": 0.5}
    )
    assert sharp["clip"] > soft["clip"] > 0.5


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"version": 1}, "version=1 is none of 2 and 3, which are read here; fit the model again"),
        ({"ending": Ending(("hook",), HOOK)}, "ending.features: 'hook' is not read here"),
        ({"ending": Ending((*ENDING.features, "clips"), HOOK)}, "not of its features"),
        ({"ending": ENDING, "full": None}, "ending looks at what the full head does, which is missing"),
        ({"labels": head_file(FULL)}, "labels.features: 'hook in the last 3 s' is not read here"),
        ({"full": head_file(("clamp",))}, "full.features: 'clamp' is not read here"),
        ({"labels": head_file(LABELS, linear=Linear((), (), (), ()))}, "not of its features"),
        (
            {"labels": head_file(LABELS, msgspec.structs.replace(STUMP, left=(0, 0, 1)))},
            "node 0 of a forest leads nowhere",
        ),
        (
            {"labels": head_file(LABELS, msgspec.structs.replace(STUMP, left=(1, 0, 7)))},
            "node 2 of a forest leads nowhere",
        ),
        ({"labels": head_file(LABELS, msgspec.structs.replace(STUMP, feature=(99, -1, -1)))}, "leads nowhere"),
        ({"labels": head_file(LABELS, msgspec.structs.replace(STUMP, roots=(3,)))}, "a root or threshold that is none"),
        ({"labels": head_file(LABELS, msgspec.structs.replace(STUMP, right=(2,)))}, "not of one length"),
        (
            {"labels": head_file(LABELS, msgspec.structs.replace(STUMP, leaves=((0, 0, 0), (1, 1, 1))))},
            "no distribution",
        ),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Ensemble(file_of(**change))


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"version": 1}', '{"version": "x"}'])
def test_a_broken_file_is_named_with_its_remedy(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ensemble.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"ensemble.json:1: .*fit the model again"):
        load_ensemble(path)


def test_a_file_for_another_pack_stops_the_start(tmp_path: Path) -> None:
    source = load_pack(Path("cholecystectomy")).folder
    folder = tmp_path / "pack"
    folder.mkdir()
    for name in ("pack.yaml", "rules.yaml", "knowledge.md", "planner.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    assert load_pack(folder).ensemble is None
    (folder / "ensemble.json").write_bytes(msgspec.json.encode(file_of()))
    with pytest.raises(ConfigError, match=r"are not those of pack\.yaml in its order; fit the model again"):
        load_pack(folder)
