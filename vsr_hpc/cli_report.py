"""`vsr report`: arguments in, one library call, text and exit code out."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import Annotated

import typer

from vsr_hpc.errors import JobError

RunUri = Annotated[
    str,
    typer.Argument(metavar="RUN", help="The run: its folder (OUT.vsr), s3://bucket/prefix, or the output."),
]


def report(
    run_uri: RunUri,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write it here too; the run keeps it in any case.")
    ] = None,
    truth: Annotated[
        str | None,
        typer.Option(
            "--truth", help="The original at the output's size: its quality is measured against it."
        ),
    ] = None,
    does_verify: Annotated[
        bool, typer.Option("--verify", help="Run `vsr verify` over the whole output and show what it says.")
    ] = False,
) -> None:
    """One HTML file about a run: before and after, who did what when, where the time went, what was proved.

    \b
    vsr report out.mkv.vsr -o report.html
    vsr report out.mkv.vsr --truth original.mkv
    """
    from vsr_hpc.report import make
    from vsr_hpc.run import Run

    run = Run.open(_run_of(run_uri))
    if not run.has_plan():
        raise JobError(f"{run.uri}: has no plan yet, so there is nothing to report; `vsr status` shows it")
    if truth is not None:
        make.measure(run, truth)
    if does_verify:
        make.verify_whole(run)
    content = make.write_report(run)
    if output is not None:
        _write(output, content)
    typer.echo(str(output) if output is not None else f"{run.uri.rstrip('/')}/{make.NAME}")


def _run_of(uri: str) -> str:
    """A run by its own place, or by the output beside which it lies."""
    beside = f"{uri.rstrip('/')}.vsr"
    if "://" not in uri and not (Path(uri) / "job.json").exists() and (Path(beside) / "job.json").exists():
        return beside
    return uri


def _write(path: Path, content: bytes) -> None:
    """The whole file or none."""
    if path.is_dir():
        raise JobError(f"{path}: is a folder; name a file in it")
    if not path.parent.is_dir():
        raise JobError(f"{path.parent}: there is no such folder")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
