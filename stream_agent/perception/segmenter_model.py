"""How long clips last and what follows what, as fitted on training videos: what `segmenter.json` of a pack holds.

A duration is log-normal. That law is loosened towards one in which every age is alike, so that certain evidence is never
refused because a clip is "too short", and a false start is soon taken back.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Final

import msgspec

from stream_agent.errors import ConfigError

FILE_NAME: Final = "segmenter.json"
LONGEST_S: Final = 900
"""Ages are told apart up to here; beyond, a clip ends at the rate it had here."""

Positive = Annotated[float, msgspec.Meta(gt=0.0)]
Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]


class ClipLength(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long clips of one action last.

    Attributes:
        median_s: Median of the log-normal law.
        log_sd: Standard deviation of its logarithm.
        mean_s: Mean of the law of equal ages.
        loose: Its share of the rate at which clips end; the log-normal law has the rest.
    """

    median_s: Positive
    log_sd: Positive
    mean_s: Positive
    loose: Share

    def log_survival(self, age_s: float) -> float:
        """Log P(a clip lasts longer than `age_s`)."""
        log_normal = 0.0
        if age_s > 0.0:
            survival = 0.5 * math.erfc(math.log(age_s / self.median_s) / (self.log_sd * math.sqrt(2.0)))
            log_normal = math.log(max(survival, 1e-300))
        return (1.0 - self.loose) * log_normal - self.loose * age_s / self.mean_s


class SegmenterModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `segmenter.json` holds.

    Attributes:
        about: Where it comes from, the command that made it, and its licence.
        actions: Names, in the order of everything below.
        lengths: Per action.
        following: P(next action | action), a row per action; nothing follows itself.
    """

    about: str
    actions: tuple[str, ...]
    lengths: tuple[ClipLength, ...]
    following: tuple[tuple[Share, ...], ...]

    def mistake(self) -> str:
        """What is wrong with it; empty if nothing."""
        count = len(self.actions)
        if len(self.lengths) != count or [len(row) for row in self.following] != [count] * count:
            return f"lengths and following must hold one entry for each of {count} actions"
        for index, row in enumerate(self.following):
            if count > 1 and (row[index] > 0.0 or abs(math.fsum(row) - 1.0) > 1e-6):
                return f"following {self.actions[index]}: {row} must sum to 1 and hold 0 for itself"
        return ""


def log_survival(model: SegmenterModel) -> list[list[float]]:
    """Log P(a clip lasts longer), a row per action, at the whole seconds 0 … `LONGEST_S`."""
    return [[length.log_survival(float(age)) for age in range(LONGEST_S + 1)] for length in model.lengths]


def without_fit(actions: tuple[str, ...], mean_clip_s: float) -> tuple[list[list[float]], list[list[float]]]:
    """Log survival and what follows what when nothing was fitted: any age alike, any other action alike."""
    share = 1.0 / max(1, len(actions) - 1)
    ages = [-age / mean_clip_s for age in range(LONGEST_S + 1)]
    return [ages for _ in actions], [[share * (one != other) for other in actions] for one in actions]


def load_segmenter_model(path: Path, actions: tuple[str, ...]) -> SegmenterModel:
    """The model of a `segmenter.json`.

    Raises:
        ConfigError: The file is missing, not of the form above, or for other actions.
    """
    remedy = "rebuild it with python -m stream_agent.training.signals"
    try:
        model = msgspec.json.decode(path.read_bytes(), type=SegmenterModel)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"segmenter model {path} cannot be used: {error}; {remedy}") from error
    if model.actions != actions:
        raise ConfigError(
            f"segmenter model {path} has actions {', '.join(model.actions)}, the pack has {', '.join(actions)}; {remedy}"
        )
    if mistake := model.mistake():
        raise ConfigError(f"segmenter model {path}: {mistake}; {remedy}")
    return model
