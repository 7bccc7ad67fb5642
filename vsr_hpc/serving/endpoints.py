"""SageMaker endpoints from an endpoint.yaml: what is there against what is wanted, and the steps between.

Models and configurations are never changed: their names hold a hash of their content, so that the same file
applied twice does nothing, and an update that fails leaves the old ones serving.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vsr_hpc.errors import BackendError, JobError
from vsr_hpc.serving.client import client, translated

log = logging.getLogger(__name__)

_TAG = "vsr:endpoint"
_DIMENSION = "sagemaker:variant:DesiredInstanceCount"
_VARIANT = "all"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Asynchronous(_Section):
    """Requests through S3, for payloads up to 1 GB."""

    output: str = Field(pattern=r"^s3://[a-z0-9]")
    failure: str | None = Field(None, pattern=r"^s3://[a-z0-9]")
    concurrency: int = Field(4, ge=1, le=1000)
    success_topic: str | None = None
    error_topic: str | None = None


class Autoscale(_Section):
    """Instances follow the invocations each of them gets in a minute."""

    most: int = Field(ge=1, le=1000)
    least: int = Field(1, ge=1, le=1000)
    invocations_per_instance: float = Field(60, gt=0)


class EndpointSpec(_Section):
    """One endpoint as a person writes it."""

    name: str = Field(pattern=r"^[a-zA-Z0-9](-*[a-zA-Z0-9]){0,48}$")
    image: str
    role: str = Field(pattern=r"^arn:aws[a-z-]*:iam::\d{12}:role/")
    model_data: str | None = Field(None, pattern=r"^s3://[a-z0-9]")
    environment: dict[str, str] = Field(default_factory=dict)
    instance_type: str = Field(pattern=r"^ml\.")
    instance_count: int = Field(1, ge=1)
    startup_s: int = Field(600, ge=60, le=3600)
    asynchronous: Asynchronous | None = Field(None, alias="async")
    autoscale: Autoscale | None = None
    tags: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing that applying a specification does."""

    action: Literal["create", "update", "remove"]
    kind: Literal["model", "configuration", "endpoint", "autoscaling"]
    name: str

    def __str__(self) -> str:
        return f"{self.action} {self.kind} {self.name}"


def load_spec(path: Path) -> EndpointSpec:
    """Read an endpoint.yaml. JobError with all findings."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        return EndpointSpec.model_validate(document)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
        raise JobError(f"{path}: cannot be read: {exc}") from exc
    except ValidationError as exc:
        found = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in exc.errors()]
        raise JobError.from_findings(str(path), found) from exc


def model_request(spec: EndpointSpec) -> dict[str, Any]:
    """create_model's parameters; the name follows from them."""
    container: dict[str, Any] = {"Image": spec.image, "Environment": dict(sorted(spec.environment.items()))}
    if spec.model_data:
        container["ModelDataUrl"] = spec.model_data
    wanted = {"PrimaryContainer": container, "ExecutionRoleArn": spec.role}
    return {"ModelName": _hashed(spec.name, wanted), **wanted}


def config_request(spec: EndpointSpec) -> dict[str, Any]:
    """create_endpoint_config's parameters; the name follows from them."""
    wanted: dict[str, Any] = {
        "ProductionVariants": [
            {
                "VariantName": _VARIANT,
                "ModelName": model_request(spec)["ModelName"],
                "InstanceType": spec.instance_type,
                "InitialInstanceCount": spec.instance_count,
                "InitialVariantWeight": 1.0,
                "ContainerStartupHealthCheckTimeoutInSeconds": spec.startup_s,
            }
        ]
    }
    if spec.asynchronous is not None:
        wanted["AsyncInferenceConfig"] = _asynchronous(spec.asynchronous)
    return {"EndpointConfigName": _hashed(spec.name, wanted), **wanted}


def plan(spec: EndpointSpec) -> tuple[Step, ...]:
    """What applying this would do now, in order; empty where all is as wanted."""
    with translated(spec.name):
        model, config = model_request(spec)["ModelName"], config_request(spec)["EndpointConfigName"]
        models, configs = _ours(spec.name)
        steps = []
        if model not in models:
            steps.append(Step(action="create", kind="model", name=model))
        if config not in configs:
            steps.append(Step(action="create", kind="configuration", name=config))
        current = _described(spec.name)
        _check_ours(current, spec.name)
        if current is None:
            steps.append(Step(action="create", kind="endpoint", name=spec.name))
        elif current["EndpointConfigName"] != config:
            steps.append(Step(action="update", kind="endpoint", name=spec.name))
        if _scaling(spec.name) != (spec.autoscale and (spec.autoscale.least, spec.autoscale.most)):
            action: Literal["update", "remove"] = "update" if spec.autoscale else "remove"
            steps.append(Step(action=action, kind="autoscaling", name=spec.name))
        old = [each for each in configs if each != config]
        steps += [Step(action="remove", kind="configuration", name=each) for each in old]
        steps += [Step(action="remove", kind="model", name=each) for each in models if each != model]
        return tuple(steps)


def apply(spec: EndpointSpec) -> tuple[Step, ...]:
    """Make it so, and wait until it serves. What is no longer needed goes last."""
    steps = plan(spec)
    with translated(spec.name):
        for step in steps:
            log.info("%s", step)
            _do(step, spec)
    return steps


def delete(name: str) -> tuple[Step, ...]:
    """Remove the endpoint and all that was made for it, by its tag; nothing else."""
    steps = []
    with translated(name):
        models, configs = _ours(name)
        if _scaling(name) is not None:
            steps.append(Step(action="remove", kind="autoscaling", name=name))
        current = _described(name)
        _check_ours(current, name)
        if current is not None:
            steps.append(Step(action="remove", kind="endpoint", name=name))
        steps += [Step(action="remove", kind="configuration", name=each) for each in configs]
        steps += [Step(action="remove", kind="model", name=each) for each in models]
        for step in steps:
            _remove(step)
    return tuple(steps)


def status(name: str) -> dict[str, Any]:
    """The endpoint's state, its configuration and how many instances each variant has."""
    with translated(name):
        found = _described(name)
        if found is None:
            raise JobError(f"there is no endpoint {name}")
        return {
            "name": name,
            "status": found["EndpointStatus"],
            "configuration": found["EndpointConfigName"],
            "instances": {
                each["VariantName"]: each.get("CurrentInstanceCount")
                for each in found.get("ProductionVariants", [])
            },
            "scaling": _scaling(name),
            "failure": found.get("FailureReason"),
        }


def _do(step: Step, spec: EndpointSpec) -> None:
    sagemaker, tags = _sagemaker(), _tags(spec)
    if step.action == "remove":
        _remove(step)
    elif step.kind == "model":
        sagemaker.create_model(**model_request(spec), Tags=tags)
    elif step.kind == "configuration":
        sagemaker.create_endpoint_config(**config_request(spec), Tags=tags)
    elif step.kind == "autoscaling":
        _scale(spec)
    else:
        wanted = {"EndpointName": spec.name, "EndpointConfigName": config_request(spec)["EndpointConfigName"]}
        if step.action == "create":
            sagemaker.create_endpoint(**wanted, Tags=tags)
        else:
            sagemaker.update_endpoint(**wanted)
        _wait(spec.name, wanted["EndpointConfigName"])


def _wait(name: str, config: str) -> None:
    from botocore.exceptions import WaiterError

    try:
        _sagemaker().get_waiter("endpoint_in_service").wait(EndpointName=name)
    except WaiterError as exc:
        why = (_described(name) or {}).get("FailureReason", exc)
        raise BackendError(f"endpoint {name} does not serve: {why}; nothing old was removed") from exc
    found = _described(name)
    if found is None or found["EndpointConfigName"] != config:
        raise BackendError(f"endpoint {name} was rolled back to its old configuration, which still serves")


def _remove(step: Step) -> None:
    sagemaker = _sagemaker()
    if step.kind == "model":
        sagemaker.delete_model(ModelName=step.name)
    elif step.kind == "configuration":
        sagemaker.delete_endpoint_config(EndpointConfigName=step.name)
    elif step.kind == "endpoint":
        sagemaker.delete_endpoint(EndpointName=step.name)
    else:
        client("application-autoscaling", 60).deregister_scalable_target(**_target(step.name))


def _scale(spec: EndpointSpec) -> None:
    scaling = client("application-autoscaling", 60)
    assert spec.autoscale is not None
    scaling.register_scalable_target(
        **_target(spec.name), MinCapacity=spec.autoscale.least, MaxCapacity=spec.autoscale.most
    )
    scaling.put_scaling_policy(
        PolicyName=f"{spec.name}-invocations",
        **_target(spec.name),
        PolicyType="TargetTrackingScaling",
        TargetTrackingScalingPolicyConfiguration={
            "TargetValue": spec.autoscale.invocations_per_instance,
            "PredefinedMetricSpecification": {
                "PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"
            },
        },
    )


def _target(name: str) -> dict[str, str]:
    return {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"endpoint/{name}/variant/{_VARIANT}",
        "ScalableDimension": _DIMENSION,
    }


def _scaling(name: str) -> tuple[int, int] | None:
    target = _target(name)
    found = client("application-autoscaling", 60).describe_scalable_targets(
        ServiceNamespace="sagemaker", ResourceIds=[target["ResourceId"]], ScalableDimension=_DIMENSION
    )["ScalableTargets"]
    return (found[0]["MinCapacity"], found[0]["MaxCapacity"]) if found else None


def _asynchronous(wanted: Asynchronous) -> dict[str, Any]:
    topics = {"SuccessTopic": wanted.success_topic, "ErrorTopic": wanted.error_topic}
    told = {key: value for key, value in topics.items() if value}
    output: dict[str, Any] = {"S3OutputPath": wanted.output}
    if wanted.failure:
        output["S3FailurePath"] = wanted.failure
    if told:
        output["NotificationConfig"] = told
    return {
        "OutputConfig": output,
        "ClientConfig": {"MaxConcurrentInvocationsPerInstance": wanted.concurrency},
    }


def _ours(name: str) -> tuple[list[str], list[str]]:
    """Models and configurations that carry this endpoint's tag."""
    sagemaker = _sagemaker()
    models = [
        each["ModelName"]
        for page in sagemaker.get_paginator("list_models").paginate(NameContains=name)
        for each in page["Models"]
        if _is_ours(each["ModelArn"], name)
    ]
    configs = [
        each["EndpointConfigName"]
        for page in sagemaker.get_paginator("list_endpoint_configs").paginate(NameContains=name)
        for each in page["EndpointConfigs"]
        if _is_ours(each["EndpointConfigArn"], name)
    ]
    return models, configs


def _check_ours(current: Any, name: str) -> None:
    if current is not None and not _is_ours(current["EndpointArn"], name):
        raise JobError(f"endpoint {name} was not made by vsr (it lacks the tag {_TAG}); it is left alone")


def _is_ours(arn: str, name: str) -> bool:
    tags = _sagemaker().list_tags(ResourceArn=arn)["Tags"]
    return any(each["Key"] == _TAG and each["Value"] == name for each in tags)


def _described(name: str) -> Any:
    from botocore.exceptions import ClientError

    try:
        return _sagemaker().describe_endpoint(EndpointName=name)
    except ClientError as exc:
        if exc.response["Error"]["Code"] == "ValidationException":
            return None  # SageMaker's way to say that it could not find it
        raise


def _tags(spec: EndpointSpec) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in {**spec.tags, _TAG: spec.name}.items()]


def _hashed(name: str, wanted: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()
    return f"{name}-{digest[:12]}"


def _sagemaker() -> Any:
    return client("sagemaker", 60)
