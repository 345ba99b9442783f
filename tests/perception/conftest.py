from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from stream_agent.messages import FrameHeader
from stream_agent.perception.protocol import Thumbnail

ACTIONS = ("Dissection", "Vessel Clipping", "Tissue Retraction", "Coagulation", "Aspiration")
INSTRUMENTS = ("Grasper", "Bipolar", "Hook", "Scissors", "Clipper", "Irrigator", "SpecimenBag")


@pytest.fixture(scope="session")
def actions() -> tuple[str, ...]:
    return ACTIONS


@pytest.fixture(scope="session")
def instruments() -> tuple[str, ...]:
    return INSTRUMENTS


@pytest.fixture
def header() -> Callable[..., FrameHeader]:
    def make(pts_s: float = 0.0, **fields: object) -> FrameHeader:
        values = {"stream_id": "s", "session_id": "t", "seq": 7, "captured_ns": 0, **fields}
        return FrameHeader(pts_s=pts_s, **values)  # type: ignore[arg-type]

    return make


@pytest.fixture
def scene() -> Thumbnail:
    """A picture with edges at every scale, as tissue has."""
    return np.random.default_rng(1).integers(40, 200, (224, 320, 3), dtype=np.uint8)
