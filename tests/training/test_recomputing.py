"""Names that a library has left behind trouble nobody who trains."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("transformers", reason="pip install -e .[train] to train adapters")

_WARN = "warnings.warn('`{}` is deprecated and will be removed in v6.', FutureWarning)\n"


def test_the_old_name_of_checkpointing_is_not_told_and_other_warnings_are() -> None:
    """TRL and peft say it in every training, and the warning stood between the lines that tell how far it is."""
    program = "import warnings\nimport stream_agent.training.recomputing\n"
    program += "".join(_WARN.format(name) for name in ("is_gradient_checkpointing", "gradient_checkpointing_enable"))
    program += _WARN.format("something_else")
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=True
    ).stderr
    assert "gradient_checkpointing" not in said
    assert "`something_else` is deprecated" in said
