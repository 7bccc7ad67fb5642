"""`vsr workflow …`: arguments in, one library call, text and exit code out."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vsr_hpc.cli.answers import account_of, account_to_render, answer_with_steps, ask

if TYPE_CHECKING:
    from vsr_hpc.aws.workflow.installation import Workflow
    from vsr_hpc.aws.workflow.state_machine import Kind


app = typer.Typer(
    help="Step Functions: upscale every clip that arrives in a bucket.",
    no_args_is_help=True,
)


class Pages(StrEnum):
    definition = "definition"
    pattern = "pattern"


Name = Annotated[str, typer.Option("--name", help="The installation that `vsr batch init` made.")]
Region = Annotated[
    str | None,
    typer.Option("--region", help="By default AWS_REGION, AWS_DEFAULT_REGION or the profile's region."),
]
Bucket = Annotated[str, typer.Option("--bucket", help="Where clips come to and go from.")]
Prefix = Annotated[str, typer.Option("--prefix", help="Below it lie incoming/, outgoing/, runs/, failures/.")]
IsExpress = Annotated[
    bool,
    typer.Option("--express", help="For clips up to five minutes in incoming-short/: one job, told at once."),
]
IsYes = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")]
IsJson = Annotated[bool, typer.Option("--json", help="Answer with JSON on stdout.")]
JobFile = Annotated[
    Path,
    typer.Argument(metavar="JOB.yaml", help="How every clip is done; only its output's suffix counts."),
]


@app.command(no_args_is_help=True)
def render(
    job_file: JobFile,
    bucket: Bucket,
    prefix: Prefix = "vsr",
    name: Name = "vsr",
    region: Region = None,
    is_express: IsExpress = False,
    page: Annotated[
        Pages, typer.Option("--page", help="The state machine, or the pattern of events that start it.")
    ] = Pages.definition,
) -> None:
    """Print the state machine in Amazon States Language. Creates nothing.

    \b
    vsr workflow render jobs/batch.yaml --bucket films
    """
    from vsr_hpc.aws.workflow import state_machine as workflow
    from vsr_hpc.aws.workflow.installation import expected_places

    flow = _flow(job_file, name, bucket, prefix, is_express)
    places = expected_places(flow, account_to_render(region))
    if page is Pages.pattern:
        typer.echo(json.dumps(workflow.event_pattern(places), indent=2))
    else:
        typer.echo(workflow.text(places), nl=False)


@app.command(no_args_is_help=True)
def create(
    job_file: JobFile,
    bucket: Bucket,
    prefix: Prefix = "vsr",
    name: Name = "vsr",
    region: Region = None,
    is_express: IsExpress = False,
    is_json: IsJson = False,
) -> None:
    """Create the workflow, or update it: state machine, roles, topic, and the rule that starts it.

    \b
    vsr workflow create jobs/batch.yaml --bucket films
    aws s3 cp clip.mp4 s3://films/vsr/incoming/clip.mp4
    """
    from vsr_hpc.aws.workflow.installation import create as make

    flow = _flow(job_file, name, bucket, prefix, is_express)
    machine = make(flow, account_of(region), lambda line: typer.echo(line, err=True))
    if is_json:
        _answer({"state_machine": machine})
    else:
        folder = "incoming-short" if is_express else "incoming"
        typer.echo(
            f"put a clip into s3://{bucket}/{prefix}/{folder}/, it comes to s3://{bucket}/{prefix}/outgoing/"
        )


@app.command(no_args_is_help=True)
def start(
    clip: Annotated[str, typer.Argument(metavar="S3_URI", help="A clip below incoming/.")],
    name: Name = "vsr",
    region: Region = None,
    is_express: IsExpress = False,
    is_json: IsJson = False,
) -> None:
    """Start an execution for a clip that lies in incoming/ already.

    \b
    vsr workflow start s3://films/vsr/incoming/clip.mp4
    """
    from vsr_hpc.aws.workflow import executions as workflow_runs

    _tell(workflow_runs.start(name, _kind(is_express), clip, account_of(region)), is_json)


@app.command(no_args_is_help=True)
def redrive(
    execution: Annotated[str, typer.Argument(help="A failed execution's name or ARN.")],
    name: Name = "vsr",
    region: Region = None,
    is_json: IsJson = False,
) -> None:
    """Continue an execution that failed; what its run has done is not done again.

    \b
    vsr workflow redrive 8a6e…
    """
    from vsr_hpc.aws.workflow import executions as workflow_runs

    _tell(workflow_runs.redrive(name, execution, account_of(region)), is_json)


@app.command()
def status(
    name: Name = "vsr", region: Region = None, is_express: IsExpress = False, is_json: IsJson = False
) -> None:
    """Show the latest executions, each with its clip and its run.

    \b
    vsr workflow status
    """
    from vsr_hpc.aws.workflow.executions import executions
    from vsr_hpc.errors import JobError

    if is_express:
        raise JobError("AWS keeps no list of express executions; `vsr batch status` shows their jobs")
    found = executions(name, _kind(is_express), account_of(region))
    if is_json:
        _answer([asdict(each) for each in found])
        return
    for each in found:
        why = f" ({each.error})" if each.error else ""
        typer.echo(f"{each.state:<10} {each.began}  {each.input}  {each.name}{why}")
    if not found:
        typer.echo("no execution yet", err=True)


@app.command()
def delete(
    name: Name = "vsr",
    region: Region = None,
    is_express: IsExpress = False,
    is_plan: Annotated[bool, typer.Option("--plan", help="Only say what would be done.")] = False,
    is_yes: IsYes = False,
    is_json: IsJson = False,
) -> None:
    """Remove the state machine, its rule, roles and topic. Clips, runs and results stay.

    \b
    vsr workflow delete --plan
    """
    from vsr_hpc.aws.workflow import installation as workflow_life

    account, kind = account_of(region), _kind(is_express)
    if not is_plan:
        ask(f"delete {workflow_life.machine_name(name, kind)} in {account.region}?", is_yes)
    steps = workflow_life.delete(
        name, kind, account, lambda line: typer.echo(line, err=True), is_plan=is_plan
    )
    if is_json:
        answer_with_steps(steps, is_json)
    else:
        typer.echo(f"{len(steps)} things {'would be' if is_plan else 'are'} deleted")


def _flow(job_file: Path, name: str, bucket: str, prefix: str, is_express: bool) -> Workflow:
    from vsr_hpc.aws.workflow.installation import Workflow
    from vsr_hpc.job.reading import load_job

    return Workflow(
        name=name, bucket=bucket, prefix=prefix.strip("/"), job=load_job(job_file), kind=_kind(is_express)
    )


def _kind(is_express: bool) -> Kind:
    return "express" if is_express else "standard"


def _tell(found: Any, is_json: bool) -> None:
    if is_json:
        _answer(asdict(found))
    else:
        typer.echo(f"{found.state}: {found.name}")
        typer.echo(f"vsr status {found.run} --watch   shows its run", err=True)


def _answer(found: Any) -> None:
    typer.echo(json.dumps(found, indent=1))
