"""How a command answers: JSON or text on stdout, notes and errors on stderr."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any, NoReturn

import typer

from vsr_hpc.errors import JobError


def account_of(region: str | None) -> Any:
    from vsr_hpc.aws.account import Account, client

    found = region or client("batch", None).meta.region_name
    return Account(region=found)


def ask(question: str, is_yes: bool) -> None:
    if is_yes:
        return
    try:
        is_agreed = typer.confirm(question, err=True)
    except typer.Abort as exc:
        raise JobError("nothing was done: --yes answers the question") from exc
    if not is_agreed:
        raise JobError("nothing was done")


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
