"""The workflow: rendered and linted offline, executed by moto's interpreter with real workers behind it."""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import boto3
import pytest
import torch
import yaml
from botocore.stub import ANY, Stubber
from safetensors.torch import save_file

from tests.aws.batch_cloud import BUCKET, PREFIX, REGION, Cloud
from tests.clips import numbered_clip
from tests.commands import vsr
from tests.require import require
from tests.runs import tiny_job
from tests.tools import find_tool
from vsr_hpc.aws.account import Account
from vsr_hpc.aws.workflow import state_machine as workflow
from vsr_hpc.aws.workflow.executions import redrive, start
from vsr_hpc.aws.workflow.installation import Workflow, create
from vsr_hpc.aws.workflow.state_machine import Kind, Places
from vsr_hpc.errors import JobError
from vsr_hpc.executors.aws_batch import workflow_steps as batch_workflow
from vsr_hpc.executors.aws_batch.workflow_steps import job_for, output_name
from vsr_hpc.job.reading import load_job, parse_job
from vsr_hpc.models import weights
from vsr_hpc.models.cards import user_cards_folder
from vsr_hpc.models.networks import Compact
from vsr_hpc.run.run import Run

pytestmark = pytest.mark.aws

HERE = f"{REGION}:123456789012"
PLACES = Places(
    name="vsr",
    partition="aws",
    bucket=BUCKET,
    prefix=PREFIX,
    template=f"s3://{BUCKET}/{PREFIX}/workflows/vsr-workflow/0123456789abcdef.json",
    first_queue=f"arn:aws:batch:{HERE}:job-queue/vsr",
    ondemand_queue=f"arn:aws:batch:{HERE}:job-queue/vsr-ondemand",
    cpu_queue=f"arn:aws:batch:{HERE}:job-queue/vsr-cpu",
    worker_definition=f"arn:aws:batch:{HERE}:job-definition/vsr-worker:1",
    cpu_definition=f"arn:aws:batch:{HERE}:job-definition/vsr-worker:2",
    topic=f"arn:aws:sns:{HERE}:vsr-workflow",
)
KINDS: tuple[Kind, ...] = ("standard", "express")


LINTERS: dict[str, tuple[list[str], str]] = {
    "statelint": ([], "`make install` installs it"),
    "asl-validator": (["--json-path"], "tests/install-tools.sh installs it"),
}


def lint(linter: str, path: Path) -> subprocess.CompletedProcess[str]:
    options, hint = LINTERS[linter]
    tool = find_tool(linter)
    if tool is None:
        require("aws", f"{linter} is not installed; {hint}")
    return subprocess.run([tool, *options, str(path)], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("kind", KINDS)
def test_state_machine_is_as_its_golden_says(kind: Kind, golden: Callable[[str, str], None]) -> None:
    golden(f"workflow-{kind}.json", workflow.text(replace(PLACES, kind=kind)))


@pytest.mark.parametrize("linter", LINTERS)
@pytest.mark.parametrize("kind", KINDS)
def test_linter_accepts_the_state_machine_and_would_not_accept_a_broken_one(
    kind: Kind, linter: str, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole.json", tmp_path / "broken.json"
    whole.write_text(workflow.text(replace(PLACES, kind=kind)))
    document = workflow.render(replace(PLACES, kind=kind))
    document["States"]["Notify"]["Next"] = "Nowhere"
    broken.write_text(json.dumps(document))
    said = lint(linter, whole)
    assert said.returncode == 0, said.stdout + said.stderr
    assert lint(linter, broken).returncode != 0


def test_express_waits_for_no_job_and_ends_within_its_five_minutes() -> None:
    document = workflow.render(replace(PLACES, kind="express"))
    assert ".sync" not in json.dumps(document) and document["TimeoutSeconds"] < 300
    assert document["TimeoutSeconds"] > workflow.LOOKS * workflow.LOOK_EVERY_S


def test_every_task_is_retried_and_every_failure_ends_where_receipts_are_kept() -> None:
    states = workflow.render(PLACES)["States"]
    tasks = {name: state for name, state in states.items() if state["Type"] == "Task"}
    assert all("Retry" in state for state in tasks.values())
    last = {name for name in tasks if name.startswith("Notify") or name == "KeepReceipts"}
    for name in set(tasks) - last:
        assert tasks[name]["Catch"][0]["ErrorEquals"] == ["States.ALL"], name
    assert tasks["Workers"]["Catch"][0]["Next"] == "IsOnDemandMany"
    assert tasks["WorkersOnDemand"]["Parameters"]["JobQueue"] == PLACES.ondemand_queue
    assert tasks["WorkersOnDemand"]["Catch"][0]["Next"] == "Finish"  # which knows what is missing
    assert states["DescribeFailure"]["Next"] == "KeepReceipts" and states["Failed"]["Type"] == "Fail"


def test_output_keeps_a_clips_place_below_outgoing_and_clips_from_elsewhere_are_refused() -> None:
    template = parse_job({"input": "s3://input", "output": "s3://output/out.mp4", "model": "nearest"}, "test")
    job = job_for(template, "s3://films/vsr/incoming/a b/c.d.mkv", "s3://films/vsr/runs/x", "vsr/incoming/")
    assert job.output == "s3://films/vsr/outgoing/a b/c.d.mkv.mp4" and job.run_uri == "s3://films/vsr/runs/x"
    with pytest.raises(JobError, match="is not below vsr/incoming/"):
        job_for(template, "s3://films/elsewhere/c.mkv", "s3://films/vsr/runs/x", "vsr/incoming/")


@pytest.mark.parametrize(
    ("clip", "output"),
    [
        ("take1.mkv", "take1.mkv"),
        ("take1.mov", "take1.mov.mkv"),
        ("take1.MKV", "take1.MKV.mkv"),
        ("2026.01.02.mkv", "2026.01.02.mkv"),
        ("take1.mov.mkv", "take1.mov.mkv.mkv"),  # take1.mov has the shorter name
        ("take1", "take1.mkv.mkv"),
    ],
)
def test_output_keeps_a_clips_name_where_no_other_clip_becomes_it(clip: str, output: str) -> None:
    assert str(output_name(PurePosixPath("a") / clip, ".mkv")) == f"a/{output}"


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".MOV", ".odd"])
def test_no_two_clips_become_one_output(suffix: str) -> None:
    parts = ("a", ".d", ".mkv", ".mov", ".MOV", ".mp4", ".odd", ".")
    names = {"".join(each) for count in range(1, 5) for each in itertools.product(parts, repeat=count)}
    clips = {PurePosixPath(name) for name in names - {".", ".."}}
    assert len({output_name(clip, suffix) for clip in clips}) == len(clips)


def test_plan_brings_the_partners_weights_where_the_job_mixes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(key, str(tmp_path / key))
    cards = []
    for name, seed in (("keeps", 1), ("cleans", 2)):
        torch.manual_seed(seed)
        file = tmp_path / f"{name}.safetensors"
        save_file(Compact(scale=2, num_feat=4, num_conv=1).state_dict(), file)
        cards.append(weights.import_weights(file, name))
    partner = user_cards_folder() / "cleans.yaml"
    partner.write_text(partner.read_text().replace("denoise_partner: null", "denoise_partner: keeps"))
    clip = numbered_clip(tmp_path / "clip.mkv", frames=8)
    job = tiny_job(tmp_path, model="cleans", picture={"denoise": 0.5})
    monkeypatch.setattr(batch_workflow, "read_template", lambda uri: job)
    monkeypatch.setattr(batch_workflow, "job_for", lambda *given: job)
    run_uri = str(tmp_path / "run")
    batch_workflow.plan(run_uri, str(clip), "template", "incoming/")
    staged = {facts.name.split("/")[1] for facts in Run.open(run_uri).store.list("weights/")}
    assert staged == {card.weights.sha256 for card in cards if card.weights}


@pytest.mark.parametrize("kind", ["file", "imported"])
def test_create_refuses_a_model_that_containers_do_not_know_before_anything_is_made(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(key, str(tmp_path / key))
    file = tmp_path / "mine.safetensors"
    save_file(Compact(scale=2, num_feat=4, num_conv=1).state_dict(), file)
    model = str(file) if kind == "file" else weights.import_weights(file, "mine").name
    job = parse_job({"input": "s3://i", "output": "s3://o/o.mkv", "model": model, "on": "aws-batch"}, "test")
    account = Account(region=REGION)  # asking AWS anything would fail: there are no clients and no keys
    with pytest.raises(JobError, match=r"mine.* is on this machine alone, .*: auto, .*realesr-animevideov3"):
        create(Workflow(name="vsr", bucket=BUCKET, prefix=PREFIX, job=job), account, lambda line: None)


def test_express_execution_is_begun_without_a_question_that_aws_answers_for_standard_ones_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    account = stubbed_account(monkeypatch)
    sts, states = account.client("sts"), account.client("stepfunctions")
    day = datetime(2026, 1, 1, tzinfo=UTC)
    machine = f"arn:aws:states:{HERE}:stateMachine:vsr-workflow-express"
    arn = f"arn:aws:states:{HERE}:express:vsr-workflow-express:x:0b1e"
    with Stubber(sts) as who, Stubber(states) as stub:
        who.add_response("get_caller_identity", {"Account": "123456789012"})
        wanted = {"stateMachineArn": machine, "name": ANY, "input": ANY}
        stub.add_response("start_execution", {"executionArn": arn, "startDate": day}, wanted)
        begun = start("vsr", "express", "s3://films/vsr/incoming-short/a.mkv", account)
    assert (begun.arn, begun.state, begun.began) == (arn, "running", "2026-01-01T00:00:00+00:00")
    assert begun.name.startswith("vsr-") and begun.input == "s3://films/vsr/incoming-short/a.mkv"
    assert begun.run.startswith("s3://films/vsr/runs/short-")


def stubbed_account(monkeypatch: pytest.MonkeyPatch) -> Account:
    """Its clients for STS and Step Functions are there to be stubbed."""
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(key, "testing")
    account = Account(region=REGION)
    for each in ("sts", "stepfunctions"):
        account._clients[each] = boto3.client(each, region_name=REGION)
    return account


def test_example_job_loads_and_lies_on_s3_alone() -> None:
    job = load_job(Path(__file__).parents[2] / "jobs/batch.yaml")
    assert job.on == "aws-batch" and job.input.startswith("s3://") and job.run_uri.startswith("s3://")


def test_execution_that_was_cut_off_is_redriven_by_aws_and_one_that_gave_up_begins_anew_with_its_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    account = stubbed_account(monkeypatch)
    sts, states = account.client("sts"), account.client("stepfunctions")
    machine = f"arn:aws:states:{HERE}:stateMachine:vsr-workflow"
    arn, day = f"arn:aws:states:{HERE}:execution:vsr-workflow:one", datetime(2026, 1, 1, tzinfo=UTC)
    detail = {"bucket": {"name": "films"}, "object": {"key": "vsr/incoming/a.mkv"}}
    event = json.dumps({"id": "7", "detail": detail})
    facts = {"executionArn": arn, "stateMachineArn": machine, "name": "one", "startDate": day, "input": event}
    cut = {**facts, "status": "TIMED_OUT", "error": "States.Timeout", "redriveStatus": "REDRIVABLE"}
    gave_up = {**cut, "status": "FAILED", "error": "Vsr.Unfinished"}
    with Stubber(sts) as who, Stubber(states) as stub:
        for _ in range(3):
            who.add_response("get_caller_identity", {"Account": "123456789012"})
        stub.add_response("describe_execution", cut, {"executionArn": arn})
        stub.add_response("redrive_execution", {"redriveDate": day}, {"executionArn": arn})
        stub.add_response("describe_execution", {**facts, "status": "RUNNING"}, {"executionArn": arn})
        assert redrive("vsr", "one", account).run == "s3://films/vsr/runs/one"
        stub.add_response("describe_execution", gave_up, {"executionArn": arn})
        run = {"name": "one", "input": "s3://films/vsr/incoming/a.mkv", "run": "s3://films/vsr/runs/one"}
        begun = {"stateMachineArn": machine, "name": ANY, "input": json.dumps(run)}
        stub.add_response("start_execution", {"executionArn": f"{arn}-2", "startDate": day}, begun)
        assert redrive("vsr", "one", account).run == "s3://films/vsr/runs/one"
        stub.assert_no_pending_responses()


# On moto's interpreter


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "batch.yaml"
    document = {
        "input": "s3://input", "output": "out.mkv", "model": "nearest", "on": "aws-batch",
        "picture": {"scale": 2}, "video": {"preset": "ultrafast", "threads": 1},
        "run": {"workers": 2, "chunk_s": 4 / 24, "shard_s": 0.001, "threads": 1},
        "batch": {"memory_gib": 1, "gpus": 1},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(document))
    return path


@contextlib.contextmanager
def created(job_file: Path, *flags: str) -> Iterator[None]:
    said = vsr("workflow", "create", job_file, "--bucket", BUCKET, *flags)
    assert said.code == 0, said.err
    try:
        yield
    finally:
        said = vsr("workflow", "delete", "--yes", *flags)
        assert said.code == 0, said.err


def executions(cloud: Cloud, label: str = "vsr-workflow") -> list[dict[str, Any]]:
    states = cloud.client("stepfunctions")
    arn = f"arn:aws:states:{HERE}:stateMachine:{label}"
    found = states.list_executions(stateMachineArn=arn)["executions"]
    return [states.describe_execution(executionArn=each["executionArn"]) for each in found]


def ended(cloud: Cloud, label: str = "vsr-workflow", count: int = 1) -> dict[str, Any]:
    """The newest execution, once it has ended."""

    def is_over() -> bool:
        found = executions(cloud, label)
        return len(found) >= count and all(each["status"] != "RUNNING" for each in found)

    cloud.wait_until(is_over, f"{count} executions of {label}")
    return max(executions(cloud, label), key=lambda each: each["startDate"])


def steps(cloud: Cloud, execution: dict[str, Any]) -> list[str]:
    states = cloud.client("stepfunctions")
    pages = states.get_paginator("get_execution_history").paginate(executionArn=execution["executionArn"])
    return [
        each["stateEnteredEventDetails"]["name"]
        for page in pages
        for each in page["events"]
        if "stateEnteredEventDetails" in each
    ]


def test_clip_dropped_into_incoming_comes_out_of_outgoing_on_demand_where_spot_has_nothing(
    cloud: Cloud, job_file: Path, tmp_path: Path
) -> None:
    clip = tmp_path / "clip.mkv"
    numbered_clip(clip, frames=16)
    sqs, sns = cloud.client("sqs"), cloud.client("sns")
    queue = sqs.create_queue(QueueName="told")["QueueUrl"]
    with created(job_file), cloud.no_capacity("vsr-spot"):
        sns.subscribe(TopicArn=PLACES.topic, Protocol="sqs", Endpoint=f"arn:aws:sqs:{HERE}:told")
        cloud.put(clip, f"{PREFIX}/incoming/holiday/first day.mkv")
        execution = ended(cloud)
        assert execution["status"] == "SUCCEEDED", execution
        walked = steps(cloud, execution)
        status = vsr("workflow", "status", "--json").json
    assert walked == [
        "IsAgain", "Prepare", "Plan", "ReadPlan", "HowMany", "Workers", "Finish", "Verify", "Notify",
        "Done",
    ]  # fmt: skip
    assert status[0]["input"] == f"s3://{BUCKET}/{PREFIX}/incoming/holiday/first day.mkv"
    run = Run.open(status[0]["run"])
    done = run.done()
    assert done is not None and done.output == f"s3://{BUCKET}/{PREFIX}/outgoing/holiday/first day.mkv"
    assert len(cloud.read(done.output)) == done.size_bytes and done.frames == 16
    told = sqs.receive_message(QueueUrl=queue, WaitTimeSeconds=5)["Messages"][0]["Body"]
    assert "first day.mkv is done" in json.loads(told)["Message"]


def test_what_fails_keeps_its_run_says_so_and_is_taken_up_again(
    cloud: Cloud, job_file: Path, tmp_path: Path
) -> None:
    clip = tmp_path / "clip.mkv"
    numbered_clip(clip, frames=8)
    job_file.write_text(job_file.read_text().replace("workers: 2", "workers: 1"))
    with created(job_file):
        with cloud.no_capacity("vsr-spot", "vsr-ondemand"), cloud.waits("vsr", "vsr-ondemand", minutes=10):
            cloud.put(clip, f"{PREFIX}/incoming/late.mkv")
            failed = ended(cloud)
        assert (failed["status"], failed["error"]) == ("FAILED", "Vsr.Unfinished")
        report = json.loads(cloud.read(f"s3://{BUCKET}/{PREFIX}/failures/{failed['name']}.json"))
        assert report["input"].endswith("late.mkv") and report["error"]["Error"] == "States.TaskFailed"
        assert Run.open(report["run"]).missing() == {0, 1}
        said = vsr("workflow", "redrive", failed["name"])
        assert said.code == 0, said.err
        again = ended(cloud, count=2)
        assert again["status"] == "SUCCEEDED" and steps(cloud, again)[:2] == ["IsAgain", "Plan"]
        done = Run.open(report["run"]).done()
        assert done is not None and done.output.endswith("outgoing/late.mkv")
        refused = vsr("workflow", "redrive", again["name"])
        assert refused.code == 2 and "has not failed: it is succeeded" in refused.err


def test_short_clip_is_one_job_of_an_express_workflow(cloud: Cloud, job_file: Path, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mkv"
    numbered_clip(clip, frames=8)
    with created(job_file, "--express"):
        cloud.put(clip, f"{PREFIX}/incoming-short/short.mkv")
        execution = ended(cloud, "vsr-workflow-express")
        assert execution["status"] == "SUCCEEDED", execution
    assert len(cloud.read(f"s3://{BUCKET}/{PREFIX}/outgoing/short.mkv")) > 0


def test_create_is_idempotent_and_delete_leaves_nothing_of_it(cloud: Cloud, job_file: Path) -> None:
    s3, states, events = (cloud.client(each) for each in ("s3", "stepfunctions", "events"))
    with created(job_file):
        before = states.list_state_machines()["stateMachines"]
        again = vsr("workflow", "create", job_file, "--bucket", BUCKET)
        assert again.code == 0 and "keep state machine vsr-workflow" in again.err
        assert states.list_state_machines()["stateMachines"] == before
        planned = vsr("workflow", "delete", "--plan", "--json").json
        assert {each["kind"] for each in planned["steps"]} == {"event rule", "state machine", "topic", "role"}
        assert states.list_state_machines()["stateMachines"] == before
    assert states.list_state_machines()["stateMachines"] == []
    assert "no vsr-workflow in eu-central-1; `vsr workflow create`" in vsr("workflow", "status").err
    assert events.list_rules()["Rules"] == []
    assert cloud.client("sns").list_topics()["Topics"] == []
    roles = {each["RoleName"] for each in cloud.client("iam").list_roles()["Roles"]}
    assert not {each for each in roles if "workflow" in each}
    assert "EventBridgeConfiguration" not in s3.get_bucket_notification_configuration(Bucket=BUCKET)
