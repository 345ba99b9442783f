"""What every recogniser is: evidence from one frame's header and its reduced picture."""

from __future__ import annotations

from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stream_agent.messages import Evidence, FrameHeader

THUMBNAIL_WIDTH = 320
THUMBNAIL_HEIGHT = 224
Thumbnail: TypeAlias = NDArray[np.uint8]
"""The upright frame reduced without aliasing to (224, 320, 3), RGB; the aspect ratio is not kept."""


class Recogniser(Protocol):
    """Turns frames into evidence; used by one thread."""

    name: str

    def evidence(self, header: FrameHeader, thumbnail: Thumbnail | None) -> Evidence:
        """Evidence for one frame; `thumbnail` is None for a source without pixels."""
        ...

    def reset(self) -> None:
        """Forget the frames so far: a new session begins."""
        ...
