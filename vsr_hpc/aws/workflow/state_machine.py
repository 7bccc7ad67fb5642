"""The state machine of Step Functions, from one place: a few settings become Amazon States Language.

    an object comes below incoming/ ─▶ plan ─▶ workers, Spot first ─▶ finish ─▶ verify ─▶ notify
                                               └ some failed ─▶ on demand ┘
                      whatever fails ─▶ say so in failures/, keep the run and its receipts ─▶ notify ─▶ failed

JSONPath throughout. The express kind has no `.sync` and five minutes: one job does it all and is asked for.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["standard", "express"]
State = dict[str, Any]

LOOK_EVERY_S = 10
LOOKS = 24
"""An express execution asks so often; what takes longer goes on in Batch without it."""
_HOURS = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The ARNs and addresses that a state machine names."""

    name: str
    partition: str
    bucket: str
    prefix: str
    template: str
    """The job file that every clip is done by: an object's address."""
    first_queue: str
    """Spot, and on demand where Spot has nothing: Batch goes on by itself, child by child."""
    ondemand_queue: str
    cpu_queue: str
    worker_definition: str
    cpu_definition: str
    topic: str
    kind: Kind = "standard"

    @property
    def incoming(self) -> str:
        """Below it lies what starts an execution."""
        return f"{self.prefix}/incoming{'-short' if self.kind == 'express' else ''}/"


def render(places: Places) -> dict[str, Any]:
    """The whole state machine."""
    return _express(places) if places.kind == "express" else _standard(places)


def text(places: Places) -> str:
    return json.dumps(render(places), indent=2) + "\n"


def event_pattern(places: Places) -> dict[str, Any]:
    """What of the bucket's events starts an execution."""
    return {
        "source": ["aws.s3"],
        "detail-type": ["Object Created"],
        "detail": {
            "bucket": {"name": [places.bucket]},
            "object": {"key": [{"prefix": places.incoming}], "size": [{"numeric": [">", 0]}]},
        },
    }


def run_name(kind: Kind, execution: str, event: dict[str, Any]) -> str:
    """What the state machine calls the run of an execution; an express one may be started twice by AWS."""
    return f"short-{event['id']}" if kind == "express" else execution


def _standard(places: Places) -> dict[str, Any]:
    one, many = ("OneWorker", "Workers"), ("OneWorkerOnDemand", "WorkersOnDemand")
    states: dict[str, State] = {
        "IsAgain": {
            "Type": "Choice",
            "Comment": "An execution that is started again brings the run that it goes on with.",
            "Choices": [{"Variable": "$.run", "IsPresent": True, "Next": "Plan"}],
            "Default": "Prepare",
        },
        "Prepare": _prepare(places, "$$.Execution.Name"),
        "Plan": _job(places, "plan", _plan_command(places), "ReadPlan", hours=6),
        "ReadPlan": {
            "Type": "Task",
            "Resource": f"arn:{places.partition}:states:::aws-sdk:s3:getObject",
            "Parameters": {
                "Bucket": places.bucket,
                "Key.$": f"States.Format('{places.prefix}/runs/{{}}/workflow.json', $.name)",
            },
            "ResultSelector": {"facts.$": "States.StringToJson($.Body)"},
            "ResultPath": "$.plan",
            "Retry": [_retried("States.ALL")],
            "Catch": [_caught("DescribeFailure")],
            "Next": "HowMany",
        },
        "HowMany": _how_many(*one, "Finish"),
        **_work(places, *one, places.first_queue, "Finish", "IsOnDemandMany", "$.spot"),
        "IsOnDemandMany": _how_many(*many, "Finish"),
        **_work(places, *many, places.ondemand_queue, "Finish", "Finish", "$.ondemand"),
        "Finish": _job(places, "finish", _command("finish"), "Verify", hours=12),
        "Verify": _job(places, "verify", _command("verify"), "Notify", hours=6),
        "Notify": _notify(places, "done", "States.Format('{} is done. Run: {}', $.input, $.run)", "Done"),
        "Done": {"Type": "Succeed"},
        **_failure(places),
    }
    return {
        "Comment": f"vsr_hpc: what comes below {places.incoming} is upscaled into {places.prefix}/outgoing/",
        "StartAt": "IsAgain",
        "TimeoutSeconds": 14 * 24 * _HOURS,
        "States": states,
    }


def _express(places: Places) -> dict[str, Any]:
    whole = _plan_command(places).replace("'plan'", "'whole'")
    states: dict[str, State] = {
        "Prepare": _prepare(places, "States.Format('short-{}', $.id)"),
        "Submit": {
            **_job(places, "whole", whole, "Begin", hours=0, is_sync=False),
            "ResultPath": "$.job",
        },
        "Begin": {"Type": "Pass", "Result": {"count": 0}, "ResultPath": "$.looks", "Next": "Wait"},
        "Wait": {"Type": "Wait", "Seconds": LOOK_EVERY_S, "Next": "Look"},
        "Look": {
            "Type": "Task",
            "Resource": f"arn:{places.partition}:states:::aws-sdk:batch:describeJobs",
            "Parameters": {"Jobs.$": "States.Array($.job.JobId)"},
            "ResultSelector": {"status.$": "States.ArrayGetItem($.Jobs[*].Status, 0)"},
            "ResultPath": "$.error",
            "Retry": [_retried("States.ALL")],
            "Catch": [_caught("DescribeFailure")],
            "Next": "Count",
        },
        "Count": {
            "Type": "Pass",
            "Parameters": {"count.$": "States.MathAdd($.looks.count, 1)"},
            "ResultPath": "$.looks",
            "Next": "IsOver",
        },
        "IsOver": {
            "Type": "Choice",
            "Choices": [
                {"Variable": "$.error.status", "StringEquals": "SUCCEEDED", "Next": "Notify"},
                {"Variable": "$.error.status", "StringEquals": "FAILED", "Next": "DescribeFailure"},
                {"Variable": "$.looks.count", "NumericGreaterThanEquals": LOOKS, "Next": "NotifyLate"},
            ],
            "Default": "Wait",
        },
        "Notify": _notify(places, "done", "States.Format('{} is done. Run: {}', $.input, $.run)", "Done"),
        "NotifyLate": _notify(
            places, "goes on", "States.Format('{} goes on in Batch. Run: {}', $.input, $.run)", "Done"
        ),
        "Done": {"Type": "Succeed"},
        **_failure(places),
    }
    return {
        "Comment": f"vsr_hpc: short clips below {places.incoming}, each one job of AWS Batch",
        "StartAt": "Prepare",
        "TimeoutSeconds": 295,
        "States": states,
    }


# The parts
def _prepare(places: Places, name: str) -> State:
    return {
        "Type": "Pass",
        "Parameters": {
            "name.$": name,
            "input.$": "States.Format('s3://{}/{}', $.detail.bucket.name, $.detail.object.key)",
            "run.$": f"States.Format('s3://{places.bucket}/{places.prefix}/runs/{{}}', {name})",
        },
        "Next": "Submit" if places.kind == "express" else "Plan",
    }


def _command(word: str, *more: str) -> str:
    quoted = [f"'{each}'" if not each.startswith("$") else each for each in more]
    return ", ".join(["'vsr'", "'batch'", f"'{word}'", "$.run", *quoted])


def _plan_command(places: Places) -> str:
    return _command(
        "plan", "--input", "$.input", "--template", places.template, "--incoming", places.incoming
    )


def _job(
    places: Places,
    name: str,
    command: str,
    following: str,
    *,
    hours: int,
    is_sync: bool = True,
    queue: str | None = None,
    definition: str | None = None,
) -> State:
    """A job of Batch; only AWS's own passing trouble is retried here, for lost hosts Batch does it."""
    state: State = {
        "Type": "Task",
        "Resource": f"arn:{places.partition}:states:::batch:submitJob{'.sync' if is_sync else ''}",
        "Parameters": {
            "JobName": f"{places.name}-{name}",
            "JobQueue": queue or places.cpu_queue,
            "JobDefinition": definition or places.cpu_definition,
            "ContainerOverrides": {"Command.$": f"States.Array({command})"},
        },
        "ResultPath": None,
        "Retry": [
            _retried("Batch.TooManyRequestsException", "Batch.ServerException", "Batch.AWSBatchException")
        ],
        "Catch": [_caught("DescribeFailure")],
        "Next": following,
    }
    return {**state, "TimeoutSeconds": hours * _HOURS} if hours else state


def _how_many(one: str, many: str, none: str) -> State:
    count = "$.plan.facts.workers"
    return {
        "Type": "Choice",
        "Comment": "An array has two children or more.",
        "Choices": [
            {"Variable": count, "NumericGreaterThanEquals": 2, "Next": many},
            {"Variable": count, "NumericEquals": 1, "Next": one},
        ],
        "Default": none,
    }


def _work(
    places: Places, one: str, many: str, queue: str, following: str, otherwise: str, told: str
) -> dict[str, State]:
    """Workers that leave the merge to Finish, which also says what they could not do."""
    command = _command("worker", "--no-finish")
    plain = _job(
        places, "work", command, following, hours=7 * 24, queue=queue, definition=places.worker_definition
    )
    plain["Catch"] = [{"ErrorEquals": ["States.ALL"], "ResultPath": told, "Next": otherwise}]
    array = {"ArrayProperties": {"Size.$": "$.plan.facts.workers"}}
    return {one: plain, many: {**plain, "Parameters": {**plain["Parameters"], **array}}}


def _notify(places: Places, subject: str, message: str, following: str) -> State:
    state: State = {
        "Type": "Task",
        "Resource": f"arn:{places.partition}:states:::sns:publish",
        "Parameters": {
            "TopicArn": places.topic,
            "Subject": f"{places.name}: {subject}",
            "Message.$": message,
        },
        "ResultPath": None,
        "Retry": [_retried("States.ALL")],
        "Next": following,
    }
    return state


def _failure(places: Places) -> dict[str, State]:
    """The run and its receipts stay as they are; what failed is written beside them and told."""
    return {
        "DescribeFailure": {
            "Type": "Pass",
            "Parameters": {
                "execution.$": "$$.Execution.Id",
                "name.$": "$.name",
                "input.$": "$.input",
                "run.$": "$.run",
                "error.$": "$.error",
            },
            "ResultPath": "$.report",
            "Next": "KeepReceipts",
        },
        "KeepReceipts": {
            "Type": "Task",
            "Resource": f"arn:{places.partition}:states:::aws-sdk:s3:putObject",
            "Parameters": {
                "Bucket": places.bucket,
                "Key.$": f"States.Format('{places.prefix}/failures/{{}}.json', $.name)",
                "Body.$": "$.report",
            },
            "ResultPath": None,
            "Retry": [_retried("States.ALL")],
            "Catch": [{"ErrorEquals": ["States.ALL"], "ResultPath": "$.unwritten", "Next": "NotifyFailure"}],
            "Next": "NotifyFailure",
        },
        "NotifyFailure": {
            **_notify(
                places,
                "failed",
                "States.Format('{} failed. What is done stays: {}', $.input, $.run)",
                "Failed",
            ),
            "Catch": [{"ErrorEquals": ["States.ALL"], "ResultPath": "$.untold", "Next": "Failed"}],
        },
        "Failed": {
            "Type": "Fail",
            "Error": "Vsr.Unfinished",
            "Cause": f"see {places.prefix}/failures/ in the bucket; `vsr workflow redrive` goes on",
        },
    }


def _retried(*errors: str) -> dict[str, Any]:
    return {"ErrorEquals": list(errors), "IntervalSeconds": 5, "MaxAttempts": 5, "BackoffRate": 2.0}


def _caught(following: str) -> dict[str, Any]:
    return {"ErrorEquals": ["States.ALL"], "ResultPath": "$.error", "Next": following}
