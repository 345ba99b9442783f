"""An adapter's folder is looked through before an engine reads it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from stream_agent.errors import ConfigError
from stream_agent.planner.backends.adapters import LARGEST_RANK, adapter_directory
from stream_agent.planner.model_files import MANIFEST


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "adapter_config.json").write_text(json.dumps({"r": 16}))
    return folder


def pinned(folder: Path) -> None:
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(folder.iterdir())]
    (folder / MANIFEST).write_text("".join(lines))


def test_a_whole_folder_is_taken_with_and_without_sums(adapter: Path) -> None:
    assert adapter_directory(adapter) == adapter.resolve()
    pinned(adapter)
    assert adapter_directory(adapter) == adapter.resolve()


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_what_is_missing_is_named(adapter: Path, name: str) -> None:
    (adapter / name).unlink()
    with pytest.raises(ConfigError, match="save it with peft's save_pretrained"):
        adapter_directory(adapter)


@pytest.mark.parametrize("name", ["adapter_model.bin", "training_args.bin", "deep/optimizer.pt"])
def test_a_pickle_anywhere_is_refused(adapter: Path, name: str) -> None:
    (adapter / name).parent.mkdir(exist_ok=True)
    (adapter / name).touch()
    with pytest.raises(ConfigError, match="may hold a pickle"):
        adapter_directory(adapter)


@pytest.mark.parametrize("rank", [0, LARGEST_RANK + 1, "16", None])
def test_a_rank_that_engines_have_no_room_for_is_refused(adapter: Path, rank: object) -> None:
    (adapter / "adapter_config.json").write_text(json.dumps({"r": rank}))
    with pytest.raises(ConfigError, match=f"between 1 and {LARGEST_RANK}"):
        adapter_directory(adapter)


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_settings_that_are_no_object_are_refused(adapter: Path, text: str) -> None:
    (adapter / "adapter_config.json").write_text(text)
    with pytest.raises(ConfigError, match="copy it again"):
        adapter_directory(adapter)


def test_a_file_that_changed_or_went_after_its_sums_were_written_is_refused(adapter: Path) -> None:
    pinned(adapter)
    (adapter / "adapter_model.safetensors").write_bytes(b"others")
    with pytest.raises(ConfigError, match="is not the file it was"):
        adapter_directory(adapter)
    (adapter / MANIFEST).write_text(f"{'0' * 64}  ../elsewhere\n")
    with pytest.raises(ConfigError, match="elsewhere is not there"):
        adapter_directory(adapter)
