"""Slurm through submitit: rounds of identical workers as one array, and a net behind them.

Nothing here is the truth about a run. Job ids are kept to show and to cancel; what is done, missing or to be
tried again is read from the run. No accounting database is asked, and no job needs to be still known.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import shlex
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from vsr_hpc.errors import BackendError, JobError, VerifyError, VsrError
from vsr_hpc.executors.slurm import commands as slurm
from vsr_hpc.executors.slurm.worker_task import FinishTask, Names, WorkerTask, failures
from vsr_hpc.job.spec import JobSpec, RunSection, SlurmSection
from vsr_hpc.models.cards import find_card
from vsr_hpc.run.model_copy import stage
from vsr_hpc.run.run import Done, Heartbeat, Round, Run
from vsr_hpc.run.status import read_status
from vsr_hpc.storage.folder_store import MissingObject
from vsr_hpc.system.environment import THREAD_POLICY

log = logging.getLogger(__name__)


_SUBMITTING_S = 120.0
"""A round that has no jobs after this time was never submitted: whoever began it died on the way."""
_PLANNED_AT_SUBMISSION_BYTES = 512 << 20
_GUESSED_OPERATIONS_PER_S = 1e13
_TRANSIENT = ("socket timed out", "unable to contact", "connection refused", "try again", "temporarily")


class RoundJobs(BaseModel):
    """What was submitted for a round; written once, after sbatch answered."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    round: int
    folder: str
    workers: tuple[str, ...] = ()
    standby: tuple[str, ...] = ()
    finish: tuple[str, ...] = ()
    slurm: SlurmSection
    run: RunSection
    error: str = ""

    def text(self) -> str:
        if self.error:
            return f"round {self.round} could not be submitted: {self.error}"
        parts = [f"round {self.round}: workers are job {', '.join(self.workers)}"]
        if self.standby:
            parts.append(f"on standby as {', '.join(self.standby)}")
        return ", ".join(parts) + (f", vsr finish follows as {self.finish[0]}" if self.finish else "")


def names_of(run: Run) -> Names:
    stem = run.uri.rstrip("/").rpartition("/")[2].removesuffix(".vsr")
    readable = re.sub(r"[^A-Za-z0-9.-]", "-", stem)[:24].strip("-")
    return Names(run=f"vsr-{readable}-{hashlib.sha256(run.uri.encode()).hexdigest()[:8]}")


def jobs_of(run: Run, number: int) -> RoundJobs | None:
    """What round `number` submitted to Slurm; None before that is known."""
    try:
        return RoundJobs.model_validate_json(run.store.read(f"jobs/{number}.json"))
    except MissingObject:
        return None


# Beginning a round
def plan_here(run: Run, job: JobSpec) -> bool:
    """Make the plan at submission where the source is small and the nodes run this very software.

    False leaves it to the first worker. No speed is measured, since no GPU is near and torch stays out of a
    head node; a guess decides how many chunks make a shard, which changes no byte.
    """
    if run.has_plan():
        return True
    if job.slurm.container or job.slurm.packed or job.slurm.python not in (None, sys.executable):
        return False
    from vsr_hpc.planning.preparation import Prepared, check_space, make_plan, prepare

    def guess(ready: Prepared, timeline: object) -> float:
        pixels = ready.clip.picture.width * ready.clip.picture.height
        return 0.01 + float(ready.card.operations_per_pixel) * pixels / _GUESSED_OPERATIONS_PER_S

    prepared = prepare(job.model_copy(update={"overwrite": True}))
    if prepared.clip.size_bytes > _PLANNED_AT_SUBMISSION_BYTES:
        return False
    plan, timeline = make_plan(replace(prepared, job=job), guess)
    check_space(plan, run.uri, run.store.free_bytes(), is_merged_here=False)
    run.write_plan(plan, timeline)
    return True


def start(run: Run, job: JobSpec) -> RoundJobs:
    """Begin a round of workers, unless one is under way: then that one is the answer."""
    if not slurm.has_slurm():
        raise JobError("on: slurm needs sbatch here; submit on a login or head node of the cluster")
    number = run.round_number() + 1  # before looking: whoever begins it meanwhile is met when it is created
    present = active_round(run)
    if present is not None:
        log.warning("a round is under way round=%d", present.round)
        return present
    stage(run, job.model, job.picture.denoise)
    is_planned = plan_here(run, job)
    missing = len(run.missing() - set(run.control().poisoned)) if is_planned else 0
    wanted = min(job.run.workers, missing) if is_planned else job.run.workers
    workers = max(1, min(wanted, slurm.number_in(slurm.setting("MaxArraySize"), 1001)))
    begun = run.start_round("slurm", workers, missing, number)
    if begun is None:
        return _begun_elsewhere(run)
    folder = _folder(run, job.slurm, begun.number)
    try:
        jobs = _submit(run, job, begun, folder)
    except VsrError as exc:
        failed = RoundJobs(
            round=begun.number, folder=str(folder), slurm=job.slurm, run=job.run, error=str(exc)
        )
        run.store.create(f"jobs/{begun.number}.json", failed.model_dump_json().encode())
        raise
    run.store.create(f"jobs/{begun.number}.json", jobs.model_dump_json().encode())
    log.info("round begun round=%d workers=%d jobs=%s", begun.number, workers, jobs.workers)
    return jobs


def active_round(run: Run) -> RoundJobs | None:
    """The latest round where it may still get something done by itself."""
    rounds = [each for each in run.rounds() if each.executor == "slurm"]
    if not rounds or run.control().is_cancelled(rounds[-1].number):
        return None
    latest = rounds[-1]
    jobs = jobs_of(run, latest.number)
    if jobs is None:
        if time.time() - latest.submitted_s > _SUBMITTING_S:
            return None
        return _wait_for_jobs(run, latest)
    if jobs.error:
        return None
    names, ids = names_of(run), {*jobs.workers, *jobs.standby}
    known = [t for t in slurm.queue((names.workers, names.standby)) if t.job.partition("_")[0] in ids]
    if known:
        return jobs if any(not task.is_ended for task in known) else None
    alive = [each for each in read_status(run).alive if each.heartbeat.round == latest.number]
    return jobs if alive else None


def _begun_elsewhere(run: Run) -> RoundJobs:
    return _wait_for_jobs(run, run.rounds()[-1])


def _wait_for_jobs(run: Run, begun: Round) -> RoundJobs:
    """Another process is submitting this round right now; its jobs are known in a moment."""
    until = time.monotonic() + _SUBMITTING_S
    while time.monotonic() < until:
        jobs = jobs_of(run, begun.number)
        if jobs is not None:
            return jobs
        time.sleep(0.2)
    raise BackendError(
        f"{run.uri}: {begun.user} began round {begun.number} and it has no jobs yet; call again in a moment"
    )


def _folder(run: Run, section: SlurmSection, number: int) -> Path:
    """submitit's folder, a fresh one: it trusts files of a job id, and ids begin again on a new cluster."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "vsr_hpc" / "slurm"
    base = Path(section.folder).expanduser() if section.folder else state
    return base.absolute() / names_of(run).run / f"{number}-{secrets.token_hex(3)}"


def _submit(run: Run, job: JobSpec, begun: Round, folder: Path) -> RoundJobs:
    section, names = job.slurm, names_of(run)
    partitions: tuple[str | None, ...] = section.partitions or (None,)
    task = WorkerTask(
        uri=run.uri,
        names=names,
        threads=job.run.threads or section.cpus,
        has_standby=len(partitions) > 1,
        kill_wait_s=slurm.number_in(slurm.setting("KillWait"), 30),
        container=section.container,
    )
    avoided = run.control().avoided
    gpus = _gpus(job)
    arrays: list[str] = []
    with slurm.clean_environment():
        for place, partition in enumerate(partitions):
            flags = {"begin": f"now+{round(place * section.standby_after_min * 60)}"} if place else {}
            is_standby = place > 0
            arrays.append(
                _array(
                    folder,
                    parameters(
                        section,
                        name=names.standby if is_standby else names.workers,
                        uri=run.uri,
                        partition=partition,
                        gpus=gpus,
                        workers=begun.workers,
                        exclude=_excludable(avoided, partition, section.exclude),
                        flags=flags,
                    ),
                    replace(task, has_standby=task.has_standby and not is_standby),
                    begun.workers,
                    section,
                )
            )
        finish = _array(
            folder,
            parameters(
                section,
                name=names.finish,
                uri=run.uri,
                partition=partitions[-1],
                gpus=0,
                workers=1,
                exclude=(),
                flags={"dependency": ",".join(f"afterany:{each}" for each in arrays)},
            ),
            FinishTask(uri=run.uri, round=begun.number),
            1,
            section,
        )
    return RoundJobs(
        round=begun.number,
        folder=str(folder),
        workers=tuple(arrays[:1]),
        standby=tuple(arrays[1:]),
        finish=(finish,),
        slurm=section,
        run=job.run,
    )


def parameters(
    section: SlurmSection,
    *,
    name: str,
    uri: str,
    partition: str | None,
    gpus: int,
    workers: int,
    exclude: tuple[str, ...],
    flags: dict[str, str],
) -> dict[str, Any]:
    """submitit's parameters for one array. One node for each task: BadConstraints in docs/slurm.md."""
    return {
        "name": name,
        "nodes": 1,
        "tasks_per_node": 1,
        "timeout_min": section.time_limit_min,
        "cpus_per_task": section.cpus,
        "mem_gb": section.memory_gib,
        "gpus_per_node": gpus or None,
        "stderr_to_stdout": True,
        "slurm_partition": partition,
        "slurm_array_parallelism": workers,
        "slurm_signal_delay_s": section.warning_s,
        "slurm_account": section.account,
        "slurm_qos": section.qos,
        "slurm_constraint": section.constraint,
        "slurm_exclude": ",".join(exclude) or None,
        "slurm_comment": uri,
        "slurm_setup": [
            *(f'export {key}="${{{key}:-{value}}}"' for key, value in THREAD_POLICY.items()),
            *section.setup,
            *_unpack_lines(section.packed),
        ],
        "slurm_srun_args": [f"--cpus-per-task={section.cpus}"],
        "slurm_additional_parameters": {"requeue": True, **flags, **section.sbatch},
    }


def _array(
    folder: Path,
    given: dict[str, Any],
    task: WorkerTask | FinishTask,
    count: int,
    section: SlurmSection,
) -> str:
    """Submit `count` times the same task; the id that Slurm gave to all of them."""
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    folder.mkdir(parents=True, exist_ok=True)
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster="slurm", slurm_python=_python(section))
        executor.update_parameters(**given)
        with executor.batch():
            submitted = [executor.submit(task) for _ in range(count)]
        job: str = submitted[0].job_id
        return job.partition("_")[0]
    except (FailedJobError, FailedSubmissionError) as exc:
        said = " ".join(line for line in str(exc).splitlines() if "error" in line.lower()) or str(exc)
        is_passing = any(each in said.lower() for each in _TRANSIENT)
        raise (BackendError if is_passing else JobError)(f"sbatch refused {given['name']}: {said}") from exc


def _gpus(job: JobSpec) -> int:
    if job.slurm.gpus is not None:
        return job.slurm.gpus
    return 0 if find_card(job.model).is_filter else 1


def _python(section: SlurmSection) -> str:
    """As the shell of the batch script reads it."""
    if section.packed is not None:
        return '"$vsr_env/bin/python"'
    return shlex.quote(section.python or sys.executable)


def _unpack_lines(archive: str | None) -> list[str]:
    """Each node unpacks an environment once, into a folder of one's own; another archive, another folder."""
    if archive is None:
        return []
    key, source = hashlib.sha256(archive.encode()).hexdigest()[:16], shlex.quote(archive)
    return [
        'vsr_base="${TMPDIR:-/tmp}/vsr-env-$(id -u)"',
        'mkdir -p -m 700 "$vsr_base" && [ -O "$vsr_base" ] && [ ! -L "$vsr_base" ] || exit 75',
        f'vsr_env="$vsr_base/{key}-$(stat -Lc %s-%Y {source})"',
        '( flock 9; [ -e "$vsr_env/.ready" ] || {',
        f'  rm -rf "$vsr_env" && mkdir "$vsr_env" && tar -xf {source} -C "$vsr_env" &&',
        '  { [ ! -x "$vsr_env/bin/conda-unpack" ] || "$vsr_env/bin/conda-unpack"; } &&',
        '  touch "$vsr_env/.ready"; } ) 9>"$vsr_env.lock" || exit 75',
    ]


def _excludable(avoided: frozenset[str], partition: str | None, asked: tuple[str, ...]) -> tuple[str, ...]:
    """Nodes to keep off: the user's, and the run's bad ones that Slurm knows while others are left."""
    nodes = slurm.partition_nodes(partition)
    bad = avoided & nodes
    if bad == nodes:
        bad = frozenset()
    return (*asked, *sorted(bad - set(asked)))


# The end of a round
def conclude(run: Run, number: int, *, task: str, node: str) -> Done | RoundJobs | None:
    """After all workers of a round have ended: merge, or begin another round, or raise what is wrong."""
    from vsr_hpc.work.finish import finish_patiently

    done = run.done()
    if done is not None:
        return done
    if run.control().is_stopped or run.control().is_cancelled(number):
        log.info("cancelled, nothing follows round=%d", number)
        return None
    if not run.has_plan():
        raise VerifyError(f"{run.uri}: round {number} ended without a plan\n{_told(run, number)}".rstrip())
    if not run.missing():
        return finish_patiently(run, node, task=task)
    reason = why_no_other_round(run, number)
    if reason is None:
        jobs = jobs_of(run, number)
        job = run.job()
        if jobs is not None:
            job = job.model_copy(update={"slurm": jobs.slurm, "run": jobs.run})
        return start(run, job)
    poisoned = run.poisoned()
    lines = [f"{run.uri}: {len(run.missing())} of {run.plan.shard_count} shards are missing; {reason}"]
    lines += [f"  shard {each.shard:05d} was set aside: {each.reason}" for each in poisoned]
    raise VerifyError("\n".join([*lines, *_told(run, number).splitlines()]))


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


def _told(run: Run, number: int) -> str:
    """What tasks of a round said when they could not go on, each text once."""
    jobs = jobs_of(run, number)
    if jobs is None:
        return ""
    said = Counter((each.code, each.text) for each in failures(Path(jobs.folder)))
    where = {(each.code, each.text): each for each in failures(Path(jobs.folder))}
    return "\n".join(
        f"{count} task{'s' * (count > 1)} ended with {code} (last {where[code, text].job} on "
        f"{where[code, text].node}): {text}"
        for (code, text), count in said.most_common(5)
    )


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
        is_new = time.time() - rounds[-1].submitted_s < _SUBMITTING_S
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
    return (*lines, *_told(run, rounds[-1].number).splitlines()), is_open
