"""Create what AWS Batch needs, or bring it up to date. Every step looks first, so that all may be repeated.

What carries our tag is ours. Anything else of the same name is refused; it is never changed or deleted.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vsr_hpc.aws.account import Account, Say
from vsr_hpc.aws.batch import resources as wanted
from vsr_hpc.aws.batch.definition import OWNER_TAG, log_group
from vsr_hpc.aws.batch.inventory import (
    find_environment,
    find_launch_template,
    find_log_group,
    find_queue,
    find_role,
    find_security_group,
    from_tag_list,
    or_none,
    role_drift,
    same_queue,
    to_tag_list,
)
from vsr_hpc.aws.batch.resources import BatchSettings, Role
from vsr_hpc.aws.drift import holds
from vsr_hpc.aws.errors import explained
from vsr_hpc.aws.new_account import SPOT_ROLE, has_spot_role, make_spot_role, once_iam_knows
from vsr_hpc.aws.quotas import Purchase, Wish, find_shortages, look
from vsr_hpc.aws.steps import Action, Kind, Step
from vsr_hpc.errors import JobError

log = logging.getLogger(__name__)


_NOT_OURS = ("ec2KeyPair", "imageId")
"""Of an environment: who may log in and what its instances boot are left to AWS. Empty takes them away."""


def init(settings: BatchSettings, account: Account, say: Say, *, is_plan: bool = False) -> tuple[Step, ...]:
    """Create or update what is not as the settings say, reporting each step; with `is_plan` only report."""
    maker = Maker(settings=settings, account=account, say=say, is_plan=is_plan)
    with explained("set up AWS Batch"):
        network = maker.network()  # first: a wrong subnet leaves nothing half made
        maker.spot_role()
        _tell_shortages(settings, account, say)
        maker.log_group()
        for role in wanted.roles(settings):
            maker.role(role)
        maker.instance_profile()
        group = maker.security_group(network)
        template, version = maker.launch_template()
        for name, resources in wanted.environments(
            settings, security_group=group, template=template, version=version
        ).items():
            maker.environment(name, resources)
        for name, arguments in wanted.queues(settings).items():
            maker.queue(name, arguments)
    return tuple(maker.steps)


def _tell_shortages(settings: BatchSettings, account: Account, say: Say) -> None:
    """Quotas do not hinder the making of queues: AWS takes days to raise them. They are told."""
    purchases: tuple[Purchase, ...] = ("spot", "on-demand")
    wishes = (
        Wish(types=types, purchase=purchase, vcpus=settings.max_vcpus)
        for types in (settings.gpu_types, settings.cpu_types)
        for purchase in purchases
    )
    short, unseen = look(find_shortages(account.client("service-quotas"), wishes))
    for each in short:
        say(str(each))
    if unseen:
        say(unseen)


@dataclass(slots=True, kw_only=True)
class Maker:
    """Looks at one thing after the other, reports the step that it needs, and carries it out."""

    settings: BatchSettings
    account: Account
    say: Say
    is_plan: bool
    steps: list[Step] = field(default_factory=list)

    def is_due(self, action: Action, kind: Kind, name: str, detail: str = "") -> bool:
        """Note the step and say it; answers whether to do it now."""
        step = Step(action=action, kind=kind, name=name, detail=detail)
        self.steps.append(step)
        self.say(str(step))
        return step.is_change and not self.is_plan

    def _check_ours(self, what: str, tags: dict[str, str]) -> None:
        if tags.get(OWNER_TAG) != self.settings.name:
            raise JobError(
                f"{what} exists and is not ours (it has no tag {OWNER_TAG}={self.settings.name}); choose "
                "another --name"
            )

    def log_group(self) -> None:
        logs, name = self.account.client("logs"), log_group(self.settings.name)
        kept = f"kept for {wanted.LOG_DAYS} days"
        found = find_log_group(logs, name)
        if found is None:
            if self.is_due("create", "log group", name, kept):
                logs.create_log_group(logGroupName=name, tags=self.settings.tags)
                logs.put_retention_policy(logGroupName=name, retentionInDays=wanted.LOG_DAYS)
            return
        self._check_ours(f"log group {name}", found["tags"])
        is_same = found.get("retentionInDays") == wanted.LOG_DAYS
        if self.is_due("keep" if is_same else "update", "log group", name, kept):
            logs.put_retention_policy(logGroupName=name, retentionInDays=wanted.LOG_DAYS)

    def role(self, role: Role) -> None:
        iam = self.account.client("iam")
        found = find_role(iam, role.name)
        if found is not None:
            self._check_ours(f"role {role.name}", found["tags"])
        drift = None if found is None else role_drift(iam, role, found)
        foreign = () if drift is None else (*drift.foreign, *drift.foreign_attached)
        action: Action = "create" if drift is None else "keep" if drift.is_same else "update"
        detail = f"without {', '.join(foreign)}, which somebody added" if foreign else ""
        if not self.is_due(action, "role", role.name, detail):
            return
        trusted = json.dumps(role.trusted)
        if found is None:
            iam.create_role(
                RoleName=role.name,
                AssumeRolePolicyDocument=trusted,
                Description="AWS Batch jobs of vsr_hpc",
                Tags=to_tag_list(self.settings.tags),
            )
        else:
            iam.update_assume_role_policy(RoleName=role.name, PolicyDocument=trusted)
        for name, document in role.policies.items():
            iam.put_role_policy(RoleName=role.name, PolicyName=name, PolicyDocument=json.dumps(document))
        for arn in role.attached:
            iam.attach_role_policy(RoleName=role.name, PolicyArn=arn)
        if drift is not None:
            for name in drift.foreign:
                iam.delete_role_policy(RoleName=role.name, PolicyName=name)
            for arn in drift.foreign_attached:
                iam.detach_role_policy(RoleName=role.name, PolicyArn=arn)

    def spot_role(self) -> None:
        iam = self.account.client("iam")
        action: Action = "keep" if has_spot_role(iam) else "create"
        if self.is_due(action, "service-linked role", SPOT_ROLE, "of the account, for Spot"):
            make_spot_role(iam)

    def instance_profile(self) -> None:
        iam, name = self.account.client("iam"), f"{self.settings.name}-instance"
        found = or_none(lambda: iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"])
        if found is not None:
            self._check_ours(f"instance profile {name}", from_tag_list(found.get("Tags", [])))
        has_role = found is not None and any(each["RoleName"] == name for each in found["Roles"])
        action: Action = "keep" if has_role else "create" if found is None else "update"
        if not self.is_due(action, "instance profile", name):
            return
        if found is None:
            iam.create_instance_profile(InstanceProfileName=name, Tags=to_tag_list(self.settings.tags))
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)

    def network(self) -> str:
        """The one network that all subnets lie in."""
        ec2 = self.account.client("ec2")
        subnets = ec2.describe_subnets(SubnetIds=list(self.settings.subnets))["Subnets"]
        networks = {str(each["VpcId"]) for each in subnets}
        if len(networks) != 1:
            found = ", ".join(sorted(networks))
            raise JobError(f"the subnets lie in {len(networks)} networks ({found}); name one's")
        return networks.pop()

    def security_group(self, network: str) -> str:
        ec2, name = self.account.client("ec2"), f"{self.settings.name}-batch"
        detail = f"in {network}, nothing comes in"
        found = find_security_group(ec2, name, network)
        if found is not None:
            self._check_ours(f"security group {name}", from_tag_list(found.get("Tags", [])))
            is_open = bool(found["IpPermissions"])
            if self.is_due("update" if is_open else "keep", "security group", name, detail):
                ec2.revoke_security_group_ingress(
                    GroupId=found["GroupId"], IpPermissions=found["IpPermissions"]
                )
            return str(found["GroupId"])
        if not self.is_due("create", "security group", name, detail):
            return "sg-00000000000000000"
        made = ec2.create_security_group(
            GroupName=name,
            Description="Instances of AWS Batch for vsr_hpc: nothing comes in",
            VpcId=network,
            TagSpecifications=[{"ResourceType": "security-group", "Tags": to_tag_list(self.settings.tags)}],
        )
        return str(made["GroupId"])

    def launch_template(self) -> tuple[str, str]:
        ec2, name = self.account.client("ec2"), f"{self.settings.name}-batch"
        detail = f"{self.settings.disk_gib} GiB encrypted, IMDSv2"
        content = wanted.launch_template(self.settings)
        found = find_launch_template(ec2, name)
        if found is None:
            if not self.is_due("create", "launch template", name, detail):
                return "lt-00000000000000000", "1"
            made = ec2.create_launch_template(
                LaunchTemplateName=name,
                LaunchTemplateData=content,
                TagSpecifications=[
                    {"ResourceType": "launch-template", "Tags": to_tag_list(self.settings.tags)}
                ],
            )
            return str(made["LaunchTemplate"]["LaunchTemplateId"]), "1"
        self._check_ours(f"launch template {name}", from_tag_list(found.get("Tags", [])))
        template, latest = str(found["LaunchTemplateId"]), int(found["LatestVersionNumber"])
        versions = ec2.describe_launch_template_versions(LaunchTemplateId=template, Versions=[str(latest)])
        now = versions["LaunchTemplateVersions"][0]["LaunchTemplateData"]
        is_same = all(
            holds(_with_tags_by_kind(now).get(key), value)
            for key, value in _with_tags_by_kind(content).items()
        )
        if not self.is_due("keep" if is_same else "update", "launch template", name, detail):
            return template, str(latest)
        made = ec2.create_launch_template_version(LaunchTemplateId=template, LaunchTemplateData=content)
        return template, str(made["LaunchTemplateVersion"]["VersionNumber"])

    def environment(self, name: str, resources: dict[str, Any]) -> None:
        batch = self.account.client("batch")
        kind = "Spot" if resources["type"] == "SPOT" else "on demand"
        types = ", ".join(resources["instanceTypes"])
        detail = f"{kind}, 0 to {resources['maxvCpus']} vCPUs of {types}"
        found = find_environment(batch, name)
        if found is None:
            if self.is_due("create", "compute environment", name, detail):
                self._create_environment(name, resources)
            return
        self._check_ours(f"compute environment {name}", found.get("tags", {}))
        now = found["computeResources"]
        foreign = {key: "" for key in _NOT_OURS if now.get(key)}
        is_well = found["state"] == "ENABLED" and found["status"] != "INVALID"
        is_same = holds(now, resources) and not foreign and is_well
        if self.is_due("keep" if is_same else "update", "compute environment", name, detail):
            given = {key: value for key, value in {**resources, **foreign}.items() if key != "type"}
            batch.update_compute_environment(computeEnvironment=name, state="ENABLED", computeResources=given)
            self._wait_valid(f"compute environment {name}", lambda: find_environment(batch, name))

    def _create_environment(self, name: str, resources: dict[str, Any]) -> None:
        batch = self.account.client("batch")
        once_iam_knows(
            lambda: batch.create_compute_environment(
                computeEnvironmentName=name,
                type="MANAGED",
                state="ENABLED",
                computeResources=resources,
                tags=self.settings.tags,
            ),
            self.account.pause,
        )
        self._wait_valid(f"compute environment {name}", lambda: find_environment(batch, name))

    def queue(self, name: str, arguments: dict[str, Any]) -> None:
        batch, tags = self.account.client("batch"), wanted.queue_tags(self.settings)
        order = [
            each["computeEnvironment"].rpartition("/")[2] for each in arguments["computeEnvironmentOrder"]
        ]
        places = " then ".join(order)
        detail = f"priority {arguments['priority']}, {places}"
        found = find_queue(batch, name)
        if found is None:
            if self.is_due("create", "job queue", name, detail):
                batch.create_job_queue(jobQueueName=name, state="ENABLED", tags=tags, **arguments)
                self._wait_valid(f"job queue {name}", lambda: find_queue(batch, name))
            return
        self._check_ours(f"job queue {name}", found.get("tags", {}))
        is_same = same_queue(found, arguments) and holds(found["tags"], tags)
        if self.is_due("keep" if is_same else "update", "job queue", name, detail):
            batch.update_job_queue(jobQueue=name, state="ENABLED", **arguments)
            batch.tag_resource(resourceArn=found["jobQueueArn"], tags=tags)
            self._wait_valid(f"job queue {name}", lambda: find_queue(batch, name))

    def _wait_valid(self, what: str, look: Callable[[], dict[str, Any] | None]) -> None:
        def is_valid() -> bool:
            facts = look()
            if facts is not None and facts["status"] == "INVALID":
                raise JobError(f"{what} is invalid: {facts.get('statusReason', 'AWS gives no reason')}")
            return facts is not None and facts["status"] == "VALID"

        self.account.wait(what, is_valid)


def _with_tags_by_kind(content: dict[str, Any]) -> dict[str, Any]:
    """A launch template's content with its tags by kind, whose order says nothing."""
    tags = {each["ResourceType"]: each["Tags"] for each in content.get("TagSpecifications", ())}
    return {**content, "TagSpecifications": tags}
