"""`vsr image`: brings the container image to the registry that clusters and endpoints pull from."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer

from vsr_hpc.cli.answers import IsJson, Region, note
from vsr_hpc.version import VERSION

app = typer.Typer(
    help="Push the container image to the registry that clusters and endpoints pull from.",
    no_args_is_help=True,
)


class EngineChoice(StrEnum):
    docker = "docker"
    podman = "podman"
    buildah = "buildah"


@app.callback()
def _root() -> None:
    """Keep `push` a command of a group, though it is the only one."""


@app.command("push")
def push_command(
    image: Annotated[str, typer.Argument(help="The local image, as `make image` named it.")] = "vsr-hpc:cpu",
    repository: Annotated[
        str, typer.Option("--repository", metavar="NAME", help="The ECR repository of this account.")
    ] = "vsr-hpc",
    tag: Annotated[
        str, typer.Option("--tag", metavar="TAG", help="The tag of the image in the repository.")
    ] = VERSION,
    region: Region = None,
    engine: Annotated[
        EngineChoice | None, typer.Option("--engine", help="By default the first one that has the image.")
    ] = None,
    makes_repository: Annotated[
        bool, typer.Option("--create/--no-create", help="Create the repository if it is missing.")
    ] = True,
    is_json: IsJson = False,
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
        note,
        engine=None if engine is None else engine.value,
        makes_repository=makes_repository,
    )
    typer.echo(json.dumps(asdict(pushed), indent=1) if is_json else pushed.uri)
