"""Remove what `init` created and jobs registered, in the order that AWS requires, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vsr_hpc.aws.account import Account, Say
from vsr_hpc.aws.batch.definition import OWNER_TAG, log_group
from vsr_hpc.aws.batch.inventory import (
    find_environment,
    find_launch_template,
    find_log_group,
    find_queue,
    find_role,
    from_tag_list,
    is_gone,
    is_named,
    is_settled,
    list_all,
    or_none,
)
from vsr_hpc.aws.errors import error_code, explained
from vsr_hpc.aws.steps import Kind, Step


def delete(name: str, account: Account, say: Say, *, is_plan: bool = False) -> tuple[Step, ...]:
    """Remove what `init` created under this name and jobs registered. Gives the steps."""
    remover = Remover(name=name, account=account, say=say, is_plan=is_plan)
    with explained("take AWS Batch down"):
        remover.queues()
        remover.environments()
        remover.definitions()
        remover.launch_template()
        remover.security_groups()
        remover.instance_profile()
        for role in ("job", "instance"):
            remover.role(f"{name}-{role}")
        remover.log_group()
    return tuple(remover.steps)


@dataclass(slots=True, kw_only=True)
class Remover:
    """Removes one thing after the other where it is ours, and reports each."""

    name: str
    account: Account
    say: Say
    is_plan: bool
    steps: list[Step] = field(default_factory=list)

    def is_due(self, kind: Kind, name: str, tags: dict[str, str], detail: str = "") -> bool:
        """Note and say what goes, if its tags say that it is ours; answers whether to remove it now."""
        if tags.get(OWNER_TAG) != self.name:
            self.say(f"left alone, not ours: {kind} {name}")
            return False
        step = Step(action="remove", kind=kind, name=name, detail=detail)
        self.steps.append(step)
        self.say(str(step))
        return not self.is_plan

    def queues(self) -> None:
        batch = self.account.client("batch")
        for each in list_all(batch, "describe_job_queues", "jobQueues"):
            name = each["jobQueueName"]
            if not is_named(name, self.name) or not self.is_due("job queue", name, each.get("tags", {})):
                continue
            if each["state"] != "DISABLED":
                batch.update_job_queue(jobQueue=name, state="DISABLED")
                self.account.wait(f"disabling {name}", _when_settled(find_queue, batch, name))
            batch.delete_job_queue(jobQueue=name)
            self.account.wait(f"deleting {name}", _when_gone(find_queue, batch, name))

    def environments(self) -> None:
        batch = self.account.client("batch")
        for each in list_all(batch, "describe_compute_environments", "computeEnvironments"):
            name = each["computeEnvironmentName"]
            tags = each.get("tags", {})
            if not is_named(name, self.name) or not self.is_due("compute environment", name, tags):
                continue
            if each["state"] != "DISABLED":
                batch.update_compute_environment(computeEnvironment=name, state="DISABLED")
                self.account.wait(f"disabling {name}", _when_settled(find_environment, batch, name))
            batch.delete_compute_environment(computeEnvironment=name)
            self.account.wait(f"deleting {name}", _when_gone(find_environment, batch, name))

    def definitions(self) -> None:
        batch = self.account.client("batch")
        pages = batch.get_paginator("describe_job_definitions").paginate(
            jobDefinitionName=f"{self.name}-worker", status="ACTIVE"
        )
        for each in [found for page in pages for found in page["jobDefinitions"]]:
            name = f"{each['jobDefinitionName']}:{each['revision']}"
            if self.is_due("job definition", name, each.get("tags", {})):
                batch.deregister_job_definition(jobDefinition=each["jobDefinitionArn"])

    def launch_template(self) -> None:
        ec2 = self.account.client("ec2")
        found = find_launch_template(ec2, f"{self.name}-batch")
        if found and self.is_due(
            "launch template", f"{self.name}-batch", from_tag_list(found.get("Tags", []))
        ):
            ec2.delete_launch_template(LaunchTemplateId=found["LaunchTemplateId"])

    def security_groups(self) -> None:
        ec2 = self.account.client("ec2")
        filters = [{"Name": "group-name", "Values": [f"{self.name}-batch"]}]
        for each in ec2.describe_security_groups(Filters=filters)["SecurityGroups"]:
            if self.is_due(
                "security group", each["GroupName"], from_tag_list(each.get("Tags", [])), each["GroupId"]
            ):
                self._delete_group(each["GroupId"])

    def _delete_group(self, group: str) -> None:
        """Instances that are going still hold it for a while."""
        ec2 = self.account.client("ec2")

        def is_deleted() -> bool:
            try:
                ec2.delete_security_group(GroupId=group)
            except ec2.exceptions.ClientError as exc:
                if error_code(exc) != "DependencyViolation":
                    raise
                return False
            return True

        self.account.wait(f"deleting security group {group}", is_deleted)

    def instance_profile(self) -> None:
        iam, name = self.account.client("iam"), f"{self.name}-instance"
        found = or_none(lambda: iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"])
        if found is None or not self.is_due("instance profile", name, from_tag_list(found.get("Tags", []))):
            return
        for role in found["Roles"]:
            iam.remove_role_from_instance_profile(InstanceProfileName=name, RoleName=role["RoleName"])
        iam.delete_instance_profile(InstanceProfileName=name)

    def role(self, name: str) -> None:
        iam = self.account.client("iam")
        found = find_role(iam, name)
        if found is None or not self.is_due("role", name, found["tags"]):
            return
        for each in iam.list_attached_role_policies(RoleName=name)["AttachedPolicies"]:
            iam.detach_role_policy(RoleName=name, PolicyArn=each["PolicyArn"])
        for each in iam.list_role_policies(RoleName=name)["PolicyNames"]:
            iam.delete_role_policy(RoleName=name, PolicyName=each)
        iam.delete_role(RoleName=name)

    def log_group(self) -> None:
        logs, name = self.account.client("logs"), log_group(self.name)
        found = find_log_group(logs, name)
        if found is not None and self.is_due("log group", name, found["tags"]):
            logs.delete_log_group(logGroupName=name)


Look = Callable[[Any, str], "dict[str, Any] | None"]


def _when_settled(look: Look, batch: Any, name: str) -> Callable[[], bool]:
    return lambda: is_settled(look(batch, name))


def _when_gone(look: Look, batch: Any, name: str) -> Callable[[], bool]:
    return lambda: is_gone(look(batch, name))
