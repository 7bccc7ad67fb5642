"""`vsr endpoint`: ask a server for pictures and clips, and deploy one at SageMaker."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vsr_hpc.cli.answers import IsJson, answer, answer_with_steps, note
from vsr_hpc.cli.completion import complete_files, complete_models
from vsr_hpc.errors import JobError

if TYPE_CHECKING:
    from vsr_hpc.aws.endpoint.spec import EndpointSpec
    from vsr_hpc.aws.steps import Step


class RoleOwner(StrEnum):
    endpoint = "endpoint"
    schedule = "schedule"
    you = "you"


app = typer.Typer(
    help="Send pictures and clips to a server, and deploy one at SageMaker.", no_args_is_help=True
)
transform_app = typer.Typer(
    help="Upscale many objects of S3 in one batch transform job, without an endpoint.", no_args_is_help=True
)
app.add_typer(transform_app, name="transform")

SpecFile = Annotated[
    Path,
    typer.Argument(
        metavar="ENDPOINT.yaml",
        help="The endpoint's file (`vsr init` writes examples).",
        autocompletion=complete_files,
    ),
]
Name = Annotated[str, typer.Argument(help="Name of the endpoint.")]
Job = Annotated[str, typer.Argument(help="Name of the transform job.")]
IsPlan = Annotated[
    bool, typer.Option("--plan", help="Show what would change and what it costs; change nothing.")
]


@app.command(no_args_is_help=True)
def invoke(
    endpoint: Annotated[
        str, typer.Argument(help="http://HOST:PORT of a `vsr serve`, or the name of a SageMaker endpoint.")
    ],
    source: Annotated[Path, typer.Argument(metavar="IN", help="A picture or a short clip.")],
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="The output; its suffix chooses the format of the answer.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME",
            help="One of the server's models.",
            autocompletion=complete_models,
        ),
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option(
            "--scale", "-s", metavar="NUMBER", help="Enlargement factor. The model's own by default."
        ),
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            "-o",
            metavar="KEY=VALUE",
            help="An option of the request: size, quality, crf, codec, preset … May be repeated.",
        ),
    ] = None,
    target_model: Annotated[
        str | None,
        typer.Option(
            "--target-model", metavar="ARCHIVE", help="The archive to ask at a multi-model endpoint."
        ),
    ] = None,
    variant: Annotated[
        str | None, typer.Option("--variant", metavar="NAME", help="The variant to ask at an A/B endpoint.")
    ] = None,
    is_streamed: Annotated[
        bool, typer.Option("--stream", help="Receive a clip in pieces while the server makes the rest.")
    ] = False,
    is_async: Annotated[
        bool, typer.Option("--async", help="Send the input through S3 even if it fits into a request.")
    ] = False,
    s3: Annotated[
        str | None,
        typer.Option("--s3", metavar="S3_URI", help="Prefix under which an asynchronous input is put."),
    ] = None,
    payload_mb: Annotated[
        float,
        typer.Option("--max-payload-mb", metavar="NUMBER", help="Send a larger input through S3."),
    ] = 6,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", metavar="FILE", help="A file whose first token a `vsr serve` is sent."),
    ] = None,
    timeout_s: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=1, help="How long to wait in all.")
    ] = 900,
    is_json: IsJson = False,
) -> None:
    """Upscale a picture or clip on a server or endpoint. An input too large for a request goes through S3.

    \b
    vsr endpoint invoke http://localhost:8080 in.png out.png --scale 2
    vsr endpoint invoke my-endpoint in.mp4 out.mp4 -o crf=20
    """
    from vsr_hpc.serving.client import Question
    from vsr_hpc.serving.client import invoke as ask
    from vsr_hpc.serving.limits import MIB
    from vsr_hpc.serving.tokens import first_token

    pairs = [_option(each) for each in options or []]
    pairs += [("model", model)] if model else []
    pairs += [("scale", f"{scale:g}")] if scale else []
    pairs += [("stream", "true")] if is_streamed else []
    question = Question(
        source=source,
        output=output,
        options=tuple(pairs),
        target_model=target_model,
        variant=variant,
        timeout_s=timeout_s,
        payload_bytes=int(payload_mb * MIB),
        is_async=is_async,
        s3=s3,
        token="" if token_file is None else first_token(token_file),
    )
    reply = ask(endpoint, question)
    if is_json:
        found = asdict(reply) | {"output": str(reply.output), "facts": dict(reply.facts)}
        typer.echo(json.dumps(found, indent=1))
    else:
        typer.echo(str(reply.output))


@app.command(no_args_is_help=True)
def create(spec: SpecFile, is_plan: IsPlan = False, is_json: IsJson = False) -> None:
    """Create the SageMaker endpoint that the file describes, or update it. Safe to repeat.

    \b
    vsr endpoint create jobs/endpoint-realtime.yaml --plan
    """
    _apply(spec, is_plan, is_json)


@app.command(no_args_is_help=True)
def update(spec: SpecFile, is_plan: IsPlan = False, is_json: IsJson = False) -> None:
    """Update an existing endpoint to what the file says, all at once. An alarm rolls it back.

    \b
    vsr endpoint update endpoint.yaml
    """
    _apply(spec, is_plan, is_json, at_once=True, must_exist=True)


@app.command(no_args_is_help=True)
def rollout(spec: SpecFile, is_plan: IsPlan = False, is_json: IsJson = False) -> None:
    """Update an endpoint step by step, as the file's rollout says. An alarm rolls it back.

    \b
    vsr endpoint rollout jobs/endpoint-canary.yaml
    """
    from vsr_hpc.aws.endpoint.spec_file import load_spec

    if load_spec(spec).rollout is None:
        raise JobError(
            f"{spec} has no rollout; add one, or use `vsr endpoint update`, which changes all at once"
        )
    _apply(spec, is_plan, is_json, must_exist=True)


@app.command(no_args_is_help=True)
def promote(
    spec: SpecFile,
    pictures: Annotated[
        Path,
        typer.Argument(
            metavar="PICTURES", help="A folder of large pictures, or one with two folders, low/ and high/."
        ),
    ],
    is_plan: Annotated[
        bool, typer.Option("--plan", help="Measure and show what would change; change nothing.")
    ] = False,
    is_json: IsJson = False,
) -> None:
    """Measure the candidate on its staging endpoint; register it and roll it out if it is good enough.

    Exit code 5 if it is not.

    \b
    vsr endpoint promote production.yaml ground-truth/
    """
    from vsr_hpc.aws.endpoint import promotion
    from vsr_hpc.aws.endpoint.spec_file import load_spec
    from vsr_hpc.bench import served_quality

    wanted = load_spec(spec)
    measured = served_quality.measure(wanted, pictures, note)
    typer.echo(str(measured), err=is_json)
    promotion.check(wanted, measured)
    if is_plan:
        _answer_with_plan(promotion.plan(wanted, measured), wanted, is_json, asdict(measured))
        return
    steps = promotion.promote(wanted, measured, note)
    if is_json:
        answer_with_steps(steps, is_json, {"measured": asdict(measured)})


@app.command(no_args_is_help=True)
def shift(
    name: Name,
    weights: Annotated[
        list[str], typer.Argument(metavar="VARIANT=WEIGHT…", help="The new weight of each variant.")
    ],
    is_plan: IsPlan = False,
    is_json: IsJson = False,
) -> None:
    """Move traffic between the variants of an A/B endpoint, at once.

    \b
    vsr endpoint shift film old=1 new=1
    """
    from vsr_hpc.aws.endpoint import endpoint as endpoints

    answer_with_steps(endpoints.shift(name, dict(map(_weight, weights)), is_plan=is_plan), is_json)


@app.command(no_args_is_help=True)
def scale(
    name: Name,
    count: Annotated[
        int | None, typer.Option("--count", min=1, help="Number of instances, without autoscaling.")
    ] = None,
    least: Annotated[
        int | None, typer.Option("--least", min=0, help="Least instances of autoscaling.")
    ] = None,
    most: Annotated[int | None, typer.Option("--most", min=1, help="Most instances of autoscaling.")] = None,
    variant: Annotated[
        str | None, typer.Option("--variant", metavar="NAME", help="Which variant, where there are several.")
    ] = None,
    is_plan: IsPlan = False,
    is_json: IsJson = False,
) -> None:
    """Set the number of instances, or the bounds of autoscaling, until the file is applied again.

    \b
    vsr endpoint scale film --count 3
    """
    from vsr_hpc.aws.endpoint import endpoint as endpoints

    if (count is None) == (least is None and most is None):
        raise JobError("give --count, or --least and --most")
    steps = endpoints.scale(name, variant=variant, count=count, least=least, most=most, is_plan=is_plan)
    answer_with_steps(steps, is_json)


@app.command(no_args_is_help=True)
def status(name: Name, is_json: IsJson = False) -> None:
    """Show the state of a SageMaker endpoint: variants, pending changes, alarms, scaling.

    \b
    vsr endpoint status film
    """
    from vsr_hpc.aws.endpoint import endpoint as endpoints

    found = endpoints.status(name)
    if is_json:
        answer(found)
        return
    typer.echo(f"{name}  {found['doing']}  {found['configuration']}")
    for each in found["variants"]:
        bounds = f", {each['scaling'][0]} to {each['scaling'][1]}" if each["scaling"] else ""
        share = "" if each["share"] is None else f", {100 * each['share']:.0f} % of the traffic"
        count = (
            "serverless"
            if each["instances"] is None
            else f"{each['instances']} of {each['wanted']} instances"
        )
        typer.echo(f"  {each['name']}: {count}{bounds}{share}")
    for alarm, state in found["alarms"].items():
        typer.echo(f"  alarm {alarm}: {state}")
    if found["schedule"]:
        typer.echo(f"  transform job {found['schedule']}")
    if found["failure"]:
        typer.echo(f"  {found['failure']}")


@app.command(no_args_is_help=True)
def delete(
    name: Name,
    keeps_registry: Annotated[
        bool, typer.Option("--keep-registry", help="Leave the approved versions in the model registry.")
    ] = False,
    is_json: IsJson = False,
) -> None:
    """Delete a SageMaker endpoint and everything that vsr created for it, and nothing else.

    \b
    vsr endpoint delete film
    """
    from vsr_hpc.aws.endpoint import endpoint as endpoints

    answer_with_steps(endpoints.delete(name, keeps_registry=keeps_registry, tell=note), is_json)


@app.command(no_args_is_help=True)
def role(
    spec: SpecFile,
    whose: Annotated[
        RoleOwner,
        typer.Option("--for", help="Whose policy: the endpoint's, its schedule's, or yours as its operator."),
    ] = RoleOwner.endpoint,
    is_trust: Annotated[
        bool, typer.Option("--trust", help="Print who may assume the role, instead.")
    ] = False,
) -> None:
    """Print the smallest IAM policy that the endpoint, its schedule or you need for this file, as JSON.

    \b
    vsr endpoint role endpoint.yaml > policy.json
    """
    from vsr_hpc.aws.endpoint import roles
    from vsr_hpc.aws.endpoint.spec_file import load_spec

    answer(roles.document(load_spec(spec), whose.value, is_trust=is_trust))


@transform_app.command("start", no_args_is_help=True)
def transform_start(
    spec: SpecFile,
    source: Annotated[
        str | None,
        typer.Option("--input", metavar="S3_URI", help="The prefix of the inputs. The file's by default."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--output", metavar="S3_URI", help="The prefix of the answers. The file's by default."),
    ] = None,
    is_waiting: Annotated[bool, typer.Option("--wait", help="Wait until the job has ended.")] = False,
    is_json: IsJson = False,
) -> None:
    """Start a batch transform job over all objects below a prefix. Prints its name.

    \b
    vsr endpoint transform start jobs/endpoint-transform.yaml --wait
    """
    from vsr_hpc.aws.account import WaitLimits
    from vsr_hpc.aws.endpoint import transform
    from vsr_hpc.aws.endpoint.spec_file import load_spec

    job = transform.start(load_spec(spec), source, target)
    found = transform.wait(job, WaitLimits(), note) if is_waiting else {"job": job}
    answer(found) if is_json else typer.echo(job)


@transform_app.command("status", no_args_is_help=True)
def transform_status(job: Job) -> None:
    """Show the state of a transform job, as JSON.

    \b
    vsr endpoint transform status film-20261121020000-1a2b
    """
    from vsr_hpc.aws.endpoint import transform

    answer(transform.status(job))


@transform_app.command("stop", no_args_is_help=True)
def transform_stop(job: Job) -> None:
    """Stop a transform job. The answers that it has written stay.

    \b
    vsr endpoint transform stop film-20261121020000-1a2b
    """
    from vsr_hpc.aws.endpoint import transform

    transform.stop(job)


def _apply(
    path: Path, is_plan: bool, is_json: bool, *, at_once: bool = False, must_exist: bool = False
) -> None:
    from vsr_hpc.aws.endpoint import endpoint as endpoints
    from vsr_hpc.aws.endpoint.spec_file import load_spec

    spec = load_spec(path)
    if is_plan:
        _answer_with_plan(endpoints.plan(spec, at_once=at_once, must_exist=must_exist), spec, is_json)
        return
    steps = endpoints.apply(spec, at_once=at_once, must_exist=must_exist, tell=note)
    answer_with_steps(steps, is_json)


def _answer_with_plan(
    steps: tuple[Step, ...], spec: EndpointSpec, is_json: bool, more: Mapping[str, Any] | None = None
) -> None:
    """A plan and its price."""
    from vsr_hpc.aws.endpoint import bill as costs
    from vsr_hpc.system.aws_region import need_region

    found = costs.bill(spec, need_region())
    cost = {"lines": [asdict(each) for each in found.lines], **asdict(found.total), "note": found.note}
    answer_with_steps(
        steps,
        is_json,
        {"cost": cost, **({"measured": more} if more else {})},
        nothing="nothing to do: the endpoint is as the file says",
    )
    if is_json:
        return
    for line in (*found.lines, found.total) if len(found.lines) > 1 else found.lines:
        typer.echo(str(line))
    typer.echo(f"  {found.note}")


def _weight(text: str) -> tuple[str, float]:
    key, _, value = text.partition("=")
    try:
        weight = float(value)
    except ValueError:
        weight = -1.0
    if not key or not 0 <= weight <= 1000:
        raise JobError(f"{text!r}: write variant=weight, for example new=0.1; a weight is 0 to 1000")
    return key, weight


def _option(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key.strip() or any(each in text for each in ";,"):
        raise JobError(f"--option {text!r}: write key=value")
    return key.strip(), value.strip()
