"""What a new account lacks beside quotas: the role of Spot, and roles that every service knows already."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

from botocore.exceptions import ClientError

from vsr_hpc.aws.errors import error_code
from vsr_hpc.errors import JobError

T = TypeVar("T")
SPOT_ROLE = "AWSServiceRoleForEC2Spot"
_SPOT_SERVICE = "spot.amazonaws.com"
_TRIES, _PAUSE_S = 12, 5.0
_DENIED = ("AccessDenied", "AccessDeniedException")
# How SageMaker, Scheduler, Step Functions, Auto Scaling and Batch say that they do not know a role.
_UNKNOWN = re.compile(
    r"could not assume role|must allow .* to assume the role|authorized to assume the provided role|"
    r"invalid iam instance profile|iaminstanceprofile|instance ?profile",
    re.IGNORECASE,
)


def once_iam_knows(make: Callable[[], T], pause: Callable[[float], None] = time.sleep) -> T:
    """Make a call that names a role or instance profile; services learn of new ones some seconds late.

    JobError where the role is not known after a minute.
    """
    for _ in range(_TRIES - 1):
        try:
            return make()
        except ClientError as exc:
            if not _is_unknown(exc):
                raise
        pause(_PAUSE_S)
    try:
        return make()
    except ClientError as exc:
        if not _is_unknown(exc):
            raise
        raise JobError(
            f"{exc.operation_name}: AWS still does not know the role after {_TRIES * _PAUSE_S:.0f} s "
            f"({exc.response['Error']['Message']}); see that it exists and trusts the service"
        ) from exc


def _is_unknown(exc: ClientError) -> bool:
    return bool(_UNKNOWN.search(str(exc.response.get("Error", {}).get("Message", ""))))


def has_spot_role(iam: Any) -> bool:
    """Whether the account has the role that EC2 starts Spot instances with; made once in an account's life.

    Whoever may not look is told that it is there: an account that has used Spot has it.
    """
    try:
        iam.get_role(RoleName=SPOT_ROLE)
    except ClientError as exc:
        if error_code(exc) == "NoSuchEntity":
            return False
        if error_code(exc) not in _DENIED:
            raise
    return True


def make_spot_role(iam: Any) -> None:
    """JobError with the command for an administrator where the caller may not make it."""
    try:
        iam.create_service_linked_role(AWSServiceName=_SPOT_SERVICE)
    except ClientError as exc:
        if error_code(exc) == "InvalidInput":  # somebody else has made it since
            return
        if error_code(exc) not in _DENIED:
            raise
        raise JobError(f"{without_spot_role()}, which you may not make") from exc


def without_spot_role() -> str:
    return (
        f"no Spot instance starts in this account before it has the role {SPOT_ROLE}; an administrator "
        f"makes it once: aws iam create-service-linked-role --aws-service-name {_SPOT_SERVICE}"
    )
