"""What AWS and boto3 refuse, as errors that say who must act: JobError for a person, BackendError for later.

`explained` is the one translator of the package. Code that expects a refusal, such as "does not exist",
catches botocore's ClientError inside the block and asks `error_code` which one it is.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from boto3.exceptions import Boto3Error
from botocore import exceptions as aws

from vsr_hpc.errors import BackendError, JobError, VsrError

OPERATOR_POLICY = "cluster-config/iam/operator.json is the policy that allows it"
"""A hint for `explained` where the operator's policy of the package covers what is done."""

_PASSING = re.compile(
    r"Throttl|TooManyRequests|RequestLimitExceeded|SlowDown|ServerException|InternalError|InternalFailure|"
    r"ServiceUnavailable|RequestTimeout|ConcurrentModification|^ModelStreamError|^InternalStreamFailure"
)
_DENIED = re.compile(r"AccessDenied|UnauthorizedOperation|NotAuthorized|^403$")
_CREDENTIALS = re.compile(
    r"ExpiredToken|UnrecognizedClient|InvalidClientToken|SignatureDoesNotMatch|AuthFailure|InvalidAccessKeyId"
)


def error_code(exc: aws.ClientError) -> str:
    """The code of AWS's refusal, for example `NoSuchEntity`; empty where the answer has none."""
    return str(exc.response.get("Error", {}).get("Code", ""))


def status(response: Mapping[str, Any]) -> int:
    """The HTTP status of an error's response (botocore's `ClientError.response`); 0 where it has none."""
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def is_passing(response: Mapping[str, Any]) -> bool:
    """Whether the same call may succeed later without anybody changing anything.

    Some services throttle with status 400 and a code. A quota (`ResourceLimitExceeded`) does not pass.
    """
    code = str(response.get("Error", {}).get("Code", ""))
    return bool(_PASSING.search(code)) or status(response) >= 500 or status(response) in (0, 429)


@contextlib.contextmanager
def explained(what: str, *, hint: str = "") -> Iterator[None]:
    """Translate errors of AWS and boto3 inside the block; `what` begins the message.

    What a person must correct becomes a JobError, what may pass by itself a BackendError. `hint` says which
    permissions the block needs; it ends messages about missing permissions and credentials.
    """
    try:
        yield
    except aws.ClientError as exc:
        raise _refusal(exc, what, hint) from exc
    except Boto3Error as exc:  # an upload in parts hides the refusal of one part
        cause = exc.__context__
        if isinstance(cause, aws.ClientError):
            raise _refusal(cause, what, hint) from exc
        raise BackendError(f"{what}: {exc}") from exc
    except (
        aws.NoCredentialsError,
        aws.PartialCredentialsError,
        aws.SSOError,
        aws.TokenRetrievalError,
    ) as exc:
        way_out = "run `aws configure` or `aws sso login`, or set AWS_PROFILE"
        raise JobError(f"{what}: AWS credentials are needed ({exc}); {way_out}{_after(hint)}") from exc
    except (
        aws.ParamValidationError,
        aws.ProfileNotFound,
        aws.NoRegionError,
        aws.EndpointProviderError,
    ) as exc:
        raise JobError(f"{what}: {exc}") from exc
    except aws.BotoCoreError as exc:
        raise BackendError(f"{what}: AWS was not reached: {exc}") from exc


def _refusal(exc: aws.ClientError, what: str, hint: str) -> VsrError:
    error = exc.response.get("Error", {})
    code, text = error_code(exc), str(error.get("Message", ""))
    bucket = str(error.get("BucketName") or "the bucket")
    if code == "BucketAlreadyExists" or (exc.operation_name == "HeadBucket" and code == "403"):
        return JobError(
            f"{what}: {bucket} belongs to another account; bucket names are global: choose another"
        )
    if code == "NoSuchBucket" or (exc.operation_name == "HeadBucket" and code == "404"):
        return JobError(f"{what}: {bucket} does not exist; `vsr storage init BUCKET` makes it")
    if _DENIED.search(code):
        return JobError(f"{what}: AWS does not allow {exc.operation_name} ({code}: {text}){_after(hint)}")
    if _CREDENTIALS.search(code):
        return JobError(
            f"{what}: AWS refused the credentials ({code}); renew them and call again{_after(hint)}"
        )
    if is_passing(exc.response):
        return BackendError(f"{what}: AWS answered {exc.operation_name} with {code}: {text}")
    return JobError(f"{what}: AWS refused {exc.operation_name} with {code}: {text}")


def _after(hint: str) -> str:
    return f"; {hint}" if hint else ""
