"""What an adapter's folder tells of itself: the record that training wrote beside the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stream_agent.errors import ConfigError


def read_record(folder: Path) -> dict[str, Any]:
    """The record of an adapter.

    Raises:
        ConfigError: There is none, or it does not tell the videos.
    """
    try:
        found: dict[str, Any] = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        _ = [*found["data"]["fitted_on"], *found["data"]["chosen_by"]], found["config_digest"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder} has no record.json that tells its videos ({type(error).__name__}); name an adapter that `train` wrote"
        ) from error
    return found


def fitted_on(folder: Path) -> tuple[str, ...]:
    """Videos that an adapter has seen, those of the adapter it began with included.

    Raises:
        ConfigError: It does not say.
    """
    record = read_record(folder)
    return tuple(sorted({*record["data"]["fitted_on"], *(record.get("began_with") or {}).get("fitted_on", ())}))
