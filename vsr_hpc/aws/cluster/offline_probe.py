"""Run inside ParallelCluster's own environment: its schema and every validator that can answer without AWS.

    python offline_probe.py < request.json > answer.json

Imports nothing of vsr_hpc (that environment doesn't have it). EC2's answers about instance types come from
the request; a validator that asks AWS anything else is counted as not run.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from typing import Any

_YAML_KEYS = {
    "queues": "SlurmQueues",
    "settings": "SlurmSettings",
    "dns": "Dns",
    "capacity_reservation_target": "CapacityReservationTarget",
}


class NeedsAws(BaseException):
    """Not an Exception: validators catch those and would report our silence as the user's mistake."""


class _Nothing:
    def __init__(self, path: str) -> None:
        self._path = path

    def __getattr__(self, name: str) -> Any:
        raise NeedsAws(f"{self._path}.{name}")


class _Image:
    device_name, volume_size, architecture, tags, id = "/dev/sda1", 45, "x86_64", (), "ami-0123456789abcdef0"
    description = "AWS ParallelCluster AMI"


class _Ec2(_Nothing):
    """EC2 as far as a table of instance types can play it."""

    def __init__(self, instances: dict[str, Any], information: Any, error: type[Exception]) -> None:
        super().__init__("ec2")
        self._instances, self._information, self._error = instances, information, error

    def list_instance_types(self) -> list[str]:
        return list(self._instances)

    def get_instance_type_info(self, instance_type: str) -> Any:
        if instance_type not in self._instances:
            raise self._error(
                "describe_instance_types", f"The instance type {instance_type!r} does not exist"
            )
        return self._information(json.loads(json.dumps(self._instances[instance_type])))

    def get_supported_architectures(self, instance_type: str) -> Any:
        return self.get_instance_type_info(instance_type).supported_architecture()

    def get_official_image_id(self, *_: Any) -> str:
        return _Image.id

    def describe_image(self, *_: Any, **__: Any) -> _Image:
        return _Image()

    def get_subnet_avail_zone(self, subnet_id: str) -> str:
        return f"zone-of-{subnet_id}"

    def get_subnets_az_mapping(self, subnet_ids: list[str]) -> dict[str, str]:
        return {subnet: f"zone-of-{subnet}" for subnet in subnet_ids}

    def describe_capacity_reservations(self, identifiers: list[str]) -> list[Any]:
        if identifiers:
            raise NeedsAws("ec2.describe_capacity_reservations")
        return []

    def get_subnet_vpc(self, subnet_id: str) -> str:
        return "vpc-0123456789abcdef0"


def _yaml_key(attribute: str) -> str:
    plain = attribute.rsplit("__", 1)[-1].strip("_")
    return _YAML_KEYS.get(plain, "".join(word.capitalize() for word in plain.split("_")))


def _resources(resource: Any, path: list[Any], kind: type) -> Any:
    for name, value in list(vars(resource).items()):
        if isinstance(value, kind):
            yield from _resources(value, [*path, _yaml_key(name)], kind)
        elif isinstance(value, list):
            for index, each in enumerate(value):
                if isinstance(each, kind):
                    yield from _resources(each, [*path, _yaml_key(name), index], kind)
    yield resource, path


def _named_path(document: Any, arguments: dict[str, Any], path: list[Any]) -> list[Any]:
    """A validator of the whole cluster often says by its arguments which compute resource it means."""
    for at, queue in enumerate((document.get("Scheduling") or {}).get("SlurmQueues") or []):
        for index, resource in enumerate(queue.get("ComputeResources") or []):
            if arguments.get("compute_resource_name") == resource.get("Name") and arguments.get(
                "queue_name", queue.get("Name")
            ) == queue.get("Name"):
                return ["Scheduling", "SlurmQueues", at, "ComputeResources", index]
        if arguments.get("queue_name") == queue.get("Name"):
            return ["Scheduling", "SlurmQueues", at]
    return path


def _flatten(messages: Any, path: list[Any]) -> Any:
    if isinstance(messages, dict):
        for key, value in messages.items():
            part = [] if key == "_schema" else [int(key) if isinstance(key, int) else key]
            yield from _flatten(value, [*path, *part])
    elif isinstance(messages, list):
        for each in messages:
            yield from _flatten(each, path)
    else:
        yield {"path": path, "message": str(messages)}


def _run(validator: type, arguments: dict[str, Any], is_async: bool) -> Any:
    """The failures of one validator; NeedsAws where it can't answer offline."""
    if is_async and re.match(r"https?:", str(arguments.get("url", ""))):
        raise NeedsAws("url")
    if not is_async:
        return validator().execute(**arguments)
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(validator().execute_async(**arguments))
    finally:
        loop.close()


def probe(request: dict[str, Any]) -> dict[str, Any]:
    """What ParallelCluster says about a configuration, as plain JSON."""
    import yaml
    from botocore.client import BaseClient
    from marshmallow import ValidationError  # type: ignore[import-not-found,unused-ignore]
    from pcluster.aws.aws_api import AWSApi  # type: ignore[import-not-found,unused-ignore]
    from pcluster.aws.aws_resources import InstanceTypeInfo  # type: ignore[import-not-found,unused-ignore]
    from pcluster.aws.common import AWSClientError  # type: ignore[import-not-found,unused-ignore]
    from pcluster.config.common import Resource  # type: ignore[import-not-found,unused-ignore]
    from pcluster.schemas.cluster_schema import ClusterSchema  # type: ignore[import-not-found,unused-ignore]
    from pcluster.utils import get_installed_version  # type: ignore[import-not-found,unused-ignore]
    from pcluster.validators.common import AsyncValidator  # type: ignore[import-not-found,unused-ignore]

    def no_calls(_: Any, operation: str, __: Any) -> Any:
        raise NeedsAws(operation)

    BaseClient._make_api_call = no_calls
    answer: dict[str, Any] = {"version": get_installed_version(), "findings": [], "ran": 0, "not_run": []}
    offline = _Nothing("aws")
    offline.__dict__["ec2"] = _Ec2(request["instances"], InstanceTypeInfo, AWSClientError)
    AWSApi.instance = staticmethod(lambda: offline)
    document = yaml.safe_load(request["config"])
    try:
        config = ClusterSchema(cluster_name=request["name"]).load(document)
    except NeedsAws as exc:
        answer["not_run"].append(f"schema needs {exc}")
        return answer
    except ValidationError as exc:
        for each in _flatten(exc.messages, []):
            answer["findings"].append({"level": "ERROR", "rule": "ClusterSchema", **each})
        return answer
    for resource, path in _resources(config, [], Resource):
        resource._validators.clear()
        try:
            resource._register_validators()
        except NeedsAws as exc:
            answer["not_run"].append(f"{type(resource).__name__} ({exc})")
        except Exception as exc:
            answer["findings"].append(
                {"level": "ERROR", "rule": type(resource).__name__, "path": path, "message": str(exc)}
            )
        for validator, arguments in resource._validators:
            try:
                failures = _run(validator, arguments, issubclass(validator, AsyncValidator))
            except NeedsAws:
                answer["not_run"].append(validator.__name__)
                continue
            except Exception as exc:
                answer["not_run"].append(f"{validator.__name__} ({type(exc).__name__}: {exc})")
                continue
            answer["ran"] += 1
            for failure in failures:
                answer["findings"].append(
                    {
                        "level": str(failure.level),
                        "rule": failure.validator_type,
                        "path": _named_path(document, arguments, path),
                        "message": failure.message,
                    }
                )
    return answer


if __name__ == "__main__":
    os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        os.environ.setdefault(name, "offline")
    result = probe(json.load(sys.stdin))
    json.dump(result, sys.stdout)
