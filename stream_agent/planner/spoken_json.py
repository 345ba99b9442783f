"""A rationale as a person reads it, while its JSON is still being written.

    {"ranked": [{"action": "Dissection", "why": "the duct is…    ─▶    1. Dissection: the duct is…

The text of a longer JSON begins with that of a shorter one, so what is new can be sent as it comes. Nothing is decided here: the
whole JSON is checked when it is complete (rationale_lane.py).
"""

from __future__ import annotations

import json
import re

_ESCAPE = re.compile(r'\\(?:u[0-9a-fA-F]{4}|["\\/bfnrt])')
_BEFORE = {"why": ": ", "progress": "\nNow: ", "safety": "\nMind: "}


def spoken(partial: str) -> str:
    """The words of a rationale's JSON, complete or not."""
    words: list[str] = []
    keys: list[str | None] = []  # per open bracket: the key whose value is being read; None in an array
    at, rank = 0, 0
    while at < len(partial):
        char = partial[at]
        at += 1
        if char == "{":
            keys.append("")
        elif char == "[":
            keys.append(None)
        elif char in "}]":
            if keys:
                keys.pop()
        elif char == "," and keys and keys[-1] is not None:
            keys[-1] = ""
        elif char == '"':
            value, at = _string(partial, at)
            if keys and keys[-1] == "":  # in an object, a string before its colon is a key
                if partial[at - 1 : at] == '"':
                    keys[-1] = value
                continue
            key = next((key for key in reversed(keys) if key), "")
            if key == "action":
                rank += 1
                words.append(f"{'' if rank == 1 else chr(10)}{rank}. ")
            else:
                words.append(_BEFORE.get(key, ""))
            words.append(value)
    return "".join(words)


def _string(text: str, start: int) -> tuple[str, int]:
    """The string that begins at `start`, as far as it goes, and where it ends (behind its quotation mark, if it has one)."""
    value: list[str] = []
    at = start
    while at < len(text):
        char = text[at]
        if char == '"':
            return "".join(value), at + 1
        if char != "\\":
            value.append(char)
            at += 1
            continue
        escape = _ESCAPE.match(text, at)
        if escape is None:  # cut in the middle, or none: wait for more
            return "".join(value), len(text)
        value.append(json.loads(f'"{escape.group()}"'))
        at = escape.end()
    return "".join(value), at
