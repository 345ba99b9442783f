"""The core runs the demo: whatever an extra has brought into this environment, no process of the agent loads it."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.recording.sessions import SMALL, command, environment


def core() -> set[str]:
    """The distributions that `pip install stream-agent` brings, itself among them."""
    found, left = set[str](), ["stream-agent"]
    while left:
        name = canonicalize_name(left.pop())
        if name not in found:
            found.add(name)
            needed = map(Requirement, requires(name) or ())
            left += [one.name for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment in which Python finds no installed module but the core's, nor does any child process of it."""
    kept = core()
    others = {
        module
        for module, distributions in packages_distributions().items()
        if module.isidentifier() and not kept & {canonicalize_name(name) for name in distributions}
    }
    (tmp_path / "sitecustomize.py").write_text(f"import sys\n\nsys.modules.update(dict.fromkeys({sorted(others)!r}))\n")
    return {**environment(tmp_path), "PYTHONPATH": str(tmp_path)}


def test_the_demo_runs_on_the_core_alone(bare: dict[str, str], tmp_path: Path) -> None:
    for module, there in (("pytest", False), ("zmq", True)):
        tried = subprocess.run([sys.executable, "-c", f"import {module}"], env=bare, capture_output=True, check=False)
        assert (tried.returncode == 0) == there, tried.stderr.decode()
    settings = [*SMALL, "source.pace=max", "source.synthetic_duration_s=20", f"sinks.jsonl={tmp_path / 'plans'}"]
    demo = command("run", "--config", "demo.yaml", *settings)
    done = subprocess.run(demo, env=bare, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert '"ranked"' in (tmp_path / "plans").read_text()
