"""The command line: arguments become one call of the library, its result text and an exit code.

Nothing heavy is imported before a command runs, so that `vsr --help` answers at once on a head node.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from vsr_hpc.cli import (
    batch,
    bench,
    cluster,
    doctor,
    ec2,
    endpoint,
    image,
    init,
    models,
    plan,
    report,
    runs,
    serve,
    workflow,
)
from vsr_hpc.cli.answers import fail
from vsr_hpc.cli.job_options import JobCommand, SubmitCommand, VerifyCommand
from vsr_hpc.errors import BackendError, JobError, SpaceError, VsrError
from vsr_hpc.job.inputs import looks_like_input
from vsr_hpc.system.environment import set_identity, set_thread_policy
from vsr_hpc.version import VERSION

log = logging.getLogger(__name__)

_FLAGS = ("-v", "-vv", "--verbose")


class _VsrGroup(TyperGroup):
    """`vsr in.mkv` and `vsr -i in.mkv` mean `vsr upscale …`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        place = next((place for place, word in enumerate(args) if word not in _FLAGS), None)
        if place is not None and args[place] not in self.commands:
            word = args[place]
            if word in ("-i", "--input") or looks_like_input(word):
                args = [*args[:place], "upscale", *args[place:]]
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="vsr",
    cls=_VsrGroup,
    help="Upscale video and images on this machine, on a Slurm cluster or on AWS Batch. Every finished shard "
    "is a checkpoint: the same command continues an interrupted run.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, help="Log more; twice for everything.")
    ] = 0,
) -> None:
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(level)  # the run's own log holds more than is printed here
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s", handlers=[handler])
    if version:
        typer.echo(f"vsr {VERSION}")
        raise typer.Exit


_UPSCALE, _RUNS, _MODELS, _LOOK = "Upscale", "Runs", "Models", "Look"
_ELSEWHERE = "Clusters and clouds"

app.command(cls=JobCommand, no_args_is_help=True, rich_help_panel=_UPSCALE)(runs.upscale)
app.command(cls=SubmitCommand, no_args_is_help=True, rich_help_panel=_UPSCALE)(runs.submit)
app.command(rich_help_panel=_UPSCALE)(init.init)
app.command(cls=JobCommand, no_args_is_help=True, rich_help_panel=_UPSCALE)(plan.plan)
app.command(cls=VerifyCommand, no_args_is_help=True, rich_help_panel=_UPSCALE)(runs.verify)

app.command(rich_help_panel=_RUNS)(runs.runs)
app.command(no_args_is_help=True, rich_help_panel=_RUNS)(runs.status)
app.command(no_args_is_help=True, rich_help_panel=_RUNS)(runs.resume)
app.command(no_args_is_help=True, rich_help_panel=_RUNS)(runs.cancel)
app.command(no_args_is_help=True, rich_help_panel=_RUNS)(runs.logs)
app.command(rich_help_panel=_RUNS)(runs.clean)
app.command(no_args_is_help=True, rich_help_panel=_RUNS)(runs.finish)
app.command("worker", no_args_is_help=True, rich_help_panel=_RUNS)(runs.work)

app.add_typer(models.app, name="models", rich_help_panel=_MODELS)
app.command(rich_help_panel=_MODELS)(bench.bench)

app.command(no_args_is_help=True, rich_help_panel=_LOOK)(report.preview)
app.command(no_args_is_help=True, rich_help_panel=_LOOK)(report.report)
app.command(rich_help_panel=_LOOK)(report.dashboard)

app.command(rich_help_panel=_LOOK)(doctor.doctor)

app.add_typer(cluster.app, name="cluster", rich_help_panel=_ELSEWHERE)
app.add_typer(cluster.storage_app, name="storage", rich_help_panel=_ELSEWHERE)
app.add_typer(batch.app, name="batch", rich_help_panel=_ELSEWHERE)
app.add_typer(workflow.app, name="workflow", rich_help_panel=_ELSEWHERE)
app.command("serve", rich_help_panel=_ELSEWHERE)(serve.serve)
app.add_typer(endpoint.app, name="endpoint", rich_help_panel=_ELSEWHERE)
app.add_typer(ec2.app, name="ec2", rich_help_panel=_ELSEWHERE)
app.add_typer(image.app, name="image", rich_help_panel=_ELSEWHERE)
app.add_typer(plan.prices_app, name="prices", rich_help_panel=_ELSEWHERE)


def main() -> None:
    """The entry point. Errors become one line on stderr and the exit code that schedulers know."""
    set_identity()
    set_thread_policy()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="surrogateescape")  # file names come out as they are
    try:
        sys.exit(app(standalone_mode=False))  # the value of typer.Exit, None where a command just ends
    except VsrError as exc:
        fail(str(exc), exc.exit_code)
    except (KeyboardInterrupt, typer.Abort):  # newer versions of typer make an exit code of it themselves
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(141)
    except OSError as exc:
        log.debug("an error of the system", exc_info=True)
        fail(f"{exc.filename}: {exc.strerror}" if exc.filename else str(exc), _exit_code(exc))
    except ModuleNotFoundError as exc:
        if exc.name != "torch":
            raise
        log.debug("torch is missing", exc_info=True)
        fail(_WITHOUT_TORCH, JobError.exit_code)
    except Exception as exc:
        if not hasattr(exc, "format_message"):  # click's usage errors, wherever this typer keeps its click
            raise
        _fail_usage(exc)


_WITHOUT_TORCH = (
    "this command runs a network, and torch is not installed here (requirements-head-node.txt leaves it "
    "out); run it on a machine that has torch, or install it: pip install torch"
)
_FOR_PEOPLE = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG,
    errno.ELOOP, errno.EEXIST,
}  # fmt: skip


def _exit_code(error: OSError) -> int:
    """The exit code for an error of the system: a full disk, a person's turn, or try again."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SpaceError.exit_code
    return JobError.exit_code if error.errno in _FOR_PEOPLE else BackendError.exit_code


def _fail_usage(error: Any) -> NoReturn:
    """Report a wrong command line in one sentence. Without any arguments, print the help."""
    context = getattr(error, "ctx", None)
    text = " ".join(error.format_message().replace("Value error, ", "").split()).rstrip(".")
    if not text or type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        sys.exit(2)
    close = getattr(error, "possibilities", None)
    if close:
        text = f"{text.split(' (')[0]}; did you mean {' or '.join(close)}?"
    joint = "" if text.endswith("?") else ";"
    fail(f"{text}{joint} see `{context.command_path if context else 'vsr'} --help`", 2)
