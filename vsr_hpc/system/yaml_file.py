"""A YAML file that a person wrote: hostile or mistaken, it ends in one sentence, no hang, no flood."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from vsr_hpc.errors import JobError
from vsr_hpc.system.files import describe_missing

_LARGEST_BYTES = 1 << 20


def read_mapping(path: Path, noun: str, holds: str, *, no_text_hint: str = "") -> dict[str, Any]:
    """The mapping in a file. A JobError names what was expected (`noun`) and what it `holds`."""
    text = _read(path, noun, no_text_hint)
    try:
        document = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as exc:  # ValueError: a date such as 2026-99-99
        raise JobError(f"{path}: not YAML: {_one_line(exc)}") from exc
    except RecursionError as exc:
        raise JobError(f"{path}: not YAML that we read: nested too deeply") from exc
    if not isinstance(document, dict):
        raise JobError(f"{path}: {noun} is a mapping with {holds}; found {_kind(document)}")
    return document


def _read(path: Path, noun: str, no_text_hint: str) -> str:
    bare = noun.partition(" ")[2]
    if not path.exists():
        raise JobError(f"{path}: {describe_missing(path)}")
    if not path.is_file():
        raise JobError(f"{path}: {noun} is a plain file of YAML, this is none")
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise JobError(f"{path}: {path.stat().st_size} bytes is no {bare}")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as exc:
        raise JobError(f"{path}: is no text, so no {bare}{no_text_hint}") from exc
    except OSError as exc:
        raise JobError(f"{path}: cannot be read ({exc.strerror})") from exc


class _Loader(yaml.SafeLoader):
    """Safe YAML in which only true and false are truth values, so that `on:` is a word (as in YAML 1.2).

    A key that is written twice is refused: plain YAML takes the last one in silence.
    """

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"{key.value!r} is there twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$", re.I), list("tTfF"))


def _kind(document: object) -> str:
    return "an empty file" if document is None else f"a {type(document).__name__}"


def _one_line(exc: Exception) -> str:
    return " ".join(str(exc).split())[:300]
