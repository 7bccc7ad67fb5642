"""`vsr batch init`, `status` and `delete` by real boto3 against moto: made once, kept, taken away again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from moto import mock_aws

from tests.aws import batch_local
from vsr_hpc.aws.account import Account
from vsr_hpc.aws.batch.installation import init
from vsr_hpc.aws.batch.removal import delete
from vsr_hpc.aws.batch.resources import BatchSettings, policy, roles
from vsr_hpc.aws.batch.status import state_of
from vsr_hpc.aws.config_files import config_folder
from vsr_hpc.errors import JobError

REGION = "eu-west-1"
DOCUMENTS = sorted(path.stem for path in (config_folder() / "iam-batch").glob("*.json"))
# Actions to which IAM gives no narrower resource than "*" (service authorization reference).
UNNARROWABLE = {
    "batch:DescribeComputeEnvironments",
    "batch:DescribeJobDefinitions",
    "batch:DescribeJobQueues",
    "batch:DescribeJobs",
    "batch:ListJobs",
    "ec2:DescribeLaunchTemplateVersions",
    "ec2:DescribeLaunchTemplates",
    "ec2:DescribeSecurityGroups",
    "ec2:DescribeSubnets",
    "events:ListRules",
    "logs:CreateLogDelivery",
    "logs:DeleteLogDelivery",
    "logs:DescribeLogGroups",
    "logs:DescribeResourcePolicies",
    "logs:GetLogDelivery",
    "logs:ListLogDeliveries",
    "logs:PutResourcePolicy",
    "logs:UpdateLogDelivery",
    "states:ListStateMachines",
}


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    batch_local.install()
    with mock_aws():
        yield Account(region=REGION, pause=lambda _: None)


@pytest.fixture
def settings(account: Account) -> BatchSettings:
    ec2 = account.client("ec2")
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnets = tuple(
        ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.0.{index}.0/24", AvailabilityZone=f"{REGION}{zone}")[
            "Subnet"
        ]["SubnetId"]
        for index, zone in enumerate("ab")
    )
    return BatchSettings(
        name="vsr",
        region=REGION,
        account=account.number(),
        bucket="films",
        prefix="vsr",
        subnets=subnets,
        image=f"123456789012.dkr.ecr.{REGION}.amazonaws.com/vsr-hpc:1",
    )


@pytest.fixture
def elsewhere() -> BatchSettings:
    """Settings that are only read."""
    return BatchSettings(
        name="vsr",
        region=REGION,
        account="123456789012",
        bucket="films",
        prefix="vsr",
        subnets=("subnet-0a",),
        image="films/vsr-hpc:1",
    )


def quiet(_: str) -> None:
    """Takes what would be said."""


def everything(account: Account) -> dict[str, Any]:
    """All that an installation could leave behind."""
    batch, ec2, iam = (account.client(each) for each in ("batch", "ec2", "iam"))
    return {
        "environments": [
            each["computeEnvironmentName"]
            for each in batch.describe_compute_environments()["computeEnvironments"]
        ],
        "queues": [each["jobQueueName"] for each in batch.describe_job_queues()["jobQueues"]],
        "definitions": [
            each["jobDefinitionArn"]
            for each in batch.describe_job_definitions(status="ACTIVE")["jobDefinitions"]
        ],
        "templates": [
            each["LaunchTemplateName"] for each in ec2.describe_launch_templates()["LaunchTemplates"]
        ],
        "groups": [
            each["GroupName"]
            for each in ec2.describe_security_groups()["SecurityGroups"]
            if each["GroupName"] != "default"
        ],
        "roles": [
            each["RoleName"] for each in iam.list_roles()["Roles"] if "aws-service-role" not in each["Path"]
        ],
        "profiles": [
            each["InstanceProfileName"] for each in iam.list_instance_profiles()["InstanceProfiles"]
        ],
        "logs": [each["logGroupName"] for each in account.client("logs").describe_log_groups()["logGroups"]],
    }


def test_init_makes_spot_first_and_on_demand_next_and_nothing_runs(
    account: Account, settings: BatchSettings
) -> None:
    init(settings, account, quiet)
    found = account.client("batch").describe_compute_environments()["computeEnvironments"]
    by_name = {each["computeEnvironmentName"]: each["computeResources"] for each in found}
    assert {each["minvCpus"] for each in by_name.values()} == {0}
    assert by_name["vsr-spot"]["allocationStrategy"] == "SPOT_PRICE_CAPACITY_OPTIMIZED"
    assert len(by_name["vsr-spot"]["instanceTypes"]) >= 5
    assert (by_name["vsr-spot"]["type"], by_name["vsr-ondemand"]["type"]) == ("SPOT", "EC2")
    state = state_of("vsr", account)
    queues = {each.name: each for each in state.queues}
    assert queues["vsr"].environments == ("vsr-spot", "vsr-ondemand")
    assert queues["vsr-ondemand"].priority > queues["vsr"].priority > queues["vsr-spot"].priority
    assert queues["vsr"].image == settings.image
    assert account.client("ec2").describe_instances()["Reservations"] == []


def test_second_init_changes_nothing_and_another_setting_changes_only_what_it_touches(
    account: Account, settings: BatchSettings
) -> None:
    init(settings, account, quiet)
    assert {each.action for each in init(settings, account, quiet)} == {"keep"}
    more = replace(settings, max_vcpus=256, image=settings.image.replace(":1", ":2"))
    changed = [each.kind for each in init(more, account, quiet) if each.action == "update"]
    assert sorted(changed) == [*["compute environment"] * 4, *["job queue"] * 4]
    assert {each.action for each in init(more, account, quiet)} == {"keep"}


def test_larger_disk_is_a_new_version_of_the_launch_template_that_environments_follow(
    account: Account, settings: BatchSettings
) -> None:
    init(settings, account, quiet)
    init(replace(settings, disk_gib=200), account, quiet)
    found = account.client("batch").describe_compute_environments()["computeEnvironments"]
    assert {each["computeResources"]["launchTemplate"]["version"] for each in found} == {"2"}


def test_plan_says_what_init_would_do_and_does_nothing(account: Account, settings: BatchSettings) -> None:
    before = everything(account)
    planned = init(settings, account, quiet, is_plan=True)
    assert everything(account) == before
    assert {each.action for each in planned} == {"create"}
    done = init(settings, account, quiet)
    assert done == planned


def test_delete_removes_all_that_init_made_and_leaves_the_rest(
    account: Account, settings: BatchSettings
) -> None:
    init(replace(settings, name="other"), account, quiet)
    before = everything(account)
    init(settings, account, quiet)
    said: list[str] = []
    planned = delete("vsr", account, said.append, is_plan=True)
    assert all(line.startswith("remove ") for line in said)
    assert everything(account) != before
    assert delete("vsr", account, quiet) == planned
    assert everything(account) == before
    assert delete("vsr", account, quiet) == ()


def test_what_is_not_ours_is_neither_changed_nor_deleted(account: Account, settings: BatchSettings) -> None:
    iam = account.client("iam")
    iam.create_role(RoleName="vsr-job", AssumeRolePolicyDocument="{}")
    with pytest.raises(JobError, match=r"role vsr-job exists and is not ours"):
        init(settings, account, quiet)
    said: list[str] = []
    delete("vsr", account, said.append)
    assert "left alone, not ours: role vsr-job" in said
    assert iam.get_role(RoleName="vsr-job")


def test_wrong_subnet_is_refused_before_anything_is_made(account: Account, settings: BatchSettings) -> None:
    before = everything(account)
    with pytest.raises(JobError, match="subnet-0dead"):
        init(replace(settings, subnets=("subnet-0dead",)), account, quiet)
    assert everything(account) == before


def test_opened_security_group_is_closed_again(account: Account, settings: BatchSettings) -> None:
    init(settings, account, quiet)
    ec2 = account.client("ec2")
    filters = [{"Name": "group-name", "Values": ["vsr-batch"]}]
    group = ec2.describe_security_groups(Filters=filters)["SecurityGroups"][0]
    assert group["IpPermissions"] == []
    ec2.authorize_security_group_ingress(
        GroupId=group["GroupId"], IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp="0.0.0.0/0"
    )
    changes = [each for each in init(settings, account, quiet) if each.is_change]
    assert [(each.action, each.kind) for each in changes] == [("update", "security group")]
    assert ec2.describe_security_groups(Filters=filters)["SecurityGroups"][0]["IpPermissions"] == []


def test_rights_keys_and_strategies_that_somebody_added_are_seen_and_taken_away(
    account: Account, settings: BatchSettings
) -> None:
    init(settings, account, quiet)
    iam, batch = account.client("iam"), account.client("batch")
    everything_allowed = {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}],
    }
    admin = iam.create_policy(PolicyName="admin", PolicyDocument=json.dumps(everything_allowed))["Policy"][
        "Arn"
    ]
    iam.put_role_policy(RoleName="vsr-job", PolicyName="more", PolicyDocument=json.dumps(everything_allowed))
    iam.attach_role_policy(RoleName="vsr-instance", PolicyArn=admin)
    foreign = {"allocationStrategy": "SPOT_CAPACITY_OPTIMIZED", "ec2KeyPair": "somebodys"}
    batch.update_compute_environment(computeEnvironment="vsr-spot", computeResources=foreign)
    said = [str(each) for each in init(settings, account, quiet, is_plan=True) if each.is_change]
    assert said[:2] == [
        "update role vsr-job: without more, which somebody added",
        f"update role vsr-instance: without {admin}, which somebody added",
    ]
    assert len(said) == 3 and said[2].startswith("update compute environment vsr-spot")
    init(settings, account, quiet)
    assert iam.list_role_policies(RoleName="vsr-job")["PolicyNames"] == ["vsr"]
    assert len(iam.list_attached_role_policies(RoleName="vsr-instance")["AttachedPolicies"]) == 1
    found = batch.describe_compute_environments(computeEnvironments=["vsr-spot"])["computeEnvironments"][0]
    assert found["computeResources"]["allocationStrategy"] == "SPOT_PRICE_CAPACITY_OPTIMIZED"
    assert not found["computeResources"]["ec2KeyPair"]
    assert {each.action for each in init(settings, account, quiet)} == {"keep"}


def test_settings_that_cannot_be_are_all_told_at_once(elsewhere: BatchSettings) -> None:
    with pytest.raises(JobError) as refused:
        replace(
            elsewhere,
            name="Bad Name",
            subnets=("vpc-1",),
            gpu_types=("gpu",),
            max_vcpus=1,
            capacity_wait_min=1,
        )
    said = str(refused.value)
    assert said.startswith("batch init: 5 problems")
    assert all(word in said for word in ("Bad Name", "vpc-1", "gpu", "max_vcpus", "10 to 1440"))


def listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_allowed_action_or_resource_is_wider_than_it_can_be_made(
    document: str, elsewhere: BatchSettings
) -> None:
    statements = policy(document, elsewhere)["Statement"]
    names = [each["Sid"] for each in statements]
    assert len(set(names)) == len(names)
    for statement in statements:
        if statement["Effect"] == "Deny":
            continue
        actions, resources = listed(statement["Action"]), listed(statement["Resource"])
        assert not [each for each in actions if "*" in each], statement["Sid"]
        if "*" in resources:
            assert set(actions) <= UNNARROWABLE, statement["Sid"]
        for resource in resources:
            assert resource == "*" or re.match(
                r"arn:aws:[a-z0-9-]+:[a-z0-9-]*:(123456789012)?:[\w/-]", resource
            )
        if "iam:PassRole" in actions:
            assert "iam:PassedToService" in json.dumps(statement["Condition"])
    assert not re.search(r"\d{12}", (config_folder() / "iam-batch" / f"{document}.json").read_text("utf-8"))


def test_a_job_reaches_one_bucket_below_one_prefix_and_nothing_else_of_the_account(
    elsewhere: BatchSettings,
) -> None:
    job = next(each for each in roles(elsewhere) if each.name == "vsr-job")
    assert job.attached == ()
    for statement in job.policies["vsr"]["Statement"]:
        assert all(each.startswith("s3:") for each in listed(statement["Action"]))
        for resource in listed(statement["Resource"]):
            assert resource == "arn:aws:s3:::films" or resource.startswith("arn:aws:s3:::films/vsr/")
    assert job.trusted["Statement"][0]["Condition"] == {"StringEquals": {"aws:SourceAccount": "123456789012"}}


def test_status_of_nothing_is_one_sentence(account: Account) -> None:
    with pytest.raises(JobError, match=r"nothing of vsr in eu-west-1; `vsr batch init vsr"):
        state_of("vsr", account)
