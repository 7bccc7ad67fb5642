"""`vsr plan` and `vsr prices`: time and cost of a job or a service, before anything is started."""

from __future__ import annotations

import json
import re
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vsr_hpc.cli.answers import IsJson, IsJsonOfJob
from vsr_hpc.cli.completion import complete_files
from vsr_hpc.cli.job_options import given_options, read_job
from vsr_hpc.errors import JobError

if TYPE_CHECKING:
    from vsr_hpc.job.spec import JobSpec


_CHOICE, _SERVE = "Time and cost", "With --serve"

prices_app = typer.Typer(
    help="Prices of AWS machines: show the table in use, or ask AWS.", no_args_is_help=True
)


class Shape(StrEnum):
    steady = "steady"
    variable = "variable"
    intermittent = "intermittent"
    scheduled = "scheduled"


class Priority(StrEnum):
    balanced = "balanced"
    managed = "managed"
    cost = "cost"
    control = "control"


Region = Annotated[
    str,
    typer.Option(
        "--region",
        envvar=["AWS_REGION", "AWS_DEFAULT_REGION"],
        help="AWS region of the prices.",
        show_envvar=False,
        rich_help_panel=_CHOICE,
    ),
]


def plan(
    context: typer.Context,
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="JOB.yaml | IN OUT",
            help="A job file, or an input and an output. Neither with --serve.",
            autocompletion=complete_files,
        ),
    ] = None,
    deadline: Annotated[
        str | None,
        typer.Option(
            "--deadline",
            help="Recommend a place that finishes within this time: 90s, 30m, 2h, 1d.",
            rich_help_panel=_CHOICE,
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            "--budget",
            min=0,
            help="Recommend a place that costs at most this many dollars; a month with --serve.",
            rich_help_panel=_CHOICE,
        ),
    ] = None,
    region: Region = "us-east-1",
    shows_aws: Annotated[
        bool,
        typer.Option(
            "--aws",
            help="Show AWS and its prices on a Slurm cluster of your own, too.",
            rich_help_panel=_CHOICE,
        ),
    ] = False,
    serve: Annotated[
        bool,
        typer.Option(
            "--serve", help="Compare ways of serving requests, instead of a job.", rich_help_panel=_SERVE
        ),
    ] = False,
    latency: Annotated[
        str, typer.Option("--latency", help="How long a caller can wait.", rich_help_panel=_SERVE)
    ] = "1s",
    payload: Annotated[
        str, typer.Option("--payload", help="Size of a request: 500KB, 2MB.", rich_help_panel=_SERVE)
    ] = "1MB",
    answer: Annotated[
        str | None,
        typer.Option(
            "--answer", help="Size of an answer. From picture and scale if left out.", rich_help_panel=_SERVE
        ),
    ] = None,
    requests: Annotated[
        str,
        typer.Option(
            "--requests", help="How many requests: 1000/day, 5/s, 200000/month.", rich_help_panel=_SERVE
        ),
    ] = "1000/day",
    traffic: Annotated[
        Shape,
        typer.Option(
            "--traffic",
            help="How requests arrive. scheduled: whole sets at set times.",
            rich_help_panel=_SERVE,
        ),
    ] = Shape.steady,
    priority: Annotated[
        Priority, typer.Option("--priority", help="What matters most.", rich_help_panel=_SERVE)
    ] = Priority.balanced,
    picture: Annotated[
        str, typer.Option("--picture", help="Size of a frame in a request.", rich_help_panel=_SERVE)
    ] = "640x360",
    pictures: Annotated[
        int, typer.Option("--pictures", min=1, help="Frames in a request.", rich_help_panel=_SERVE)
    ] = 1,
    instance: Annotated[
        str, typer.Option("--instance", help="The instance type that serves.", rich_help_panel=_SERVE)
    ] = "g5.xlarge",
    is_json: IsJsonOfJob = False,
) -> None:
    """Check a job against its clip, model and disk; estimate time and cost here and on AWS. Starts nothing.

    --deadline and --budget recommend a place and a number of workers. --serve compares ways of serving.

    \b
    vsr plan jobs/film.yaml
    vsr plan in.mkv out.mkv --model realesr-animevideov3 --deadline 2h --budget 5
    vsr plan --serve --model realesr-animevideov3 --latency 1s --payload 500KB --requests 10000/day
    """
    given = given_options(context)
    if serve:
        if paths:
            raise JobError("--serve plans a service for a model and takes no job; leave JOB, IN and OUT out")
        wanted = _service_wish(
            given,
            latency,
            payload,
            answer,
            requests,
            traffic.value,
            priority.value,
            picture,
            pictures,
            budget,
        )
        _show_placement(wanted, instance, region, is_json=is_json)
        return
    if not paths:
        raise JobError("name a job file, or an input and an output; --serve plans a service instead")
    show_plan(
        read_job(paths, given),
        deadline_s=None if deadline is None else seconds(deadline, "--deadline"),
        budget_usd=budget,
        region=region,
        shows_aws=shows_aws,
        is_json=is_json,
    )


def show_plan(
    job: JobSpec,
    *,
    is_json: bool,
    deadline_s: float | None = None,
    budget_usd: float | None = None,
    region: str = "us-east-1",
    shows_aws: bool = False,
) -> None:
    """Print the forecast of a job."""
    from vsr_hpc.cli.plan_text import forecast_document, forecast_lines
    from vsr_hpc.forecast.forecast import forecast

    found = forecast(job, region=region, deadline_s=deadline_s, budget_usd=budget_usd, shows_aws=shows_aws)
    if is_json:
        answer = json.loads(found.plan.to_json()) | {"estimate": forecast_document(found)}
        typer.echo(json.dumps(answer, indent=1))
        return
    for line in forecast_lines(found):
        typer.echo(line)


def seconds(text: str, option: str) -> float:
    """The seconds in 90s, 30m, 2h or 1.5d; a number alone is seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|min|h|d)?", text.strip())
    if not match or float(match[1]) <= 0:
        raise JobError(f"{option} {text!r} is not a length of time; write 90s, 30m, 2h or 1d")
    units = {"ms": 1e-3, "s": 1, None: 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
    return float(match[1]) * units[match[2]]


def size_bytes(text: str, option: str) -> int:
    """The bytes in 500KB, 2MB, 1.5GB or 4MiB; a number alone is bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgKMG]?)(i?)[bB]?", text.strip())
    if not match:
        raise JobError(f"{option} {text!r} is not a size; write 500KB, 2MB or 1GB")
    power = {"": 0, "k": 1, "m": 2, "g": 3}[match[2].lower()]
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


def per_day(text: str) -> float:
    """The requests a day in 1000/day, 5/s, 60/min or 200000/month."""
    match = re.fullmatch(
        r"(\d+(?:\.\d+)?)\s*(?:/|per )\s*(s|second|min|minute|h|hour|day|d|month)", text.strip()
    )
    if not match:
        raise JobError(f"--requests {text!r}: write 1000/day, 5/s or 200000/month")
    unit = match[2]
    factor = {"s": 86400, "m": 1440, "h": 24, "d": 1}[unit[0]] if unit != "month" else 12 / 365
    return float(match[1]) * factor


def _service_wish(
    given: dict[str, Any],
    latency: str,
    payload: str,
    answer: str | None,
    requests: str,
    traffic: str,
    priority: str,
    picture: str,
    pictures: int,
    budget: float | None,
) -> dict[str, Any]:
    """What a service must do, as plain values. Raises JobError for a value that has no meaning."""
    from vsr_hpc.job.options import spell_option

    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", picture)
    if not match:
        raise JobError(f"--picture {picture!r} is not a size; write 640x360")
    others = sorted(set(given) - {"model"})
    if others:
        named = ", ".join(map(spell_option, others))
        raise JobError(
            f"{named}: has no meaning for a service; --serve takes --model and its own options only"
        )
    return {
        "model": given.get("model"),
        "latency_s": seconds(latency, "--latency"),
        "payload_bytes": size_bytes(payload, "--payload"),
        "answer_bytes": None if answer is None else size_bytes(answer, "--answer"),
        "requests_per_day": per_day(requests),
        "shape": traffic,
        "priority": priority,
        "width": int(match[1]),
        "height": int(match[2]),
        "frames": pictures,
        "budget_usd": budget,
    }


def _show_placement(wanted: dict[str, Any], instance: str, region: str, *, is_json: bool) -> None:
    from vsr_hpc.cli.plan_text import placement_document, placement_lines
    from vsr_hpc.forecast.serving_forecast import plan_service

    found = plan_service(**wanted, instance=instance, region=region)
    if is_json:
        typer.echo(json.dumps(placement_document(found.placement, found.traffic, found.instance), indent=1))
        return
    for line in placement_lines(found.placement, found.traffic, found.instance, found.source, found.prices):
        typer.echo(line)


# Prices ----------------------------------------------------------------------------------------------------
@prices_app.command("show")
def prices_show(
    types: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TYPE]...", help="Instance types. The usual ones if left out."),
    ] = None,
    region: Region = "us-east-1",
    is_json: IsJson = False,
) -> None:
    """Show the price of an hour as Spot, on demand and from SageMaker, from the prices in use.

    \b
    vsr prices show g5.xlarge g6.xlarge --region eu-west-1
    """
    from vsr_hpc.aws.instances import find_instance
    from vsr_hpc.aws.prices import PURCHASES, check_region, prices
    from vsr_hpc.forecast.job_ways import CPU_TYPES, GPU_TYPES

    check_region(region)
    table = prices(region)
    names = types or [*GPU_TYPES, *CPU_TYPES]
    rows = {
        name: {each: table.per_hour(find_instance(name.removeprefix("ml.")).name, each) for each in PURCHASES}
        for name in names
    }
    if is_json:
        typer.echo(json.dumps({"region": region, "source": table.text(), "usd_per_hour": rows}, indent=1))
        return
    typer.echo(f"{'per hour':<14} {'Spot':>9} {'on demand':>10} {'SageMaker':>10}")
    for name, row in rows.items():
        cells = ["-" if usd is None else f"${usd:.4f}" for usd in row.values()]
        typer.echo(f"{name:<14} {cells[0]:>9} {cells[1]:>10} {cells[2]:>10}")
    typer.echo(table.text())


@prices_app.command("refresh")
def prices_refresh(region: Region = "", is_json: IsJson = False) -> None:
    """Read AWS's price list and Spot price history, and keep the prices. Needs credentials; buys nothing.

    \b
    vsr prices refresh --region eu-west-1
    """
    from vsr_hpc.aws import price_list
    from vsr_hpc.aws.prices import check_region, prices, save
    from vsr_hpc.system.aws_region import need_region

    region = region or need_region()
    check_region(region)
    found = price_list.refresh(region, prices(region).on_demand)
    path = save(found)
    if is_json:
        typer.echo(json.dumps(found.model_dump(), indent=1))
        return
    counts = f"{len(found.on_demand)} on demand, {len(found.spot)} Spot, {len(found.sagemaker)} SageMaker"
    typer.echo(f"{region}: {counts} prices of {found.date}; kept in {path}")
