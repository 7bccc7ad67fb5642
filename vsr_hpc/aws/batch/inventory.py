"""Reads what the account has of an installation; shared by its creation, removal and status."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from vsr_hpc.aws.batch.resources import Role
from vsr_hpc.aws.drift import holds
from vsr_hpc.aws.errors import error_code


def list_all(batch: Any, call: str, key: str) -> list[dict[str, Any]]:
    return [each for page in batch.get_paginator(call).paginate() for each in page[key]]


def is_named(name: str, ours: str) -> bool:
    return name == ours or name.startswith(f"{ours}-")


def is_settled(facts: dict[str, Any] | None) -> bool:
    return facts is None or (facts["state"] == "DISABLED" and facts["status"] in ("VALID", "INVALID"))


def is_gone(facts: dict[str, Any] | None) -> bool:
    return facts is None or facts["status"] == "DELETED"


def find_environment(batch: Any, name: str) -> dict[str, Any] | None:
    found = batch.describe_compute_environments(computeEnvironments=[name])["computeEnvironments"]
    return next((each for each in found if each.get("status") != "DELETED"), None)


def find_queue(batch: Any, name: str) -> dict[str, Any] | None:
    found = batch.describe_job_queues(jobQueues=[name])["jobQueues"]
    return next((each for each in found if each.get("status") != "DELETED"), None)


def find_log_group(logs: Any, name: str) -> dict[str, Any] | None:
    found = logs.describe_log_groups(logGroupNamePrefix=name)["logGroups"]
    facts = next((each for each in found if each["logGroupName"] == name), None)
    if facts is None:
        return None
    arn = facts["arn"].removesuffix(":*")
    return {**facts, "tags": logs.list_tags_for_resource(resourceArn=arn)["tags"]}


def find_role(iam: Any, name: str) -> dict[str, Any] | None:
    found = or_none(lambda: iam.get_role(RoleName=name)["Role"])
    return None if found is None else {**found, "tags": from_tag_list(found.get("Tags", []))}


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleDrift:
    """How a role of ours differs from what it should be."""

    is_same: bool
    foreign: tuple[str, ...]
    """Names of inline policies that are not ours."""
    foreign_attached: tuple[str, ...]
    """ARNs of managed policies that are not ours."""


def role_drift(iam: Any, role: Role, found: dict[str, Any]) -> RoleDrift:
    pages = iam.get_paginator("list_attached_role_policies").paginate(RoleName=role.name)
    attached = {each["PolicyArn"] for page in pages for each in page["AttachedPolicies"]}
    pages = iam.get_paginator("list_role_policies").paginate(RoleName=role.name)
    inline = {name: _inline(iam, role.name, name) for page in pages for name in page["PolicyNames"]}
    return RoleDrift(
        is_same=(
            found["AssumeRolePolicyDocument"] == role.trusted
            and inline == role.policies
            and attached == set(role.attached)
        ),
        foreign=tuple(sorted(inline.keys() - role.policies.keys())),
        foreign_attached=tuple(sorted(attached - set(role.attached))),
    )


def find_security_group(ec2: Any, name: str, network: str) -> dict[str, Any] | None:
    filters = [{"Name": "group-name", "Values": [name]}, {"Name": "vpc-id", "Values": [network]}]
    found = ec2.describe_security_groups(Filters=filters)["SecurityGroups"]
    return found[0] if found else None


def find_launch_template(ec2: Any, name: str) -> dict[str, Any] | None:
    filters = [{"Name": "launch-template-name", "Values": [name]}]
    found = ec2.describe_launch_templates(Filters=filters)["LaunchTemplates"]
    return found[0] if found else None


def or_none(look: Callable[[], Any]) -> Any:
    """IAM's answer; None where nothing of that name exists."""
    try:
        return look()
    except ClientError as exc:
        if error_code(exc) != "NoSuchEntity":
            raise
        return None


def same_queue(found: dict[str, Any], arguments: dict[str, Any]) -> bool:
    def order(facts: dict[str, Any]) -> list[str]:
        places = sorted(facts["computeEnvironmentOrder"], key=lambda each: int(each["order"]))
        return [each["computeEnvironment"].rpartition("/")[2] for each in places]

    return (
        order(found) == order(arguments)
        and int(found["priority"]) == arguments["priority"]
        and holds(found.get("jobStateTimeLimitActions") or [], arguments["jobStateTimeLimitActions"])
        and found["state"] == "ENABLED"
    )


def to_tag_list(tags: dict[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def from_tag_list(tags: list[dict[str, str]]) -> dict[str, str]:
    return {each["Key"]: each["Value"] for each in tags}


def _inline(iam: Any, role: str, name: str) -> Any:
    return or_none(lambda: iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"])
