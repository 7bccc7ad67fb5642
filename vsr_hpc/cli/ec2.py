"""`vsr ec2`: a server, or workers of a run, as containers on plain EC2 instances."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vsr_hpc.cli.answers import IsJson, answer, answer_with_steps, note
from vsr_hpc.cli.completion import complete_files
from vsr_hpc.errors import JobError

if TYPE_CHECKING:
    from vsr_hpc.aws.ec2.spec import Ec2Spec
    from vsr_hpc.job.spec import JobSpec


class RoleOwner(StrEnum):
    instance = "instance"
    you = "you"


app = typer.Typer(
    help="Run a server, or workers of a run, as containers on EC2. A lost Spot instance is replaced.",
    no_args_is_help=True,
)

SpecFile = Annotated[
    Path,
    typer.Argument(
        metavar="EC2.yaml",
        help="The file that says what runs and where (`vsr init ec2-server`).",
        autocompletion=complete_files,
    ),
]
Name = Annotated[str, typer.Argument(help="The name that the file gives.")]


@app.command(no_args_is_help=True)
def up(
    spec: SpecFile,
    is_plan: Annotated[
        bool, typer.Option("--plan", help="Show what would change and what it costs; change nothing.")
    ] = False,
    is_json: IsJson = False,
) -> None:
    """Start the instances that the file describes, wait until they answer, and keep their number.

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
    steps = ec2.up(wanted, note)
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
    answer(found) if is_json else _show(found)


@app.command(no_args_is_help=True)
def down(name: Name, is_json: IsJson = False) -> None:
    """Terminate the instances and delete everything that vsr created for them, and nothing else.

    \b
    vsr ec2 down film
    """
    from vsr_hpc.aws.ec2 import fleet as ec2

    answer_with_steps(ec2.down(name, note), is_json)


@app.command(no_args_is_help=True)
def role(
    spec: SpecFile,
    whose: Annotated[
        RoleOwner, typer.Option("--for", help="Whose policy: the instances', or yours as their operator.")
    ] = RoleOwner.instance,
    is_trust: Annotated[
        bool, typer.Option("--trust", help="Print who may assume the role, instead.")
    ] = False,
) -> None:
    """Print the smallest IAM policy that the instances or you need for this file, as JSON.

    The policy of workers follows from their run, which this command reads.

    \b
    vsr ec2 role jobs/ec2-server.yaml > policy.json
    """
    from vsr_hpc.aws.ec2 import roles as ec2_roles
    from vsr_hpc.aws.ec2.spec import load_ec2

    wanted = load_ec2(spec)
    job = job_of(wanted) if whose is RoleOwner.instance and not is_trust else None
    answer(ec2_roles.document(wanted, whose.value, job=job, is_trust=is_trust))


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
        typer.echo(f"no instance runs; {found['wanted']} wanted")


def job_of(spec: Ec2Spec) -> JobSpec | None:
    """The job of the run that workers are for; None for a server."""
    from vsr_hpc.run.run import Run

    if spec.run is None:
        return None
    try:
        return Run.open(spec.run).job()
    except (JobError, ValueError) as exc:
        text = f"{spec.name}: the policy of its workers follows from their run, which cannot be read: {exc}"
        raise JobError(text) from exc
