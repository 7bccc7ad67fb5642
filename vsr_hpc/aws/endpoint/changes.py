"""The steps that turn an endpoint into what its file says, in an order that keeps it serving. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vsr_hpc.aws.endpoint import autoscaling as autoscale
from vsr_hpc.aws.endpoint import rollout, transform
from vsr_hpc.aws.endpoint.requests import (
    Request,
    alarm_requests,
    config_request,
    endpoint_request,
    model_requests,
    tags,
    variants,
)
from vsr_hpc.aws.endpoint.spec import EndpointSpec
from vsr_hpc.aws.steps import Call, Kind, Step
from vsr_hpc.errors import JobError


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """An endpoint as the account describes it."""

    config: str
    status: str
    is_ours: bool
    weights: Mapping[str, float | None] = field(default_factory=dict)
    counts: Mapping[str, int | None] = field(default_factory=dict)
    instance_types: Mapping[str, str] = field(default_factory=dict)
    """By variant; a variant without instances (serverless) is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointInventory:
    """What the account has of one endpoint's name, by its tag and by names that only vsr gives."""

    models: frozenset[str] = frozenset()
    configs: frozenset[str] = frozenset()
    endpoint: Endpoint | None = None
    alarms: Mapping[str, Request] = field(default_factory=dict)
    targets: Mapping[str, Request] = field(default_factory=dict)
    """By resource id."""
    policies: Mapping[tuple[str, str], Request] = field(default_factory=dict)
    """By resource id and name."""
    schedule: Request | None = None
    """Empty where its group is there and it is not."""
    packages: tuple[str, ...] = ()
    """ARNs in the registry, newest first; the group's own last."""


def steps(spec: EndpointSpec, found: EndpointInventory, *, at_once: bool = False) -> tuple[Step, ...]:
    """What applying the file does now, in order; empty where all is as wanted."""
    _check_ours(found, spec.name)
    resized = _resized(spec, found)
    return (
        *_new_models(spec, found),
        *_new_config(spec, found),
        *_alarms(alarm_requests(spec), found, tags(spec)),
        *_old_scaling(spec, found, resized),
        *_endpoint(spec, found, at_once),
        *_weights(spec, found),
        *_scaling(spec, _without_scaling(found, resized)),
        *_schedule(spec, found),
        *_leftovers(spec, found),
    )


def removal(name: str, found: EndpointInventory) -> tuple[Step, ...]:
    """Everything that was made for an endpoint, in an order that AWS takes."""
    _check_ours(found, name)
    made: list[Step] = []
    if found.schedule is not None:
        made.append(transform.removal(name))
    made += [_remove_policy(*key) for key in sorted(found.policies)]
    made += [_remove_target(each) for each in sorted(found.targets)]
    if found.endpoint is not None:
        made.append(_remove_endpoint(name))
    made += [_remove_alarm(each) for each in sorted(found.alarms)]
    made += [_remove_config(each) for each in sorted(found.configs)]
    made += [_remove_model(each) for each in sorted(found.models)]
    made += [_remove_package(each) for each in found.packages]
    return tuple(made)


def not_ours(name: str) -> str:
    return f"endpoint {name} was not made by vsr (it lacks the tag vsr:endpoint); it is left alone"


def _check_ours(found: EndpointInventory, name: str) -> None:
    if found.endpoint is not None and not found.endpoint.is_ours:
        raise JobError(not_ours(name))


def _new_models(spec: EndpointSpec, found: EndpointInventory) -> Iterator[Step]:
    for each in model_requests(spec):
        if each["ModelName"] not in found.models:
            request = {**each, "Tags": tags(spec)}
            yield _step("create", "model", each["ModelName"], "sagemaker", "create_model", request)


def _new_config(spec: EndpointSpec, found: EndpointInventory) -> Iterator[Step]:
    wanted = config_request(spec)
    if wanted is not None and wanted["EndpointConfigName"] not in found.configs:
        request = {**wanted, "Tags": tags(spec)}
        name = wanted["EndpointConfigName"]
        yield _step("create", "configuration", name, "sagemaker", "create_endpoint_config", request)


def _endpoint(spec: EndpointSpec, found: EndpointInventory, at_once: bool) -> Iterator[Step]:
    wanted, there = endpoint_request(spec), found.endpoint
    if wanted is None:
        if there is not None:
            yield _remove_endpoint(spec.name)
        return
    config = wanted["EndpointConfigName"]
    create = Call(service="sagemaker", operation="create_endpoint", parameters={**wanted, "Tags": tags(spec)})
    if there is None:
        yield Step(action="create", kind="endpoint", name=spec.name, calls=(create,))
    elif there.status == "Failed":
        gone = Call(service="sagemaker", operation="delete_endpoint", parameters={"EndpointName": spec.name})
        yield Step(action="remove", kind="endpoint", name=spec.name, detail="it failed", calls=(gone,))
        yield Step(action="create", kind="endpoint", name=spec.name, calls=(create,))
    elif there.config != config:
        was_scaled = bool(found.targets) and set(there.weights) == {each.name for each in variants(spec)}
        request = rollout.update_request(spec, config, at_once=at_once, was_scaled=was_scaled)
        call = Call(service="sagemaker", operation="update_endpoint", parameters=request)
        detail = rollout.in_words(spec, at_once=at_once)
        yield Step(action="update", kind="endpoint", name=spec.name, detail=detail, calls=(call,))


def _weights(spec: EndpointSpec, found: EndpointInventory) -> Iterator[Step]:
    """Weights and counts that somebody changed by hand; an update brings its own."""
    there, wanted = found.endpoint, endpoint_request(spec)
    if there is None or wanted is None or there.config != wanted["EndpointConfigName"]:
        return
    changed: list[Request] = []
    said: list[str] = []
    for each in variants(spec):
        request: Request = {}
        weight, count = there.weights.get(each.name), there.counts.get(each.name)
        if len(there.weights) > 1 and weight is not None and weight != each.weight:
            request["DesiredWeight"] = each.weight
            said.append(f"{each.name} weight {weight:g} to {each.weight:g}")
        wanted_count = each.instance_count or spec.instance_count
        is_free = spec.autoscale is None and spec.serverless is None and count is not None
        if is_free and count != wanted_count:
            request["DesiredInstanceCount"] = wanted_count
            said.append(f"{each.name} {count} to {wanted_count} instances")
        if request:
            changed.append({"VariantName": each.name, **request})
    if changed:
        request = {"EndpointName": spec.name, "DesiredWeightsAndCapacities": changed}
        operation = "update_endpoint_weights_and_capacities"
        yield _step("update", "weights", spec.name, "sagemaker", operation, request, ", ".join(said))


# Alarms and scaling -----------------------------------------------------------------------------------------
def _alarms(
    wanted: tuple[Request, ...], found: EndpointInventory, marks: list[dict[str, str]]
) -> Iterator[Step]:
    for each in wanted:
        there = found.alarms.get(each["AlarmName"])
        if there is not None and _has(there, each):
            continue
        # Tags are taken when an alarm is made, and left alone by later puts.
        request = each if there is not None else {**each, "Tags": marks}
        action = "create" if there is None else "update"
        yield _step(action, "alarm", each["AlarmName"], "cloudwatch", "put_metric_alarm", request)


def _resized(spec: EndpointSpec, found: EndpointInventory) -> frozenset[str]:
    """The scalable targets whose variants get another instance type.

    SageMaker refuses an update that changes the instance type of a variant while it is a scalable target, so
    they are deregistered before the update and registered again after it. An interruption in between leaves
    a target missing, which the next call registers.
    """
    config = config_request(spec)
    if config is None or found.endpoint is None:
        return frozenset()
    wanted = {each["VariantName"]: each.get("InstanceType") for each in config["ProductionVariants"]}
    changed = (
        name
        for name, old in found.endpoint.instance_types.items()
        if wanted.get(name, old) not in (old, None)
    )
    return frozenset(autoscale.resource_id(spec.name, name) for name in changed) & found.targets.keys()


def _without_scaling(found: EndpointInventory, resources: frozenset[str]) -> EndpointInventory:
    """What is left once these targets are deregistered: no policy of theirs, no alarm that starts one."""
    if not resources:
        return found
    lost = {f"{autoscale.POLICY}{name}" for resource, name in found.policies if resource in resources}
    alarms = {
        name: {**each, "AlarmActions": [action for action in each["AlarmActions"] if action not in lost]}
        for name, each in found.alarms.items()
    }
    return replace(
        found,
        targets={key: each for key, each in found.targets.items() if key not in resources},
        policies={key: each for key, each in found.policies.items() if key[0] not in resources},
        alarms=alarms,
    )


def _old_scaling(spec: EndpointSpec, found: EndpointInventory, resized: frozenset[str]) -> Iterator[Step]:
    """Targets and policies that are not wanted go first: an update refuses variants that still have them."""
    targets = {each["ResourceId"] for each in autoscale.target_requests(spec)} - resized
    policies = {
        (each["ResourceId"], each["PolicyName"])
        for each in autoscale.policy_requests(spec)
        if each["ResourceId"] not in resized
    }
    yield from (_remove_policy(*key) for key in sorted(set(found.policies) - policies))
    yield from (_remove_target(each) for each in sorted(set(found.targets) - targets))


def _scaling(spec: EndpointSpec, found: EndpointInventory) -> Iterator[Step]:
    for each in autoscale.target_requests(spec):
        name, there = each["ResourceId"], found.targets.get(each["ResourceId"])
        if there is None or not _has(there, each):
            bounds = f"{each['MinCapacity']} to {each['MaxCapacity']} instances"
            action = "create" if there is None else "update"
            service = "application-autoscaling"
            yield _step(action, "autoscaling", name, service, "register_scalable_target", each, bounds)
    for each in autoscale.policy_requests(spec):
        key = (each["ResourceId"], each["PolicyName"])
        known = found.policies.get(key)
        if known is None or not _has(known, each):
            action = "create" if known is None else "update"
            yield _step(
                action, "policy", each["PolicyName"], "application-autoscaling", "put_scaling_policy", each
            )
    wake = autoscale.wake_alarm(spec)
    if wake is not None:
        yield from _alarms((wake,), found, tags(spec))


def _schedule(spec: EndpointSpec, found: EndpointInventory) -> Iterator[Step]:
    wanted = transform.schedule_request(spec)
    if wanted is None:
        if found.schedule is not None:
            yield transform.removal(spec.name)
    elif not found.schedule:
        yield transform.creation(spec, wanted, has_group=found.schedule is not None)
    elif not _has(found.schedule, wanted):
        at = wanted["ScheduleExpression"]
        yield _step("update", "schedule", wanted["Name"], "scheduler", "update_schedule", wanted, at)


def _leftovers(spec: EndpointSpec, found: EndpointInventory) -> Iterator[Step]:
    """What an earlier version of the file needed, last of all."""
    config, wake = config_request(spec), autoscale.wake_alarm(spec)
    alarms = {each["AlarmName"] for each in alarm_requests(spec)} | ({wake["AlarmName"]} if wake else set())
    models = {each["ModelName"] for each in model_requests(spec)}
    yield from (_remove_alarm(each) for each in sorted(set(found.alarms) - alarms))
    keep = {config["EndpointConfigName"]} if config else set()
    yield from (_remove_config(each) for each in sorted(found.configs - keep))
    yield from (_remove_model(each) for each in sorted(found.models - models))


def _has(there: Any, wanted: Any) -> bool:
    """Whether what is there says everything that is wanted; AWS adds fields and orders lists as it likes."""
    if isinstance(wanted, Mapping):
        return isinstance(there, Mapping) and all(
            _has(there.get(key, [] if value == [] else None), value) for key, value in wanted.items()
        )
    if isinstance(wanted, list | tuple):
        return isinstance(there, list | tuple) and _sorted(there) == _sorted(wanted)
    if isinstance(wanted, float | int) and not isinstance(wanted, bool):
        return isinstance(there, float | int) and abs(there - wanted) <= 1e-9 * max(1.0, abs(wanted))
    return bool(there == wanted)


def _sorted(items: Any) -> list[str]:
    return sorted(json.dumps(each, sort_keys=True, default=str) for each in items)


def _step(
    action: Any, kind: Kind, name: str, service: str, operation: str, request: Request, detail: str = ""
) -> Step:
    call = Call(service=service, operation=operation, parameters=request)
    return Step(action=action, kind=kind, name=name, detail=detail, calls=(call,))


def _remove_model(name: str) -> Step:
    return _step("remove", "model", name, "sagemaker", "delete_model", {"ModelName": name})


def _remove_endpoint(name: str) -> Step:
    return _step("remove", "endpoint", name, "sagemaker", "delete_endpoint", {"EndpointName": name})


def _remove_config(name: str) -> Step:
    request = {"EndpointConfigName": name}
    return _step("remove", "configuration", name, "sagemaker", "delete_endpoint_config", request)


def _remove_alarm(name: str) -> Step:
    return _step("remove", "alarm", name, "cloudwatch", "delete_alarms", {"AlarmNames": [name]})


def _remove_policy(resource: str, name: str) -> Step:
    request = {
        "PolicyName": name, "ServiceNamespace": autoscale.NAMESPACE, "ResourceId": resource,
        "ScalableDimension": autoscale.DIMENSION,
    }  # fmt: skip
    return _step("remove", "policy", name, "application-autoscaling", "delete_scaling_policy", request)


def _remove_target(resource: str) -> Step:
    request = {
        "ServiceNamespace": autoscale.NAMESPACE, "ResourceId": resource,
        "ScalableDimension": autoscale.DIMENSION,
    }  # fmt: skip
    service = "application-autoscaling"
    return _step("remove", "autoscaling", resource, service, "deregister_scalable_target", request)


def _remove_package(arn: str) -> Step:
    if ":model-package-group/" in arn:
        request = {"ModelPackageGroupName": arn.rpartition("/")[2]}
        return _step("remove", "registry", arn, "sagemaker", "delete_model_package_group", request)
    return _step("remove", "registry", arn, "sagemaker", "delete_model_package", {"ModelPackageName": arn})
