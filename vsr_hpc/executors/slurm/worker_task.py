"""The task of a Slurm array: one worker, and what follows from how it stopped.

submitit pickles WorkerTask by reference. Its own signal handlers and result files are not used: the run says
what is done, and the exit code says who must act.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from vsr_hpc.errors import BackendError, VsrError
from vsr_hpc.executors.slurm import commands as slurm
from vsr_hpc.executors.slurm.jobs import Names
from vsr_hpc.executors.slurm.task_life import TaskLife, failure_noted
from vsr_hpc.job.spec import ContainerSection
from vsr_hpc.system.interrupts import Reason, StopFlag, signals_set
from vsr_hpc.system.spot_notice import spot_watched

if TYPE_CHECKING:
    from vsr_hpc.run.run import Run

log = logging.getLogger(__name__)


_FRUITLESS_LIVES = 4
"""A task that finished no shard in so many lives in a row does not requeue itself again."""
_HOLD_EVERY_S = 3.0
_HOLD_LONGEST_S = 1200.0
_LOOK_EVERY_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerTask:
    """One worker of a run: the same as `vsr worker RUN`, and what follows from how it stopped."""

    uri: str
    names: Names
    threads: int
    has_standby: bool = False
    does_finish: bool = True
    """Whether the worker that finds nothing missing merges; otherwise the job that follows does."""
    kill_wait_s: int = 30
    container: ContainerSection | None = None

    def __call__(self) -> NoReturn:
        life = TaskLife.read()
        with failure_noted(life):
            stop = StopFlag()
            grace_s = max(0.0, self.kill_wait_s - 5.0)
            with signals_set(stop, grace_s=grace_s), spot_watched(stop):
                self._live(life, stop)
        raise SystemExit(0)

    def _live(self, life: TaskLife, stop: StopFlag) -> None:
        from vsr_hpc.run.run import Run

        run = Run.open(self.uri)
        if run.done() is not None or run.is_cancelled() or run.control().is_stopped:
            return
        if _is_kept_off(run, life):
            _exclude_avoided_nodes(run, life)
            raise BackendError(f"{life.node} is on the run's avoid list")
        try:
            shards = self._work_inside(run, life, stop) if self.container else self._work(life, stop)
        except BackendError:
            _exclude_avoided_nodes(run, life)
            raise
        if stop.reason is None and not run.missing() - set(run.control().poisoned):
            self._release(run.done() is not None)
        elif stop.reason in (Reason.TIME_LIMIT, Reason.SPOT_NOTICE):
            self._come_back(run, life, stop.reason, shards)

    def _come_back(self, run: Run, life: TaskLife, reason: Reason, shards: int) -> None:
        """Requeue the task that was cut off, unless the run is cancelled or the task gets nothing done."""
        if run.is_cancelled():
            return
        if shards == 0 and (lives := count_fruitless_lives(run, life)) >= _FRUITLESS_LIVES:
            log.warning("cut off without a shard lives=%d, not coming back restart=%d", lives, life.restart)
            return
        if reason is Reason.SPOT_NOTICE and not self._may_leave(run, life):
            return
        slurm.requeue(life.job)

    def _work(self, life: TaskLife, stop: StopFlag) -> int:
        from vsr_hpc.run.documents import Heartbeat
        from vsr_hpc.work.worker import WorkerOptions, work

        seen: set[str] = set()

        def on_beat(beat: Heartbeat) -> None:
            if beat.state in seen:
                return
            seen.add(beat.state)
            if beat.state == "working" and self.has_standby:
                _call_beside(lambda: slurm.cancel((self.names.standby,), only_pending=True))
            if beat.state == "finishing":
                slurm.cancel((self.names.workers, self.names.standby), only_pending=True)

        options = WorkerOptions(
            node=life.node,
            task=life.task,
            restart=life.restart,
            threads=self.threads,
            does_finish=self.does_finish,
            exit_code_of_hang=life.fail_hung,
        )
        return work(self.uri, options, stop, on_beat).shards

    def _work_inside(self, run: Run, life: TaskLife, stop: StopFlag) -> int:
        """Run the worker in a container; this process hands signals and the Spot notice on to it."""
        assert self.container is not None
        inner = [
            "vsr", "worker", self.uri, "--task", life.task, "--restart", str(life.restart),
            "--threads", str(self.threads), *([] if self.does_finish else ["--leave-merge"]),
        ]  # fmt: skip
        environment = {**os.environ, "AWS_EC2_METADATA_DISABLED": "true"}
        child = subprocess.Popen(inside(self.container, inner), env=environment, start_new_session=True)
        looked_at, is_told, has_standby = time.monotonic(), False, self.has_standby
        while child.poll() is None:
            stop.wait(1.0) if not is_told else time.sleep(0.2)
            if stop.is_set() and not is_told:
                is_told = True
                number = signal.SIGTERM if stop.reason is Reason.TERMINATED else signal.SIGUSR2
                os.killpg(child.pid, number)
            if has_standby and time.monotonic() - looked_at > _LOOK_EVERY_S:
                looked_at = time.monotonic()
                if any(beat.task == life.task and beat.shard is not None for beat in run.heartbeats()):
                    slurm.cancel((self.names.standby,), only_pending=True)
                    has_standby = False
        code, image = child.returncode, self.container.image
        if code == BackendError.exit_code:
            raise BackendError(f"the worker in {image} ended with {code}")
        if code != 0 and not stop.is_set():
            error = VsrError(f"the worker in {image} ended with {code}")
            error.exit_code = code if code > 0 else 128 - code
            raise error
        mine = [beat for beat in run.heartbeats() if beat.task == life.task]
        return max((beat.shards for beat in mine if beat.restart == life.restart), default=0)

    def _release(self, is_finished: bool) -> None:
        """Cancel the jobs that still wait, since nothing is left to do."""
        slurm.cancel((self.names.workers, self.names.standby), only_pending=True)
        if is_finished:
            slurm.cancel((self.names.finish,), only_pending=True)

    def _may_leave(self, run: Run, life: TaskLife) -> bool:
        """Wait for the moment to requeue after a Spot notice; False where the task should just end.

        Requeued at once it would start again on the dying node, unless that is drained (a root service does
        it, `slurm/spot-watch`). So it holds its place, idle, until the node goes and Slurm requeues it.
        """
        waiting, until = StopFlag(), time.monotonic() + _HOLD_LONGEST_S
        log.info("holding the place until the node goes node=%s", life.node)
        with signals_set(waiting):
            while time.monotonic() < until:
                if slurm.is_node_leaving(life.node):
                    return True
                if run.done() is not None or run.is_cancelled():
                    return False
                if waiting.wait(_HOLD_EVERY_S):
                    return waiting.reason is Reason.TIME_LIMIT
        return True


def count_fruitless_lives(run: Run, life: TaskLife) -> int:
    """How many lives in a row, this one included, the task has not finished a shard."""
    fruitful = [beat.restart for beat in run.heartbeats() if beat.task == life.task and beat.shards]
    return life.restart - max(fruitful, default=-1)


def _is_kept_off(run: Run, life: TaskLife) -> bool:
    """Whether this round avoids the node; where it avoids every node of the partition, it avoids none."""
    avoided = run.control().avoided_in(run.round_number())
    return life.node in avoided and bool(_list_nodes() - avoided)


def _exclude_avoided_nodes(run: Run, life: TaskLife) -> None:
    """Let tasks that still wait go to other nodes, unless there are none."""
    avoided, nodes = run.control().avoided_in(run.round_number()), _list_nodes()
    if avoided and nodes - avoided:
        slurm.exclude_nodes(life.array, avoided & nodes)


def _list_nodes() -> frozenset[str]:
    return slurm.list_nodes(os.environ.get("SLURM_JOB_PARTITION"))


def inside(container: ContainerSection, command: list[str]) -> list[str]:
    """The command that runs another one in a container."""
    if container.runtime == "apptainer":
        gpu = ["--nv"] if os.environ.get("CUDA_VISIBLE_DEVICES") else []
        return ["apptainer", "exec", *gpu, *container.args, container.image, *command]
    return ["enroot", "start", *container.args, container.image, *command]


def _call_beside(call: Callable[[], object]) -> None:
    threading.Thread(target=call, name="scancel", daemon=True).start()
