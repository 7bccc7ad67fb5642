"""What an installation on AWS Batch consists of: pure, from a few settings to arguments of AWS's calls."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from string import Template
from typing import Any

from vsr_hpc.aws.batch.definition import IMAGE_TAG, OWNER_TAG
from vsr_hpc.aws.bucket import validate_location
from vsr_hpc.aws.config_files import config_folder
from vsr_hpc.aws.limits import limit
from vsr_hpc.errors import JobError

_NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")
_TYPE = re.compile(r"[a-z][a-z0-9-]*\.[a-z0-9-]+")

# One GPU and at least four vCPUs each: the more kinds, the easier Spot finds one that is free and cheap.
GPU_TYPES = ("g4dn.xlarge", "g5.xlarge", "g6.xlarge", "g4dn.2xlarge", "g5.2xlarge", "g6.2xlarge")
CPU_TYPES = ("m5.xlarge", "m6i.xlarge", "m7i.xlarge", "m6i.2xlarge", "m7i.2xlarge")
ROOT_DEVICE = "/dev/xvda"
LOG_DAYS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSettings:
    """What a person says to `vsr batch init`."""

    name: str
    region: str
    account: str
    bucket: str
    prefix: str
    subnets: tuple[str, ...]
    image: str
    gpu_types: tuple[str, ...] = GPU_TYPES
    cpu_types: tuple[str, ...] = CPU_TYPES
    max_vcpus: int = 128
    """Of each environment; none runs while nothing is to be done."""
    disk_gib: int = 100
    capacity_wait_min: int = 30
    """How long a job in the queue NAME-spot waits for an instance that does not come."""

    def __post_init__(self) -> None:
        found = []
        if not _NAME.fullmatch(self.name):
            found.append(f"name={self.name!r}: lower-case letters, digits and hyphens, 40 at most")
        if not self.subnets:
            found.append("subnets: none; name one of each Availability Zone")
        found += [
            f"subnet {each!r} is no subnet's id" for each in self.subnets if not each.startswith("subnet-")
        ]
        for each in (*self.gpu_types, *self.cpu_types):
            if not _TYPE.fullmatch(each):
                found.append(f"instance type {each!r} is none; write for example g5.xlarge")
        if not self.gpu_types:
            found.append("instance types: none")
        if self.max_vcpus < 4:
            found.append(f"max_vcpus={self.max_vcpus}: one worker needs 4")
        if self.disk_gib < 50:
            found.append(f"disk_gib={self.disk_gib}: the instance's own system takes 30, a clip wants room")
        least, most = limit("capacity_wait_least_s") // 60, limit("capacity_wait_most_s") // 60
        if not least <= self.capacity_wait_min <= most:
            found.append(f"capacity_wait_min={self.capacity_wait_min}: AWS Batch takes {least} to {most}")
        if not self.image or re.search(r"\s", self.image):
            found.append(
                "image: name the container's address, ACCOUNT.dkr.ecr.REGION.amazonaws.com/vsr-hpc:TAG"
            )
        if found:
            raise JobError.from_findings("batch init", found)
        validate_location(self.bucket, self.prefix, self.region, self.account)

    @property
    def partition(self) -> str:
        return validate_location(self.bucket, self.prefix, self.region, self.account).partition

    @property
    def tags(self) -> dict[str, str]:
        return {OWNER_TAG: self.name}


def policy(document: str, settings: BatchSettings) -> dict[str, Any]:
    """A policy of `cluster-config/iam-batch/`, filled in."""
    text = (config_folder() / "iam-batch" / f"{document}.json").read_text("utf-8")
    known = {
        "name": settings.name,
        "bucket": settings.bucket,
        "prefix": settings.prefix,
        "region": settings.region,
        "account": settings.account,
        "partition": settings.partition,
    }
    content: dict[str, Any] = json.loads(Template(text).substitute(known))
    return content


def trust(service: str, settings: BatchSettings) -> dict[str, Any]:
    """Who may take a role: one service, for this account alone."""
    statement: dict[str, Any] = {
        "Effect": "Allow",
        "Principal": {"Service": service},
        "Action": "sts:AssumeRole",
    }
    if not service.startswith("ec2."):  # EC2 sends no account with it
        statement["Condition"] = {"StringEquals": {"aws:SourceAccount": settings.account}}
    return {"Version": "2012-10-17", "Statement": [statement]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    name: str
    trusted: dict[str, Any]
    policies: dict[str, dict[str, Any]]
    attached: tuple[str, ...] = ()


def roles(settings: BatchSettings) -> tuple[Role, ...]:
    """What a container may do, and what its instance may do: nothing of the account but this."""
    ecs = f"arn:{settings.partition}:iam::aws:policy/service-role/AmazonEC2ContainerServiceforEC2Role"
    ec2 = "ec2.amazonaws.com.cn" if settings.partition == "aws-cn" else "ec2.amazonaws.com"
    return (
        Role(
            name=f"{settings.name}-job",
            trusted=trust("ecs-tasks.amazonaws.com", settings),
            policies={"vsr": policy("job", settings)},
        ),
        Role(name=f"{settings.name}-instance", trusted=trust(ec2, settings), policies={}, attached=(ecs,)),
    )


def launch_template(settings: BatchSettings) -> dict[str, Any]:
    """Instances with an encrypted disk and version 2 of the metadata service alone.

    The Spot notice is read there by the worker, which may be one hop away, in its container.
    """
    name_and_tags = [{"Key": "Name", "Value": f"{settings.name}-batch"}, *_tag_list(settings.tags)]
    return {
        "MetadataOptions": {
            "HttpTokens": "required",
            "HttpPutResponseHopLimit": 2,
            "HttpEndpoint": "enabled",
        },
        "BlockDeviceMappings": [
            {
                "DeviceName": ROOT_DEVICE,
                "Ebs": {
                    "VolumeSize": settings.disk_gib,
                    "VolumeType": "gp3",
                    "Encrypted": True,
                    "DeleteOnTermination": True,
                },
            }
        ],
        "TagSpecifications": [
            {"ResourceType": kind, "Tags": name_and_tags} for kind in ("instance", "volume")
        ],
    }


def _tag_list(tags: dict[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def environments(
    settings: BatchSettings, *, security_group: str, template: str, version: str
) -> dict[str, dict[str, Any]]:
    """The compute resources of each environment, by its name. minvCpus 0: nothing runs while none waits."""

    def resources(types: tuple[str, ...], *, is_spot: bool) -> dict[str, Any]:
        return {
            "type": "SPOT" if is_spot else "EC2",
            "allocationStrategy": "SPOT_PRICE_CAPACITY_OPTIMIZED" if is_spot else "BEST_FIT_PROGRESSIVE",
            "minvCpus": 0,
            "maxvCpus": settings.max_vcpus,
            "instanceTypes": list(types),
            "subnets": list(settings.subnets),
            "securityGroupIds": [security_group],
            "instanceRole": (
                f"arn:{settings.partition}:iam::{settings.account}:instance-profile/{settings.name}-instance"
            ),
            "launchTemplate": {"launchTemplateId": template, "version": version},
            "tags": settings.tags,
        }

    return {
        f"{settings.name}-spot": resources(settings.gpu_types, is_spot=True),
        f"{settings.name}-ondemand": resources(settings.gpu_types, is_spot=False),
        f"{settings.name}-cpu": resources(settings.cpu_types, is_spot=True),
        f"{settings.name}-cpu-ondemand": resources(settings.cpu_types, is_spot=False),
    }


def environment_arn(name: str, settings: BatchSettings) -> str:
    where = f"{settings.region}:{settings.account}"
    return f"arn:{settings.partition}:batch:{where}:compute-environment/{name}"


def queues(settings: BatchSettings) -> dict[str, dict[str, Any]]:
    """Arguments of each queue, by its name. Of queues on one environment the higher priority goes first."""
    name = settings.name
    no_capacity = {
        "reason": "CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY",
        "state": "RUNNABLE",
        "maxTimeSeconds": settings.capacity_wait_min * 60,
        "action": "CANCEL",
    }

    def queue(priority: int, *places: str, limits: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
        order = [
            {"order": number, "computeEnvironment": environment_arn(f"{name}-{place}", settings)}
            for number, place in enumerate(places, start=1)
        ]
        return {
            "priority": priority,
            "computeEnvironmentOrder": order,
            "jobStateTimeLimitActions": list(limits),
        }

    return {
        name: queue(10, "spot", "ondemand"),
        f"{name}-spot": queue(5, "spot", limits=(no_capacity,)),
        f"{name}-ondemand": queue(20, "ondemand"),
        f"{name}-cpu": queue(10, "cpu", "cpu-ondemand"),
    }


def queue_tags(settings: BatchSettings) -> dict[str, str]:
    return {**settings.tags, IMAGE_TAG: settings.image}
