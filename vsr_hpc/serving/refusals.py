"""Why a request is refused, with its HTTP status; and a refusal that was received, as an error."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from vsr_hpc.errors import BackendError, JobError, MediaError, SpaceError, VerifyError, VsrError


class Refusal(Exception):
    """A request that is answered with an error status; nothing else is touched by it."""

    def __init__(
        self,
        status: int,
        code: str,
        text: str,
        headers: Mapping[str, str] | None = None,
        numbers: Mapping[str, float | int | str] | None = None,
    ) -> None:
        super().__init__(text)
        self.status, self.code, self.text = status, code, text
        self.headers, self.numbers = headers or {}, numbers or {}


def payload_too_large(found: int | str, limit: int) -> Refusal:
    return Refusal(
        413,
        "payload_too_large",
        f"the request's body is {found} bytes, at most {limit} are taken here; "
        "send it through an asynchronous endpoint (vsr endpoint invoke does so by itself)",
        numbers={"found_bytes": found, "limit_bytes": limit},
    )


def answer_too_large(found: int | str, limit: int) -> Refusal:
    return Refusal(
        413,
        "answer_too_large",
        f"the answer would be {found} bytes, at most {limit} go through here; "
        "ask for image/webp or image/jpeg by Accept, for a smaller scale, "
        "for stream=true with a clip, or use an asynchronous endpoint",
        numbers={"found_bytes": found, "limit_bytes": limit},
    )


def too_many_pixels(which: str, width: int, height: int, limit: int) -> Refusal:
    return Refusal(
        422,
        "too_many_pixels",
        f"the {which} picture is {width}x{height} = {width * height} pixels, at most {limit} are allowed",
        numbers={"found_pixels": width * height, "limit_pixels": limit},
    )


def too_long(found: float, limit: float, unit: str) -> Refusal:
    return Refusal(
        422,
        "clip_too_long",
        f"the clip has {found:g} {unit}, at most {limit:g} are taken here; "
        "cut it, or run it as a job: vsr upscale, vsr submit",
        numbers={f"found_{unit}": found, f"limit_{unit}": limit},
    )


def past_deadline(seconds: float) -> Refusal:
    return Refusal(
        503,
        "deadline",
        f"no answer within {seconds:g} s; send less at a time, come again later, "
        "or use an asynchronous endpoint",
        {"Retry-After": "5"},
        {"deadline_s": seconds},
    )


def refusal_for(error: VsrError, private: Path | None = None) -> Refusal:
    """An error of the library as an answer, without the server's own folder in its text."""
    text = str(error) if private is None else str(error).replace(f"{private}/", "")
    if isinstance(error, MediaError):
        return Refusal(422, "media", text)
    if isinstance(error, JobError):
        return Refusal(422, "request", text)
    if isinstance(error, (BackendError, SpaceError, VerifyError)):
        return Refusal(503, "backend", text, {"Retry-After": "5"})
    return Refusal(503, "server", text, {"Retry-After": "30"})


def error_of_answer(endpoint: str, status: int, answer: bytes) -> VsrError:
    """The error for an answer that a server of ours refused with, in the server's own words."""
    try:
        text = str(json.loads(answer)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        text = answer[:300].decode(errors="replace").strip() or "no reason given"
    message = f"{endpoint} answers {status}: {text}"
    if status in (429, 503) or status >= 500:
        return BackendError(message)
    is_about_the_clip = status in (413, 415) or b'"code": "media"' in answer[:60]
    return MediaError(message) if is_about_the_clip else JobError(message)
