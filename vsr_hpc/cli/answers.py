"""How a command answers: JSON or text on stdout, notes and errors on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from vsr_hpc.errors import JobError

if TYPE_CHECKING:
    from vsr_hpc.aws.steps import Step


def account_of(region: str | None) -> Any:
    from vsr_hpc.aws.account import Account
    from vsr_hpc.system.aws_region import need_region

    return Account(region=region or need_region())


def account_to_render(region: str | None) -> Any:
    """The account for a text that creates nothing; where none can be asked, an example stands for it."""
    from vsr_hpc.aws.account import Account, has_credentials
    from vsr_hpc.system.aws_region import find_region

    found = region or find_region()
    if found and has_credentials():
        return Account(region=found)
    example = Account(region=found or "us-east-1", known_number="000000000000")
    say(f"no AWS credentials or region are set: {example.region} and account {example.number()} are examples")
    return example


def ask(question: str, is_yes: bool) -> None:
    if is_yes:
        return
    try:
        is_agreed = typer.confirm(question, err=True)
    except typer.Abort as exc:
        raise JobError("nothing was done: --yes answers the question") from exc
    if not is_agreed:
        raise JobError("nothing was done")


def answer_with_steps(
    steps: tuple[Step, ...],
    is_json: bool,
    more: Mapping[str, Any] | None = None,
    nothing: str = "nothing to do",
) -> None:
    """Print the steps of a plan or of what was done; `more` is added to the JSON answer."""
    if is_json:
        found = {"steps": [each.row() for each in steps], **(more or {})}
        typer.echo(json.dumps(found, indent=1, default=str))
        return
    for step in steps:
        typer.echo(str(step))
    if not steps:
        typer.echo(nothing)


IsJson = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]
IsJsonOfJob = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.", rich_help_panel="Run")]
"""The same for commands whose options stand in panels."""


def fail(text: str, code: int) -> NoReturn:
    say(text)
    sys.exit(code)


def say(text: str) -> None:
    print(f"vsr: {text}", file=sys.stderr)  # noqa: T201


def answer(found: Any) -> None:
    from pydantic import TypeAdapter

    typer.echo(json.dumps(TypeAdapter(Any).dump_python(found, mode="json"), indent=1))
