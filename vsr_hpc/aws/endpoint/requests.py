"""From an endpoint.yaml to the very requests that AWS gets. Pure: nothing here asks or changes anything.

Models and configurations are never changed: their names hold a hash of their content, so that the same file
applied twice does nothing, and an update that fails leaves the old ones serving.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from vsr_hpc.aws.endpoint.spec import EndpointSpec, Variant, can_encrypt_volume
from vsr_hpc.aws.limits import limit

Request = dict[str, Any]

TAG = "vsr:endpoint"
ONLY_VARIANT = "all"
METRICS = "AWS/SageMaker"
_INSTANCE_METRICS = "/aws/sagemaker/Endpoints"
_TO_SAY_NO_S = 100
"""An answer that comes too late is refused so much earlier than SageMaker would give up."""
# What a scaled-down endpoint may take to have an instance again before somebody is woken.
_STUCK_MINUTES = 20


def tags(spec: EndpointSpec) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in {**spec.tags, TAG: spec.name}.items()]


def variants(spec: EndpointSpec) -> tuple[Variant, ...]:
    """The endpoint's variants; one where the file names none."""
    return spec.variants or (Variant(name=ONLY_VARIANT),)


def model_request(spec: EndpointSpec, variant: Variant | None = None) -> Request:
    """create_model's parameters; the name follows from them."""
    variant = variant or variants(spec)[0]
    container: Request = {
        "Image": variant.image or spec.image,
        "Environment": _environment(spec, variant),
    }
    if spec.multi_model:
        container |= {"Mode": "MultiModel", "ModelDataUrl": _folder(spec.multi_model)}
    elif variant.model_data or spec.model_data:
        container["ModelDataUrl"] = variant.model_data or spec.model_data
    wanted: Request = {"PrimaryContainer": container, "ExecutionRoleArn": spec.role}
    if spec.vpc:
        wanted["VpcConfig"] = {
            "Subnets": list(spec.vpc.subnets),
            "SecurityGroupIds": list(spec.vpc.security_groups),
        }
    if spec.isolated:
        wanted["EnableNetworkIsolation"] = True
    return {"ModelName": _hashed(spec.name, wanted), **wanted}


def model_requests(spec: EndpointSpec) -> tuple[Request, ...]:
    """Every model that the endpoint or its transform jobs need, each once."""
    found = {each["ModelName"]: each for each in (model_request(spec, one) for one in variants(spec))}
    return tuple(found.values())


def config_request(spec: EndpointSpec) -> Request | None:
    """create_endpoint_config's parameters; the name follows from them. None where nothing is served."""
    if not spec.is_served:
        return None
    wanted: Request = {"ProductionVariants": [_variant(spec, each) for each in variants(spec)]}
    if spec.asynchronous is not None:
        wanted["AsyncInferenceConfig"] = _asynchronous(spec)
    if spec.capture is not None:
        wanted["DataCaptureConfig"] = _capture(spec)
    if spec.kms_key and _has_volume_for_key(spec):
        wanted["KmsKeyId"] = spec.kms_key
    return {"EndpointConfigName": _hashed(spec.name, wanted), **wanted}


def endpoint_request(spec: EndpointSpec) -> Request | None:
    config = config_request(spec)
    if config is None:
        return None
    return {"EndpointName": spec.name, "EndpointConfigName": config["EndpointConfigName"]}


def alarm_requests(spec: EndpointSpec) -> tuple[Request, ...]:
    """put_metric_alarm's parameters, of those that people are told of and rollouts are turned back by."""
    if spec.alarms is None or not spec.is_served:
        return ()
    found = []
    for variant in variants(spec):
        found += _variant_alarms(spec, variant.name)
    if spec.asynchronous is not None and spec.alarms.oldest_s is not None:
        found.append(_waiting_alarm(spec, spec.alarms.oldest_s))
    if spec.alarms.no_instances and spec.scales_to_zero:
        found.append(_stuck_alarm(spec))
    return tuple(found)


def rollback_alarms(spec: EndpointSpec) -> tuple[str, ...]:
    """Names of the alarms that turn a rollout back: those of answers, not that of instances."""
    return tuple(
        each["AlarmName"]
        for each in alarm_requests(spec)
        if each["MetricName"] in ("ModelLatency", "Invocation5XXErrors")
    )[:10]


def _environment(spec: EndpointSpec, variant: Variant) -> dict[str, str]:
    """The container's, with limits that fit how it is asked unless the file has its own."""
    fitting: dict[str, str] = {}
    if spec.asynchronous is not None:
        deadline_s = limit("asynchronous_s") - _TO_SAY_NO_S
        fitting = {"VSR_SERVE_MAX_PAYLOAD_MB": "200", "VSR_SERVE_DEADLINE_S": str(deadline_s)}
    elif spec.serverless is not None:
        fitting = {"VSR_SERVE_MAX_PAYLOAD_MB": _in_mib("serverless_payload_mb")}
    else:
        fitting = {"VSR_SERVE_MAX_PAYLOAD_MB": _in_mib("real_time_payload_mb")}
    return dict(sorted({**fitting, **spec.environment, **variant.environment}.items()))


def _in_mib(megabytes: str) -> str:
    """AWS counts in megabytes, the server in MiB: what is over the one must be over the other."""
    return f"{limit(megabytes) * 1_000_000 / (1 << 20):.2f}"


def _variant(spec: EndpointSpec, variant: Variant) -> Request:
    found: Request = {
        "VariantName": variant.name,
        "ModelName": model_request(spec, variant)["ModelName"],
        "InitialVariantWeight": variant.weight,
    }
    if spec.serverless is not None:
        limits: Request = {
            "MemorySizeInMB": spec.serverless.memory_mb,
            "MaxConcurrency": spec.serverless.concurrency,
        }
        if spec.serverless.provisioned is not None:
            limits["ProvisionedConcurrency"] = spec.serverless.provisioned
        return {**found, "ServerlessConfig": limits}
    return {
        **found,
        "InstanceType": variant.instance_type or spec.instance_type,
        "InitialInstanceCount": variant.instance_count or spec.instance_count,
        "ContainerStartupHealthCheckTimeoutInSeconds": spec.startup_s,
    }


def _asynchronous(spec: EndpointSpec) -> Request:
    wanted = spec.asynchronous
    assert wanted is not None
    topics = {"SuccessTopic": wanted.success_topic, "ErrorTopic": wanted.error_topic}
    output: Request = {"S3OutputPath": wanted.output}
    if wanted.failure:
        output["S3FailurePath"] = wanted.failure
    if told := {key: value for key, value in topics.items() if value}:
        output["NotificationConfig"] = told
    if spec.kms_key:
        output["KmsKeyId"] = spec.kms_key
    return {
        "OutputConfig": output,
        "ClientConfig": {"MaxConcurrentInvocationsPerInstance": wanted.concurrency},
    }


def _capture(spec: EndpointSpec) -> Request:
    wanted = spec.capture
    assert wanted is not None
    modes = (["Input"] if wanted.inputs else []) + (["Output"] if wanted.outputs else [])
    found: Request = {
        "EnableCapture": True,
        "InitialSamplingPercentage": wanted.percent,
        "DestinationS3Uri": wanted.to,
        "CaptureOptions": [{"CaptureMode": each} for each in modes],
    }
    return found | ({"KmsKeyId": spec.kms_key} if spec.kms_key else {})


def _has_volume_for_key(spec: EndpointSpec) -> bool:
    if spec.serverless is not None:
        return False
    types = [each.instance_type or spec.instance_type for each in variants(spec)]
    return all(each is not None and can_encrypt_volume(each) for each in types)


# Alarms -----------------------------------------------------------------------------------------------------
def alarm_prefix(name: str) -> str:
    """What the names of an endpoint's alarms begin with, and no other endpoint's do."""
    return f"vsr/{name}/"


def _variant_alarms(spec: EndpointSpec, variant: str) -> list[Request]:
    wanted = spec.alarms
    assert wanted is not None
    where = _dimensions(spec.name, variant)
    found: list[Request] = []
    is_asked = spec.asynchronous is None or "p99_ms" in wanted.model_fields_set
    if wanted.p99_ms is not None and is_asked:
        latency = {
            "MetricName": "ModelLatency",
            "ExtendedStatistic": "p99",
            "Threshold": wanted.p99_ms * 1000,
        }
        found.append(_alarm(spec, f"{variant}/latency", where, latency))
    if wanted.errors_percent is not None:
        share = wanted.errors_percent / 100
        errors = {"MetricName": "Invocation5XXErrors", "Statistic": "Average", "Threshold": share}
        found.append(_alarm(spec, f"{variant}/errors", where, errors))
    if spec.asynchronous is not None and wanted.failures is not None:
        failed = {"MetricName": "InvocationFailures", "Statistic": "Sum", "Threshold": float(wanted.failures)}
        found.append(_alarm(spec, f"{variant}/failures", where, failed))
    if wanted.no_instances and spec.serverless is None and not spec.scales_to_zero:
        none = {
            "MetricName": "CPUUtilization", "Statistic": "SampleCount", "Threshold": 1.0,
            "Namespace": _INSTANCE_METRICS, "ComparisonOperator": "LessThanThreshold",
            "TreatMissingData": "breaching",
        }  # fmt: skip
        found.append(_alarm(spec, f"{variant}/no-instances", where, none))
    return found


def _stuck_alarm(spec: EndpointSpec) -> Request:
    """An endpoint that may sleep has no instances for good reasons; work that waits for one has none."""
    waiting: Request = {
        "MetricName": "HasBacklogWithoutCapacity", "Statistic": "Average", "Threshold": 1.0,
        "ComparisonOperator": "GreaterThanOrEqualToThreshold",
        "EvaluationPeriods": _STUCK_MINUTES, "DatapointsToAlarm": _STUCK_MINUTES,
    }  # fmt: skip
    return _alarm(spec, "no-instances", _dimensions(spec.name), waiting)


def _waiting_alarm(spec: EndpointSpec, oldest_s: float) -> Request:
    """Requests that wait for longer than people should."""
    oldest: Request = {
        "MetricName": "ApproximateAgeOfOldestRequest", "Statistic": "Maximum", "Threshold": float(oldest_s),
    }  # fmt: skip
    return _alarm(spec, "waiting", _dimensions(spec.name), oldest)


def _alarm(spec: EndpointSpec, what: str, where: list[dict[str, str]], more: Request) -> Request:
    assert spec.alarms is not None
    told = [spec.alarms.topic] if spec.alarms.topic else []
    return {
        "AlarmName": f"{alarm_prefix(spec.name)}{what}",
        "AlarmDescription": f"Made by vsr for endpoint {spec.name}",
        "Namespace": METRICS,
        "Dimensions": where,
        "Period": 60,
        "EvaluationPeriods": spec.alarms.minutes,
        "DatapointsToAlarm": spec.alarms.minutes,
        "ComparisonOperator": "GreaterThanThreshold",
        "TreatMissingData": "notBreaching",
        "AlarmActions": told,
        "OKActions": told,
        **more,
    }


def _dimensions(name: str, variant: str | None = None) -> list[dict[str, str]]:
    found = [{"Name": "EndpointName", "Value": name}]
    return found + ([{"Name": "VariantName", "Value": variant}] if variant else [])


def _folder(uri: str) -> str:
    return uri if uri.endswith("/") else f"{uri}/"


def _hashed(name: str, wanted: Request) -> str:
    digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()
    return f"{name}-{digest[:12]}"
