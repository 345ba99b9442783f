"""A training asks no hub and reports to nobody."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from stream_agent.planner.model_files import OFFLINE

pytest.importorskip("huggingface_hub", reason="pip install -e .[train] to train adapters")


def test_the_libraries_are_offline_before_they_are_imported() -> None:
    """TRL's trainers reported home: the environment that forbids it was set after huggingface_hub had read it."""
    program = (
        "import stream_agent.training.lora\n"
        "from huggingface_hub import constants\n"
        "print(constants.is_offline_mode(), constants.HF_HUB_DISABLE_TELEMETRY)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in OFFLINE}
    said = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=100, check=True
    )
    assert said.stdout.split() == ["True", "True"]
