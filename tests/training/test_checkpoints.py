"""Which checkpoints a training goes on from."""

from __future__ import annotations

from pathlib import Path

import pytest

from stream_agent.config import Section
from stream_agent.errors import ConfigError
from stream_agent.training.checkpoints import checkpoints_beside, last_checkpoint


class Told(Section):
    seed: int = 0


def save(folder: Path, step: int, state: str | None = "{}") -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    if state is not None:
        (path / "trainer_state.json").write_text(state)
    return path


def test_the_newest_whole_checkpoint_is_gone_on_from(tmp_path: Path) -> None:
    """By its number, not by its name: 100 comes after 20. A kill in the middle of saving leaves half a state, or none."""
    folder = checkpoints_beside(tmp_path / "out", Told())
    assert last_checkpoint(folder) is None
    save(folder, 20)
    newest = save(folder, 100)
    save(folder, 120, state=None)
    save(folder, 140, state="")
    save(folder, 160, state='{"global_step": 16')
    assert last_checkpoint(folder) == newest
    assert checkpoints_beside(tmp_path / "out", Told()) == folder


def test_checkpoints_of_another_configuration_are_refused(tmp_path: Path) -> None:
    save(checkpoints_beside(tmp_path / "out", Told()), 20)
    with pytest.raises(ConfigError, match="another configuration; remove it"):
        checkpoints_beside(tmp_path / "out", Told(seed=1))


def test_a_run_that_made_none_stands_in_nobody_s_way(tmp_path: Path) -> None:
    """A mistyped planner.model once left a folder behind, and the corrected command was refused for it."""
    checkpoints_beside(tmp_path / "out", Told())
    folder = checkpoints_beside(tmp_path / "out", Told(seed=1))
    save(folder, 20)
    assert checkpoints_beside(tmp_path / "out", Told(seed=1)) == folder
