"""A worker: lease a missing shard, make its segments, write its receipt, take the next.

Identical workers need to know nothing of each other. Whoever finds nothing missing finishes the run.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from vsr_hpc.errors import (
    BackendError,
    JobError,
    MediaError,
    OutageError,
    SourceChangedError,
    SpaceError,
    VsrError,
)
from vsr_hpc.planning.plan import Shard
from vsr_hpc.planning.source_stamps import SourceGuard
from vsr_hpc.run import model_copy as staging
from vsr_hpc.run.claims import Claims, is_in_living_hands, take_single
from vsr_hpc.run.documents import Cause, Heartbeat, Lease, Receipt
from vsr_hpc.run.liveness import Liveness, Process, new_worker_id
from vsr_hpc.run.log import RunLog
from vsr_hpc.run.run import Run
from vsr_hpc.system.interrupts import Reason, StopFlag
from vsr_hpc.system.progress import tick
from vsr_hpc.work import finish
from vsr_hpc.work.finish import ShardsLostError
from vsr_hpc.work.heartbeat import Pulse
from vsr_hpc.work.metrics import Push, Telemetry, sinks_of
from vsr_hpc.work.pipeline import Stopped, Workbench, make_segments
from vsr_hpc.work.run_plan import plan_run
from vsr_hpc.work.watchdog import Watchdog
from vsr_hpc.work.workbench import build_upscaler, check_environment, workbench

log = logging.getLogger(__name__)


_BACKEND_ERRORS_IN_A_ROW = 2
_BACK_OFF_S = 2.0
_QUIET_S = 0.5


class _OtherPlatformError(Exception):
    """`reproducible: strict`, and this is not the platform that the run began on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """What differs between workers of one run."""

    node: str = field(default_factory=lambda: os.environ.get("SLURMD_NODENAME") or os.uname().nodename)
    task: str = ""
    """The scheduler's name of this worker's place; a restarted task has the same one."""
    restart: int = 0
    threads: int = 0
    """CPU threads for decoding and the network; 0 takes all that this process may use."""
    parent: int = 0
    """The process that started this one, where its death should end this worker; 0 for none."""
    does_finish: bool = True
    metrics: Push | None = None
    prometheus: str | None = None
    """Where figures go; what the job says where they are None."""
    waits: bool = True
    """Whether to stay for a lease window when all that is missing is held by others."""
    exit_code_of_hang: Callable[[str], int] = lambda text: BackendError.exit_code
    """Decides with which code the process ends whose work hangs, from what is known about the hang."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a worker's life ended."""

    reason: Reason | None
    """None: it ran out of work."""
    shards: int
    frames: int
    is_complete: bool


Watcher = Callable[[Heartbeat], None]


def work(
    uri: str, options: WorkerOptions, stop: StopFlag, on_beat: Watcher = lambda heartbeat: None
) -> Outcome:
    """Work on a run until nothing is missing, nothing is free, or the flag is set."""
    run = Run.open(uri)
    worker = Worker(run, options, stop, on_beat)
    with worker.publish_figures(), worker.keep_beating():
        return worker.live()


class Worker:
    """The state that a worker's threads share: its heartbeat and its view of the run."""

    def __init__(self, run: Run, options: WorkerOptions, stop: StopFlag, on_beat: Watcher) -> None:
        self._run, self._options, self._stop, self._on_beat = run, options, stop, on_beat
        self._control = run.control()
        first = Process.current().heartbeat(
            new_worker_id(options.node),
            options.node,
            task=options.task,
            round=run.round_number(),
            restart=options.restart,
        )
        self._pulse = Pulse(run, first, self._show)
        self._backend_errors = 0
        self._seconds_per_frame: float | None = None
        self._platform: dict[str, str] = {}
        self._log = RunLog()
        self._telemetry = Telemetry(run.uri, ())
        self._watchdog = Watchdog(
            run.job().run.hang_s, flush=self._write_log, exit_code=options.exit_code_of_hang
        )

    @property
    def _beat(self) -> Heartbeat:
        return self._pulse.latest

    def publish_figures(self) -> contextlib.AbstractContextManager[None]:
        """Publish this worker's figures where its job or a flag asks for that."""
        how, options = self._run.job().run, self._options
        push = options.metrics or how.metrics
        sinks = sinks_of(push, options.prometheus or how.prometheus, self._beat.worker)
        self._telemetry = Telemetry(self._run.uri, sinks)
        return self._telemetry.running()

    # The heartbeat

    @contextlib.contextmanager
    def keep_beating(self) -> Iterator[None]:
        """Until the block ends: write heartbeats, hear whether the run was cancelled, end a hung process."""
        package = logging.getLogger("vsr_hpc")
        level_before = package.level
        package.setLevel(logging.INFO)
        package.addHandler(self._log)
        beat = self._beat
        log.info("worker began worker=%s node=%s restart=%d", beat.worker, beat.node, beat.restart)
        pulse = self._pulse.kept_up(
            before=(self._look_for_parent, self._look_at_control),
            after=(self._write_log,),
            last=lambda: {"shard": None, "note": self._stop.reason.value if self._stop.reason else ""},
        )
        try:
            with pulse, self._watchdog.watching(), self._log_leaving():
                yield
        finally:
            package.removeHandler(self._log)
            package.setLevel(level_before)

    @contextlib.contextmanager
    def _log_leaving(self) -> Iterator[None]:
        try:
            yield
        except Exception as exc:
            log.info("worker leaves error=%s", exc)
            raise
        log.info("worker leaves shards=%d frames=%d", self._beat.shards, self._beat.frames)

    def _look_for_parent(self) -> None:
        if self._options.parent and os.getppid() != self._options.parent:
            self._stop.set(Reason.TERMINATED)

    def _look_at_control(self) -> None:
        self._control = self._run.control()
        if self._control.must_stop(self._beat.round):
            self._stop.set(Reason.CANCELLED)

    def _show(self, beat: Heartbeat) -> None:
        self._telemetry.observe(beat)
        self._on_beat(beat)

    def _begin(self, shard: Shard) -> None:
        """Note the shard in hand; said at once unless this worker spoke a moment ago."""
        changes = {"state": "working", "shard": shard.index, "shard_frames": 0}
        tick()
        if self._pulse.age_s > _QUIET_S:
            self._pulse.say(**changes)
        else:
            self._pulse.note(lambda beat: changes)

    def _write_log(self) -> None:
        self._log.flush_to(self._run.store, f"{self._beat.worker}.{self._beat.restart}")

    def _note_frames(self, count: int) -> None:
        self._on_beat(
            self._pulse.note(
                lambda beat: {"shard_frames": beat.shard_frames + count, "frames": beat.frames + count}
            )
        )

    # Life

    def live(self) -> Outcome:
        run = self._run
        if self._control.must_stop(self._beat.round):
            self._stop.set(Reason.CANCELLED)
            return self._outcome(is_complete=False)
        staging.bring(run)
        self._ensure_plan()
        if self._stop.is_set() and not run.has_plan():
            return self._outcome(is_complete=False)
        self._guard = SourceGuard(run.plan)
        try:
            if run.missing():
                self._guard.check_file()
            bench = self._set_up() if run.missing() and not self._stop.is_set() else None
        except _OtherPlatformError as exc:
            log.warning("leaving before any work: %s", exc)
            return self._outcome(is_complete=False)
        except BackendError as exc:
            self._leave_node(exc)
            raise
        while True:
            claims = self._claims()
            self._work(bench, claims)
            try:
                return self._outcome(is_complete=self._finish_if_complete(claims))
            except ShardsLostError as exc:
                log.warning("%s", exc)

    def _claims(self) -> Claims:
        beat = self._beat
        return Claims(
            run=self._run, worker=beat.worker, node=beat.node, task=self._options.task, round=beat.round
        )

    def _outcome(self, *, is_complete: bool) -> Outcome:
        beat = self._beat
        return Outcome(
            reason=self._stop.reason, shards=beat.shards, frames=beat.frames, is_complete=is_complete
        )

    def _work(self, bench: Workbench | None, claims: Claims) -> None:
        """Take shards until none is missing, none comes free for a lease window, or the flag is set.

        Where the holder of a shard has fallen silent the wait goes on: leaving now, just before its lease
        may be taken over, would cost a new round.
        """
        run, idle_since = self._run, time.monotonic()
        while not self._stop.is_set():
            lease = claims.next(self._control)
            if lease is not None:
                bench = bench or self._set_up()
                self._attempt(bench, lease, claims)
                idle_since = time.monotonic()
                continue
            is_patient = time.monotonic() - idle_since <= run.lease_window_s or claims.may_come_free(
                self._control
            )
            if claims.is_complete(self._control) or not (self._options.waits and is_patient):
                break
            if claims.is_crowded:
                log.info("enough workers wait, leaving")
                break
            tick()  # others work: to wait for them is no hang
            self._pulse.note(lambda beat: {"state": "waiting", "shard": None})
            self._stop.wait(min(run.poll_s, 1.0))
        claims.stop_waiting()

    def _attempt(self, bench: Workbench, lease: Lease, claims: Claims) -> None:
        """Do one shard; raises only what ends this worker. Without a receipt the lease is given back."""
        index, epoch = lease.shard
        shard = self._run.plan.shard(index)
        try:
            self._do(bench, shard, epoch, lease)
        except Stopped:
            self._give_back(lease, "stopped", f"{self._stop.reason}")
        except SourceChangedError as exc:
            self._give_back(lease, "stopped", str(exc))
            raise
        except MediaError as exc:
            self._give_back(lease, "media", str(exc))
            claims.released(shard.index)
            log.warning("shard failed shard=%05d error=%s", shard.index, exc)
        except BackendError as exc:
            self._give_back(lease, "backend", str(exc))
            claims.released(shard.index)
            self._backend_errors += 1
            log.warning("backend error shard=%05d count=%d error=%s", shard.index, self._backend_errors, exc)
            if self._backend_errors >= _BACKEND_ERRORS_IN_A_ROW:
                self._leave_node(exc)
                raise
            self._stop.wait(_BACK_OFF_S)
        except BaseException as exc:
            self._give_back(lease, "stopped", f"the worker left: {exc}")
            raise
        else:
            claims.forget(shard.index)
            self._backend_errors = 0

    def _ensure_plan(self) -> None:
        """Make the plan, or wait for the worker that makes it. A clip that cannot be planned fails once."""
        run, name = self._run, f"plan-{self._beat.round}"
        liveness = Liveness(run=run, task=self._options.task, worker=self._beat.worker)
        while not run.has_plan() and not self._stop.is_set():
            self._refuse_failed_plan(name)
            lease = take_single(run, name, self._beat.worker, self._beat.node, liveness)
            if lease is None:
                tick()
                self._stop.wait(run.poll_s)
                continue
            try:
                plan_run(run, self._options.threads)
            except (JobError, MediaError, SpaceError) as exc:
                self._give_back(lease, "media", str(exc))
                raise
            except BaseException:
                self._give_back(lease, "stopped", "the worker left with an error")
                raise

    def _refuse_failed_plan(self, name: str) -> None:
        state = self._run.leases().get(name)
        end = self._run.ending(name, state.generation) if state and state.is_ended else None
        if end is not None and end.cause == "media":
            raise MediaError(f"planning failed on {end.node}: {end.text}")

    def _set_up(self) -> Workbench:
        plan = self._run.plan
        check_environment(plan)
        upscaler, self._platform = build_upscaler(plan, self._threads())
        self._check_platform(self._platform)
        upscaler.canary()
        self._pulse.note(lambda beat: {"device": self._platform["device"]})
        store = self._run.store
        bench = workbench(plan, self._run.timeline, upscaler, store.scratch, self._threads())
        at_once = (
            upscaler.batch if plan.temporal is None else plan.temporal.longest + 2 * plan.temporal.context
        )
        self._watchdog.expect((plan.seconds_per_frame or 0.0) * at_once)
        return replace(bench, publish=store.put_file)

    def _check_platform(self, platform: dict[str, str]) -> None:
        """`reproducible: strict` keeps a run on the platform of its first worker."""
        if self._run.plan.job.run.reproducible == "strict":
            first = self._run.settle_platform(platform)
            if first != platform:
                keys = [key for key in first if first[key] != platform.get(key)]
                differing = ", ".join(f"{key} {first[key]}, here {platform.get(key)}" for key in keys)
                raise _OtherPlatformError(f"the run keeps to its first worker's platform: {differing}")

    def _threads(self) -> int:
        return self._options.threads or len(os.sched_getaffinity(0))

    def _do(self, bench: Workbench, shard: Shard, epoch: int, lease: Lease) -> None:
        began, began_s = time.monotonic(), time.time()
        self._begin(shard)
        try:
            work_done = make_segments(
                bench,
                shard,
                on_frames=self._note_frames,
                should_drop=lambda left: not self._stop.allows(left * (self._seconds_per_frame or 0.0)),
            )
        except MediaError:  # the clip is to blame only if it is still there, and still the same
            self._guard.check(shard.start, shard.stop)
            raise
        self._guard.check(shard.start, shard.stop)
        receipt = Receipt(
            shard=shard.index,
            epoch=epoch,
            worker=self._beat.worker,
            generation=lease.generation,
            settings=self._run.plan.settings_id,
            segments=work_done.segments,
            platform={**self._platform, "batch": str(bench.upscaler.batch)},
            seconds=work_done.seconds,
            clipped=work_done.clipped,
            repeated=work_done.repeated,
            findings=work_done.findings,
            started_s=round(began_s, 3),
            finished_s=round(time.time(), 3),
        )
        if not self._run.record(receipt):
            log.info("shard was done by another worker shard=%05d", shard.index)
        took = time.monotonic() - began
        self._seconds_per_frame = took / shard.frames
        total = dict(self._beat.seconds)  # changed by this thread alone
        for stage, seconds in work_done.seconds.items():
            total[stage] = round(total.get(stage, 0.0) + seconds, 3)
        self._pulse.note(
            lambda beat: {
                "shards": beat.shards + 1,
                "seconds": total,
                "repeated": beat.repeated + work_done.repeated,
            }
        )
        log.info("shard done shard=%05d frames=%d seconds=%.2f", shard.index, shard.frames, took)

    def _give_back(self, lease: Lease, cause: Cause, text: str) -> None:
        if cause in ("media", "backend"):
            self._pulse.note(lambda beat: {"failed": beat.failed + 1})
        try:
            self._run.give_back(lease, cause, self._beat.node, text)
        except VsrError as exc:
            log.warning("lease not given back lease=%s error=%s", lease.name, exc)

    def _leave_node(self, error: BackendError) -> None:
        """Keep this round off a node whose device fails; one's own machine is never avoided.

        An outage of the store or the source is not the node's fault: every node would meet it.
        """
        if self._run.plan.job.on != "local" and not isinstance(error, OutageError):
            self._run.avoid_node(self._beat.node, self._beat.round, str(error))

    def _finish_if_complete(self, claims: Claims) -> bool:
        """Merge, unless another one does: who has seen that one move leaves, who has not may have to."""
        if not claims.is_complete(self._control):
            return False
        if self._stop.is_set() or not self._options.does_finish or self._run.missing():
            return False
        self._pulse.say(state="finishing", shard=None)
        run, beat = self._run, self._beat
        liveness = Liveness(run=run, task=self._options.task, worker=beat.worker)
        while finish.try_finish(run, beat.worker, beat.node, liveness) is None:
            tick()
            is_patient = self._options.waits and not is_in_living_hands(run, "finish", liveness)
            if not is_patient or self._stop.wait(run.poll_s):
                return False
        return True
