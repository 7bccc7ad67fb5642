"""`vsr batch …`: arguments in, one library call, text and exit code out."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

from vsr_hpc.cli.answers import account_of, answer_with_steps, ask

app = typer.Typer(
    help="Queues, roles and instances of AWS Batch, and what runs in them.", no_args_is_help=True
)

Name = Annotated[str, typer.Argument(help="What everything is called; a job file's batch.name.")]
Region = Annotated[
    str | None,
    typer.Option("--region", help="By default AWS_REGION, AWS_DEFAULT_REGION or the profile's region."),
]
IsPlan = Annotated[bool, typer.Option("--plan", help="Only say what would be done.")]
IsYes = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")]
IsJson = Annotated[bool, typer.Option("--json", help="Answer with JSON on stdout.")]


@app.command("init")
def init_command(
    bucket: Annotated[str, typer.Option("--bucket", help="Where clips and runs live.")],
    image: Annotated[str, typer.Option("--image", help="The container's address in your registry.")],
    subnets: Annotated[
        list[str], typer.Option("--subnet", help="One of each Availability Zone; may be repeated.")
    ],
    name: Name = "vsr",
    prefix: Annotated[str, typer.Option("--prefix", help="Jobs see what lies below it alone.")] = "vsr",
    region: Region = None,
    types: Annotated[
        list[str], typer.Option("--type", help="A GPU instance type; may be repeated. Six kinds by default.")
    ] = [],  # noqa: B006 - typer copies it
    max_vcpus: Annotated[
        int, typer.Option("--max-vcpus", help="The most vCPUs that each environment runs at a time.")
    ] = 128,
    disk_gib: Annotated[int, typer.Option("--disk-gib", help="The disk of each instance.")] = 100,
    capacity_wait_min: Annotated[
        int,
        typer.Option("--capacity-wait-min", help="Minutes that a job in NAME-spot waits for an instance."),
    ] = 30,
    is_plan: IsPlan = False,
    is_json: IsJson = False,
) -> None:
    """Create what AWS Batch needs, or update it. Nothing runs or costs anything until a job is submitted.

    \b
    vsr batch init --bucket films --image 123456789012.dkr.ecr.eu-west-1.amazonaws.com/vsr-hpc:1 \\
        --subnet subnet-0a --subnet subnet-0b --plan
    """
    from vsr_hpc.aws.batch.installation import init
    from vsr_hpc.aws.batch.resources import GPU_TYPES, BatchSettings
    from vsr_hpc.aws.steps import count_changes

    account = account_of(region)
    settings = BatchSettings(
        name=name,
        region=account.region,
        account=account.number(),
        bucket=bucket,
        prefix=prefix,
        subnets=tuple(subnets),
        image=image,
        gpu_types=tuple(types) or GPU_TYPES,
        max_vcpus=max_vcpus,
        disk_gib=disk_gib,
        capacity_wait_min=capacity_wait_min,
    )
    steps = init(settings, account, _tell, is_plan=is_plan)
    if is_json:
        answer_with_steps(steps, is_json)
    elif is_plan:
        typer.echo(f"{count_changes(steps)} of {len(steps)} things would be created or updated")
    else:
        typer.echo(f"{name} is ready in {account.region}: `vsr submit JOB.yaml --on aws-batch`")


@app.command("delete")
def delete_command(
    name: Name = "vsr",
    region: Region = None,
    is_plan: IsPlan = False,
    is_yes: IsYes = False,
    is_json: IsJson = False,
) -> None:
    """Remove everything that init made and jobs registered. Clips and runs in the bucket stay.

    \b
    vsr batch delete --plan
    """
    from vsr_hpc.aws.batch.removal import delete
    from vsr_hpc.aws.batch.status import open_jobs

    account = account_of(region)
    if not is_plan:
        waiting = open_jobs(name, account)
        busy = f" {waiting} jobs are waiting or running and end with it." if waiting else ""
        ask(f"delete all of {name} in {account.region}?{busy}", is_yes)
    steps = delete(name, account, _tell, is_plan=is_plan)
    if is_json:
        answer_with_steps(steps, is_json)
    elif not steps:
        typer.echo(f"nothing of {name} in {account.region}")
    else:
        typer.echo(f"{len(steps)} things {'would be' if is_plan else 'are'} deleted")


@app.command("status")
def status_command(name: Name = "vsr", region: Region = None, is_json: IsJson = False) -> None:
    """Show the environments, the queues and the jobs in them.

    \b
    vsr batch status
    """
    from vsr_hpc.aws.batch.status import state_of

    found = state_of(name, account_of(region))
    if is_json:
        _answer(asdict(found))
        return
    for environment in found.environments:
        health = f"{environment.state.lower()}, {environment.status.lower()}"
        why = f" ({environment.reason})" if environment.status == "INVALID" else ""
        typer.echo(
            f"environment {environment.name:<20} {environment.kind.lower():<5} {environment.vcpus_now} of "
            f"{environment.vcpus_most} vCPUs  {health}{why}"
        )
    for queue in found.queues:
        jobs = ", ".join(f"{count} {state.lower()}" for state, count in queue.jobs.items()) or "no jobs"
        order = " then ".join(queue.environments)
        typer.echo(f"queue       {queue.name:<20} priority {queue.priority:<3} {order}: {jobs}")


@app.command("worker", hidden=True)
def worker_command(
    run_uri: Annotated[str, typer.Argument(help="The run.")],
    after: Annotated[str | None, typer.Option("--after", help="A run that must be complete.")] = None,
    does_finish: Annotated[
        bool, typer.Option("--finish/--no-finish", help="Whether the last worker merges.")
    ] = True,
) -> None:
    """What a job of AWS Batch runs: one worker, whose exit code tells Batch whether to start it again."""
    import logging

    from vsr_hpc.executors.aws_batch.worker_task import work_here

    for handler in logging.getLogger().handlers:
        handler.setLevel(logging.INFO)
    raise typer.Exit(work_here(run_uri, does_finish=does_finish, after=after))


Source = Annotated[str, typer.Option("--input", help="The clip's address.")]
Template = Annotated[str, typer.Option("--template", help="The job's address.")]
Incoming = Annotated[str, typer.Option("--incoming", help="The prefix that clips come below.")]


@app.command("plan", hidden=True)
def plan_command(run_uri: str, source: Source, template: Template, incoming: Incoming) -> None:
    """A workflow's first step: the run and its plan."""
    from vsr_hpc.executors.aws_batch import workflow_steps as batch_workflow

    typer.echo(f"{batch_workflow.plan(run_uri, source, template, incoming)} workers")


@app.command("finish", hidden=True)
def finish_command(run_uri: str) -> None:
    """A workflow's step after the workers: the merge."""
    from vsr_hpc.executors.aws_batch import workflow_steps as batch_workflow

    typer.echo(batch_workflow.finish(run_uri).output)


@app.command("verify", hidden=True)
def verify_command(run_uri: str) -> None:
    """A workflow's step after the merge: the proof."""
    from vsr_hpc.executors.aws_batch import workflow_steps as batch_workflow

    for line in batch_workflow.verify_run(run_uri).lines():
        typer.echo(line)


@app.command("whole", hidden=True)
def whole_command(run_uri: str, source: Source, template: Template, incoming: Incoming) -> None:
    """A short clip from beginning to end in one job."""
    from vsr_hpc.executors.aws_batch import workflow_steps as batch_workflow

    raise typer.Exit(batch_workflow.whole(run_uri, source, template, incoming))


def _tell(line: str) -> None:
    typer.echo(line, err=True)


def _answer(found: Any) -> None:
    typer.echo(json.dumps(found, indent=1))
