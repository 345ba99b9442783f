"""What tests of several stages share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real endoscope inputs, which is no part of the repository; skips the test where it is absent."""
    named = os.environ.get("STREAM_AGENT_DATA")
    folder = Path(named) if named else _REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist; set STREAM_AGENT_DATA to the folder of real inputs to run this test")
    return folder
