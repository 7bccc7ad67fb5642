"""The command line: arguments in, one library call, text and exit code out. It decides nothing.

Nothing heavy is imported before a command runs, so that `vsr --help` answers at once on a head node.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from typing import Annotated, Any, NoReturn

import typer

from vsr_hpc.cli import batch as cli_batch
from vsr_hpc.cli import bench as cli_bench
from vsr_hpc.cli import cluster as cli_cluster
from vsr_hpc.cli import ec2 as cli_ec2
from vsr_hpc.cli import endpoint as cli_endpoint
from vsr_hpc.cli import image as cli_image
from vsr_hpc.cli import models, runs
from vsr_hpc.cli import plan as cli_plan
from vsr_hpc.cli import report as cli_report
from vsr_hpc.cli import serve as cli_serve
from vsr_hpc.cli import workflow as cli_workflow
from vsr_hpc.cli.answers import fail
from vsr_hpc.errors import BackendError, JobError, SpaceError, VsrError
from vsr_hpc.system.environment import set_identity, set_thread_policy
from vsr_hpc.version import VERSION

log = logging.getLogger(__name__)


app = typer.Typer(
    name="vsr",
    help="Video super-resolution: one machine, Slurm, AWS Batch; every finished shard is a checkpoint.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(models.app, name="models")
app.add_typer(cli_cluster.app, name="cluster")
app.add_typer(cli_cluster.storage_app, name="storage")
app.command("report", no_args_is_help=True)(cli_report.report)
app.command("preview", no_args_is_help=True)(cli_report.preview)
app.command("dashboard")(cli_report.dashboard)
app.command("bench")(cli_bench.bench)
app.command("serve")(cli_serve.serve)
app.add_typer(cli_endpoint.app, name="endpoint")
app.add_typer(cli_ec2.app, name="ec2")
app.add_typer(cli_batch.app, name="batch")
app.add_typer(cli_workflow.app, name="workflow")
app.add_typer(cli_image.app, name="image")


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Say the version and leave.")] = False,
    verbose: Annotated[int, typer.Option("--verbose", "-v", count=True, help="Say more; twice for all.")] = 0,
) -> None:
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(level)  # the run's own log takes more than what is said here
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s", handlers=[handler])
    if version:
        typer.echo(f"vsr {VERSION}")
        raise typer.Exit


app.command(no_args_is_help=True)(runs.upscale)
app.command(no_args_is_help=True)(runs.submit)
app.command(no_args_is_help=True)(runs.resume)
app.command(no_args_is_help=True)(runs.status)
app.command(no_args_is_help=True)(runs.cancel)
app.command()(runs.runs)
app.command(no_args_is_help=True)(runs.logs)
app.command("worker", no_args_is_help=True)(runs.worker_command)
app.command(no_args_is_help=True)(runs.finish)
app.command(no_args_is_help=True)(runs.verify)
app.command("plan", no_args_is_help=True)(cli_plan.plan)
app.add_typer(cli_plan.prices_app, name="prices")


def main() -> None:
    """The entry point: errors become one line on stderr and the exit code that schedulers know."""
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
    """For what no edge has translated: a full disk, something that a person must mend, or another try."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SpaceError.exit_code
    return JobError.exit_code if error.errno in _FOR_PEOPLE else BackendError.exit_code


def _fail_usage(error: Any) -> NoReturn:
    """A wrong command line in one sentence; where nothing was said at all, the help."""
    context = getattr(error, "ctx", None)
    text = " ".join(error.format_message().replace("Value error, ", "").split()).rstrip(".")
    if not text or type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        sys.exit(2)
    fail(f"{text}; `{context.command_path if context else 'vsr'} --help` tells more", 2)
