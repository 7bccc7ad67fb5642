"""`vsr cluster …` and `vsr storage …`: arguments in, one library call, text and exit code out."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from vsr_hpc.cli.answers import ask
from vsr_hpc.errors import JobError

app = typer.Typer(help="A Spot GPU cluster by AWS ParallelCluster, checked first.", no_args_is_help=True)
storage_app = typer.Typer(help="The S3 bucket that runs live in.", no_args_is_help=True)

Template = Annotated[str, typer.Argument(help="spot-gpu, dev, spot-gpu-fsx, or a file.")]
ValuesFile = Annotated[
    Path | None, typer.Option("--values", "-f", help="Your values; values.yaml where there is one.")
]
Setting = Annotated[
    list[str] | None,
    typer.Option("--set", help="One value, over the file's: --set region=eu-west-1"),
]
IsJson = Annotated[bool, typer.Option("--json", help="Answer with JSON on stdout.")]
IsYes = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")]
Name = Annotated[str | None, typer.Option("--name", help="The cluster; the values file's where left out.")]
Region = Annotated[str | None, typer.Option("--region", help="Its region; the values file's where left out.")]
Model = Annotated[str, typer.Option("--model", "-m", help="A model that every GPU must hold.")]


@app.command()
def setup(
    into: Annotated[
        Path | None, typer.Option("--into", help="Where; below ~/.local/share otherwise.")
    ] = None,
) -> None:
    """Install ParallelCluster into an environment of its own (190 MB); nothing is done twice.

    \b
    vsr cluster setup
    """
    from vsr_hpc.aws.cluster import pcluster

    tool = pcluster.setup(into, _tell)
    typer.echo(str(tool.executable))


@app.command()
def render(
    template: Template = "spot-gpu",
    values: ValuesFile = None,
    settings: Setting = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A file; stdout where left out.")] = None,
) -> None:
    """Fill a template in with your values.

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
    offline: Annotated[bool, typer.Option("--offline", help="Don't ask the account.")] = False,
    is_json: IsJson = False,
) -> None:
    """Everything wrong with a configuration, and what it costs. Exit code 0 clean, 1 warnings, 2 errors.

    \b
    vsr cluster check spot-gpu --values values.yaml
    vsr cluster check cluster.yaml
    """
    from vsr_hpc.aws.cluster.bill import lines
    from vsr_hpc.aws.cluster.check import check_named

    found = _values_if_any(template, values, settings)
    report = check_named(template, found, model=model, ask_account=False if offline else None)
    if is_json:
        _answer(report.as_json())
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
    """Check, dry run, set the budget, create, wait until it stands; prints the line for the first job.

    \b
    vsr cluster create spot-gpu --values values.yaml
    """
    from vsr_hpc.aws.cluster import lifecycle

    found = _values(values, settings)
    lifecycle.check_ready(found)
    ask(f"create cluster {found.name} in {found.region}? It costs money until it is deleted", is_yes)
    state = lifecycle.create(template, found, _tell)
    if is_json:
        _answer(asdict(state))
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
    """Bring a running cluster to a changed configuration; says what changes.

    \b
    vsr cluster update spot-gpu --values values.yaml --set spot_nodes=40
    """
    from vsr_hpc.aws.cluster import lifecycle

    found = _values(values, settings)
    lifecycle.check_ready(found)
    ask(f"update cluster {found.name} in {found.region}?", is_yes)
    state = lifecycle.update(template, found, _tell)
    if is_json:
        _answer(asdict(state) if state else None)


@app.command()
def status(
    name: Name = None,
    region: Region = None,
    values: ValuesFile = None,
    settings: Setting = None,
    is_json: IsJson = False,
) -> None:
    """What a cluster is doing: its state, its fleet, its head node, its nodes.

    \b
    vsr cluster status --values values.yaml
    """
    from vsr_hpc.aws.cluster import lifecycle

    state = lifecycle.status(*_which(name, region, values, settings))
    if is_json:
        _answer(asdict(state))
    else:
        typer.echo(
            f"{state.name} in {state.region}: {state.status}, fleet {state.fleet}, head node "
            f"{state.head_address or 'unknown'}, {state.compute_nodes} compute node(s), {state.version}"
        )


@app.command()
def stop(
    name: Name = None, region: Region = None, values: ValuesFile = None, settings: Setting = None
) -> None:
    """Stop the compute fleet: no node runs or starts; the head node stays.

    \b
    vsr cluster stop --values values.yaml
    """
    from vsr_hpc.aws.cluster import lifecycle

    typer.echo(lifecycle.set_fleet(*_which(name, region, values, settings), is_running=False))


@app.command()
def start(
    name: Name = None, region: Region = None, values: ValuesFile = None, settings: Setting = None
) -> None:
    """Let the compute fleet run again.

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
    is_forced: Annotated[bool, typer.Option("--force", help="Even while runs are active.")] = False,
    is_yes: IsYes = False,
) -> None:
    """Delete a cluster; refused while runs are active. The bucket stays.

    \b
    vsr cluster delete --values values.yaml
    """
    from vsr_hpc.aws.cluster import lifecycle

    found = _values(values, settings) if values or Path("values.yaml").is_file() else None
    cluster, place = _which(name, region, values, settings)
    lifecycle.check_credentials(place)
    ask(f"delete cluster {cluster} in {place}?", is_yes)
    store = (found.bucket, found.prefix) if found else None
    lifecycle.delete(cluster, place, _tell, store=store, is_forced=is_forced)


@app.command()
def pack(
    values: ValuesFile = None,
    settings: Setting = None,
    flavour: Annotated[str, typer.Option("--flavour", help="gpu, cpu, or both.")] = "both",
    model: Annotated[list[str] | None, typer.Option("--model", "-m", help="Weights to bring along.")] = None,
    python: Annotated[str, typer.Option("--python", help="The image's Python.")] = "3.12",
) -> None:
    """Build the environment that nodes unpack, and upload it with scripts and weights.

    \b
    vsr cluster pack --values values.yaml --model realesr-animevideov3
    """
    from vsr_hpc.aws.cluster import node_environment as packing

    found = _values(values, settings)
    place = (found.bucket, found.prefix, found.region)
    packing.upload_bootstrap(*place, _tell)
    packing.upload_weights(tuple(model or ()), *place, _tell)
    for each in packing.flavours(flavour):
        with packing.pack(each, _tell, python=python) as packed:
            typer.echo(packing.upload(packed, *place, _tell))


@storage_app.callback()
def _storage() -> None:
    """A group even while it has one command."""


@storage_app.command("init")
def storage_init(
    bucket: Annotated[str, typer.Argument(help="Its name, without s3://.")],
    region: Annotated[str, typer.Option("--region", help="Where the cluster will be, too.")],
    prefix: Annotated[str, typer.Option("--prefix", help="Everything of ours lies below this.")] = "vsr",
    with_container: Annotated[
        bool, typer.Option("--with-container", help="Nodes may also pull the image vsr-hpc from ECR.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    is_yes: IsYes = False,
) -> None:
    """Make a closed, encrypted bucket and the policy for nodes. Says what it will do first; may be repeated.

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
    ask("go on?", is_yes)
    storage.init(place, _tell, with_container=with_container)
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
    """A finished file needs no values; a template does."""
    given = path is not None or settings or Path("values.yaml").is_file()
    is_file = Path(template).is_file() and "${" not in Path(template).read_text("utf-8")
    return None if is_file or not given else _values(path, settings)


def _which(
    name: str | None, region: str | None, values: Path | None, settings: list[str] | None
) -> tuple[str, str]:
    if name and region:
        return name, region
    if values is None and not settings and not Path("values.yaml").is_file():
        raise JobError("which cluster? give --name and --region, or --values")
    found = _values(values, settings)
    return name or found.name, region or found.region


def _tell(line: str) -> None:
    typer.echo(line, err=True)


def _answer(found: Any) -> None:
    typer.echo(json.dumps(found, indent=1, default=str))
