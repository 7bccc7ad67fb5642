"""Create and delete a workflow of Step Functions on an installation of AWS Batch.

Everything is looked at first and carries our tag, as in `batch/`, whose parts do the roles.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from vsr_hpc.aws.account import Account, Say
from vsr_hpc.aws.batch import jobs as calls
from vsr_hpc.aws.batch.definition import IMAGE_TAG, OWNER_TAG, ensure_definition, gpus_of, wanted_of
from vsr_hpc.aws.batch.installation import Maker
from vsr_hpc.aws.batch.inventory import from_tag_list, to_tag_list
from vsr_hpc.aws.batch.removal import Remover
from vsr_hpc.aws.batch.resources import BatchSettings, Role, policy, trust
from vsr_hpc.aws.drift import holds
from vsr_hpc.aws.errors import error_code, explained
from vsr_hpc.aws.new_account import once_iam_knows
from vsr_hpc.aws.steps import Action, Step
from vsr_hpc.aws.workflow import state_machine as workflow
from vsr_hpc.aws.workflow.state_machine import Kind, Places
from vsr_hpc.errors import BackendError, JobError
from vsr_hpc.job.spec import JobSpec
from vsr_hpc.models.cards import find_card, packaged_models

log = logging.getLogger(__name__)


_FINGERPRINT_TAG = "vsr-fingerprint"
_OPENED_TAG = "vsr-opened-events"
"""The bucket tells EventBridge of its objects because of us: with the workflow it ends."""
_CPU_MEMORY_GIB = 7.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Workflow:
    """One workflow: where, of which kind, and the job that every clip is done by."""

    name: str
    bucket: str
    prefix: str
    job: JobSpec
    kind: Kind = "standard"

    @property
    def label(self) -> str:
        return machine_name(self.name, self.kind)


def machine_name(name: str, kind: Kind) -> str:
    return f"{name}-workflow{'-express' if kind == 'express' else ''}"


def template_content(flow: Workflow) -> bytes:
    """The job without a place of its own."""
    job = flow.job.model_copy(
        update={"on": "aws-batch", "input": "s3://input", "output": _output_like(flow.job)}
    )
    return job.model_dump_json(by_alias=True).encode()


def _output_like(job: JobSpec) -> str:
    suffix = job.output.rpartition("/")[2].rpartition(".")[2]
    return f"s3://output/out.{suffix}" if "." in job.output.rpartition("/")[2] else "s3://output/out.mkv"


def places_of(flow: Workflow, account: Account, *, cpu_definition: str, worker_definition: str) -> Places:
    """What the state machine names. Without a GPU in the job, workers are CPU jobs, too."""
    number, region = account.number(), account.region
    settings = _settings(flow, account)
    partition = settings.partition
    digest = hashlib.sha256(template_content(flow)).hexdigest()[:16]

    def queue(name: str) -> str:
        return f"arn:{partition}:batch:{region}:{number}:job-queue/{name}"

    has_gpu = gpus_of(flow.job) > 0
    return Places(
        name=flow.name,
        partition=partition,
        bucket=flow.bucket,
        prefix=flow.prefix,
        template=f"s3://{flow.bucket}/{flow.prefix}/workflows/{flow.label}/{digest}.json",
        first_queue=queue(flow.name if has_gpu else f"{flow.name}-cpu"),
        ondemand_queue=queue(f"{flow.name}-ondemand" if has_gpu else f"{flow.name}-cpu"),
        cpu_queue=queue(f"{flow.name}-cpu"),
        worker_definition=worker_definition,
        cpu_definition=cpu_definition,
        topic=f"arn:{partition}:sns:{region}:{number}:{flow.name}-workflow",
        kind=flow.kind,
    )


def expected_places(flow: Workflow, account: Account) -> Places:
    """The places as they are or would be: definitions that are not there yet stand by name."""
    base = (
        f"arn:{_settings(flow, account).partition}:batch:{account.region}:{account.number()}:job-definition"
    )
    name = f"{base}/{flow.name}-worker"
    return places_of(flow, account, cpu_definition=name, worker_definition=name)


def create(flow: Workflow, account: Account, say: Say) -> str:
    """Make the workflow or bring it up to date; the state machine's ARN."""
    _check_model(flow.job.model)
    with explained(f"create {flow.label}"):
        worker, cpu = _definitions(flow, account)
        places = places_of(flow, account, cpu_definition=cpu, worker_definition=worker)
        maker = Maker(settings=_settings(flow, account), account=account, say=say, is_plan=False)
        for role in _roles(maker.settings):
            maker.role(role)
        _put_template(flow, places, maker)
        _ensure_topic(flow, places, maker)
        machine = _ensure_machine(flow, places, maker)
        _ensure_events(flow, machine, maker)
        _ensure_rule(flow, places, machine, maker)
    return machine


def _check_model(model: str) -> None:
    """Clips are planned in containers, where nothing of this machine is."""
    if model not in packaged_models():
        find_card(model)  # an unknown one is told by its own words
        raise JobError(
            f"model: {model} is on this machine alone, where a workflow's containers do not see it; name "
            f"one of the package's own: {', '.join(packaged_models())}"
        )


def _settings(flow: Workflow, account: Account) -> BatchSettings:
    """Only names are taken from these: subnets and instances are `vsr batch init`'s."""
    return BatchSettings(
        name=flow.name,
        region=account.region,
        account=account.number(),
        bucket=flow.bucket,
        prefix=flow.prefix,
        subnets=("subnet-unused",),
        image="unused",
    )


def _roles(settings: BatchSettings) -> tuple[Role, ...]:
    return (
        Role(
            name=f"{settings.name}-workflow",
            trusted=trust("states.amazonaws.com", settings),
            policies={"vsr": policy("workflow", settings)},
        ),
        Role(
            name=f"{settings.name}-workflow-events",
            trusted=trust("events.amazonaws.com", settings),
            policies={"vsr": policy("workflow-events", settings)},
        ),
    )


def _definitions(flow: Workflow, account: Account) -> tuple[str, str]:
    """Job definitions of the workers, and of what needs no GPU."""
    batch = account.client("batch")
    queue = calls.find_queue(batch, f"{flow.name}-cpu")
    if not (flow.job.batch.image or queue.tags.get(IMAGE_TAG)):
        raise JobError(f"no container image; `vsr batch init {flow.name} --image` names it")
    job = flow.job.model_copy(update={"batch": flow.job.batch.model_copy(update={"name": flow.name})})
    worker = wanted_of(queue, job, account.region)
    section = {"gpus": 0, "memory_gib": min(_CPU_MEMORY_GIB, job.batch.memory_gib), "cpus": 2}
    plain = job.model_copy(update={"batch": job.batch.model_copy(update=section)})
    if flow.kind == "express":  # one job does it all
        return ensure_definition(batch, worker), ensure_definition(batch, worker)
    return ensure_definition(batch, worker), ensure_definition(batch, wanted_of(queue, plain, account.region))


def _put_template(flow: Workflow, places: Places, maker: Maker) -> None:
    """Upload the job of every clip. The object's name holds its hash, so nothing is overwritten."""
    key = places.template.partition(f"{flow.bucket}/")[2]
    maker.account.client("s3").put_object(Bucket=flow.bucket, Key=key, Body=template_content(flow))
    maker.say(f"job template: {places.template}")


def _ensure_topic(flow: Workflow, places: Places, maker: Maker) -> None:
    sns, name = maker.account.client("sns"), f"{flow.name}-workflow"
    tags = _topic_tags(sns, places.topic)
    detail = f"{places.topic}, subscribe to hear of every clip"
    if maker.is_due("create" if tags is None else "keep", "topic", name, detail):
        sns.create_topic(Name=name, Tags=to_tag_list({OWNER_TAG: flow.name}))


def _ensure_machine(flow: Workflow, places: Places, maker: Maker) -> str:
    account, content = maker.account, workflow.text(places)
    states = account.client("stepfunctions")
    number, partition = account.number(), places.partition
    arn = f"arn:{partition}:states:{account.region}:{number}:stateMachine:{flow.label}"
    role = f"arn:{partition}:iam::{number}:role/{flow.name}-workflow"
    mark = hashlib.sha256((content + role).encode()).hexdigest()[:32]
    tags = machine_tags(states, arn)
    if tags is None:
        maker.is_due("create", "state machine", flow.label)
        made = once_iam_knows(
            lambda: states.create_state_machine(
                name=flow.label,
                definition=content,
                roleArn=role,
                type="EXPRESS" if flow.kind == "express" else "STANDARD",
                tags=_lower_case_tags(to_tag_list({OWNER_TAG: flow.name, _FINGERPRINT_TAG: mark})),
            ),
            account.pause,
        )
        return str(made["stateMachineArn"])
    if tags.get(OWNER_TAG) != flow.name:
        raise JobError(f"state machine {flow.label} exists and is not ours; choose another name")
    if maker.is_due("keep" if tags.get(_FINGERPRINT_TAG) == mark else "update", "state machine", flow.label):
        states.update_state_machine(stateMachineArn=arn, definition=content, roleArn=role)
        states.tag_resource(resourceArn=arn, tags=_lower_case_tags(to_tag_list({_FINGERPRINT_TAG: mark})))
    return arn


def _ensure_events(flow: Workflow, machine: str, maker: Maker) -> None:
    """Let the bucket notify EventBridge of new objects; its other notifications stay."""
    s3 = maker.account.client("s3")
    found = s3.get_bucket_notification_configuration(Bucket=flow.bucket)
    found.pop("ResponseMetadata", None)
    action: Action = "keep" if "EventBridgeConfiguration" in found else "update"
    if not maker.is_due(action, "bucket", flow.bucket, "notifies EventBridge of its objects"):
        return
    s3.put_bucket_notification_configuration(
        Bucket=flow.bucket, NotificationConfiguration={**found, "EventBridgeConfiguration": {}}
    )
    states = maker.account.client("stepfunctions")
    states.tag_resource(resourceArn=machine, tags=_lower_case_tags(to_tag_list({_OPENED_TAG: flow.bucket})))


def _ensure_rule(flow: Workflow, places: Places, machine: str, maker: Maker) -> None:
    account, events = maker.account, maker.account.client("events")
    rule = {
        "EventPattern": json.dumps(workflow.event_pattern(places), sort_keys=True),
        "State": "ENABLED",
        "Description": f"vsr_hpc: what comes below {places.incoming} is upscaled",
    }
    role = f"arn:{places.partition}:iam::{account.number()}:role/{flow.name}-workflow-events"
    target = {"Id": "workflow", "Arn": machine, "RoleArn": role}
    found = _find_rule(events, flow.label)
    is_same = found is not None and holds(found, {**rule, "Targets": [target]})
    action: Action = "create" if found is None else "keep" if is_same else "update"
    if not maker.is_due(action, "event rule", flow.label, f"on s3://{flow.bucket}/{places.incoming}"):
        return
    events.put_rule(Name=flow.label, Tags=to_tag_list({OWNER_TAG: flow.name}), **rule)
    answer = events.put_targets(Rule=flow.label, Targets=[target])
    if answer.get("FailedEntryCount"):
        raise BackendError(f"EventBridge refused the rule's target: {answer['FailedEntries']}")


def _find_rule(events: Any, name: str) -> dict[str, Any] | None:
    """A rule with its targets; None where there is none of that name."""
    try:
        facts = events.describe_rule(Name=name)
    except ClientError as exc:
        if error_code(exc) != "ResourceNotFoundException":
            raise
        return None
    return {**facts, "Targets": events.list_targets_by_rule(Rule=name)["Targets"]}


def machine_arn(machine: str, account: Account) -> str:
    """The ARN that a state machine of this name has here."""
    partition = "aws-cn" if account.region.startswith("cn-") else "aws"
    partition = "aws-us-gov" if account.region.startswith("us-gov-") else partition
    return f"arn:{partition}:states:{account.region}:{account.number()}:stateMachine:{machine}"


# Taking it away
def delete(name: str, kind: Kind, account: Account, say: Say, *, is_plan: bool = False) -> tuple[Step, ...]:
    """Remove the workflow. Clips, runs and results stay; roles and topic go with its last machine."""
    with explained(f"delete {machine_name(name, kind)}"):
        remover = Remover(name=name, account=account, say=say, is_plan=is_plan)
        _delete_rule(remover, machine_name(name, kind))
        _delete_machine(remover, machine_name(name, kind))
        other = machine_name(name, "express" if kind == "standard" else "standard")
        if machine_tags(account.client("stepfunctions"), machine_arn(other, account)) is None:
            _delete_topic(remover)
            remover.role(f"{name}-workflow")
            remover.role(f"{name}-workflow-events")
    return tuple(remover.steps)


def _delete_rule(remover: Remover, label: str) -> None:
    events = remover.account.client("events")
    found = _find_rule(events, label)
    if found is None:
        return
    tags = from_tag_list(events.list_tags_for_resource(ResourceARN=found["Arn"])["Tags"])
    if remover.is_due("event rule", label, tags):
        targets = [each["Id"] for each in found["Targets"]]
        if targets:
            events.remove_targets(Rule=label, Ids=targets)
        events.delete_rule(Name=label)


def _delete_machine(remover: Remover, label: str) -> None:
    states, arn = remover.account.client("stepfunctions"), machine_arn(label, remover.account)
    tags = machine_tags(states, arn)
    if tags is None or not remover.is_due("state machine", label, tags):
        return
    if _OPENED_TAG in tags:
        s3 = remover.account.client("s3")
        found = s3.get_bucket_notification_configuration(Bucket=tags[_OPENED_TAG])
        kept = {k: v for k, v in found.items() if k not in ("ResponseMetadata", "EventBridgeConfiguration")}
        s3.put_bucket_notification_configuration(Bucket=tags[_OPENED_TAG], NotificationConfiguration=kept)
    states.delete_state_machine(stateMachineArn=arn)


def _delete_topic(remover: Remover) -> None:
    sns, account = remover.account.client("sns"), remover.account
    topic = machine_arn("x", account).replace(":states:", ":sns:").partition(":stateMachine")[0]
    arn = f"{topic}:{remover.name}-workflow"
    tags = _topic_tags(sns, arn)
    if tags is not None and remover.is_due("topic", f"{remover.name}-workflow", tags):
        sns.delete_topic(TopicArn=arn)


def _topic_tags(sns: Any, arn: str) -> dict[str, str] | None:
    """The tags of a topic; None where there is none of that name."""
    try:
        return from_tag_list(sns.list_tags_for_resource(ResourceArn=arn)["Tags"])
    except ClientError as exc:
        if error_code(exc) not in ("NotFound", "ResourceNotFound", "ResourceNotFoundException"):
            raise
        return None


def machine_tags(states: Any, arn: str) -> dict[str, str] | None:
    """The tags of a state machine; None where there is none of that name."""
    try:
        states.describe_state_machine(stateMachineArn=arn)
    except ClientError as exc:
        if error_code(exc) != "StateMachineDoesNotExist":
            raise
        return None
    found = states.list_tags_for_resource(resourceArn=arn)["tags"]
    return {each["key"]: each["value"] for each in found}


def _lower_case_tags(tags: list[dict[str, str]]) -> list[dict[str, str]]:
    """Step Functions spells tags its own way."""
    return [{"key": each["Key"], "value": each["Value"]} for each in tags]
