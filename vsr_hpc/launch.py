"""Begin or continue a run, and see it to its end on this machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vsr_hpc.errors import BackendError, JobError, MediaError
from vsr_hpc.executors import local
from vsr_hpc.forecast import forecast
from vsr_hpc.job.reading import with_absolute_paths
from vsr_hpc.job.spec import JobSpec, RunSection, run_folder
from vsr_hpc.media.clip.probe import content_hash
from vsr_hpc.media.encode.segment_writer import encoder_build
from vsr_hpc.planning.cutting import window_of
from vsr_hpc.planning.fingerprint import check_same, fingerprint
from vsr_hpc.planning.plan import Plan, PlanError
from vsr_hpc.planning.planner import frame_range
from vsr_hpc.planning.preparation import Prepared, prepare
from vsr_hpc.planning.space import check_space
from vsr_hpc.run.documents import Done, Heartbeat
from vsr_hpc.run.known_runs import remember, remembered_runs
from vsr_hpc.run.run import Run
from vsr_hpc.run.status import RunStatus, read_status, with_costs
from vsr_hpc.storage.opening import open_source, open_store
from vsr_hpc.system import processes
from vsr_hpc.system.interrupts import StopFlag
from vsr_hpc.work.finish import is_in_place

if TYPE_CHECKING:
    from vsr_hpc.verification.verify import Verification

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """A run that is ready for workers."""

    run: Run
    notes: tuple[str, ...]
    is_continued: bool


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
            notes = () if makes_input else _check_continues(present, job)
            return Submitted(run=present, notes=notes, is_continued=True)
        log.warning("the finished output is gone, starting over output=%s", done.output)
    notes = (f"{job.input} is looked at once {after.uri} has made it",) if after and makes_input else ()
    notes = notes or prepare(job).notes
    if present is not None:
        _refuse_living(present)
    # Only now: a job that is refused throws nothing away.
    run = Run.create(folder, with_absolute_paths(job), replaces=present)
    _check_same_job(run, job)  # another call may have been faster
    remember(run)
    return Submitted(run=run, notes=notes, is_continued=False)


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


def run_here(
    run: Run,
    stop: StopFlag,
    *,
    how: RunSection | None = None,
    on_beat: Callable[[Heartbeat], None] = lambda heartbeat: None,
    on_tick: Callable[[], None] = lambda: None,
) -> Done | None:
    """Do what is missing on this machine and finish; None where the flag was set before the end.

    `how` says with how many workers, GPUs and threads this time; the plan's job where it is left out.
    Finished shards whose segments were lost are made again.
    """
    from vsr_hpc.work.finish import ShardsLostError

    while True:
        try:
            return _run_round(run, stop, how or run.plan.job.run, on_beat, on_tick)
        except ShardsLostError as exc:
            log.warning("%s", exc)


def _run_round(
    run: Run,
    stop: StopFlag,
    how: RunSection,
    on_beat: Callable[[Heartbeat], None],
    on_tick: Callable[[], None],
) -> Done | None:
    from vsr_hpc.work import worker
    from vsr_hpc.work.finish import finish_patiently

    gpus = processes.visible_gpus() if how.gpus is None else how.gpus
    missing = run.missing()
    workers = max(1, min(max(how.workers, len(gpus)), len(missing)))
    forecast.note(run, run.plan.job.model_copy(update={"run": how, "on": "local"}))
    run.begin_again()
    run.start_round("local", workers, len(missing))
    done: Done | None = None
    if missing and workers == 1 and not how.gpus:  # a process of its own sees only the GPU that is named
        options = worker.WorkerOptions(threads=how.threads or 0)
        worker.work(run.place_uri, options, stop, on_beat)
    elif missing:
        threads = max(1, (how.threads or len(os.sched_getaffinity(0))) // workers)
        local.run_workers(run, workers=workers, gpus=gpus, threads=threads, stop=stop, on_tick=on_tick)
    if run.missing() and stop.is_set():
        return None
    poisoned = run.poisoned()
    if poisoned:
        raise MediaError(
            "\n".join(f"shard {each.shard:05d} cannot be made: {each.reason}" for each in poisoned)
        )
    if not run.missing():
        done = finish_patiently(run, os.uname().nodename, stop=stop)
    if done is None and not stop.is_set():
        raise BackendError(f"{run.uri}: work is left but other workers hold it; `vsr status` shows them")
    return done


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
    where = executor_of(run)
    if where == "slurm":
        from vsr_hpc.executors.slurm import queue as slurm

        slurm.cancel(run)
    if where == "aws-batch":
        from vsr_hpc.executors.aws_batch import submission as aws_batch

        aws_batch.cancel(run)
    return True


def whole_status(run: Run) -> RunStatus:
    """A run's state with what its scheduler says of it, and what it was expected to take."""
    found = with_costs(read_status(run), run)
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


def retry(run: Run, *, retries_poisoned: bool = False) -> int:
    """Let shards that were set aside be tried again; how many they are."""
    run.begin_again()
    return run.retry_poisoned() if retries_poisoned else 0


def finish_here(run: Run) -> Done:
    """Merge and verify a complete run in this process, or see another process do it."""
    from vsr_hpc.work.finish import finish_patiently

    return already_done(run) or finish_patiently(run, os.uname().nodename)


def _plan_of(output: str) -> Plan | None:
    """The plan by which an output was made, where its run still stands and this version can read it."""
    run = Run.find(open_store(run_folder(output))) or _remembered_run_of(output)
    if run is None or not run.has_plan():
        return None
    try:
        return run.plan
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

    Where the run that made the output is found, its plan says what was asked for, else the job does.
    """
    from vsr_hpc.verification.of_plan import promise_of_job, verify_output
    from vsr_hpc.verification.verify import verify

    plan = _plan_of(job.output)
    if plan is not None and Path(plan.clip.uri).resolve() == Path(job.input).resolve():
        return verify_output(plan, job.output, deep=is_deep)
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


def _check_continues(run: Run, job: JobSpec) -> tuple[str, ...]:
    """Compare what decides bytes; how many workers do it may change from call to call."""
    prepared = prepare(job.model_copy(update={"overwrite": True}))
    if run.has_plan():
        check_same(run.plan.fingerprint, _fingerprint(run, prepared), run.uri)
    else:
        _check_same_job(run, job)
    return prepared.notes


def _check_same_job(run: Run, job: JobSpec) -> None:
    """Before there is a plan, what a person wrote is all that can be compared."""
    before, now = run.job().model_dump(), with_absolute_paths(job).model_dump()
    differing = [key for key in now if before[key] != now[key] and key not in _NO_BYTES]
    if differing:
        raise JobError(
            f"{run.uri} was begun with another {', '.join(differing)} and has no plan yet; "
            "take that back, or start over with --new"
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
