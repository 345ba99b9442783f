"""A training's settings: what is wrong is told once, with what to write instead."""

from __future__ import annotations

import pytest

from stream_agent.errors import ConfigError
from stream_agent.training.config import load_training

NEEDED = ("data.sap=sap.json", "planner.model=model", "planner.memory=labels_only")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.exclude=VID01", "data.exclude=VID01: Input should be a valid tuple; write [VID01]"),
        ("data.tasks=[rnk]", "data.tasks.0=rnk: Input should be 'rank', 'plan', 'recognise' or 'caption'; correct it"),
        ("data.tasks=[]", "data.tasks=[]: Tuple should have at least 1 item after validation, not 0; correct it"),
    ],
)
def test_a_list_that_is_none_or_holds_something_else_is_told_in_one_line(override: str, said: str) -> None:
    """A wrong task was told twice, the second time as a list that is too short."""
    with pytest.raises(ConfigError) as told:
        load_training(None, [*NEEDED, override])
    assert str(told.value) == said


def test_a_list_of_one_is_taken() -> None:
    assert load_training(None, [*NEEDED, "data.exclude=[VID01]"]).data.exclude == ("VID01",)
