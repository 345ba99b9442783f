"""The fitted model over the structured memory: a multinomial logistic model and, where it has one, a forest per head.

Two heads see different features (planner/features.py): `labels` looks at clips and time, `full` at the use of instruments,
and answers only where instruments were observed. With f the forest (mean leaf distribution over all trees) and l the
logistic model, each without the current action and made to sum to 1, q the n-gram's distribution, w the linear share and
s the n-gram's share, a head says

    p(a) ∝ ((1 - s) ((1 - w) f(a) + w l(a)) + s q(a)) ** sharpness,   a ≠ current

No head sees which action is going on as a feature: it only rules that action out. What follows retraction and what follows
clipping then inform each other, which foresees better (docs/model_card_statistical.md).

So far the action is taken to end now. Live nobody says so, and in the middle of an action instruments tell what is going on
rather than what comes next. Where instruments were observed, a logistic model per current action therefore says how much a
moment looks like an action's end rather than any second of it, each kind being as likely beforehand: e. The answer then is

    e p(a) + (1 - e) q(a)

which is what follows from both kinds of moments if q is right in the middle of an action. The file is JSON of numbers, checked
before use; nothing in it is run.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_agent.errors import ConfigError
from stream_agent.located_yaml import read_text
from stream_agent.messages import Memory
from stream_agent.planner.features import instrument_features, instrument_names, label_features, label_names, spoken

SCHEMA: Final = 3
_WITHOUT_ENDING: Final = 2
"""Files of this version say nothing of endings; they are read as well."""

FILE_NAME: Final = "ensemble.json"
MOST_BYTES: Final = 1_000_000
_FARTHEST: Final = 5.0
_LEAST: Final = 1e-4  # so that an action that no leaf knows keeps a probability
_LOOKED_AT: Final = 12
_SUREST: Final = 30.0

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Forest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Trees end to end, nodes in one list; a leaf has feature -1.

    Attributes:
        roots: First node of each tree.
        feature: Feature compared per node, -1 at a leaf.
        threshold: Left when the feature is at most this.
        left: Node to the left; at a leaf, its row of `leaves`. The right child follows as `right`.
        right: Node to the right; 0 at a leaf.
        leaves: Per mille per action at each leaf.
    """

    roots: tuple[int, ...]
    feature: tuple[int, ...]
    threshold: tuple[float, ...]
    left: tuple[int, ...]
    right: tuple[int, ...]
    leaves: tuple[tuple[int, ...], ...]


class Linear(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """softmax(weights (x - mean) / scale + bias), the standardised features cut off at 5."""

    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]
    bias: tuple[float, ...]


class HeadFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One head.

    Attributes:
        features: Names of what it looks at, among those of planner/features.py.
        ngram_share: s of the formula above.
        linear_share: w of the formula above; 1 for a head without a forest.
        sharpness: The exponent; above 1 the likely becomes likelier.
        set_from: Actions from this probability on are the conformal set: fitted so that in each group of videos it holds
            what came in 90 % of the cases or more.
        linear: The logistic model.
        forest: The trees; None for none.
    """

    features: tuple[str, ...]
    ngram_share: Share
    linear_share: Share
    sharpness: Annotated[float, msgspec.Meta(gt=0, le=10)]
    set_from: Share
    linear: Linear
    forest: Forest | None


class Ending(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much a moment looks like the end of the current action.

    Attributes:
        features: Names of what it looks at, among those of the `full` head.
        linear: One row of weights and one bias per action; those of the current action are used.
    """

    features: tuple[str, ...]
    linear: Linear


class EnsembleFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What `ensemble.json` holds."""

    version: int
    statement: Annotated[str, msgspec.Meta(min_length=1, max_length=4000)]
    actions: tuple[str, ...]
    instruments: tuple[str, ...]
    labels: HeadFile
    full: HeadFile | None = None
    ending: Ending | None = None


class Head:
    """One head, ready to answer."""

    def __init__(self, file: HeadFile, actions: int) -> None:
        """Check and index `file`.

        Raises:
            ConfigError: Its parts contradict each other.
        """
        _check(file, actions)
        self.file = file
        self._mean = np.array(file.linear.mean)
        self._scale = np.array(file.linear.scale)
        self._weights = np.array(file.linear.weights)
        self._bias = np.array(file.linear.bias)
        self._trees = None if file.forest is None else _Trees(file.forest)

    def probabilities(self, features: Sequence[float], allowed: NDArray[np.bool_]) -> NDArray[np.float64]:
        """The members' weighted mean over the allowed actions, (actions,); 0 for the others."""
        x = np.array(features)
        scores = np.where(allowed, self._weights @ self._standard(x) + self._bias, -np.inf)
        powers: NDArray[np.float64] = np.exp(scores - scores.max())
        linear: NDArray[np.float64] = powers / powers.sum()
        if self._trees is None:
            return linear
        seen = np.where(allowed, self._trees.probabilities(x) + _LEAST, 0.0)
        share = self.file.linear_share
        mean: NDArray[np.float64] = (1 - share) * seen / seen.sum() + share * linear
        return mean

    def pull(self, features: Sequence[float], action: int) -> NDArray[np.float64]:
        """What each feature adds to the linear score of `action` beyond its mean over all actions, (features,)."""
        weights: NDArray[np.float64] = self._weights[action] - self._weights.mean(0)
        return weights * self._standard(np.array(features))

    def _standard(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        standard: NDArray[np.float64] = np.clip((x - self._mean) / self._scale, -_FARTHEST, _FARTHEST)
        return standard


class Ensemble:
    """Both heads; nothing about it changes."""

    def __init__(self, file: EnsembleFile, *, digest: str = "") -> None:
        """Check and index `file`.

        Raises:
            ConfigError: Its parts contradict each other or are for other features than are read here.
        """
        if file.version not in (SCHEMA, _WITHOUT_ENDING):
            raise ConfigError(
                f"version={file.version} is none of {_WITHOUT_ENDING} and {SCHEMA}, which are read here; fit the model again"
            )
        names = label_names(file.actions)
        self._places = {
            "labels": _places("labels", file.labels.features, names),
            "full": []
            if file.full is None
            else _places("full", file.full.features, names + instrument_names(file.instruments)),
        }
        self.file = file
        self.digest = digest
        self.labels = Head(file.labels, len(file.actions))
        self.full = None if file.full is None else Head(file.full, len(file.actions))
        if file.ending is not None and file.full is None:
            raise ConfigError("ending looks at what the full head does, which is missing; fit the model again")
        self._ending = None
        if file.ending is not None and file.full is not None:
            self._ending = EndingModel(file.ending, file.full.features, file.actions)

    def head(self, memory: Memory) -> tuple[Head, list[float]]:
        """The head that fits what `memory` holds, and the features it looks at."""
        features = label_features(memory, self.file.actions)
        if self.full is None or not memory.instrument_use:
            return self.labels, [features[place] for place in self._places["labels"]]
        features += instrument_features(memory, self.file.instruments)
        return self.full, [features[place] for place in self._places["full"]]

    def probabilities(self, memory: Memory, back_off: Mapping[str, float]) -> dict[str, float]:
        """Probability of each action of `back_off` (the n-gram's answer, without the current action); sums to 1."""
        return self.mixed(*self.head(memory), back_off)

    def mixed(self, head: Head, features: Sequence[float], back_off: Mapping[str, float]) -> dict[str, float]:
        """A head's answer about the actions of `back_off`, with the n-gram's share, sharpened."""
        allowed = np.array([action in back_off for action in self.file.actions])
        own = dict(zip(self.file.actions, head.probabilities(features, allowed).tolist(), strict=True))
        share, sharpness = head.file.ngram_share, head.file.sharpness
        powers = {
            action: max((1 - share) * own[action] + share * prior, 1e-6) ** sharpness
            for action, prior in back_off.items()
        }
        total = math.fsum(powers.values())
        return {action: power / total for action, power in powers.items()}

    def unless_ending(
        self,
        memory: Memory,
        head: Head,
        features: Sequence[float],
        told: Mapping[str, float],
        back_off: Mapping[str, float],
    ) -> dict[str, float]:
        """The answer when nobody says that the current action ends now: `told` is `mixed`'s, which takes it to end."""
        if self._ending is None or head is not self.full or memory.current is None:
            return dict(told)
        ending = self._ending.probability(features, memory.current)
        return {action: ending * told[action] + (1 - ending) * prior for action, prior in back_off.items()}

    def covering(self, head: Head, probabilities: Mapping[str, float]) -> tuple[str, ...]:
        """The conformal set, the likeliest first: never empty, and what comes is in it in 90 % of the cases or more."""
        ranked = sorted(probabilities, key=lambda action: -probabilities[action])
        return tuple(
            action for place, action in enumerate(ranked) if place == 0 or probabilities[action] >= head.file.set_from
        )

    def reasons(self, head: Head, features: Sequence[float], action: str, *, most: int) -> list[str]:
        """Observations that speak for `action` in the head's linear member, the strongest first, with their values."""
        pull = head.pull(features, self.file.actions.index(action))
        strongest = np.argsort(-pull, kind="stable")[:_LOOKED_AT].tolist()
        told = (spoken(head.file.features[place], features[place]) for place in strongest if pull[place] > 0)
        return list(islice(filter(None, told), most))


class EndingModel:
    """`Ending`, ready to answer from the features of the `full` head."""

    def __init__(self, ending: Ending, features: Sequence[str], actions: Sequence[str]) -> None:
        """Check and index `ending`; `features` are those of the head.

        Raises:
            ConfigError: It is not of its features' and actions' size, or looks at what the head does not.
        """
        linear = ending.linear
        _check_linear(linear, len(ending.features), len(actions))
        self._places = _places("ending", ending.features, features)
        self._row = {action: place for place, action in enumerate(actions)}
        self._mean, self._scale = np.array(linear.mean), np.array(linear.scale)
        self._weights, self._bias = np.array(linear.weights), np.array(linear.bias)

    def probability(self, features: Sequence[float], current: str) -> float:
        """That the current action ends now; 1 for an action it does not know."""
        row = self._row.get(current)
        if row is None:
            return 1.0
        x = np.array([features[place] for place in self._places])
        standard = np.clip((x - self._mean) / self._scale, -_FARTHEST, _FARTHEST)
        score = float(self._weights[row] @ standard + self._bias[row])
        return 1.0 / (1.0 + math.exp(-min(max(score, -_SUREST), _SUREST)))


class _Trees:
    """All trees of a forest walked at once; leaves lead to themselves."""

    def __init__(self, forest: Forest) -> None:
        feature = np.array(forest.feature)
        leaf = feature < 0
        own = np.arange(len(feature))
        self._roots = np.array(forest.roots)
        self._feature = np.where(leaf, 0, feature)
        self._threshold = np.array(forest.threshold)
        self._children = np.stack([np.where(leaf, own, forest.right), np.where(leaf, own, forest.left)], axis=1)
        self._row = np.where(leaf, forest.left, 0)
        leaves = np.array(forest.leaves, dtype=np.float64)
        self._leaves = leaves / leaves.sum(1, keepdims=True)
        self._depth = _depth(forest)

    def probabilities(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        node = self._roots
        for _ in range(self._depth):
            below = (x[self._feature[node]] <= self._threshold[node]).astype(np.intp)
            node = self._children[node, below]
        mean: NDArray[np.float64] = self._leaves[self._row[node]].mean(0)
        return mean


def load_ensemble(path: Path) -> Ensemble:
    """The model in an `ensemble.json`.

    Raises:
        ConfigError: It is not one; the file and the remedy are named.
    """
    raw = read_text(path, max_bytes=MOST_BYTES).encode()
    try:
        return Ensemble(msgspec.json.decode(raw, type=EnsembleFile), digest=hashlib.sha256(raw).hexdigest()[:12])
    except (msgspec.DecodeError, RecursionError) as error:
        raise ConfigError(f"{path}:1: {error}; fit the model again") from error
    except ConfigError as error:
        raise ConfigError(f"{path}:1: {error}") from error


def _places(part: str, features: Sequence[str], names: Sequence[str]) -> list[int]:
    """Where each feature of a part of the file is among all that it may look at.

    Raises:
        ConfigError: One of them is not read here.
    """
    places = {name: place for place, name in enumerate(names)}
    unknown = [name for name in features if name not in places]
    if unknown:
        raise ConfigError(f"{part}.features: '{unknown[0]}' is not read here; fit the model again")
    return [places[name] for name in features]


def _depth(forest: Forest) -> int:
    """Steps from a root to the deepest leaf; children come after their parent."""
    depth = [0] * len(forest.feature)
    for node in range(len(depth) - 1, -1, -1):
        if forest.feature[node] >= 0:
            depth[node] = 1 + max(depth[forest.left[node]], depth[forest.right[node]])
    return max(depth)


def _check(file: HeadFile, actions: int) -> None:
    """Refuse numbers that cannot be walked or summed.

    Raises:
        ConfigError: The first that cannot.
    """
    _check_linear(file.linear, len(file.features), actions)
    if file.forest is not None:
        _check_forest(file.forest, len(file.features), actions)


def _check_linear(linear: Linear, width: int, actions: int) -> None:
    rows = (linear.mean, linear.scale, *linear.weights)
    if any(len(row) != width for row in rows) or len(linear.weights) != actions or len(linear.bias) != actions:
        raise ConfigError("a linear model is not of its features' and actions' size; fit the model again")
    if not all(math.isfinite(value) for row in (*rows, linear.bias) for value in row) or min(linear.scale) <= 0:
        raise ConfigError("a linear model holds values that are not finite, or scales of 0; fit the model again")


def _check_forest(forest: Forest, width: int, actions: int) -> None:
    nodes = len(forest.feature)
    if nodes == 0 or not forest.roots or not len(forest.threshold) == len(forest.left) == len(forest.right) == nodes:
        raise ConfigError("a forest's lists are not of one length; fit the model again")
    if not all(0 <= root < nodes for root in forest.roots) or not all(map(math.isfinite, forest.threshold)):
        raise ConfigError("a forest has a root or threshold that is none; fit the model again")
    for node, (feature, left, right) in enumerate(zip(forest.feature, forest.left, forest.right, strict=True)):
        sound = (
            0 <= left < len(forest.leaves)
            if feature == -1
            else 0 <= feature < width and node < left < nodes and node < right < nodes
        )
        if not sound:
            raise ConfigError(f"node {node} of a forest leads nowhere; fit the model again")
    if any(len(leaf) != actions or min(leaf) < 0 or sum(leaf) <= 0 for leaf in forest.leaves):
        raise ConfigError("a leaf is no distribution over the actions; fit the model again")
