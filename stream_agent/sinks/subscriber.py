"""The viewer's end of the publisher: everything that came, but of the plans only the newest."""

from __future__ import annotations

from pathlib import Path

import zmq

from stream_agent.sinks.topics import Message, topic_of, unpack
from stream_agent.transport.keys import load_keys, require_keys_outside_loopback, secure_client

_QUEUE = 1000
_RECONNECT_MS = 50


class Subscriber:
    """Connects to a publisher, now or whenever it appears.

    Attributes:
        malformed: Messages that were none of ours.
    """

    def __init__(self, endpoint: str, *, keys: Path | None = None) -> None:
        """Subscribe to everything.

        Raises:
            ConfigError: The address is malformed, or keys are missing or malformed.
        """
        require_keys_outside_loopback(endpoint, keys)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.linger = 0
        self._socket.rcvhwm = _QUEUE
        self._socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        if keys is not None:
            secure_client(self._socket, load_keys(keys))
        self._socket.subscribe(b"")
        self._socket.connect(endpoint)
        self.malformed = 0

    def newest(self, timeout_s: float) -> list[Message]:
        """Everything received since the last call, in order, waiting at most `timeout_s` for the first of it.

        Of the plans only the newest is decoded and returned: latest wins.
        """
        if not self._socket.poll(round(timeout_s * 1000)):
            return []
        parts: list[bytes] = []
        newest_plan = -1
        while len(parts) < _QUEUE:
            try:
                parts.append(self._socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                break
            if topic_of(parts[-1]) == b"plan":
                newest_plan = len(parts) - 1
        messages = [unpack(part) for i, part in enumerate(parts) if i == newest_plan or topic_of(part) != b"plan"]
        self.malformed += messages.count(None)
        return [message for message in messages if message is not None]

    def close(self) -> None:
        """Let go of the socket."""
        self._socket.close()
        self._context.term()
