"""Submits to Slurm through submitit: a round of identical workers as one array, and the job that follows it.

Nothing here is the truth about a run. Job ids are kept to show and to cancel; what is done, missing or to be
tried again is read from the run. No accounting database is asked, and Slurm may forget every job.
"""

from __future__ import annotations

import io
import json
import logging
import secrets
import shlex
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, Protocol

from vsr_hpc.errors import BackendError, JobError, VsrError
from vsr_hpc.executors.rounds import Submission
from vsr_hpc.executors.slurm import commands as slurm
from vsr_hpc.executors.slurm.jobs import ROUNDS, RoundJobs, names_of
from vsr_hpc.executors.slurm.task_life import TaskLife, failure_noted
from vsr_hpc.executors.slurm.worker_task import WorkerTask
from vsr_hpc.job.spec import JobSpec, SlurmSection
from vsr_hpc.models.cards import find_card
from vsr_hpc.run.documents import Round
from vsr_hpc.run.model_copy import stage
from vsr_hpc.run.run import Run
from vsr_hpc.system.environment import THREAD_POLICY
from vsr_hpc.system.files import sha256_of_file
from vsr_hpc.system.interrupts import StopFlag, signals_set
from vsr_hpc.system.user_folders import user_folder

log = logging.getLogger(__name__)

_PLANNED_AT_SUBMISSION_BYTES = 512 << 20
_GUESSED_OPERATIONS_PER_S = 1e13
_TRANSIENT = ("socket timed out", "unable to contact", "connection refused", "try again", "temporarily")


def plan_here(run: Run, job: JobSpec) -> None:
    """Make the plan at submission where the source is small and the nodes run this very software.

    Otherwise a job on `cpu_partition` makes it, or the first worker.
    """
    if run.has_plan():
        return
    if job.slurm.container or job.slurm.packed or job.slurm.python not in (None, sys.executable):
        return
    plan_by_guess(run, job, largest_bytes=_PLANNED_AT_SUBMISSION_BYTES)


def plan_by_guess(run: Run, job: JobSpec, *, largest_bytes: int | None = None) -> None:
    """Make the plan of a run, unless its source is larger than that.

    No speed is measured, since no GPU is near and torch stays out of a head node; a guess decides how many
    chunks make a shard, which changes no byte.
    """
    from vsr_hpc.planning.planner import make_plan
    from vsr_hpc.planning.preparation import Prepared, prepare
    from vsr_hpc.planning.space import check_space

    def guess(ready: Prepared, timeline: object) -> float:
        pixels = ready.clip.picture.width * ready.clip.picture.height
        return 0.01 + float(ready.card.operations_per_pixel) * pixels / _GUESSED_OPERATIONS_PER_S

    prepared = prepare(job.model_copy(update={"overwrite": True}))
    if largest_bytes is not None and prepared.clip.size_bytes > largest_bytes:
        return
    plan, timeline = make_plan(replace(prepared, job=job), guess)
    check_space(plan, run.uri, run.store.free_bytes(), is_merged_here=False)
    run.write_plan(plan, timeline)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanTask:
    """Makes the plan on a node without a GPU. Where it fails, the first worker says what is wrong."""

    uri: str

    def __call__(self) -> NoReturn:
        with failure_noted(TaskLife.read()), signals_set(StopFlag()):
            run = Run.open(self.uri)
            if not run.has_plan():
                plan_by_guess(run, run.job())
        raise SystemExit(0)


class Sequel(Protocol):
    """Makes the task that runs once all workers of a round have ended."""

    def __call__(self, *, uri: str, round: int) -> Callable[[], NoReturn]: ...


def start(run: Run, job: JobSpec, then: Sequel) -> RoundJobs:
    """Begin a round of workers, which `then` follows; a round that is under way is returned instead."""
    if not slurm.has_slurm():
        raise JobError("on: slurm needs sbatch here; submit on a login or head node of the cluster")
    if not run.place_uri.isprintable():
        raise JobError(f"{run.place_uri!r} cannot be written into a batch script; choose another name")

    def prepare() -> Submission[RoundJobs]:
        packed_sha256 = pin_environment(run, job.slurm.packed)
        stage(run, job.model, job.picture.denoise)
        plan_here(run, job)
        largest_array = slurm.parse_number(slurm.read_setting("MaxArraySize"), 1001)
        return Submission(
            most_workers=min(job.run.workers, largest_array),
            submit=lambda begun: _submit_whole(run, job, begun, then, packed_sha256),
        )

    return ROUNDS.begin(run, prepare)


def _folder(run: Run, section: SlurmSection, number: int) -> Path:
    """submitit's folder, a fresh one: it trusts files of a job id, and ids begin again on a new cluster."""
    base = Path(section.folder).expanduser() if section.folder else user_folder("state") / "slurm"
    return base.absolute() / names_of(run).run / f"{number}-{secrets.token_hex(3)}"


def pin_environment(run: Run, archive: str | None) -> str:
    """The sha256 of a packed environment: every round of a run must use what the first one used."""
    if archive is None:
        return ""
    path = Path(archive)
    try:
        sha256 = sha256_of_file(path)
    except OSError as exc:
        raise JobError(f"slurm.packed: {path} cannot be read ({exc.strerror})") from exc
    run.store.create("environment.json", json.dumps({"packed": archive, "sha256": sha256}).encode())
    first: dict[str, str] = json.loads(run.store.read("environment.json"))
    if first["sha256"] != sha256:
        raise JobError(
            f"slurm.packed: {path} (sha256 {sha256[:16]}) is another environment than {first['packed']} "
            f"({first['sha256'][:16]}), which the run began with; put that one back, or start over with --new"
        )
    return sha256


def _submit_whole(run: Run, job: JobSpec, begun: Round, then: Sequel, packed_sha256: str) -> RoundJobs:
    """All jobs of a round, or none: workers that nobody follows would leave a run without its merge."""
    try:
        return _submit(run, job, begun, then, packed_sha256)
    except VsrError:
        slurm.cancel(names_of(run).all, only_pending=False)
        raise


def _submit(run: Run, job: JobSpec, begun: Round, then: Sequel, packed_sha256: str) -> RoundJobs:
    section, names = job.slurm, names_of(run)
    folder = _folder(run, section, begun.number)
    partitions: tuple[str | None, ...] = section.partitions or (None,)
    task = WorkerTask(
        uri=run.place_uri,
        names=names,
        threads=job.run.threads or section.cpus,
        has_standby=len(partitions) > 1,
        does_finish=section.cpu_partition is None,
        kill_wait_s=slurm.parse_number(slurm.read_setting("KillWait"), 30),
        container=section.container,
    )
    gpus = _gpus(job)
    arrays: list[str] = []

    def single(name: str, task: Callable[[], NoReturn], flags: dict[str, str]) -> str:
        """A job of one task, without a GPU."""
        given = parameters(
            section, name=name, uri=run.uri, partition=section.cpu_partition or partitions[-1], gpus=0,
            workers=1, exclude=(), packed_sha256=packed_sha256, flags=flags,
        )  # fmt: skip
        return _array(folder, given, task, 1, section)

    with slurm.clean_environment():
        plan: tuple[str, ...] = ()
        if section.cpu_partition and not section.container and not run.has_plan():
            plan = (single(names.plan, PlanTask(uri=run.place_uri), {}),)
        for place, partition in enumerate(partitions):
            flags = {"begin": f"now+{round(place * section.standby_after_min * 60)}"} if place else {}
            if plan:
                flags["dependency"] = f"afterany:{plan[0]}"
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
                        packed_sha256=packed_sha256,
                    ),
                    replace(task, has_standby=task.has_standby and not is_standby),
                    begun.workers,
                    section,
                )
            )
        finish = single(
            names.finish,
            then(uri=run.place_uri, round=begun.number),
            {"dependency": ",".join(f"afterany:{each}" for each in arrays)},
        )
    return RoundJobs(
        round=begun.number,
        folder=str(folder),
        workers=tuple(arrays[:1]),
        standby=tuple(arrays[1:]),
        finish=(finish,),
        plan=plan,
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
    packed_sha256: str = "",
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
            *unpack_lines(section.packed, packed_sha256),
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
    """Submit the same task `count` times as one array; the number of the array."""
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    folder.mkdir(parents=True, exist_ok=True)
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster="slurm", slurm_python=_python(section))
        executor.update_parameters(**given)
        with redirect_stderr(io.StringIO()), executor.batch():  # submitit prints what it also raises
            submitted = [executor.submit(task) for _ in range(count)]
        job: str = submitted[0].job_id
        return job.partition("_")[0]
    except (FailedJobError, FailedSubmissionError) as exc:
        raise _refusal(str(exc), given["name"]) from exc


def _refusal(text: str, name: str) -> BackendError | JobError:
    """What sbatch said, without its prefixes and repetitions; the partitions where none has that name."""
    errors = [line.partition("error: ")[2] for line in text.splitlines() if "error: " in line]
    said = "; ".join(dict.fromkeys(errors)) or text.strip()
    if "invalid partition" in said.lower() and (known := slurm.partitions()):
        said += f"; this cluster has {', '.join(each.name for each in known)}"
    is_passing = any(each in said.lower() for each in _TRANSIENT)
    return (BackendError if is_passing else JobError)(f"sbatch refused {name}: {said}")


def _gpus(job: JobSpec) -> int:
    if job.slurm.gpus is not None:
        return job.slurm.gpus
    return 0 if find_card(job.model).is_filter else 1


def _python(section: SlurmSection) -> str:
    """As the shell of the batch script reads it."""
    if section.packed is not None:
        return '"$vsr_env/bin/python"'
    return shlex.quote(section.python or sys.executable)


def unpack_lines(archive: str | None, sha256: str) -> list[str]:
    """Each node unpacks an environment once, into a folder of one's own; another archive, another folder."""
    if archive is None:
        return []
    source = shlex.quote(archive)
    return [
        'vsr_base="${TMPDIR:-/tmp}/vsr-env-$(id -u)"',
        'mkdir -p -m 700 "$vsr_base" && [ -O "$vsr_base" ] && [ ! -L "$vsr_base" ] || exit 75',
        f'vsr_env="$vsr_base/{sha256[:32]}"',
        '( flock 9; [ -e "$vsr_env/.ready" ] || {',
        f'  [ "$(sha256sum < {source})" = "{sha256}  -" ] ||',
        f'    {{ echo {source} "is not the environment that the run began with" >&2; exit 2; }}',
        f'  {{ rm -rf "$vsr_env" && mkdir "$vsr_env" && tar -xf {source} -C "$vsr_env" &&',
        '    { [ ! -x "$vsr_env/bin/conda-unpack" ] || "$vsr_env/bin/conda-unpack"; } &&',
        '    touch "$vsr_env/.ready"; } || exit 75; } ) 9>"$vsr_env.lock" || exit $?',
    ]
