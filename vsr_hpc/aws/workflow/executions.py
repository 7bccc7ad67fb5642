"""Executions of a workflow: begin one, list them, go on with one that failed."""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass
from typing import Any

from vsr_hpc.aws.account import Account
from vsr_hpc.aws.errors import explained
from vsr_hpc.aws.workflow.installation import machine_arn, machine_name, machine_tags
from vsr_hpc.aws.workflow.state_machine import Kind, run_name
from vsr_hpc.errors import JobError
from vsr_hpc.storage.s3_address import S3Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    arn: str
    name: str
    state: str
    began: str
    input: str
    run: str
    error: str = ""


def start(name: str, kind: Kind, source: str, account: Account) -> Execution:
    """Begin an execution for a clip that is on S3 already."""
    address = S3Address.from_uri(source)
    event = {
        "id": hashlib.sha256(source.encode()).hexdigest()[:32],
        "detail": {"bucket": {"name": address.bucket}, "object": {"key": address.key}},
    }
    return _begin(machine_name(name, kind), event, account)


def redrive(name: str, execution: str, account: Account) -> Execution:
    """Go on with an execution that failed: by AWS's own redrive where a step was cut off, and as a new
    execution of the same run where it ended in our failure state, which a redrive would only repeat.
    """
    with explained(f"redrive {execution}"):
        states = account.client("stepfunctions")
        facts = states.describe_execution(executionArn=_execution_arn(name, execution, account))
        if facts["status"] in ("RUNNING", "SUCCEEDED", "PENDING_REDRIVE"):
            raise JobError(f"{execution} has not failed: it is {facts['status'].lower()}")
        if facts.get("error") != "Vsr.Unfinished" and facts.get("redriveStatus") == "REDRIVABLE":
            states.redrive_execution(executionArn=facts["executionArn"])
            return _execution(states.describe_execution(executionArn=facts["executionArn"]))
        given = json.loads(facts["input"])
        again = given if "run" in given else _as_again(name, facts, given)
        return _begin(machine_name(name, "standard"), again, account)


def _as_again(name: str, facts: dict[str, Any], event: dict[str, Any]) -> dict[str, str]:
    """The input that makes a new execution go on with an earlier one's run."""
    bucket, key = event["detail"]["bucket"]["name"], event["detail"]["object"]["key"]
    prefix = key.partition("/incoming/")[0]
    run = run_name("standard", facts["name"], event)
    return {"name": run, "input": f"s3://{bucket}/{key}", "run": f"s3://{bucket}/{prefix}/runs/{run}"}


def _begin(machine: str, given: dict[str, Any], account: Account) -> Execution:
    with explained(f"start {machine}"):
        states = account.client("stepfunctions")
        name, content = f"vsr-{secrets.token_hex(8)}", json.dumps(given)
        begun = states.start_execution(
            stateMachineArn=machine_arn(machine, account), name=name, input=content
        )
    # DescribeExecution does not know express executions; the answer to the start says all there is to say.
    return _execution({**begun, "name": name, "status": "RUNNING", "input": content})


def executions(name: str, kind: Kind, account: Account, count: int = 20) -> tuple[Execution, ...]:
    """The latest executions, newest first."""
    with explained(f"list executions of {machine_name(name, kind)}"):
        states = account.client("stepfunctions")
        if machine_tags(states, machine_arn(machine_name(name, kind), account)) is None:
            raise JobError(
                f"no {machine_name(name, kind)} in {account.region}; `vsr workflow create` makes it"
            )
        found = states.list_executions(
            stateMachineArn=machine_arn(machine_name(name, kind), account), maxResults=count
        )["executions"]
        facts = [states.describe_execution(executionArn=each["executionArn"]) for each in found]
    return tuple(_execution(each) for each in facts)


def _execution(facts: dict[str, Any]) -> Execution:
    given = json.loads(facts.get("input") or "{}")
    if "run" in given:
        source, run = given["input"], given["run"]
    else:
        detail = given.get("detail", {"bucket": {"name": ""}, "object": {"key": ""}})
        bucket, key = detail["bucket"]["name"], detail["object"]["key"]
        source = f"s3://{bucket}/{key}"
        kind: Kind = "express" if "/incoming-short/" in key else "standard"
        prefix = key.partition("/incoming")[0]
        run = f"s3://{bucket}/{prefix}/runs/{run_name(kind, facts['name'], given)}"
    return Execution(
        arn=facts["executionArn"],
        name=facts["name"],
        state=facts["status"].lower(),
        began=facts["startDate"].isoformat(timespec="seconds"),
        input=source,
        run=run,
        error=facts.get("error", ""),
    )


def _execution_arn(name: str, execution: str, account: Account) -> str:
    if execution.startswith("arn:"):
        return execution
    machine = machine_arn(machine_name(name, "standard"), account)
    return f"{machine.replace(':stateMachine:', ':execution:')}:{execution}"
