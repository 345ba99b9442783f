"""The ways of carrying a frame from one process to another that transport.py and staleness.py compare.

Each is a sending and a receiving end. `prepare` writes a stamped picture to where the method's producer would decode it,
outside the measured time: a slot for our ring and iceoryx2, a new array per frame for the others, as a decoder returns it.
`send` is what is timed, until the receiving end holds an array. imagezmq and NetGear carry pictures as OpenCV hands them
out, BGR, which is what they are made for and twice the bytes of our YUV 4:2:0 planes; their `…_planes` variants, and all
others, carry the same planes as ours. Peers use `ipc://` where they can, their own defaults otherwise.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import time
from dataclasses import dataclass
from multiprocessing import queues, shared_memory
from pathlib import Path
from queue import Empty
from typing import Any, Literal, Protocol

import cv2
import msgspec
import numpy as np
import zmq
from numpy.typing import NDArray

from stream_agent.grabber import RingOutlet
from stream_agent.messages import FrameHeader
from stream_agent.runtime import host_id
from stream_agent.source.protocol import Planes
from stream_agent.transport.keys import make_keys
from stream_agent.transport.receiver import FrameReceiver
from stream_agent.transport.ring import planes_bytes
from stream_agent.transport.sender import HeaderSender, PictureSender

SLOTS = 8
_QUEUE = 2000


@dataclass(frozen=True, slots=True)
class Place:
    """What both ends of a carrier know before they open.

    Attributes:
        folder: For sockets and keys; its own for each carrier, with a short path.
        width: Pixels.
        height: Pixels.
        picture: .npy file with the planes to send.
        queue: A `multiprocessing.Queue`, for the carrier of that name.
    """

    folder: Path
    width: int
    height: int
    picture: Path
    queue: queues.Queue[Planes] | None = None

    @property
    def endpoint(self) -> str:
        """An ipc address."""
        return f"ipc://{self.folder}/frames"

    @property
    def shape(self) -> tuple[int, int]:
        """Of the planes."""
        return self.height * 3 // 2, self.width

    def load_picture(self) -> Planes:
        """The planes to send."""
        return np.asarray(np.load(self.picture), np.uint8)


@dataclass(frozen=True, slots=True)
class Arrival:
    """One frame at the receiving end: when the array was there, and which frame it shows."""

    seen_ns: int
    seq: int


class SendingEnd(Protocol):
    """Opened in the sending process.

    Attributes:
        address: What the receiving end has to be told.
    """

    address: str

    def prepare(self, seq: int) -> None:
        """Have frame `seq` decoded."""
        ...

    def send(self, seq: int) -> None:
        """Send it."""
        ...

    def close(self) -> None:
        """Release what the kernel would not."""
        ...


class ReceivingEnd(Protocol):
    """Opened in the receiving process, after the sending end."""

    def receive(self, timeout_s: float) -> Arrival | None:
        """The next frame the method hands out (the newest, if that is what it promises)."""
        ...

    def close(self) -> None:
        """Release what the kernel would not."""
        ...


def open_sending(name: str, place: Place) -> SendingEnd:
    """The sending end of a carrier; ImportError when its library is not installed."""
    return _SENDING[name](place)


def open_receiving(name: str, place: Place, address: str) -> ReceivingEnd:
    """The receiving end of a carrier."""
    return _RECEIVING[name](place, address)


def _stamp(planes: Planes, seq: int) -> None:
    """Number the first and the last 8 bytes, so that the receiver knows the frame and that it is whole."""
    flat = planes.reshape(-1)
    number = np.frombuffer(seq.to_bytes(8, "little"), np.uint8)
    flat[:8] = number
    flat[-8:] = number


def _arrival(planes: NDArray[np.uint8], seq: int | None = None) -> Arrival:
    """Stop the clock, then read the stamp; `seq` where the method itself tells it and pixels may be lossy."""
    seen_ns = time.monotonic_ns()
    flat = planes.reshape(-1)
    if seq is not None:
        return Arrival(seen_ns, seq)
    first, last = (int.from_bytes(part.tobytes(), "little") for part in (flat[:8], flat[-8:]))
    if first != last:
        raise RuntimeError(f"a torn frame: it begins as {first} and ends as {last}")
    return Arrival(seen_ns, first)


class _NewArrays:
    """For methods that must be given memory of their own for every frame."""

    address = ""

    def __init__(self, place: Place, *, bgr: bool = False) -> None:
        planes = place.load_picture()
        self._picture = np.asarray(cv2.cvtColor(planes, cv2.COLOR_YUV2BGR_I420), np.uint8) if bgr else planes
        self._frame = self._picture.copy()

    def prepare(self, seq: int) -> None:
        self._frame = self._picture.copy()
        _stamp(self._frame, seq)

    def close(self) -> None:
        pass


# ------------------------------------------------------------------------------------------------------ ours


def _header(place: Place, seq: int) -> FrameHeader:
    return FrameHeader(
        stream_id="endoscope",
        session_id="benchmark",
        seq=seq,
        pts_s=seq / 60,
        captured_ns=time.monotonic_ns(),
        host_id=host_id() if not _host else _host[0],
        width=place.width,
        height=place.height,
        layout="yuv420p",
    )


_host: list[str] = []


class _OursSending:
    """The grabber's own outlet: the picture is in the slot, the call commits it and sends the header."""

    copies = False

    def __init__(self, place: Place) -> None:
        _host[:] = [host_id()]
        self._place = place
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._outlet = RingOutlet(HeaderSender(self._context, place.endpoint), SLOTS)
        self._picture = place.load_picture()
        self._frame = self._picture.copy()
        for _ in range(SLOTS):  # every slot holds a picture before the first is measured
            np.copyto(self._outlet.planes(place.width, place.height), self._picture)
            self._outlet.publish(_header(place, 0))
        self._header = _header(place, 0)
        self.address = place.endpoint

    def prepare(self, seq: int) -> None:
        place = self._place
        decoded = self._frame if self.copies else self._outlet.planes(place.width, place.height)
        np.copyto(decoded, self._picture)
        _stamp(decoded, seq)
        self._header = _header(place, seq)

    def send(self, _seq: int) -> None:
        if self.copies:
            np.copyto(self._outlet.planes(self._place.width, self._place.height), self._frame)
        self._outlet.publish(self._header)

    def close(self) -> None:
        self._outlet.close()


class _OursCopiedInSending(_OursSending):
    """The same, with the copy of the picture into its slot inside the measured time."""

    copies = True


class _OursReceiving:
    def __init__(self, place: Place, address: str, *, lossy: bool = False, keys: Path | None = None) -> None:
        del place
        self._lossy = lossy
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._receiver = FrameReceiver(self._context, address, keys=keys)

    def receive(self, timeout_s: float) -> Arrival | None:
        frame = self._receiver.newest(timeout_s)
        if frame is None:
            return None
        planes = frame.planes()
        assert planes is not None
        arrival = _arrival(planes, frame.header.seq if self._lossy else None)
        return arrival if frame.intact() else None

    def close(self) -> None:
        self._receiver.close()


class _TcpSending(_NewArrays):
    """Whole pictures over loopback TCP."""

    def __init__(self, place: Place, encoding: Literal["raw", "jpeg"], *, secure: bool = False) -> None:
        super().__init__(place)
        _host[:] = [host_id()]
        self._place = place
        keys = place.folder / "keys" if secure else None
        if keys is not None:
            make_keys(keys)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sender = PictureSender(self._context, "tcp://127.0.0.1:*", keys=keys, encoding=encoding, jpeg_quality=90)
        self._header = _header(place, 0)
        self.address = self._sender.endpoint

    def prepare(self, seq: int) -> None:
        super().prepare(seq)
        self._header = _header(self._place, seq)

    def send(self, _seq: int) -> None:
        self._sender.send(self._header, self._frame)

    def close(self) -> None:
        self._sender.close(linger_s=0)


# ------------------------------------------------------------------------------------------------------ limits


class _FloorSending:
    """Eight bytes on the same kind of socket as our headers: nothing over ZeroMQ can be faster."""

    def __init__(self, place: Place) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.linger = 0
        self._socket.sndhwm = _QUEUE
        self._socket.bind(place.endpoint)
        self.address = place.endpoint
        self._picture = place.load_picture()
        self._frame = self._picture.copy()

    def prepare(self, seq: int) -> None:
        np.copyto(self._frame, self._picture)
        _stamp(self._frame, seq)

    def send(self, seq: int) -> None:
        self._socket.send(seq.to_bytes(8, "little"), zmq.NOBLOCK)

    def close(self) -> None:
        self._socket.close()


class _FloorReceiving:
    def __init__(self, place: Place, address: str) -> None:
        del place
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.linger = 0
        self._socket.rcvhwm = _QUEUE
        self._socket.rcvtimeo = 50
        self._socket.subscribe(b"")
        self._socket.connect(address)

    def receive(self, timeout_s: float) -> Arrival | None:
        del timeout_s  # fixed above: the leanest way to wait that pyzmq has
        try:
            message = self._socket.recv()
        except zmq.Again:
            return None
        return Arrival(time.monotonic_ns(), int.from_bytes(message, "little"))

    def close(self) -> None:
        self._socket.close()


class _MemcpySending:
    """One copy of the picture within a process: what any method that copies pays at least once. It has no receiver."""

    address = ""

    def __init__(self, place: Place) -> None:
        self._picture = place.load_picture()
        self._frame = self._picture.copy()
        self._slots = [self._picture.copy() for _ in range(SLOTS)]

    def prepare(self, seq: int) -> None:
        np.copyto(self._frame, self._picture)
        _stamp(self._frame, seq)

    def send(self, seq: int) -> None:
        np.copyto(self._slots[seq % SLOTS], self._frame)

    def close(self) -> None:
        pass


class _NothingReceiving:
    def __init__(self, place: Place, address: str) -> None:
        pass

    def receive(self, timeout_s: float) -> Arrival | None:
        time.sleep(timeout_s)
        return None

    def close(self) -> None:
        pass


# ------------------------------------------------------------------------------------------------------ peers


class _ImagezmqSending(_NewArrays):
    def __init__(self, place: Place, *, reply: bool = False, bgr: bool = True) -> None:
        import imagezmq

        super().__init__(place, bgr=bgr)
        self._sender = imagezmq.ImageSender(connect_to=place.endpoint, REQ_REP=reply)
        self._sender.zmq_socket.linger = 0
        self.address = place.endpoint

    def send(self, seq: int) -> None:
        self._sender.send_image(str(seq), self._frame)

    def close(self) -> None:
        self._sender.close()


class _ImagezmqReceiving:
    def __init__(self, place: Place, address: str, *, reply: bool = False) -> None:
        import imagezmq

        del place
        self._reply = reply
        self._hub = imagezmq.ImageHub(open_port=address, REQ_REP=reply)
        self._hub.zmq_socket.linger = 0

    def receive(self, timeout_s: float) -> Arrival | None:
        if not self._hub.zmq_socket.poll(round(timeout_s * 1000)):
            return None
        _, planes = self._hub.recv_image()
        arrival = _arrival(planes)
        if self._reply:
            self._hub.send_reply()
        return arrival

    def close(self) -> None:
        self._hub.close()


def _netgear(place: Place, *, receive: bool) -> Any:  # noqa: ANN401  # it has no types
    logging.disable(logging.CRITICAL)  # it announces every setting
    from vidgear.gears import NetGear

    return NetGear(
        address=str(place.folder / "netgear"),
        port="1",
        protocol="ipc",
        pattern=2,
        receive_mode=receive,
        logging=False,
        jpeg_compression=False,
    )


class _NetgearSending(_NewArrays):
    """vidgear's NetGear, raw, publish and subscribe."""

    def __init__(self, place: Place, *, bgr: bool = True) -> None:
        super().__init__(place, bgr=bgr)
        self._gear = _netgear(place, receive=False)

    def send(self, _seq: int) -> None:
        self._gear.send(self._frame)

    def close(self) -> None:
        self._gear.close()


class _NetgearReceiving:
    def __init__(self, place: Place, address: str) -> None:
        del address
        self._gear = _netgear(place, receive=True)

    def receive(self, timeout_s: float) -> Arrival | None:
        # recv() has no timeout; it looks into this queue every 10 us, as we do here.
        deadline = time.monotonic() + timeout_s
        while not self._gear._NetGear__queue:
            if time.monotonic() > deadline:
                return None
            time.sleep(0.00001)
        return _arrival(self._gear.recv())

    def close(self) -> None:
        pass  # it closes its socket under the thread that reads from it, which libzmq answers with an abort


class _PyzmqSending(_NewArrays):
    """What one would write by hand: one part, only the newest kept (CONFLATE) or a queue."""

    def __init__(self, place: Place, *, tcp: bool = False, copy: bool = False, newest: bool = True) -> None:
        super().__init__(place)
        self._copy = copy
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.PUB)
        self._socket.linger = 0
        if newest:
            self._socket.setsockopt(zmq.CONFLATE, 1)
        self._socket.bind("tcp://127.0.0.1:*" if tcp else place.endpoint)
        self.address = str(self._socket.getsockopt_string(zmq.LAST_ENDPOINT))

    def send(self, _seq: int) -> None:
        if self._copy:
            self._socket.send(self._frame.data)
        else:
            self._socket.send(self._frame.data, copy=False)

    def close(self) -> None:
        self._socket.close()


class _PyzmqReceiving:
    def __init__(self, place: Place, address: str, *, copy: bool = False, newest: bool = True) -> None:
        self._shape = place.shape
        self._copy = copy
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.linger = 0
        if newest:
            self._socket.setsockopt(zmq.CONFLATE, 1)
        self._socket.subscribe(b"")
        self._socket.connect(address)

    def receive(self, timeout_s: float) -> Arrival | None:
        if not self._socket.poll(round(timeout_s * 1000)):
            return None
        buffer = self._socket.recv() if self._copy else self._socket.recv(copy=False).buffer
        return _arrival(np.frombuffer(buffer, np.uint8).reshape(self._shape))

    def close(self) -> None:
        self._socket.close()


class _Iceoryx:
    """Services of one name; a subscriber keeps the newest sample only and is woken by an event."""

    def __init__(self, place: Place) -> None:
        import iceoryx2 as iox2

        iox2.set_log_level(iox2.LogLevel.Error)
        self.iox2 = iox2
        name = f"stream_agent/{place.folder.parent.name}"  # this run alone
        self.node = iox2.NodeBuilder.new().create(iox2.ServiceType.Ipc)
        self.frames = (
            self.node.service_builder(iox2.ServiceName.new(f"{name}/frames"))
            .publish_subscribe(iox2.Slice[ctypes.c_uint8])
            .enable_safe_overflow(True)
            .subscriber_max_buffer_size(1)
            .subscriber_max_borrowed_samples(2)
            .history_size(0)
            .open_or_create()
        )
        self.wake = self.node.service_builder(iox2.ServiceName.new(f"{name}/wake")).event().open_or_create()


class _IceoryxSending:
    """The picture is in the loaned sample, as ours is in the slot; the call sends it and wakes the subscriber."""

    address = ""

    def __init__(self, place: Place) -> None:
        self._ends = _Iceoryx(place)
        self._bytes = planes_bytes(place.width, place.height)
        self._publisher = self._ends.frames.publisher_builder().initial_max_slice_len(self._bytes).create()
        self._notifier = self._ends.wake.notifier_builder().create()
        self._picture = place.load_picture().reshape(-1)
        self._sample: Any = None

    def prepare(self, seq: int) -> None:
        self._sample = self._publisher.loan_slice_uninit(self._bytes)
        decoded = np.frombuffer(self._sample.payload().as_memory_view(), np.uint8)
        np.copyto(decoded, self._picture)
        _stamp(decoded, seq)

    def send(self, _seq: int) -> None:
        self._sample.assume_init().send()
        self._notifier.notify()

    def close(self) -> None:
        self._sample = None


class _IceoryxReceiving:
    def __init__(self, place: Place, address: str) -> None:
        del address
        self._ends = _Iceoryx(place)
        self._shape = place.shape
        self._subscriber = self._ends.frames.subscriber_builder().buffer_size(1).create()
        self._listener = self._ends.wake.listener_builder().create()
        self._sample: Any = None

    def receive(self, timeout_s: float) -> Arrival | None:
        self._listener.timed_wait(self._ends.iox2.Duration.from_secs_f64(timeout_s))
        self._sample = None  # hand the last one back
        self._sample = self._subscriber.receive()
        if self._sample is None:
            return None
        view = self._sample.payload().as_memory_view()
        return _arrival(np.frombuffer(view, np.uint8).reshape(self._shape))

    def close(self) -> None:
        self._sample = None


class _SharedMemorySending:
    """Our headers and slots, in `multiprocessing.shared_memory` instead of a memory file: the choice of memory alone."""

    def __init__(self, place: Place) -> None:
        _host[:] = [host_id()]
        self._place = place
        size = planes_bytes(place.width, place.height)
        self._memory = shared_memory.SharedMemory(create=True, size=SLOTS * size)
        self._slots = [_slot(self._memory, slot, place) for slot in range(SLOTS)]
        self._picture = place.load_picture()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sender = HeaderSender(self._context, place.endpoint)
        self._header = _header(place, 0)
        self.address = self._memory.name

    def prepare(self, seq: int) -> None:
        np.copyto(self._slots[seq % SLOTS], self._picture)
        _stamp(self._slots[seq % SLOTS], seq)
        self._header = _header(self._place, seq)

    def send(self, seq: int) -> None:
        self._sender.send(msgspec.structs.replace(self._header, slot=seq % SLOTS))

    def close(self) -> None:
        self._sender.close(linger_s=0)
        self._slots.clear()
        self._memory.close()
        self._memory.unlink()


class _SharedMemoryReceiving:
    def __init__(self, place: Place, address: str) -> None:
        self._place = place
        self._memory = shared_memory.SharedMemory(address)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._receiver = FrameReceiver(self._context, place.endpoint)

    def receive(self, timeout_s: float) -> Arrival | None:
        frame = self._receiver.newest(timeout_s)
        return None if frame is None else _arrival(_slot(self._memory, frame.header.slot, self._place))

    def close(self) -> None:
        self._receiver.close()
        with contextlib.suppress(BufferError):
            self._memory.close()


def _slot(memory: shared_memory.SharedMemory, slot: int, place: Place) -> Planes:
    size = planes_bytes(place.width, place.height)
    assert memory.buf is not None
    return np.frombuffer(memory.buf, np.uint8, size, slot * size).reshape(place.shape)


class _QueueSending(_NewArrays):
    """`multiprocessing.Queue`: pickled by a thread, through a pipe."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        assert place.queue is not None
        self._queue = place.queue

    def send(self, _seq: int) -> None:
        self._queue.put(self._frame)

    def close(self) -> None:
        self._queue.cancel_join_thread()


class _QueueReceiving:
    def __init__(self, place: Place, address: str) -> None:
        del address
        assert place.queue is not None
        self._queue = place.queue

    def receive(self, timeout_s: float) -> Arrival | None:
        try:
            planes = self._queue.get(timeout=timeout_s)
        except Empty:
            return None
        return _arrival(planes)

    def close(self) -> None:
        pass


class _Opener(Protocol):
    def __call__(self, place: Place) -> SendingEnd: ...


class _ReceivingOpener(Protocol):
    def __call__(self, place: Place, address: str) -> ReceivingEnd: ...


_SENDING: dict[str, _Opener] = {
    "ours": _OursSending,
    "ours_copied_in": _OursCopiedInSending,
    "floor_8_bytes": _FloorSending,
    "memcpy": _MemcpySending,
    "imagezmq_pubsub": _ImagezmqSending,
    "imagezmq_pubsub_planes": lambda place: _ImagezmqSending(place, bgr=False),
    "imagezmq_reqrep": lambda place: _ImagezmqSending(place, reply=True),
    "imagezmq_reqrep_planes": lambda place: _ImagezmqSending(place, reply=True, bgr=False),
    "netgear_raw": _NetgearSending,
    "netgear_raw_planes": lambda place: _NetgearSending(place, bgr=False),
    "pyzmq_ipc": _PyzmqSending,
    "pyzmq_ipc_copy": lambda place: _PyzmqSending(place, copy=True),
    "pyzmq_ipc_queue": lambda place: _PyzmqSending(place, newest=False),
    "pyzmq_tcp": lambda place: _PyzmqSending(place, tcp=True),
    "pyzmq_tcp_copy": lambda place: _PyzmqSending(place, tcp=True, copy=True),
    "pyzmq_tcp_queue": lambda place: _PyzmqSending(place, tcp=True, newest=False),
    "iceoryx2": _IceoryxSending,
    "shared_memory": _SharedMemorySending,
    "mp_queue": _QueueSending,
    "ours_tcp_raw": lambda place: _TcpSending(place, "raw"),
    "ours_tcp_jpeg": lambda place: _TcpSending(place, "jpeg"),
    "ours_tcp_curve": lambda place: _TcpSending(place, "raw", secure=True),
    "ours_tcp_jpeg_curve": lambda place: _TcpSending(place, "jpeg", secure=True),
}

_RECEIVING: dict[str, _ReceivingOpener] = {
    "ours": _OursReceiving,
    "ours_copied_in": _OursReceiving,
    "floor_8_bytes": _FloorReceiving,
    "memcpy": _NothingReceiving,
    "imagezmq_pubsub": _ImagezmqReceiving,
    "imagezmq_pubsub_planes": _ImagezmqReceiving,
    "imagezmq_reqrep": lambda place, address: _ImagezmqReceiving(place, address, reply=True),
    "imagezmq_reqrep_planes": lambda place, address: _ImagezmqReceiving(place, address, reply=True),
    "netgear_raw": _NetgearReceiving,
    "netgear_raw_planes": _NetgearReceiving,
    "pyzmq_ipc": _PyzmqReceiving,
    "pyzmq_ipc_copy": lambda place, address: _PyzmqReceiving(place, address, copy=True),
    "pyzmq_ipc_queue": lambda place, address: _PyzmqReceiving(place, address, newest=False),
    "pyzmq_tcp": _PyzmqReceiving,
    "pyzmq_tcp_copy": lambda place, address: _PyzmqReceiving(place, address, copy=True),
    "pyzmq_tcp_queue": lambda place, address: _PyzmqReceiving(place, address, newest=False),
    "iceoryx2": _IceoryxReceiving,
    "shared_memory": _SharedMemoryReceiving,
    "mp_queue": _QueueReceiving,
    "ours_tcp_raw": _OursReceiving,
    "ours_tcp_jpeg": lambda place, address: _OursReceiving(place, address, lossy=True),
    "ours_tcp_curve": lambda place, address: _OursReceiving(place, address, keys=place.folder / "keys"),
    "ours_tcp_jpeg_curve": lambda place, address: _OursReceiving(
        place, address, lossy=True, keys=place.folder / "keys"
    ),
}

METHODS = tuple(_SENDING)
"""Every carrier; the last ones are between hosts, over loopback TCP."""
