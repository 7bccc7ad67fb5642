"""Requests to a SageMaker endpoint by its name: in one piece, streamed, or asynchronous through S3."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from botocore.exceptions import ClientError

from vsr_hpc.aws.account import client
from vsr_hpc.aws.errors import error_code, explained
from vsr_hpc.aws.limits import limit
from vsr_hpc.errors import BackendError, JobError, VsrError

log = logging.getLogger(__name__)


EndpointWay = Literal["real-time", "stream", "async"]
ModelError = Callable[[str, int, bytes], VsrError]
"""Gives the error for a model's refusal: from the endpoint's name, the HTTP status and the body."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """One request to an endpoint, as SageMaker takes it."""

    endpoint: str
    body: bytes
    content_type: str
    accept: str
    attributes: str = ""
    target_model: str | None = None
    """The archive's name, where the endpoint serves several models."""
    variant: str | None = None
    timeout_s: float = 900.0
    s3: str | None = None
    """Where an asynchronous input goes: s3://bucket/prefix; beside the endpoint's outputs if left out."""

    @property
    def parameters(self) -> dict[str, str]:
        found = {"EndpointName": self.endpoint, "ContentType": self.content_type, "Accept": self.accept}
        return found | ({"CustomAttributes": self.attributes} if self.attributes else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointAnswer:
    pieces: Iterable[bytes]
    """Reading them raises what goes wrong on the way."""
    media_type: str
    attributes: str = ""


def invoke(way: EndpointWay, request: Invocation, model_error: ModelError) -> EndpointAnswer:
    """Send the request and give its answer. `model_error` translates what the model's container refuses."""
    if way == "async":
        return _invoke_async(request, model_error)
    if way == "stream":
        return _invoke_streamed(request, model_error)
    return _invoke_real_time(request, model_error)


@contextlib.contextmanager
def _translate_errors(request: Invocation, model_error: ModelError) -> Iterator[None]:
    """Errors of AWS by `explained`, and the container's own refusals by the words that it answered with."""
    with explained(f"endpoint {request.endpoint}"):
        try:
            yield
        except ClientError as exc:
            if error_code(exc) != "ModelError":
                raise
            status = int(exc.response.get("OriginalStatusCode", 0) or 424)
            text = str(exc.response.get("OriginalMessage") or exc.response["Error"].get("Message", ""))
            raise model_error(request.endpoint, status, text.encode()) from exc


def _runtime(request: Invocation, longest_s: int) -> Any:
    """A client that waits a little longer than SageMaker does, so that SageMaker's own words are heard."""
    return client("sagemaker-runtime", timeout_s=max(longest_s + 10.0, request.timeout_s))


def _invoke_real_time(request: Invocation, model_error: ModelError) -> EndpointAnswer:
    wanted: dict[str, Any] = {"Body": request.body, **request.parameters}
    if request.target_model:
        wanted["TargetModel"] = request.target_model
    if request.variant:
        wanted["TargetVariant"] = request.variant
    with _translate_errors(request, model_error):
        answer = _runtime(request, limit("real_time_s")).invoke_endpoint(**wanted)
        whole = answer["Body"].read()
    return EndpointAnswer(
        pieces=[whole],
        media_type=answer.get("ContentType", ""),
        attributes=answer.get("CustomAttributes", ""),
    )


def _invoke_streamed(request: Invocation, model_error: ModelError) -> EndpointAnswer:
    if request.target_model:
        raise JobError("a multi-model endpoint answers in one piece; leave stream out")
    wanted: dict[str, Any] = {"Body": request.body, **request.parameters}
    if request.variant:
        wanted["TargetVariant"] = request.variant
    with _translate_errors(request, model_error):
        answer = _runtime(request, limit("stream_s")).invoke_endpoint_with_response_stream(**wanted)
    return EndpointAnswer(
        pieces=_read_events(request, answer["Body"], model_error),
        media_type=answer.get("ContentType", ""),
        attributes=answer.get("CustomAttributes", ""),
    )


def _read_events(request: Invocation, stream: Any, model_error: ModelError) -> Iterator[bytes]:
    with _translate_errors(request, model_error), contextlib.closing(stream):
        for event in stream:
            yield event["PayloadPart"]["Bytes"]


def _invoke_async(request: Invocation, model_error: ModelError) -> EndpointAnswer:
    """Upload the input, invoke, wait for the output or the failure, read it, remove the upload.

    SageMaker reads the input when an instance takes the request, so the input stays while no answer is there.
    """
    most = limit("asynchronous_payload_mb")
    if len(request.body) > most * 1_000_000:
        raise JobError(
            f"{len(request.body)} bytes are more than the {most} MB that SageMaker takes of an input"
        )
    with _translate_errors(request, model_error):
        bucket, prefix = _input_location(request)
        key = f"{prefix}{hashlib.sha256(request.body).hexdigest()[:16]}-{os.getpid()}-{time.time_ns():x}"
        s3 = client("s3", timeout_s=max(70.0, request.timeout_s))
        s3.put_object(Bucket=bucket, Key=key, Body=request.body, ContentType=request.content_type)
        try:
            begun = client("sagemaker-runtime").invoke_endpoint_async(
                InputLocation=f"s3://{bucket}/{key}",
                InvocationTimeoutSeconds=max(1, min(limit("asynchronous_s"), int(request.timeout_s))),
                **request.parameters,
            )
        except BaseException:
            s3.delete_object(Bucket=bucket, Key=key)  # no request knows of it
            raise
        output = begun["OutputLocation"]
        log.info("asynchronous request begun output=%s", output)
        found, is_refused = _wait_for_output(s3, request, output, begun.get("FailureLocation"))
        if found is None:
            raise BackendError(
                f"{request.endpoint}: no answer at {output} within {request.timeout_s:g} s; the endpoint may "
                "be starting its first instance. The answer will lie there once an instance has read "
                f"s3://{bucket}/{key}; delete that object then. --timeout waits longer"
            )
        s3.delete_object(Bucket=bucket, Key=key)
        answer, kind = found
        if is_refused:
            raise model_error(request.endpoint, 424, answer)
    return EndpointAnswer(pieces=[answer], media_type=kind or request.accept)


def _wait_for_output(
    s3: Any, request: Invocation, output: str, failure: str | None
) -> tuple[tuple[bytes, str] | None, bool]:
    """The answer, or the model's refusal and True; None where neither came in time."""
    until, pause_s = time.monotonic() + request.timeout_s, 0.25
    while True:
        found = _read_object(s3, output)
        if found is not None:
            return found, False
        refusal = _read_object(s3, failure) if failure else None
        if refusal is not None:
            return refusal, True
        if time.monotonic() + pause_s > until:
            return None, False
        time.sleep(pause_s)
        pause_s = min(5.0, pause_s * 1.5)


def _read_object(s3: Any, uri: str) -> tuple[bytes, str] | None:
    """(content, its media type) of an object; None where there is none yet."""
    bucket, key = _split(uri)
    try:
        found = s3.get_object(Bucket=bucket, Key=key)
    except ClientError as exc:
        if error_code(exc) in ("NoSuchKey", "404"):
            return None
        raise
    return found["Body"].read(), str(found.get("ContentType", ""))


def _input_location(request: Invocation) -> tuple[str, str]:
    """(bucket, prefix) for the input: where the user says, or beside the endpoint's own outputs."""
    place = request.s3
    if place is None:
        sagemaker = client("sagemaker")
        there = sagemaker.describe_endpoint(EndpointName=request.endpoint)
        config = sagemaker.describe_endpoint_config(EndpointConfigName=there["EndpointConfigName"])
        outputs = config.get("AsyncInferenceConfig", {}).get("OutputConfig", {}).get("S3OutputPath")
        if outputs is None:
            raise JobError(
                f"{len(request.body)} bytes go only through an asynchronous endpoint, and endpoint "
                f"{request.endpoint} is not asynchronous; send less, or up to "
                f"{limit('real_time_payload_mb')} MB at once with --max-payload-mb, or create the endpoint "
                "with async in its endpoint.yaml"
            )
        place = f"{outputs.rstrip('/')}/inputs"
    bucket, prefix = _split(place)
    return bucket, f"{prefix.rstrip('/')}/" if prefix else ""


def _split(uri: str) -> tuple[str, str]:
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme != "s3" or not bucket:
        raise JobError(f"{uri}: write s3://bucket/prefix")
    return bucket, key
