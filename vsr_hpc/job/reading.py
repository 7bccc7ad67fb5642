"""Reads a job file and reports every mistake in it as a sentence."""

from __future__ import annotations

import difflib
import os
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vsr_hpc.errors import JobError
from vsr_hpc.job.spec import JobSpec
from vsr_hpc.models.cards import WEIGHT_SUFFIXES
from vsr_hpc.system.yaml_file import read_mapping


def load_job(path: Path) -> JobSpec:
    """Read a job file. Relative paths start from its folder. Raises JobError with all findings."""
    clip_hint = f"; a clip goes to `vsr upscale {path} OUT`"
    document = read_mapping(path, "a job file", "input, output and model", no_text_hint=clip_hint)
    job = parse_job(document, str(path))
    return job.model_copy(
        update={"input": _relative_to(path, job.input), "output": _relative_to(path, job.output)}
        | ({"model": _relative_to(path, job.model)} if _is_file_of_weights(path, job.model) else {})
    )


def parse_job(
    document: dict[str, Any], where: str, *, spell: Callable[[str], str] = lambda key: key
) -> JobSpec:
    """Check a job given as plain values. Raises JobError with all findings at once.

    `spell` turns a key into what the person wrote, where that was not a job file.
    """
    try:
        return JobSpec.model_validate(document)
    except ValidationError as exc:
        raise JobError.from_findings(where, _findings(exc, spell)) from exc


def override(written: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Lay settings by their dotted keys (`video.crf`) over a job's plain values."""
    whole = {key: dict(value) if isinstance(value, Mapping) else value for key, value in written.items()}
    for place, value in given.items():
        section, _, key = place.rpartition(".")
        (whole.setdefault(section, {}) if section else whole)[key] = value
    return whole


def _findings(error: ValidationError, spell: Callable[[str], str]) -> list[str]:
    """One line for each key. A value that may have several types is reported once, not for each type."""
    grouped: dict[tuple[Any, ...], list[Any]] = {}
    for each in error.errors():
        grouped.setdefault(_place_of(each["loc"]), []).append(each)
    return [_finding(place, found, spell) for place, found in grouped.items()]


def _place_of(location: tuple[Any, ...]) -> tuple[Any, ...]:
    """The place in the file, without the types that pydantic tried and adds to it."""
    model: Any = JobSpec
    for depth, part in enumerate(location):
        if not hasattr(model, "model_fields"):
            is_value = isinstance(part, int) or model is dict
            return location[: depth + 1] if is_value else location[:depth]
        field = next((f for name, f in model.model_fields.items() if part in (name, f.alias)), None)
        if field is None:
            return location[: depth + 1]
        model = dict if str(field.annotation).startswith("dict") else field.annotation
        model = next((a for a in getattr(model, "__args__", ()) if hasattr(a, "model_fields")), model)
    return location


def _finding(place: tuple[Any, ...], errors: list[Any], spell: Callable[[str], str]) -> str:
    key = ".".join(map(str, place))
    shown, error = spell(key) or "job", errors[0]
    if error["type"] == "extra_forbidden":
        return f"{shown}: unknown key{_suggest_keys(place)}"
    if error["type"] == "missing":
        return f"{shown}: missing"
    first, *others = dict.fromkeys(_describe(each) for each in errors)
    text = " or ".join([first, *(each.removeprefix("must be ") for each in others)])
    if error["type"] == "value_error":  # our validators' messages name the value themselves
        return f"{shown}: {text}"
    return f"{shown}: {text}, not {_show_value(error)}"


def _show_value(error: Any) -> str:
    """The value that was found. An option's number arrives as a text and is shown without quotes."""
    value = error["input"]
    is_number = isinstance(value, str) and error["type"].startswith(("greater_than", "less_than"))
    return value if is_number else _short.repr(value)


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60
_short.maxlevel, _short.maxlist, _short.maxtuple = 1, 3, 3

_WORDS = {
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be a text",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping of keys",
    "model_attributes_type": "must be a mapping of keys",
}


def _describe(error: Any) -> str:
    words = _WORDS.get(error["type"])
    if words is None:
        return str(error["msg"]).removeprefix("Value error, ")
    limits = {
        key: f"{value:g}" if isinstance(value, float) else value
        for key, value in error.get("ctx", {}).items()
    }
    return words.format(**limits)


def _suggest_keys(place: tuple[Any, ...]) -> str:
    model: Any = JobSpec
    for part in place[:-1]:
        field = model.model_fields.get(part)
        if field is None:
            return ""
        found = (field.annotation, *getattr(field.annotation, "__args__", ()))
        model = next((each for each in found if hasattr(each, "model_fields")), None)
        if model is None:
            return ""
    known = [field.alias or name for name, field in model.model_fields.items()]
    close = difflib.get_close_matches(str(place[-1]), known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"


def _is_file_of_weights(path: Path, model: str) -> bool:
    return "/" in model or (bool(Path(model).suffix) and (path.parent / model).is_file())


def _relative_to(path: Path, value: str) -> str:
    if "://" in value or Path(value).is_absolute():
        return value
    return str(path.parent / Path(value).expanduser())


def with_absolute_paths(job: JobSpec) -> JobSpec:
    """The job with absolute paths, which mean the same in every folder and on every node."""
    places = {"input": job.input, "output": job.output}
    if "/" in job.model or job.model.lower().endswith(WEIGHT_SUFFIXES):
        places["model"] = job.model
    update: dict[str, object] = {key: _absolute(place) for key, place in places.items()}
    if job.run.location:
        update["run"] = job.run.model_copy(update={"location": _absolute(job.run.location)})
    return job.model_copy(update=update)


def _absolute(place: str) -> str:
    """The absolute path. Symbolic links stay: nodes may see a share only by the name that the user wrote."""
    if "://" in place:
        return place
    return os.path.abspath(place) + "/" * place.endswith("/")  # noqa: PTH100 - keeps links, drops `..`
