"""What the tests of the model gate share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.made_models import statistical_model


@pytest.fixture
def better(tmp_path: Path) -> Path:
    """A statistical model that is none of the shipped ones."""
    return statistical_model(tmp_path / "better", procedures=36)
