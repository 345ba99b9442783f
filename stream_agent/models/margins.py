"""How much worse a candidate may look before it counts as worse; the reasons stand in `configs/model_gate.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pydantic import Field

from stream_agent.config import Section, configs_directory
from stream_agent.located_yaml import LocatedYaml

FILE_NAME: Final = "model_gate.yaml"


class Margins(Section):
    """What "not inferior" means."""

    accuracy_points: float = Field(
        gt=0, le=100, description="SLAcc@1: the lower end of the difference's 95 % interval may be this far below zero."
    )
    calibration: float = Field(gt=0, le=1, description="The ECE may be this much above that of the model in use.")
    latency_ratio: float = Field(ge=1, le=100, description="p99 may be this many times that of the model in use.")
    latency_floor_ms: float = Field(gt=0, description="A p99 below this counts as this: nobody notices less.")
    least_videos: int = Field(ge=2, description="A record over fewer videos proves nothing.")
    least_samples: int = Field(ge=2, description="Nor does one over fewer samples.")


class GateFile(Section):
    """Margins by kind of model."""

    statistical: Margins
    adapter: Margins


def load_margins(path: Path | None = None) -> GateFile:
    """The margins in a file, or the shipped ones.

    Raises:
        ConfigError: The file is missing or wrong; the message names its line.
    """
    return LocatedYaml(path or configs_directory() / FILE_NAME).parse(GateFile)
