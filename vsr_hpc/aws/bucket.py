"""The bucket that runs live in, and the policy that lets nodes reach their part of it and no more."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from string import Template
from typing import Any

from botocore.exceptions import ClientError
from pydantic import TypeAdapter, ValidationError

from vsr_hpc.aws.account import Say, client
from vsr_hpc.aws.config_files import config_folder
from vsr_hpc.aws.errors import OPERATOR_POLICY, error_code, explained
from vsr_hpc.aws.names import Bucket, Prefix, Region
from vsr_hpc.aws.steps import Action, Step
from vsr_hpc.errors import JobError

MakeClient = Callable[[str], Any]
# IAM keeps five versions of a policy; a sixth is refused.
_VERSIONS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketLocation:
    """Which bucket, for whom."""

    bucket: str
    prefix: str
    region: str
    account: str = ""

    @property
    def partition(self) -> str:
        if self.region.startswith("cn-"):
            return "aws-cn"
        return "aws-us-gov" if self.region.startswith("us-gov-") else "aws"

    @property
    def policy_name(self) -> str:
        return f"vsr-node-{self.bucket}"

    @property
    def policy_arn(self) -> str:
        return f"arn:{self.partition}:iam::{self.account}:policy/{self.policy_name}"


def validate_location(bucket: str, prefix: str, region: str, account: str) -> BucketLocation:
    """A place whose names are safe inside policies and addresses; JobError says what is wrong with them."""
    wrong = []
    for what, value, kind in (
        ("bucket", bucket, Bucket),
        ("prefix", prefix, Prefix),
        ("region", region, Region),
    ):
        try:
            TypeAdapter(kind).validate_python(value)
        except ValidationError as exc:
            wrong.append(f"{what}={value!r}: {exc.errors()[0]['msg']}")
    if wrong:
        raise JobError.from_findings("storage init", wrong)
    return BucketLocation(bucket=bucket, prefix=prefix, region=region, account=account)


def policy(name: str, place: BucketLocation) -> dict[str, Any]:
    """A policy of `cluster-config/iam/`, filled in."""
    return _fill_template(f"iam/{name}.json", place)


def _fill_template(name: str, place: BucketLocation) -> dict[str, Any]:
    text = (config_folder() / name).read_text("utf-8")
    known = {
        "bucket": place.bucket,
        "prefix": place.prefix,
        "region": place.region,
        "account": place.account,
        "partition": place.partition,
    }
    content: dict[str, Any] = json.loads(Template(text).substitute(known))
    return content


def plan_storage(
    place: BucketLocation, make_client: MakeClient | None = None, *, with_container: bool = False
) -> tuple[Step, ...]:
    """The steps of `init` in their order. Each may be repeated, and leaves alone what is not ours."""
    make = make_client or (lambda service: client(service, place.region))
    s3, uri = make("s3"), f"s3://{place.bucket}"
    lifecycle = _fill_template("bucket-lifecycle.json", place)["Rules"]
    kept = (
        f"drop unfinished uploads after 2 days, {place.prefix}/runs/ (segments, receipts) after 30; "
        f"move {place.prefix}/outgoing/ to Intelligent-Tiering"
    )
    reach = f"read and write below {uri}/{place.prefix}/ only"

    def step(action: Action, detail: str, apply: Callable[[], bool]) -> Step:
        return Step(action=action, kind="bucket", name=place.bucket, detail=detail, apply=apply)

    return (
        step("create", f"in {place.region}, unless it is there", lambda: _make_bucket(s3, place)),
        step("update", "block every public access", lambda: _block_public(s3, place)),
        step("update", "encrypt new objects with S3's own keys (free)", lambda: _encrypt(s3, place)),
        step("update", "refuse requests without TLS 1.2 or later", lambda: _tls_only(s3, place)),
        step("update", kept, lambda: _lifecycle(s3, place, lifecycle)),
        Step(
            action="update",
            kind="policy",
            name=place.policy_name,
            detail=reach,
            apply=lambda: _node_policy(make("iam"), place, with_container),
        ),
    )


def init(
    place: BucketLocation, say: Say, make_client: MakeClient | None = None, *, with_container: bool = False
) -> int:
    """Do every step and say what became of it; answers how many changed anything."""
    changed = 0
    for step in plan_storage(place, make_client, with_container=with_container):
        with explained(str(step), hint=OPERATOR_POLICY):
            is_new = step.apply is not None and step.apply()
        changed += is_new
        say(str(step if is_new else replace(step, action="keep")))
    return changed


def _make_bucket(s3: Any, place: BucketLocation) -> bool:
    try:
        s3.head_bucket(Bucket=place.bucket)
    except ClientError as exc:
        if error_code(exc) not in ("404", "NoSuchBucket"):
            raise
    else:
        where = s3.get_bucket_location(Bucket=place.bucket).get("LocationConstraint") or "us-east-1"
        if where != place.region:
            raise JobError(
                f"s3://{place.bucket} lies in {where}, not in {place.region}; traffic between costs"
            )
        return False
    more: dict[str, Any] = {}
    if place.region != "us-east-1":  # which S3 refuses to be told
        more["CreateBucketConfiguration"] = {"LocationConstraint": place.region}
    s3.create_bucket(Bucket=place.bucket, ObjectOwnership="BucketOwnerEnforced", **more)
    return True


def _block_public(s3: Any, place: BucketLocation) -> bool:
    wanted = dict.fromkeys(
        ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"), True
    )
    if _read_field(s3.get_public_access_block, "PublicAccessBlockConfiguration", place) == wanted:
        return False
    s3.put_public_access_block(Bucket=place.bucket, PublicAccessBlockConfiguration=wanted)
    return True


def _encrypt(s3: Any, place: BucketLocation) -> bool:
    """An encryption that the owner chose (a KMS key) stays."""
    found = _read_field(s3.get_bucket_encryption, "ServerSideEncryptionConfiguration", place)
    if found and found.get("Rules"):
        return False
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}, "BucketKeyEnabled": True}
    s3.put_bucket_encryption(Bucket=place.bucket, ServerSideEncryptionConfiguration={"Rules": [rule]})
    return True


def _tls_only(s3: Any, place: BucketLocation) -> bool:
    ours = policy("bucket-policy", place)
    found = _read_field(s3.get_bucket_policy, "Policy", place)
    theirs = json.loads(found)["Statement"] if found else []
    names = {each["Sid"] for each in ours["Statement"]}
    kept = [each for each in theirs if each.get("Sid") not in names]
    wanted = {**ours, "Statement": [*kept, *ours["Statement"]]}
    if found and json.loads(found) == wanted:
        return False
    s3.put_bucket_policy(Bucket=place.bucket, Policy=json.dumps(wanted))
    return True


def _lifecycle(s3: Any, place: BucketLocation, ours: list[dict[str, Any]]) -> bool:
    found = _read_field(s3.get_bucket_lifecycle_configuration, "Rules", place) or []
    names = {each["ID"] for each in ours}
    mine = [each for each in found if each.get("ID") in names]
    if len(mine) == len(ours) and all(_same_rule(a, b) for a, b in zip(mine, ours, strict=True)):
        return False
    kept = [each for each in found if each.get("ID") not in names]
    s3.put_bucket_lifecycle_configuration(
        Bucket=place.bucket, LifecycleConfiguration={"Rules": [*kept, *ours]}
    )
    return True


def _same_rule(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return all(found.get(key) == value for key, value in wanted.items())


def _read_field(call: Callable[..., Any], field: str, place: BucketLocation) -> Any:
    """A field of the bucket's configuration; None where there is no such configuration."""
    try:
        return call(Bucket=place.bucket).get(field)
    except ClientError as exc:
        if error_code(exc).startswith(("NoSuch", "ServerSideEncryptionConfigurationNotFound")):
            return None
        raise


def _node_policy(iam: Any, place: BucketLocation, with_container: bool) -> bool:
    document = policy("node", place)
    if with_container:
        document["Statement"] += policy("node-container", place)["Statement"]
    text = json.dumps(document)
    try:
        current = iam.get_policy(PolicyArn=place.policy_arn)["Policy"]
    except ClientError as exc:
        if error_code(exc) != "NoSuchEntity":
            raise
        iam.create_policy(
            PolicyName=place.policy_name, PolicyDocument=text, Description="Nodes of a vsr_hpc cluster"
        )
        return True
    version = iam.get_policy_version(PolicyArn=place.policy_arn, VersionId=current["DefaultVersionId"])
    if version["PolicyVersion"]["Document"] == document:
        return False
    versions = iam.list_policy_versions(PolicyArn=place.policy_arn)["Versions"]
    if len(versions) >= _VERSIONS:
        oldest = min(
            (each for each in versions if not each["IsDefaultVersion"]), key=lambda each: each["CreateDate"]
        )
        iam.delete_policy_version(PolicyArn=place.policy_arn, VersionId=oldest["VersionId"])
    iam.create_policy_version(PolicyArn=place.policy_arn, PolicyDocument=text, SetAsDefault=True)
    return True
