"""Batch transform jobs: many pictures at once without an endpoint, by hand or on a schedule."""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import time
from collections.abc import Callable
from typing import Any

from vsr_hpc.aws.account import WaitLimits, client
from vsr_hpc.aws.calls import check
from vsr_hpc.aws.endpoint.requests import Request, model_request, tags
from vsr_hpc.aws.endpoint.spec import EndpointSpec, can_encrypt_volume
from vsr_hpc.aws.errors import explained
from vsr_hpc.aws.limits import limit
from vsr_hpc.aws.quotas import find_sagemaker_shortages, look
from vsr_hpc.aws.steps import Call, Step
from vsr_hpc.errors import BackendError, JobError

log = logging.getLogger(__name__)

_TARGET = "arn:{partition}:scheduler:::aws-sdk:sagemaker:createTransformJob"
_OVER = ("Completed", "Failed", "Stopped")


def job_request(
    spec: EndpointSpec, job: str, source: str | None = None, target: str | None = None
) -> Request:
    """create_transform_job's parameters. JobError where the file has no transform."""
    wanted = spec.transform
    if wanted is None:
        raise JobError(f"{spec.name}: no transform in the file; jobs/endpoint-transform.yaml is an example")
    key = {"KmsKeyId": spec.kms_key} if spec.kms_key else {}
    resources: Request = {"InstanceType": wanted.instance_type, "InstanceCount": wanted.instance_count}
    if spec.kms_key and can_encrypt_volume(wanted.instance_type):
        resources["VolumeKmsKeyId"] = spec.kms_key
    return {
        "TransformJobName": job,
        "ModelName": model_request(spec)["ModelName"],
        "MaxConcurrentTransforms": wanted.side_by_side,
        "MaxPayloadInMB": wanted.payload_mb,
        "BatchStrategy": "SingleRecord",
        "ModelClientConfig": {
            "InvocationsTimeoutInSeconds": wanted.timeout_s,
            "InvocationsMaxRetries": 3,
        },
        "Environment": {
            "VSR_SERVE_MAX_PAYLOAD_MB": str(wanted.payload_mb),
            "VSR_SERVE_MAX_ANSWER_MB": str(limit("transform_payload_mb")),
            "VSR_SERVE_DEADLINE_S": str(max(1, wanted.timeout_s - 5)),
        },
        "TransformInput": {
            "DataSource": {
                "S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": _whole_folder(source or wanted.input)}
            },
            "ContentType": wanted.content_type,
            "SplitType": "None",
        },
        "TransformOutput": {
            "S3OutputPath": target or wanted.output,
            "Accept": wanted.accept or wanted.content_type,
            "AssembleWith": "None",
            **key,
        },
        "TransformResources": resources,
        "Tags": tags(spec),
    }


def _whole_folder(place: str) -> str:
    """A prefix that ends with a slash: S3 compares letters, so `in` would take `in-old/a.png`, too."""
    return place if place.endswith("/") or "." in place.rpartition("/")[2] else f"{place}/"


def job_name(name: str) -> str:
    """A new one, in order of time."""
    return f"{name}-{time.strftime('%Y%m%d%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"


# On a schedule ----------------------------------------------------------------------------------------------
def schedule_name(name: str) -> str:
    return f"vsr-{name}"


def schedule_request(spec: EndpointSpec) -> Request | None:
    """create_schedule's and update_schedule's parameters; None where the file has no schedule."""
    if spec.transform is None or spec.transform.schedule is None:
        return None
    when = spec.transform.schedule
    job = job_request(spec, f"{_scheduled_job_prefix(spec.name)}-<aws.scheduler.execution-id>")
    return {
        "Name": schedule_name(spec.name),
        "GroupName": schedule_name(spec.name),
        "ScheduleExpression": when.at,
        "ScheduleExpressionTimezone": when.timezone,
        "FlexibleTimeWindow": {"Mode": "OFF"},
        "Target": {
            "Arn": _TARGET.format(partition=spec.partition),
            "RoleArn": when.role,
            "Input": json.dumps(job, sort_keys=True),
            "RetryPolicy": {"MaximumRetryAttempts": 3, "MaximumEventAgeInSeconds": 3600},
        },
    }


def _scheduled_job_prefix(name: str) -> str:
    """The endpoint's name, cut so that the name of a scheduled job is no longer than SageMaker allows."""
    room = limit("transform_job_name") - 1 - limit("execution_id")
    if len(name) <= room:
        return name
    return f"{name[: room - 9].rstrip('-')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def creation(spec: EndpointSpec, wanted: Request, *, has_group: bool) -> Step:
    """A group of its own, since schedules themselves carry no tags; then the schedule."""
    group = Call(
        service="scheduler",
        operation="create_schedule_group",
        parameters={"Name": wanted["GroupName"], "Tags": tags(spec)},
    )
    schedule = Call(service="scheduler", operation="create_schedule", parameters=wanted)
    return Step(
        action="create",
        kind="schedule",
        name=wanted["Name"],
        detail=wanted["ScheduleExpression"],
        calls=(schedule,) if has_group else (group, schedule),
    )


def removal(name: str) -> Step:
    """The group, and with it the schedule."""
    group = {"Name": schedule_name(name)}
    call = Call(service="scheduler", operation="delete_schedule_group", parameters=group)
    return Step(action="remove", kind="schedule", name=schedule_name(name), calls=(call,))


# By hand ----------------------------------------------------------------------------------------------------
def start(spec: EndpointSpec, source: str | None = None, target: str | None = None) -> str:
    """Begin a job; its model must be there (`vsr endpoint create`). Returns the job's name."""
    request = job_request(spec, job_name(spec.name), source, target)
    call = Call(service="sagemaker", operation="create_transform_job", parameters=request)
    step = Step(action="create", kind="model", name=request["TransformJobName"], calls=(call,))
    check((step,), spec.name)
    resources = request["TransformResources"]
    _need_quota(resources["InstanceType"], resources["InstanceCount"], spec.name)
    with explained(spec.name):
        client("sagemaker").create_transform_job(**request)
    return str(request["TransformJobName"])


def _need_quota(instance_type: str, count: int, where: str) -> None:
    wanted = {instance_type: count}
    short, unseen = look(find_sagemaker_shortages(client("service-quotas"), wanted, "transform job usage"))
    if unseen:
        log.warning("%s", unseen)
    if short:
        raise JobError.from_findings(where, [str(each) for each in short])


def status(job: str) -> dict[str, Any]:
    with explained(job):
        found = client("sagemaker").describe_transform_job(TransformJobName=job)
    return {
        "job": job,
        "status": found["TransformJobStatus"],
        "input": found["TransformInput"]["DataSource"]["S3DataSource"]["S3Uri"],
        "output": found["TransformOutput"]["S3OutputPath"],
        "failure": found.get("FailureReason"),
    }


def wait(job: str, patience: WaitLimits, tell: Callable[[str], None]) -> dict[str, Any]:
    """The job's state once it is over. BackendError where it failed, was stopped or takes too long."""
    until, last = time.monotonic() + patience.longest_s, ""
    while (found := status(job))["status"] not in _OVER:
        if found["status"] != last:
            tell(f"{job}: {found['status']}")
            last = found["status"]
        if time.monotonic() > until:
            raise BackendError(f"{job} is still {last}; ask `vsr endpoint transform status {job}`")
        time.sleep(patience.poll_s)
    if found["status"] != "Completed":
        reason = found["failure"] or "its log in CloudWatch may say why"
        raise BackendError(f"{job} ended as {found['status']}: {reason}")
    return found


def stop(job: str) -> None:
    with explained(job):
        client("sagemaker").stop_transform_job(TransformJobName=job)
