"""The commands that start, watch and end runs: upscale, submit, resume, status, cancel and others."""

from __future__ import annotations

import logging
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from vsr_hpc.cli import plan as cli_plan
from vsr_hpc.cli.answers import IsJson, answer, fail, say
from vsr_hpc.cli.job_options import (
    Audio,
    AudioOption,
    Drop,
    Frames,
    Start,
    Stop,
    asked_jobs,
    document,
    takes_job_options,
)
from vsr_hpc.errors import JobError, MediaError, VerifyError, VsrError
from vsr_hpc.job.option_names import as_option
from vsr_hpc.wording import plural

if TYPE_CHECKING:
    from vsr_hpc.job.spec import JobSpec
    from vsr_hpc.run.documents import Done
    from vsr_hpc.run.run import Run
    from vsr_hpc.system.interrupts import StopFlag


class Metrics(StrEnum):
    none = "none"
    emf = "emf"
    cloudwatch = "cloudwatch"


class Where(StrEnum):
    local = "local"
    slurm = "slurm"
    aws_batch = "aws-batch"


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
    from vsr_hpc.job.reading import parse_job

    jobs = [
        parse_job(document(given, source, place), "", spelled=as_option) for source, place in expand(paths)
    ]
    if len(jobs) == 1:
        _launch(jobs[0], is_new=new, is_quiet=is_quiet, is_json=is_json)
    else:
        _launch_each(jobs, is_new=new, is_quiet=is_quiet, is_json=is_json)


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
    from vsr_hpc.job.reading import placed
    from vsr_hpc.launch import predecessor

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
        answer(found)
        return
    say_status(found)


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


def runs(is_json: IsJson = False) -> None:
    """The runs that you began on this machine and that are still there.

    \b
    vsr runs
    """
    from vsr_hpc.run.known_runs import every_run

    found = every_run()
    if is_json:
        answer(found)
        return
    for each in found:
        share = f"{each.frames_done / each.frames:4.0%}" if each.frames else "   -"
        typer.echo(f"{each.state:<11} {share}  {each.uri}")
    if not found:
        typer.echo("no runs here yet", err=True)


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
    from vsr_hpc.system.interrupts import StopFlag, signals_set
    from vsr_hpc.system.spot_notice import spot_watched
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
        typer.echo(f"{plural(outcome.shards, 'shard')}, {plural(outcome.frames, 'frame')}{why}", err=True)


def finish(run_uri: RunUri, is_json: IsJson = False) -> None:
    """Merge a run whose shards are all done, and verify it. Harmless when called twice.

    \b
    vsr finish out.mkv.vsr
    """
    from vsr_hpc.launch import finish_here

    _report_done(finish_here(_open(run_uri)), is_quiet=False, is_json=is_json)


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
        answer(result)
    else:
        for line in result.lines():
            typer.echo(line)
    if not result.ok:
        raise VerifyError(f"{output} is not the whole, true output of {source}")


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
            say(str(exc) if job.input in str(exc) else f"{job.input}: {exc}")
            continue
        if done is not None:
            answers.append(done)
            if not is_json:
                _report_done(done, is_quiet=is_quiet, is_json=False)
    is_here = jobs[0].on == "local"
    if is_json and is_here:
        answer(answers)
    if errors:
        what = "upscaled" if is_here else "begun"
        fail(f"{len(errors)} of {len(jobs)} inputs were not {what}", errors[0].exit_code)


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
        say("aborted; call again to go on from the last finished shard")
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
        answer({"uri": run.uri, "begun": begun})
    else:
        typer.echo(run.uri)


def _stopped(run: Run, stop: StopFlag) -> NoReturn:
    left, all_of_them = len(run.missing()), run.plan.shard_count
    why = stop.reason.value if stop.reason else "stopped"
    typer.echo(
        f"{why}: {plural(left, 'shard')} of {all_of_them} {'is' if left == 1 else 'are'} missing; "
        "call again to go on",
        err=True,
    )
    raise typer.Exit(130)


def _report_done(done: Done, *, is_quiet: bool, is_json: bool) -> None:
    if is_json:
        answer(done)
        return
    if not is_quiet:
        for note in done.notes:
            typer.echo(f"note: {note}", err=True)
    typer.echo(_shown(done.output))


def _shown(place: str) -> str:
    """As a person would name it from where they stand."""
    path, here = Path(place), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else place


def _open(uri: str) -> Run:
    from vsr_hpc.run.run import Run

    return Run.open(uri)
