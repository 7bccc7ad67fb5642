"""The state of an installation on AWS Batch: its environments, its queues and the jobs in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vsr_hpc.aws.account import Account
from vsr_hpc.aws.batch.definition import IMAGE_TAG, OWNER_TAG
from vsr_hpc.aws.batch.inventory import list_all
from vsr_hpc.aws.errors import explained
from vsr_hpc.errors import JobError


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentState:
    name: str
    state: str
    status: str
    reason: str
    kind: str
    vcpus_now: int
    vcpus_most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueState:
    name: str
    state: str
    status: str
    priority: int
    environments: tuple[str, ...]
    jobs: dict[str, int]
    image: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchState:
    name: str
    region: str
    environments: tuple[EnvironmentState, ...]
    queues: tuple[QueueState, ...]


_OPEN = ("SUBMITTED", "PENDING", "RUNNABLE", "STARTING", "RUNNING")


def state_of(name: str, account: Account) -> BatchState:
    """Environments, queues and open jobs of an installation. JobError where there is none."""
    with explained("look at AWS Batch"):
        batch = account.client("batch")
        environments = [
            _environment_state(each)
            for each in list_all(batch, "describe_compute_environments", "computeEnvironments")
            if each.get("tags", {}).get(OWNER_TAG) == name
        ]
        queues = [
            _queue_state(batch, each)
            for each in list_all(batch, "describe_job_queues", "jobQueues")
            if each.get("tags", {}).get(OWNER_TAG) == name
        ]
    if not environments and not queues:
        raise JobError(f"nothing of {name} in {account.region}; `vsr batch init {name} …` makes it")
    return BatchState(
        name=name, region=account.region, environments=tuple(environments), queues=tuple(queues)
    )


def _environment_state(facts: dict[str, Any]) -> EnvironmentState:
    resources = facts.get("computeResources", {})
    return EnvironmentState(
        name=facts["computeEnvironmentName"],
        state=facts["state"],
        status=facts.get("status", ""),
        reason=facts.get("statusReason", ""),
        kind=resources.get("type", ""),
        vcpus_now=int(resources.get("desiredvCpus", 0)),
        vcpus_most=int(resources.get("maxvCpus", 0)),
    )


def _queue_state(batch: Any, facts: dict[str, Any]) -> QueueState:
    jobs = {}
    for state in _OPEN:
        pages = batch.get_paginator("list_jobs").paginate(jobQueue=facts["jobQueueArn"], jobStatus=state)
        count = sum(len(page["jobSummaryList"]) for page in pages)
        if count:
            jobs[state] = count
    order = sorted(facts["computeEnvironmentOrder"], key=lambda each: int(each["order"]))
    return QueueState(
        name=facts["jobQueueName"],
        state=facts["state"],
        status=facts.get("status", ""),
        priority=int(facts["priority"]),
        environments=tuple(each["computeEnvironment"].rpartition("/")[2] for each in order),
        jobs=jobs,
        image=facts.get("tags", {}).get(IMAGE_TAG, ""),
    )


def open_jobs(name: str, account: Account) -> int:
    """How many jobs wait or run in the queues of an installation."""
    try:
        found = state_of(name, account)
    except JobError:
        return 0
    return sum(sum(queue.jobs.values()) for queue in found.queues)
