"""Fits the model over the structured memory (planner/ensemble.py), and says how well it foresees.

    python -m stream_agent.training.statistical --sap ../shared/data/sap/total_video_info.json \
        --signals ../shared/data/cholec80/phase_tool_1hz --out configs/procedures/cholecystectomy/planner.json

Annotated clips and 1 Hz instrument rows are replayed, strictly before each target begins, into the `Memory` that the agent
would hold, and read by the agent's own feature code. Settings are chosen by the log loss of 5-fold cross-validation by
video on samples of the training videos, again without each video where figures are nested. Two tables are reports of
the fixed settings, refitted without the videos asked about, and nothing was chosen by them: leave-one-video-out over all
videos, and the test samples. Every run gives the same bytes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_agent.evaluation.dataset import INSTRUMENTS, TEST_VIDEOS, SapClip, load_signals
from stream_agent.instrument_use import InstrumentUseTracker
from stream_agent.messages import Clip, Memory
from stream_agent.planner.ensemble import SCHEMA, EnsembleFile, Forest, Head, HeadFile, Linear
from stream_agent.planner.features import instrument_features, instrument_names, label_features, label_names
from stream_agent.planner.ngram import NgramModel
from stream_agent.training import statistical

ACTIONS: Final = statistical.ACTIONS
TREES: Final = 40
SHARES: Final = (0.1, 0.2, 0.3, 0.5)
SHARPNESSES: Final = (0.8, 1.0, 1.2, 1.5, 1.8)
COVERAGE: Final = 0.9

STATEMENT: Final = (
    "Forests and logistic models over label history, times and instrument use, fitted on {videos} videos of CholecT50-SAP "
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
    """

    video: str
    history: tuple[str, ...]
    target: int
    is_sample: bool
    labels: list[float]
    instruments: list[float] | None


@dataclass(frozen=True, slots=True)
class Setting:
    """What cross-validation chooses: weight of a sample among all clips, fewest examples in a leaf, inverse penalty."""

    sample_weight: float
    leaf: int
    inverse_penalty: float
    share: float = 0.2
    sharpness: float = 1.0


SETTINGS: Final = (
    Setting(3.0, 4, 0.01),
    Setting(3.0, 8, 0.01),
    Setting(5.0, 8, 0.003),
)


CHOSEN: Final = {False: Setting(5.0, 8, 0.003, share=0.2), True: Setting(3.0, 4, 0.01, share=0.1)}
"""What `Study.choose` finds on the 35 training videos, by whether instruments are seen: for refits without some of them."""


def examples(clips: Sequence[SapClip], rows: Sequence[Sequence[int]] | None, *, noisy: bool = True) -> list[Example]:
    """Every clip of one video as a question; `noisy` histories are the published ones, with recognised labels."""
    found: list[Example] = []
    tracker = InstrumentUseTracker(len(INSTRUMENTS))
    fed = 0
    for place, clip in enumerate(clips):
        while rows is not None and fed < min(clip.start_s, len(rows)):
            tracker.observe(rows[fed], pts_s=float(fed), step_s=1.0 if fed else 0.0)
            fed += 1
        past = clips[:place]
        labels = tuple(
            (before.action_reg if noisy and index < place - 1 else before.action) for index, before in enumerate(past)
        )
        memory = Memory(
            stream_id="",
            session_id="",
            case_id=clip.video,
            now_pts_s=float(max(0, clip.start_s - 1)),
            clips=tuple(
                Clip(label, float(before.start_s), float(after.start_s), 1.0)
                for label, before, after in zip(labels, past, past[1:], strict=False)
            ),
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
            )
        )
    return found


def load_rows(signals: Path, videos: Iterable[str]) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Instrument rows of the videos that have a file."""
    paths = {video: signals / f"video{int(video.removeprefix('VID')):02d}.csv" for video in videos}
    return {video: load_signals(path)[1] for video, path in paths.items() if path.is_file()}


def matrix(asked: Sequence[Example], *, full: bool) -> Matrix:
    """Features, (examples, features)."""
    return np.array([one.labels + (one.instruments or [] if full else []) for one in asked])


def fit_head(taught: Sequence[Example], setting: Setting, *, full: bool) -> HeadFile:
    """One head fitted on all of `taught`."""
    from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression

    x, y = matrix(taught, full=full), np.array([one.target for one in taught])
    weight = np.array([setting.sample_weight if one.is_sample else 1.0 for one in taught])
    mean, scale = x.mean(0), x.std(0) + 1e-3
    logistic = LogisticRegression(C=setting.inverse_penalty, max_iter=300)
    logistic.fit(np.clip((x - mean) / scale, -5, 5), y, sample_weight=weight)
    forests = []
    for family in (RandomForestClassifier, ExtraTreesClassifier):
        forest = family(n_estimators=TREES, random_state=0, max_features=0.3, min_samples_leaf=setting.leaf)
        forest.fit(x.astype(np.float32), y, sample_weight=weight)
        forests.append(_exported(forest))
    names = label_names(ACTIONS)
    classes = logistic.classes_.tolist()
    weights, bias = np.zeros((len(ACTIONS), x.shape[1])), np.full(len(ACTIONS), -10.0)
    weights[classes], bias[classes] = logistic.coef_, logistic.intercept_
    return HeadFile(
        features=names + instrument_names(INSTRUMENTS) if full else names,
        ngram_share=setting.share,
        sharpness=setting.sharpness,
        linear=Linear(_rounded(mean), _rounded(scale), tuple(_rounded(row) for row in weights), _rounded(bias)),
        forests=tuple(forests),
    )


def _exported(forest: Any) -> Forest:  # noqa: ANN401 - scikit-learn has no types
    roots: list[int] = []
    feature: list[int] = []
    threshold: list[float] = []
    left: list[int] = []
    right: list[int] = []
    leaves: list[tuple[int, ...]] = []
    for estimator in forest.estimators_:
        tree, first = estimator.tree_, len(feature)
        roots.append(first)
        for node in range(tree.node_count):
            if tree.children_left[node] < 0:
                share = np.zeros(len(ACTIONS))
                share[forest.classes_.astype(int)] = tree.value[node][0] / tree.value[node][0].sum()
                leaves.append(tuple(int(value) for value in np.rint(1000 * share)))
                feature.append(-1)
                threshold.append(0.0)
                left.append(len(leaves) - 1)
                right.append(0)
            else:
                feature.append(int(tree.feature[node]))
                threshold.append(round(float(tree.threshold[node]), 4))
                left.append(first + int(tree.children_left[node]))
                right.append(first + int(tree.children_right[node]))
    return Forest(tuple(roots), tuple(feature), tuple(threshold), tuple(left), tuple(right), tuple(leaves))


def _rounded(values: Matrix) -> tuple[float, ...]:
    return tuple(round(float(value), 5) for value in values)


@dataclass(frozen=True, slots=True, eq=False)
class Forecasts:
    """Answers to questions.

    Attributes:
        asked: The questions, (n,).
        own: A head's own distribution over all actions, (n, actions).
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
    allowed = back_off > 0
    kept = np.where(allowed, own, 0.0)
    kept = kept / kept.sum(1, keepdims=True)
    powers = np.where(allowed, np.maximum((1 - share) * kept + share * back_off, 1e-6) ** sharpness, 0.0)
    whole: Matrix = powers / powers.sum(1, keepdims=True)
    return whole


class Study:
    """All questions of all videos, and models fitted on some of them."""

    def __init__(self, videos: Videos, rows: Rows, *, order: int, concentration: float) -> None:
        self.videos = videos
        self._order, self._concentration = order, concentration
        self.asked = {name: examples(clips, rows.get(name)) for name, clips in videos.items()}

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
        taught = list(taught)
        asked = self.named(tested, full=full, samples=samples)
        head = Head(fit_head(self.named(taught, full=full, samples=False), setting, full=full), len(ACTIONS))
        file = statistical.count(self.videos, taught, order=self._order, concentration=self._concentration)
        ngram = NgramModel(file)
        own = np.array([head.probabilities(row) for row in matrix(asked, full=full).tolist()]).reshape(-1, len(ACTIONS))
        answers = [ngram.next_probabilities(one.history) for one in asked]
        back_off = np.array([[answer.get(action, 0.0) for action in ACTIONS] for answer in answers])
        back_off = back_off.reshape(-1, len(ACTIONS))
        probabilities = mixed(own, back_off, share=setting.share, sharpness=setting.sharpness)
        return Forecasts(tuple(asked), own, back_off, probabilities)

    def choose(self, names: Iterable[str], *, full: bool) -> Setting:
        """The setting with the least cross-validated log loss over samples; the first on a tie."""
        names = sorted(names)
        losses: dict[Setting, float] = {}
        for base in SETTINGS:
            found = joined(
                self.forecast(set(names) - set(part), part, base, full=full) for part in statistical.folds(names)
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

    def leave_one_out(self, names: Iterable[str], setting: Setting, *, full: bool) -> Forecasts:
        """Answers about each video's samples by models fitted on all the others."""
        names = sorted(names)
        return joined(
            self.forecast(set(names) - {name}, [name], setting, full=full)
            for name in names
            if self.named([name], full=full, samples=True)
        )


def fit_ensemble(study: Study, names: Sequence[str], chosen: Mapping[bool, Setting] = CHOSEN) -> EnsembleFile:
    """Both heads fitted on the videos `names`; without the full one where none of them has instrument rows."""
    seen = study.named(names, full=True, samples=False)
    return EnsembleFile(
        version=SCHEMA,
        statement=STATEMENT.format(videos=len(names)),
        actions=ACTIONS,
        instruments=INSTRUMENTS,
        labels=fit_head(study.named(names, full=False, samples=False), chosen[False], full=False),
        full=fit_head(seen, chosen[True], full=True) if seen else None,
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
    """Accuracy, log loss and calibration errors in one line."""
    place = ranks(probabilities, targets)
    top = "/".join(f"{100 * float((place < k).mean()):.1f}" for k in (1, 2, 3))
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :3]
    ranked = [
        (float(probabilities[row, action]), bool(action == targets[row]))
        for row in range(len(targets))
        for action in order[row]
    ]
    first = [(float(probabilities[row].max()), bool(place[row] == 0)) for row in range(len(targets))]
    return (
        f"top-1/2/3 {top} %, log loss {log_loss(probabilities, targets):.3f}, calibration error "
        f"{statistical.calibration_error(ranked):.3f} (top-1 {statistical.calibration_error(first):.3f}), "
        f"macro-F1 {100 * macro_f1(order[:, 0], targets):.1f}, n={len(targets)}"
    )


def macro_f1(predicted: NDArray[np.intp], targets: NDArray[np.intp]) -> float:
    """Mean F1 over the actions that came."""
    scores = []
    for action in sorted(set(targets.tolist())):
        both = int(((predicted == action) & (targets == action)).sum())
        scores.append(2 * both / (int((predicted == action).sum()) + int((targets == action).sum())))
    return sum(scores) / len(scores)


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
    """Top-1 accuracy among the most confident answers."""
    confidence = found.probabilities.max(1)
    right = ranks(found.probabilities, found.targets) == 0
    order = np.argsort(-confidence, kind="stable")
    cells = []
    for share in (1.0, 0.9, 0.8, 0.7, 0.5):
        kept = order[: max(1, round(share * len(order)))]
        cells.append(f"{100 * share:.0f} %: {100 * right[kept].mean():.1f} (from {confidence[kept].min():.2f} on)")
    return ", ".join(cells)


def conformal(parts: Sequence[Forecasts]) -> str:
    """Coverage and size of the sets {a: p(a) ≥ t}, t fitted on the other folds so that each of them is covered."""
    scores = [part.probabilities[np.arange(len(part.asked)), part.targets] for part in parts]

    def threshold(values: Matrix) -> float:
        """The finite-sample quantile of split conformal prediction: at most 10 % of a new draw lies below."""
        lowest = math.floor((1 - COVERAGE) * (len(values) + 1))
        return float(np.sort(values)[lowest - 1]) if lowest else 0.0

    cells = []
    for name, pooled in (("pooled", True), ("strictest fold", False)):
        covered, sizes = [], []
        for held, part in enumerate(parts):
            others = [score for index, score in enumerate(scores) if index != held]
            least = threshold(np.concatenate(others)) if pooled else min(threshold(score) for score in others)
            covered.append(float((scores[held] >= least).mean()))
            sizes.extend((part.probabilities >= max(least, 1e-9)).sum(1).tolist())
        shares = "/".join(f"{100 * share:.0f}" for share in covered)
        every = sum(share * len(score) for share, score in zip(covered, scores, strict=True)) / sum(map(len, scores))
        cells.append(f"{name} threshold: {100 * every:.1f} % (folds {shares}), {sum(sizes) / len(sizes):.2f} actions")
    return "; ".join(cells)


def run(
    videos: Videos, signals: Path, out: Path | None, training: Sequence[str], *, order: int, concentration: float
) -> None:
    """Print every table and write the model."""
    rows = load_rows(signals, videos)
    study = Study(videos, rows, order=order, concentration=concentration)
    chosen: dict[bool, Setting] = {}
    for full, name in ((False, "labels and time"), (True, "with instrument rows")):
        able = [video for video in training if not full or video in rows]
        print(f"model over the memory, {name}: nested leave-one-video-out, {len(able)} training videos")
        parts = study.nested(able, full=full)
        found = joined(parts)
        print(f"  samples           {line(found.probabilities, found.targets)}")
        print(f"  the n-gram there  {line(found.back_off, found.targets)}")
        print(f"  {gain(found)}")
        print(f"  accuracy by coverage  {risk_coverage(found)}")
        print(f"  conformal sets    {conformal(parts)}")
        chosen[full] = study.choose(able, full=full)
        print(f"  chosen: {chosen[full]}")
        every = joined(
            study.forecast(set(able) - set(part), part, chosen[full], full=full, samples=False)
            for part in statistical.folds(able)
        )
        print(f"  every clip, chosen setting  {line(every.probabilities, every.targets)}")
        print(f"  every clip, the n-gram      {line(every.back_off, every.targets)}")
        if full:
            _without_instruments(study, able, chosen)
        for count in (9, 18, 27):
            if count < len(able):
                print(f"  learning curve, {count:2d} videos  {_learning(study, able, chosen[full], count, full=full)}")
    file = fit_ensemble(study, training, chosen)
    print("reports: nothing was chosen by these")
    for full, name in ((False, "labels and time"), (True, "with instrument rows")):
        everyone = [video for video in (*training, *sorted(TEST_VIDEOS)) if not full or video in rows]
        found = study.leave_one_out(everyone, chosen[full], full=full)
        print(f"  {name}, leave-one-video-out over {len(everyone)}: {line(found.probabilities, found.targets)}")
        print(f"  {name}, the n-gram there: {line(found.back_off, found.targets)}")
        print(f"  {name}, {gain(found)}")
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
