"""The planners that every other one is measured against, from a constant to the paper's own baselines.

LLM-SAP (Xu et al. 2025) names Most Prob, PS and AntGPT without giving their settings; where a docstring says *our reading*,
the source leaves that open and this is what we took it to mean.
"""

from __future__ import annotations

import difflib
import re
import shlex
import statistics
import subprocess
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from stream_agent.errors import BackendError
from stream_agent.evaluation.dataset import ACTIONS
from stream_agent.evaluation.protocols import Forecast, NotRunError, Training
from stream_agent.evaluation.samples import LONGEST_CHAIN, Question, Sample, Videos, as_memory
from stream_agent.messages import Plan, PlanRequest
from stream_agent.planner.statistical import StatisticalPlanner

if TYPE_CHECKING:
    from stream_agent.planner.protocol import Planner

CONSTANT = "Dissection"
"""The most frequent action; always saying it gives the published top-1 numbers of the Qwen2.5 rows."""

GOAL_STEPS = 6
"""Within how many actions the goal-conditioned Most Prob wants to be at the goal; our reading."""

_SMOOTHING = 0.5
_EXAMPLES = 12
_CLOSE = 0.8
_BACKEND_TIMEOUT_S = 120.0


class LabelPredictor:
    """Answers from a distribution over the next action given the labels; chains greedily, onsets by median durations."""

    def __init__(self, training: Training, after: Callable[[Sequence[str]], Mapping[str, float]]) -> None:
        """`after` gives the probability of each next action after the labels; ties rank in the order of its answer."""
        self._after = after
        self._median_s = median_durations(training.videos)

    def predict(self, question: Question) -> Forecast:
        """The distribution in falling order, the likeliest action at each step, and when each would begin."""
        probabilities = self._after(question.labels)
        ranked = tuple(sorted(probabilities, key=lambda action: -probabilities[action]))
        chain = [ranked[0]]
        while len(chain) < LONGEST_CHAIN:
            following = self._after((*question.labels, *chain))
            chain.append(max(following, key=lambda action: following[action]))
        onset = max(0.0, self._median_s[question.current] - self._elapsed_s(question)) if question.current else 0.0
        onsets = [onset]
        for action in chain[:-1]:
            onsets.append(onsets[-1] + self._median_s[action])
        return Forecast(ranked, tuple(probabilities[action] for action in ranked), tuple(chain), tuple(onsets))

    @staticmethod
    def _elapsed_s(question: Question) -> float:
        return question.now_s - question.starts_s[-1]


class Constant:
    """Always the same single answer, whatever happened."""

    name = "constant"
    sees_track = False

    def fit(self, training: Training) -> LabelPredictor:
        """States how often the constant was right in training."""
        share = _frequencies(training)[CONSTANT]
        return LabelPredictor(training, lambda _: {CONSTANT: share})


class Frequency:
    """Actions by how often they were a target in training; nothing is looked at."""

    name = "frequency"
    sees_track = False

    def fit(self, training: Training) -> LabelPredictor:
        """Counts the targets of the training samples."""
        shares = _frequencies(training)
        return LabelPredictor(training, lambda _: shares)


class FrequencyMinusLast:
    """The same without the action going on, which is never the next one."""

    name = "frequency_minus_last"
    sees_track = False

    def fit(self, training: Training) -> LabelPredictor:
        """Counts the targets of the training samples."""
        shares = _frequencies(training)
        return LabelPredictor(training, lambda labels: _without(shares, labels))


class MostProb:
    """Most Prob: the most probable transition from the last action, counted in training; our reading: a bigram."""

    name = "most_prob"
    sees_track = False

    def fit(self, training: Training) -> LabelPredictor:
        """Counts current action and target of the training samples; a small count is added so that none is impossible."""
        transitions = _transitions(training)
        shares = _frequencies(training)
        return LabelPredictor(training, lambda labels: _onward(transitions, shares, labels))


class MostProbGoal:
    """Most Prob with a goal: the next action on the way to how procedures end; our reading.

    Procedure planning conditions on the goal's picture; here the goal is the action that most training videos end with, and
    P(a | last, goal) is proportional to P(a | last) P(the goal is met within `GOAL_STEPS` actions from a).
    """

    name = "most_prob_goal"
    sees_track = False

    def fit(self, training: Training) -> LabelPredictor:
        """Counts as Most Prob does, and takes the commonest last action for the goal."""
        transitions = _transitions(training)
        shares = _frequencies(training)
        ends = Counter(clips[-1].action for clips in training.videos.values() if clips)
        goal = max(ACTIONS, key=lambda action: ends[action])
        reach = dict.fromkeys(ACTIONS, 0.0)
        for _ in range(GOAL_STEPS):
            reach = {
                action: 1.0
                if action == goal
                else sum(probability * reach[then] for then, probability in transitions[action].items())
                for action in ACTIONS
            }

        def after(labels: Sequence[str]) -> dict[str, float]:
            onward = _onward(transitions, shares, labels)
            return _normalised({action: onward[action] * reach[action] for action in onward})

        return LabelPredictor(training, after)


class PackPlanner:
    """A planner of the product, asked through its own `plan(request)` with the memory the agent would hold."""

    def __init__(self, name: str, fit: Callable[[Training], Planner], *, sees_track: bool = False) -> None:
        self.name = name
        self.sees_track = sees_track
        self._fit = fit

    def fit(self, training: Training) -> PlanPredictor:
        """The planner, fitted on the fold's training videos."""
        return PlanPredictor(self._fit(training))


class PlanPredictor:
    """Questions become plan requests, plans become forecasts; an abstention ranks nothing.

    A planner that can be told that the current action ends is told so where the question says it.
    """

    def __init__(self, planner: Planner) -> None:
        self.planner = planner
        self._at_changes = planner.told_of_changes() if isinstance(planner, StatisticalPlanner) else planner

    def predict(self, question: Question) -> Forecast:
        """The plan's ranking and chain."""
        request = PlanRequest(request_id=1, memory=as_memory(question), deadline_ns=2**62, horizon=LONGEST_CHAIN)
        return forecast_of((self._at_changes if question.at_change else self.planner).plan(request))


def forecast_of(plan: Plan) -> Forecast:
    """The plan's ranking and chain; nothing for an abstention."""
    return Forecast(
        ranked=tuple(item.action for item in plan.ranked),
        probabilities=tuple(item.probability for item in plan.ranked),
        chain=tuple(step.action for step in plan.chain),
        onset_s=tuple(step.expected_onset_s for step in plan.chain),
    )


class SequenceModel(Protocol):
    """Fitted on near frames."""

    def probabilities(self, question: Question) -> Mapping[str, float] | None:
        """Probability of each action; None where none of the question's frames is there."""
        ...


SequenceFitter: TypeAlias = Callable[[Sequence[Sample], Path], SequenceModel]
"""Fits a sequence model on samples whose frames are in a folder (lstm.py)."""


class Ps:
    """PS: near-frame features and the last label through an LSTM; our reading.

    EfficientNet-Lite0 (ImageNet) features of each near frame, with the label of the near clip, in the order of time, one
    LSTM, one linear layer. The official track's last near frame shows the target already.
    """

    name = "ps"
    sees_track = True

    def __init__(self, frames: Path | None, fit: SequenceFitter | None = None) -> None:
        self._frames = frames
        self._fit_model = fit

    def fit(self, training: Training) -> PsPredictor:
        """Fits on those training samples whose frames are there.

        Raises:
            NotRunError: There are no frames, or torch is not installed.
        """
        if self._frames is None:
            raise NotRunError("it looks at near frames; name their folder with --frames")
        fit = self._fit_model
        if fit is None:
            try:
                from stream_agent.evaluation.lstm import fit_lstm
            except ImportError as error:
                raise NotRunError(f"{error.name} is not installed; pip install stream-agent[train]") from error
            fit = fit_lstm
        return PsPredictor(fit(training.samples(), self._frames))


class PsPredictor:
    """Answers where the frames are there."""

    def __init__(self, model: SequenceModel) -> None:
        self._model = model

    def predict(self, question: Question) -> Forecast | None:
        """The model's distribution; None where no near frame of the question is there."""
        probabilities = self._model.probabilities(question)
        if probabilities is None:
            return None
        ranked = tuple(sorted(probabilities, key=lambda action: -probabilities[action]))
        return Forecast(ranked, tuple(probabilities[action] for action in ranked))


class TextBackend(Protocol):
    """Any language model: a prompt in, a completion out."""

    def complete(self, prompt: str) -> str:
        """The model's answer.

        Raises:
            BackendError: There is none.
        """
        ...


class CommandBackend:
    """A program that reads the prompt on stdin and writes its answer to stdout."""

    def __init__(self, command: str, *, timeout_s: float = _BACKEND_TIMEOUT_S) -> None:
        self._command = command
        self._timeout_s = timeout_s

    def complete(self, prompt: str) -> str:
        """What the program wrote.

        Raises:
            BackendError: It cannot be started, failed or took too long.
        """
        try:
            words = shlex.split(self._command)
            if not words:
                raise ValueError("it names no program")
            done = subprocess.run(
                words,
                input=prompt,
                capture_output=True,
                text=True,
                timeout=self._timeout_s,
                check=True,
            )
        except subprocess.CalledProcessError as error:
            last = (error.stderr.strip().splitlines() or ["no message"])[-1]
            raise BackendError(
                f"--text-backend {self._command} ended with {error.returncode} ({last}); run it by hand with a prompt on stdin"
            ) from error
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            raise BackendError(
                f"--text-backend {self._command}: {error}; run it by hand with a prompt on stdin"
            ) from error
        return done.stdout


class AntGpt:
    """AntGPT (Zhao et al., ICLR 2024): past labels as text, a language model goes on, its words are mapped to actions.

    Our reading: in context instead of fine-tuned, with examples from the training videos; three answers are asked for at
    once; words that map to no action are counted in `failures` and rank nothing.
    """

    name = "antgpt"
    sees_track = False

    def __init__(self, backend: TextBackend | None) -> None:
        self._backend = backend
        self.asked = 0
        self.failures = 0

    def fit(self, training: Training) -> AntGptPredictor:
        """Picks the examples: training samples evenly spread over the videos.

        Raises:
            NotRunError: There is no text backend.
        """
        if self._backend is None:
            raise NotRunError("it needs a language model; name a program that answers a prompt with --text-backend")
        known = training.samples()
        every = max(1, len(known) // _EXAMPLES)
        examples = [(sample.question.labels, sample.target) for sample in known[::every][:_EXAMPLES]]
        return AntGptPredictor(self, self._backend, examples)


class AntGptPredictor:
    """Asks the backend once per question; equal histories are asked once."""

    def __init__(self, owner: AntGpt, backend: TextBackend, examples: Sequence[tuple[tuple[str, ...], str]]) -> None:
        self._owner = owner
        self._backend = backend
        self._examples = examples
        self._known: dict[tuple[str, ...], tuple[str, ...]] = {}

    def predict(self, question: Question) -> Forecast:
        """Up to three actions, without probabilities: the model's words state none."""
        ranked = self._known.get(question.labels)
        if ranked is None:
            ranked, failures = map_actions(self._backend.complete(self.prompt(question.labels)))
            self._owner.asked += 1
            self._owner.failures += failures
            self._known[question.labels] = ranked
        return Forecast(ranked)

    def prompt(self, labels: Sequence[str]) -> str:
        """What the backend is asked."""
        lines = [
            f"Actions in a laparoscopic cholecystectomy are: {', '.join(ACTIONS)}.",
            "Given the actions so far, name the three most likely next actions, the likeliest first, separated by commas.",
            "",
            *(f"So far: {_spoken(past)}\nNext: {target}\n" for past, target in self._examples),
            f"So far: {_spoken(labels)}\nNext:",
        ]
        return "\n".join(lines)


def map_actions(text: str) -> tuple[tuple[str, ...], int]:
    """The distinct actions named in a language model's first three answers, and how many of those named none.

    An answer is what stands between commas, semicolons and line ends; a number or dash before it is dropped. It maps to the
    action of the same letters, or to the closest one if it is close.
    """
    answers = [words for part in re.split(r"[,;\n]", text) if (words := re.sub(r"[^a-z ]", " ", part.lower()).strip())]
    by_letters = {action.lower(): action for action in ACTIONS}
    ranked: list[str] = []
    failures = 0
    for words in answers[:3]:
        close = difflib.get_close_matches(" ".join(words.split()), by_letters, n=1, cutoff=_CLOSE)
        if not close:
            failures += 1
        elif by_letters[close[0]] not in ranked:
            ranked.append(by_letters[close[0]])
    return tuple(ranked), failures if answers else 1


def median_durations(videos: Videos) -> dict[str, float]:
    """Median seconds of each action's clips; the last clip of a video has no known end. Unseen actions take all clips'."""
    lengths: dict[str, list[int]] = defaultdict(list)
    for clips in videos.values():
        for clip, following in pairwise(clips):
            lengths[clip.action].append(following.start_s - clip.start_s)
    everything = [length for values in lengths.values() for length in values] or [0]
    return {action: float(statistics.median(lengths[action] or everything)) for action in ACTIONS}


def _frequencies(training: Training) -> dict[str, float]:
    """Share of each action among the targets of the training samples."""
    counts = Counter(sample.target for sample in training.samples())
    return _normalised({action: counts[action] + _SMOOTHING for action in ACTIONS})


def _transitions(training: Training) -> dict[str, dict[str, float]]:
    """Share of each target after each current action among the training samples."""
    counts = Counter((sample.question.current, sample.target) for sample in training.samples())
    return {
        action: _normalised({then: counts[action, then] + _SMOOTHING for then in ACTIONS if then != action})
        for action in ACTIONS
    }


def _without(shares: Mapping[str, float], labels: Sequence[str]) -> dict[str, float]:
    current = labels[-1] if labels else ""
    return _normalised({action: share for action, share in shares.items() if action != current})


def _onward(
    transitions: Mapping[str, Mapping[str, float]], shares: Mapping[str, float], labels: Sequence[str]
) -> Mapping[str, float]:
    """Transitions from the last label; frequencies where there is none."""
    return (transitions.get(labels[-1]) if labels else None) or _without(shares, labels)


def _normalised(weights: Mapping[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    return {action: weight / total for action, weight in weights.items()}


def _spoken(labels: Sequence[str]) -> str:
    return ", ".join(labels) or "nothing yet"
