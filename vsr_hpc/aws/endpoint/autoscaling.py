"""What makes instances come and go: targets, policies and the alarm that wakes a sleeping endpoint. Pure."""

from __future__ import annotations

from vsr_hpc.aws.endpoint.requests import METRICS, Request, alarm_prefix, variants
from vsr_hpc.aws.endpoint.spec import EndpointSpec

NAMESPACE = "sagemaker"
DIMENSION = "sagemaker:variant:DesiredInstanceCount"
POLICY = "policy:"
"""In AlarmActions: the policy of this name, whose ARN is known only once it is made."""


def resource_id(name: str, variant: str) -> str:
    return f"endpoint/{name}/variant/{variant}"


def target_key(name: str, variant: str) -> Request:
    return {
        "ServiceNamespace": NAMESPACE,
        "ResourceId": resource_id(name, variant),
        "ScalableDimension": DIMENSION,
    }


def target_requests(spec: EndpointSpec) -> tuple[Request, ...]:
    """register_scalable_target's parameters, one of each variant."""
    if spec.autoscale is None or not spec.is_served:
        return ()
    bounds = {"MinCapacity": spec.autoscale.least, "MaxCapacity": spec.autoscale.most}
    return tuple({**target_key(spec.name, each.name), **bounds} for each in variants(spec))


def policy_requests(spec: EndpointSpec) -> tuple[Request, ...]:
    """put_scaling_policy's parameters, of each variant."""
    if spec.autoscale is None or not spec.is_served:
        return ()
    found: list[Request] = []
    for variant in variants(spec):
        key = target_key(spec.name, variant.name)
        found.append(_backlog(spec, key) if spec.asynchronous else _invocations(spec, key))
        if spec.scales_to_zero:
            found.append(_wake(spec, key))
    return tuple(found)


def wake_alarm(spec: EndpointSpec) -> Request | None:
    """The alarm that brings the first instance when work waits and none is there.

    Target tracking cannot: without instances there is no backlog per instance to track.
    """
    if not spec.scales_to_zero:
        return None
    return {
        "AlarmName": f"{alarm_prefix(spec.name)}wake",
        "AlarmDescription": f"Made by vsr for endpoint {spec.name}",
        "Namespace": METRICS,
        "MetricName": "HasBacklogWithoutCapacity",
        "Dimensions": [{"Name": "EndpointName", "Value": spec.name}],
        "Statistic": "Average",
        "Period": 60,
        "EvaluationPeriods": 2,
        "DatapointsToAlarm": 2,
        "Threshold": 1.0,
        "ComparisonOperator": "GreaterThanOrEqualToThreshold",
        "TreatMissingData": "missing",
        "AlarmActions": [f"{POLICY}{_wake_name(spec.name)}"],
        "OKActions": [],
    }


def policy_prefix(name: str) -> str:
    """What the names of an endpoint's policies begin with."""
    return f"vsr-{name}-"


def _wake_name(name: str) -> str:
    return f"{policy_prefix(name)}wake"


def _invocations(spec: EndpointSpec, key: Request) -> Request:
    assert spec.autoscale is not None
    return {
        "PolicyName": f"{policy_prefix(spec.name)}invocations",
        **key,
        "PolicyType": "TargetTrackingScaling",
        "TargetTrackingScalingPolicyConfiguration": {
            "TargetValue": spec.autoscale.invocations_per_instance,
            "PredefinedMetricSpecification": {
                "PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"
            },
            "ScaleInCooldown": spec.autoscale.in_cooldown_s,
            "ScaleOutCooldown": spec.autoscale.out_cooldown_s,
        },
    }


def _backlog(spec: EndpointSpec, key: Request) -> Request:
    assert spec.autoscale is not None
    return {
        "PolicyName": f"{policy_prefix(spec.name)}backlog",
        **key,
        "PolicyType": "TargetTrackingScaling",
        "TargetTrackingScalingPolicyConfiguration": {
            "TargetValue": spec.autoscale.backlog_per_instance,
            "CustomizedMetricSpecification": {
                "MetricName": "ApproximateBacklogSizePerInstance",
                "Namespace": METRICS,
                "Dimensions": [{"Name": "EndpointName", "Value": spec.name}],
                "Statistic": "Average",
            },
            "ScaleInCooldown": spec.autoscale.in_cooldown_s,
            "ScaleOutCooldown": spec.autoscale.out_cooldown_s,
        },
    }


def _wake(spec: EndpointSpec, key: Request) -> Request:
    return {
        "PolicyName": _wake_name(spec.name),
        **key,
        "PolicyType": "StepScaling",
        "StepScalingPolicyConfiguration": {
            "AdjustmentType": "ChangeInCapacity",
            "MetricAggregationType": "Average",
            "Cooldown": 300,
            "StepAdjustments": [{"MetricIntervalLowerBound": 0.0, "ScalingAdjustment": 1}],
        },
    }
