from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_agent.config import FusionConfig
from stream_agent.messages import Plan, RankedAction
from stream_agent.planner.fusion import distribution_of, fused
from stream_agent.planner.ladder import abstention

beliefs = st.lists(st.floats(1e-3, 1), min_size=5, max_size=5).map(lambda p: [x / sum(p) for x in p])


def test_by_hand() -> None:
    pooled = fused([0.5, 0.25, 0.25, 0], [0.25, 0.5, 0.25, 0], FusionConfig(model=1.0), current=3)
    assert pooled == pytest.approx([0.125 / 0.3125, 0.125 / 0.3125, 0.0625 / 0.3125, 0])


@given(beliefs, beliefs)
def test_without_weight_the_model_changes_nothing(statistical: list[float], model: list[float]) -> None:
    assert fused(statistical, model, FusionConfig(model=0.0), current=None) == pytest.approx(statistical)


@given(beliefs, st.lists(st.floats(0, 1), min_size=5, max_size=5))
def test_an_unfitted_model_never_moves_odds_by_more_than_its_bound(
    statistical: list[float], model: list[float]
) -> None:
    """The default: a model that was never fitted overturns only what is held less than 2.2 times as likely."""
    pooled = fused(statistical, model, FusionConfig(), current=None)
    odds = np.log(np.array(statistical)[:, None] / np.array(statistical)[None])
    moved = np.log(pooled[:, None] / pooled[None])
    assert np.abs(moved - odds).max() <= np.log(50**0.2) + 1e-9
    assert 50**0.2 < 2.2


def plan(**of: object) -> Plan:
    base = Plan(
        stream_id="cam", session_id="s", case_id="c", seq=1, pts_s=0, captured_ns=0, valid_until_ns=0, source="statistical",
        planner="statistical", current_action="a",
        ranked=(RankedAction("b", 0.5), RankedAction("c", 0.2), RankedAction("d", 0.1)),
    )  # fmt: skip
    import msgspec

    return msgspec.structs.replace(base, **of)


def test_what_three_ranks_leave_is_shared_by_the_others() -> None:
    assert distribution_of(plan(), tuple("abcdef")) == pytest.approx((0, 0.5, 0.2, 0.1, 0.1, 0.1))
    assert distribution_of(plan(), tuple("abcd")) == pytest.approx((0, 0.5, 0.2, 0.1))
    whole = (0.0, 0.5, 0.2, 0.1, 0.15, 0.05)
    assert distribution_of(plan(distribution=whole), tuple("abcdef")) == whole


def test_an_abstention_holds_no_belief() -> None:
    assert distribution_of(abstention(plan(), "unsure"), tuple("abcd")) == ()
