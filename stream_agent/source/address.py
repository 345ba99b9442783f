"""What may be shown of a source's address: everything but its secrets."""

from __future__ import annotations

import re

NETWORK_SCHEMES = frozenset({"rtsp", "rtsps", "srt", "http", "https", "udp", "tcp"})
"""Schemes opened over the network; their senders have the clock."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_QUERY_VALUE = re.compile(r"=[^&]*")


def scheme_of(uri: str) -> str:
    """The lower-case scheme in front of `://`, or an empty string."""
    found = _SCHEME.match(uri)
    return found[1].lower() if found else ""


def redacted(uri: str) -> str:
    """`uri` with user name, password and every query value replaced by `***`.

    Whatever stands before the last `@` is hidden, since passwords with an unescaped `/` or `@` exist; query values all
    go, since cameras call their secret token, pwd, passphrase or anything else. Paths and devices come back unchanged.
    """
    found = _SCHEME.search(uri)
    if found is None:
        return uri
    head, tail = uri[: found.end()], uri[found.end() :]
    place, question, query = tail.partition("?")
    if "@" in query:  # An unescaped `?` in a password looks like a query: hide all up to the host.
        place, query, question = f"***@{query.rpartition('@')[2]}", "", ""
    elif "@" in place:
        place = f"***@{place.rpartition('@')[2]}"
    return head + place + question + _QUERY_VALUE.sub("=***", query)
