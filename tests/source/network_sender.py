"""A camera on loopback for the tests of live sources."""

from __future__ import annotations

import io
import threading
import time

import av
import av.error
from made_videos import add_video, picture

PERIOD_MS = 20


class Sender:
    """A camera on loopback: a picture every 20 ms in a thread, until told to go silent or to leave."""

    def __init__(
        self, target: str | io.RawIOBase, container_format: str, options: dict[str, str] | None = None, *, gop: int = 5
    ) -> None:
        self._target = target
        self._format = container_format
        self._options = options or {}
        self._gop = gop
        self.under_way = threading.Event()
        self._silent = threading.Event()
        self._gone = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def go_silent(self) -> None:
        """Stop sending, keep the connection."""
        self._silent.set()

    def leave(self) -> None:
        self._silent.set()
        self._gone.set()
        self._thread.join(timeout=5)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and not self._gone.is_set():
            try:
                self._send()
                return
            except av.error.ConnectionRefusedError:  # Nobody listens yet.
                self._silent.wait(0.01)
            except (av.error.FFmpegError, OSError):  # The receiver left first.
                return

    def _send(self) -> None:
        with av.open(self._target, "w", format=self._format, options=self._options) as container:
            stream = add_video(container, size=(160, 128), rate=1000 // PERIOD_MS, gop=self._gop)
            index = 0
            while not self._silent.wait(PERIOD_MS / 1000):
                frame = picture(index, size=(160, 128), pts_ms=index * PERIOD_MS)
                container.mux(stream.encode(frame))
                index += 1
                if index == 3:
                    self.under_way.set()
            self._gone.wait(10)
