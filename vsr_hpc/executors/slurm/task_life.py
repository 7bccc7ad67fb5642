"""One life of a Slurm task: where it runs, how often it was restarted, and how it ends with an error.

Slurm starts a task again after a requeue. The task keeps its name and its folder; each start is one life.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from vsr_hpc.errors import BackendError, VsrError
from vsr_hpc.executors.slurm import commands as slurm
from vsr_hpc.executors.slurm.jobs import Failure

log = logging.getLogger(__name__)

_BACKEND_FAILURES = 4
"""A task that has ended with 75 so often ends with 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskLife:
    """This process as Slurm started it."""

    job: str
    """`12_3` for a task of an array, else `12`."""
    array: str
    cluster: str
    node: str
    restart: int
    folder: str
    began: float = field(default_factory=time.monotonic)

    @classmethod
    def read(cls) -> TaskLife:
        """Read it from the environment that Slurm gives to a task."""
        environment = os.environ
        array = environment.get("SLURM_ARRAY_JOB_ID") or environment["SLURM_JOB_ID"]
        index = environment.get("SLURM_ARRAY_TASK_ID")
        return cls(
            job=array if index is None else f"{array}_{index}",
            array=array,
            cluster=environment.get("SLURM_CLUSTER_NAME", "slurm"),
            node=environment.get("SLURMD_NODENAME") or os.uname().nodename,
            restart=int(environment.get("SLURM_RESTART_COUNT", "0")),
            folder=environment.get("SUBMITIT_FOLDER", ""),
        )

    @property
    def task(self) -> str:
        """The name of the task: the same in every life, another one on another cluster."""
        return f"{self.cluster}-{self.job}"

    def fail(self, code: int, text: str) -> int:
        """Keep for `vsr status` how this life ends; the answer is the exit code. Call it last.

        A task that ends with 75 is requeued, so that its place in the round is not lost: few clusters set
        RequeueExit=75. The last of several such ends becomes 1, which nothing brings back.
        """
        path = Path(self.folder) / f"{self.job}.failed.json"
        times = _count_failures(path, self.restart) + 1
        if code == BackendError.exit_code and times >= _BACKEND_FAILURES:
            code, text = VsrError.exit_code, f"{text}; this was time {times}, so the task is not tried again"
        log.error("%s", text)
        after_s = round(time.monotonic() - self.began, 3)
        failure = Failure(job=self.job, node=self.node, code=code, text=text, times=times, after_s=after_s)
        with contextlib.suppress(OSError):
            path.write_text(json.dumps(asdict(failure)), encoding="utf-8")
        if code == BackendError.exit_code:
            slurm.requeue(self.job)
        return code

    def fail_hung(self, text: str) -> int:
        """The same for a process whose work hangs."""
        return self.fail(BackendError.exit_code, text)


@contextlib.contextmanager
def failure_noted(life: TaskLife) -> Iterator[None]:
    """Turn an error into the exit code that Slurm shows and a small file for `vsr status`.

    SystemExit passes through submitit, which catches Exception alone: it writes no result file, and so cannot
    fail on a half-written one of an earlier life.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        yield
    except VsrError as exc:
        raise SystemExit(life.fail(exc.exit_code, str(exc)[:2000])) from exc


def _count_failures(path: Path, restart: int) -> int:
    """How often this task has ended with an error; if that cannot be read, how often it was restarted."""
    try:
        return int(json.loads(path.read_text(encoding="utf-8")).get("times", 1))
    except FileNotFoundError:
        return 0 if os.access(path.parent, os.W_OK) else restart
    except (OSError, ValueError, AttributeError):
        return restart
