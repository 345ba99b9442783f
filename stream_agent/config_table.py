"""Every configuration key in words: `section.key`, type and range, default, meaning."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from stream_agent.config import AgentConfig

_WIDTH = 100


def config_lines() -> Iterator[str]:
    """One entry per key: its name, type and default on a line, its meaning under it."""
    schema = AgentConfig.model_json_schema()
    definitions = schema.get("$defs", {})
    for section, node in schema["properties"].items():
        resolved = _resolved(node, definitions)
        yield f"{section}: {resolved.get('description', '')}"
        yield from _keys(section, resolved, definitions)
        yield ""


def _keys(prefix: str, node: dict[str, Any], definitions: dict[str, Any]) -> Iterator[str]:
    for name, given in node.get("properties", {}).items():
        key, field = f"{prefix}.{name}", _resolved(given, definitions)
        if "properties" in field and "items" not in field:
            yield from _keys(key, field, definitions)
            continue
        default = "unset" if field.get("default") is None else _value(field["default"])
        yield f"  {key}={default}   ({_type(field, definitions)})"
        yield from textwrap.wrap(
            field.get("description", ""), _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6
        )


def _resolved(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """The node with what it refers to; its own words win."""
    if "$ref" in node:
        return {**definitions[node["$ref"].rpartition("/")[2]], **{k: v for k, v in node.items() if k != "$ref"}}
    return node


def _type(node: dict[str, Any], definitions: dict[str, Any]) -> str:
    node = _resolved(node, definitions)
    if "anyOf" in node:
        return " or ".join(_type(choice, definitions) for choice in node["anyOf"] if choice.get("type") != "null")
    if "enum" in node:
        return " | ".join(map(str, node["enum"]))
    if "const" in node:
        return str(node["const"])
    words = {"integer": "whole number", "boolean": "true | false", "object": "mapping", "array": "list"}
    kind = "path" if node.get("format") == "path" else words.get(node.get("type", ""), node.get("type", "any"))
    if kind == "list" and "items" in node:
        kind = f"list of {_type(node['items'], definitions)}"
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = ", ".join(f"{sign} {_value(node[limit])}" for limit, sign in signs.items() if limit in node)
    return f"{kind} {limits}".rstrip()


def _value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
