"""A writer process for the tests: publishes `count` small frames, each filled with its own number, as fast as it can."""

from __future__ import annotations

import sys
import time
from contextlib import closing

import zmq

from stream_agent.messages import FrameHeader
from stream_agent.runtime import host_id
from stream_agent.transport.ring import RingWriter, planes_bytes
from stream_agent.transport.sender import HeaderSender
from stream_agent.transport.wire import StreamEnd


def main() -> None:
    endpoint, count, subscribers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    width, height = 96, 64
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sender = HeaderSender(context, endpoint)
    sender.wait_for_subscriber(10.0, lambda: False)
    for _ in range(subscribers):  # each says on stdin that it is connected
        sys.stdin.readline()
    here = host_id()
    with closing(RingWriter(8, planes_bytes(width, height))) as ring:
        for seq in range(count):
            if seq == count - 5:
                # At this speed a queue is often full, and then takes nothing until it is half empty: not even the end.
                time.sleep(0.5)
            ring.reserve(width, height)[:] = seq % 251
            slot, ticket = ring.commit(seq + 1)
            sender.send(
                FrameHeader(
                    stream_id="cam",
                    session_id="s",
                    seq=seq,
                    pts_s=seq / 60,
                    captured_ns=time.monotonic_ns(),
                    host_id=here,
                    width=width,
                    height=height,
                    layout="yuv420p",
                    place="ring",
                    ring=ring.locator,
                    slot=slot,
                    ticket=ticket,
                )
            )
        sender.end(StreamEnd("cam", "s", count, True))
        sys.stdin.readline()  # the readers are done with the ring
    sender.close()
    context.term()


if __name__ == "__main__":
    main()
