"""YAML files whose every mistake is told with its file and line.

Only plain data is read: no tags, anchors or aliases, so that a file can neither build an object nor unfold into more
than its own size. pydantic names a mistake by its path (`rules.3.action`); the composed nodes know the line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from stream_agent.errors import ConfigError

MAX_BYTES = 1_000_000
MAX_DEPTH = 24

ModelT = TypeVar("ModelT", bound=BaseModel)
Location = tuple[str | int, ...]


def read_text(path: Path, *, max_bytes: int = MAX_BYTES) -> str:
    """The file's text.

    Raises:
        ConfigError: It is missing, not a regular file, too large or not UTF-8.
    """
    try:
        if not path.is_file():
            raise ConfigError(f"{path}:1: the file is missing; add it")
        with path.open("rb") as stream:
            raw = stream.read(max_bytes + 1)
        if len(raw) > max_bytes:
            raise ConfigError(f"{path}:1: the file is larger than {max_bytes} bytes; shorten it")
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{path}:1: the file cannot be read ({error.strerror}); check its permissions") from error


class LocatedYaml:
    """One YAML file: its data, and the line of any place in it."""

    def __init__(self, path: Path) -> None:
        """Read and check `path`.

        Raises:
            ConfigError: It is not plain YAML with a mapping at its top.
        """
        self.path = path
        text = read_text(path)
        try:
            self._refuse_more_than_data(text)
            self._root = yaml.compose(text, Loader=yaml.SafeLoader)
            self.data: object = yaml.safe_load(text)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = 1 if mark is None else mark.line + 1
            begun = (
                "" if error.context_mark is None else f" {error.context} begun in line {error.context_mark.line + 1}"
            )
            raise ConfigError(f"{path}:{line}: not readable as YAML ({error.problem}{begun}); correct it") from error
        except (yaml.YAMLError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"{path}:1: not readable as YAML ({reason}); remove what it names") from error
        if not isinstance(self._root, yaml.MappingNode):
            raise ConfigError(f"{path}:1: the file holds no `key: value` lines; start with its first key")
        self._refuse_duplicate_keys(self._root)

    def line(self, location: Sequence[str | int]) -> int:
        """Line (from 1) of the value at `location`, or of the nearest part of it that exists."""
        return self._walk(location)[0]

    def complaint(self, location: Sequence[str | int], message: str) -> str:
        """`file:line: message`."""
        return f"{self.path}:{self.line(location)}: {message}"

    def parse(self, model: type[ModelT]) -> ModelT:
        """The data as `model`.

        Raises:
            ConfigError: Every mistake, one per line, each with file, line and remedy.
        """
        try:
            return model.model_validate(self.data)
        except ValidationError as error:
            raise ConfigError("\n".join(self._complaints(error, model))) from error

    def _complaints(self, error: ValidationError, model: type[BaseModel]) -> Iterable[str]:
        for item in error.errors():
            location = item["loc"]
            line, resolved = self._walk(location)
            shown = dotted(resolved)
            prefix = f"{self.path}:{line}: "
            match item["type"]:
                case "missing":
                    where = f" in {shown}" if shown else ""
                    yield f"{prefix}the key {location[-1]} is missing{where}; add it"
                case "extra_forbidden":
                    hint = close_match(str(location[-1]), _field_names(model))
                    yield f"{prefix}{shown} is not a known key{hint or '; remove it'}"
                case "value_error":
                    yield prefix + item["msg"].removeprefix("Value error, ")
                case _:
                    given = item.get("input")
                    value = "" if isinstance(given, dict | list) else f"={str(given)[:60]!r}"
                    yield f"{prefix}{shown}{value}: {item['msg']}; correct it"

    def _walk(self, location: Sequence[str | int]) -> tuple[int, Location]:
        """Line of `location` and the parts of it that exist."""
        return _walk(self._root, location)

    def _refuse_more_than_data(self, text: str) -> None:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            line = 1 if event.start_mark is None else event.start_mark.line + 1
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
                raise ConfigError(f"{self.path}:{line}: anchors and aliases are not allowed; write the value out")
            tag = getattr(event, "tag", None)
            if tag is not None:
                raise ConfigError(f"{self.path}:{line}: the tag {tag} is not allowed; write plain values")
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if depth > MAX_DEPTH:
                raise ConfigError(f"{self.path}:{line}: nested deeper than {MAX_DEPTH} levels; flatten it")

    def _refuse_duplicate_keys(self, node: yaml.Node) -> None:
        if isinstance(node, yaml.SequenceNode):
            for item in node.value:
                self._refuse_duplicate_keys(item)
        elif isinstance(node, yaml.MappingNode):
            seen: dict[str, int] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                    raise ConfigError(f"{self.path}:{line}: a key is not plain text; put it in quotes")
                if key.value in seen:
                    first = seen[key.value]
                    raise ConfigError(f"{self.path}:{line}: {key.value} was given in line {first} already; keep one")
                seen[key.value] = line
                self._refuse_duplicate_keys(value)


def dotted(location: Sequence[str | int]) -> str:
    """`rules[3].action` for `("rules", 3, "action")`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else part)
    return text


def close_match(word: str, known: Iterable[str]) -> str:
    """`; did you mean WORD?` when a known word is spelt much the same, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _field_names(model: type[BaseModel]) -> set[str]:
    """Names of the fields of `model` and of the models it refers to, read off its JSON schema."""
    schema = model.model_json_schema()
    names = set(schema.get("properties", {}))
    for definition in schema.get("$defs", {}).values():
        names |= set(definition.get("properties", {}))
    return names


def json_line(text: str, location: Sequence[str | int]) -> int:
    """Line (from 1) of the value at `location` of JSON text, or of the nearest part of it that exists."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)  # not the C loader: deep nesting crashes that one
    except (yaml.YAMLError, RecursionError):
        return 1
    return _walk(root, location)[0]


def _walk(root: yaml.Node | None, location: Sequence[str | int]) -> tuple[int, Location]:
    """Line of `location` under `root` and its parts that exist; those that do not (union tags) are passed over."""
    node = root
    line = 1 if node is None else node.start_mark.line + 1
    resolved: list[str | int] = []
    for part in location:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == part), None)
            if found is None:
                continue
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            continue
        resolved.append(part)
    return line, tuple(resolved)
