"""The schemas that make a recording open in Foxglove and Rerun: `foxglove.CompressedVideo`, and ours as JSON Schema.

Video is protobuf, the encoding that both programs show without a converter. The message has four fields, so it and its
descriptor are written here by hand (https://protobuf.dev/programming-guides/encoding/, descriptor.proto) instead of
bringing in protobuf's runtime; a test compares the bytes with a reading of them by field number.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import msgspec

VIDEO_SCHEMA = "foxglove.CompressedVideo"
_NS_PER_S = 1_000_000_000
_STRING, _BYTES, _MESSAGE, _INT64, _INT32 = 9, 12, 11, 3, 5
_VARINT, _LENGTH = 0, 2


def compressed_video(time_ns: int, frame_id: str, data: bytes) -> bytes:
    """One H.264 picture (Annex B) as a `foxglove.CompressedVideo` message."""
    seconds, nanos = divmod(time_ns, _NS_PER_S)
    stamp = _number(1, seconds) + _number(2, nanos)
    return _text(1, stamp) + _text(2, frame_id.encode()) + _text(3, data) + _text(4, b"h264")


def picture_of(message: bytes) -> bytes:
    """The H.264 bytes of a `foxglove.CompressedVideo` message; empty if it has none.

    Raises:
        ValueError: The bytes are no protobuf message.
    """
    return b"".join(value for number, value in fields(message) if number == 3 and isinstance(value, bytes))


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values of a protobuf message, in order.

    Raises:
        ValueError: The bytes are no protobuf message.
    """
    at = 0
    while at < len(message):
        key, at = _varint_at(message, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint_at(message, at)
            yield number, value
            continue
        if wire != _LENGTH:
            raise ValueError(f"field {number} has wire type {wire}, which none of our messages uses")
        length, at = _varint_at(message, at)
        if length > len(message) - at:
            raise ValueError(f"field {number} claims {length} bytes of {len(message) - at}")
        yield number, message[at : at + length]
        at += length


def video_descriptor() -> bytes:
    """The FileDescriptorSet of `foxglove.CompressedVideo` and the timestamp it holds."""
    timestamp = _file(
        "google/protobuf/timestamp.proto",
        "google.protobuf",
        "Timestamp",
        [("seconds", 1, _INT64, ""), ("nanos", 2, _INT32, "")],
    )
    video = _file(
        "foxglove/CompressedVideo.proto",
        "foxglove",
        "CompressedVideo",
        [
            ("timestamp", 1, _MESSAGE, ".google.protobuf.Timestamp"),
            ("frame_id", 2, _STRING, ""),
            ("data", 3, _BYTES, ""),
            ("format", 4, _STRING, ""),
        ],
        imports="google/protobuf/timestamp.proto",
    )
    return _text(1, timestamp) + _text(1, video)


def json_schema(kind: type[Any]) -> bytes:
    """A JSON schema of the struct `kind`, flat as Foxglove reads them: no references, one type per value.

    Structs that are JSON arrays and maps of any keys are left out of it; they are in the messages all the same.
    """
    root = msgspec.json.schema(kind)
    defined = root.get("$defs", {})
    flat = _flat({"$ref": root["$ref"]} if "$ref" in root else root, defined)
    return msgspec.json.encode({"title": kind.__name__, **(flat or {"type": "object"})})


def _flat(schema: dict[str, Any], defined: dict[str, Any]) -> dict[str, Any] | None:
    if "$ref" in schema:
        return _flat(defined[schema["$ref"].rpartition("/")[2]], defined)
    if "anyOf" in schema:  # an optional value: what it is when it is there
        return next((flat for one in schema["anyOf"] if (flat := _flat(one, defined)) is not None), None)
    if "enum" in schema:
        return {"type": "string"}
    match schema.get("type"):
        case "object":
            if "properties" not in schema:
                return None
            known = {name: _flat(value, defined) for name, value in schema["properties"].items()}
            return {"type": "object", "properties": {name: flat for name, flat in known.items() if flat is not None}}
        case "array":
            items = schema.get("items") or next(iter(schema.get("prefixItems", [])), None)
            if not isinstance(items, dict) or len({repr(one) for one in schema.get("prefixItems", [])}) > 1:
                return None
            flat = _flat(items, defined)
            return None if flat is None else {"type": "array", "items": flat}
        case "string" | "number" | "integer" | "boolean" as plain:
            return {"type": plain}
    return None


def _file(
    name: str, package: str, message: str, members: list[tuple[str, int, int, str]], *, imports: str = ""
) -> bytes:
    body = _text(1, message.encode())
    for member, number, kind, of in members:
        field = _text(1, member.encode()) + _number(3, number) + _number(4, 1) + _number(5, kind)
        body += _text(2, field + (_text(6, of.encode()) if of else b""))
    found = _text(1, name.encode()) + _text(2, package.encode())
    if imports:
        found += _text(3, imports.encode())
    return found + _text(4, body) + _text(12, b"proto3")


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3 | _VARINT) + _varint(value)


def _text(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | _LENGTH) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    octets = b""
    while value > 0x7F:
        octets += struct.pack("B", value & 0x7F | 0x80)
        value >>= 7
    return octets + struct.pack("B", value)


def _varint_at(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message) and shift < 70:
        octet = message[at]
        at += 1
        value |= (octet & 0x7F) << shift
        if octet < 0x80:
            return value, at
        shift += 7
    raise ValueError("a number of the message does not end")
