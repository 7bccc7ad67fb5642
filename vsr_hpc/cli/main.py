"""The command line: arguments in, one library call, text and exit code out. It decides nothing.

Nothing heavy is imported before a command runs, so that `vsr --help` answers at once on a head node.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from vsr_hpc import __version__
from vsr_hpc.cli import batch as cli_batch
from vsr_hpc.cli import bench as cli_bench
from vsr_hpc.cli import cluster as cli_cluster
from vsr_hpc.cli import ec2 as cli_ec2
from vsr_hpc.cli import endpoint as cli_endpoint
from vsr_hpc.cli import image as cli_image
from vsr_hpc.cli import plan as cli_plan
from vsr_hpc.cli import report as cli_report
from vsr_hpc.cli import serve as cli_serve
from vsr_hpc.cli import train as cli_train
from vsr_hpc.cli import workflow as cli_workflow
from vsr_hpc.cli.job_options import (
    Audio,
    AudioOption,
    Drop,
    Frames,
    Start,
    Stop,
    as_option,
    asked_jobs,
    document,
    takes_job_options,
)
from vsr_hpc.errors import BackendError, JobError, MediaError, SpaceError, VerifyError, VsrError
from vsr_hpc.system.environment import set_identity, set_thread_policy

if TYPE_CHECKING:
    from vsr_hpc.job.spec import JobSpec
    from vsr_hpc.run.run import Done, Run
    from vsr_hpc.system.interrupts import StopFlag

log = logging.getLogger(__name__)


app = typer.Typer(
    name="vsr",
    help="Video super-resolution: one machine, Slurm, AWS Batch; every finished shard is a checkpoint.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
models_app = typer.Typer(help="The models that are known, and their weights.", no_args_is_help=True)
app.add_typer(models_app, name="models")
models_app.command("train", no_args_is_help=True)(cli_train.train)
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


class Metrics(str, Enum):
    none = "none"
    emf = "emf"
    cloudwatch = "cloudwatch"


class Where(str, Enum):
    local = "local"
    slurm = "slurm"
    aws_batch = "aws-batch"


IsJson = Annotated[bool, typer.Option("--json", help="Answer with JSON on stdout.")]


def _hush(is_quiet: bool) -> bool:
    if is_quiet:
        for handler in logging.getLogger().handlers:
            handler.setLevel(max(handler.level, logging.ERROR))
    return is_quiet


IsQuiet = Annotated[
    bool, typer.Option("--quiet", "-q", callback=_hush, help="Only the answer and errors, no progress.")
]
IsNew = Annotated[
    bool, typer.Option("--new", help="Throw an earlier run of this output away and start over.")
]
RunUri = Annotated[
    str, typer.Argument(help="The run: its folder (OUT.vsr), s3://bucket/prefix, or the output.")
]


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
        typer.echo(f"vsr {__version__}")
        raise typer.Exit


@app.command(no_args_is_help=True)
@takes_job_options
def upscale(
    paths: Annotated[
        list[str], typer.Argument(metavar="IN... OUT", help="Clip, still, folder or pattern; then output.")
    ],
    new: IsNew = False,
    is_quiet: IsQuiet = False,
    is_json: IsJson = False,
    *,
    given: dict[str, Any],
) -> None:
    """Make a clip bigger on this machine. Called again after any interruption, it goes on where it was.

    \b
    vsr upscale in.mkv out.mkv --model realesr-animevideov3
    vsr upscale in.mp4 out.mkv --size 1920x1080 --codec h265 --crf 20
    vsr upscale a.mp4 b.mp4 folder/            several inputs into a folder
    vsr upscale frames/ bigger/ --rate 24      a folder of images
    """
    from vsr_hpc.job.inputs import expand
    from vsr_hpc.job.spec import parse_job

    jobs = [
        parse_job(document(given, source, place), "", spelled=as_option) for source, place in expand(paths)
    ]
    if len(jobs) == 1:
        _launch(jobs[0], is_new=new, is_quiet=is_quiet, is_json=is_json)
    else:
        _launch_each(jobs, is_new=new, is_quiet=is_quiet, is_json=is_json)


@app.command(no_args_is_help=True)
@takes_job_options
def submit(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="[JOB.yaml] [IN... OUT]", help="A job file (jobs/ has some), places, or both."
        ),
    ],
    on: Annotated[
        Where | None, typer.Option("--on", help="Where to run it; the job file's `on` otherwise.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and show the plan; start nothing.")
    ] = False,
    after: Annotated[
        str | None,
        typer.Option("--after", metavar="RUN", help="Begin once this run is complete; its output may be IN."),
    ] = None,
    new: IsNew = False,
    is_quiet: IsQuiet = False,
    is_json: IsJson = False,
    *,
    given: dict[str, Any],
) -> None:
    """Run a job wherever it shall run. Prints the output, or the run's URI where it goes on elsewhere.

    The same job submitted again continues.

    Options and places that are given count for more than the job file; several inputs, or a folder of clips,
    are a job each.

    \b
    vsr submit jobs/film.yaml --on slurm
    vsr submit jobs/film.yaml /shared/clips/ /shared/out/ --on slurm
    vsr submit jobs/film.yaml --workers 8 --dry-run
    vsr submit in.mkv out.mkv --on slurm --workers 4 --crf 20
    """
    from vsr_hpc.launch import placed, predecessor

    jobs = asked_jobs(paths, given)
    if on is not None:
        jobs = [job.model_copy(update={"on": on.value}) for job in jobs]
    jobs = [job if job.on == "local" else placed(job) for job in jobs]
    if dry_run:
        for job in jobs:
            cli_plan.show_plan(job, is_json=is_json)
        return
    first = None if after is None else predecessor(after, jobs[0])
    if len(jobs) == 1:
        _launch(jobs[0], is_new=new, is_quiet=is_quiet, is_json=is_json, after=first)
    else:
        _launch_each(jobs, is_new=new, is_quiet=is_quiet, is_json=is_json, after=first)


app.command("plan", no_args_is_help=True)(cli_plan.plan)
app.add_typer(cli_plan.prices_app, name="prices")


@app.command(no_args_is_help=True)
def resume(
    run_uri: RunUri,
    workers: Annotated[int | None, typer.Option("--workers", "-w", help="Workers this time.")] = None,
    retry_poisoned: Annotated[
        bool, typer.Option("--retry-poisoned", help="Try shards that were set aside.")
    ] = False,
    on: Annotated[
        Where | None, typer.Option("--on", help="Where to go on; where the run was last if left out.")
    ] = None,
    is_quiet: IsQuiet = False,
    is_json: IsJson = False,
) -> None:
    """Make what is still missing of a run, and finish it.

    \b
    vsr resume out.mkv.vsr
    """
    from vsr_hpc.launch import executor_of, retry

    run = _open(run_uri)
    retry(run, retries_poisoned=retry_poisoned)
    job = run.job()
    how = job.run if workers is None else job.run.model_copy(update={"workers": workers})
    where = on.value if on else executor_of(run)
    job = job.model_copy(update={"run": how, "on": where})
    done = _carry_out(run, job, is_new=False, is_quiet=is_quiet, is_json=is_json)
    if done is not None:
        _report_done(done, is_quiet=is_quiet, is_json=is_json)


@app.command(no_args_is_help=True)
def status(
    run_uri: RunUri,
    is_watched: Annotated[bool, typer.Option("--watch", help="Stay and show it in place.")] = False,
    is_json: IsJson = False,
) -> None:
    """How far a run is: shards, speed, workers, where the time goes, what failed.

    \b
    vsr status out.mkv.vsr --watch
    """
    from vsr_hpc.cli.progress import say_status, watch
    from vsr_hpc.launch import whole_status

    run = _open(run_uri)
    if is_watched and not is_json:
        watch(lambda: whole_status(run))
        return
    found = whole_status(run)
    if is_json:
        _answer(found)
        return
    say_status(found)


@app.command(no_args_is_help=True)
def cancel(run_uri: RunUri) -> None:
    """Stop a run's workers; what is finished stays, and `vsr resume` goes on from there.

    \b
    vsr cancel out.mkv.vsr
    """
    from vsr_hpc import launch

    run = _open(run_uri)
    if launch.cancel(run):
        typer.echo(
            f"cancelled: {run.uri}; its workers leave after their present frames, `vsr resume` goes on"
        )
    else:
        typer.echo(f"complete already, nothing to cancel: {run.uri}")


@app.command()
def runs(is_json: IsJson = False) -> None:
    """The runs that you began on this machine and that are still there.

    \b
    vsr runs
    """
    from vsr_hpc.launch import every_run

    found = every_run()
    if is_json:
        _answer(found)
        return
    for each in found:
        share = f"{each.frames_done / each.frames:4.0%}" if each.frames else "   -"
        typer.echo(f"{each.state:<11} {share}  {each.uri}")
    if not found:
        typer.echo("no runs here yet", err=True)


@app.command(no_args_is_help=True)
def logs(
    run_uri: RunUri,
    worker: Annotated[
        str | None, typer.Option("--worker", help="Only workers whose name holds this.")
    ] = None,
) -> None:
    """What a run's workers said.

    \b
    vsr logs out.mkv.vsr --worker gpu-node-3
    """
    run = _open(run_uri)
    found = [facts.name for facts in run.store.list("logs/") if worker is None or worker in facts.name]
    if not found:
        raise JobError(f"{run.uri}: no logs{f' of a worker named {worker}' if worker else ' yet'}")
    for name in found:
        typer.echo(f"== {name.removeprefix('logs/')}")
        typer.echo(run.store.read(name).decode(errors="replace"), nl=False)


@app.command("worker", no_args_is_help=True)
def worker_command(
    run_uri: RunUri,
    threads: Annotated[int, typer.Option("--threads", help="CPU threads; 0 for all.")] = 0,
    task: Annotated[str, typer.Option("--task", help="The scheduler's name of this worker's place.")] = "",
    restart: Annotated[int, typer.Option("--restart", help="How often this place was started before.")] = 0,
    with_parent: Annotated[int, typer.Option("--with-parent", help="Leave when this process is gone.")] = 0,
    metrics: Annotated[
        Metrics | None, typer.Option("--metrics", help="Figures for CloudWatch; the job's way if left out.")
    ] = None,
    prometheus: Annotated[
        str | None, typer.Option("--prometheus", help="A folder for the node exporter's textfile collector.")
    ] = None,
    is_quiet: IsQuiet = False,
) -> None:
    """Work on a run until nothing is missing. This is what executors start.

    \b
    vsr worker out.mkv.vsr
    """
    from vsr_hpc.system.interrupts import StopFlag, signals_set, spot_watched
    from vsr_hpc.work import worker

    if not is_quiet:
        for handler in logging.getLogger().handlers:
            handler.setLevel(logging.INFO)
    options = worker.WorkerOptions(
        threads=threads,
        task=task,
        restart=restart,
        parent=with_parent,
        metrics=metrics.value if metrics else None,
        prometheus=prometheus,
    )
    stop = StopFlag()
    with signals_set(stop), spot_watched(stop):
        outcome = worker.work(run_uri, options, stop)
    if not is_quiet:
        why = f", stopped: {outcome.reason.value}" if outcome.reason else ""
        typer.echo(f"{_counted(outcome.shards, 'shard')}, {_counted(outcome.frames, 'frame')}{why}", err=True)


@app.command(no_args_is_help=True)
def finish(run_uri: RunUri, is_json: IsJson = False) -> None:
    """Merge a run whose shards are all done, and verify it. Harmless when called twice.

    \b
    vsr finish out.mkv.vsr
    """
    from vsr_hpc.launch import finish_here

    _report_done(finish_here(_open(run_uri)), is_quiet=False, is_json=is_json)


@app.command(no_args_is_help=True)
def verify(
    source: Annotated[str, typer.Argument(metavar="IN", help="The source clip.")],
    output: Annotated[str, typer.Argument(metavar="OUT", help="What was made of it.")],
    deep: Annotated[bool, typer.Option("--deep/--packets", help="Decode and compare every picture.")] = True,
    audio: AudioOption = Audio.copy,
    drop: Drop = [],  # noqa: B006 - typer copies it
    start: Start = None,
    stop: Stop = None,
    frames: Frames = None,
    is_json: IsJson = False,
) -> None:
    """Prove an output: frames, timestamps, streams, tags, each picture its input's. Exit code 5 if not.

    \b
    vsr verify in.mkv out.mkv
    """
    from vsr_hpc.job.spec import RangeSection, StreamsSection
    from vsr_hpc.launch import verify_here

    result = verify_here(
        source,
        output,
        is_deep=deep,
        streams=StreamsSection(audio=audio.value, drop=tuple(drop)),
        wanted=RangeSection.model_validate({"from": start, "to": stop, "frames": frames}),
    )
    if is_json:
        _answer(result)
    else:
        for line in result.lines():
            typer.echo(line)
    if not result.ok:
        raise VerifyError(f"{output} is not the whole, true output of {source}")


@models_app.command("list")
def models_list(is_json: IsJson = False) -> None:
    """The models that `--model` takes by name.

    \b
    vsr models list
    """
    from vsr_hpc.models.cards import all_cards

    cards = all_cards()
    if is_json:
        _answer(list(cards))
        return
    width = max(len(card.name) for card in cards)
    for card in cards:
        factor = "any" if card.is_filter else f"x{card.scale}"
        typer.echo(f"{card.name:<{width}}  {factor:<4} {card.description}")


@models_app.command("show", no_args_is_help=True)
def models_show(name: Annotated[str, typer.Argument(help="A model's name or a weights file.")]) -> None:
    """One model's card: its network, licence, weights and limits.

    \b
    vsr models show realesr-animevideov3
    """
    from vsr_hpc.models.cards import find_card

    _answer(find_card(name))


@models_app.command("pull", no_args_is_help=True)
def models_pull(name: Annotated[str, typer.Argument(help="A model's name.")]) -> None:
    """Fetch a model's weights into the cache, check them, and print where they are.

    \b
    vsr models pull realesr-animevideov3
    """
    from vsr_hpc.cli.progress import downloading
    from vsr_hpc.models import weights
    from vsr_hpc.models.cards import find_card

    with downloading(name) as progress:
        typer.echo(str(weights.ensure(find_card(name), progress)))


@models_app.command("import", no_args_is_help=True)
def models_import(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A .pth or .safetensors file.")],
    name: Annotated[str | None, typer.Option("--name", help="The model's name from now on.")] = None,
) -> None:
    """Recognise the network in a file of weights and keep it as a model of your own.

    \b
    vsr models import 4x-film.pth --name film
    """
    from vsr_hpc.models import weights

    card = weights.import_weights(path, name)
    typer.echo(f"{card.name}: {card.network} x{card.scale}")


def main() -> None:
    """The entry point: errors become one line on stderr and the exit code that schedulers know."""
    set_identity()
    set_thread_policy()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="surrogateescape")  # file names come out as they are
    try:
        sys.exit(app(standalone_mode=False))  # the value of typer.Exit, None where a command just ends
    except VsrError as exc:
        _fail(str(exc), exc.exit_code)
    except (KeyboardInterrupt, typer.Abort):  # newer versions of typer make an exit code of it themselves
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(141)
    except OSError as exc:
        log.debug("an error of the system", exc_info=True)
        _fail(f"{exc.filename}: {exc.strerror}" if exc.filename else str(exc), _exit_code(exc))
    except Exception as exc:
        if not hasattr(exc, "format_message"):  # click's usage errors, wherever this typer keeps its click
            raise
        _fail_usage(exc)


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
    _fail(f"{text}; `{context.command_path if context else 'vsr'} --help` tells more", 2)


def _fail(text: str, code: int) -> NoReturn:
    _say(text)
    sys.exit(code)


def _say(text: str) -> None:
    print(f"vsr: {text}", file=sys.stderr)  # noqa: T201


def _launch(job: JobSpec, *, is_new: bool, is_quiet: bool, is_json: bool, after: Run | None = None) -> None:
    done = _begin(job, is_new=is_new, is_quiet=is_quiet, is_json=is_json, after=after)
    if done is not None:
        _report_done(done, is_quiet=is_quiet, is_json=is_json)


def _launch_each(
    jobs: list[JobSpec], *, is_new: bool, is_quiet: bool, is_json: bool, after: Run | None = None
) -> None:
    """One after the other; an input that is refused does not keep the others from being made."""
    from vsr_hpc.models.cards import find_card

    find_card(jobs[0].model)  # the same for all: refused once
    answers: list[Done] = []
    errors: list[VsrError] = []
    for job in jobs:
        try:
            done = _begin(job, is_new=is_new, is_quiet=is_quiet, is_json=is_json, after=after)
        except (JobError, MediaError, VerifyError) as exc:
            errors.append(exc)
            _say(str(exc) if job.input in str(exc) else f"{job.input}: {exc}")
            continue
        if done is not None:
            answers.append(done)
            if not is_json:
                _report_done(done, is_quiet=is_quiet, is_json=False)
    is_here = jobs[0].on == "local"
    if is_json and is_here:
        _answer(answers)
    if errors:
        what = "upscaled" if is_here else "begun"
        _fail(f"{len(errors)} of {len(jobs)} inputs were not {what}", errors[0].exit_code)


def _begin(
    job: JobSpec, *, is_new: bool, is_quiet: bool, is_json: bool, after: Run | None = None
) -> Done | None:
    from vsr_hpc.launch import submit as begin

    submitted = begin(job, is_new=is_new, after=after)
    if not is_quiet:
        for note in submitted.notes:
            typer.echo(f"note: {note}", err=True)
    is_fresh = not submitted.is_continued
    return _carry_out(submitted.run, job, is_new=is_fresh, is_quiet=is_quiet, is_json=is_json, after=after)


def _carry_out(
    run: Run, job: JobSpec, *, is_new: bool, is_quiet: bool, is_json: bool, after: Run | None = None
) -> Done | None:
    """See a run to its end; None where that goes on elsewhere."""
    from vsr_hpc.cli.progress import Watching
    from vsr_hpc.launch import already_done, ensure_plan, run_here
    from vsr_hpc.system.interrupts import StopFlag, signals_set

    done = already_done(run)
    if done is not None:
        if not is_quiet:
            typer.echo("complete already, nothing to do", err=True)
        return done
    if job.on != "local":
        _start_elsewhere(run, job, is_quiet=is_quiet, is_json=is_json, after=after)
        return None
    stop = StopFlag()
    try:
        ensure_plan(run, is_new=is_new)
        with signals_set(stop), Watching(run, stop, is_quiet=is_quiet) as watching:
            done = run_here(run, stop, how=job.run, on_beat=watching.on_beat, on_tick=watching.on_tick)
    except KeyboardInterrupt:  # while planning, or for the second time
        _say("aborted; call again to go on from the last finished shard")
        os._exit(130)  # a stage may be inside the network, and would be waited for
    if done is None:
        _stopped(run, stop)
    return done


def _start_elsewhere(
    run: Run, job: JobSpec, *, is_quiet: bool, is_json: bool, after: Run | None = None
) -> None:
    """Start the workers and leave: the run goes on without this process."""
    from vsr_hpc.launch import start_elsewhere

    begun = start_elsewhere(run, job, after)
    if not is_quiet:
        typer.echo(f"{begun}\nvsr status {run.uri} --watch   shows it", err=True)
    if is_json:
        _answer({"uri": run.uri, "begun": begun})
    else:
        typer.echo(run.uri)


def _stopped(run: Run, stop: StopFlag) -> NoReturn:
    left, all_of_them = len(run.missing()), run.plan.shard_count
    why = stop.reason.value if stop.reason else "stopped"
    typer.echo(
        f"{why}: {_counted(left, 'shard')} of {all_of_them} {'is' if left == 1 else 'are'} missing; "
        "call again to go on",
        err=True,
    )
    raise typer.Exit(130)


def _report_done(done: Done, *, is_quiet: bool, is_json: bool) -> None:
    if is_json:
        _answer(done)
        return
    if not is_quiet:
        for note in done.notes:
            typer.echo(f"note: {note}", err=True)
    typer.echo(_shown(done.output))


def _shown(place: str) -> str:
    """As a person would name it from where they stand."""
    path, here = Path(place), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else place


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _open(uri: str) -> Run:
    from vsr_hpc.run.run import Run

    return Run.open(uri)


def _answer(found: Any) -> None:
    from pydantic import TypeAdapter

    typer.echo(json.dumps(TypeAdapter(Any).dump_python(found, mode="json"), indent=1))
