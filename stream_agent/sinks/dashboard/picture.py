"""The live picture for browsers: the newest frame, reduced, as JPEG; made once for all of them and only while one watches.

A second reader of the grabber's stream: nobody waits for it, and it waits for nobody.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import zmq

from stream_agent.errors import StreamAgentError, WireError
from stream_agent.planner.near_picture import near_picture
from stream_agent.transport.receiver import Frame, FrameReceiver

HEAD: Final = struct.Struct("<ddd")
"""Before the JPEG: capture time in ms, media time in s, frame number."""

_QUALITY = 80
_IDLE_S = 0.2


class PictureReader(threading.Thread):
    """Reads, reduces, encodes; hands each picture to `taken`."""

    def __init__(
        self,
        endpoint: str,
        *,
        keys: Path | None,
        fps: float,
        max_pixels: int,
        wanted: Callable[[], bool],
        taken: Callable[[bytes | None], None],
        stopped: threading.Event,
    ) -> None:
        """Prepare; `wanted` says whether anybody watches, `taken` gets a picture or None for a frame without pixels."""
        super().__init__(name="pictures", daemon=True)
        self._endpoint = endpoint
        self._keys = keys
        self._period_s = 1 / fps
        self._max_pixels = max_pixels
        self._wanted = wanted
        self._taken = taken
        self._stopped = stopped
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

    def run(self) -> None:
        """Until stopped."""
        cv2.setNumThreads(1)
        while not self._stopped.is_set():
            if self._wanted():
                self._read()
            self._stopped.wait(_IDLE_S)
        self._context.term()

    def _read(self) -> None:
        """While somebody watches."""
        try:
            receiver = FrameReceiver(self._context, self._endpoint, keys=self._keys, observer=True)
        except StreamAgentError:
            return
        try:
            due_s = time.monotonic()
            while self._wanted() and not self._stopped.wait(max(0.0, due_s - time.monotonic())):
                due_s = time.monotonic() + self._period_s
                frame = receiver.newest(self._period_s)
                if frame is not None:
                    self._take(frame)
        finally:
            receiver.close()

    def _take(self, frame: Frame) -> None:
        try:
            planes = frame.planes()
            if planes is None:
                self._taken(None)
                return
            picture = near_picture(planes, frame.header, action=None, max_pixels=self._max_pixels, side_multiple=2)
        except WireError:
            return
        if not frame.intact():
            return  # the ring has come round; the next one will do
        rgb = np.frombuffer(picture.rgb, np.uint8).reshape(picture.height, picture.width, 3)
        made, jpeg = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
        if made:
            header = frame.header
            self._taken(HEAD.pack(header.captured_ns / 1e6, header.pts_s, float(header.seq)) + jpeg.tobytes())
