"""`vsr cluster` and `vsr storage`: a Spot GPU cluster by AWS ParallelCluster, and the bucket of its runs."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from vsr_hpc.cli.answers import IsJson, IsYes, answer, ask, note
from vsr_hpc.cli.completion import complete_models
from vsr_hpc.errors import JobError
from vsr_hpc.wording import plural


class Flavour(StrEnum):
    gpu = "gpu"
    cpu = "cpu"
    both = "both"


def _complete(incomplete: str) -> list[str]:
    return [name for name in ("spot-gpu", "dev", "spot-gpu-fsx") if name.startswith(incomplete)]


app = typer.Typer(
    help="Check, create, update and delete a Spot GPU cluster with AWS ParallelCluster.", no_args_is_help=True
)
storage_app = typer.Typer(help="Create the S3 bucket in which runs keep their files.", no_args_is_help=True)

Template = Annotated[
    str,
    typer.Argument(
        help="A template (spot-gpu, dev, spot-gpu-fsx), or a file of yours.", autocompletion=_complete
    ),
]
ValuesFile = Annotated[
    Path | None,
    typer.Option(
        "--values", "-f", metavar="FILE", help="Your values for the template. values.yaml here, by default."
    ),
]
Setting = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one value. May be repeated."),
]
Name = Annotated[
    str | None, typer.Option("--name", metavar="NAME", help="The cluster. By default the one in the values.")
]
Region = Annotated[
    str | None,
    typer.Option("--region", metavar="REGION", help="Its region. By default the one in the values."),
]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        help="A model whose tiles must fit the memory of every GPU.",
        autocompletion=complete_models,
    ),
]


@app.command()
def setup(
    into: Annotated[
        Path | None,
        typer.Option(
            "--into", metavar="FOLDER", help="Where to install it. By default below ~/.local/share."
        ),
    ] = None,
) -> None:
    """Install ParallelCluster into a Python environment of its own (190 MB). Safe to repeat.

    \b
    vsr cluster setup
    """
    from vsr_hpc.aws.cluster import pcluster

    tool = pcluster.setup(into, note)
    typer.echo(str(tool.executable))


@app.command()
def render(
    template: Template = "spot-gpu",
    values: ValuesFile = None,
    settings: Setting = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write to this file instead of stdout.")
    ] = None,
) -> None:
    """Fill in a template with your values and print it. Needs no AWS account.

    \b
    vsr cluster render spot-gpu --values values.yaml -o cluster.yaml
    """
    from vsr_hpc.aws.cluster.check import load, to_file

    rendered = load(template, _values(values, settings))
    if out is None:
        typer.echo(rendered.text, nl=False)
    else:
        to_file(rendered, out)


@app.command()
def check(
    template: Template = "spot-gpu",
    values: ValuesFile = None,
    settings: Setting = None,
    model: Model = "",
    offline: Annotated[bool, typer.Option("--offline", help="Do not ask the AWS account.")] = False,
    is_json: IsJson = False,
) -> None:
    """Report everything that is wrong with a configuration, and what the cluster costs.

    Exit code 0: nothing found, 1: warnings, 2: errors.

    \b
    vsr cluster check spot-gpu --values values.yaml
    vsr cluster check cluster.yaml
    """
    from vsr_hpc.aws.cluster.bill import lines
    from vsr_hpc.aws.cluster.check import check_named

    found = _values_if_any(template, values, settings)
    report = check_named(template, found, model=model, ask_account=False if offline else None)
    if is_json:
        answer(report.as_json())
    else:
        for finding in report.findings:
            typer.echo(str(finding))
        for line in lines(report.bill):
            typer.echo(line)
    raise typer.Exit(report.exit_code)


@app.command()
def create(
    template: Template = "spot-gpu",
    values: ValuesFile = None,
    settings: Setting = None,
    is_yes: IsYes = False,
    is_json: IsJson = False,
) -> None:
    """Check the configuration, create the cluster, wait for it, and print how to submit the first job.

    \b
    vsr cluster create spot-gpu --values values.yaml
    """
    from vsr_hpc.aws.cluster import lifecycle

    found = _values(values, settings)
    lifecycle.check_ready(found)
    ask(f"create cluster {found.name} in {found.region}? It costs money until it is deleted", is_yes)
    state = lifecycle.create(template, found, note)
    if is_json:
        answer(asdict(state))
    else:
        typer.echo(lifecycle.first_job_line(state, found))


@app.command()
def update(
    template: Template = "spot-gpu",
    values: ValuesFile = None,
    settings: Setting = None,
    is_yes: IsYes = False,
    is_json: IsJson = False,
) -> None:
    """Change a running cluster to a changed configuration. Prints what changes.

    \b
    vsr cluster update spot-gpu --values values.yaml --set spot_nodes=40
    """
    from vsr_hpc.aws.cluster import lifecycle

    found = _values(values, settings)
    lifecycle.check_ready(found)
    ask(f"update cluster {found.name} in {found.region}?", is_yes)
    state = lifecycle.update(template, found, note)
    if is_json:
        answer(asdict(state) if state else None)


@app.command()
def status(
    name: Name = None,
    region: Region = None,
    values: ValuesFile = None,
    settings: Setting = None,
    is_json: IsJson = False,
) -> None:
    """Show the state of a cluster: its stack, compute fleet, head node and compute nodes.

    \b
    vsr cluster status --values values.yaml
    """
    from vsr_hpc.aws.cluster import lifecycle

    state = lifecycle.status(*_which(name, region, values, settings))
    if is_json:
        answer(asdict(state))
    else:
        typer.echo(
            f"{state.name} in {state.region}: {state.status}, fleet {state.fleet}, head node "
            f"{state.head_address or 'unknown'}, {plural(state.compute_nodes, 'compute node')}, "
            f"ParallelCluster {state.version}"
        )


@app.command()
def stop(
    name: Name = None, region: Region = None, values: ValuesFile = None, settings: Setting = None
) -> None:
    """Stop the compute fleet: its nodes end and no new one starts. The head node goes on.

    \b
    vsr cluster stop --values values.yaml
    """
    from vsr_hpc.aws.cluster import lifecycle

    typer.echo(lifecycle.set_fleet(*_which(name, region, values, settings), is_running=False))


@app.command()
def start(
    name: Name = None, region: Region = None, values: ValuesFile = None, settings: Setting = None
) -> None:
    """Start the compute fleet again.

    \b
    vsr cluster start --values values.yaml
    """
    from vsr_hpc.aws.cluster import lifecycle

    typer.echo(lifecycle.set_fleet(*_which(name, region, values, settings), is_running=True))


@app.command()
def delete(
    name: Name = None,
    region: Region = None,
    values: ValuesFile = None,
    settings: Setting = None,
    is_forced: Annotated[bool, typer.Option("--force", help="Delete even while runs are active.")] = False,
    is_yes: IsYes = False,
) -> None:
    """Delete a cluster. Refused while runs are active. The bucket stays.

    \b
    vsr cluster delete --values values.yaml
    """
    from vsr_hpc.aws.cluster import lifecycle

    found = _values(values, settings) if values or Path("values.yaml").is_file() else None
    cluster, place = _which(name, region, values, settings)
    lifecycle.check_credentials(place)
    ask(f"delete cluster {cluster} in {place}?", is_yes)
    store = (found.bucket, found.prefix) if found else None
    lifecycle.delete(cluster, place, note, store=store, is_forced=is_forced)


@app.command()
def pack(
    values: ValuesFile = None,
    settings: Setting = None,
    flavour: Annotated[
        Flavour, typer.Option("--flavour", help="For which kind of nodes the environment is.")
    ] = Flavour.both,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME",
            help="A model whose weights are uploaded, too. May be repeated.",
            autocompletion=complete_models,
        ),
    ] = None,
    python: Annotated[
        str, typer.Option("--python", metavar="VERSION", help="Version of Python in the nodes' image.")
    ] = "3.12",
) -> None:
    """Build the Python environment that nodes unpack, and upload it with boot scripts and weights.

    \b
    vsr cluster pack --values values.yaml --model realesr-animevideov3
    """
    from vsr_hpc.aws.cluster import node_environment as packing

    found = _values(values, settings)
    place = (found.bucket, found.prefix, found.region)
    packing.upload_bootstrap(*place, note)
    packing.upload_weights(tuple(model or ()), *place, note)
    for each in packing.flavours(flavour.value):
        with packing.pack(each, note, python=python) as packed:
            typer.echo(packing.upload(packed, *place, note))


@storage_app.callback()
def _storage() -> None:
    """Keep `init` a command of a group, though it is the only one."""


@storage_app.command("init")
def storage_init(
    bucket: Annotated[str, typer.Argument(help="The bucket's name, without s3://.")],
    region: Annotated[
        str, typer.Option("--region", metavar="REGION", help="The region of the bucket and of the cluster.")
    ],
    prefix: Annotated[
        str, typer.Option("--prefix", metavar="PREFIX", help="Prefix of all that vsr keeps in the bucket.")
    ] = "vsr",
    with_container: Annotated[
        bool, typer.Option("--with-container", help="Let nodes pull the image vsr-hpc from ECR, too.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done; do nothing.")] = False,
    is_yes: IsYes = False,
) -> None:
    """Create a private, encrypted bucket and the IAM policy of nodes. Shows its steps first. Safe to repeat.

    \b
    vsr storage init my-vsr-bucket --region us-east-1
    """
    from vsr_hpc.aws import bucket as storage
    from vsr_hpc.aws.account import account_number, client

    account = "ACCOUNT" if dry_run else account_number(client("sts", region))
    place = storage.validate_location(bucket, prefix, region, account)
    for step in storage.plan_storage(place, with_container=with_container):
        typer.echo(f"will {step}", err=True)
    if dry_run:
        return
    ask("do these steps?", is_yes)
    storage.init(place, note, with_container=with_container)
    typer.echo(f"region: {region}\nbucket: {bucket}\nprefix: {prefix}\nnode_policy_arn: {place.policy_arn}")


def _values(path: Path | None, settings: list[str] | None) -> Any:
    import yaml

    from vsr_hpc.aws.cluster.values import load_values

    chosen = path or (Path("values.yaml") if Path("values.yaml").is_file() else None)
    overrides: dict[str, Any] = {}
    for each in settings or ():
        key, is_pair, value = each.partition("=")
        if not is_pair:
            raise JobError(f"--set {each}: expected name=value")
        overrides[key.strip()] = yaml.safe_load(value)
    return load_values(chosen, overrides)


def _values_if_any(template: str, path: Path | None, settings: list[str] | None) -> Any:
    """The values for a template; None for a finished configuration, or where no values are given."""
    given = path is not None or settings or Path("values.yaml").is_file()
    is_file = Path(template).is_file() and "${" not in Path(template).read_text("utf-8")
    return None if is_file or not given else _values(path, settings)


def _which(
    name: str | None, region: str | None, values: Path | None, settings: list[str] | None
) -> tuple[str, str]:
    if name and region:
        return name, region
    if values is None and not settings and not Path("values.yaml").is_file():
        raise JobError("no cluster is named; give --name and --region, or --values")
    found = _values(values, settings)
    return name or found.name, region or found.region
