"""Which of AWS's refusals pass by themselves. Decided by what came back alone: no boto3 is needed."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from botocore import exceptions as aws

from vsr_hpc.errors import BackendError, JobError, MediaError, VsrError

_PASSING = re.compile(
    r"Throttl|TooManyRequests|RequestLimitExceeded|SlowDown|ServerException|InternalError|InternalFailure|"
    r"ServiceUnavailable|RequestTimeout|ConcurrentModification"
)


def status(response: Mapping[str, Any]) -> int:
    """The HTTP status of an error's response (botocore's `ClientError.response`); 0 where it has none."""
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def is_passing(response: Mapping[str, Any]) -> bool:
    """Whether it was nobody's mistake and may be gone when one comes again.

    Some services throttle with 400 and a code. A quota (`ResourceLimitExceeded`) does not go away.
    """
    code = str(response.get("Error", {}).get("Code", ""))
    return bool(_PASSING.search(code)) or status(response) >= 500 or status(response) in (0, 429)


_DENIED = re.compile(r"AccessDenied|UnauthorizedOperation|NotAuthorized")
_CREDENTIALS = re.compile(r"ExpiredToken|UnrecognizedClient|InvalidClientTokenId|SignatureDoesNotMatch")


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Errors of AWS as ours: what a person must mend is a JobError, what may pass a BackendError."""
    try:
        yield
    except aws.ClientError as exc:
        raise _refusal(exc, what) from exc
    except (aws.NoCredentialsError, aws.PartialCredentialsError, aws.SSOError) as exc:
        raise JobError(
            f"{what}: no usable AWS credentials ({exc}); `aws configure` or `aws sso login`"
        ) from exc
    except aws.NoRegionError as exc:
        raise JobError(f"{what}: no region; set AWS_REGION, or batch.region in the job file") from exc
    except (aws.ParamValidationError, aws.ProfileNotFound) as exc:
        raise JobError(f"{what}: {exc}") from exc
    except (aws.BotoCoreError, ValueError) as exc:
        raise BackendError(f"{what}: {exc}") from exc


def _refusal(exc: aws.ClientError, what: str) -> VsrError:
    error = exc.response.get("Error", {})
    code, said = str(error.get("Code", "")), str(error.get("Message", ""))
    if _DENIED.search(code):
        return JobError(f"not allowed to {what} ({exc.operation_name}): {said}")
    if _CREDENTIALS.search(code):
        return JobError(f"{what}: AWS refused the credentials ({code}); renew them and call again")
    if is_passing(exc.response):
        return BackendError(f"{what}: AWS answered {status(exc.response)} {code}: {said}")
    return JobError(f"{what}: refused by AWS ({code}): {said}")


_BROKEN_STREAMS = ("ModelStreamError", "InternalStreamFailure")


@contextlib.contextmanager
def translated(endpoint: str) -> Iterator[None]:
    """AWS's errors inside the block as errors for whoever must act."""
    from botocore import exceptions as aws

    try:
        yield
    except aws.ClientError as exc:
        error = exc.response.get("Error", {})
        code, text = str(error.get("Code", "")), str(error.get("Message", exc))
        if code == "ModelError":
            status = int(exc.response.get("OriginalStatusCode", 0) or 0)
            told = str(exc.response.get("OriginalMessage", text)).encode()
            raise error_of_answer(endpoint, status or 424, told) from exc
        if code in _BROKEN_STREAMS or is_passing(exc.response):
            raise BackendError(f"{endpoint}: {code}: {text}") from exc
        raise JobError(f"{endpoint}: {code}: {text}") from exc
    except (aws.NoCredentialsError, aws.NoRegionError, aws.ParamValidationError) as exc:
        raise JobError(f"{endpoint}: {exc}") from exc
    except aws.BotoCoreError as exc:
        raise BackendError(f"{endpoint}: {exc}") from exc


def error_of_answer(endpoint: str, status: int, answer: bytes) -> VsrError:
    """The server's own words as an error for whoever must act."""
    try:
        text = str(json.loads(answer)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        text = answer[:300].decode(errors="replace").strip() or "no reason given"
    message = f"{endpoint} answers {status}: {text}"
    if status in (429, 503) or status >= 500:
        return BackendError(message)
    is_about_the_clip = status in (413, 415) or b'"code": "media"' in answer[:60]
    return MediaError(message) if is_about_the_clip else JobError(message)
