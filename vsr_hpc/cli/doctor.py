"""`vsr doctor`: what this machine can do, and how to get what is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vsr_hpc.cli.answers import IsJson, answer

if TYPE_CHECKING:
    from vsr_hpc.doctor import Finding

_MARKS = {"ok": ("ok", typer.colors.GREEN), "absent": ("-", typer.colors.YELLOW), "problem": ("NO", "red")}


def _complete(incomplete: str) -> list[str]:
    from vsr_hpc.doctor import CHECKS

    return [name for name in CHECKS if name.startswith(incomplete)]


def doctor(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CHECK]...", help="Only these checks, which must then succeed.", autocompletion=_complete
        ),
    ] = None,
    is_json: IsJson = False,
) -> None:
    """Check Python, torch, GPUs, encoders, disk, weights, network, Slurm and AWS, and say what to do.

    Exit code 1 where something is broken. What is only absent counts where it is named.

    \b
    vsr doctor
    vsr doctor gpu slurm
    """
    from vsr_hpc.doctor import diagnose

    found = diagnose(names or ())
    if is_json:
        answer(list(found))
    else:
        _show(found)
    if any(each.state == "problem" for each in found):
        raise typer.Exit(1)


def _show(found: tuple[Finding, ...]) -> None:
    width = max(len(each.name) for each in found)
    for each in found:
        mark, colour = _MARKS[each.state]
        typer.echo(f"{typer.style(f'{mark:<3}', fg=colour)} {each.name:<{width}}  {each.text}")
        if each.way_out:
            typer.echo(f"    {'':<{width}}  → {each.way_out}")
