"""Examples in one row: every token once, nothing seen of another example."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stream_agent.training.shared_row import one_row

IGNORED = -100


def example(prompt: list[int], answer: list[int]) -> tuple[list[int], list[int]]:
    return [*prompt, *answer], [*[IGNORED] * len(prompt), *answer]


def test_two_orders_share_all_but_what_differs_and_the_token_before_the_answer() -> None:
    """Worked by hand: 1 2 are shared; 9 stands before both answers and is kept twice."""
    row = one_row([example([1, 2, 3, 9], [7]), example([1, 2, 4, 9], [8])], ignored=IGNORED)
    assert row.ids == [1, 2, 3, 9, 7, 4, 9, 8]
    assert row.positions == [0, 1, 2, 3, 4, 2, 3, 4]
    assert row.labels == [IGNORED] * 4 + [7] + [IGNORED] * 2 + [8]
    assert np.flatnonzero(row.seen[7]).tolist() == [0, 1, 5, 6, 7]
    assert np.flatnonzero(row.seen[4]).tolist() == [0, 1, 2, 3, 4]


def test_the_same_example_twice_is_learned_twice() -> None:
    row = one_row([example([1, 2], [7]), example([1, 2], [7])], ignored=IGNORED)
    assert row.ids == [1, 2, 7, 2, 7] and row.labels.count(7) == 2


tokens = st.lists(st.integers(0, 2), min_size=1, max_size=6)


@given(st.lists(st.tuples(tokens, tokens), min_size=1, max_size=6))
def test_each_example_can_be_read_off_the_row(made: list[tuple[list[int], list[int]]]) -> None:
    """What an answer's last token sees is its own example in order, and each label follows its predecessor in the row."""
    pairs = [example(prompt, answer) for prompt, answer in made]
    row = one_row(pairs, ignored=IGNORED)
    ends = [place for place, label in enumerate(row.labels) if label != IGNORED]
    assert len(ends) == sum(len(answer) for _, answer in made)
    seen = []
    for place in ends:
        ancestors = np.flatnonzero(row.seen[place])
        assert [row.positions[node] for node in ancestors] == list(range(len(ancestors)))
        assert place - 1 in ancestors
        if (
            place + 1 == len(row.ids)
            or row.labels[place + 1] == IGNORED
            or place not in np.flatnonzero(row.seen[place + 1])
        ):
            seen.append([row.ids[node] for node in ancestors])
    assert seen == [ids for ids, _ in pairs]
