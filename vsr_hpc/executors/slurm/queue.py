"""The state of a run's jobs in Slurm's queue, and their cancellation."""

from __future__ import annotations

from collections import Counter

from vsr_hpc.executors.rounds import is_being_submitted
from vsr_hpc.executors.slurm import commands as slurm
from vsr_hpc.executors.slurm.jobs import ROUNDS, failure_lines, names_of
from vsr_hpc.run.run import Run


def cancel(run: Run) -> None:
    """End the run's jobs, waiting and running; the marker in the run is the caller's."""
    names = names_of(run)
    if slurm.has_slurm():
        slurm.cancel(names.all, only_pending=False)


def queue_of(run: Run) -> tuple[tuple[str, ...], bool]:
    """The run's jobs as Slurm sees them, with the errors of failed tasks; and whether some are still open."""
    latest = ROUNDS.find_latest(run)
    if latest is None:
        return (), False
    jobs = ROUNDS.read(run, latest.number)
    if jobs is None:
        is_new = is_being_submitted(latest)
        return (f"round {latest.number} was {'just ' * is_new}begun and has no jobs",), is_new
    lines = [jobs.text()]
    names = names_of(run)
    labels = {
        names.plan: "plan", names.workers: "workers", names.standby: "standby", names.finish: "finish",
    }  # fmt: skip
    known = {*jobs.plan, *jobs.workers, *jobs.standby, *jobs.finish}
    counts: Counter[tuple[str, str, str]] = Counter()
    is_open = False
    if slurm.has_slurm():
        for task in slurm.queue(labels):
            if task.array in known:
                reason = "" if task.reason == "None" or task.is_ended else task.reason
                counts[labels[task.name], task.state.lower(), reason] += 1
                is_open = is_open or not task.is_ended
    lines += [
        f"slurm: {label} {count} {state}{f' ({reason})' if reason else ''}"
        for (label, state, reason), count in sorted(counts.items())
    ]
    return (*lines, *failure_lines(run, latest.number).splitlines()), is_open
