"""What runs inside a Slurm job: one worker, or the net that finishes a run whose workers have all ended.

submitit pickles the two small classes here by reference: a run's URI and a few options. Its own signal
handlers and result files are never used; the run says what is done, the exit code says who must act.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from vsr_hpc.errors import BackendError, VsrError
from vsr_hpc.executors.slurm import commands as slurm
from vsr_hpc.executors.slurm.jobs import Failure, Names
from vsr_hpc.job.spec import ContainerSection
from vsr_hpc.system.interrupts import Reason, StopFlag, signals_set
from vsr_hpc.system.spot_notice import spot_watched

if TYPE_CHECKING:
    from vsr_hpc.run.run import Run

log = logging.getLogger(__name__)


_FRUITLESS_RESTARTS = 3
"""A task that was cut off so often without a finished shard does not put itself back any more."""
_BACKEND_FAILURES = 4
"""A task that ended so often with 75 ends with 1: RequeueExit=75 would bring it back for ever."""
_HOLD_EVERY_S = 3.0
_HOLD_LONGEST_S = 1200.0
_LOOK_EVERY_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where in Slurm this process is."""

    job: str
    """`12_3`, or `12` where it is no array task."""
    array: str
    cluster: str
    node: str
    restart: int
    folder: str

    @classmethod
    def here(cls) -> Place:
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
        """The name of this worker's place: the same after a requeue, another on another cluster."""
        return f"{self.cluster}-{self.job}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerTask:
    """One worker of a run: the same as `vsr worker RUN`, and what follows from how it stopped."""

    uri: str
    names: Names
    threads: int
    has_standby: bool = False
    kill_wait_s: int = 30
    container: ContainerSection | None = None

    def __call__(self) -> NoReturn:
        place = Place.here()
        with record_failure(place):
            stop = StopFlag()
            grace_s = max(0.0, self.kill_wait_s - 5.0)
            with signals_set(stop, grace_s=grace_s), spot_watched(stop):
                self._live(place, stop)
        raise SystemExit(0)

    def _live(self, place: Place, stop: StopFlag) -> None:
        from vsr_hpc.run.run import Run

        run = Run.open(self.uri)
        if run.done() is not None or run.is_cancelled() or run.control().is_stopped:
            return
        if self._is_kept_off(run, place):
            self._keep_off(place)
            raise BackendError(f"{place.node} is on the run's avoid list")
        try:
            shards = self._work_inside(place, stop) if self.container else self._work(place, stop)
        except BackendError:
            self._keep_off(place)
            raise
        if stop.reason is None and not run.missing() - set(run.control().poisoned):
            self._release(run.done() is not None)
        elif stop.reason in (Reason.TIME_LIMIT, Reason.SPOT_NOTICE):
            if run.is_cancelled():
                return
            if shards == 0 and place.restart >= _FRUITLESS_RESTARTS:
                log.warning("cut off again before the first shard, not coming back restart=%d", place.restart)
                return
            if stop.reason is Reason.SPOT_NOTICE and not self._may_leave(place):
                return
            slurm.requeue(place.job)

    def _is_kept_off(self, run: Run, place: Place) -> bool:
        """Whether this round avoids the node; where it avoids every node of the partition, it avoids none."""
        avoided = run.control().avoided_in(run.round_number())
        partition = os.environ.get("SLURM_JOB_PARTITION")
        return place.node in avoided and bool(slurm.partition_nodes(partition) - avoided)

    def _work(self, place: Place, stop: StopFlag) -> int:
        from vsr_hpc.run.documents import Heartbeat
        from vsr_hpc.work.worker import WorkerOptions, work

        seen: set[str] = set()

        def on_beat(beat: Heartbeat) -> None:
            if beat.state in seen:
                return
            seen.add(beat.state)
            if beat.state == "working" and self.has_standby:
                _aside(lambda: slurm.cancel((self.names.standby,), only_pending=True))
            if beat.state == "finishing":
                slurm.cancel((self.names.workers, self.names.standby), only_pending=True)

        options = WorkerOptions(node=place.node, task=place.task, restart=place.restart, threads=self.threads)
        return work(self.uri, options, stop, on_beat).shards

    def _work_inside(self, place: Place, stop: StopFlag) -> int:
        """Run the worker in a container. Signals and the Spot notice are heard here and handed on."""
        from vsr_hpc.run.run import Run

        assert self.container is not None
        inner = [
            "vsr", "worker", self.uri, "--task", place.task, "--restart", str(place.restart),
            "--threads", str(self.threads),
        ]  # fmt: skip
        environment = {**os.environ, "AWS_EC2_METADATA_DISABLED": "true"}
        child = subprocess.Popen(inside(self.container, inner), env=environment, start_new_session=True)
        run, looked_at, is_told = Run.open(self.uri), time.monotonic(), False
        has_standby = self.has_standby
        while child.poll() is None:
            stop.wait(1.0) if not is_told else time.sleep(0.2)
            if stop.is_set() and not is_told:
                is_told = True
                number = signal.SIGTERM if stop.reason is Reason.TERMINATED else signal.SIGUSR2
                os.killpg(child.pid, number)
            if has_standby and time.monotonic() - looked_at > _LOOK_EVERY_S:
                looked_at = time.monotonic()
                if any(beat.task == place.task and beat.shard is not None for beat in run.heartbeats()):
                    slurm.cancel((self.names.standby,), only_pending=True)
                    has_standby = False
        if child.returncode == BackendError.exit_code:
            raise BackendError(f"the worker in {self.container.image} ended with {child.returncode}")
        if child.returncode != 0 and not stop.is_set():
            error = VsrError(f"the worker in {self.container.image} ended with {child.returncode}")
            error.exit_code = child.returncode if child.returncode > 0 else 128 - child.returncode
            raise error
        mine = [beat for beat in run.heartbeats() if beat.task == place.task]
        return max((beat.shards for beat in mine if beat.restart == place.restart), default=0)

    def _release(self, is_finished: bool) -> None:
        """Nothing is left to do: whoever still waits in the queue need not come."""
        slurm.cancel((self.names.workers, self.names.standby), only_pending=True)
        if is_finished:
            slurm.cancel((self.names.finish,), only_pending=True)

    def _keep_off(self, place: Place) -> None:
        """Let tasks that still wait go to other nodes, unless there are none."""
        from vsr_hpc.run.run import Run

        run = Run.open(self.uri)
        avoided = run.control().avoided_in(run.round_number())
        others = slurm.partition_nodes(os.environ.get("SLURM_JOB_PARTITION"))
        if avoided and others - avoided:
            slurm.exclude_nodes(place.array, avoided & others)

    def _may_leave(self, place: Place) -> bool:
        """Wait for the moment to requeue after a Spot notice; False where the task should just end.

        Requeued at once it would start again on the dying node, unless that is drained (a root service does
        it, `slurm/spot-watch`). So it holds its place, idle, until the node goes and Slurm requeues it.
        """
        from vsr_hpc.run.run import Run

        run, waiting = Run.open(self.uri), StopFlag()
        until = time.monotonic() + _HOLD_LONGEST_S
        log.info("holding the place until the node goes node=%s", place.node)
        with signals_set(waiting):
            while time.monotonic() < until:
                if slurm.is_node_leaving(place.node):
                    return True
                if run.done() is not None or run.is_cancelled():
                    return False
                if waiting.wait(_HOLD_EVERY_S):
                    return waiting.reason is Reason.TIME_LIMIT
        return True


def inside(container: ContainerSection, command: list[str]) -> list[str]:
    """The command that runs another one in a container."""
    if container.runtime == "apptainer":
        gpu = ["--nv"] if os.environ.get("CUDA_VISIBLE_DEVICES") else []
        return ["apptainer", "exec", *gpu, *container.args, container.image, *command]
    return ["enroot", "start", *container.args, container.image, *command]


@contextlib.contextmanager
def record_failure(place: Place) -> Iterator[None]:
    """Errors become the exit code that Slurm shows and a small file for `vsr status`.

    SystemExit passes through submitit, which catches Exception alone: it writes no result, and so cannot
    stumble over a half-written one of an earlier life.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    began = time.monotonic()
    try:
        yield
    except VsrError as exc:
        path = Path(place.folder) / f"{place.job}.failed.json"
        code, times, text = exc.exit_code, _failed_before(path, place) + 1, str(exc)[:2000]
        if code == BackendError.exit_code and times >= _BACKEND_FAILURES:
            code, text = VsrError.exit_code, f"{text}; this was time {times}, so the task is not tried again"
        log.error("%s", text)
        failure = Failure(
            job=place.job, node=place.node, code=code, text=text, times=times,
            after_s=round(time.monotonic() - began, 3),
        )  # fmt: skip
        with contextlib.suppress(OSError):
            path.write_text(json.dumps(asdict(failure)), encoding="utf-8")
        raise SystemExit(code) from exc


def _failed_before(path: Path, place: Place) -> int:
    """How often this task has ended with an error; where that cannot be read, how often it was restarted."""
    try:
        return int(json.loads(path.read_text(encoding="utf-8")).get("times", 1))
    except FileNotFoundError:
        return 0 if os.access(path.parent, os.W_OK) else place.restart
    except (OSError, ValueError, AttributeError):
        return place.restart


def _aside(call: Callable[[], object]) -> None:
    threading.Thread(target=call, name="scancel", daemon=True).start()
