"""Calls of AWS as values: planned, checked against AWS's own description of them, and only then made."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from typing import Any

from vsr_hpc.aws.account import client
from vsr_hpc.aws.limits import limit
from vsr_hpc.aws.new_account import once_iam_knows
from vsr_hpc.aws.steps import Call, Step
from vsr_hpc.errors import JobError


def check(steps: tuple[Step, ...], where: str) -> None:
    """Refuse a plan of which AWS would refuse a part before any is done. JobError with all findings."""
    found = [text for step in steps for call in step.calls for text in findings(call)]
    if found:
        raise JobError.from_findings(where, found)


def findings(call: Call) -> Iterator[str]:
    """What AWS's service description forbids: shapes and ranges, and also patterns and sets of values."""
    from botocore.validate import ParamValidator

    shape = _shape(call.service, call.operation)
    report = ParamValidator().validate(dict(call.parameters), shape)
    if report.has_errors():
        yield f"{call.operation}: {report.generate_report()}"
        return
    yield from _check_values(call.parameters, shape, call.operation)
    yield from _scheduled_findings(call)


def _scheduled_findings(call: Call) -> Iterator[str]:
    """What AWS forbids in the call that a schedule makes later, its names completed as Scheduler does it."""
    target = call.parameters.get("Target", {}) if call.service == "scheduler" else {}
    named = re.fullmatch(r"arn:[\w-]+:scheduler:::aws-sdk:(\w+):(\w+)", target.get("Arn", ""))
    if named is None:
        return
    text = target["Input"].replace("<aws.scheduler.execution-id>", "0" * limit("execution_id"))
    operation = re.sub(r"(?<!^)(?=[A-Z])", "_", named[2]).lower()
    yield from findings(Call(service=named[1], operation=operation, parameters=json.loads(text)))


class Clients:
    """boto3's clients, each made once; making one takes longer than most calls."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def of(self, service: str) -> Any:
        if service not in self._made:
            self._made[service] = client(service)
        return self._made[service]

    def make(self, call: Call) -> Any:
        """AWS's answer; a role that is new is waited for."""
        operation = getattr(self.of(call.service), call.operation)
        return once_iam_knows(lambda: operation(**call.parameters))


@functools.lru_cache(maxsize=64)
def _shape(service: str, operation: str) -> Any:
    model = client(service, "us-east-1")  # any region: only the service's description is read
    named = model.meta.method_to_api_mapping[operation]
    return model.meta.service_model.operation_model(named).input_shape


def _check_values(value: Any, shape: Any, place: str) -> Iterator[str]:
    """botocore leaves patterns and enumerations to the service; a plan should not."""
    if shape.type_name == "structure":
        for name, inner in value.items():
            yield from _check_values(inner, shape.members[name], f"{place}.{name}")
    elif shape.type_name == "list":
        for index, inner in enumerate(value):
            yield from _check_values(inner, shape.member, f"{place}[{index}]")
    elif shape.type_name == "map":
        for name, inner in value.items():
            yield from _check_values(name, shape.key, f"{place}.{name}")
            yield from _check_values(inner, shape.value, f"{place}.{name}")
    elif shape.type_name == "string":
        yield from _check_text(value, shape, place)
    elif shape.type_name in ("integer", "long", "float", "double"):
        most = shape.metadata.get("max")
        if most is not None and value > most:
            yield f"{place}={value} is over {most}"


def _check_text(value: str, shape: Any, place: str) -> Iterator[str]:
    allowed = shape.metadata.get("enum")
    if allowed and value not in allowed:
        near = [each for each in allowed if each.rpartition(".")[0] == value.rpartition(".")[0]] or allowed
        yield f"{place}: AWS knows no {value!r}; it knows {', '.join(near[:8])}"
    if len(value) > shape.metadata.get("max", len(value)):
        yield f"{place}: {len(value)} characters are more than {shape.metadata['max']}"
    pattern = _compile_pattern(shape.metadata.get("pattern", ""))
    if pattern is not None and not pattern.fullmatch(value):
        yield f"{place}: {value!r} is not what AWS takes there ({pattern.pattern})"


@functools.lru_cache(maxsize=256)
def _compile_pattern(pattern: str) -> re.Pattern[str] | None:
    """None where there is none, or one in a dialect (\\p{L}) that Python's re does not have."""
    try:
        return re.compile(pattern) if pattern else None
    except re.error:
        return None
