"""`vsr endpoint …`: arguments in, one library call, text and exit code out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vsr_hpc.cli.answers import answer_with_steps
from vsr_hpc.errors import JobError

if TYPE_CHECKING:
    from vsr_hpc.aws.endpoint.spec import EndpointSpec
    from vsr_hpc.aws.steps import Step


app = typer.Typer(help="Send pictures to a served model, and deploy one at SageMaker.", no_args_is_help=True)
transform_app = typer.Typer(
    help="Batch transform: many files from S3, without an endpoint.", no_args_is_help=True
)
app.add_typer(transform_app, name="transform")

SpecFile = Annotated[Path, typer.Argument(metavar="ENDPOINT.yaml", help="What the endpoint should be.")]
Name = Annotated[str, typer.Argument(help="The endpoint's name.")]
Job = Annotated[str, typer.Argument(help="The transform job's name.")]
IsPlan = Annotated[bool, typer.Option("--plan", help="Only show what would change, and what it costs.")]
IsJson = Annotated[bool, typer.Option("--json", help="Answer with JSON on stdout.")]


@app.command(no_args_is_help=True)
def invoke(
    endpoint: Annotated[
        str, typer.Argument(help="http://HOST:PORT of a `vsr serve`, or a SageMaker endpoint.")
    ],
    source: Annotated[Path, typer.Argument(metavar="IN", help="A picture or short clip.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Its suffix chooses the answer's type.")],
    model: Annotated[str | None, typer.Option("--model", "-m", help="One of the served models.")] = None,
    scale: Annotated[float | None, typer.Option("--scale", "-s", help="The model's own if left out.")] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", help="key=value: size, quality, crf, codec, preset, …"),
    ] = None,
    target_model: Annotated[
        str | None, typer.Option("--target-model", help="Of a multi-model endpoint: its archive's name.")
    ] = None,
    variant: Annotated[str | None, typer.Option("--variant", help="A production variant (A/B).")] = None,
    is_streamed: Annotated[
        bool, typer.Option("--stream", help="Take a clip in pieces, while the rest is still being made.")
    ] = False,
    is_async: Annotated[bool, typer.Option("--async", help="Through S3 though it would fit.")] = False,
    s3: Annotated[str | None, typer.Option("--s3", help="Where an asynchronous input goes.")] = None,
    payload_mb: Annotated[float, typer.Option("--max-payload-mb", help="Above it S3 is taken.")] = 6,
    timeout_s: Annotated[float, typer.Option("--timeout", min=1, help="Seconds to wait in all.")] = 900,
    is_json: Annotated[bool, typer.Option("--json", help="Answer with JSON on stdout.")] = False,
) -> None:
    """Upscale a picture or clip on a server or endpoint. What is too large for one request goes through S3.

    \b
    vsr endpoint invoke http://localhost:8080 in.png out.png --scale 2
    vsr endpoint invoke my-endpoint in.mp4 out.mp4 -o crf=20
    """
    from vsr_hpc.serving.client import Question
    from vsr_hpc.serving.client import invoke as ask
    from vsr_hpc.serving.limits import MIB

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
    )
    reply = ask(endpoint, question)
    if is_json:
        found = asdict(reply) | {"output": str(reply.output), "facts": dict(reply.facts)}
        typer.echo(json.dumps(found, indent=1))
    else:
        typer.echo(str(reply.output))


@app.command(no_args_is_help=True)
def create(spec: SpecFile, is_plan: IsPlan = False, is_json: IsJson = False) -> None:
    """Create the SageMaker endpoint of the file, or update it; nothing is done twice.

    \b
    vsr endpoint create jobs/endpoint-realtime.yaml --plan
    """
    _apply(spec, is_plan, is_json)


@app.command(no_args_is_help=True)
def update(spec: SpecFile, is_plan: IsPlan = False, is_json: IsJson = False) -> None:
    """Update an existing endpoint to what the file says, all at once; an alarm rolls it back.

    \b
    vsr endpoint update endpoint.yaml
    """
    _apply(spec, is_plan, is_json, at_once=True, must_exist=True)


@app.command(no_args_is_help=True)
def rollout(spec: SpecFile, is_plan: IsPlan = False, is_json: IsJson = False) -> None:
    """Update an endpoint step by step, by the file's rollout (canary or linear); an alarm rolls it back.

    \b
    vsr endpoint rollout jobs/endpoint-canary.yaml
    """
    from vsr_hpc.aws.endpoint.spec_file import load_spec

    if load_spec(spec).rollout is None:
        raise JobError(f"{spec}: no rollout in it; add one, or `vsr endpoint update` changes all at once")
    _apply(spec, is_plan, is_json, must_exist=True)


@app.command(no_args_is_help=True)
def promote(
    spec: SpecFile,
    pictures: Annotated[
        Path, typer.Argument(metavar="PICTURES", help="Large pictures; or two folders, low/ and high/.")
    ],
    is_plan: Annotated[
        bool, typer.Option("--plan", help="Measure, say what would change, and change nothing.")
    ] = False,
    is_json: IsJson = False,
) -> None:
    """Measure the candidate on its staging endpoint; only if it is good enough, register and roll it out.

    Exit code 5 where it is not.

    \b
    vsr endpoint promote production.yaml ground-truth/
    """
    from vsr_hpc.aws.endpoint import promotion
    from vsr_hpc.aws.endpoint.spec_file import load_spec
    from vsr_hpc.bench import served_quality

    wanted = load_spec(spec)
    measured = served_quality.measure(wanted, pictures, tell)
    typer.echo(str(measured), err=is_json)
    promotion.check(wanted, measured)
    if is_plan:
        _answer_with_plan(promotion.plan(wanted, measured), wanted, is_json, asdict(measured))
        return
    steps = promotion.promote(wanted, measured, tell)
    if is_json:
        answer_with_steps(steps, is_json, {"measured": asdict(measured)})


@app.command(no_args_is_help=True)
def shift(
    name: Name,
    weights: Annotated[list[str], typer.Argument(metavar="VARIANT=WEIGHT…", help="Its new weights.")],
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
    count: Annotated[int | None, typer.Option("--count", min=1, help="Instances, where fixed.")] = None,
    least: Annotated[int | None, typer.Option("--least", min=0, help="Bound of autoscaling.")] = None,
    most: Annotated[int | None, typer.Option("--most", min=1, help="Bound of autoscaling.")] = None,
    variant: Annotated[str | None, typer.Option("--variant", help="Which, where there are several.")] = None,
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
        _answer(found)
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
    """Remove a SageMaker endpoint with everything that was made for it, and nothing else.

    \b
    vsr endpoint delete film
    """
    from vsr_hpc.aws.endpoint import endpoint as endpoints

    answer_with_steps(endpoints.delete(name, keeps_registry=keeps_registry, tell=tell), is_json)


@app.command(no_args_is_help=True)
def role(
    spec: SpecFile,
    whose: Annotated[
        str, typer.Option("--for", help="endpoint: its own role; schedule: the scheduler's; you: yours.")
    ] = "endpoint",
    is_trust: Annotated[bool, typer.Option("--trust", help="Who may take the role on, instead.")] = False,
) -> None:
    """Print the smallest IAM policy that the endpoint, its schedule or you need for this file, as JSON.

    \b
    vsr endpoint role endpoint.yaml > policy.json
    """
    from vsr_hpc.aws.endpoint import roles
    from vsr_hpc.aws.endpoint.spec_file import load_spec

    _answer(roles.document(load_spec(spec), whose, is_trust=is_trust))


@transform_app.command("start", no_args_is_help=True)
def transform_start(
    spec: SpecFile,
    source: Annotated[str | None, typer.Option("--input", help="s3://…; the file's if left out.")] = None,
    target: Annotated[str | None, typer.Option("--output", help="s3://…; the file's if left out.")] = None,
    is_waiting: Annotated[bool, typer.Option("--wait", help="Until it is over.")] = False,
    is_json: IsJson = False,
) -> None:
    """Start a batch transform job over all objects below a prefix; prints its name.

    \b
    vsr endpoint transform start jobs/endpoint-transform.yaml --wait
    """
    from vsr_hpc.aws.account import WaitLimits
    from vsr_hpc.aws.endpoint import transform
    from vsr_hpc.aws.endpoint.spec_file import load_spec

    job = transform.start(load_spec(spec), source, target)
    found = transform.wait(job, WaitLimits(), tell) if is_waiting else {"job": job}
    _answer(found) if is_json else typer.echo(job)


@transform_app.command("status", no_args_is_help=True)
def transform_status(job: Job) -> None:
    """Show the state of a transform job, as JSON.

    \b
    vsr endpoint transform status film-20261121020000-1a2b
    """
    from vsr_hpc.aws.endpoint import transform

    _answer(transform.status(job))


@transform_app.command("stop", no_args_is_help=True)
def transform_stop(job: Job) -> None:
    """Stop a transform job early; the answers that it has written stay.

    \b
    vsr endpoint transform stop film-20261121020000-1a2b
    """
    from vsr_hpc.aws.endpoint import transform

    transform.stop(job)


def tell(line: str) -> None:
    typer.echo(line, err=True)


def _apply(
    path: Path, is_plan: bool, is_json: bool, *, at_once: bool = False, must_exist: bool = False
) -> None:
    from vsr_hpc.aws.endpoint import endpoint as endpoints
    from vsr_hpc.aws.endpoint.spec_file import load_spec

    spec = load_spec(path)
    if is_plan:
        _answer_with_plan(endpoints.plan(spec, at_once=at_once, must_exist=must_exist), spec, is_json)
        return
    steps = endpoints.apply(spec, at_once=at_once, must_exist=must_exist, tell=tell)
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
        nothing="nothing to do: all is as the file says",
    )
    if is_json:
        return
    for line in (*found.lines, found.total) if len(found.lines) > 1 else found.lines:
        typer.echo(str(line))
    typer.echo(f"  {found.note}")


def _answer(found: Any) -> None:
    typer.echo(json.dumps(found, indent=1, default=str))


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
