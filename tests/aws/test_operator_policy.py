"""Every call that `vsr batch` and `vsr workflow` make, against the policies of whoever is to make them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import botocore.client
import pytest

from tests.aws.test_batch_init import account as account
from tests.aws.test_batch_init import elsewhere as elsewhere
from tests.aws.test_batch_init import listed, quiet
from tests.aws.test_batch_init import settings as settings
from vsr_hpc.aws.account import Account
from vsr_hpc.aws.batch.installation import init
from vsr_hpc.aws.batch.removal import delete
from vsr_hpc.aws.batch.resources import BatchSettings, policy
from vsr_hpc.aws.batch.status import state_of
from vsr_hpc.aws.workflow import executions as workflow_runs
from vsr_hpc.aws.workflow import installation as workflow_life
from vsr_hpc.aws.workflow.state_machine import Kind
from vsr_hpc.job.reading import parse_job

# Where IAM calls an operation by another name (service authorization reference).
ACTIONS = {
    "s3:GetBucketNotificationConfiguration": "s3:GetBucketNotification",
    "s3:PutBucketNotificationConfiguration": "s3:PutBucketNotification",
}
# Roles that an operation hands on, and to whom, which whoever calls it must be allowed.
HANDED_ON = {
    "batch:CreateComputeEnvironment": ("vsr-instance", "ec2.amazonaws.com"),
    "batch:RegisterJobDefinition": ("vsr-job", "ecs-tasks.amazonaws.com"),
    "states:CreateStateMachine": ("vsr-workflow", "states.amazonaws.com"),
    "states:UpdateStateMachine": ("vsr-workflow", "states.amazonaws.com"),
    "events:PutTargets": ("vsr-workflow-events", "events.amazonaws.com"),
}
# Tags that come with the making of a thing are an action of their own.
TAGGED = {
    "batch": "batch:TagResource", "ec2": "ec2:CreateTags", "logs": "logs:TagResource",
    "sns": "sns:TagResource", "states": "states:TagResource", "events": "events:TagResource",
}  # fmt: skip
FREE = {"sts:GetCallerIdentity"}


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """The actions of all calls from here on."""
    made: set[str] = set()
    original = botocore.client.BaseClient._make_api_call

    def noting(self: Any, operation: str, parameters: Any) -> Any:
        service = self.meta.service_model.signing_name
        made.add(ACTIONS.get(f"{service}:{operation}", f"{service}:{operation}"))
        if any(parameters.get(key) for key in ("tags", "Tags", "TagSpecifications")):
            of_iam = "iam:TagRole" if "RoleName" in parameters else "iam:TagInstanceProfile"
            made.add(TAGGED.get(service, of_iam))
        return original(self, operation, parameters)

    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", noting)
    yield made


def check(called: set[str], statements: list[Any]) -> None:
    allowed = {action for each in statements for action in listed(each["Action"])}
    assert called - FREE <= allowed
    for action, (role, service) in HANDED_ON.items():
        assert action not in called or may_pass(statements, role, service), action


def may_pass(statements: list[Any], role: str, service: str) -> bool:
    return any(
        "iam:PassRole" in listed(each["Action"])
        and any(resource.endswith(f":role/{role}") for resource in listed(each["Resource"]))
        and service in listed(each["Condition"]["StringEquals"]["iam:PassedToService"])
        for each in statements
    )


def test_whoever_makes_the_queues_needs_no_action_beyond_the_operators_policy(
    account: Account, settings: BatchSettings, called: set[str]
) -> None:
    init(settings, account, quiet)
    ec2, iam = account.client("ec2"), account.client("iam")
    filters = [{"Name": "group-name", "Values": ["vsr-batch"]}]
    group = ec2.describe_security_groups(Filters=filters)["SecurityGroups"][0]["GroupId"]
    ec2.authorize_security_group_ingress(
        GroupId=group, IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp="0.0.0.0/0"
    )
    iam.delete_role_policy(RoleName="vsr-job", PolicyName="vsr")
    init(replace(settings, disk_gib=200, image=f"{settings.image}0"), account, quiet)
    state_of("vsr", account)
    delete("vsr", account, quiet)
    by_hand = {"ec2:AuthorizeSecurityGroupIngress", "ec2:CreateVpc", "ec2:CreateSubnet"}
    assert "ec2:RevokeSecurityGroupIngress" in called and len(called) > 40
    check(called - by_hand, policy("operator", settings)["Statement"])


def test_whoever_makes_a_workflow_needs_no_action_beyond_its_operators_policy(
    account: Account, settings: BatchSettings, called: set[str]
) -> None:
    init(settings, account, quiet)
    where = {"LocationConstraint": account.region}
    account.client("s3").create_bucket(Bucket="films", CreateBucketConfiguration=where)
    called.clear()
    job = parse_job({"input": "s3://input", "output": "s3://output/x.mkv", "model": "nearest"}, "test")
    kinds: tuple[Kind, ...] = ("standard", "express")
    for kind in kinds:
        flow = workflow_life.Workflow(name="vsr", bucket="films", prefix="vsr", job=job, kind=kind)
        workflow_life.create(flow, account, quiet)
        workflow_life.create(replace(flow, job=job.model_copy(update={"model": "bicubic"})), account, quiet)
    workflow_runs.start("vsr", "standard", "s3://films/vsr/incoming/a.mkv", account)
    workflow_runs.executions("vsr", "standard", account)
    for kind in kinds:
        workflow_life.delete("vsr", kind, account, quiet)
    assert {"states:UpdateStateMachine", "events:RemoveTargets", "sns:DeleteTopic", "s3:PutObject"} <= called
    check(called, policy("workflow-operator", settings)["Statement"])


@pytest.mark.parametrize("document", ["operator", "workflow-operator", "submitter"])
def test_policy_fits_into_a_managed_one(document: str, elsewhere: BatchSettings) -> None:
    longest = replace(elsewhere, name="n" * 40, prefix="p" * 100)
    assert len(json.dumps(policy(document, longest), separators=(",", ":"))) < 6144
