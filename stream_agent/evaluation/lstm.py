"""The LSTM of the PS baseline; the only file of the evaluation that needs torch (pip install stream-agent[train])."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from stream_agent.evaluation.dataset import ACTIONS
from stream_agent.evaluation.protocols import NotRunError
from stream_agent.evaluation.samples import Question, Sample
from stream_agent.perception.protocol import THUMBNAIL_HEIGHT, THUMBNAIL_WIDTH
from stream_agent.training.encoder import FEATURES, encode, load_encoder

HIDDEN: Final = 64
EPOCHS: Final = 40
LEARNING_RATE: Final = 1e-3
_SUFFIXES: Final = (".png", ".jpg")

Steps = NDArray[np.float32]

_encoder: Any = None
_features: dict[Path, NDArray[np.float32]] = {}
"""Features per picture file: the encoder is frozen, so every fold shares them."""


class _Lstm(torch.nn.Module):  # type: ignore[misc]
    """(T, features + labels) -> logits of the actions."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(FEATURES + len(ACTIONS), HIDDEN)
        self.head = torch.nn.Linear(HIDDEN, len(ACTIONS))

    def forward(self, steps: Any) -> Any:  # noqa: ANN401
        states, _ = self.lstm(steps)
        return self.head(states[-1])


class LstmModel:
    """Answers from the near frames that are there."""

    def __init__(self, network: _Lstm, frames: Path) -> None:
        self._network = network
        self._frames = frames

    def probabilities(self, question: Question) -> Mapping[str, float] | None:
        """Softmax of the network; None where no near frame is there."""
        steps = _steps(question, self._frames)
        if steps is None:
            return None
        with torch.inference_mode():
            shares = torch.softmax(self._network(torch.from_numpy(steps)), dim=0).tolist()
        return dict(zip(ACTIONS, shares, strict=True))


def fit_lstm(samples: Sequence[Sample], frames: Path) -> LstmModel:
    """Fitted on the samples with at least one near frame under `frames`/VIDnn; the same on every run.

    Raises:
        NotRunError: None has one.
    """
    known = [
        (steps, ACTIONS.index(sample.target))
        for sample in samples
        if (steps := _steps(sample.question, frames)) is not None
    ]
    if not known:
        raise NotRunError(
            f"{frames} holds no near frame of a training video; name the folder that holds VIDnn/nnnnnn.png"
        )
    torch.manual_seed(0)
    network = _Lstm()
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
    order = np.random.default_rng(0)
    for _ in range(EPOCHS):
        for place in order.permutation(len(known)):
            steps, target = known[place]
            loss = torch.nn.functional.cross_entropy(network(torch.from_numpy(steps)), torch.tensor(target))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return LstmModel(network.eval(), frames)


def _steps(question: Question, frames: Path) -> Steps | None:
    """Features of the near frames that are there, each with the current label, (T, features + labels)."""
    paths = [
        path
        for second in question.near_frames_s
        for suffix in _SUFFIXES
        if (path := frames / question.video / f"{second:06d}{suffix}").is_file()
    ]
    if not paths:
        return None
    label = np.zeros(len(ACTIONS), dtype=np.float32)
    if question.current in ACTIONS:
        label[ACTIONS.index(question.current)] = 1
    return np.stack([np.concatenate([_picture(path), label]) for path in paths])


def _picture(path: Path) -> NDArray[np.float32]:
    global _encoder
    if path not in _features:
        if _encoder is None:
            _encoder = load_encoder()
        picture = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
        if picture is None:
            raise NotRunError(f"{path} is no picture; copy it again or remove it")
        small = cv2.resize(picture, (THUMBNAIL_WIDTH, THUMBNAIL_HEIGHT), interpolation=cv2.INTER_AREA)
        _features[path] = encode(_encoder, [small.astype(np.uint8)])[0].astype(np.float32)
    return _features[path]
