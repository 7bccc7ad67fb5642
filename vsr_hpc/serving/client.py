"""Sends pictures and clips to a served model: to a server by its URL, or to a SageMaker endpoint by its name.

A payload over the real-time limit goes the asynchronous way through S3 by itself. A streamed clip is written
as it arrives. What concerns SageMaker is in `vsr_hpc/aws/endpoint/invocation.py`.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote, urlsplit

from vsr_hpc.errors import BackendError, JobError, MediaError
from vsr_hpc.serving.limits import SAGEMAKER_PAYLOAD_BYTES
from vsr_hpc.serving.refusals import error_of_answer
from vsr_hpc.serving.request import MEDIA_TYPES, Content
from vsr_hpc.system.files import write_atomically

if TYPE_CHECKING:
    from http.client import HTTPResponse

    from vsr_hpc.aws.endpoint.invocation import EndpointWay

log = logging.getLogger(__name__)


Way = Literal["url", "real-time", "stream", "async"]

_BY_SUFFIX: dict[str, Content] = {
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".webp": "webp",
    ".mp4": "mp4",
    ".mkv": "mkv",
    ".json": "json",
    ".jsonl": "jsonlines",
}
_PIECE_BYTES = 64 << 10
_LONGEST_PAUSE_S = 30.0
_ATTEMPTS = 5
_ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"
"""The header that carries options; servers of ours take it, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One thing to be made bigger, and how."""

    source: Path
    output: Path
    options: tuple[tuple[str, str], ...] = ()
    target_model: str | None = None
    """Of a multi-model endpoint."""
    variant: str | None = None
    timeout_s: float = 900.0
    payload_bytes: int = SAGEMAKER_PAYLOAD_BYTES
    is_async: bool = False
    token: str = field(default="", repr=False)
    """Sent to a server that is named by its URL, over HTTPS or to this machine only."""
    s3: str | None = None
    """Where an asynchronous input goes: s3://bucket/prefix; beside the endpoint's outputs if left out."""

    @property
    def is_streamed(self) -> bool:
        return ("stream", "true") in self.options


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What was written, and how it came."""

    output: Path
    size_bytes: int
    media_type: str
    way: Way
    seconds: float
    facts: tuple[tuple[str, str], ...] = ()


def invoke(endpoint: str, question: Question) -> Reply:
    """Ask `endpoint` (a URL or a name) and write the answer. MediaError or JobError where it refuses."""
    began = time.monotonic()
    body = _read(question.source)
    headers = _headers(question)
    with contextlib.ExitStack() as stack:
        if "://" in endpoint:
            way: Way = "url"
            answer = _by_url(endpoint, question, body, headers, stack)
        else:
            named_way = _way_to_name(question, len(body))
            way, answer = named_way, _by_name(endpoint, named_way, question, body, headers)
        size = _write(question.output, answer.pieces)
    return Reply(
        output=question.output,
        size_bytes=size,
        media_type=answer.media_type,
        way=way,
        seconds=round(time.monotonic() - began, 3),
        facts=tuple(_pair(part) for part in answer.attributes.split(";") if "=" in part),
    )


def _way_to_name(question: Question, size_bytes: int) -> EndpointWay:
    if question.is_async or size_bytes > question.payload_bytes:
        return "async"
    return "stream" if question.is_streamed else "real-time"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    pieces: Iterable[bytes]
    """Whoever takes them raises what goes wrong on the way."""
    media_type: str
    attributes: str = ""


def _headers(question: Question) -> dict[str, str]:
    headers = {"Content-Type": _media_type(question.source), "Accept": _media_type(question.output)}
    if question.options:
        headers[_ATTRIBUTES] = ";".join(f"{k}={v}" for k, v in question.options)
    return headers


def _media_type(path: Path) -> str:
    content = _BY_SUFFIX.get(path.suffix.lower())
    if content is None:
        raise JobError(f"{path}: a served model takes and gives {' '.join(_BY_SUFFIX)}")
    return MEDIA_TYPES[content]


# A server by its URL --------------------------------------------------------------------------------------
def _by_url(
    endpoint: str,
    question: Question,
    body: bytes,
    headers: Mapping[str, str],
    stack: contextlib.ExitStack,
) -> _Answer:
    import http.client

    is_safe, host, port, target = _address(endpoint, question.target_model)
    if question.token:
        if not is_safe and host not in ("localhost", "127.0.0.1", "::1"):
            raise JobError(f"{endpoint}: a token goes over https:// only, or to this machine")
        headers = {**headers, "Authorization": f"Bearer {question.token}"}
    kind = http.client.HTTPSConnection if is_safe else http.client.HTTPConnection

    def ask() -> HTTPResponse:
        connection = kind(host, port, timeout=question.timeout_s)
        stack.callback(connection.close)
        try:
            connection.request("POST", target, body, dict(headers))
            return connection.getresponse()
        except (OSError, http.client.HTTPException) as exc:
            raise BackendError(f"{endpoint} does not answer: {exc or type(exc).__name__}") from exc

    until = time.monotonic() + question.timeout_s
    for attempt in range(_ATTEMPTS):
        answer = ask()
        pause_s = _pause_s(attempt, answer.getheader("Retry-After"))
        is_busy = answer.status in (429, 503)
        if not is_busy or attempt + 1 == _ATTEMPTS or time.monotonic() + pause_s > until:
            break
        log.info("endpoint is busy status=%d pause_s=%.1f", answer.status, pause_s)
        time.sleep(pause_s)
    pieces = _pieces(endpoint, answer)
    if answer.status != 200:
        raise error_of_answer(endpoint, answer.status, b"".join(pieces))
    return _Answer(
        pieces=pieces,
        media_type=answer.getheader("Content-Type", ""),
        attributes=answer.getheader(_ATTRIBUTES, ""),
    )


def _address(endpoint: str, target_model: str | None) -> tuple[bool, str, int | None, str]:
    """(whether by TLS, host, port, path with its query). JobError where the URL is none."""
    try:
        parts = urlsplit(endpoint)
        host, port = parts.hostname or "", parts.port
        host.encode("idna")  # as the look-up of its address does
    except ValueError as exc:  # a port above 65535, a bracket that is not closed, an empty label
        raise JobError(f"{endpoint}: no URL ({exc})") from exc
    if parts.scheme not in ("http", "https") or not host:
        raise JobError(f"{endpoint}: write http://HOST:PORT, https://HOST, or an endpoint's name")
    path = parts.path.rstrip("/")
    if not path.endswith(("/invocations", "/invoke")):
        path += f"/models/{target_model}/invoke" if target_model else "/invocations"
    target = quote(f"{path}?{parts.query}" if parts.query else path, safe="/?=&%+;:,@!$'()*~-._")
    return parts.scheme == "https", host, port, target


def _pieces(endpoint: str, answer: HTTPResponse) -> Iterator[bytes]:
    import http.client

    try:
        while piece := answer.read(_PIECE_BYTES):
            yield piece
        if answer.length:  # an answer whose length was told and did not come says nothing by itself
            raise http.client.IncompleteRead(b"", answer.length)
    except (OSError, http.client.HTTPException) as exc:
        known = answer.getheader("X-Request-Id")
        where = f"; its log tells why under the id {known}" if known else ""
        raise BackendError(f"{endpoint}: the answer broke off{where}") from exc


def _pause_s(attempt: int, retry_after: str | None) -> float:
    if retry_after is not None and retry_after.isdigit():
        return min(_LONGEST_PAUSE_S, float(retry_after))
    return min(_LONGEST_PAUSE_S, 0.5 * 2.0**attempt)


# A SageMaker endpoint by its name ---------------------------------------------------------------------------
def _by_name(
    endpoint: str, way: EndpointWay, question: Question, body: bytes, headers: Mapping[str, str]
) -> _Answer:
    from vsr_hpc.aws.endpoint import invocation  # boto3 is loaded only where SageMaker is asked

    request = invocation.Invocation(
        endpoint=endpoint,
        body=body,
        content_type=headers["Content-Type"],
        accept=headers["Accept"],
        attributes=headers.get(_ATTRIBUTES, ""),
        target_model=question.target_model,
        variant=question.variant,
        timeout_s=question.timeout_s,
        s3=question.s3,
    )
    answer = invocation.invoke(way, request, error_of_answer)
    return _Answer(pieces=answer.pieces, media_type=answer.media_type, attributes=answer.attributes)


# Files ----------------------------------------------------------------------------------------------------
def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise MediaError(f"{path}: cannot be read ({exc.strerror})") from exc


def _write(path: Path, pieces: Iterable[bytes]) -> int:
    """Whole or not at all. Gives the size."""
    try:
        return write_atomically(path, pieces)
    except OSError as exc:
        raise JobError(f"{path}: cannot be written ({exc.strerror})") from exc


def _pair(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key.strip(), value.strip()
