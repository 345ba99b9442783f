"""Plans and addresses for the sinks' tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import pytest

from stream_agent.messages import Plan, RankedAction, RungReport

S = 1_000_000_000
MakePlan: TypeAlias = Callable[..., Plan]


@pytest.fixture
def make_plan() -> MakePlan:
    """A plan captured at 100 s and valid for 2 s, with fields replaced as told."""

    def make(**fields: Any) -> Plan:
        given: dict[str, Any] = {
            "stream_id": "endoscope",
            "session_id": "s1",
            "case_id": "case-7",
            "seq": 18230,
            "pts_s": 754.2,
            "captured_ns": 100 * S,
            "published_ns": 100 * S + 12_000_000,
            "valid_until_ns": 102 * S,
            "source": "statistical",
            "planner": "statistical",
            "rungs": (
                RungReport("fused", "fusion is not configured"),
                RungReport("vlm", "no worker"),
                RungReport("statistical", "used"),
            ),
            "current_action": "Dissection",
            "current_confidence": 0.93,
            "ranked": (
                RankedAction("Clipping", 0.62, "Both structures are free."),
                RankedAction("Coagulation", 0.23),
                RankedAction("Tissue Retraction", 0.08),
            ),
            "progress": "Dissection is 74 % through its usual length.",
            "safety": ("Confirm the critical view of safety before clipping.",),
            "expected_onset_s": 24.0,
            "expected_onset_interval_s": (12.0, 48.0),
            "spans_ms": {"receive": 0.2, "recognise": 8.1, "total": 12.3},
        }
        return Plan(**(given | fields))

    return make


@pytest.fixture
def ipc(tmp_path: Path) -> Iterator[str]:
    """An ipc address short enough whatever the name of the test."""
    with TemporaryDirectory(prefix="sa") as directory:
        yield f"ipc://{directory}/p"
