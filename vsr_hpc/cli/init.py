"""`vsr init`: commented job files to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vsr_hpc.cli.answers import IsJson, answer


def _complete(incomplete: str) -> list[tuple[str, str]]:
    from vsr_hpc.job.examples import example_names, headline

    return [(name, headline(name)) for name in example_names() if name.startswith(incomplete)]


def init(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Which job file: slurm, film … Without it, all are listed.", autocompletion=_complete
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Where to write it. By default NAME.yaml."),
    ] = None,
    is_replaced: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that exists already.")
    ] = False,
    is_json: IsJson = False,
) -> None:
    """Write a commented job file to start from: for this machine, Slurm, AWS Batch, EC2 or an endpoint.

    \b
    vsr init
    vsr init slurm
    vsr init endpoint-canary -o live.yaml
    """
    from vsr_hpc.job.examples import example_names, headline, write_example

    if name is None:
        names = example_names()
        if is_json:
            answer({each: headline(each) for each in names})
            return
        width = max(map(len, names))
        for each in names:
            typer.echo(f"{each:<{width}}  {headline(each)}")
        return
    path = output or Path(f"{name}.yaml")
    write_example(name, path, is_replaced=is_replaced)
    typer.echo(f"{headline(name)}\nIts comments explain each key; change at least the first ones.", err=True)
    if is_json:
        answer({"path": str(path)})
    else:
        typer.echo(str(path))
