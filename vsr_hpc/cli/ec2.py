"""`vsr ec2 …`: arguments in, one library call, text and exit code out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vsr_hpc.cli.answers import answer_with_steps
from vsr_hpc.errors import JobError

if TYPE_CHECKING:
    from vsr_hpc.aws.ec2.spec import Ec2Spec
    from vsr_hpc.job.spec import JobSpec


app = typer.Typer(
    help="A server, or workers of a run, as containers on plain EC2; Spot loss is made good.",
    no_args_is_help=True,
)

SpecFile = Annotated[Path, typer.Argument(metavar="EC2.yaml", help="What should run, and where.")]
Name = Annotated[str, typer.Argument(help="The name in its file.")]
IsJson = Annotated[bool, typer.Option("--json", help="Answer with JSON on stdout.")]


@app.command(no_args_is_help=True)
def up(
    spec: SpecFile,
    is_plan: Annotated[
        bool, typer.Option("--plan", help="Only say what would change, and its price.")
    ] = False,
    is_json: IsJson = False,
) -> None:
    """Start the instances as the file says, wait until they answer, and keep their number.

    \b
    vsr ec2 up jobs/ec2-server.yaml --plan
    """
    from vsr_hpc.aws.ec2 import fleet as ec2
    from vsr_hpc.aws.ec2.spec import load_ec2
    from vsr_hpc.system.aws_region import need_region

    wanted = load_ec2(spec)
    if is_plan:
        price = ec2.hourly(wanted, need_region())
        answer_with_steps(ec2.plan(wanted), is_json, {"price": price})
        if not is_json:
            typer.echo(price)
        return
    steps = ec2.up(wanted, _tell)
    if is_json:
        answer_with_steps(steps, is_json, ec2.status(wanted.name))
    else:
        _show(ec2.status(wanted.name))


@app.command(no_args_is_help=True)
def status(name: Name, is_json: IsJson = False) -> None:
    """Show the instances, their health, and how to reach them.

    \b
    vsr ec2 status film
    """
    from vsr_hpc.aws.ec2 import fleet as ec2

    found = ec2.status(name)
    _answer(found) if is_json else _show(found)


@app.command(no_args_is_help=True)
def down(name: Name, is_json: IsJson = False) -> None:
    """Terminate the instances and remove everything that was created for them, and nothing else.

    \b
    vsr ec2 down film
    """
    from vsr_hpc.aws.ec2 import fleet as ec2

    answer_with_steps(ec2.down(name, _tell), is_json)


@app.command(no_args_is_help=True)
def role(
    spec: SpecFile,
    whose: Annotated[str, typer.Option("--for", help="instance: its own role; you: yours.")] = "instance",
    is_trust: Annotated[bool, typer.Option("--trust", help="Who may take the role on, instead.")] = False,
) -> None:
    """Print the smallest IAM policy that the instances or you need for this file, as JSON.

    That of workers follows from their run, which is read.

    \b
    vsr ec2 role jobs/ec2-server.yaml > policy.json
    """
    from vsr_hpc.aws.ec2 import roles as ec2_roles
    from vsr_hpc.aws.ec2.spec import load_ec2

    wanted = load_ec2(spec)
    job = job_of(wanted) if whose == "instance" and not is_trust else None
    _answer(ec2_roles.document(wanted, whose, job=job, is_trust=is_trust))


@app.command(name="user-data", no_args_is_help=True)
def user_data(spec: SpecFile) -> None:
    """Print the script of an instance's first boot, for instances that you start in another way.

    \b
    vsr ec2 user-data jobs/ec2-server.yaml > boot.sh
    """
    from vsr_hpc.aws.ec2.spec import load_ec2
    from vsr_hpc.aws.ec2.spec import user_data as script
    from vsr_hpc.system.aws_region import need_region

    typer.echo(script(load_ec2(spec), need_region()), nl=False)


def _show(found: dict[str, Any]) -> None:
    for each in found["instances"]:
        typer.echo("  ".join(str(each[key]) for key in ("id", "type", "zone", "purchase", "state", "health")))
        typer.echo(f"  {each['url'] or each['session']}")
    if not found["instances"]:
        typer.echo(f"no instance, {found['wanted']} wanted")


def _answer(found: Any) -> None:
    typer.echo(json.dumps(found, indent=1, default=str))


def _tell(line: str) -> None:
    typer.echo(line, err=True)


def job_of(spec: Ec2Spec) -> JobSpec | None:
    """The job of the run that workers are for; None for a server."""
    from vsr_hpc.run.run import Run

    if spec.run is None:
        return None
    try:
        return Run.open(spec.run).job()
    except (JobError, ValueError) as exc:
        text = f"{spec.name}: what its workers may do follows from their run, which cannot be read: {exc}"
        raise JobError(text) from exc
