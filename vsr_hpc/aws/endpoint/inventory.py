"""What an AWS account has of one endpoint: read, never changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from botocore.exceptions import ClientError

from vsr_hpc.aws.calls import Clients
from vsr_hpc.aws.endpoint import autoscaling as autoscale
from vsr_hpc.aws.endpoint import transform
from vsr_hpc.aws.endpoint.changes import Endpoint, EndpointInventory
from vsr_hpc.aws.endpoint.requests import TAG, Request, alarm_prefix
from vsr_hpc.aws.errors import error_code


def look(clients: Clients, name: str) -> EndpointInventory:
    """Everything that was made for this endpoint, and the endpoint itself whoever made it."""
    sagemaker = clients.of("sagemaker")
    policies = dict(_policies(clients, name))
    return EndpointInventory(
        models=frozenset(_own_names(sagemaker, name, "list_models", "Models", "Model")),
        configs=frozenset(
            _own_names(sagemaker, name, "list_endpoint_configs", "EndpointConfigs", "EndpointConfig")
        ),
        endpoint=endpoint(clients, name),
        alarms=_alarms(clients, name, policies),
        targets={each["ResourceId"]: each for each in _targets(clients, name)},
        policies=policies,
        schedule=_schedule(clients, name),
        packages=tuple(packages(clients, name)),
    )


def describe(clients: Clients, name: str) -> Any:
    """describe_endpoint's answer; None where there is none of this name."""
    try:
        return clients.of("sagemaker").describe_endpoint(EndpointName=name)
    except ClientError as exc:
        if error_code(exc) == "ValidationException":
            return None  # SageMaker's way to say that it could not find it
        raise


def endpoint(clients: Clients, name: str) -> Endpoint | None:
    found = describe(clients, name)
    if found is None:
        return None
    variants = found.get("ProductionVariants", [])
    config = clients.of("sagemaker").describe_endpoint_config(EndpointConfigName=found["EndpointConfigName"])
    return Endpoint(
        config=found["EndpointConfigName"],
        status=found["EndpointStatus"],
        is_ours=_is_ours(clients.of("sagemaker"), found["EndpointArn"], name),
        weights={each["VariantName"]: each.get("DesiredWeight") for each in variants},
        counts={each["VariantName"]: each.get("DesiredInstanceCount") for each in variants},
        instance_types={
            each["VariantName"]: each["InstanceType"]
            for each in config["ProductionVariants"]
            if each.get("InstanceType")
        },
    )


def group_name(name: str) -> str:
    """The model package group of an endpoint."""
    return f"vsr-{name}"


def packages(clients: Clients, name: str, *, approved_only: bool = False) -> Iterator[str]:
    """ARNs of the registered versions, newest first, and of their group."""
    sagemaker, group = clients.of("sagemaker"), group_name(name)
    try:
        found = sagemaker.describe_model_package_group(ModelPackageGroupName=group)
    except ClientError as exc:
        if error_code(exc) == "ValidationException":
            return
        raise
    wanted = {"ModelApprovalStatus": "Approved"} if approved_only else {}
    pages = sagemaker.get_paginator("list_model_packages").paginate(
        ModelPackageGroupName=group, SortBy="CreationTime", SortOrder="Descending", **wanted
    )
    yield from (each["ModelPackageArn"] for page in pages for each in page.get("ModelPackageSummaryList", []))
    yield found["ModelPackageGroupArn"]


def _own_names(sagemaker: Any, name: str, operation: str, members: str, kind: str) -> Iterator[str]:
    """Names that begin with the endpoint's and carry its tag."""
    for page in sagemaker.get_paginator(operation).paginate(NameContains=name):
        for each in page[members]:
            found = each[f"{kind}Name"]
            if found.startswith(f"{name}-") and _is_ours(sagemaker, each[f"{kind}Arn"], name):
                yield found


def _is_ours(sagemaker: Any, arn: str, name: str) -> bool:
    found = sagemaker.list_tags(ResourceArn=arn)["Tags"]
    return any(each["Key"] == TAG and each["Value"] == name for each in found)


def _targets(clients: Clients, name: str) -> Iterator[Request]:
    pages = clients.of("application-autoscaling").get_paginator("describe_scalable_targets")
    for page in pages.paginate(ServiceNamespace=autoscale.NAMESPACE, ScalableDimension=autoscale.DIMENSION):
        for each in page["ScalableTargets"]:
            if each["ResourceId"].startswith(autoscale.resource_id(name, "")):
                yield each


def _policies(clients: Clients, name: str) -> Iterator[tuple[tuple[str, str], Request]]:
    pages = clients.of("application-autoscaling").get_paginator("describe_scaling_policies")
    for page in pages.paginate(ServiceNamespace=autoscale.NAMESPACE):
        for each in page["ScalingPolicies"]:
            is_here = each["ResourceId"].startswith(autoscale.resource_id(name, ""))
            if is_here and each["PolicyName"].startswith(autoscale.policy_prefix(name)):
                yield (each["ResourceId"], each["PolicyName"]), each


def _alarms(clients: Clients, name: str, policies: dict[tuple[str, str], Request]) -> dict[str, Request]:
    """Alarms by name; an action that is one of our policies is called by the policy's name."""
    known = {each["PolicyARN"]: f"{autoscale.POLICY}{each['PolicyName']}" for each in policies.values()}
    pages = clients.of("cloudwatch").get_paginator("describe_alarms")
    found = {}
    for page in pages.paginate(AlarmNamePrefix=alarm_prefix(name), AlarmTypes=["MetricAlarm"]):
        for each in page["MetricAlarms"]:
            actions = [known.get(arn, arn) for arn in each.get("AlarmActions", [])]
            found[each["AlarmName"]] = {**each, "AlarmActions": actions}
    return found


def _schedule(clients: Clients, name: str) -> Request | None:
    scheduler, called = clients.of("scheduler"), transform.schedule_name(name)
    try:
        scheduler.get_schedule_group(Name=called)
    except ClientError as exc:
        if error_code(exc) == "ResourceNotFoundException":
            return None
        raise
    try:
        found: Request = scheduler.get_schedule(Name=called, GroupName=called)
    except ClientError as exc:
        if error_code(exc) == "ResourceNotFoundException":
            return {}
        raise
    return found
