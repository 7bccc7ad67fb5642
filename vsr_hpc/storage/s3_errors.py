"""Translates what S3 answers into errors for the person who must act."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import urllib3.exceptions
from botocore import exceptions as aws

from vsr_hpc.errors import JobError, OutageError, SpaceError, VsrError
from vsr_hpc.storage.s3_address import S3Address
from vsr_hpc.storage.store import MissingObject


class ObjectChanged(OutageError):
    """The object is no longer the one that was asked for."""


@contextlib.contextmanager
def explained(address: S3Address) -> Iterator[None]:
    """Turn what boto3 raises inside the block into an error that says who must do what."""
    try:
        yield
    except aws.ClientError as exc:
        raise refusal(exc, address) from exc
    except (aws.BotoCoreError, urllib3.exceptions.HTTPError, ConnectionError) as exc:
        raise _without_answer(exc, address) from exc


def status(exc: aws.ClientError) -> int:
    return int(exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def retries(exc: aws.ClientError) -> int:
    return int(exc.response.get("ResponseMetadata", {}).get("RetryAttempts", 0))


_MISSING = frozenset({"NoSuchKey", "NoSuchVersion", "404", "NotFound"})
_DENIED = frozenset({"AccessDenied", "403", "Forbidden", "AllAccessDisabled", "AccountProblem"})
_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"})
_REFUSED = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "UnrecognizedClientException"}
)
_ELSEWHERE = frozenset(
    {"PermanentRedirect", "301", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
)
_FULL = frozenset({"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage"})
_TRY_AGAIN = frozenset(
    {
        "NoSuchUpload",
        "RequestTimeout",
        "RequestTimeTooSkewed",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "BadDigest",
    }
    | {
        "InternalError",
        "ServiceUnavailable",
        "OperationAborted",
        "ConditionalRequestConflict",
        "TooManyRequests",
    }
    | {"XAmzContentSHA256Mismatch", "IncompleteBody", "KMS.ThrottlingException"}
)
_ACTIONS = {
    "GetObject": "s3:GetObject",
    "HeadObject": "s3:GetObject",
    "HeadBucket": "s3:ListBucket",
    "ListObjectsV2": "s3:ListBucket",
    "DeleteObject": "s3:DeleteObject",
    "DeleteObjects": "s3:DeleteObject",
}


def refusal(exc: aws.ClientError, address: S3Address) -> VsrError:
    answer, uri, bucket = exc.response, address.uri, address.bucket
    code = str(answer.get("Error", {}).get("Code", ""))
    message = str(answer.get("Error", {}).get("Message", ""))
    http, operation = status(exc), exc.operation_name
    if code == "NoSuchBucket" or (operation == "HeadBucket" and status(exc) == 404):
        return JobError(
            f"{uri}: there is no bucket {bucket}; make it with `aws s3 mb s3://{bucket}` or correct it"
        )
    if code in _MISSING:
        return MissingObject(f"{uri}: no such object")
    if code == "PreconditionFailed" or http == 412:
        return ObjectChanged(f"{uri}: is no longer the object it was")
    if code.startswith("KMS.") and code not in _TRY_AGAIN:
        return JobError(
            f"{uri}: KMS refused its key ({code}: {message}); the key must be enabled and ours to use"
        )
    if code in _DENIED:
        action = _ACTIONS.get(operation, "s3:PutObject")
        hint = (
            "; where the object may be absent, s3:ListBucket as well, without which S3 answers the same"
            if action == "s3:GetObject"
            else ""
        )
        if "kms" in message.lower():
            action = "kms:GenerateDataKey and kms:Decrypt on the bucket's key"
        return JobError(
            f"{uri}: access denied ({operation}); your AWS role or user needs {action} here{hint}"
        )
    if code in _EXPIRED:
        return JobError(
            f"{uri}: the AWS credentials have expired; renew them (`aws sso login`) and call again"
        )
    if code in _REFUSED:
        return JobError(
            f"{uri}: AWS refused the credentials ({code}); check AWS_PROFILE and AWS_ACCESS_KEY_ID"
        )
    if code in _ELSEWHERE:
        headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        region = headers.get("x-amz-bucket-region") or answer.get("Error", {}).get("Region")
        return JobError(f"{uri}: the bucket is in another region; set AWS_REGION={region or '<its region>'}")
    if code in _FULL:
        return SpaceError(f"{uri}: the object store is full ({code}); free some space and call again")
    if code == "InvalidObjectState":
        return JobError(f"{uri}: is archived; restore it first (`aws s3api restore-object`)")
    if code in _TRY_AGAIN or http >= 500 or http in (0, 429):
        tries = retries(exc) + 1
        return OutageError(f"{uri}: S3 answered {http} {code} to {operation}, {tries} tries: {message}")
    return JobError(f"{uri}: S3 refused {operation} ({http} {code}): {message}")


def _without_answer(exc: Exception, address: S3Address) -> VsrError:
    uri = address.uri
    if isinstance(exc, (aws.NoCredentialsError, aws.PartialCredentialsError)):
        return JobError(
            f"{uri}: no AWS credentials found; `aws configure`, `aws sso login`, or a role for nodes"
        )
    if isinstance(exc, (aws.SSOError, aws.TokenRetrievalError)):
        return JobError(f"{uri}: the AWS sign-on has expired ({exc}); `aws sso login` and call again")
    if isinstance(
        exc,
        (
            aws.ParamValidationError,
            aws.ProfileNotFound,
            aws.NoRegionError,
            aws.EndpointProviderError,
            aws.UnsupportedS3ConfigurationError,
            aws.MissingDependencyException,
        ),
    ):
        return JobError(f"{uri}: {exc}")
    if isinstance(exc, aws.EndpointConnectionError):
        return OutageError(f"{uri}: S3 cannot be reached ({exc}); is there a route or VPC endpoint to it?")
    return OutageError(f"{uri}: {exc}")
