"""What moto's Step Functions lacks for a workflow that ends in AWS Batch. Run before a moto server starts.

Its interpreter hands the parameters of `batch:submitJob` on as written, where boto3 wants its own spelling;
it turns boto3's parameter validation off; and rules of EventBridge cannot start an execution.
"""

from __future__ import annotations

import json
import os
import threading
import uuid
from typing import Any

import boto3
import botocore.session
from moto.core.config import default_user_config
from moto.events.models import Rule
from moto.stepfunctions.parser.asl.component.state.exec.state_task.service import (
    state_task_service_aws_sdk,
    state_task_service_batch,
)
from moto.stepfunctions.parser.asl.component.state.exec.state_task.service.state_task_service_aws_sdk import (
    StateTaskServiceAwsSdk,
)
from moto.stepfunctions.parser.asl.component.state.exec.state_task.service.state_task_service_batch import (
    StateTaskServiceBatch,
)

_SESSION = botocore.session.get_session()


def _to_boto(self: Any, parameters: dict[str, Any], *_: Any, **named: Any) -> None:
    service = self._get_boto_service_name()
    model = _SESSION.get_service_model(service)
    action = named.get("service_action_name") or self._get_boto_service_action()
    operation = next(
        model.operation_model(name)
        for name in model.operation_names
        if name.lower() == action.replace("_", "")
    )
    if operation.input_shape is not None:
        self._to_boto_request(parameters, operation.input_shape)


def _capitals(value: Any) -> None:
    """Step Functions' own spelling of an answer."""
    if isinstance(value, dict):
        for key in list(value):
            inner = value.pop(key)
            inner = inner.read().decode() if hasattr(inner, "read") else inner
            _capitals(inner)
            value[key[:1].upper() + key[1:]] = inner
    elif isinstance(value, list):
        for each in value:
            _capitals(each)


def _with_capitals(original: Any) -> Any:
    def evaluate(self: Any, env: Any, *arguments: Any, **named: Any) -> None:
        original(self, env, *arguments, **named)
        _capitals(env.stack[-1])

    return evaluate


def _strict_client(region: str, service: str, state_credentials: Any = None) -> Any:
    """As moto's, with boto3's parameters checked again."""
    return _client(service, region, f"http://localhost:{os.environ['MOTO_PORT']}")


def send_to_targets(self: Rule, original_event: Any, transform_input: bool = True) -> None:
    """As moto's, and an execution of a state machine for each target that is one."""
    machines = [each for each in self.targets if ":stateMachine:" in each["Arn"]]
    others = [each for each in self.targets if each not in machines]
    self.targets = others
    try:
        _SEND(self, original_event, transform_input)
    finally:
        self.targets = [*others, *machines]
    if self.state != "ENABLED" or not self.event_pattern.matches_event(original_event):
        return
    event = {**original_event, "id": str(uuid.uuid4())}
    for target in machines:
        threading.Thread(target=_start, args=(target["Arn"], event), daemon=True).start()


def _start(machine: str, event: dict[str, Any]) -> None:
    """By a call of its own, as on AWS; the server answers it once the event's own request is over."""
    client = _client("stepfunctions", machine.split(":")[3], f"http://127.0.0.1:{os.environ['MOTO_PORT']}")
    client.start_execution(stateMachineArn=machine, name=event["id"], input=json.dumps(event, default=str))


def _client(service: str, region: str, url: str) -> Any:
    return boto3.client(
        service,
        region_name=region,
        endpoint_url=url,
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
    )


_SEND = Rule.send_to_targets

StateTaskServiceBatch._normalise_parameters = _to_boto
StateTaskServiceBatch._eval_service_task = _with_capitals(StateTaskServiceBatch._eval_service_task)
StateTaskServiceAwsSdk._normalise_parameters = _to_boto
StateTaskServiceAwsSdk._eval_service_task = _with_capitals(StateTaskServiceAwsSdk._eval_service_task)
state_task_service_batch.boto_client_for = _strict_client
state_task_service_aws_sdk.boto_client_for = _strict_client
Rule.send_to_targets = send_to_targets
default_user_config["stepfunctions"] = {"execute_state_machine": True}
