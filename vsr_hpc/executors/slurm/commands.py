"""Calls Slurm's commands squeue, scancel, scontrol and sinfo, but never sacct.

What they answer is a hint. Where Slurm is not installed, does not answer or has forgotten a job, the answer
is empty and the run's own facts decide.
"""

from __future__ import annotations

import contextlib
import getpass
import logging
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)


_TIMEOUT_S = 60.0
_ENDED = frozenset(
    {
        "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
        "PREEMPTED", "TIMEOUT",
    }
)  # fmt: skip
_LEAKING = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "SUBMITIT_")
_LEAKING_NAMES = frozenset(
    {"CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedTask:
    """What squeue says of a job or of one task of an array."""

    job: str
    name: str
    state: str
    reason: str
    node: str

    @property
    def array(self) -> str:
        """The number that all tasks of an array share."""
        return self.job.partition("_")[0]

    @property
    def is_ended(self) -> bool:
        return self.state in _ENDED


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A partition with the number of its nodes and their GPUs as Slurm writes them, `gpu:a10g:1`."""

    name: str
    nodes: int
    gpus: tuple[str, ...]

    @property
    def gpu_types(self) -> tuple[str, ...]:
        """The GPUs' types, `a10g`; none where Slurm's configuration names no type."""
        parts = (each.split(":") for each in self.gpus)
        return tuple(dict.fromkeys(words[1] for words in parts if len(words) > 2))


def has_slurm() -> bool:
    return shutil.which("sbatch") is not None


def is_own_cluster() -> bool:
    """Whether a Slurm answers here that AWS ParallelCluster did not make: nobody pays for it by the hour."""
    return has_slurm() and not Path("/opt/parallelcluster").is_dir() and bool(partitions())


def partitions() -> tuple[Partition, ...]:
    """The partitions that this user sees, in Slurm's order; none where Slurm does not answer."""
    nodes: dict[str, int] = {}
    gpus: dict[str, dict[str, None]] = {}
    for line in (_run("sinfo", "-h", "-o", "%R|%D|%G") or "").splitlines():
        name, count, resources = line.split("|", 2)
        nodes[name] = nodes.get(name, 0) + parse_number(count, 0)
        found = (each.partition("(")[0] for each in resources.split(",") if each.startswith("gpu"))
        gpus.setdefault(name, {}).update(dict.fromkeys(found))
    return tuple(Partition(name=name, nodes=nodes[name], gpus=tuple(gpus[name])) for name in nodes)


def queue(names: Iterable[str]) -> tuple[QueuedTask, ...]:
    """This user's jobs of these names, each array task; ended ones while slurmctld knows them."""
    fields = ("JobArrayID", "Name", "State", "Reason", "NodeList")
    layout = ",".join(f"{field}:|" for field in fields)
    said = _run(
        "squeue", "--noheader", "--array", "--states=all", f"--user={getpass.getuser()}",
        f"--name={','.join(names)}", "-O", layout,
    )  # fmt: skip
    rows = ([cell.strip() for cell in line.split("|")] for line in (said or "").splitlines())
    return tuple(
        QueuedTask(job=row[0], name=row[1], state=row[2], reason=row[3], node=row[4])
        for row in rows
        if len(row) >= len(fields)
    )


def cancel(names: Iterable[str], *, only_pending: bool) -> bool:
    """End this user's jobs of these names; False where Slurm could not be asked."""
    which = ["--state=PENDING"] if only_pending else []
    answers = [
        _run("scancel", f"--user={getpass.getuser()}", *which, f"--name={name}") is not None for name in names
    ]
    return all(answers)


def requeue(job: str, *, tries: int = 6) -> bool:
    """Put the task that this process runs in back into the queue. Call it last.

    Slurm answers a requeue with SIGTERM to everything in the task, scontrol included: killed there, it would
    fail although the requeue succeeded. SIGTERM is therefore ignored from here on, in scontrol and, where the
    main thread calls, in this process.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    command = ["sh", "-c", 'trap "" TERM; exec scontrol requeue "$1"', "sh", job]
    for attempt in range(tries):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
        except (OSError, subprocess.SubprocessError) as exc:
            log.warning("requeue failed job=%s error=%s", job, exc)
            return False
        said = done.stderr.strip()
        if done.returncode == 0 or "pending" in said.lower():
            log.info("requeued job=%s", job)
            return True
        log.warning("requeue refused job=%s attempt=%d answer=%s", job, attempt + 1, said)
        time.sleep(min(2.0**attempt, 15.0))
    return False


def exclude_nodes(array: str, nodes: Iterable[str]) -> bool:
    """Keep the still pending tasks of an array off these nodes, so that a bad node does not eat them all."""
    wanted = f"ExcNodeList={','.join(sorted(nodes))}"
    return _run("scontrol", "update", f"JobId={array}", wanted) is not None


def read_setting(name: str) -> str | None:
    """A value of Slurm's configuration."""
    for line in (_run("scontrol", "show", "config") or "").splitlines():
        key, separator, value = line.partition("=")
        if separator and key.strip() == name:
            return value.strip()
    return None


def parse_number(text: str | None, default: int) -> int:
    """The leading number of a setting such as `30 sec`."""
    digits = (text or "").split(" ")[0]
    return int(digits) if digits.isdigit() else default


def list_nodes(partition: str | None) -> frozenset[str]:
    """The nodes of a partition, of all partitions where none is named."""
    which = [f"--partition={partition}"] if partition else []
    return frozenset((_run("sinfo", "-h", "-N", "-o", "%N", *which) or "").split())


def is_node_leaving(node: str) -> bool:
    """Whether nothing new would start on this node: it is drained or down."""
    said = _run("sinfo", "-h", "-n", node, "-o", "%T") or ""
    return said.startswith(("drain", "down", "fail"))


@contextlib.contextmanager
def clean_environment() -> Iterator[None]:
    """Inside a job, submit as from a login: that job's own settings must not become those of the new one."""
    if "SLURM_JOB_ID" not in os.environ:
        yield
        return
    hidden = {
        name: os.environ.pop(name)
        for name in tuple(os.environ)
        if (name.startswith(_LEAKING) and name != "SLURM_CONF") or name in _LEAKING_NAMES
    }
    try:
        yield
    finally:
        os.environ.update(hidden)


def _run(*command: str) -> str | None:
    """The output of a command; None where it could not be run or failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError) as exc:
        log.debug("%s: %s", command[0], exc)
        return None
    if done.returncode != 0:
        log.debug("%s: %s", " ".join(command[:4]), done.stderr.strip())
        return None
    return done.stdout
