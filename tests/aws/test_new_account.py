"""AWS Batch in a new account: quotas of 0, no role of Spot, roles that IAM has not spread yet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from botocore.exceptions import ClientError
from moto.batch.models import batch_backends

from tests.aws.test_batch_init import account as account
from tests.aws.test_batch_init import quiet
from tests.aws.test_batch_init import settings as settings
from tests.new_account import SPOT_ROLE, set_account
from vsr_hpc.aws.account import Account
from vsr_hpc.aws.batch.installation import init
from vsr_hpc.aws.batch.resources import BatchSettings
from vsr_hpc.aws.limits import vcpu_quota
from vsr_hpc.aws.new_account import once_iam_knows
from vsr_hpc.aws.quotas import Wish, find_shortages, kind_of
from vsr_hpc.errors import JobError


@pytest.fixture(autouse=True)
def usual_account() -> Iterator[None]:
    yield
    set_account()


def test_spot_gets_its_role_once_and_whoever_may_not_make_it_is_told_who_can(
    account: Account, settings: BatchSettings
) -> None:
    set_account(may_make_spot_role=False)
    with pytest.raises(JobError, match=r"aws iam create-service-linked-role --aws-service-name spot"):
        init(settings, account, quiet)
    set_account()
    assert f"create service-linked role {SPOT_ROLE}" in str(init(settings, account, quiet)[0])
    assert account.client("iam").get_role(RoleName=SPOT_ROLE)
    assert {each.action for each in init(settings, account, quiet)} == {"keep"}


def test_quotas_that_are_too_small_are_told_with_what_to_ask_aws_for_and_hinder_nothing(
    account: Account, settings: BatchSettings
) -> None:
    set_account(quotas={"L-3819A6DF": 0, "L-DB2E81BA": 8})
    said: list[str] = []
    init(settings, account, said.append)
    told = [each for each in said if "quota" in each]
    assert len(told) == 2
    assert told[0].startswith(
        "the account's quota `All G and VT Spot Instance Requests` in eu-west-1 is 0 vCPUs"
    )
    assert "so nothing would start" in told[0] and "so the rest would never start" in told[1]
    assert told[0].endswith(
        "aws service-quotas request-service-quota-increase --service-code ec2 --quota-code L-3819A6DF "
        "--desired-value 128 --region eu-west-1"
    )
    set_account(may_read_quotas=False)
    said.clear()
    init(settings, account, said.append)
    assert [each for each in said if "quota" in each] == [
        "quotas were not looked at: look at the account's quotas: AWS does not allow GetServiceQuota "
        "(AccessDeniedException: You are not authorized to perform this operation.)"
    ]


def test_profile_that_batch_does_not_know_yet_is_waited_for(
    account: Account, settings: BatchSettings
) -> None:
    set_account(unknown=3)
    init(settings, account, quiet)
    assert {each.action for each in init(settings, account, quiet)} == {"keep"}
    set_account(unknown=1000)
    with pytest.raises(JobError, match=r"does not know the role after 60 s .*instanceProfile is not valid"):
        init(replace(settings, name="other"), account, quiet)


def test_environment_that_became_invalid_is_validated_again(
    account: Account, settings: BatchSettings
) -> None:
    init(settings, account, quiet)
    found = batch_backends[settings.account][settings.region].get_compute_environment("vsr-spot")
    found.local_status = "INVALID"
    changed = [str(each) for each in init(settings, account, quiet, is_plan=True) if each.is_change]
    assert [each.split(":")[0] for each in changed] == ["update compute environment vsr-spot"]
    init(settings, account, quiet)
    assert {each.action for each in init(settings, account, quiet)} == {"keep"}


@pytest.mark.parametrize(
    ("name", "kind"),
    [("g5.xlarge", "G and VT"), ("gr6.4xlarge", "G and VT"), ("vt1.3xlarge", "G and VT"),
     ("p4d.24xlarge", "P"), ("m6i.xlarge", "standard"), ("c7i.2xlarge", "standard"), ("inf2.xlarge", None)],
)  # fmt: skip
def test_type_counts_against_the_quota_of_its_family(name: str, kind: str | None) -> None:
    assert kind_of(name) == kind


def test_wishes_of_one_kind_share_a_quota(account: Account) -> None:
    code, _ = vcpu_quota("G and VT", "spot")
    set_account(quotas={code: 16})
    quotas = account.client("service-quotas")
    wish = Wish(types=("g5.xlarge",), purchase="spot", vcpus=12)
    assert list(find_shortages(quotas, [wish])) == []
    (short,) = find_shortages(quotas, [wish, wish])
    assert (short.has, short.least, short.wanted, short.is_total) == (16, 4, 24, False)


def test_another_refusal_is_not_taken_for_a_role_that_is_new() -> None:
    tried = []

    def refused() -> None:
        tried.append(1)
        error = {"Code": "AccessDenied", "Message": "User is not authorized to perform: iam:PassRole"}
        raise ClientError({"Error": error}, "CreateModel")

    with pytest.raises(ClientError, match="PassRole"):
        once_iam_knows(refused, lambda _: None)
    assert len(tried) == 1
