"""Beliefs kept for the next comparison: base and statistical planner answer the same whatever adapter stands beside them.

One JSON file per question, named by the sha256 of everything the answer depends on; what is not the same is asked anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from stream_agent.errors import ConfigError
from stream_agent.evaluation.model_beliefs import Beliefs


class KeptBeliefs:
    """A folder of beliefs; with no folder nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def find(self, about: Mapping[str, object]) -> Beliefs | None:
        """What was kept under these circumstances; None if nothing was.

        Raises:
            ConfigError: The file is not one of ours.
        """
        path = self._path(about)
        if path is None or not path.is_file():
            return None
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
            beliefs = np.array(tree["beliefs"], dtype=np.float64)
            if tree["about"] != json.loads(json.dumps(about)) or beliefs.ndim != 2:
                raise ValueError("it is about something else")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} holds no beliefs ({error}); delete it") from error
        return beliefs

    def keep(self, about: Mapping[str, object], beliefs: Beliefs) -> None:
        """For the next time."""
        path = self._path(about)
        if path is not None:
            unfinished = path.with_suffix(".part")
            unfinished.write_text(json.dumps({"about": about, "beliefs": beliefs.tolist()}) + "\n", encoding="utf-8")
            unfinished.replace(path)

    def _path(self, about: Mapping[str, object]) -> Path | None:
        if self._folder is None:
            return None
        name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]
        return self._folder / f"{name}.json"
