"""`vsr image …`: arguments in, one library call, text and exit code out."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer

from vsr_hpc.version import VERSION

app = typer.Typer(
    help="The container image, and where clusters and endpoints fetch it.", no_args_is_help=True
)


class EngineChoice(StrEnum):
    docker = "docker"
    podman = "podman"
    buildah = "buildah"


@app.callback()
def _root() -> None:
    """A group even while it has one command."""


@app.command("push")
def push_command(
    image: Annotated[str, typer.Argument(help="As `make image` called it.")] = "vsr-hpc:cpu",
    repository: Annotated[
        str, typer.Option("--repository", help="Of this account in ECR; the one that nodes may pull.")
    ] = "vsr-hpc",
    tag: Annotated[str, typer.Option("--tag", help="The image's name in there.")] = VERSION,
    region: Annotated[
        str | None,
        typer.Option("--region", help="By default AWS_REGION, AWS_DEFAULT_REGION or the profile's."),
    ] = None,
    engine: Annotated[
        EngineChoice | None, typer.Option("--engine", help="The first that has the image, by default.")
    ] = None,
    makes_repository: Annotated[
        bool, typer.Option("--create/--no-create", help="Make the repository where it is missing.")
    ] = True,
    is_json: Annotated[bool, typer.Option("--json", help="Answer with JSON on stdout.")] = False,
) -> None:
    """Push a local image to ECR and print its address there, by its digest.

    \b
    vsr image push vsr-hpc:cuda --tag 1-cuda --region eu-central-1
    """
    from dataclasses import asdict

    from vsr_hpc.aws.image_registry import PushTarget, push

    pushed = push(
        image,
        PushTarget(repository=repository, tag=tag, region=region),
        lambda line: typer.echo(line, err=True),
        engine=None if engine is None else engine.value,
        makes_repository=makes_repository,
    )
    typer.echo(json.dumps(asdict(pushed), indent=1) if is_json else pushed.uri)
