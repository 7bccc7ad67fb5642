"""Begin or continue a run, and see it to its end on this machine."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vsr_hpc.engine.device_facts import describe_device, device_facts, gpu_findings
from vsr_hpc.engine.settings import choose_precision
from vsr_hpc.errors import BackendError, JobError, MediaError
from vsr_hpc.executors import local
from vsr_hpc.executors.rounds import count_workers, was_refused
from vsr_hpc.forecast import forecast
from vsr_hpc.job.reading import with_absolute_paths
from vsr_hpc.job.spec import JobSpec, RunSection, run_folder
from vsr_hpc.media.clip.probe import content_hash
from vsr_hpc.media.encode.segment_writer import encoder_build
from vsr_hpc.models.cards import Card
from vsr_hpc.models.weights import fetch_weights
from vsr_hpc.planning.cutting import window_of
from vsr_hpc.planning.differences import describe_changes, describe_differences
from vsr_hpc.planning.fingerprint import fingerprint
from vsr_hpc.planning.plan import PlanError
from vsr_hpc.planning.planner import frame_range
from vsr_hpc.planning.preparation import Prepared, prepare
from vsr_hpc.planning.space import check_space
from vsr_hpc.planning.summary import summarise
from vsr_hpc.run.documents import Done, Heartbeat, Receipt
from vsr_hpc.run.keeping import keep_only
from vsr_hpc.run.known_runs import remember, remembered_runs
from vsr_hpc.run.notification import Event, notify
from vsr_hpc.run.run import Run
from vsr_hpc.run.status import RunStatus, read_status, with_costs
from vsr_hpc.storage.opening import open_source, open_store
from vsr_hpc.system import processes
from vsr_hpc.system.interrupts import StopFlag
from vsr_hpc.wording import duration, plural
from vsr_hpc.work.finish import is_in_place

if TYPE_CHECKING:
    from vsr_hpc.verification.verify import Verification

log = logging.getLogger(__name__)

Phase = Literal["plan", "upscale", "merge", "verify", "report"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """A run that is ready for workers."""

    run: Run
    notes: tuple[str, ...]
    is_continued: bool
    prepared: Prepared | None
    """What the job's clip and settings come to; None where another run makes its input first."""


def submit(job: JobSpec, *, is_new: bool = False, after: Run | None = None) -> Submitted:
    """Open the job's run, or make one. Refused where the run there was made with other settings.

    With `after`, a run that makes this one's input, the clip is looked at when it is there.
    """
    _check_executor(job)
    makes_input = after is not None and after.done() is None and after.job().output == job.input
    folder = open_store(job.run_uri)
    present = Run.find(folder)
    if present is not None and not is_new:
        done = present.done()
        if done is None or is_in_place(done):
            _check_same_output(present, job)
            prepared, differing = (None, ()) if makes_input else _differences(present, job)
            if not differing:
                notes = prepared.notes if prepared else ()
                return Submitted(run=present, notes=notes, is_continued=True, prepared=prepared)
            _refuse_to_replace(present, done, job, differing)
        else:
            log.warning("the finished output is gone, starting over output=%s", done.output)
    notes = (f"{job.input} is looked at once {after.uri} has made it",) if after and makes_input else ()
    prepared = None if notes else prepare(job)
    if prepared is not None:
        fetch_weights(prepared.card)
    if present is not None:
        _refuse_living(present)
    # Only now: a job that is refused throws nothing away.
    run = Run.create(folder, with_absolute_paths(job), replaces=present)
    if differing := _changes(run, job):
        raise JobError.from_findings(
            f"{run.uri} was begun by another call, with other settings", list(differing)
        )
    remember(run)
    notes = prepared.notes if prepared else notes
    return Submitted(run=run, notes=notes, is_continued=False, prepared=prepared)


def describe_job(prepared: Prepared, frames: int | None = None) -> str:
    """What a job will do, in one line: clip, output, model, device and encoder."""
    return summarise(prepared, device=_describe_device(prepared.job, prepared.card), frames=frames)


def _describe_device(job: JobSpec, card: Card) -> str:
    if job.on != "local":
        where = {"slurm": "Slurm", "aws-batch": "AWS Batch"}[job.on]
        return f"{where}: {plural(job.run.workers, 'worker')}"
    gpus = processes.visible_gpus() if job.run.gpus is None else job.run.gpus
    device = describe_device(gpus, job.run.threads or len(os.sched_getaffinity(0)))
    if card.is_filter:
        return device
    wanted = job.picture.precision
    return f"{choose_precision(card, device_facts()) if wanted == 'auto' else wanted}, {device}"


def predecessor(uri: str, job: JobSpec) -> Run:
    """The run that a job is to come after. Refused where nothing can wait for it."""
    after = Run.open(uri)
    if after.done() is None and job.on != "aws-batch":
        raise JobError(
            f"--after {uri}: that run is not complete, and only AWS Batch waits for one; `vsr resume {uri}` "
            "goes on with it, then submit this job"
        )
    return after


def ensure_plan(run: Run, *, is_new: bool = False) -> None:
    """Make the plan here and now where there is none yet, and check that the run fits its disk.

    A new run that is refused goes again, unless somebody works on it: a refusal leaves nothing behind.
    """
    try:
        if not run.has_plan():
            from vsr_hpc.work.run_plan import plan_run

            plan_run(run)
        stored = sum(facts.size_bytes for facts in run.store.list("segments/"))
        check_space(run.plan, run.uri, run.store.free_bytes(), stored)
    except BaseException:
        if is_new and not run.rounds() and not run.leases():
            run.withdraw()
        raise


def fewer_workers_note(run: Run, how: RunSection) -> str | None:
    """Why fewer workers start than were asked for; None where all of them do, or the plan is not made yet."""
    missing = len(run.missing()) if run.has_plan() else 0
    if not 0 < missing < how.workers:
        return None
    left = "is 1 shard" if missing == 1 else f"are {missing} shards"
    return (
        f"{how.workers} workers were asked for and {missing} will start, because there {left} left to make; "
        "--new with a shorter --chunk-s (and --shard-s) divides the clip more finely"
    )


def already_done(run: Run) -> Done | None:
    """The end of a finished run; None where something is left to do. JobError where its output is gone."""
    done = run.done()
    if done is not None and not is_in_place(done):
        raise JobError(
            f"{run.uri}: this run is complete but its output {done.output} is gone or was changed; "
            "`vsr upscale` or `vsr submit` of the same job starts over"
        )
    return done


def _check_executor(job: JobSpec) -> None:
    if job.on == "aws-batch":
        from vsr_hpc.executors.aws_batch import submission as aws_batch

        aws_batch.check(job)
    if job.on != "local" and job.run.keep in ("report", "nothing"):
        raise JobError(
            f"--keep {job.run.keep}: other machines may still write into the run when it ends; leave it out, "
            "and call `vsr clean OUT` afterwards"
        )
    if job.on == "local" and (findings := gpu_findings(job.run.gpus or ())):
        raise JobError.from_findings("--gpus", findings)


def run_here(
    run: Run,
    stop: StopFlag,
    *,
    how: RunSection | None = None,
    on_beat: Callable[[Heartbeat], None] = lambda heartbeat: None,
    on_tick: Callable[[], None] = lambda: None,
    on_phase: Callable[[Phase, Done | None], None] = lambda phase, done: None,
) -> Done | None:
    """Do what is missing on this machine and finish; None where the flag was set before the end.

    `how` says with how many workers, GPUs and threads this time; the plan's job where it is left out.
    `on_phase` hears of each phase when it begins, and of the output once that is in place.
    Finished shards whose segments were lost are made again.
    """
    from vsr_hpc.work.finish import ShardsLostError

    while True:
        try:
            return _run_round(run, stop, how or run.plan.job.run, on_beat, on_tick, on_phase)
        except ShardsLostError as exc:
            log.warning("%s", exc)


def _run_round(
    run: Run,
    stop: StopFlag,
    how: RunSection,
    on_beat: Callable[[Heartbeat], None],
    on_tick: Callable[[], None],
    on_phase: Callable[[Phase, Done | None], None],
) -> Done | None:
    from vsr_hpc.work import worker
    from vsr_hpc.work.finish import finish_patiently

    gpus = processes.visible_gpus() if how.gpus is None else how.gpus
    missing = run.missing()
    workers = count_workers(max(how.workers, len(gpus)), len(missing))
    forecast.note(run, run.plan.job.model_copy(update={"run": how, "on": "local"}))
    run.begin_again()
    run.start_round("local", workers, len(missing))
    done: Done | None = None
    on_phase("upscale", None)
    if missing and workers == 1 and not how.gpus:  # a process of its own sees only the GPU that is named
        options = worker.WorkerOptions(threads=how.threads or 0, does_finish=False)
        worker.work(run.place_uri, options, stop, on_beat)
    elif missing:
        threads = max(1, (how.threads or len(os.sched_getaffinity(0))) // workers)
        local.run_workers(run, workers=workers, gpus=gpus, threads=threads, stop=stop, on_tick=on_tick)
    if run.missing() and stop.is_set():
        why = stop.reason.value if stop.reason else "stopped"
        notify(run, "stopped", f"{run.job().output}: {why}; the same command continues")
        return None
    poisoned = run.poisoned()
    if poisoned:
        notify(run, "stuck", f"{run.job().output}: {len(poisoned)} shards cannot be made")
        raise MediaError(
            "\n".join(f"shard {each.shard:05d} cannot be made: {each.reason}" for each in poisoned)
        )
    if not run.missing():
        on_phase("merge", None)
        then = functools.partial(_conclude, how, on_phase)
        done = finish_patiently(run, os.uname().nodename, stop=stop, then=then)
    if done is not None and how.keep in ("auto", "report", "nothing"):
        keep_only(run, "nothing" if how.keep == "nothing" else "report")
    if done is None and not stop.is_set():
        raise BackendError(f"{run.uri}: work is left but other workers hold it; `vsr status` shows them")
    return done


def _conclude(
    how: RunSection,
    on_phase: Callable[[Phase, Done | None], None],
    run: Run,
    receipts: tuple[Receipt, ...],
) -> None:
    """After the merge: hold the output's packets against the source, then make the report."""
    from vsr_hpc.report.report import write_at_end
    from vsr_hpc.work.finish import check_output

    done = run.done()
    on_phase("verify", done)
    check_output(run)
    if how.report != "none" and how.keep != "nothing":
        on_phase("report", done)
        write_at_end(run, receipts)


def start_elsewhere(run: Run, job: JobSpec, after: Run | None = None) -> str:
    """Begin a round of workers on the job's executor, unless one is under way; what was begun, in words."""
    _check_executor(job)
    begun: str
    if job.on == "aws-batch":
        from vsr_hpc.executors.aws_batch import submission as aws_batch

        begun = aws_batch.start(run, job, after).text()
    else:
        from vsr_hpc.executors.slurm import submission as slurm
        from vsr_hpc.executors.slurm.finish_task import FinishTask

        begun = slurm.start(run, job, then=FinishTask).text()
    forecast.note(run, job)
    return begun


def executor_of(run: Run) -> str:
    """Where the run's latest round went; where its job wants to, before the first.

    A workflow's workers are jobs of AWS Batch: without the workflow the run goes on there.
    """
    rounds = run.rounds()
    where = rounds[-1].executor if rounds else run.job().on
    return "aws-batch" if where == "step-functions" else where


def cancel(run: Run) -> bool:
    """Stop a run: workers see the marker, and those that a scheduler holds are taken out of it.

    False, and nothing is done, where the run is complete.
    """
    if run.done() is not None:
        return False
    run.cancel()
    notify_if_own(run, "stopped", f"{run.job().output}: the run was cancelled; `vsr resume` continues it")
    where = executor_of(run)
    if where == "slurm":
        from vsr_hpc.executors.slurm import queue as slurm

        slurm.cancel(run)
    if where == "aws-batch":
        from vsr_hpc.executors.aws_batch import submission as aws_batch

        aws_batch.cancel(run)
    return True


def notify_if_own(run: Run, event: Event, text: str) -> None:
    """Notify from a command that only looks at a run, or stops it: never for a run that others began.

    A command in another person's run would otherwise be run as whoever looks at it.
    """
    if run.uri in remembered_runs():
        notify(run, event, text)


def watched_status(run: Run) -> RunStatus:
    """The whole status; where nobody works on the run any more and no process said so, this one does."""
    found = whole_status(run)
    output = run.job().output
    if found.state == "complete" and found.done is not None:
        notify_if_own(run, "complete", f"{found.done.output}, {plural(found.done.frames, 'frame')}")
    elif found.state == "poisoned":
        notify_if_own(run, "stuck", f"{output}: {plural(found.shards_poisoned, 'shard')} cannot be made")
    elif found.state == "incomplete" and _has_worked(found):
        missing = plural(found.shards_missing, "shard")
        notify_if_own(run, "stuck", f"{output}: {missing} missing and no worker is alive")
    return found


def _has_worked(found: RunStatus) -> bool:
    """Whether the latest round had a worker, which is gone by now; before that, the first is on its way."""
    return bool(found.rounds) and any(
        worker.heartbeat.round == found.rounds[-1].number for worker in found.workers
    )


def whole_status(run: Run) -> RunStatus:
    """A run's state with what its scheduler says of it, and what it was expected to take."""
    found = with_costs(read_status(run), run)
    if found.done is not None:
        found = replace(found, report=report_of(run))
    where = found.rounds[-1].executor if found.rounds else "local"
    if where == "aws-batch":
        from vsr_hpc.executors.aws_batch import submission as aws_batch

        lines, is_open = aws_batch.queue_of(run)
    elif any(each.executor == "slurm" for each in found.rounds):
        from vsr_hpc.executors.slurm import queue as slurm

        lines, is_open = slurm.queue_of(run)
    else:
        return found
    state = "waiting" if is_open and found.state == "incomplete" else found.state
    return replace(found, state=state, queue=lines)


def report_of(run: Run) -> str:
    """Where the report of a run lies; empty where there is none."""
    from vsr_hpc.report.report import NAME

    return f"{run.place_uri}/{NAME}" if run.store.exists(NAME) else ""


def retry(run: Run, *, retries_poisoned: bool = False) -> int:
    """Let shards that were set aside be tried again; how many they are."""
    run.begin_again()
    return run.retry_poisoned() if retries_poisoned else 0


def finish_here(run: Run) -> Done:
    """Merge and verify a complete run in this process, or see another process do it."""
    from vsr_hpc.work.finish import finish_patiently

    return already_done(run) or finish_patiently(run, os.uname().nodename)


def _run_of(output: str) -> Run | None:
    """The run that made an output, where it still stands and this version can read its plan."""
    run = Run.find(open_store(run_folder(output))) or _remembered_run_of(output)
    if run is None or not run.has_plan():
        return None
    try:
        return run if run.plan else None
    except PlanError as exc:
        log.warning("the run that made the output cannot be read: %s", exc)
        return None


def _remembered_run_of(output: str) -> Run | None:
    """A run of this user on this machine that lies elsewhere (`--run PLACE`), the latest first."""
    for uri in reversed(remembered_runs()):
        if "://" in uri:
            continue
        run = Run.find(open_store(uri))
        if run is not None and Path(run.job().output).resolve() == Path(output).resolve():
            return run
    return None


def verify_here(job: JobSpec, *, is_deep: bool) -> Verification:
    """Compare a job's output with its input.

    Where the run that made the output is found, its plan says what was asked for, else the job does. Such a
    run is compared as well: its receipts and its end must be of its plan's settings, and the output must be
    the file that it published.
    """
    from vsr_hpc.verification.of_plan import find_run_faults, promise_of_job, verify_output
    from vsr_hpc.verification.verify import verify

    run = _run_of(job.output)
    if run is not None and Path(run.plan.clip.uri).resolve() == Path(job.input).resolve():
        found = verify_output(run.plan, job.output, deep=is_deep)
        return replace(found, findings=(*found.findings, *find_run_faults(run, job.output)))
    return verify(open_source(job.input), open_source(job.output), promise_of_job(job), deep=is_deep)


def _refuse_living(run: Run) -> None:
    alive = read_status(run).alive
    if alive:
        names = ", ".join(worker.heartbeat.worker for worker in alive)
        raise JobError(f"{run.uri}: workers are still at it ({names}); `vsr cancel {run.uri}` stops them")


def _check_same_output(run: Run, job: JobSpec) -> None:
    """A run makes one output. Where both were moved together, the one beside the run is still the same."""
    before, now = run.job(), with_absolute_paths(job)
    if before.output == now.output:
        return
    if "://" not in before.output + now.output:
        one, two = ((Path(each.output).resolve(), Path(each.run_uri).resolve()) for each in (before, now))
        if one[0] == two[0] or os.path.relpath(*one) == os.path.relpath(*two):
            return
    raise JobError(
        f"{run.uri} makes {before.output}, not {now.output}; name another run for that with --run, "
        "or start over with --new"
    )


def _differences(run: Run, job: JobSpec) -> tuple[Prepared, tuple[str, ...]]:
    """What decides bytes and differs from the run; how many workers do it may change from call to call."""
    prepared = prepare(job.model_copy(update={"overwrite": True}))
    if run.has_plan():
        return prepared, describe_differences(run.plan.fingerprint, _fingerprint(run, prepared))
    return prepared, _changes(run, job)


def _changes(run: Run, job: JobSpec) -> tuple[str, ...]:
    """Before there is a plan, what a person wrote is all that can be compared."""
    before, now = (
        {key: value for key, value in each.model_dump(by_alias=True).items() if key not in _NO_BYTES}
        for each in (run.job(), with_absolute_paths(job))
    )
    return describe_changes(before, now)


def _refuse_to_replace(run: Run, done: Done | None, job: JobSpec, differing: tuple[str, ...]) -> None:
    """Refuse to replace a run with other settings, unless a person said so: --new where shards are done."""
    finished = run.receipts() if done is None and run.has_plan() else ()
    if finished:
        lost = duration(sum(each.finished_s - each.started_s for each in finished))
        shards = f"{len(finished)} of {plural(run.plan.shard_count, 'shard')}"
        raise JobError.from_findings(
            f"{run.uri} holds {lost} of work ({shards}) that was done with other settings. The same settings "
            "continue it; --new throws that work away",
            list(differing),
        )
    if not job.overwrite and not was_refused(run):
        what = f"{done.output} was made" if done is not None else f"{run.uri} was begun, nothing is done yet,"
        raise JobError.from_findings(
            f"{what} with other settings; --overwrite makes it anew", list(differing)
        )


_NO_BYTES = frozenset({"on", "run", "slurm", "batch", "overwrite"})
"""Parts of a job that may change from call to call."""


def _fingerprint(run: Run, prepared: Prepared) -> dict[str, str]:
    job = prepared.job
    return fingerprint(
        job,
        content_sha256=content_hash(prepared.source),
        card=prepared.card,
        picture=prepared.picture,
        encoding=prepared.encoding,
        frames=frame_range(job.range, run.timeline),
        encoder_build=encoder_build(),
        window=window_of(job, prepared.card, prepared.clip),
    )
