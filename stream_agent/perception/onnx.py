"""A recogniser for pixels: one ONNX model from the reduced picture to instruments, actions and out-of-body.

The model takes `thumbnail`, (1, 224, 320, 3) uint8 RGB, and gives `instruments`, `actions` and `out_of_body` as
probabilities, (1, n) float32. Its metadata names the actions and instruments, so that a model of another procedure is
refused instead of misread. ONNX Runtime releases the GIL while it runs.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from stream_agent.errors import ConfigError
from stream_agent.messages import Evidence, FrameHeader
from stream_agent.perception.protocol import THUMBNAIL_HEIGHT, THUMBNAIL_WIDTH, Thumbnail

INPUT: Final = "thumbnail"
OUTPUTS: Final = ("instruments", "actions", "out_of_body")
REMEDY: Final = "rebuild it with run_agent.py train recogniser, or set recogniser.model=FILE"
_SHAPE: Final = [1, THUMBNAIL_HEIGHT, THUMBNAIL_WIDTH, 3]


class OnnxRecogniser:
    """Evidence from the reduced picture; warmed up when built.

    Attributes:
        digest: sha256 of the model file.
    """

    name: str = "onnx"

    def __init__(
        self, model: Path, *, actions: tuple[str, ...], instruments: tuple[str, ...], threads: int = 1
    ) -> None:
        """Load and check a model, then run it once: the first call allocates and takes many times longer.

        Raises:
            ConfigError: The file is missing or no ONNX model, or a model for other inputs, actions or instruments.
        """
        try:
            data = model.read_bytes()
        except OSError as error:
            raise ConfigError(f"recogniser model {model} cannot be read: {error}; {REMEDY}") from error
        self.digest = hashlib.sha256(data).hexdigest()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        # A thread that spins between frames takes its core from the decoder.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime has no public base for what a damaged model raises
            raise ConfigError(
                f"recogniser model {model} is no ONNX model that can run here: {error}; {REMEDY}"
            ) from error
        _check(self._session, model, {"actions": actions, "instruments": instruments})
        try:
            self._run(np.zeros(_SHAPE, dtype=np.uint8))
        except Exception as error:  # see above
            raise ConfigError(f"recogniser model {model} loads but does not run: {error}; {REMEDY}") from error

    def reset(self) -> None:
        """Nothing to forget: each frame is judged by itself."""

    def evidence(self, header: FrameHeader, thumbnail: Thumbnail | None) -> Evidence:
        """Evidence of one picture; empty without a picture or when the model's answer is not finite."""
        nothing = Evidence(seq=header.seq, pts_s=header.pts_s, recogniser=self.name)
        if thumbnail is None:
            return nothing
        instruments, actions, out_of_body = self._run(thumbnail[None])
        if not all(np.isfinite(values).all() for values in (instruments, actions, out_of_body)):
            return nothing
        return Evidence(
            seq=header.seq,
            pts_s=header.pts_s,
            recogniser=self.name,
            actions=tuple(actions[0].tolist()),
            instruments=tuple(instruments[0].tolist()),
            out_of_body=float(out_of_body[0, 0]),
        )

    def _run(self, batch: Thumbnail) -> tuple[NDArray[np.float32], ...]:
        return tuple(self._session.run(OUTPUTS, {INPUT: batch}))


def _check(session: onnxruntime.InferenceSession, model: Path, names: dict[str, tuple[str, ...]]) -> None:
    """Refuse a model whose input, outputs or class names are not the pack's."""
    inputs = {item.name: (item.type, item.shape) for item in session.get_inputs()}
    if inputs != {INPUT: ("tensor(uint8)", _SHAPE)}:
        raise ConfigError(f"recogniser model {model} takes {inputs}, not '{INPUT}' uint8 {_SHAPE}; {REMEDY}")
    outputs = {item.name: item.shape for item in session.get_outputs()}
    wanted = {
        "instruments": [1, len(names["instruments"])],
        "actions": [1, len(names["actions"])],
        "out_of_body": [1, 1],
    }
    metadata = session.get_modelmeta().custom_metadata_map
    for kind, expected in names.items():
        try:
            found = json.loads(metadata.get(kind, "[]"))
        except ValueError:
            found = []
        if found != list(expected):
            raise ConfigError(
                f"recogniser model {model} has {kind} {found}, the procedure pack has {list(expected)}; use the pack the model was "
                "trained for, or a model trained for this pack (recogniser.model=FILE)"
            )
    if outputs != wanted:
        raise ConfigError(f"recogniser model {model} gives {outputs}, not {wanted}; {REMEDY}")
