"""The job that runs after a round of workers: it merges, or starts another round."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import NoReturn

from vsr_hpc.errors import VerifyError
from vsr_hpc.executors.slurm import commands as slurm
from vsr_hpc.executors.slurm.jobs import RoundJobs, failure_lines, jobs_of, names_of
from vsr_hpc.executors.slurm.submission import start
from vsr_hpc.executors.slurm.worker_task import Place, record_failure
from vsr_hpc.run.documents import Done, Heartbeat
from vsr_hpc.run.notification import Event, notify
from vsr_hpc.run.run import Run
from vsr_hpc.system.interrupts import StopFlag, signals_set

log = logging.getLogger(__name__)


def conclude(run: Run, number: int, *, task: str, node: str) -> Done | RoundJobs | None:
    """After all workers of a round have ended: merge, or begin another round, or raise what is wrong."""
    from vsr_hpc.work.finish import finish_patiently

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
        return finish_patiently(run, node, task=task)
    reason = why_no_other_round(run, number)
    if reason is None:
        jobs = jobs_of(run, number)
        job = run.job()
        if jobs is not None:
            job = job.model_copy(update={"slurm": jobs.slurm, "run": jobs.run})
        return start(run, job, then=FinishTask)
    poisoned = run.poisoned()
    lines = [f"{run.uri}: {len(run.missing())} of {run.plan.shard_count} shards are missing; {reason}"]
    if run.round_number() == number:
        event: Event = "stopped" if was_cancelled_by_user(run, number) else "stuck"
        notify(run, event, f"{run.job().output}: {len(run.missing())} shards are missing; {reason}")
    lines += [f"  shard {each.shard:05d} was set aside: {each.reason}" for each in poisoned]
    raise VerifyError("\n".join([*lines, *failure_lines(run, number).splitlines()]))


def why_no_other_round(run: Run, number: int) -> str | None:
    """Why nothing more is begun by itself; None where another round may help."""
    if run.round_number() != number:
        return f"round {run.round_number()} has been begun since"
    missing = run.missing()
    if missing <= set(run.control().poisoned):
        return "`vsr resume --retry-poisoned` tries them again"
    if was_cancelled_by_user(run, number):
        return "its jobs were cancelled by a person; `vsr resume` goes on"
    if number >= run.job().run.max_rounds:
        return f"{number} rounds were tried (run.max_rounds); `vsr resume` tries again"
    if not _made_progress(run, number, missing):
        return "the last round got nothing done; see `vsr logs` and `vsr status`, then `vsr resume`"
    return None


def was_cancelled_by_user(run: Run, number: int) -> bool:
    """Whether somebody used scancel on workers of the round, as far as Slurm or the workers can tell.

    Workers that wait are cancelled by the run itself, but only when nothing is left to do, and those on
    standby when a Spot worker came; neither counts.
    """
    jobs = jobs_of(run, number)
    tasks = slurm.queue((names_of(run).workers,))
    mine = [task for task in tasks if jobs is not None and task.job.partition("_")[0] in jobs.workers]
    if mine:
        return any(task.state == "CANCELLED" for task in mine)
    last: dict[str, Heartbeat] = {}
    for beat in run.heartbeats():
        if beat.round == number and beat.restart >= last.get(beat.task, beat).restart:
            last[beat.task] = beat
    return any(beat.note == "terminated" for beat in last.values())


def _made_progress(run: Run, number: int, missing: frozenset[int]) -> bool:
    """A shard that killed its worker is a step on, too: such attempts are counted and end."""
    begun = next(each for each in run.rounds() if each.number == number)
    if len(missing) < begun.missing or (begun.missing == 0 and run.finished()):
        return True
    workers = {beat.worker for beat in run.heartbeats() if beat.round == number}
    leases = run.leases()
    newest = [(name, leases[name]) for name in (f"{shard:05d}" for shard in missing) if name in leases]
    return any(
        not state.is_ended and run.holder(name, state.generation).worker in workers for name, state in newest
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishTask:
    """Runs when all workers of a round have ended: merge, or begin another round, or say what is wrong."""

    uri: str
    round: int

    def __call__(self) -> NoReturn:
        place = Place.here()
        with record_failure(place):
            stop = StopFlag()
            with signals_set(stop):
                conclude(Run.open(self.uri), self.round, task=place.task, node=place.node)
        raise SystemExit(0)
