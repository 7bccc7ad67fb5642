"""The job definition of a run's workers: pure, so that it can be compared before anything is registered."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from vsr_hpc.aws.batch.jobs import Queue
from vsr_hpc.aws.errors import explained
from vsr_hpc.errors import JobError
from vsr_hpc.job.spec import JobSpec
from vsr_hpc.models.cards import find_card
from vsr_hpc.system.aws_region import region_environment

FINGERPRINT_TAG = "vsr-fingerprint"
OWNER_TAG = "vsr-batch"
IMAGE_TAG = "vsr-image"
USER = "10001:10001"
"""The image's own, said again so that no other image runs as root."""
_GIB = 1024

# Batch matches these as patterns, in order, before it counts the attempt. What a person must mend (2, 3, 4),
# a full disk (6) or a kill inside the container (137: too little memory) would end the same way again.
EVALUATE_ON_EXIT = (
    {"onStatusReason": "Host EC2*", "action": "RETRY"},
    {"onExitCode": "75", "action": "RETRY"},
    {"onReason": "*", "action": "EXIT"},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What decides a job definition."""

    name: str
    """Of the whole, as told to `vsr batch init`."""
    image: str
    job_role: str
    region: str
    cpus: int
    memory_gib: float
    gpus: int
    attempts: int
    timeout_min: int
    warning_s: int


def log_group(name: str) -> str:
    return f"/vsr/batch/{name}"


def job_role(name: str) -> str:
    return f"{name}-job"


def definition(wanted: Wanted) -> dict[str, Any]:
    """The arguments of RegisterJobDefinition, without its fingerprint."""
    requirements = [
        {"type": "VCPU", "value": str(wanted.cpus)},
        {"type": "MEMORY", "value": str(round(wanted.memory_gib * _GIB))},
    ]
    if wanted.gpus:
        requirements.append({"type": "GPU", "value": str(wanted.gpus)})
    return {
        "jobDefinitionName": f"{wanted.name}-worker",
        "type": "container",
        "platformCapabilities": ["EC2"],
        "propagateTags": True,
        "containerProperties": {
            "image": wanted.image,
            "command": ["vsr", "--help"],  # each job says its own
            "jobRoleArn": wanted.job_role,
            "user": USER,
            "privileged": False,
            "readonlyRootFilesystem": True,
            # The container's one writable place, on the instance's disk and gone with the container. Docker
            # gives it the rights that /tmp has in the image.
            "volumes": [{"name": "scratch", "host": {}}],
            "mountPoints": [{"sourceVolume": "scratch", "containerPath": "/tmp", "readOnly": False}],
            "linuxParameters": {"initProcessEnabled": True, "sharedMemorySize": 1024},
            "ulimits": [{"name": "nofile", "softLimit": 4096, "hardLimit": 4096}],
            "environment": [
                *({"name": key, "value": value} for key, value in region_environment(wanted.region).items()),
                {"name": "HOME", "value": "/tmp"},
                {"name": "VSR_BATCH_ATTEMPTS", "value": str(wanted.attempts)},
                {"name": "VSR_BATCH_TIMEOUT_S", "value": str(wanted.timeout_min * 60)},
                {"name": "VSR_BATCH_WARNING_S", "value": str(wanted.warning_s)},
            ],
            "resourceRequirements": requirements,
            "logConfiguration": {
                "logDriver": "awslogs",
                "options": {
                    "awslogs-group": log_group(wanted.name),
                    "awslogs-region": wanted.region,
                    "awslogs-stream-prefix": "worker",
                },
            },
        },
        "retryStrategy": {
            "attempts": wanted.attempts,
            "evaluateOnExit": [dict(each) for each in EVALUATE_ON_EXIT],
        },
        "timeout": {"attemptDurationSeconds": wanted.timeout_min * 60},
    }


def fingerprint(arguments: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(arguments, sort_keys=True).encode()).hexdigest()[:32]


def gpus_of(job: JobSpec) -> int:
    """For each worker: one for a network, unless the job says otherwise."""
    if job.batch.gpus is not None:
        return job.batch.gpus
    return 0 if find_card(job.model).is_filter else 1


def wanted_of(queue: Queue, job: JobSpec, region: str) -> Wanted:
    """The workers' job definition. JobError where no image is known."""
    section = job.batch
    image = section.image or queue.tags.get(IMAGE_TAG)
    if not image:
        raise JobError(
            f"no container image: name one as batch.image, or with `vsr batch init {section.name} --image`"
        )
    role = section.job_role or f"arn:{queue.partition}:iam::{queue.account}:role/{job_role(section.name)}"
    return Wanted(
        name=section.name,
        image=image,
        job_role=role,
        region=region,
        cpus=section.cpus,
        memory_gib=section.memory_gib,
        gpus=gpus_of(job),
        attempts=section.attempts,
        timeout_min=section.timeout_min,
        warning_s=section.warning_s,
    )


def ensure_definition(batch: Any, wanted: Wanted) -> str:
    """The ARN of a job definition that is just so; registered only where none is."""
    arguments = definition(wanted)
    mark = fingerprint(arguments)
    with explained(f"look at job definition {arguments['jobDefinitionName']}"):
        pages = batch.get_paginator("describe_job_definitions").paginate(
            jobDefinitionName=arguments["jobDefinitionName"], status="ACTIVE"
        )
        for each in (found for page in pages for found in page["jobDefinitions"]):
            if each.get("tags", {}).get(FINGERPRINT_TAG) == mark:
                return str(each["jobDefinitionArn"])
    tags = {OWNER_TAG: wanted.name, FINGERPRINT_TAG: mark}
    with explained(f"register job definition {arguments['jobDefinitionName']}"):
        return str(batch.register_job_definition(**arguments, tags=tags)["jobDefinitionArn"])
