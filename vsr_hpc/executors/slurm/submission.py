"""Slurm through submitit: rounds of identical workers as one array, and a net behind them.

Nothing here is the truth about a run. Job ids are kept to show and to cancel; what is done, missing or to be
tried again is read from the run. No accounting database is asked, and no job needs to be still known.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, Protocol

from vsr_hpc.errors import BackendError, JobError, VsrError
from vsr_hpc.executors.rounds import SUBMITTING_S
from vsr_hpc.executors.slurm import commands as slurm
from vsr_hpc.executors.slurm.jobs import RoundJobs, jobs_of, names_of
from vsr_hpc.executors.slurm.worker_task import WorkerTask
from vsr_hpc.job.spec import JobSpec, SlurmSection
from vsr_hpc.models.cards import find_card
from vsr_hpc.run.documents import Round
from vsr_hpc.run.model_copy import stage
from vsr_hpc.run.run import Run
from vsr_hpc.run.status import read_status
from vsr_hpc.system.environment import THREAD_POLICY
from vsr_hpc.system.user_folders import user_folder

log = logging.getLogger(__name__)

_PLANNED_AT_SUBMISSION_BYTES = 512 << 20
_GUESSED_OPERATIONS_PER_S = 1e13
_TRANSIENT = ("socket timed out", "unable to contact", "connection refused", "try again", "temporarily")


def plan_here(run: Run, job: JobSpec) -> bool:
    """Make the plan at submission where the source is small and the nodes run this very software.

    False leaves it to the first worker. No speed is measured, since no GPU is near and torch stays out of a
    head node; a guess decides how many chunks make a shard, which changes no byte.
    """
    if run.has_plan():
        return True
    if job.slurm.container or job.slurm.packed or job.slurm.python not in (None, sys.executable):
        return False
    from vsr_hpc.planning.planner import make_plan
    from vsr_hpc.planning.preparation import Prepared, prepare
    from vsr_hpc.planning.space import check_space

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


class Sequel(Protocol):
    """Makes the task that runs once all workers of a round have ended."""

    def __call__(self, *, uri: str, round: int) -> Callable[[], NoReturn]: ...


def start(run: Run, job: JobSpec, then: Sequel) -> RoundJobs:
    """Begin a round of workers, which `then` follows; a round that is under way is returned instead."""
    if not slurm.has_slurm():
        raise JobError("on: slurm needs sbatch here; submit on a login or head node of the cluster")
    if not run.place_uri.isprintable():
        raise JobError(f"{run.place_uri!r} cannot be written into a batch script; choose another name")
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
        jobs = _submit(run, job, begun, folder, then)
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
        if time.time() - latest.submitted_s > SUBMITTING_S:
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
    until = time.monotonic() + SUBMITTING_S
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
    base = Path(section.folder).expanduser() if section.folder else user_folder("state") / "slurm"
    return base.absolute() / names_of(run).run / f"{number}-{secrets.token_hex(3)}"


def _submit(run: Run, job: JobSpec, begun: Round, folder: Path, then: Sequel) -> RoundJobs:
    section, names = job.slurm, names_of(run)
    partitions: tuple[str | None, ...] = section.partitions or (None,)
    task = WorkerTask(
        uri=run.place_uri,
        names=names,
        threads=job.run.threads or section.cpus,
        has_standby=len(partitions) > 1,
        kill_wait_s=slurm.number_in(slurm.setting("KillWait"), 30),
        container=section.container,
    )
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
                        exclude=section.exclude,
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
            then(uri=run.place_uri, round=begun.number),
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


def _mail(section: SlurmSection) -> dict[str, str]:
    """Slurm's own mail: sbatch's --mail-type and --mail-user."""
    given = {"mail-type": ",".join(section.mail_type), "mail-user": section.mail_user or ""}
    return {name: value for name, value in given.items() if value}


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
        "slurm_additional_parameters": {"requeue": True, **_mail(section), **flags, **section.sbatch},
    }


def _array(
    folder: Path,
    given: dict[str, Any],
    task: Callable[[], NoReturn],
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
