"""The gate: whether a picture is any ground for a plan. A closed gate names its reason; nothing is guessed behind it.

`picture` looks at the reduced picture alone; `evidence` at the recogniser's out-of-body probability. Pure in time: media
time is an argument. The thresholds and what they were measured on are in `GateConfig` and the recogniser's model card.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from stream_agent.config import GateConfig
from stream_agent.messages import Evidence
from stream_agent.perception.protocol import Thumbnail


class Gate:
    """Judges one stream's pictures in the order of their media time."""

    def __init__(self, config: GateConfig) -> None:
        self._config = config
        self.reset()

    def reset(self) -> None:
        """Forget the last picture: the next belongs to a new session."""
        self._still: NDArray[np.uint8] | None = None  # the luma that nothing has differed from since _still_since_s
        self._still_since_s = 0.0
        self._blurred_since_s: float | None = None
        self._last_pts_s = 0.0

    def picture(self, thumbnail: Thumbnail, pts_s: float) -> str:
        """Empty if the picture may be used; else `black`, `frozen` or `blurred`, the first that holds."""
        config = self._config
        if not config.enabled:
            return ""
        if pts_s < self._last_pts_s:
            self.reset()
        self._last_pts_s = pts_s
        luma = np.asarray(cv2.cvtColor(thumbnail, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
        # Each state is kept up to date whatever the others say, so that a reason that ends uncovers a true one.
        frozen = self._is_frozen(luma, pts_s)
        blurred = self._is_blurred(luma, pts_s)
        if cv2.mean(luma)[0] < config.black_luma:
            return "black"
        if frozen:
            return "frozen"
        return "blurred" if blurred else ""

    def evidence(self, evidence: Evidence) -> str:
        """Empty, or `out_of_body` when the recogniser is that sure of it."""
        if not self._config.enabled or evidence.out_of_body is None:
            return ""
        return "out_of_body" if evidence.out_of_body >= self._config.out_of_body_probability else ""

    def _is_frozen(self, luma: NDArray[np.uint8], pts_s: float) -> bool:
        """Whether nothing has changed for long: an endoscope never gives the same picture twice, its sensor is noisy.

        Compared is with the first picture of the still, not the last, so slow change adds up to change.
        """
        if self._still is None or cv2.norm(luma, self._still, cv2.NORM_L1) / luma.size > self._config.frozen_difference:
            self._still = luma
            self._still_since_s = pts_s
        return pts_s - self._still_since_s >= self._config.frozen_s

    def _is_blurred(self, luma: NDArray[np.uint8], pts_s: float) -> bool:
        """Whether there has been no edge for long; a moving camera blurs for a moment."""
        _, spread = cv2.meanStdDev(cv2.Laplacian(luma, cv2.CV_16S))
        if float(spread[0, 0]) ** 2 >= self._config.blur_variance:
            self._blurred_since_s = None
            return False
        if self._blurred_since_s is None:
            self._blurred_since_s = pts_s
        return pts_s - self._blurred_since_s >= self._config.blur_s
