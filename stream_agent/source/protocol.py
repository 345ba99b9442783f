"""What every source is: something that opens, yields pictures with media time, and closes.

A source knows nothing of sessions, pacing, reconnecting or sockets: the grabber does those for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stream_agent.messages import ColourSpace

Planes: TypeAlias = NDArray[np.uint8]
"""YUV 4:2:0 planes stacked as OpenCV's I420: (3 H / 2, W); H rows of Y, then U and V packed two rows in one."""


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """One decoded picture that has not been stored yet.

    Attributes:
        pts_s: Media time from the start of the source, >= 0 and never falling.
        width: Pixels, even; 0 without pixels.
        height: Pixels, even; 0 without pixels.
        write: Fills planes of shape (3 height / 2, width); None for a source without pixels. Valid until the next
            picture is asked for.
        rotation_deg: Clockwise turn that shows the picture upright.
        colour: Matrix and range of the planes.
        signals: Instrument presence in the pack's order, from a source that knows it (signals, synthetic); else empty.
    """

    pts_s: float
    width: int = 0
    height: int = 0
    write: Callable[[Planes], None] | None = None
    rotation_deg: int = 0
    colour: ColourSpace = "bt601"
    signals: tuple[float, ...] = ()


class Source(Protocol):
    """One place that pictures come from; used by one thread of the grabber process.

    Attributes:
        live: Whether its own clock drives it: never paced, never ends by itself, reconnected when lost. Settled once
            `open` returned: an http:// address may turn out to be a file.
    """

    live: bool

    def open(self, start_s: float) -> None:
        """Open it so that the first picture has `pts_s >= start_s` (live sources ignore `start_s`).

        Raises:
            SourceError: It cannot be opened; the message names it, the reason and the remedy.
        """
        ...

    def pictures(self) -> Iterator[Picture]:
        """Yield pictures until the end; what cannot be decoded is skipped and told through `notice`.

        Raises:
            SourceError: A live source was lost, or a finite one gave not a single picture.
        """
        ...

    def close(self) -> None:
        """Release everything; may be called twice."""
        ...


Notice: TypeAlias = Callable[[str], None]
"""Takes one line for the user about something odd that was survived (packets skipped, file cut short)."""
