"""Sessions that several tests of recordings read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recording.sessions import SMALL, MakeRecording, run


@pytest.fixture(scope="session")
def make_recording(tmp_path_factory: pytest.TempPathFactory) -> MakeRecording:
    """Records a session with these settings, once for all tests that ask for the same; the file is not to be changed."""
    known: dict[tuple[str, ...], Path] = {}

    def make(*settings: str) -> Path:
        if settings not in known:
            folder = tmp_path_factory.mktemp("session")
            path = folder / "session.mcap"
            done = run(
                folder,
                "run",
                "--config",
                "demo.yaml",
                *SMALL,
                f"sinks.jsonl={folder}/plans.jsonl",
                f"sinks.recording={path}",
                *settings,
            )
            assert done.returncode == 0, done.stderr
            known[settings] = path
        return known[settings]

    return make


@pytest.fixture(scope="session")
def lockstep_session(make_recording: MakeRecording) -> Path:
    """Forty seconds on screen of the drawn procedure, every frame perceived, with a black passage."""
    return make_recording("source.pace=max", "source.synthetic_duration_s=40", "source.synthetic_fps=10")
