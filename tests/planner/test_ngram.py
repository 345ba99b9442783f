"""The back-off n-gram, worked by hand, and its properties."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_agent.errors import ConfigError
from stream_agent.planner.durations import DurationDistribution
from stream_agent.planner.ngram import START, ContextCounts, ModelFile, NgramModel, encode_model, load_model

ACTIONS = ("A", "B", "C", "D")


def model_file(**changes: object) -> ModelFile:
    file = ModelFile(
        version=1,
        statement="made for a test",
        actions=ACTIONS,
        procedures=2,
        order=3,
        concentration=3.0,
        counts=(
            ContextCounts((), {"A": 4.0, "B": 3.0, "C": 2.0, "D": 1.0}),
            ContextCounts(("A",), {"B": 3.0}),
            ContextCounts(("C", "A"), {"D": 1.0}),
            ContextCounts((START,), {"A": 2.0}),
        ),
        durations={action: DurationDistribution(n=2, quantiles_s=(10.0, 20.0)) for action in ACTIONS},
    )
    return msgspec.structs.replace(file, **changes)


def test_the_interpolation_agrees_with_the_sum_on_paper() -> None:
    """After C, A with concentration 3.

    Any context without A: p0 = (1/3, 1/3, 1/3) over B, C, D; counts 3, 2, 1 of 6
      p(B) = (3 + 1) / 9 = 4/9, p(C) = (2 + 1) / 9 = 3/9, p(D) = (1 + 1) / 9 = 2/9
    After A: B 3 of 3
      p(B) = (3 + 3 * 4/9) / 6 = 13/18, p(C) = (3 * 3/9) / 6 = 3/18, p(D) = (3 * 2/9) / 6 = 2/18
    After C, A: D 1 of 1
      p(B) = (3 * 13/18) / 4 = 39/72, p(C) = 9/72, p(D) = (1 + 6/18) / 4 = 24/72
    """
    probabilities = NgramModel(model_file()).next_probabilities(["C", "A"])
    assert probabilities == pytest.approx({"B": 39 / 72, "C": 9 / 72, "D": 24 / 72})


def test_an_unseen_context_backs_off_to_a_shorter_one() -> None:
    model = NgramModel(model_file())
    assert model.next_probabilities(["D", "A"]) == model.next_probabilities(["A"], complete=False)


def test_the_beginning_of_a_case_is_a_context_of_its_own() -> None:
    model = NgramModel(model_file())
    assert model.context([]) == (START,)
    assert model.context([], complete=False) == ()
    assert model.next_probabilities([])["A"] > model.next_probabilities([], complete=False)["A"]


def test_an_unknown_label_hides_what_lies_before_it() -> None:
    model = NgramModel(model_file())
    assert model.context(["C", "?", "A"]) == ("A",)
    assert set(model.next_probabilities(["A", "?"])) == set(ACTIONS)


def test_equal_neighbours_that_a_restart_left_back_off_to_the_current_action() -> None:
    model = NgramModel(model_file())
    assert model.next_probabilities(["C", "A", "A"]) == model.next_probabilities(["A"], complete=False)


def test_support_is_the_longest_context_seen_often_enough() -> None:
    model = NgramModel(model_file())
    assert model.support(("C", "A"), "D", least=1).total == 1
    backed_off = model.support(("C", "A"), "B", least=2)
    assert (backed_off.context, backed_off.count, backed_off.total) == (("A",), 3, 3)
    assert model.support(("C", "A"), "B", least=4).total == 6  # without A, the current one


@given(st.lists(st.sampled_from([*ACTIONS, "?", "^"]), max_size=12), st.booleans())
def test_any_history_gives_a_distribution_without_the_current_action(labels: list[str], complete: bool) -> None:
    probabilities = NgramModel(model_file()).next_probabilities(labels, complete=complete)
    assert sum(probabilities.values()) == pytest.approx(1)
    assert all(0 < probability <= 1 for probability in probabilities.values())
    assert not labels or labels[-1] not in probabilities


def test_a_model_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "planner.json"
    path.write_bytes(encode_model(model_file()))
    model = load_model(path)
    assert model.file == model_file()
    assert len(model.digest) == 12


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"actions": ("A", "A", "B", "C")}, "not distinct"),
        ({"counts": (ContextCounts(("A", "B", "C"), {"D": 1.0}),)}, "longer than order=3"),
        ({"counts": (ContextCounts(("A",), {"B": 1.0}), ContextCounts(("A",), {"C": 1.0}))}, "given twice"),
        ({"counts": (ContextCounts(("A", START), {"B": 1.0}),)}, "unknown action"),
        ({"counts": (ContextCounts(("A",), {"A": 1.0}),)}, "follows itself"),
        ({"counts": (ContextCounts(("A",), {"B": float("inf")}),)}, "finite"),
        ({"durations": {}}, "name each of actions once"),
        ({"durations": dict.fromkeys(ACTIONS, DurationDistribution(n=1, quantiles_s=(2.0, 1.0)))}, "rise"),
        ({"durations": dict.fromkeys(ACTIONS, DurationDistribution(n=1, quantiles_s=(2.0,)))}, "two or more"),
    ],
)
def test_parts_that_contradict_each_other_are_refused(changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        NgramModel(model_file(**changes))
