"""What a new account lacks, on moto: quotas of EC2, the role of Spot, and roles that every service knows.

A new account may have 0 vCPUs of G instances; nothing starts on Spot before somebody has made the role
AWSServiceRoleForEC2Spot; for some seconds services do not know roles that IAM has just made. (2026-12-01)
    docs.aws.amazon.com/AWSEC2/latest/UserGuide/using-spot-limits.html
    docs.aws.amazon.com/batch/latest/userguide/spot_fleet_IAM_role.html
    docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot.html

The other doubles import it, and it holds in their process; in a moto server also

    POST /moto-api/account   {"quotas": {"L-3819A6DF": 0}, "unknown": 2}
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from moto.core.errors import COMMON_ERROR_CODES
from moto.core.exceptions import JsonRESTError
from moto.iam.exceptions import IAMException, InvalidInput
from moto.iam.models import IAMBackend, iam_backends
from moto.moto_api._internal import urls
from moto.moto_api._internal.models import MotoAPIBackend
from moto.sagemaker.exceptions import AWSValidationException
from moto.sagemaker.responses import SageMakerResponse
from moto.scheduler.exceptions import ValidationException
from moto.scheduler.responses import EventBridgeSchedulerResponse
from moto.servicequotas.responses import ServiceQuotasResponse

PLENTY = 10_000.0
SPOT_ROLE = "AWSServiceRoleForEC2Spot"


@dataclass
class Account:
    quotas: dict[str, float] = field(default_factory=dict)
    """By code, of SageMaker's by name. What is not said is plenty."""
    may_read_quotas: bool = True
    may_make_spot_role: bool = True
    unknown: int = 0
    """How many calls that name a role find it unknown yet."""


account = Account()


def set_account(**facts: Any) -> None:
    account.__dict__.update(Account(**facts).__dict__)


def is_role_unknown() -> bool:
    """Asked once by each call that names a role."""
    account.unknown -= 1
    return account.unknown >= 0


def has_spot_role(number: str, partition: str = "aws") -> bool:
    return any(each.name == SPOT_ROLE for each in iam_backends[number][partition].get_roles())


class Denied(JsonRESTError):
    def __init__(self) -> None:
        super().__init__("AccessDeniedException", "You are not authorized to perform this operation.")


class DeniedByIam(IAMException):
    code = "AccessDenied"


def get_service_quota(self: Any) -> str:
    if not account.may_read_quotas:
        raise Denied()
    code = json.loads(self.body)["QuotaCode"]
    return json.dumps({"Quota": {"QuotaCode": code, "Value": account.quotas.get(code, PLENTY)}})


def list_service_quotas(self: Any) -> str:
    """SageMaker has a quota for each type and use; they are found by their names alone."""
    if not account.may_read_quotas:
        raise Denied()
    named = [name for name in account.quotas if " for " in name]
    found = [{"QuotaCode": f"L-{at:08X}", "QuotaName": each, "Value": account.quotas[each]}
             for at, each in enumerate(named)]  # fmt: skip
    return json.dumps({"Quotas": found})


def create_service_linked_role(self: Any, service_name: str, description: str, suffix: str) -> Any:
    if service_name != "spot.amazonaws.com":
        return _create_linked(self, service_name, description, suffix)
    if not account.may_make_spot_role:
        raise DeniedByIam("User is not authorized to perform: iam:CreateServiceLinkedRole")
    if has_spot_role(self.account_id, self.partition):
        raise InvalidInput(f"Service role name {SPOT_ROLE} has been taken in this account.")
    made = _create_linked(self, service_name, description, suffix)
    made.name = SPOT_ROLE
    return made


def create_model(self: Any) -> Any:
    if is_role_unknown():
        role = self._get_param("ExecutionRoleArn")
        raise AWSValidationException(
            f"Could not assume role {role}. Please ensure that the role exists and allows principal "
            "'sagemaker.amazonaws.com' to assume the role."
        )
    return _create_model(self)


def create_schedule(self: Any) -> Any:
    if is_role_unknown():
        raise ValidationException(
            "The execution role you provide must allow AWS EventBridge Scheduler to assume the role."
        )
    return _create_schedule(self)


def tell(request: Any, full_url: str, headers: Any) -> tuple[int, dict[str, str], str]:
    set_account(**json.loads(request.data))
    return 200, {}, "{}"


def reset(self: Any) -> None:
    set_account()
    _reset(self)


_create_linked = IAMBackend.create_service_linked_role
_create_model = SageMakerResponse.create_model
_create_schedule = EventBridgeSchedulerResponse.create_schedule
_reset = MotoAPIBackend.reset
IAMBackend.create_service_linked_role = create_service_linked_role
SageMakerResponse.create_model = create_model
EventBridgeSchedulerResponse.create_schedule = create_schedule
MotoAPIBackend.reset = reset
ServiceQuotasResponse.get_service_quota = get_service_quota
ServiceQuotasResponse.list_service_quotas = list_service_quotas
urls.url_paths["{0}/moto-api/account$"] = tell
COMMON_ERROR_CODES.append("AccessDenied")  # of IAM, whose description does not have it
