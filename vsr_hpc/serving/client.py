"""Asking a served model from outside: a server by its URL, or a SageMaker endpoint by its name.

A payload over the real-time limit goes through S3 and the endpoint's asynchronous side by itself. A streamed
clip is written as it comes.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, urlsplit

from vsr_hpc.aws.account import CLIENT_ATTEMPTS, patient_client
from vsr_hpc.aws.errors import error_of_answer, translated
from vsr_hpc.errors import BackendError, JobError, MediaError
from vsr_hpc.serving.limits import SAGEMAKER_PAYLOAD_BYTES
from vsr_hpc.serving.request import MEDIA_TYPES, Content
from vsr_hpc.system.files import write_atomically

if TYPE_CHECKING:
    from http.client import HTTPResponse

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
        elif question.is_async or len(body) > question.payload_bytes:
            way = "async"
            answer = _by_s3(endpoint, question, body, headers)
        elif question.is_streamed:
            way = "stream"
            answer = _by_name_in_pieces(endpoint, question, body, headers)
        else:
            way = "real-time"
            answer = _by_name(endpoint, question, body, headers)
        size = _write(question.output, answer.pieces)
    return Reply(
        output=question.output,
        size_bytes=size,
        media_type=answer.media_type,
        way=way,
        seconds=round(time.monotonic() - began, 3),
        facts=tuple(_pair(part) for part in answer.attributes.split(";") if "=" in part),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    pieces: Iterable[bytes]
    """Whoever takes them raises what goes wrong on the way."""
    media_type: str
    attributes: str = ""


def _headers(question: Question) -> dict[str, str]:
    headers = {"Content-Type": _media_type(question.source), "Accept": _media_type(question.output)}
    if question.options:
        headers["X-Amzn-SageMaker-Custom-Attributes"] = ";".join(f"{k}={v}" for k, v in question.options)
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
    for attempt in range(CLIENT_ATTEMPTS):
        answer = ask()
        pause_s = _pause_s(attempt, answer.getheader("Retry-After"))
        is_busy = answer.status in (429, 503)
        if not is_busy or attempt + 1 == CLIENT_ATTEMPTS or time.monotonic() + pause_s > until:
            break
        log.info("endpoint is busy status=%d pause_s=%.1f", answer.status, pause_s)
        time.sleep(pause_s)
    pieces = _pieces(endpoint, answer)
    if answer.status != 200:
        raise error_of_answer(endpoint, answer.status, b"".join(pieces))
    return _Answer(
        pieces=pieces,
        media_type=answer.getheader("Content-Type", ""),
        attributes=answer.getheader("X-Amzn-SageMaker-Custom-Attributes", ""),
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
def _by_name(endpoint: str, question: Question, body: bytes, headers: Mapping[str, str]) -> _Answer:
    wanted: dict[str, Any] = {"EndpointName": endpoint, "Body": body, **_parameters(question, headers)}
    if question.target_model:
        wanted["TargetModel"] = question.target_model
    if question.variant:
        wanted["TargetVariant"] = question.variant
    with translated(endpoint):
        answer = patient_client("sagemaker-runtime", question.timeout_s).invoke_endpoint(**wanted)
        whole = answer["Body"].read()
    return _Answer(
        pieces=[whole],
        media_type=answer.get("ContentType", ""),
        attributes=answer.get("CustomAttributes", ""),
    )


def _by_name_in_pieces(endpoint: str, question: Question, body: bytes, headers: Mapping[str, str]) -> _Answer:
    if question.target_model:
        raise JobError("a multi-model endpoint answers in one piece; leave stream out")
    wanted: dict[str, Any] = {"EndpointName": endpoint, "Body": body, **_parameters(question, headers)}
    if question.variant:
        wanted["TargetVariant"] = question.variant
    with translated(endpoint):
        answer = patient_client("sagemaker-runtime", question.timeout_s).invoke_endpoint_with_response_stream(
            **wanted
        )
    return _Answer(
        pieces=_events(endpoint, answer["Body"]),
        media_type=answer.get("ContentType", ""),
        attributes=answer.get("CustomAttributes", ""),
    )


def _events(endpoint: str, stream: Any) -> Iterator[bytes]:
    with translated(endpoint), contextlib.closing(stream):
        for event in stream:
            yield event["PayloadPart"]["Bytes"]


def _parameters(question: Question, headers: Mapping[str, str]) -> dict[str, str]:
    found = {"ContentType": headers["Content-Type"], "Accept": headers["Accept"]}
    attributes = headers.get("X-Amzn-SageMaker-Custom-Attributes")
    return found | ({"CustomAttributes": attributes} if attributes else {})


def _by_s3(endpoint: str, question: Question, body: bytes, headers: Mapping[str, str]) -> _Answer:
    """Upload, invoke, wait for the output or the failure, take it, remove the upload."""
    bucket, prefix = _input_place(endpoint, question)
    key = f"{prefix}{hashlib.sha256(body).hexdigest()[:16]}-{os.getpid()}-{time.time_ns():x}"
    s3 = patient_client("s3", question.timeout_s)
    with translated(endpoint):
        s3.put_object(Bucket=bucket, Key=key, Body=body, ContentType=headers["Content-Type"])
        try:
            begun = patient_client("sagemaker-runtime", 70).invoke_endpoint_async(
                EndpointName=endpoint,
                InputLocation=f"s3://{bucket}/{key}",
                InvocationTimeoutSeconds=max(1, min(3600, int(question.timeout_s))),
                **_parameters(question, headers),
            )
            log.info("asynchronous request begun output=%s", begun["OutputLocation"])
            answer, kind = _awaited(
                s3, endpoint, begun["OutputLocation"], begun.get("FailureLocation"), question.timeout_s
            )
        finally:
            s3.delete_object(Bucket=bucket, Key=key)
    return _Answer(pieces=[answer], media_type=kind or headers["Accept"])


def _awaited(s3: Any, endpoint: str, output: str, failure: str | None, timeout_s: float) -> tuple[bytes, str]:
    until, pause_s = time.monotonic() + timeout_s, 0.25
    while True:
        found = _object(s3, output)
        if found is not None:
            return found
        told = _object(s3, failure) if failure else None
        if told is not None:
            raise error_of_answer(endpoint, 424, told[0])
        if time.monotonic() + pause_s > until:
            raise BackendError(
                f"{endpoint}: no answer at {output} within {timeout_s:g} s; the endpoint may be scaling "
                "up from zero. The answer will lie there once it is done; --timeout waits longer"
            )
        time.sleep(pause_s)
        pause_s = min(5.0, pause_s * 1.5)


def _object(s3: Any, uri: str) -> tuple[bytes, str] | None:
    from botocore.exceptions import ClientError

    bucket, key = _taken_apart(uri)
    try:
        found = s3.get_object(Bucket=bucket, Key=key)
    except ClientError as exc:
        if exc.response["Error"]["Code"] in ("NoSuchKey", "404"):
            return None
        raise
    return found["Body"].read(), str(found.get("ContentType", ""))


def _input_place(endpoint: str, question: Question) -> tuple[str, str]:
    """(bucket, prefix) for the input: where the user says, or beside the endpoint's own outputs."""
    place = question.s3
    if place is None:
        sagemaker = patient_client("sagemaker", 60)
        with translated(endpoint):
            config = sagemaker.describe_endpoint_config(
                EndpointConfigName=sagemaker.describe_endpoint(EndpointName=endpoint)["EndpointConfigName"]
            )
        outputs = config.get("AsyncInferenceConfig", {}).get("OutputConfig", {}).get("S3OutputPath")
        if outputs is None:
            size = question.source.stat().st_size
            raise JobError(
                f"{question.source}: {size} bytes do not fit into a real-time request "
                f"({question.payload_bytes}), and endpoint {endpoint} is not asynchronous; "
                "send less, or create it with async in its endpoint.yaml"
            )
        place = f"{outputs.rstrip('/')}/inputs"
    bucket, prefix = _taken_apart(place)
    return bucket, f"{prefix.rstrip('/')}/" if prefix else ""


def _taken_apart(uri: str) -> tuple[str, str]:
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme != "s3" or not bucket:
        raise JobError(f"{uri}: write s3://bucket/prefix")
    return bucket, key


"""Come inside of an answer, under a status that says nothing; may be gone when one comes again."""


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
