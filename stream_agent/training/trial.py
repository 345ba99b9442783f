"""The folder that `run_agent.py train gate --parts N` leaves, read so that nobody is asked about what it has seen.

    TRIAL/tuned           the candidate: fitted on all training videos      TRIAL/start            what it began with, if anything
    TRIAL/part-k/tuned    the same without one part of the videos           TRIAL/part-k/start

Which videos a part leaves out is read from its record, not from its name or number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from stream_agent.errors import ConfigError
from stream_agent.training.report_rows import ADAPTER
from stream_agent.training.taught_adapter import TaughtAdapter, load_taught

START: Final = "start"

_OWN_TO_A_PART: Final = (("data", "exclude"), ("lora", "start_from"))
"""What a part's configuration may have otherwise than the candidate's."""


@dataclass(frozen=True, slots=True, eq=False)
class Crossed:
    """One training's adapters.

    Attributes:
        whole: Fitted on all training videos.
        parts: Each fitted without one part of them, in the order of the trial's parts.
    """

    whole: TaughtAdapter
    parts: tuple[TaughtAdapter, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """A cross-validated training.

    Attributes:
        parts: Names of the parts.
        unseen: Per part the videos that its adapters have not seen, which they may be asked about; together all of `videos`.
        videos: Those that the candidate was fitted on.
        taught: Its adapters by the names of the report: what training began with, if that was an adapter, and what came out.
    """

    parts: tuple[str, ...]
    unseen: tuple[tuple[str, ...], ...]
    videos: tuple[str, ...]
    taught: Mapping[str, Crossed]

    @property
    def candidate(self) -> TaughtAdapter:
        """The adapter that would be put to use."""
        return self.taught[ADAPTER].whole

    @property
    def ended_early(self) -> tuple[str, ...]:
        """Those whose training a person broke off, by part and folder."""
        all_of_them = [adapter for one in self.taught.values() for adapter in (one.whole, *one.parts)]
        return tuple("/".join(one.folder.parts[-2:]) for one in all_of_them if one.record.get("ended_early"))


def load_trial(folder: Path, model: Path | None = None, settings: Mapping[str, Any] | None = None) -> Trial:
    """The trial in a folder; `model` and `settings` as for `load_taught`.

    Raises:
        ConfigError: An adapter is missing or none of ours, the parts do not leave out every video of the candidate exactly once,
            one was trained otherwise than the candidate, or has seen a test video or what it would be asked about.
    """
    parts = _parts(folder)

    def crossed(name: str) -> Crossed:
        whole, *others = (load_taught(place / name, model, settings) for place in (folder, *parts))
        return Crossed(whole, tuple(others))

    taught = {ADAPTER: crossed("tuned")}
    if _has_starts(folder, parts):
        taught = {START: crossed(START), **taught}
    candidate = taught[ADAPTER].whole
    unseen = tuple(_left_out(one, candidate) for one in taught[ADAPTER].parts)
    _require_each_once(folder, candidate, dict(zip((part.name for part in parts), unseen, strict=True)))
    for one in taught.values():
        _require_asked_alike(one.whole, candidate)
        for part, videos in zip(one.parts, unseen, strict=True):
            _require_trained_alike(part, one.whole)
            _require_unseen(part, videos)
    return Trial(tuple(part.name for part in parts), unseen, tuple(sorted(candidate.fitted_on)), taught)


def _parts(folder: Path) -> list[Path]:
    """The folders of the parts, by their numbers."""
    numbers = {path: path.name.removeprefix("part-") for path in folder.glob("part-*") if path.is_dir()}
    found = sorted(
        (path for path, number in numbers.items() if number.isdecimal()), key=lambda path: int(numbers[path])
    )
    if len(found) < 2:
        raise ConfigError(
            f"{folder} has {len(found)} folders part-1, part-2, …, and the numbers that judge a part are fitted on the others; "
            "name what `train gate --parts 5 --out DIR` wrote, or one adapter with --adapter"
        )
    return found


def _has_starts(folder: Path, parts: Sequence[Path]) -> bool:
    there = {place: (place / START).is_dir() for place in (folder, *parts)}
    if any(there.values()) and not all(there.values()):
        lacking = next(place for place, found in there.items() if not found)
        raise ConfigError(f"{lacking} has no {START}, others of the trial have; let `train gate` finish")
    return all(there.values())


def _left_out(part: TaughtAdapter, candidate: TaughtAdapter) -> tuple[str, ...]:
    """The candidate's videos that the part's training did not fit.

    Raises:
        ConfigError: There is none, or it fitted others.
    """
    if others := sorted(set(part.fitted_on) - set(candidate.fitted_on)):
        raise ConfigError(
            f"{part.folder} was fitted on {', '.join(others[:4])}, which the candidate was not; remove it and let `train gate` "
            "fit it again"
        )
    found = tuple(sorted(set(candidate.fitted_on) - set(part.fitted_on)))
    if not found:
        raise ConfigError(
            f"{part.folder} was fitted on all videos of the candidate, so there is nothing to ask it; remove it and let "
            "`train gate` fit it without its part"
        )
    return found


def _require_each_once(folder: Path, candidate: TaughtAdapter, unseen: Mapping[str, Sequence[str]]) -> None:
    counts = Counter(video for videos in unseen.values() for video in videos)
    if missing := sorted(set(candidate.fitted_on) - counts.keys()):
        raise ConfigError(
            f"{folder}: no part leaves out {', '.join(missing[:4])}, which the candidate was fitted on; let `train gate` finish, "
            "or remove the parts and fit them again"
        )
    twice = next((video for video, count in sorted(counts.items()) if count > 1), None)
    if twice is not None:
        both = [name for name, videos in unseen.items() if twice in videos]
        raise ConfigError(
            f"{folder}: {' and '.join(both)} both leave out {twice}; remove the part that is of another trial"
        )


def _require_asked_alike(one: TaughtAdapter, candidate: TaughtAdapter) -> None:
    """Whoever is compared is asked the same; adapters of one training are by `_require_trained_alike`."""
    for what, own, other in (
        ("base model", one.base, candidate.base),
        ("prompts", one.prompt, candidate.prompt),
        ("planner.permutations", one.planner.permutations, candidate.planner.permutations),
    ):
        if own != other:
            raise ConfigError(
                f"{one.folder} was trained with {what} {own}, {candidate.folder} with {other}; a comparison needs the same for "
                "both, train it again"
            )


def _require_trained_alike(part: TaughtAdapter, whole: TaughtAdapter) -> None:
    _require_asked_alike(part, whole)
    own, other = dict(_leaves(part.tree)), dict(_leaves(whole.tree))
    for key in sorted(own.keys() | other.keys()):
        if key[:2] not in _OWN_TO_A_PART and own.get(key) != other.get(key):
            raise ConfigError(
                f"{part.folder} was trained with {'.'.join(key)}={own.get(key)}, {whole.folder} with {other.get(key)}; remove it "
                "and let `train gate` fit it again"
            )


def _leaves(tree: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Every setting of a configuration with its full name."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, (*path, str(key)))
    else:
        yield path, tree


def _require_unseen(part: TaughtAdapter, videos: Sequence[str]) -> None:
    if leaked := sorted(part.seen & set(videos)):
        raise ConfigError(
            f"{part.folder} has seen {', '.join(leaked[:4])}, which it would be asked about; fit it, and what it begins with, "
            "without them"
        )
