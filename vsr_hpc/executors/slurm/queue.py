"""The state of a run's jobs in Slurm's queue, and their cancellation."""

from __future__ import annotations

import time
from collections import Counter

from vsr_hpc.executors.rounds import SUBMITTING_S
from vsr_hpc.executors.slurm import commands as slurm
from vsr_hpc.executors.slurm.jobs import failure_lines, jobs_of, names_of
from vsr_hpc.run.run import Run


# What people ask
def cancel(run: Run) -> None:
    """End the run's jobs, waiting and running; the marker in the run is the caller's."""
    names = names_of(run)
    if slurm.has_slurm():
        slurm.cancel((names.finish, names.standby, names.workers), only_pending=False)


def queue_of(run: Run) -> tuple[tuple[str, ...], bool]:
    """The run's jobs as Slurm sees them, with the words of failed tasks; and whether some are still open."""
    rounds = [each for each in run.rounds() if each.executor == "slurm"]
    if not rounds:
        return (), False
    jobs = jobs_of(run, rounds[-1].number)
    if jobs is None:
        is_new = time.time() - rounds[-1].submitted_s < SUBMITTING_S
        return (f"round {rounds[-1].number} was {'just ' * is_new}begun and has no jobs",), is_new
    lines = [jobs.text()]
    names = names_of(run)
    labels = {names.workers: "workers", names.standby: "standby", names.finish: "finish"}
    known = {*jobs.workers, *jobs.standby, *jobs.finish}
    counts: Counter[tuple[str, str, str]] = Counter()
    is_open = False
    if slurm.has_slurm():
        for task in slurm.queue(labels):
            if task.job.partition("_")[0] in known:
                reason = "" if task.reason == "None" or task.is_ended else task.reason
                counts[labels[task.name], task.state.lower(), reason] += 1
                is_open = is_open or not task.is_ended
    lines += [
        f"slurm: {label} {count} {state}{f' ({reason})' if reason else ''}"
        for (label, state, reason), count in sorted(counts.items())
    ]
    return (*lines, *failure_lines(run, rounds[-1].number).splitlines()), is_open
