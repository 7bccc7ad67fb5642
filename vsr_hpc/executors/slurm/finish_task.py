"""The job that runs after a round of workers: it merges, or starts another round."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from vsr_hpc.errors import JobError, VerifyError
from vsr_hpc.executors.rounds import why_no_other_round
from vsr_hpc.executors.slurm import commands as slurm
from vsr_hpc.executors.slurm.jobs import ROUNDS, RoundJobs, failure_lines, names_of
from vsr_hpc.executors.slurm.submission import start
from vsr_hpc.executors.slurm.task_life import TaskLife, failure_noted
from vsr_hpc.run.documents import Done
from vsr_hpc.run.notification import Event, notify
from vsr_hpc.run.run import Run
from vsr_hpc.system.interrupts import Reason, StopFlag, signals_set

log = logging.getLogger(__name__)

_CUT_OFFS = 4
"""A merge that the time limit has cut off for this many times will not fit into it the next time either."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishTask:
    """Runs when all workers of a round have ended: merge, begin another round, or raise what is wrong."""

    uri: str
    round: int

    def __call__(self) -> NoReturn:
        life = TaskLife.read()
        with failure_noted(life), signals_set(StopFlag()):
            conclude(Run.open(self.uri), self.round, life)
        raise SystemExit(0)


def conclude(run: Run, number: int, life: TaskLife) -> Done | RoundJobs | None:
    """After all workers of a round have ended: merge, or begin another round, or raise what is wrong."""
    done = run.done()
    if done is not None:
        return done
    if run.control().is_stopped or run.control().is_cancelled(number):
        log.info("cancelled, nothing follows round=%d", number)
        notify(run, "stopped", f"{run.job().output}: the run was cancelled; `vsr resume` continues it")
        return None
    if not run.has_plan():
        failures = failure_lines(run, number)
        notify(run, "stuck", f"{run.job().output}: round {number} ended without a plan")
        raise VerifyError(f"{run.uri}: round {number} ended without a plan\n{failures}".rstrip())
    if not run.missing():
        return _merge(run, number, life)
    reason = why_no_other_round(run, number, is_cancelled_by_user=is_cancelled_by_user(run, number))
    if reason is None:
        jobs = ROUNDS.read(run, number)
        job = run.job()
        if jobs is not None:
            job = job.model_copy(update={"slurm": jobs.slurm, "run": jobs.run})
        return start(run, job, then=FinishTask)
    poisoned = run.poisoned()
    lines = [f"{run.uri}: {len(run.missing())} of {run.plan.shard_count} shards are missing; {reason}"]
    if run.round_number() == number:
        event: Event = "stopped" if is_cancelled_by_user(run, number) else "stuck"
        notify(run, event, f"{run.job().output}: {len(run.missing())} shards are missing; {reason}")
    lines += [f"  shard {each.shard:05d} was set aside: {each.reason}" for each in poisoned]
    raise VerifyError("\n".join([*lines, *failure_lines(run, number).splitlines()]))


def is_cancelled_by_user(run: Run, number: int) -> bool:
    """Whether somebody used scancel on workers of the round, as far as Slurm still knows.

    The run itself cancels workers that wait, but only when nothing is left to do, and those on standby when a
    Spot worker came; neither counts. Heartbeats cannot tell: a preempted worker receives SIGTERM, too.
    """
    jobs = ROUNDS.read(run, number)
    if jobs is None:
        return False
    tasks = slurm.queue((names_of(run).workers,))
    return any(task.state == "CANCELLED" for task in tasks if task.array in jobs.workers)


def _merge(run: Run, number: int, life: TaskLife) -> Done | None:
    """Merge, or wait for the process that does. A merge that is cut off gives its lease back and requeues."""
    from vsr_hpc.work.finish import check_and_report, finish_patiently

    stop, jobs = StopFlag(), ROUNDS.read(run, number)
    section = (run.job() if jobs is None else jobs).slurm
    try:
        with _signals_raised(stop):
            return finish_patiently(
                run,
                life.node,
                task=life.task,
                stop=stop,
                exit_code_of_hang=life.fail_hung,
                then=check_and_report if section.cpu_partition else None,
            )
    except _CutOffError:
        log.warning("the merge was cut off reason=%s", stop.reason)
    if stop.reason is not Reason.TIME_LIMIT or run.is_cancelled():
        return None  # Slurm requeues it, or a person cancelled it
    cut_offs = count_cut_offs(run, life)
    if cut_offs >= _CUT_OFFS:
        raise JobError(
            f"{run.uri}: the time limit of {section.time_limit_min} min cut the merge off {cut_offs} times; "
            f"raise slurm.time_limit_min and call `vsr resume {run.uri}`, or call `vsr finish {run.uri}` "
            "where there is no time limit"
        )
    slurm.requeue(life.job)
    return None


def count_cut_offs(run: Run, life: TaskLife) -> int:
    """How often the time limit has cut off a merge by this task; waiting for one does not count."""
    limit = Reason.TIME_LIMIT.value
    return sum(beat.task == life.task and beat.note == limit for beat in run.heartbeats())


class _CutOffError(BaseException):
    """Raised by a signal in the midst of a merge. Nothing that handles errors may take it for one."""


@contextlib.contextmanager
def _signals_raised(stop: StopFlag) -> Iterator[None]:
    """While in the block, the first SIGTERM or SIGUSR2 sets the flag and raises _CutOffError.

    A merge looks at no flag, since it cannot continue where it was stopped.
    """

    def cut_off(number: int, frame: FrameType | None) -> None:
        if not stop.is_set():
            stop.set(Reason.TIME_LIMIT if number == signal.SIGUSR2 else Reason.TERMINATED)
            raise _CutOffError

    before = {number: signal.signal(number, cut_off) for number in (signal.SIGTERM, signal.SIGUSR2)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
