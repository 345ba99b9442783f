"""Sender and receiver together, over real sockets and in real processes."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from stream_agent.errors import ConfigError, WireError
from stream_agent.messages import FrameHeader
from stream_agent.runtime import host_id
from stream_agent.source.protocol import Planes
from stream_agent.transport.receiver import Frame, FrameReceiver
from stream_agent.transport.ring import RingWriter, planes_bytes
from stream_agent.transport.sender import HeaderSender, PictureSender
from stream_agent.transport.wire import StreamEnd, pack_frame

FRAMES = 100_000


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    made: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield made
    made.destroy(linger=0)


def header(seq: int, session: str = "s", **changes: Any) -> FrameHeader:
    fields: dict[str, object] = {
        "stream_id": "cam",
        "session_id": session,
        "seq": seq,
        "pts_s": seq / 60,
        "captured_ns": time.monotonic_ns(),
        "host_id": host_id(),
        **changes,
    }
    return FrameHeader(**fields)  # type: ignore[arg-type]


def connected(context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path) -> tuple[HeaderSender, FrameReceiver]:
    endpoint = f"ipc://{tmp_path}/frames"
    sender = HeaderSender(context, endpoint)
    receiver = FrameReceiver(context, endpoint)
    assert sender.wait_for_subscriber(5.0, lambda: False)
    return sender, receiver


def received(receiver: FrameReceiver) -> Frame:
    frame = receiver.newest(5.0)
    assert frame is not None
    return frame


def test_the_newest_frame_wins_and_the_others_are_counted(
    context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path
) -> None:
    sender, receiver = connected(context, tmp_path)
    with closing(sender), closing(receiver):
        for seq in range(10):
            sender.send(header(seq))
        frame = received(receiver)
        while frame.header.seq < 9:  # the socket may hand them over in two gulps
            frame = received(receiver)
        sender.end(StreamEnd("cam", "s", 10, True))
        while receiver.ended is None:
            assert receiver.newest(5.0) is None
        returned = 10 - receiver.drops["superseded"]
        assert 1 <= returned < 10
        assert receiver.published == 10
        assert receiver.drops["lost"] == 0


def test_in_lockstep_every_frame_comes_in_order(context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path) -> None:
    sender, receiver = connected(context, tmp_path)
    with closing(sender), closing(receiver):
        for seq in range(10):
            sender.send(header(seq))
        frames = [receiver.following(5.0) for _ in range(10)]
        assert [frame.header.seq for frame in frames if frame is not None] == list(range(10))
        assert not +receiver.drops


def test_a_gap_and_a_missing_tail_are_counted_as_lost(context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path) -> None:
    sender, receiver = connected(context, tmp_path)
    with closing(sender), closing(receiver):
        for seq in (0, 1, 5):
            sender.send(header(seq))
        sender.end(StreamEnd("cam", "s", 8, False))
        sender.send(header(0, "next"))
        seen = [receiver.following(5.0) for _ in range(4)]
        assert [frame.header.seq for frame in seen if frame is not None] == [0, 1, 5, 0]
        assert receiver.drops["lost"] == 3 + 2
        assert receiver.published == 8 + 1


def test_random_bytes_on_the_socket_are_counted_and_survived(
    context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    with context.socket(zmq.PUB) as raw:
        raw.bind(f"ipc://{tmp_path}/frames")
        with closing(FrameReceiver(context, f"ipc://{tmp_path}/frames")) as receiver:
            while receiver.newest(0.01) is None:  # until the subscription has arrived
                raw.send(pack_frame(header(0)))
            for _ in range(500):
                raw.send(rng.bytes(int(rng.integers(0, 400))))
            ring_lie = header(1, layout="yuv420p", place="ring", ring="/proc/1/fd/0#" + "0" * 32, width=2, height=2)
            raw.send(pack_frame(ring_lie))
            raw.send(pack_frame(header(2)))
            last = 0
            while last != 2:
                frame = receiver.newest(5.0)
                last = frame.header.seq if frame is not None else last
            assert receiver.malformed == 500


def test_a_hundred_thousand_frames_none_torn_all_accounted_for(tmp_path: Path) -> None:
    """One writer at full speed, a fast and a slow subscriber, three processes' worth of scheduling noise."""
    endpoint = f"ipc://{tmp_path}/frames"
    writer = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("frames_writer.py")), endpoint, str(FRAMES), "2"],
        stdin=subprocess.PIPE,
        text=True,
    )
    assert writer.stdin is not None
    outcomes: dict[str, tuple[int, int, FrameReceiver]] = {}
    ready = threading.Barrier(3, timeout=10)

    def subscribe(name: str, work_s: float) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        receiver = FrameReceiver(context, endpoint)
        receiver.newest(0.2)
        ready.wait()
        good = overwritten = 0
        pause = threading.Event()
        while receiver.ended is None:
            frame = receiver.newest(1.0)
            if frame is None:
                continue
            planes = frame.planes()
            assert planes is not None
            copy = planes.copy()
            if frame.intact():
                good += 1
                assert np.all(copy == frame.header.seq % 251), "torn"
            else:
                overwritten += 1
            if work_s:
                pause.wait(work_s)
        outcomes[name] = (good, overwritten, receiver)
        receiver.close()
        context.term()

    threads = [
        threading.Thread(target=subscribe, args=("fast", 0.0), daemon=True),
        threading.Thread(target=subscribe, args=("slow", 0.05), daemon=True),
    ]
    for thread in threads:
        thread.start()
    ready.wait()
    writer.stdin.write("\n\n")
    writer.stdin.flush()
    for thread in threads:
        thread.join(60)
    writer.stdin.write("\n")
    writer.stdin.close()
    assert writer.wait(10) == 0
    assert set(outcomes) == {"fast", "slow"}
    for good, overwritten, receiver in outcomes.values():
        assert good > 0
        assert receiver.published == FRAMES
        assert good + overwritten + receiver.drops.total() == FRAMES


def picture(width: int = 64, height: int = 48) -> Planes:
    planes = np.full((height * 3 // 2, width), 128, np.uint8)
    planes[:height] = np.linspace(16, 235, width, dtype=np.uint8)
    return planes


@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
def test_pictures_travel_between_hosts_over_tcp(context: zmq.Context[zmq.Socket[bytes]], encoding: str) -> None:
    sender = PictureSender(
        context,
        "tcp://127.0.0.1:*",
        keys=None,
        encoding=encoding,  # type: ignore[arg-type]
        jpeg_quality=95,
    )
    with closing(sender), closing(FrameReceiver(context, sender.endpoint)) as receiver:
        sent = picture()
        frame = None
        while frame is None:
            sender.send(header(0, width=64, height=48, layout="yuv420p"), sent)
            frame = receiver.newest(0.05)
        planes = frame.planes()
        assert planes is not None
        assert planes.shape == sent.shape
        assert np.abs(planes.astype(int) - sent).max() <= (0 if encoding == "raw" else 12)
        assert frame.intact()


def test_a_remote_clock_is_not_compared_with_ours(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    """One-way latency over two clocks once read −44 ms elsewhere; ours is a lower bound and never negative."""
    sender = PictureSender(context, "tcp://127.0.0.1:*", keys=None, encoding="raw", jpeg_quality=90)
    with closing(sender), closing(FrameReceiver(context, sender.endpoint)) as receiver:
        frame = None
        while frame is None:
            far_future_ns = time.monotonic_ns() + 10**15
            sender.send(header(0, host_id="elsewhere", captured_ns=far_future_ns), None)
            frame = receiver.newest(0.05)
        assert 0 <= frame.received_ns - frame.header.captured_ns < 10**9


def test_a_picture_of_another_size_than_announced_is_refused(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    sender = PictureSender(context, "tcp://127.0.0.1:*", keys=None, encoding="raw", jpeg_quality=90)
    with closing(sender), closing(FrameReceiver(context, sender.endpoint)) as receiver:
        frame = None
        while frame is None:
            sender.send(header(0, width=128, height=128, layout="yuv420p"), picture())
            frame = receiver.newest(0.05)
        with pytest.raises(WireError, match="announces 128x128 but carries"):
            frame.planes()


def test_leaving_the_host_needs_keys(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    with pytest.raises(ConfigError, match="keys"):
        PictureSender(context, "tcp://0.0.0.0:5599", keys=None, encoding="jpeg", jpeg_quality=90)
    with pytest.raises(ConfigError, match="keys"):
        FrameReceiver(context, "tcp://192.0.2.1:5599")


def test_a_ring_frame_survives_its_writer(context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path) -> None:
    sender, receiver = connected(context, tmp_path)
    ring = RingWriter(4, planes_bytes(64, 48))
    ring.reserve(64, 48)[:] = 3
    slot, ticket = ring.commit(5)  # four more than were ever announced
    place: dict[str, Any] = {"width": 64, "height": 48, "layout": "yuv420p", "place": "ring", "ring": ring.locator}
    with closing(sender), closing(receiver):
        sender.send(header(0, slot=slot, ticket=ticket, **place))
        frame = received(receiver)
        ring.close()  # as by kill -9
        planes = frame.planes()
        assert planes is not None and np.all(planes == 3) and frame.intact()
        receiver.close_session()
        assert receiver.published == 5
        assert receiver.drops["lost"] == 4
