"""When frames are due, whatever becomes of those before: the open loop.

A sender that is held up loses the frames that fall due meanwhile, as a camera without a buffer does, and sends the newest
one late. Its latency counts from when it was due, so what held the sender up is not forgiven.
"""

from __future__ import annotations

NS_PER_S = 1_000_000_000


class Schedule:
    """Frame k is due at `start_ns` + k intervals."""

    def __init__(self, start_ns: int, interval_s: float) -> None:
        """The first frame is due at `start_ns`."""
        self._start_ns = start_ns
        self._interval_ns = round(interval_s * NS_PER_S)
        self._index = -1

    def following(self, now_ns: int) -> tuple[int, int]:
        """Index and due time of the frame to send next: the one after the last, or the newest that is due already."""
        self._index = max(self._index + 1, (now_ns - self._start_ns) // self._interval_ns)
        return self._index, self._start_ns + self._index * self._interval_ns


def charged_from_ns(*, due_ns: int, decided_ns: int, sent_ns: int) -> int:
    """What a latency counts from: the send, less how late the sender came to it.

    A timer that wakes late and the writing of the picture are the camera's and count for no method; being decided on after its
    time is what the method did to the sender.
    """
    return sent_ns - max(0, decided_ns - due_ns)
