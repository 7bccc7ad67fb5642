"""A YAML file that remembers its lines, and what is to be said about them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from vsr_hpc.errors import JobError

Level = Literal["error", "warning", "info"]
Path = tuple["str | int", ...]
LEVELS: tuple[Level, ...] = ("error", "warning", "info")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigFinding:
    """One thing to mend (error), to know before paying (warning) or that could not be looked at (info)."""

    level: Level
    message: str
    path: Path = ()
    where: str = ""
    rule: str = ""

    def __str__(self) -> str:
        place = ": ".join(part for part in (self.where, path_text(self.path)) if part)
        return f"{self.level}: {place}: {self.message}" if place else f"{self.level}: {self.message}"


def path_text(path: Path) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """Plain values with the line on which each began (1-based) and the keys written twice."""

    value: dict[str, Any]
    lines: Mapping[Path, int]
    repeated: tuple[Path, ...] = field(default=())

    def line(self, path: Path) -> int:
        """The line of `path`, or of the nearest thing above it that is written down."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def parse(text: str, where: str) -> Document:
    """Read YAML; a syntax error raises JobError with the line."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark
        line = mark.line + 1 if mark else 1
        raise JobError(f"{where}:{line}: not YAML: {exc.problem or exc}") from exc
    except yaml.YAMLError as exc:
        raise JobError(f"{where}: not YAML: {exc}") from exc
    if not isinstance(root, yaml.MappingNode):
        raise JobError(f"{where}: expected a mapping of keys to values at the top")
    lines: dict[Path, int] = {}
    repeated: list[Path] = []
    for path, line, is_repeated in _walk(root, ()):
        lines[path] = line
        if is_repeated:
            repeated.append(path)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as exc:
        raise JobError(f"{where}: not plain YAML: {exc}") from exc
    return Document(value=value, lines=lines, repeated=tuple(repeated))


def _walk(node: yaml.Node, path: Path) -> Iterator[tuple[Path, int, bool]]:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, child in node.value:
            name = str(key.value)
            yield (*path, name), key.start_mark.line + 1, name in seen
            seen.add(name)
            yield from _walk(child, (*path, name))
    elif isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            yield (*path, index), child.start_mark.line + 1, False
            yield from _walk(child, (*path, index))


def place_in_words(document: Document, message: str) -> Path:
    """The longest value of the document that a message quotes: where a finding without a place belongs."""
    best: Path = ()
    longest = 3
    for path in document.lines:
        value = at(document.value, *path)
        if isinstance(value, str) and len(value) > longest and value in message.split():
            best, longest = path, len(value)
    return best


def at(value: Any, *path: str | int) -> Any:
    """Walk down `path`; None where anything on the way is missing or of another kind."""
    for part in path:
        if isinstance(part, int):
            if not isinstance(value, list) or part >= len(value):
                return None
            value = value[part]
        else:
            if not isinstance(value, dict):
                return None
            value = value.get(part)
    return value


def items(value: Any, *path: str | int) -> tuple[tuple[Path, Any], ...]:
    """The mappings in the list at `path`, each with its own path."""
    found = at(value, *path)
    if not isinstance(found, list):
        return ()
    return tuple(((*path, index), each) for index, each in enumerate(found) if isinstance(each, dict))
