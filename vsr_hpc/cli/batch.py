"""`vsr batch`: the queues, roles and instances of AWS Batch, and the steps that its jobs run."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from vsr_hpc.cli.answers import IsJson, IsYes, Region, account_of, answer, answer_with_steps, ask, note
from vsr_hpc.wording import plural

app = typer.Typer(help="Set up AWS Batch: queues, roles and instances; show its jobs.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Name of the installation; `batch.name` of a job file.")]
IsPlan = Annotated[bool, typer.Option("--plan", help="Show what would be done; do nothing.")]


@app.command("init")
def init_command(
    bucket: Annotated[
        str, typer.Option("--bucket", metavar="BUCKET", help="The S3 bucket of clips and runs.")
    ],
    image: Annotated[
        str, typer.Option("--image", metavar="ADDRESS", help="The container image in your registry.")
    ],
    subnets: Annotated[
        list[str],
        typer.Option(
            "--subnet", metavar="SUBNET", help="A subnet; one of each Availability Zone. May be repeated."
        ),
    ],
    name: Name = "vsr",
    prefix: Annotated[
        str,
        typer.Option("--prefix", metavar="PREFIX", help="The only prefix of the bucket that jobs can use."),
    ] = "vsr",
    region: Region = None,
    types: Annotated[
        list[str],
        typer.Option(
            "--type", metavar="TYPE", help="A GPU instance type. May be repeated. Six types by default."
        ),
    ] = [],  # noqa: B006 - typer copies it
    max_vcpus: Annotated[
        int, typer.Option("--max-vcpus", metavar="N", help="Most vCPUs of each compute environment.")
    ] = 128,
    disk_gib: Annotated[
        int, typer.Option("--disk-gib", metavar="N", help="Size of each instance's disk, in GiB.")
    ] = 100,
    capacity_wait_min: Annotated[
        int,
        typer.Option(
            "--capacity-wait-min",
            metavar="N",
            help="Minutes that a job in the queue NAME-spot waits for an instance.",
        ),
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
    steps = init(settings, account, note, is_plan=is_plan)
    if is_json:
        answer_with_steps(steps, is_json)
    elif is_plan:
        typer.echo(f"{count_changes(steps)} of {plural(len(steps), 'resource')} would be created or updated")
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
    """Delete all that `vsr batch init` created and jobs registered. Clips and runs in the bucket stay.

    \b
    vsr batch delete --plan
    """
    from vsr_hpc.aws.batch.removal import delete
    from vsr_hpc.aws.batch.status import open_jobs

    account = account_of(region)
    if not is_plan:
        waiting = open_jobs(name, account)
        busy = f" {plural(waiting, 'job')} that wait or run will end." if waiting else ""
        ask(f"delete the installation {name} in {account.region}?{busy}", is_yes)
    steps = delete(name, account, note, is_plan=is_plan)
    if is_json:
        answer_with_steps(steps, is_json)
    elif not steps:
        typer.echo(f"there is nothing of {name} in {account.region}")
    else:
        typer.echo(f"{plural(len(steps), 'resource')} {'would be deleted' if is_plan else 'deleted'}")


@app.command("status")
def status_command(name: Name = "vsr", region: Region = None, is_json: IsJson = False) -> None:
    """Show the environments, the queues and the jobs in them.

    \b
    vsr batch status
    """
    from vsr_hpc.aws.batch.status import state_of

    found = state_of(name, account_of(region))
    if is_json:
        answer(asdict(found))
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
    after: Annotated[
        str | None, typer.Option("--after", help="A run that must be complete before this one begins.")
    ] = None,
    does_finish: Annotated[
        bool, typer.Option("--finish/--no-finish", help="Whether the last worker merges.")
    ] = True,
) -> None:
    """Run one worker of a job of AWS Batch; its exit code tells Batch whether to start it again."""
    import logging

    from vsr_hpc.executors.aws_batch.worker_task import work_here

    for handler in logging.getLogger().handlers:
        handler.setLevel(logging.INFO)
    raise typer.Exit(work_here(run_uri, does_finish=does_finish, after=after))


Source = Annotated[str, typer.Option("--input", help="The clip's S3 address.")]
Template = Annotated[str, typer.Option("--template", help="The job file's S3 address.")]
Incoming = Annotated[str, typer.Option("--incoming", help="The prefix under which clips arrive.")]


@app.command("plan", hidden=True)
def plan_command(run_uri: str, source: Source, template: Template, incoming: Incoming) -> None:
    """Make the run and its plan: the first step of a workflow."""
    from vsr_hpc.executors.aws_batch import workflow_steps as batch_workflow

    typer.echo(f"{batch_workflow.plan(run_uri, source, template, incoming)} workers")


@app.command("finish", hidden=True)
def finish_command(run_uri: str) -> None:
    """Merge the run: the step of a workflow after its workers."""
    from vsr_hpc.executors.aws_batch import workflow_steps as batch_workflow

    typer.echo(batch_workflow.finish(run_uri).output)


@app.command("verify", hidden=True)
def verify_command(run_uri: str) -> None:
    """Verify the output: the step of a workflow after the merge."""
    from vsr_hpc.executors.aws_batch import workflow_steps as batch_workflow

    for line in batch_workflow.verify_run(run_uri).lines():
        typer.echo(line)


@app.command("whole", hidden=True)
def whole_command(run_uri: str, source: Source, template: Template, incoming: Incoming) -> None:
    """Upscale a short clip from beginning to end in one job."""
    from vsr_hpc.executors.aws_batch import workflow_steps as batch_workflow

    raise typer.Exit(batch_workflow.whole(run_uri, source, template, incoming))
