"""The bucket and its policies: least privilege in the files, and `storage init` against moto."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import pytest
from moto import mock_aws
from moto.iam.access_control import PermissionResult
from moto.s3.models import FakeBucket

from vsr_hpc.aws.bucket import BucketLocation, init, plan_storage, policy
from vsr_hpc.aws.cluster.lifecycle import active_runs
from vsr_hpc.aws.cluster.node_environment import pack, upload, upload_bootstrap
from vsr_hpc.aws.config_files import config_folder
from vsr_hpc.errors import JobError

POLICIES = sorted(path.stem for path in (config_folder() / "iam").glob("*.json"))
LOCATION = BucketLocation(bucket="vsr-hpc-data", prefix="vsr", region="eu-west-1", account="123456789012")
# Actions to which IAM gives no narrower resource than "*" (service authorization reference).
UNNARROWABLE = {
    "ecr:GetAuthorizationToken",
    "ec2:DescribeSubnets",
    "ec2:DescribeVpcEndpoints",
    "ec2:DescribeRouteTables",
    "ec2:DescribeKeyPairs",
    "ec2:DescribeInstanceTypeOfferings",
}


def listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    # moto applies `Deny … if not TLS` without its condition, which would lock everybody out.
    monkeypatch.setattr(FakeBucket, "get_permission", lambda *_: PermissionResult.NEUTRAL)
    with mock_aws():
        yield


@pytest.mark.parametrize("name", POLICIES)
def test_no_allowed_action_or_resource_is_wider_than_it_can_be_made(name: str) -> None:
    for statement in policy(name, LOCATION)["Statement"]:
        if statement["Effect"] == "Deny":
            continue
        actions, resources = listed(statement["Action"]), listed(statement["Resource"])
        assert not [each for each in actions if "*" in each], statement["Sid"]
        assert "NotAction" not in statement and "NotResource" not in statement
        if "*" in resources:
            assert set(actions) <= UNNARROWABLE, statement["Sid"]
        for resource in resources:
            assert resource == "*" or re.match(
                r"arn:aws:[a-z0-9]+:[a-z0-9-]*:(123456789012)?:[\w-]", resource
            )
            assert resource.count("*") <= 1 and (resource == "*" or not re.search(r"\*.", resource)), resource


@pytest.mark.parametrize("name", POLICIES)
def test_policy_holds_no_account_and_names_every_statement(name: str) -> None:
    text = (config_folder() / "iam" / f"{name}.json").read_text("utf-8")
    assert not re.search(r"\d{12}", text)
    names = [each["Sid"] for each in json.loads(text)["Statement"]]
    assert len(set(names)) == len(names)


def test_node_policy_reaches_one_bucket_below_one_prefix_only() -> None:
    for statement in policy("node", LOCATION)["Statement"]:
        for resource in listed(statement["Resource"]):
            assert resource == "arn:aws:s3:::vsr-hpc-data" or resource.startswith(
                "arn:aws:s3:::vsr-hpc-data/vsr/"
            )
    listing = policy("node", LOCATION)["Statement"][0]
    assert listing["Action"] == "s3:ListBucket"
    assert listing["Condition"]["StringLike"]["s3:prefix"] == ["vsr", "vsr/*"]


def test_no_job_can_change_what_root_runs_on_the_next_node() -> None:
    deny = next(each for each in policy("node", LOCATION)["Statement"] if each["Effect"] == "Deny")
    assert {each.rsplit("/", 2)[1] for each in deny["Resource"]} == {"bootstrap", "environments", "weights"}
    assert set(deny["Action"]) == {"s3:PutObject", "s3:DeleteObject"}


@pytest.mark.parametrize(("region", "partition"), [("cn-north-1", "aws-cn"), ("us-gov-west-1", "aws-us-gov")])
def test_other_partitions_get_their_own_arns(region: str, partition: str) -> None:
    place = BucketLocation(bucket="b-ucket", prefix="vsr", region=region, account="123456789012")
    assert policy("node", place)["Statement"][0]["Resource"] == f"arn:{partition}:s3:::b-ucket"


def test_init_says_every_step_and_makes_a_closed_encrypted_bucket(aws: None) -> None:
    said: list[str] = []
    changed = init(LOCATION, said.append)
    s3 = boto3.client("s3", region_name="eu-west-1")
    assert changed == len(said) == len(plan_storage(LOCATION))
    assert all(s3.get_public_access_block(Bucket=LOCATION.bucket)["PublicAccessBlockConfiguration"].values())
    rules = s3.get_bucket_encryption(Bucket=LOCATION.bucket)["ServerSideEncryptionConfiguration"]["Rules"]
    assert rules[0]["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    statements = json.loads(s3.get_bucket_policy(Bucket=LOCATION.bucket)["Policy"])["Statement"]
    assert {"VsrTlsOnly", "VsrTls12"} == {each["Sid"] for each in statements}
    assert all(each["Effect"] == "Deny" for each in statements)


def test_lifecycle_drops_unfinished_uploads_and_runs_and_tiers_results(aws: None) -> None:
    init(LOCATION, lambda _: None)
    s3 = boto3.client("s3", region_name="eu-west-1")
    rules = {
        each["ID"]: each for each in s3.get_bucket_lifecycle_configuration(Bucket=LOCATION.bucket)["Rules"]
    }
    assert rules["vsr-unfinished-uploads"]["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"] == 2
    assert rules["vsr-runs-expire"]["Filter"]["Prefix"] == "vsr/runs/"
    assert rules["vsr-results-tiering"]["Transitions"][0]["StorageClass"] == "INTELLIGENT_TIERING"


def test_second_init_changes_nothing(aws: None) -> None:
    init(LOCATION, lambda _: None)
    said: list[str] = []
    assert init(LOCATION, said.append) == 0, said


def test_init_leaves_what_is_not_ours_alone(aws: None) -> None:
    s3 = boto3.client("s3", region_name="eu-west-1")
    init(LOCATION, lambda _: None)
    s3.put_bucket_lifecycle_configuration(
        Bucket=LOCATION.bucket,
        LifecycleConfiguration={
            "Rules": [
                {"ID": "theirs", "Status": "Enabled", "Filter": {"Prefix": "x/"}, "Expiration": {"Days": 1}}
            ]
        },
    )
    theirs = {
        "Sid": "Theirs",
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:PutObject",
        "Resource": "arn:aws:s3:::vsr-hpc-data/x",
    }
    s3.put_bucket_policy(
        Bucket=LOCATION.bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [theirs]})
    )
    assert init(LOCATION, lambda _: None) == 2
    assert len(s3.get_bucket_lifecycle_configuration(Bucket=LOCATION.bucket)["Rules"]) == 4
    assert theirs in json.loads(s3.get_bucket_policy(Bucket=LOCATION.bucket)["Policy"])["Statement"]


def test_changed_node_policy_becomes_a_new_default_version(aws: None) -> None:
    iam = boto3.client("iam", region_name="eu-west-1")
    init(LOCATION, lambda _: None)
    for _ in range(6):  # IAM keeps five: the oldest has to go
        iam_version(iam)
        assert init(LOCATION, lambda _: None) == 1
    current = iam.get_policy(PolicyArn=LOCATION.policy_arn)["Policy"]["DefaultVersionId"]
    document = iam.get_policy_version(PolicyArn=LOCATION.policy_arn, VersionId=current)["PolicyVersion"][
        "Document"
    ]
    assert document == policy("node", LOCATION)


def iam_version(iam: Any) -> None:
    versions = iam.list_policy_versions(PolicyArn=LOCATION.policy_arn)["Versions"]
    if len(versions) == 5:
        oldest = min(
            (each for each in versions if not each["IsDefaultVersion"]), key=lambda each: each["CreateDate"]
        )
        iam.delete_policy_version(PolicyArn=LOCATION.policy_arn, VersionId=oldest["VersionId"])
    other = json.dumps(policy("submitter", LOCATION))
    iam.create_policy_version(PolicyArn=LOCATION.policy_arn, PolicyDocument=other, SetAsDefault=True)


def test_bucket_in_another_region_is_refused(aws: None) -> None:
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket=LOCATION.bucket)
    with pytest.raises(JobError, match="lies in us-east-1"):
        init(LOCATION, lambda _: None)


def test_bucket_in_us_east_1_is_made_without_a_location(aws: None) -> None:
    init(
        BucketLocation(bucket="other-bucket", prefix="v", region="us-east-1", account="123456789012"),
        lambda _: None,
    )
    found = boto3.client("s3", region_name="us-east-1").get_bucket_location(Bucket="other-bucket")
    assert found["LocationConstraint"] is None


def test_pack_uploads_an_archive_once_and_then_the_pointer_to_it(aws: None) -> None:
    init(LOCATION, lambda _: None)
    s3, where = (
        boto3.client("s3", region_name="eu-west-1"),
        (LOCATION.bucket, LOCATION.prefix, LOCATION.region),
    )
    said: list[str] = []
    for _ in range(2):
        with pack("cpu", lambda _: None, wanted=[]) as packed:
            upload(packed, *where, said.append)
    assert len(said) == 1 and "uploading" in said[0]
    pointer = (
        s3.get_object(Bucket=LOCATION.bucket, Key="vsr/environments/cpu.current")["Body"].read().decode()
    )
    assert pointer.split() == [packed.sha256, packed.name]
    archive = s3.get_object(Bucket=LOCATION.bucket, Key=f"vsr/environments/{packed.name}")["Body"].read()
    assert hashlib.sha256(archive).hexdigest() == packed.sha256


def test_pack_puts_the_script_where_every_template_looks_for_it(aws: None) -> None:
    init(LOCATION, lambda _: None)
    upload_bootstrap(LOCATION.bucket, LOCATION.prefix, LOCATION.region, lambda _: None)
    keys = boto3.client("s3", region_name="eu-west-1").list_objects_v2(Bucket=LOCATION.bucket)["Contents"]
    assert [each["Key"] for each in keys] == ["vsr/bootstrap/node.sh"]
    for template in config_folder().glob("*.yaml"):
        for script in re.findall(r"Script: (.*)", template.read_text("utf-8")):
            assert script == "s3://${bucket}/${prefix}/bootstrap/node.sh"


def test_pack_into_a_bucket_that_is_not_there_names_the_command_that_makes_it(aws: None) -> None:
    with pytest.raises(JobError, match="vsr storage init"):
        upload_bootstrap(LOCATION.bucket, LOCATION.prefix, LOCATION.region, lambda _: None)


def test_run_with_a_heartbeat_is_active_until_it_is_done(aws: None) -> None:
    init(LOCATION, lambda _: None)
    s3 = boto3.client("s3", region_name="eu-west-1")
    for key in ("a/workers/w.json", "b/workers/w.json", "b/done.json", "c/receipts/0.json"):
        s3.put_object(Bucket=LOCATION.bucket, Key=f"vsr/runs/{key}", Body=b"{}")
    assert active_runs(LOCATION.bucket, "vsr", "eu-west-1") == ("s3://vsr-hpc-data/vsr/runs/a",)


def test_run_whose_workers_fell_silent_is_not_active(aws: None, monkeypatch: pytest.MonkeyPatch) -> None:
    init(LOCATION, lambda _: None)
    s3 = boto3.client("s3", region_name="eu-west-1")
    s3.put_object(Bucket=LOCATION.bucket, Key="vsr/runs/a/workers/w.json", Body=b"{}")
    late = datetime.now(UTC) + timedelta(minutes=11)
    monkeypatch.setattr("vsr_hpc.aws.cluster.lifecycle._date", lambda _: late)
    assert active_runs(LOCATION.bucket, "vsr", "eu-west-1") == ()


def test_container_nodes_may_pull_one_repository(aws: None) -> None:
    init(LOCATION, lambda _: None, with_container=True)
    iam = boto3.client("iam", region_name="eu-west-1")
    version = iam.get_policy_version(PolicyArn=LOCATION.policy_arn, VersionId="v1")["PolicyVersion"][
        "Document"
    ]
    assert "PullOneImage" in {each["Sid"] for each in version["Statement"]}
