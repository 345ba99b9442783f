"""The libraries that the trainers' tests need, in the very versions that are pinned."""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

_PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_training_is_tested_here() -> None:
    """Where a library is missing, the tests that need it are skipped one by one; this one fails, so that none is missed."""
    extras = tomllib.loads(_PYPROJECT.read_text())["project"]["optional-dependencies"]
    other = []
    for one in map(Requirement, extras["train"]):
        try:
            installed = version(one.name)
        except PackageNotFoundError:
            installed = "not installed"
        if not one.specifier.contains(installed):
            other.append(f"{one} is {installed}")
    assert not other, "pip install -e .[dev,train], as make test does"
