"""What a request asks for: options by query, custom attributes or JSON; kinds of content; Accept."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vsr_hpc.serving.refusals import Refusal

Content = Literal["png", "jpeg", "webp", "planes", "mp4", "mkv", "json", "jsonlines", "recordio"]

MEDIA_TYPES: dict[Content, str] = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "planes": "application/x-vsr-planes",
    "mp4": "video/mp4",
    "mkv": "video/x-matroska",
    "json": "application/json",
    "jsonlines": "application/jsonlines",
    "recordio": "application/x-recordio",
}
_ALIASES: dict[str, Content] = {
    "image/jpg": "jpeg",
    "image/pjpeg": "jpeg",
    "video/matroska": "mkv",
    "video/x-m4v": "mp4",
    "application/x-jsonlines": "jsonlines",
    "application/x-ndjson": "jsonlines",
}
_ALIASES.update({name: content for content, name in MEDIA_TYPES.items()})
_UNDECLARED = (
    "",
    "application/octet-stream",
    "binary/octet-stream",
    "application/x-image",
    "application/x-www-form-urlencoded",  # what curl --data-binary says by itself
)
STILLS: tuple[Content, ...] = ("png", "jpeg", "webp")
CLIPS: tuple[Content, ...] = ("mp4", "mkv")
RECORDS: tuple[Content, ...] = ("jsonlines", "recordio")

_OF_CLIPS = ("codec", "crf", "preset", "audio", "deinterlace", "stream")
_OF_STILLS = ("quality",)

_MAX_ATTRIBUTES = 1024
"""Of SageMaker's custom attributes: visible ASCII."""


class Options(BaseModel):
    """What one request may choose. None of it names a file or an address."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: str | None = Field(None, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")
    scale: float | None = Field(None, gt=0, le=16)
    size: str | None = Field(None, pattern=r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$")
    quality: int | None = Field(None, ge=1, le=100)
    blend: float = Field(0.0, ge=0, le=1)
    grain: float = Field(0.0, ge=0, le=32)
    seed: int = Field(0, ge=0, lt=2**31)
    codec: Literal["h264", "h265", "av1", "ffv1"] | None = None
    crf: int | None = Field(None, ge=0, le=63)
    preset: Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow"] | None = None
    audio: Literal["copy", "aac", "opus", "none"] = "copy"
    deinterlace: bool = False
    stream: bool = False
    """A clip's answer in pieces, without a bound on its size (InvokeEndpointWithResponseStream)."""

    @property
    def width_height(self) -> tuple[int, int] | None:
        if self.size is None:
            return None
        width, _, height = self.size.partition("x")
        return int(width), int(height)


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """A Content-Type, taken apart; `content` is None where it says nothing."""

    content: Content | None
    parameters: Mapping[str, str]


def parse_options(pairs: Iterable[tuple[str, object]]) -> Options:
    """Options from all places together; the same key with two values is a contradiction."""
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found and _text(found[key]) != _text(value):
            raise Refusal(
                422, "option", f"option {key[:40]!r} is given as {str(found[key])[:40]!r} "
                f"and as {str(value)[:40]!r}; give it once"
            )  # fmt: skip
        found[key] = value
    try:
        options = Options.model_validate(found)
    except ValidationError as exc:
        raise Refusal(422, "option", "; ".join(_finding(error) for error in exc.errors()[:8])) from exc
    if options.scale is not None and options.size is not None:
        raise Refusal(422, "option", "scale and size are both given; give one")
    return options


def check_options(options: Options, content: Content) -> None:
    """Refuse what has no meaning for such a picture or clip, so that nobody takes it for done."""
    is_clip = content in CLIPS
    named = [key for key in (_OF_STILLS if is_clip else _OF_CLIPS) if key in options.model_fields_set]
    if named:
        verb = "is" if len(named) == 1 else "are"
        way_out = "for stills; a clip takes crf" if is_clip else "for clips; a still takes quality"
        raise Refusal(422, "option", f"{', '.join(named)} {verb} {way_out}")


def _text(value: object) -> str:
    """As it is written in a query: JSON's number 2 is no other value than `2`."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def attribute_pairs(header: str) -> list[tuple[str, object]]:
    """`scale=2; crf=20` of X-Amzn-SageMaker-Custom-Attributes."""
    if len(header) > _MAX_ATTRIBUTES:
        raise Refusal(
            422, "option", f"custom attributes have {len(header)} characters, at most {_MAX_ATTRIBUTES}"
        )
    pairs: list[tuple[str, object]] = []
    for part in re.split(r"[;,]", header):
        if not part.strip():
            continue
        key, separator, value = part.partition("=")
        if not separator:
            raise Refusal(
                422, "option", f"custom attribute {part.strip()[:60]!r} is not key=value; "
                "write for example scale=2;quality=90"
            )  # fmt: skip
        pairs.append((key.strip(), value.strip()))
    return pairs


def parse_content_type(header: str) -> Declared:
    """The kind that a Content-Type declares. 415 where it is none of ours."""
    name, *rest = header.split(";")
    name = name.strip().lower()
    parameters = {}
    for part in rest:
        key, _, value = part.partition("=")
        parameters[key.strip().lower()] = value.strip().strip('"')
    if name in _UNDECLARED:
        return Declared(content=None, parameters=parameters)
    content = _ALIASES.get(name)
    if content is None:
        raise Refusal(
            415, "content_type", f"Content-Type {name[:80]!r} is not taken; send one of "
            f"{', '.join(MEDIA_TYPES.values())}, or application/octet-stream to have it recognised"
        )  # fmt: skip
    return Declared(content=content, parameters=parameters)


def recognise(body: bytes, declared: Declared) -> Content:
    """What a body is, by its first bytes; 415 where that is not what was declared, or nothing of ours."""
    if declared.content in ("planes", "json", "jsonlines", "recordio"):
        return declared.content
    found = _by_magic(body)
    if found is None:
        said = MEDIA_TYPES[declared.content] if declared.content else "anything known here"
        raise Refusal(415, "content", f"the body ({len(body)} bytes) is not {said}")
    if declared.content is not None and declared.content != found:
        raise Refusal(
            415, "content", f"the body is {MEDIA_TYPES[found]}, Content-Type says "
            f"{MEDIA_TYPES[declared.content]}"
        )  # fmt: skip
    return found


def _by_magic(body: bytes) -> Content | None:
    if body.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if body.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if body[:4] == b"RIFF" and body[8:12] == b"WEBP":
        return "webp"
    if body[4:8] == b"ftyp":
        return "mp4"
    if body.startswith(b"\x1a\x45\xdf\xa3"):
        return "mkv"
    return None


def choose_answer(accept: str, content: Content) -> tuple[Content, bool]:
    """(what to make, whether to wrap it in JSON) by Accept; 406 where nothing acceptable can be made.

    Without a preference the answer is what the request was.
    """
    possible = (*CLIPS,) if content in CLIPS else (*STILLS, "planes")
    own: Content = content
    ranges = sorted(_ranges(accept or "*/*"), key=lambda each: -each[1])
    for name, quality in ranges:
        if quality <= 0:
            continue
        if name in ("*/*", "*"):
            return own, False
        if name == "application/json":
            return own, True
        if name in (f"{MEDIA_TYPES[own].split('/')[0]}/*", "application/octet-stream"):
            return own, False
        if name == "image/*" and content == "planes":
            return "png", False
        wanted = _ALIASES.get(name)
        if wanted is not None and wanted in possible:
            return wanted, False
    raise Refusal(
        406, "accept", f"Accept {accept[:120]!r} cannot be met; a {MEDIA_TYPES[content]} is answered as "
        f"{', '.join(MEDIA_TYPES[each] for each in possible)} or application/json"
    )  # fmt: skip


def _ranges(accept: str) -> list[tuple[str, float]]:
    ranges = []
    for part in accept.split(",")[:32]:
        name, *rest = part.split(";")
        quality = 1.0
        for each in rest:
            key, _, value = each.partition("=")
            if key.strip().lower() == "q":
                try:
                    quality = min(1.0, max(0.0, float(value)))
                except ValueError:
                    quality = 0.0
        if name.strip():
            ranges.append((name.strip().lower(), quality if quality == quality else 0.0))
    return ranges


def _finding(error: object) -> str:
    assert isinstance(error, Mapping)
    key = ".".join(str(part) for part in error["loc"])[:60]
    if error["type"] == "extra_forbidden":
        return f"{key!r} is no option; known: {', '.join(Options.model_fields)}"
    return f"{key}: {error['msg']} (found {str(error['input'])[:60]!r})"
