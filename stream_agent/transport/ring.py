"""Pixels in shared memory: one writer, any number of readers, torn frames impossible.

The ring is an anonymous memory file (`memfd_create`): it has no name to collide or to be left behind, and the kernel
frees it when the last process that maps it is gone, however that process died. Readers reach it through
`/proc/PID/fd/N` of the writer, which the kernel opens only for the same user. (`multiprocessing.shared_memory` moves
the same bytes at the same speed and iceoryx2 wakes a reader somewhat sooner, see `benchmarks/transport.py`; but the files
of both in /dev/shm outlive a killed process, and shared_memory's resource tracker unlinks them under living readers.)

Each slot carries a ticket, a sequence lock: odd while the slot is being written, a new even number when complete.
A reader works on the pixels in place and asks `intact()` afterwards; if the writer has come round meanwhile the answer
is no, and whatever was derived must be thrown away and counted. Nobody ever waits for anybody.

Memory order: the slot after the one just committed is marked odd at once, a whole frame before its first byte
changes, with a socket send in between; so even a processor that reorders stores cannot show new pixels under an old
ticket. The 8-byte aligned ticket itself is written and read in one piece.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import re
import stat
import struct
import sys

import numpy as np

from stream_agent.errors import WireError
from stream_agent.messages import FrameHeader
from stream_agent.source.protocol import Planes

_MAGIC = b"SARING01"
_CONTROL = struct.Struct("<8sIIQ16s")  # magic, slots, reserved, bytes per slot, token
_PUBLISHED_OFFSET = 64
_TICKETS_OFFSET = 128
_PAGE = mmap.PAGESIZE
_LOCATOR = re.compile(r"(/proc/\d+/fd/\d+)#([0-9a-f]{32})")
_MAX_SLOTS = (_PAGE - _TICKETS_OFFSET) // 8
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW if sys.platform == "linux" else 0


def planes_bytes(width: int, height: int) -> int:
    """Bytes of one YUV 4:2:0 picture of even `width` and `height`."""
    return width * height * 3 // 2


class RingWriter:
    """Owns the memory; `reserve` a slot, fill it, `commit` it."""

    def __init__(self, slots: int, slot_bytes: int) -> None:
        if not 2 <= slots <= _MAX_SLOTS:
            raise WireError(f"a ring of {slots} slots is not possible; choose 2 to {_MAX_SLOTS}")
        self.slots = slots
        self.slot_bytes = -(-slot_bytes // _PAGE) * _PAGE
        length = _PAGE + slots * self.slot_bytes
        token = os.urandom(16)
        self._fd = os.memfd_create("stream_agent_ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(self._fd, 0, length)  # fails here, not by a bus error at the first write
            fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, _SEALS)
            self._map = mmap.mmap(self._fd, length, mmap.MAP_SHARED | mmap.MAP_POPULATE)
        except OSError as error:
            os.close(self._fd)
            raise WireError(
                f"{length / 1e6:.0f} MB of shared memory for {slots} frames are not to be had ({error.strerror}); free memory, "
                "or lower transport.slots"
            ) from error
        _CONTROL.pack_into(self._map, 0, _MAGIC, slots, 0, self.slot_bytes, token)
        self._tickets = _numbers(self._map, slots, _TICKETS_OFFSET)
        self._published = _numbers(self._map, 1, _PUBLISHED_OFFSET)
        for slot in range(slots):
            self._tickets[slot] = 1
        self._slot = 0
        self._next_ticket = 2
        self.locator = f"/proc/{os.getpid()}/fd/{self._fd}#{token.hex()}"

    def reserve(self, width: int, height: int) -> Planes:
        """The next slot as writable planes (3 height / 2, width); its old picture is already invalid."""
        size = planes_bytes(width, height)
        if size > self.slot_bytes:
            raise WireError(
                f"a {width}x{height} picture needs {size} bytes, a slot has {self.slot_bytes}; make a new ring"
            )
        start = _PAGE + self._slot * self.slot_bytes
        return np.frombuffer(self._map, np.uint8, size, start).reshape(height * 3 // 2, width)

    def commit(self, published: int) -> tuple[int, int]:
        """Make the reserved slot readable: its number and ticket; `published` frames have then been published.

        The count lies in the shared page, so that it is exact even after the writer was killed.
        """
        slot, ticket = self._slot, self._next_ticket
        following = (slot + 1) % self.slots
        self._tickets[slot] = ticket
        self._tickets[following] = ticket + 1
        self._published[0] = published
        self._slot = following
        self._next_ticket = ticket + 2
        return slot, ticket

    def close(self) -> None:
        """Drop this process's hold; readers keep their mapping until they close theirs."""
        if self._fd < 0:
            return
        del self._tickets, self._published
        with contextlib.suppress(BufferError):  # somebody still holds reserved planes; the kernel frees them with us
            self._map.close()
        os.close(self._fd)
        self._fd = -1


class RingReader:
    """A read-only mapping of another process's ring."""

    def __init__(self, locator: str) -> None:
        """Map the ring that a frame header names.

        Raises:
            WireError: The locator is malformed, the writer is gone, or what lies there is no ring of ours.
        """
        match = _LOCATOR.fullmatch(locator)
        if match is None:
            raise WireError(f"ring locator {locator[:80]!r} is not /proc/PID/fd/N#TOKEN; the sender is not a grabber")
        path, token = match.groups()
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise WireError(
                f"ring {path} cannot be opened ({error.strerror}); the grabber that owned it has ended"
            ) from error
        try:
            self._map_checked(fd, path, token)
        finally:
            os.close(fd)
        self.locator = locator

    def _map_checked(self, fd: int, path: str, token: str) -> None:
        status = os.fstat(fd)
        # Without the seals the owner could shrink the file and kill us by a bus error.
        if not stat.S_ISREG(status.st_mode) or not _is_sealed(fd) or status.st_size < _PAGE:
            raise WireError(f"{path} is not a sealed memory file; the sender is not a grabber")
        self._map = mmap.mmap(fd, status.st_size, mmap.MAP_SHARED, mmap.PROT_READ)
        magic, self.slots, _, self.slot_bytes, found = _CONTROL.unpack_from(self._map, 0)
        if magic != _MAGIC or found.hex() != token:
            raise WireError(f"{path} is not the ring that was announced; its process was replaced")
        if not 2 <= self.slots <= _MAX_SLOTS or _PAGE + self.slots * self.slot_bytes > status.st_size:
            raise WireError(f"ring {path} claims {self.slots} slots of {self.slot_bytes} bytes, more than it holds")
        self._tickets = _numbers(self._map, self.slots, _TICKETS_OFFSET)
        self._published = _numbers(self._map, 1, _PUBLISHED_OFFSET)
        self._views: dict[int, Planes] = {}

    def planes(self, header: FrameHeader) -> Planes:
        """The frame's planes in place, read-only (3 height / 2, width); `intact` tells whether they still are its own.

        Raises:
            WireError: The header does not fit this ring.
        """
        size = planes_bytes(header.width, header.height)
        if not 0 <= header.slot < self.slots or not 0 < size <= self.slot_bytes:
            raise WireError(
                f"frame {header.seq} claims slot {header.slot} and {header.width}x{header.height}, but the ring has {self.slots} "
                f"slots of {self.slot_bytes} bytes"
            )
        known = self._views.get(header.slot)
        if known is None or known.shape != (header.height * 3 // 2, header.width):
            start = _PAGE + header.slot * self.slot_bytes
            known = np.frombuffer(self._map, np.uint8, size, start).reshape(header.height * 3 // 2, header.width)
            self._views[header.slot] = known
        return known

    def is_newest(self, header: FrameHeader) -> bool:
        """Whether the writer has committed no frame after this one: the next slot is still marked from its commit."""
        following = self._tickets[(header.slot + 1) % self.slots]
        return bool(following == header.ticket + 1)

    def intact(self, header: FrameHeader) -> bool:
        """Whether the frame's slot still holds exactly that frame."""
        return self._tickets[header.slot] == header.ticket

    def published(self) -> int:
        """Frames the writer has published in its present session, exact even after it was killed."""
        return self._published[0]

    def close(self) -> None:
        """Unmap; planes that are still held keep the memory until they go."""
        if hasattr(self, "_tickets"):
            del self._tickets, self._published, self._views
            with contextlib.suppress(BufferError):
                self._map.close()


def _numbers(mapped: mmap.mmap, count: int, offset: int) -> memoryview[int]:
    """Aligned 64-bit numbers of the shared page; a memoryview, for NumPy's scalars cost ten times as much code."""
    return memoryview(mapped)[offset : offset + 8 * count].cast("Q")


def _is_sealed(fd: int) -> bool:
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS == _SEALS
    except OSError:
        return False
