"""Everybody who answers the same samples: the base model, adapters of it, and statistical planners fitted on other videos.

Causal track, labels as a recogniser gave them. Nobody is asked twice what is kept: an answer is filed by everything that it depends
on, so those of base and statistical planner serve the next adapter, too.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from stream_agent import __version__
from stream_agent.errors import ConfigError
from stream_agent.evaluation.dataset import TEST_VIDEOS, load_presence, load_sap
from stream_agent.evaluation.lineup import statistical_planner
from stream_agent.evaluation.model_beliefs import Beliefs, LanguageModel, statistical_beliefs
from stream_agent.evaluation.protocols import Fold, Questions
from stream_agent.evaluation.samples import History, Sample, Track
from stream_agent.training.kept_beliefs import KeptBeliefs
from stream_agent.training.taught_adapter import TaughtAdapter

TRACK: Track = "causal"
HISTORY: History = "action_reg"

_TOLD_EVERY = 25
"""Samples from one line of progress to the next."""

Wanted: TypeAlias = Mapping[str, tuple[TaughtAdapter | None, Sequence[Sample]]]
"""Per row who is to answer, None for the base model, and what."""


class Panel:
    """Those who answer samples of one annotation.

    Attributes:
        actions: The closed set, in the order of every belief.
        tests: The file's test videos.
        training: Its other videos.
        how: How the statistical planner is fitted, in words.
    """

    def __init__(
        self,
        taught: TaughtAdapter,
        sap: Path,
        *,
        signals: Path | None,
        keep: Path | None,
        say: Callable[[str], None],
    ) -> None:
        """Nobody is asked yet.

        Args:
            taught: An adapter; everybody is asked as it was taught.
            sap: `total_video_info.json`.
            signals: Folder of `videoNN.csv`, for the statistical planner.
            keep: Folder for everybody's beliefs; None keeps none.
            say: Hears of progress.

        Raises:
            ConfigError: A file cannot be read.
        """
        self._taught = taught
        self._sap = sap
        self._videos = load_sap(sap)
        self._presence = load_presence(signals, self._videos) if signals is not None else {}
        self._questions = Questions(self._videos, self._presence)
        self._kept = KeptBeliefs(keep)
        self._say = say
        self._fit, self.how = statistical_planner()
        self.actions = taught.pack.action_names
        self.tests = tuple(sorted(TEST_VIDEOS & self._videos.keys()))
        self.training = tuple(sorted(self._videos.keys() - TEST_VIDEOS))
        self._about = {
            "version": __version__,
            "sap": hashlib.sha256(sap.read_bytes()).hexdigest()[:16],
            "signals": {name: int(rows.sum()) for name, rows in sorted(self._presence.items())},
        }

    def samples(self, names: Iterable[str]) -> list[Sample]:
        """The samples of videos, in the order of the names.

        Raises:
            ConfigError: A video is not in the file.
        """
        wanted = list(names)
        if unknown := sorted(set(wanted) - self._videos.keys()):
            raise ConfigError(
                f"{', '.join(unknown[:4])}: not in {self._sap}; give --sap the file that it was trained on"
            )
        return [sample for name in wanted for sample in self._questions.samples(name, TRACK, HISTORY)]

    def statistical(self, row: str, folds: Sequence[Fold], samples: Sequence[Sample]) -> Beliefs:
        """Each sample's belief by a statistical planner of the fold that asks about its video."""
        about = {
            **self._about,
            "statistical_planner": self.how,
            "fitted_on": [list(fold.train) for fold in folds],
            "asked": _named(samples),
        }
        known = self._kept.find(about)
        if known is None:
            counts = ", ".join(str(len(fold.train)) for fold in folds)
            self._say(f"{row}: fitted on {counts} videos ({self.how})")
            known = statistical_beliefs(folds, self._videos, self._presence, samples, self.actions, self._fit)
            self._kept.keep(about, known)
        return known

    def language(self, wanted: Wanted) -> dict[str, Beliefs]:
        """Each row's beliefs, by one model that is started once if there is anything left to ask.

        Raises:
            ConfigError: The base model is another, or an adapter does not fit it.
            BackendError: The model failed.
        """
        found = {row: self._kept.find(self._about_language(*asked)) for row, asked in wanted.items()}
        missing = {row: asked for row, asked in wanted.items() if found[row] is None}
        answered = asyncio.run(self._ask(missing)) if missing else {}
        return {row: known if known is not None else answered[row] for row, known in found.items()}

    async def _ask(self, wanted: Wanted) -> dict[str, Beliefs]:
        named = {_name(adapter): adapter.folder for adapter, _ in wanted.values() if adapter is not None}
        planner = self._taught.planner.model_copy(update={"adapters": named})
        model = LanguageModel(self._taught.pack, planner)
        found: dict[str, Beliefs] = {}
        try:
            await model.start()
            for row, (adapter, samples) in wanted.items():
                chosen = planner.model_copy(update={"adapter": "" if adapter is None else _name(adapter)})
                asked = await model.ask(samples, chosen, seen=self._progress(row, len(samples)))
                self._say(f"{row}: {len(samples)} samples, {asked.ms_p50:.0f} ms per ranking")
                self._kept.keep(self._about_language(adapter, samples), asked.beliefs)
                found[row] = asked.beliefs
        finally:
            await model.close()
        return found

    def _progress(self, row: str, samples: int) -> Callable[[], None]:
        done = 0

        def seen() -> None:
            nonlocal done
            done += 1
            if done % _TOLD_EVERY == 0 and done < samples:
                self._say(f"{row}: {done} of {samples}")

        return seen

    def _about_language(self, adapter: TaughtAdapter | None, samples: Sequence[Sample]) -> dict[str, object]:
        taught = self._taught
        return {
            **self._about,
            "base": taught.base,
            "adapter": "" if adapter is None else adapter.weights,
            "prompt": taught.prompt,
            "permutations": taught.planner.permutations,
            "dtype": taught.planner.dtype,
            "asked": _named(samples),
        }


def _name(adapter: TaughtAdapter) -> str:
    """What the adapter is called in the backend."""
    return f"taught-{adapter.weights}"


def _named(samples: Sequence[Sample]) -> list[str]:
    return [f"{sample.question.video}/{sample.index}" for sample in samples]
