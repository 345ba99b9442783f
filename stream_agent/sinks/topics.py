"""The publisher's topics and what each carries; one message is `topic JSON` in one part."""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from stream_agent.errors import UNDECODABLE
from stream_agent.messages import ClipEvent, Health, Memory, Notice, Plan, PlanUpdate
from stream_agent.telemetry import Counters

Message: TypeAlias = Plan | PlanUpdate | ClipEvent | Health | Counters | Memory | Notice

TOPICS: dict[type[Message], bytes] = {
    Plan: b"plan",
    PlanUpdate: b"plan_update",
    ClipEvent: b"clip",
    Health: b"health",
    Counters: b"counters",
    Memory: b"memory",
    Notice: b"notice",
}
_encoder = msgspec.json.Encoder()
_decoders: dict[bytes, msgspec.json.Decoder[Any]] = {
    topic: msgspec.json.Decoder(kind) for kind, topic in TOPICS.items()
}


def pack(message: Message) -> bytes:
    """The message as one part."""
    return TOPICS[type(message)] + b" " + _encoder.encode(message)


def topic_of(data: bytes) -> bytes:
    """What stands before the first space."""
    return data.partition(b" ")[0]


def unpack(data: bytes) -> Message | None:
    """The message in one part; None for a topic we do not know or JSON that does not fit it."""
    topic, _, body = data.partition(b" ")
    decoder = _decoders.get(topic)
    if decoder is None:
        return None
    try:
        message: Message = decoder.decode(body)
    except UNDECODABLE:
        return None
    return message
