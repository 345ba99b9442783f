"""What tests of several stages share."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

_REPOSITORY = Path(__file__).resolve().parent.parent
_POLL_S = 0.01


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real endoscope inputs, which is no part of the repository; skips the test where it is absent."""
    named = os.environ.get("STREAM_AGENT_DATA")
    folder = Path(named) if named else _REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist; set STREAM_AGENT_DATA to the folder of real inputs to run this test")
    return folder


@pytest.fixture(scope="session")
def eventually() -> Callable[..., None]:
    """`eventually(condition, timeout_s=10.0)` asks again and again; fails the test when the condition does not come true."""

    def wait(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s"
            time.sleep(_POLL_S)

    return wait


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder with a path short enough for a unix socket, whatever the name of the test."""
    with TemporaryDirectory(prefix="sa") as folder:
        yield Path(folder)
