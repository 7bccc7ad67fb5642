"""The commands that start, watch and end runs: upscale, submit, resume, status, cancel, verify and others."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from vsr_hpc.cli.answers import IsJson, IsJsonOfJob, answer, ask, fail, say
from vsr_hpc.cli.completion import complete_files, complete_runs
from vsr_hpc.cli.job_options import build_document, given_options, read_jobs, says_frames
from vsr_hpc.cli.plan import show_plan
from vsr_hpc.errors import JobError, MediaError, VerifyError, VsrError
from vsr_hpc.wording import duration, plural, size

if TYPE_CHECKING:
    from vsr_hpc.job.spec import JobSpec
    from vsr_hpc.run.documents import Done
    from vsr_hpc.run.run import Run
    from vsr_hpc.system.interrupts import StopFlag


_RUN, _MACHINE = "Run", "Machine"


class Metrics(StrEnum):
    none = "none"
    emf = "emf"


class Where(StrEnum):
    local = "local"
    slurm = "slurm"
    aws_batch = "aws-batch"


def _silence(is_quiet: bool) -> bool:
    if is_quiet:
        for handler in logging.getLogger().handlers:
            handler.setLevel(max(handler.level, logging.ERROR))
    return is_quiet


IsQuiet = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        callback=_silence,
        help="Print only the answer and errors, no progress.",
        rich_help_panel=_RUN,
    ),
]
IsNew = Annotated[
    bool,
    typer.Option("--new", help="Delete an earlier run of this output and start again.", rich_help_panel=_RUN),
]
Inputs = Annotated[
    list[str],
    typer.Option("-i", "--input", hidden=True, help="An input, as IN; may be repeated."),
]
Output = Annotated[str | None, typer.Option("-o", "--output", hidden=True, help="The output, as OUT.")]
RunUri = Annotated[
    str,
    typer.Argument(
        help="The run: its folder (.vsr/OUT), s3://bucket/prefix, or the output.",
        autocompletion=complete_runs,
    ),
]


def upscale(
    context: typer.Context,
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IN... OUT", help="Clips, images, folders or patterns, and the output (or -i IN -o OUT)."
        ),
    ] = None,
    inputs: Inputs = [],  # noqa: B006 - typer copies it
    output: Output = None,
    new: IsNew = False,
    is_quiet: IsQuiet = False,
    is_json: IsJsonOfJob = False,
) -> None:
    """Upscale clips and images on this machine. The same command continues an interrupted run.

    Without OUT, in.mkv becomes in-upscaled.mkv beside it.

    \b
    vsr upscale in.mkv out.mkv --model realesr-animevideov3
    vsr upscale in.mp4 out.mkv --size 1920x1080 --codec h265 --crf 20
    vsr upscale a.mp4 b.mp4 folder/            several inputs into a folder
    vsr upscale frames/ bigger/ --rate 24      a folder of images
    """
    from vsr_hpc.job.inputs import expand
    from vsr_hpc.job.options import spell_option
    from vsr_hpc.job.reading import parse_job

    given = given_options(context)
    places = [*inputs, *(paths or []), *([output] if output else [])]
    pairs = expand(places, are_frames=says_frames(given))
    jobs = [parse_job(build_document(given, *pair), "", spell=spell_option) for pair in pairs]
    if len(jobs) == 1:
        _launch(jobs[0], is_new=new, is_quiet=is_quiet, is_json=is_json)
    else:
        _launch_each(jobs, is_new=new, is_quiet=is_quiet, is_json=is_json)


def submit(
    context: typer.Context,
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[JOB.yaml] [IN... OUT]",
            autocompletion=complete_files,
            help="A job file (jobs/ has examples), inputs and an output, or both.",
        ),
    ] = None,
    inputs: Inputs = [],  # noqa: B006 - typer copies it
    output: Output = None,
    on: Annotated[
        Where | None,
        typer.Option(
            "--on", help="Where workers run. The job file's `on` if left out.", rich_help_panel=_MACHINE
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Check the job and print the plan; start nothing.", rich_help_panel=_RUN
        ),
    ] = False,
    after: Annotated[
        str | None,
        typer.Option(
            "--after",
            metavar="RUN",
            help="Start when this run is complete. Its output may be the input.",
            autocompletion=complete_runs,
            rich_help_panel=_MACHINE,
        ),
    ] = None,
    new: IsNew = False,
    is_quiet: IsQuiet = False,
    is_json: IsJsonOfJob = False,
) -> None:
    """Run a job on this machine, on Slurm or on AWS Batch. The same job submitted again continues its run.

    Prints the output, or the run's address where the run continues without this command. Options override
    the job file. Each of several inputs, and each clip of a folder, is a job of its own.

    \b
    vsr submit jobs/film.yaml --on slurm
    vsr submit jobs/film.yaml /shared/clips/ /shared/out/ --on slurm
    vsr submit jobs/film.yaml --workers 8 --dry-run
    vsr submit in.mkv out.mkv --on slurm --workers 4 --crf 20
    """
    from vsr_hpc.job.reading import with_absolute_paths
    from vsr_hpc.launch import predecessor

    places = [*(paths or []), *inputs, *([output] if output else [])]
    if not places:
        raise JobError("name a job file, or an input and an output: vsr submit IN OUT")
    jobs = read_jobs(places, given_options(context))
    if on is not None:
        jobs = [job.model_copy(update={"on": on.value}) for job in jobs]
    jobs = [job if job.on == "local" else with_absolute_paths(job) for job in jobs]
    if dry_run:
        for job in jobs:
            show_plan(job, is_json=is_json)
        return
    first = None if after is None else predecessor(after, jobs[0])
    if len(jobs) == 1:
        _launch(jobs[0], is_new=new, is_quiet=is_quiet, is_json=is_json, after=first)
    else:
        _launch_each(jobs, is_new=new, is_quiet=is_quiet, is_json=is_json, after=first)


def resume(
    run_uri: RunUri,
    workers: Annotated[
        int | None, typer.Option("--workers", "-w", help="Number of workers from now on.")
    ] = None,
    retry_poisoned: Annotated[
        bool,
        typer.Option(
            "--retry-poisoned", help="Try again the shards that failed too often and were set aside."
        ),
    ] = False,
    on: Annotated[
        Where | None, typer.Option("--on", help="Where workers run. Where they ran last if left out.")
    ] = None,
    is_quiet: IsQuiet = False,
    is_json: IsJson = False,
) -> None:
    """Continue a run: upscale the shards that are missing, then merge.

    \b
    vsr resume out.mkv
    """
    from vsr_hpc.launch import executor_of, retry

    run = _open(run_uri)
    retry(run, retries_poisoned=retry_poisoned)
    job = run.job()
    how = job.run if workers is None else job.run.model_copy(update={"workers": workers})
    where = on.value if on else executor_of(run)
    job = job.model_copy(update={"run": how, "on": where})
    done = _carry_out(run, job, is_new=False, is_quiet=is_quiet, is_json=is_json)
    if done is not None and is_json:
        answer(done)


def status(
    run_uri: RunUri,
    is_watched: Annotated[
        bool, typer.Option("--watch", help="Keep showing the status until the run ends.")
    ] = False,
    is_json: IsJson = False,
) -> None:
    """Show a run's progress: shards, speed, workers, time of each stage, failures.

    \b
    vsr status out.mkv --watch
    """
    from vsr_hpc.cli.progress import say_status, watch
    from vsr_hpc.launch import watched_status

    run = _open(run_uri)
    if is_watched and not is_json:
        watch(lambda: watched_status(run))
        return
    found = watched_status(run)
    if is_json:
        answer(found)
        return
    say_status(found)


def cancel(run_uri: RunUri) -> None:
    """Stop a run's workers. Finished shards are kept; `vsr resume` continues.

    \b
    vsr cancel out.mkv
    """
    from vsr_hpc import launch

    run = _open(run_uri)
    if launch.cancel(run):
        typer.echo(
            f"cancelled: {run.uri}; workers stop after their current frames, `vsr resume` continues the run"
        )
    else:
        typer.echo(f"already complete, nothing to cancel: {run.uri}")


def runs(is_json: IsJson = False) -> None:
    """List the runs that you started on this machine and that still exist.

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
        typer.echo("no runs yet", err=True)


class CleanKept(StrEnum):
    report = "report"
    nothing = "nothing"


def clean(
    outputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[OUT...]", help="Outputs or runs. All your finished runs if left out."),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option("--older-than", metavar="AGE", help="Only runs that ended so long ago: 12h, 7d, 2w."),
    ] = None,
    keep: Annotated[
        CleanKept,
        typer.Option("--keep", help="Keep each run's report and one file of its records, or nothing."),
    ] = CleanKept.nothing,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Also remove a named run that is not finished.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    is_json: IsJson = False,
) -> None:
    """Remove what finished runs left beside their outputs. The outputs stay.

    \b
    vsr clean out.mkv
    vsr clean --older-than 7d
    """
    from vsr_hpc.run.keeping import keep_only, look_at, refuse_removal
    from vsr_hpc.run.known_runs import remembered_runs

    least_s = 0.0 if older_than is None else _parse_age(older_than)
    found = [look_at(_open(uri)) for uri in outputs or remembered_runs()]
    if outputs:
        for left in found:
            refuse_removal(left, is_unfinished_too=unfinished)
    else:
        found = [left for left in found if left.state == "complete"]
    found = [left for left in found if left.idle_s >= least_s]
    whole = sum(left.size_bytes for left in found)
    for left in found:
        age = f"{_age(left.idle_s)} ago"
        typer.echo(f"{size(left.size_bytes):>9}  {left.state:<10}  {age:<11}  {left.run.uri}", err=is_json)
    if found:
        what = f"{plural(len(found), 'run')}, {size(whole)}"
        ask(f"remove {what}? The outputs stay." + (" Reports stay." * (keep == "report")), yes)
        for left in found:
            keep_only(left.run, keep.value)
        typer.echo(f"removed: {what}", err=True)
    else:
        typer.echo("nothing to remove", err=True)
    if is_json:
        answer([{"uri": left.run.uri, "size_bytes": left.size_bytes} for left in found])


_AGES_S = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def _parse_age(text: str) -> float:
    unit = _AGES_S.get(text[-1:])
    if unit is None or not text[:-1].isdecimal():
        raise JobError(f"--older-than {text}: write a number and m, h, d or w, for example 7d")
    return float(text[:-1]) * unit


def _age(seconds: float) -> str:
    return f"{seconds / 86_400:.0f} d" if seconds >= 2 * 86_400 else duration(seconds)


def logs(
    run_uri: RunUri,
    worker: Annotated[
        str | None, typer.Option("--worker", help="Only workers whose name contains this.")
    ] = None,
) -> None:
    """Print the logs of a run's workers.

    \b
    vsr logs out.mkv --worker gpu-node-3
    """
    run = _open(run_uri)
    found = [facts.name for facts in run.store.list("logs/") if worker is None or worker in facts.name]
    if not found:
        raise JobError(f"{run.uri}: no logs{f' of a worker named {worker}' if worker else ' yet'}")
    for name in found:
        typer.echo(f"== {name.removeprefix('logs/')}")
        typer.echo(run.store.read(name).decode(errors="replace"), nl=False)


def work(
    run_uri: RunUri,
    threads: Annotated[int, typer.Option("--threads", help="CPU threads; 0 for all.")] = 0,
    task: Annotated[str, typer.Option("--task", help="The scheduler's name of this worker's task.")] = "",
    restart: Annotated[int, typer.Option("--restart", help="How often this task was started before.")] = 0,
    with_parent: Annotated[
        int,
        typer.Option(
            "--with-parent", help="The process that started this worker and merges. The worker ends with it."
        ),
    ] = 0,
    leaves_merge: Annotated[
        bool, typer.Option("--leave-merge", help="Leave the merge to another process.")
    ] = False,
    metrics: Annotated[
        Metrics | None,
        typer.Option("--metrics", help="Log figures for CloudWatch (emf). As the job says if left out."),
    ] = None,
    prometheus: Annotated[
        str | None, typer.Option("--prometheus", help="A folder for the node exporter's textfile collector.")
    ] = None,
    is_quiet: IsQuiet = False,
) -> None:
    """Work on a run's shards until none is missing. Executors start this command.

    \b
    vsr worker out.mkv
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
        does_finish=not (with_parent or leaves_merge),
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
    """Merge a run whose shards are all done, and check the output. Safe to repeat.

    \b
    vsr finish out.mkv
    """
    from vsr_hpc.launch import finish_here

    run = _open(run_uri)
    done = finish_here(run)
    if is_json:
        answer(done)
        return
    _answer_with_output(done, is_json=False)
    _say_end(run, done)


def verify(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="IN", help="The clip that was upscaled; or a run.")],
    output: Annotated[
        str | None,
        typer.Argument(metavar="[OUT]", help="The output that was made from it.", show_default=False),
    ] = None,
    deep: Annotated[
        bool,
        typer.Option("--deep/--packets", help="Decode and compare every picture, or check packets only."),
    ] = True,
    is_json: IsJsonOfJob = False,
) -> None:
    """Check that an output is complete and true: frames, timestamps, streams, tags, each picture.

    Exit code 5 if it is not. The run that made the output says what was asked for; the options say it
    where that run is gone.

    \b
    vsr verify in.mkv out.mkv
    vsr verify .vsr/out.mkv                    a run
    """
    from vsr_hpc.job.options import spell_option
    from vsr_hpc.job.reading import parse_job
    from vsr_hpc.launch import verify_here
    from vsr_hpc.verification.of_plan import verify_run

    given = given_options(context)
    for place in (source, output):
        if place is not None:
            _need_file(place)
    if output is None:
        if given:
            raise JobError(f"{source}: a run says itself what was asked for; leave the other options out")
        result = verify_run(_open(source), deep=deep)
    else:
        job = parse_job(build_document(given, source, output), "", spell=spell_option)
        result = verify_here(job, is_deep=deep)
    if is_json:
        answer(result)
    else:
        for line in result.lines():
            typer.echo(line)
    if not result.ok:
        raise VerifyError(
            f"{result.output} is not a complete and true output of {result.input}; the findings are above"
        )


def _need_file(place: str) -> None:
    """A place on this machine that names one file or folder must exist; a pattern is looked at later."""
    from vsr_hpc.system.files import describe_missing

    if "://" not in place and not set("*?%[") & set(place) and not Path(place).exists():
        raise JobError(f"{place}: {describe_missing(Path(place))}")


def _launch(job: JobSpec, *, is_new: bool, is_quiet: bool, is_json: bool, after: Run | None = None) -> None:
    done = _begin(job, is_new=is_new, is_quiet=is_quiet, is_json=is_json, after=after)
    if done is not None and is_json:
        answer(done)


def _launch_each(
    jobs: list[JobSpec], *, is_new: bool, is_quiet: bool, is_json: bool, after: Run | None = None
) -> None:
    """Run the jobs one after the other. An input that is refused does not stop the others."""
    from vsr_hpc.models.cards import find_card

    find_card(jobs[0].model)  # all jobs have the same model, so one refusal is enough
    answers: list[Done] = []
    errors: list[VsrError] = []
    began, notes = time.monotonic(), set[str]()
    for number, job in enumerate(jobs, 1):
        place = _Place(number=number, count=len(jobs), notes=notes)
        try:
            done = _begin(job, is_new=is_new, is_quiet=is_quiet, is_json=is_json, after=after, place=place)
        except (JobError, MediaError, VerifyError) as exc:
            errors.append(exc)
            text = str(exc) if job.input in str(exc) else f"{job.input}: {exc}"
            say(f"{number} of {len(jobs)}: {text}")
            continue
        if done is not None:
            answers.append(done)
    is_here = jobs[0].on == "local"
    if is_json and is_here:
        answer(answers)
    if errors:
        what = "upscaled" if is_here else "started"
        fail(f"{len(errors)} of {len(jobs)} inputs were not {what}", errors[0].exit_code)
    if is_here and not is_quiet:
        typer.echo(f"{plural(len(jobs), 'input')} upscaled in {duration(time.monotonic() - began)}", err=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """The place of a job among several, and the notes that those before it have printed."""

    number: int
    count: int
    notes: set[str]


def _begin(
    job: JobSpec,
    *,
    is_new: bool,
    is_quiet: bool,
    is_json: bool,
    after: Run | None = None,
    place: _Place | None = None,
) -> Done | None:
    from vsr_hpc.launch import describe_job
    from vsr_hpc.launch import submit as begin

    submitted = begin(job, is_new=is_new, after=after)
    run = submitted.run
    if not is_quiet and run.done() is None:
        if submitted.prepared is not None:
            frames = run.plan.frames if run.has_plan() else None
            counted = f"{place.number} of {place.count}: " if place else ""
            typer.echo(counted + describe_job(submitted.prepared, frames), err=True)
        said = place.notes if place else set()
        for note in submitted.notes:
            if note not in said:
                typer.echo(f"note: {note}", err=True)
        said.update(submitted.notes)
    is_fresh = not submitted.is_continued
    is_brief = place is not None and submitted.prepared is not None and submitted.prepared.makes_still
    return _carry_out(
        run, job, is_new=is_fresh, is_quiet=is_quiet, is_json=is_json, is_brief=is_brief, after=after
    )


def _carry_out(
    run: Run,
    job: JobSpec,
    *,
    is_new: bool,
    is_quiet: bool,
    is_json: bool,
    is_brief: bool = False,
    after: Run | None = None,
) -> Done | None:
    """Carry a run to its end and print its output. None where it continues on another machine.

    `is_brief` leaves out the line of each phase and the last one: for one of many stills.
    """
    from vsr_hpc.cli.progress import Watching
    from vsr_hpc.launch import already_done, fewer_workers_note, run_here
    from vsr_hpc.system.interrupts import StopFlag, signals_set

    done = already_done(run)
    if done is not None:
        if not is_quiet:
            typer.echo("already complete, nothing to do", err=True)
        _answer_with_output(done, is_json=is_json)
        return done
    if job.on != "local":
        _start_elsewhere(run, job, is_quiet=is_quiet, is_json=is_json, after=after)
        return None
    stop = StopFlag()
    announced: list[Done] = []

    def announce(done: Done) -> None:
        announced.append(done)
        _answer_with_output(done, is_json=is_json)

    try:
        _make_plan(run, is_new=is_new, is_quiet=is_quiet or is_brief)
        fewer = None if is_quiet else fewer_workers_note(run, job.run)
        if fewer is not None:
            typer.echo(f"note: {fewer}", err=True)
        watching = Watching(run, stop, is_quiet=is_quiet, is_brief=is_brief, on_output=announce)
        with signals_set(stop), watching:
            done = run_here(
                run,
                stop,
                how=job.run,
                on_beat=watching.on_beat,
                on_tick=watching.on_tick,
                on_phase=watching.on_phase,
            )
    except KeyboardInterrupt:  # while planning, or for the second time
        say("aborted; the same command continues from the last finished shard")
        os._exit(130)  # a normal exit would wait for a stage that is inside the network
    if done is None:
        _exit_stopped(run, stop)
    if not announced:
        _answer_with_output(done, is_json=is_json)
    if not is_quiet and not is_brief:
        _say_end(run, done)
    return done


def _make_plan(run: Run, *, is_new: bool, is_quiet: bool) -> None:
    """Make the plan, unless the run has one, and say what it is."""
    from vsr_hpc.cli.progress import NamedPhase
    from vsr_hpc.launch import ensure_plan

    phase = NamedPhase("plan", is_quiet=is_quiet or run.has_plan())
    try:
        ensure_plan(run, is_new=is_new)
    except BaseException:
        phase.stop()
        raise
    plan = run.plan
    phase.end(f"{plural(plan.frames, 'frame')} in {plural(plan.shard_count, 'shard')}")
    if plan.clip.is_cut_off and not is_quiet:
        whole, timeline = plan.clip.duration_s, run.timeline
        there = (timeline.end - int(timeline.pts[0])) * timeline.time_base
        lost = f", {float(whole - there):.1f} s of {float(whole):.1f} s are missing" if whole else ""
        typer.echo(
            f"note: the file is cut off: {plural(len(timeline), 'whole frame')} could be read{lost}", err=True
        )


def _start_elsewhere(
    run: Run, job: JobSpec, *, is_quiet: bool, is_json: bool, after: Run | None = None
) -> None:
    """Start the workers and return: the run continues without this process."""
    from vsr_hpc.launch import fewer_workers_note, start_elsewhere

    begun = start_elsewhere(run, job, after)
    fewer = fewer_workers_note(run, job.run)
    if not is_quiet:
        if fewer is not None:
            typer.echo(f"note: {fewer}", err=True)
        typer.echo(f"{begun}\n`vsr status {run.uri} --watch` shows its progress", err=True)
    if is_json:
        answer({"uri": run.uri, "begun": begun})
    else:
        typer.echo(run.uri)


def _exit_stopped(run: Run, stop: StopFlag) -> NoReturn:
    left, all_of_them = len(run.missing()), run.plan.shard_count
    why = stop.reason.value if stop.reason else "stopped"
    typer.echo(
        f"{why}: {plural(left, 'shard')} of {all_of_them} {'is' if left == 1 else 'are'} missing; "
        "the same command continues",
        err=True,
    )
    raise typer.Exit(130)


def _answer_with_output(done: Done, *, is_json: bool) -> None:
    """Print where the output is, as the answer of a command that does not answer with JSON."""
    if not is_json:
        typer.echo(_relative(done.output))


def _say_end(run: Run, done: Done) -> None:
    """What the merge has to say, and the last line: the output, its size, its times, its report."""
    from vsr_hpc.launch import report_of
    from vsr_hpc.planning.summary import describe_size

    for note in done.notes:
        typer.echo(f"note: {note}", err=True)
    speed = f" at {done.fps:.2f} fps" if done.frames > 1 and done.fps else ""
    parts = [
        f"{_relative(done.output)} {describe_size(run.plan.picture)}",
        f"{size(done.size_bytes)} ({done.size_bytes:,} bytes)",
        f"{plural(done.frames, 'frame')}{speed}",
        f"{duration(done.seconds.get('all', 0.0))} in all",
    ]
    report = report_of(run)
    typer.echo(", ".join(parts) + (f"; report: {_relative(report)}" if report else ""), err=True)


def _relative(place: str) -> str:
    """The place as seen from the current folder, where it lies below it."""
    path, here = Path(place), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else place


def _open(uri: str) -> Run:
    from vsr_hpc.run.run import Run

    return Run.open(uri)
