"""The keys of a job file and their command-line options, read from the fields of the job.

`vsr_hpc.job.spec` holds the facts; nothing here knows a key by its name. Help texts,
docs/cli.md and the command that a report shows are made from these values.
"""

from __future__ import annotations

import shlex
import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from vsr_hpc.job.spec import JobSpec, Option, Panel

PANELS: tuple[Panel, ...] = get_args(Panel)
_LARGEST_SHOWN = 1000
"""Limits above this only keep typing errors out; a help text does not show them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobKey:
    """One key of the job file, and its command-line option if it has one."""

    key: str
    """With its section: `picture.scale`."""
    description: str
    default: str
    """As a person writes it; empty where nothing is set by default."""
    choices: tuple[str, ...]
    """The words that it can be."""
    metavar: str
    """Its value in a help text; empty for a switch, which has none."""
    is_repeated: bool
    option: Option | None

    @property
    def name(self) -> str:
        """The option's long name, and the key itself where there is no option."""
        if self.option is None:
            return self.key
        return self.option.name or f"--{self.key.rpartition('.')[2].replace('_', '-')}"

    @property
    def names(self) -> tuple[str, ...]:
        """All names of the option."""
        return () if self.option is None else (self.name, *self.option.also)

    def words(self, value: Any) -> list[str]:
        """The words of a command line that give this key `value`."""
        assert self.option is not None
        if not self.metavar:
            is_set = value == self.option.flag_value if self.option.flag_value else bool(value)
            return [self.name] if is_set else []
        texts = (
            [as_text(each, self.option) for each in value]
            if self.is_repeated
            else [as_text(value, self.option)]
        )
        return [word for text in texts for word in (self.name, text)]


def job_keys(spec: type[BaseModel] | None = None) -> tuple[JobKey, ...]:
    """All keys of a job file, in the order of its sections."""
    return _keys_of(spec or JobSpec)


def job_options(spec: type[BaseModel] | None = None) -> tuple[JobKey, ...]:
    """The keys that have an option, in the order in which a help text shows them."""
    keys = [(PANELS.index(key.option.panel), key) for key in job_keys(spec) if key.option is not None]
    return tuple(key for _, key in sorted(keys, key=lambda each: each[0]))


def spell_option(place: str) -> str:
    """The option that sets a key or a part of it (`video.params.x`); the key itself where there is none."""
    found = [key for key in job_options() if place == key.key or place.startswith(f"{key.key}.")]
    return found[0].name if found else place


def command_line(job: JobSpec) -> str:
    """The command that does this job again."""
    if job.on != "local":
        return f"vsr submit job.yaml --on {job.on}"
    document = job.model_dump(by_alias=True, exclude_defaults=True) | {"model": job.model}
    document.pop("overwrite", None)  # a person decides that anew
    document.get("run", {}).pop("notify", None)  # an address can hold a secret, and reports are shared
    words = ["vsr", "upscale", job.input, job.output]
    for key in job_options(type(job)):
        section, _, name = key.key.rpartition(".")
        values = document.get(section, {}) if section else document
        if name in values:
            words += key.words(values[name])
    return shlex.join(words)


def as_text(value: Any, option: Option | None = None) -> str:
    """A value as a person writes it on a command line."""
    separator = (option.separator if option else None) or ","
    if isinstance(value, dict):
        return separator.join(f"{key}={text}" for key, text in value.items())
    if isinstance(value, (list, tuple)):
        return separator.join("" if each is None else str(each) for each in value)
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    return str(value)


@cache
def _keys_of(spec: type[BaseModel]) -> tuple[JobKey, ...]:
    return tuple(_walk(spec, ""))


def _walk(model: type[BaseModel], section: str) -> Iterator[JobKey]:
    for name, field in model.model_fields.items():
        key = f"{section}{field.alias or name}"
        inner = next((each for each in _parts(field.annotation) if _is_section(each)), None)
        if inner is None:
            yield _job_key(key, field)
        else:
            yield from _walk(inner, f"{key}.")


def _job_key(key: str, field: FieldInfo) -> JobKey:
    option = next((each for each in field.metadata if isinstance(each, Option)), None)
    parts = _parts(field.annotation)
    choices = tuple(str(word) for part in parts if get_origin(part) is Literal for word in get_args(part))
    default = field.get_default(call_default_factory=True)
    is_switch = bool in parts or (option is not None and option.flag_value is not None)
    is_list = any(get_origin(part) is tuple for part in parts)
    return JobKey(
        key=key,
        description=field.description or "",
        default="" if default in (None, (), {}, False) or field.is_required() else as_text(default, option),
        choices=() if is_switch else choices,
        metavar="" if is_switch else (option and option.metavar) or _metavar(parts, choices, field),
        is_repeated=is_list and (option is None or option.separator is None),
        option=option,
    )


def _metavar(parts: tuple[Any, ...], choices: tuple[str, ...], field: FieldInfo) -> str:
    if int in parts:
        least, most = (_limit(field, name) for name in ("ge", "le"))
        is_short = least is not None and most is not None and most < _LARGEST_SHOWN
        number = f"{least}..{most}" if is_short else "N"
    else:
        number = "NUMBER" if float in parts else ""
    return "|".join(filter(None, (number, *choices))) or "TEXT"


def _limit(field: FieldInfo, name: str) -> int | None:
    return next((getattr(each, name) for each in field.metadata if hasattr(each, name)), None)


def _parts(annotation: Any) -> tuple[Any, ...]:
    """The types that a field may have, without None and without what is only said about them."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _parts(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return tuple(part for each in get_args(annotation) for part in _parts(each))
    return () if annotation is type(None) else (annotation,)


def _is_section(part: Any) -> bool:
    return isinstance(part, type) and issubclass(part, BaseModel)
