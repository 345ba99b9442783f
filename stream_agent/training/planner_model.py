"""Fits the model over the structured memory (planner/ensemble.py), and says how well it foresees.

    python -m stream_agent.training.statistical --sap ../shared/data/sap/total_video_info.json \
        --signals ../shared/data/cholec80/phase_tool_1hz --out configs/procedures/cholecystectomy/planner.json

Annotated clips and 1 Hz instrument rows are replayed, strictly before each target begins, into the `Memory` that the agent
would hold, and read by the agent's own feature code. The heads are taught what follows where an action ends; a third part is
taught to tell such moments from all the others, for a live agent is asked in every second. Settings are chosen by the log
loss of 5-fold cross-validation by video on samples of the training videos, again without each video where figures are
nested. Two tables are reports of the fixed settings, refitted without the videos asked about, and nothing was chosen by
them: leave-one-video-out over all videos, and the test samples. Every run gives the same bytes.
"""

from __future__ import annotations

import functools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_agent.evaluation.dataset import INSTRUMENTS, TEST_VIDEOS, SapClip, load_signals
from stream_agent.evaluation.metrics import expected_ece
from stream_agent.instrument_use import InstrumentUseTracker
from stream_agent.messages import Clip, Memory
from stream_agent.planner.ensemble import SCHEMA, Ending, EndingModel, EnsembleFile, Forest, Head, HeadFile, Linear
from stream_agent.planner.features import BACK, instrument_features, instrument_names, label_features, label_names
from stream_agent.planner.ngram import NgramModel
from stream_agent.training import statistical

ACTIONS: Final = statistical.ACTIONS
TREES: Final = 80
SHARES: Final = (0.05, 0.1, 0.2, 0.3, 0.5)
EARLY_S: Final = 3
"""So long before its end an action is about to end."""

EVERY_S: Final = 4
"""Every so many seconds of an action are moments like any."""

ENDING_PENALTY: Final = 3.0
ENDING_FEATURES: Final = (
    *(f"{instrument} in the last {seconds} s" for instrument in INSTRUMENTS for seconds in (3, 10)),
    "time in current action",
)
SHARPNESSES: Final = (0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8)
COVERAGE: Final = 0.9
LEVELS: Final = (0.1, 0.08, 0.06, 0.05, 0.04, 0.03, 0.02, 0.01)
SHUFFLES: Final = 5
"""Partitions into groups of videos over which coverage is averaged."""

LABEL_FEATURES: Final = label_names(ACTIONS)[BACK * len(ACTIONS) :]
"""Of label history: counts and times, but not which the last labels were; see planner/ensemble.py for why."""
FULL_FEATURES: Final = (*instrument_names(INSTRUMENTS), *LABEL_FEATURES[-4:])
"""Instruments and four times; everything else of label history only adds noise once instruments are seen."""

STATEMENT: Final = (
    "A forest and logistic models over label history, times and instrument use, fitted on {videos} videos of CholecT50-SAP "
    "(Xu et al. 2025), derived from CholecT50 (Nwoye et al., Medical Image Analysis 78, 2022), with 1 Hz instrument rows of "
    "Cholec80 (Twinanda et al., IEEE TMI 36, 2017); CC BY-NC-SA 4.0: non-commercial use, attribution, share alike. Weighted "
    "towards the samples of that benchmark, the clips around clipping. See docs/model_card_statistical.md."
)

Videos = statistical.Videos
Rows = Mapping[str, tuple[tuple[int, ...], ...]]
Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One clip as a question: what the memory held the second before it began, and the answer.

    Attributes:
        video: Whose.
        history: Labels, oldest first.
        target: Index of the action that followed.
        is_sample: Whether the published protocol asks it.
        labels: `label_features`.
        instruments: `instrument_features`; None where the video has no rows.
        left_s: Seconds from what the memory held to the last one before the answer began.
    """

    video: str
    history: tuple[str, ...]
    target: int
    is_sample: bool
    labels: list[float]
    instruments: list[float] | None
    left_s: int = 0


@dataclass(frozen=True, slots=True)
class Setting:
    """What cross-validation chooses; the formula is in planner/ensemble.py.

    Attributes:
        sample_weight: Weight of a sample among all clips.
        penalty: Of the squared weights of the logistic model.
        leaf: Fewest examples in a leaf; 0 for no forest.
        linear_share: Of the logistic model beside the forest.
        share: Of the n-gram.
        sharpness: The exponent.
    """

    sample_weight: float
    penalty: float
    leaf: int = 0
    linear_share: float = 1.0
    share: float = 0.1
    sharpness: float = 1.0


SETTINGS: Final = {
    False: (Setting(5.0, 100.0), Setting(5.0, 30.0), Setting(3.0, 100.0)),
    True: (Setting(3.0, 50.0, 3, 0.33), Setting(3.0, 50.0, 5, 0.33)),
}
"""By whether instruments are seen."""

CHOSEN: Final = {
    False: Setting(5.0, 100.0, share=0.2, sharpness=1.1),
    True: Setting(3.0, 50.0, 3, 0.33, share=0.05, sharpness=1.1),
}
"""What `Study.choose` finds on the 35 training videos, by whether instruments are seen: for refits without some of them."""

SET_FROM: Final = {False: 0.034, True: 0.039}
"""What `narrowest(conformal(...))` finds there."""


def examples(clips: Sequence[SapClip], rows: Sequence[Sequence[int]] | None, *, noisy: bool = True) -> list[Example]:
    """Every clip of one video as a question; `noisy` histories are the published ones, with recognised labels."""
    return _asked(clips, rows, lambda _, last_s: [last_s], noisy=noisy)


def early_examples(clips: Sequence[SapClip], rows: Sequence[Sequence[int]] | None) -> list[Example]:
    """The same questions `EARLY_S` earlier, where the action before lasted that long."""
    return _asked(clips, rows, lambda first_s, last_s: [last_s - EARLY_S] if last_s - EARLY_S >= first_s else [])


def moments(clips: Sequence[SapClip], rows: Sequence[Sequence[int]] | None) -> list[Example]:
    """What comes next, asked every `EVERY_S` seconds of every clip that another follows."""
    asked = _asked(clips, rows, lambda first_s, last_s: range(first_s, last_s + 1, EVERY_S))
    return [one for one in asked if one.history]


def _asked(
    clips: Sequence[SapClip],
    rows: Sequence[Sequence[int]] | None,
    seconds: Callable[[int, int], Iterable[int]],
    *,
    noisy: bool = True,
) -> list[Example]:
    """Questions about each clip, put in the `seconds(first, last)` of the clip before, rising."""
    found: list[Example] = []
    tracker = InstrumentUseTracker(len(INSTRUMENTS))
    fed = 0
    for place, clip in enumerate(clips):
        past = clips[:place]
        labels = tuple(
            (before.action_reg if noisy and index < place - 1 else before.action) for index, before in enumerate(past)
        )
        closed = tuple(
            Clip(label, float(before.start_s), float(after.start_s), 1.0)
            for label, before, after in zip(labels, past, past[1:], strict=False)
        )
        for now_s in seconds(past[-1].start_s if past else clip.start_s - 1, clip.start_s - 1):
            while rows is not None and fed < min(now_s + 1, len(rows)):
                tracker.observe(rows[fed], pts_s=float(fed), step_s=1.0 if fed else 0.0)
                fed += 1
            memory = Memory(
                stream_id="",
                session_id="",
                case_id=clip.video,
                now_pts_s=float(max(0, now_s)),
                clips=closed,
                current=labels[-1] if labels else None,
                current_start_pts_s=float(past[-1].start_s) if past else 0.0,
                instrument_use=() if rows is None else tracker.snapshot(),
            )
            found.append(
                Example(
                    video=clip.video,
                    history=labels,
                    target=ACTIONS.index(clip.action),
                    is_sample=clip.is_sample,
                    labels=label_features(memory, ACTIONS),
                    instruments=None if rows is None else instrument_features(memory, INSTRUMENTS),
                    left_s=clip.start_s - 1 - now_s,
                )
            )
    return found


@functools.lru_cache(maxsize=128)
def _questions(
    clips: tuple[SapClip, ...], rows: tuple[tuple[int, ...], ...] | None
) -> tuple[list[Example], list[Example], list[Example]]:
    """`examples` and, with rows, `early_examples` and `moments`: made once per video however many folds ask for them."""
    asked = examples(clips, rows)
    return (asked, [], []) if rows is None else (asked, early_examples(clips, rows), moments(clips, rows))


def load_rows(signals: Path, videos: Iterable[str]) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Instrument rows of the videos that have a file."""
    paths = {video: signals / f"video{int(video.removeprefix('VID')):02d}.csv" for video in videos}
    return {video: load_signals(path)[1] for video, path in paths.items() if path.is_file()}


def matrix(asked: Sequence[Example], *, full: bool) -> Matrix:
    """Features of one head, (examples, features)."""
    if full:
        return np.array([(one.instruments or []) + one.labels[-4:] for one in asked])
    return np.array([one.labels[BACK * len(ACTIONS) :] for one in asked])


def allowed(asked: Sequence[Example]) -> NDArray[np.bool_]:
    """Which actions may come: all but the current one, (examples, actions)."""
    return np.array([[action != (one.history or ("",))[-1] for action in ACTIONS] for one in asked])


def fit_head(taught: Sequence[Example], setting: Setting, *, full: bool, set_from: float = 0.0) -> HeadFile:
    """One head fitted on all of `taught`."""
    x, y = matrix(taught, full=full), np.array([one.target for one in taught])
    weight = np.array([setting.sample_weight if one.is_sample else 1.0 for one in taught])
    forest = None
    if setting.leaf:
        from sklearn.ensemble import ExtraTreesClassifier

        forest = ExtraTreesClassifier(TREES, random_state=0, max_features=0.3, min_samples_leaf=setting.leaf)
        forest.fit(x.astype(np.float32), y, sample_weight=weight)
    return HeadFile(
        features=FULL_FEATURES if full else LABEL_FEATURES,
        ngram_share=setting.share,
        linear_share=setting.linear_share,
        sharpness=setting.sharpness,
        set_from=set_from,
        linear=fit_linear(x, y, weight, allowed(taught), penalty=setting.penalty),
        forest=None if forest is None else _exported(forest),
    )


def fit_linear(
    x: Matrix, y: NDArray[np.intp], weight: Matrix, may_come: NDArray[np.bool_], *, penalty: float
) -> Linear:
    """A multinomial logistic model among the actions that may come: a conditional logit (McFadden, 1974).

    scikit-learn's knows no choice sets, so the loss (weighted log loss and penalty / 2 times the squared weights, biases
    free) goes to SciPy's L-BFGS here, with its gradient.
    """
    from scipy.optimize import minimize

    mean, scale = x.mean(0), x.std(0) + 1e-3
    z = np.clip((x - mean) / scale, -5, 5)
    n, width = z.shape
    actions = may_come.shape[1]
    barred = np.where(may_come, 0.0, -np.inf)
    came = np.eye(actions)[y]

    def loss(point: Matrix) -> tuple[float, Matrix]:
        weights, bias = point[:-actions].reshape(actions, width), point[-actions:]
        scores = z @ weights.T + bias + barred
        scores -= scores.max(1, keepdims=True)
        logs = scores - np.log(np.exp(scores).sum(1, keepdims=True))
        slope = weight[:, None] * (np.exp(logs) - came)
        total = -float(weight @ logs[np.arange(n), y]) + penalty / 2 * float((weights * weights).sum())
        return total, np.concatenate([(slope.T @ z + penalty * weights).ravel(), slope.sum(0)])

    found = minimize(loss, np.zeros(actions * (width + 1)), jac=True, method="L-BFGS-B", options={"maxiter": 300})
    weights, bias = found.x[:-actions].reshape(actions, width), found.x[-actions:]
    bias = np.maximum(bias - bias.max(), -10.0)  # an action that never came drifts off without an end
    return Linear(_rounded(mean), _rounded(scale), tuple(_rounded(row) for row in weights), _rounded(bias))


def fit_ending(ends: Sequence[Example], among: Sequence[Example]) -> Ending:
    """What tells `ends`, moments at which an action ends or is about to, from `among`, any moments.

    Both kinds weigh the same in all; an action's end weighs twice what the moment `EARLY_S` before it does. A logistic model
    per current action, their squared weights penalised together.
    """
    from scipy.optimize import minimize

    ends = [one for one in ends if one.history]
    asked = [*ends, *among]
    places = [FULL_FEATURES.index(name) for name in ENDING_FEATURES]
    x = matrix(asked, full=True)[:, places]
    ended = np.arange(len(asked)) < len(ends)
    weight = np.where(ended, [1 / 3 if one.left_s else 2 / 3 for one in asked], 1.0)
    weight[~ended] *= weight[ended].sum() / weight[~ended].sum()
    mean = np.average(x, axis=0, weights=weight)
    scale = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=weight)) + 1e-3
    z = np.clip((x - mean) / scale, -5, 5)
    current = np.eye(len(ACTIONS))[[ACTIONS.index(one.history[-1]) for one in asked]]  # (examples, actions)
    sign = np.where(ended, 1.0, -1.0)
    width = z.shape[1]

    def loss(point: Matrix) -> tuple[float, Matrix]:
        weights, bias = point[: -len(ACTIONS)].reshape(len(ACTIONS), width), point[-len(ACTIONS) :]
        margin = sign * (((current @ weights) * z).sum(1) + current @ bias)
        slope = -weight * sign * np.exp(-np.logaddexp(0.0, margin))
        total = float(weight @ np.logaddexp(0.0, -margin)) + ENDING_PENALTY / 2 * float((weights * weights).sum())
        by_action = current.T * slope  # (actions, examples)
        return total, np.concatenate([(by_action @ z + ENDING_PENALTY * weights).ravel(), by_action.sum(1)])

    found = minimize(loss, np.zeros(len(ACTIONS) * (width + 1)), jac=True, method="L-BFGS-B", options={"maxiter": 300})
    weights = found.x[: -len(ACTIONS)].reshape(len(ACTIONS), width)
    bias = np.clip(found.x[-len(ACTIONS) :], -10.0, 10.0)  # an action of one kind only drifts off without an end
    linear = Linear(_rounded(mean), _rounded(scale), tuple(_rounded(row) for row in weights), _rounded(bias))
    return Ending(ENDING_FEATURES, linear)


def _exported(forest: Any) -> Forest:  # noqa: ANN401 - scikit-learn has no types
    roots: list[int] = []
    columns: list[list[NDArray[Any]]] = [[], [], [], []]
    leaves: list[tuple[int, ...]] = []
    nodes = 0
    for estimator in forest.estimators_:
        tree = estimator.tree_
        leaf = tree.children_left < 0
        shares = np.zeros((int(leaf.sum()), len(ACTIONS)))
        value = tree.value[leaf, 0]
        shares[:, forest.classes_.astype(int)] = value / value.sum(1, keepdims=True)
        own_leaf = len(leaves) + np.cumsum(leaf) - 1
        roots.append(nodes)
        columns[0].append(np.where(leaf, -1, tree.feature))
        columns[1].append(np.where(leaf, 0.0, np.round(tree.threshold, 4)))
        columns[2].append(np.where(leaf, own_leaf, nodes + tree.children_left))
        columns[3].append(np.where(leaf, 0, nodes + tree.children_right))
        leaves.extend(tuple(row) for row in np.rint(1000 * shares).astype(int).tolist())
        nodes += tree.node_count
    feature, threshold, left, right = (tuple(np.concatenate(column).tolist()) for column in columns)
    return Forest(tuple(roots), feature, threshold, left, right, tuple(leaves))


def _rounded(values: Matrix) -> tuple[float, ...]:
    return tuple(round(float(value), 5) for value in values)


@dataclass(frozen=True, slots=True, eq=False)
class Forecasts:
    """Answers to questions.

    Attributes:
        asked: The questions, (n,).
        own: A head's own distribution, 0 for the current action, (n, actions).
        back_off: The n-gram's, 0 for the current action, (n, actions).
        probabilities: What the planner would say, (n, actions).
    """

    asked: tuple[Example, ...]
    own: Matrix
    back_off: Matrix
    probabilities: Matrix

    @property
    def targets(self) -> NDArray[np.intp]:
        """Index of what came, (n,)."""
        return np.array([one.target for one in self.asked])


def mixed(own: Matrix, back_off: Matrix, *, share: float, sharpness: float) -> Matrix:
    """The formula of planner/ensemble.py for many questions at once."""
    powers = np.where(back_off > 0, np.maximum((1 - share) * own + share * back_off, 1e-6) ** sharpness, 0.0)
    whole: Matrix = powers / powers.sum(1, keepdims=True)
    return whole


def unless_ending(found: Forecasts, ending: Ending) -> Matrix:
    """The formula of planner/ensemble.py for many questions to the full head at once, when no end is told of."""
    model = EndingModel(ending, FULL_FEATURES, ACTIONS)
    rows = zip(matrix(found.asked, full=True).tolist(), found.asked, strict=True)
    ends = np.array([[model.probability(row, one.history[-1]) if one.history else 1.0] for row, one in rows])
    whole: Matrix = ends * found.probabilities + (1 - ends) * found.back_off
    return whole


class Study:
    """All questions of all videos, and models fitted on some of them."""

    def __init__(self, videos: Videos, rows: Rows, *, order: int, concentration: float) -> None:
        self.videos = videos
        self._order, self._concentration = order, concentration
        made = {name: _questions(clips, rows.get(name)) for name, clips in videos.items()}
        self.asked = {name: asked for name, (asked, _, _) in made.items()}
        self.early = {name: asked for name, (_, asked, _) in made.items()}
        self.moments = {name: asked for name, (_, _, asked) in made.items()}

    def named(self, names: Iterable[str], *, full: bool, samples: bool) -> list[Example]:
        """The questions of some videos; for the full head only those with rows."""
        return [
            one
            for name in sorted(names)
            for one in self.asked[name]
            if (one.instruments is not None or not full) and (one.is_sample or not samples)
        ]

    def forecast(
        self, taught: Iterable[str], tested: Iterable[str], setting: Setting, *, full: bool, samples: bool = True
    ) -> Forecasts:
        """Answers about `tested` of models fitted on `taught`."""
        return self.answer(taught, self.named(tested, full=full, samples=samples), setting, full=full)

    def answer(self, taught: Iterable[str], asked: Sequence[Example], setting: Setting, *, full: bool) -> Forecasts:
        """Answers to any questions of models fitted on the videos `taught`; the current action is taken to end now."""
        taught = list(taught)
        head = Head(fit_head(self.named(taught, full=full, samples=False), setting, full=full), len(ACTIONS))
        file = statistical.count(self.videos, taught, order=self._order, concentration=self._concentration)
        ngram = NgramModel(file)
        rows = zip(matrix(asked, full=full).tolist(), allowed(asked), strict=True)
        own = np.array([head.probabilities(row, may_come) for row, may_come in rows]).reshape(-1, len(ACTIONS))
        answers = [ngram.next_probabilities(one.history) for one in asked]
        back_off = np.array([[answer.get(action, 0.0) for action in ACTIONS] for answer in answers])
        back_off = back_off.reshape(-1, len(ACTIONS))
        probabilities = mixed(own, back_off, share=setting.share, sharpness=setting.sharpness)
        return Forecasts(tuple(asked), own, back_off, probabilities)

    def ending(self, names: Iterable[str]) -> Ending:
        """What tells the ends of actions from other moments, fitted on `names`."""
        names = sorted(names)
        early = [one for name in names for one in self.early[name]]
        among = [one for name in names for one in self.moments[name]]
        return fit_ending(self.named(names, full=True, samples=False) + early, among)

    def choose(self, names: Iterable[str], *, full: bool) -> Setting:
        """The setting with the least cross-validated log loss over samples; the first on a tie."""
        names = sorted(names)
        losses: dict[Setting, float] = {}
        for base in SETTINGS[full]:
            found = joined(
                self.forecast(set(names) - set(part), part, base, full=full)
                for part in statistical.folds(names)
                if self.named(part, full=full, samples=True)
            )
            for share in SHARES:
                for sharpness in SHARPNESSES:
                    answers = mixed(found.own, found.back_off, share=share, sharpness=sharpness)
                    setting = replace(base, share=share, sharpness=sharpness)
                    losses[setting] = round(log_loss(answers, found.targets), 4)
        return min(losses, key=lambda setting: losses[setting])

    def nested(self, names: Iterable[str], *, full: bool) -> list[Forecasts]:
        """Leave-one-video-out, the setting chosen again without each video; joined into the parts of `folds`."""
        names = sorted(names)
        asked = [name for name in names if self.named([name], full=full, samples=True)]
        parts = []
        for part in statistical.folds(asked):
            found = []
            for name in part:
                rest = set(names) - {name}
                found.append(self.forecast(rest, [name], self.choose(rest, full=full), full=full))
            parts.append(joined(found))
        return parts

    def live(self, names: Iterable[str], setting: Setting) -> dict[str, tuple[Forecasts, Matrix]]:
        """Leave-one-video-out at samples and in all seconds: told that the current action ends, and (n, actions) not told.

        A second's answer is right when it names what comes after the current action, however much later.
        """
        found: dict[str, list[tuple[Forecasts, Matrix]]] = {"samples": [], "all seconds": []}
        for name in sorted(names):
            rest = set(names) - {name}
            ending = self.ending(rest)
            asked = self.named([name], full=True, samples=True), self.moments[name]
            for answers, some in zip(found.values(), asked, strict=True):
                if some:
                    told = self.answer(rest, some, setting, full=True)
                    answers.append((told, unless_ending(told, ending)))
        return {
            when: (joined(told for told, _ in answers), np.concatenate([untold for _, untold in answers]))
            for when, answers in found.items()
        }

    def leave_one_out(self, names: Iterable[str], setting: Setting, *, full: bool) -> Forecasts:
        """Answers about each video's samples by models fitted on all the others."""
        names = sorted(names)
        return joined(
            self.forecast(set(names) - {name}, [name], setting, full=full)
            for name in names
            if self.named([name], full=full, samples=True)
        )


def fit_ensemble(
    study: Study,
    names: Sequence[str],
    chosen: Mapping[bool, Setting] = CHOSEN,
    sets: Mapping[bool, float] = SET_FROM,
) -> EnsembleFile:
    """Both heads fitted on the videos `names`; without the full one where none of them has instrument rows."""
    seen = study.named(names, full=True, samples=False)
    return EnsembleFile(
        version=SCHEMA,
        statement=STATEMENT.format(videos=len(names)),
        actions=ACTIONS,
        instruments=INSTRUMENTS,
        labels=fit_head(study.named(names, full=False, samples=False), chosen[False], full=False, set_from=sets[False]),
        full=fit_head(seen, chosen[True], full=True, set_from=sets[True]) if seen else None,
        ending=study.ending(names) if seen else None,
    )


def joined(parts: Iterable[Forecasts]) -> Forecasts:
    """All answers one after the other."""
    parts = list(parts)
    return Forecasts(
        tuple(one for part in parts for one in part.asked),
        np.concatenate([part.own for part in parts]),
        np.concatenate([part.back_off for part in parts]),
        np.concatenate([part.probabilities for part in parts]),
    )


def log_loss(probabilities: Matrix, targets: NDArray[np.intp]) -> float:
    """Mean negative log probability of what came, in nats."""
    return float(-np.log(np.maximum(probabilities[np.arange(len(targets)), targets], 1e-3)).mean())


def ranks(probabilities: Matrix, targets: NDArray[np.intp]) -> NDArray[np.intp]:
    """Place of what came in the ranking, from 0, (n,)."""
    order = np.argsort(-probabilities, axis=1, kind="stable")
    places: NDArray[np.intp] = np.argmax(order == targets[:, None], axis=1)
    return places


def line(probabilities: Matrix, targets: NDArray[np.intp]) -> str:
    """Accuracy, log loss and calibration errors in one line, and what chance alone makes of the last one."""
    place = ranks(probabilities, targets)
    top = "/".join(f"{100 * float((place < k).mean()):.1f}" for k in (1, 2, 3))
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :3]
    ranked = [
        (float(probabilities[row, action]), bool(action == targets[row]))
        for row in range(len(targets))
        for action in order[row]
    ]
    stated = probabilities.max(1)
    first = list(zip(stated.tolist(), (place == 0).tolist(), strict=True))
    chance = expected_ece(stated.tolist())
    return (
        f"top-1/2/3 {top} %, log loss {log_loss(probabilities, targets):.3f}, calibration error "
        f"{statistical.calibration_error(ranked):.3f} (top-1 {statistical.calibration_error(first):.3f}, by chance alone "
        f"{chance.value:.3f}, up to {chance.high:.3f}; stated {100 * float(stated.mean()):.1f} %), "
        f"macro-F1 {100 * macro_f1(order[:, 0], targets):.1f}, n={len(targets)}"
    )


def macro_f1(predicted: NDArray[np.intp], targets: NDArray[np.intp]) -> float:
    """Mean F1 over the actions that came."""
    scores = []
    for action in sorted(set(targets.tolist())):
        both = int(((predicted == action) & (targets == action)).sum())
        scores.append(2 * both / (int((predicted == action).sum()) + int((targets == action).sum())))
    return sum(scores) / len(scores)


def errors(found: Forecasts) -> str:
    """What was taken for what, the commonest first, and how often the two rare actions were foreseen."""
    said = found.probabilities.argmax(1)
    wrong = Counter(
        f"after {(one.history or ('the start',))[-1]} {ACTIONS[one.target]} taken for {ACTIONS[guess]}"
        for one, guess in zip(found.asked, said.tolist(), strict=True)
        if guess != one.target
    )
    rare = np.isin(found.targets, [ACTIONS.index("Coagulation"), ACTIONS.index("Aspiration")])
    listed = ", ".join(f"{kind} {count}" for kind, count in wrong.most_common(4))
    return (
        f"{wrong.total()} errors: {listed}; {int((said == found.targets)[rare].sum())} of {int(rare.sum())} "
        "coagulations and aspirations foreseen"
    )


def gain(found: Forecasts, *, draws: int = 2000) -> str:
    """Top-1 beyond the n-gram's, in points, with the 95 % interval of a paired bootstrap over videos."""
    targets = found.targets
    better = (ranks(found.probabilities, targets) == 0) * 1.0 - (ranks(found.back_off, targets) == 0)
    groups: dict[str, list[float]] = defaultdict(list)
    for one, value in zip(found.asked, better, strict=True):
        groups[one.video].append(float(value))
    sums = np.array([[sum(values), len(values)] for values in groups.values()])
    drawn = np.random.default_rng(0).integers(0, len(sums), (draws, len(sums)))
    totals = sums[drawn].sum(1)
    low, high = np.percentile(100 * totals[:, 0] / totals[:, 1], [2.5, 97.5])
    return (
        f"top-1 beyond the n-gram: {100 * better.mean():+.1f} points, 95 % interval {low:+.1f} to {high:+.1f} by video"
    )


def risk_coverage(found: Forecasts) -> str:
    """Top-1 accuracy among the most confident answers, and the area under the risk-coverage curve."""
    confidence = found.probabilities.max(1)
    right = ranks(found.probabilities, found.targets) == 0
    order = np.argsort(-confidence, kind="stable")
    cells = []
    for share in (1.0, 0.9, 0.8, 0.7, 0.5):
        kept = order[: max(1, round(share * len(order)))]
        cells.append(f"{100 * share:.0f} %: {100 * right[kept].mean():.1f} (from {confidence[kept].min():.2f} on)")
    wrong = np.cumsum(~right[order]) / np.arange(1, len(order) + 1)
    return f"{', '.join(cells)}; area under risk-coverage {wrong.mean():.3f}, blind {1 - right.mean():.3f}"


@dataclass(frozen=True, slots=True)
class Conformal:
    """The sets {a: p(a) ≥ set_from}.

    Attributes:
        level: Share of what came that may lie below the threshold, over all.
        set_from: The threshold.
        covered: How often the set held what came.
        worst: The same in the worst of five groups of videos, averaged over the shuffles.
        size: Actions in a set.
    """

    level: float
    set_from: float
    covered: float
    worst: float
    size: float

    def __str__(self) -> str:
        return (
            f"level {self.level:g}, from probability {self.set_from:.3f}: {100 * self.covered:.1f} % covered, "
            f"{100 * self.worst:.1f} % in the worst of five groups of videos, {self.size:.2f} actions"
        )


def conformal(found: Forecasts) -> list[Conformal]:
    """Cross-conformal sets at every level of `LEVELS`, the widest last.

    Coverage is measured on groups of videos whose threshold comes from the others; the threshold is that of all of them.
    """
    scores = found.probabilities[np.arange(len(found.asked)), found.targets]
    videos = np.array([one.video for one in found.asked])
    made = []
    for level in LEVELS:
        covered, worst, sizes = [], [], []
        for seed in range(SHUFFLES):
            shares = []
            for part in statistical.folds(sorted(set(videos.tolist())), seed=seed):
                held = np.isin(videos, part)
                least = quantile(scores[~held], level)
                shares.append(float((scores[held] >= least).mean()))
                covered.extend((scores[held] >= least).tolist())
                sizes.extend((found.probabilities[held] >= max(least, 1e-9)).sum(1).tolist())
            worst.append(min(shares))
        made.append(
            Conformal(
                level, quantile(scores, level), float(np.mean(covered)), float(np.mean(worst)), float(np.mean(sizes))
            )
        )
    return made


def quantile(scores: Matrix, level: float) -> float:
    """The finite-sample quantile of split conformal prediction: at most `level` of new draws lie below it on average."""
    lowest = math.floor(level * (len(scores) + 1))
    return float(np.sort(scores)[lowest - 1]) if lowest else 0.0


def narrowest(made: Sequence[Conformal]) -> Conformal:
    """The smallest sets that cover `COVERAGE` in the worst group; the widest if none does."""
    return next((one for one in made if one.worst >= COVERAGE), made[-1])


def held_to(found: Forecasts, set_from: float) -> str:
    """What sets from a given threshold on cover, by group of five and by current action."""
    scores = found.probabilities[np.arange(len(found.asked)), found.targets] >= set_from
    videos = np.array([one.video for one in found.asked])
    current = np.array([(one.history or ("",))[-1] for one in found.asked])
    groups = [float(scores[np.isin(videos, part)].mean()) for part in statistical.folds(sorted(set(videos.tolist())))]
    acting = [
        f"{action} {100 * scores[current == action].mean():.0f}" for action in ACTIONS if (current == action).any()
    ]
    sizes = np.maximum((found.probabilities >= set_from).sum(1), 1)
    return (
        f"{100 * scores.mean():.1f} % covered (five groups {'/'.join(f'{100 * share:.0f}' for share in groups)}; "
        f"after {', '.join(acting)}), {sizes.mean():.2f} actions"
    )


def run(
    videos: Videos, signals: Path, out: Path | None, training: Sequence[str], *, order: int, concentration: float
) -> None:
    """Print every table and write the model."""
    rows = load_rows(signals, videos)
    study = Study(videos, rows, order=order, concentration=concentration)
    chosen: dict[bool, Setting] = {}
    sets: dict[bool, float] = {}
    for full, name in ((False, "labels and time"), (True, "with instrument rows")):
        able = [video for video in training if not full or video in rows]
        print(f"model over the memory, {name}: nested leave-one-video-out, {len(able)} training videos")
        found = joined(study.nested(able, full=full))
        print(f"  samples           {line(found.probabilities, found.targets)}")
        print(f"  the n-gram there  {line(found.back_off, found.targets)}")
        print(f"  {gain(found)}")
        print(f"  {errors(found)}")
        print(f"  accuracy by coverage  {risk_coverage(found)}")
        made = conformal(found)
        sets[full] = round(narrowest(made).set_from, 3)
        for one in made:
            print(f"  sets{' (chosen)' if one is narrowest(made) else ''}: {one}")
        chosen[full] = study.choose(able, full=full)
        print(f"  chosen: {chosen[full]}, sets from {sets[full]}")
        every = joined(
            study.forecast(set(able) - set(part), part, chosen[full], full=full, samples=False)
            for part in statistical.folds(able)
        )
        print(f"  every clip, chosen setting  {line(every.probabilities, every.targets)}")
        print(f"  every clip, the n-gram      {line(every.back_off, every.targets)}")
        if full:
            _without_instruments(study, able, chosen)
            _live(study, able, chosen[True])
        for count in (9, 18, 27):
            if count < len(able):
                print(f"  learning curve, {count:2d} videos  {_learning(study, able, chosen[full], count, full=full)}")
    file = fit_ensemble(study, training, chosen, sets)
    print("reports: nothing was chosen by these")
    for full, name in ((False, "labels and time"), (True, "with instrument rows")):
        everyone = [video for video in videos if not full or video in rows]
        found = study.leave_one_out(everyone, chosen[full], full=full)
        print(f"  {name}, leave-one-video-out over {len(everyone)}: {line(found.probabilities, found.targets)}")
        print(f"  {name}, the n-gram there: {line(found.back_off, found.targets)}")
        print(f"  {name}, {gain(found)}")
        print(f"  {name}, sets: {held_to(found, sets[full])}")
        print(f"  {name}, accuracy by coverage: {risk_coverage(found)}")
    tested = study.forecast(training, TEST_VIDEOS, chosen[False], full=False)
    print(f"  test samples, labels and time         {line(tested.probabilities, tested.targets)}")
    seen = [video for video in TEST_VIDEOS if video in rows]
    partly = study.forecast([video for video in training if video in rows], seen, chosen[True], full=True)
    print(f"  test samples with instrument rows     {line(partly.probabilities, partly.targets)}")
    blind = study.forecast(training, TEST_VIDEOS - set(seen), chosen[False], full=False)
    both = joined([partly, blind]) if blind.asked else partly
    print(f"  all test samples, rows where there are {line(both.probabilities, both.targets)}")
    if out is not None:
        out.write_bytes(msgspec.json.encode(file) + b"\n")
        print(f"wrote {out}")


def _without_instruments(study: Study, able: Sequence[str], chosen: Mapping[bool, Setting]) -> None:
    """The same questions to the head that sees no instruments: what is lost when they fail."""
    found = joined(
        study.forecast(set(able) - set(part), part, chosen[False], full=False) for part in statistical.folds(able)
    )
    print(f"  the same samples, instruments withheld  {line(found.probabilities, found.targets)}")


def _live(study: Study, able: Sequence[str], setting: Setting) -> None:
    """What the planner says live, where nobody tells when an action ends, beside one that takes it to end always."""
    for when, (told, untold) in study.live(able, setting).items():
        answers = {"told": told.probabilities, "not told": untold, "n-gram": told.back_off}
        for name, probabilities in answers.items():
            print(f"  live, {when}, {name:8}  {line(probabilities, told.targets)}")


def _learning(study: Study, able: Sequence[str], setting: Setting, count: int, *, full: bool) -> str:
    """Leave-one-video-out with only `count` of the other videos, chosen by a fixed draw."""
    drawn = []
    for index, name in enumerate(able):
        if study.named([name], full=full, samples=True):
            others = sorted(set(able) - {name})
            taught = np.random.default_rng(index).permutation(others)[:count].tolist()
            drawn.append(study.forecast(taught, [name], setting, full=full))
    found = joined(drawn)
    return line(found.probabilities, found.targets)
