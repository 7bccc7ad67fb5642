"""What differs between the settings of a run and those of a job, in words and values that a person knows."""

from __future__ import annotations

import json
from typing import Any

from vsr_hpc.job.options import as_text, spell_option

_CHANGED = {
    "input": "the content of the input has changed",
    "weights": "the weights of the model have changed",
    "denoise weights": "the weights of the model's denoising variant have changed",
    "pixel path": "this version of vsr_hpc computes pictures in another way",
    "scene cuts": "this version of vsr_hpc finds scene cuts in another way",
}
"""What has no value that a person knows."""
_NAMES = {
    "output size": "the output's size",
    "pixel format": "the output's pixel format",
    "frames": "the frames (--from, --to, --frames)",
    "quality": "the quality",
}
_FOLLOWS = {
    "video.pixel": "pixel format",
    "video.suffix": "video.codec",
    "video.encoder": "video.codec",
    "video.keyframe_interval": "video.codec",
}
"""Settings that follow from another one, and are named only where they differ alone."""


def describe_differences(before: dict[str, str], now: dict[str, str]) -> tuple[str, ...]:
    """One sentence for each setting of two fingerprints that differs; nothing where they are alike."""
    old, new = _readable(before), _readable(now)
    differing = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    named = [key for key in differing if _FOLLOWS.get(key) not in differing]
    return tuple(_sentence(key, old.get(key), new.get(key)) for key in named)


def describe_changes(before: dict[str, Any], now: dict[str, Any]) -> tuple[str, ...]:
    """The same for two jobs as plain values, where there is no plan yet."""
    old, new = _flattened(before), _flattened(now)
    return tuple(
        f"{spell_option(key)} was {_show(key, old.get(key))}, now {_show(key, new[key])}"
        for key in new
        if old.get(key) != new[key]
    )


def _readable(fingerprint: dict[str, str]) -> dict[str, Any]:
    values = {key: json.loads(text) for key, text in fingerprint.items()}
    if "video.rate" in values:
        kind, rate = values.pop("video.rate_kind", "rate"), values.pop("video.rate")
        values["quality"] = "lossless" if kind == "lossless" else f"{kind.upper()} {rate:g}"
    return values


def _flattened(values: dict[str, Any], section: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flattened(value, f"{key}.") if isinstance(value, dict) else {f"{section}{key}": value}
    return flat


def _sentence(key: str, old: Any, new: Any) -> str:
    if key in _CHANGED:
        return _CHANGED[key]
    if key == "encoder build":
        return _describe_builds(str(old), str(new))
    return f"{_NAMES.get(key) or spell_option(key)} was {_show(key, old)}, now {_show(key, new)}"


def _show(key: str, value: Any) -> str:
    if value in (None, [], {}, ()):
        return "not set"
    if isinstance(value, bool):
        return "set" if value else "not set"
    if key == "frames":
        return f"{value[0]} to {value[1] - 1}"
    if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(each, list) for each in value)):
        pairs = value.items() if isinstance(value, dict) else value
        return ":".join("=".join(map(str, pair)) for pair in pairs)
    return as_text(value)


def _describe_builds(old: str, new: str) -> str:
    """PyAV's version where that differs: it brings FFmpeg and the encoders with it."""
    versions = [dict(part.split("-", 1) for part in build.split() if "-" in part) for build in (old, new)]
    was, now = (each.get("PyAV", "unknown") for each in versions)
    if was != now:
        return f"PyAV was {was}, now {now}; `pip install av=={was}` brings the same encoders back"
    return f"PyAV {now} is another build, whose encoders may write other bytes; install the same one again"
