"""What runs in a container of AWS Batch: one worker, whose exit code tells Batch whether to start it again.

0    nothing left for this worker: done, cancelled, or what is left others hold or `vsr finish` reports
75   start me again: cut off by Spot or the time limit, or an error that may pass
else whoever can mend it must; another try would end the same way
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from vsr_hpc.errors import BackendError, JobError
from vsr_hpc.run.notification import notify
from vsr_hpc.run.run import Run
from vsr_hpc.run.status import read_status
from vsr_hpc.system.interrupts import Reason, StopFlag, signals_set
from vsr_hpc.system.spot_notice import spot_watched

log = logging.getLogger(__name__)


_AGAIN = BackendError.exit_code
_KILL_WAIT_S = 25.0
"""Batch kills 30 s after SIGTERM."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """This process as Batch started it: one attempt at a job."""

    job: str
    """`<id>`, or `<id>:<index>` in an array; the same in every attempt."""
    number: int
    attempts: int
    leaves_after_s: float
    """Some time before Batch would kill this attempt; 0 for never."""

    @classmethod
    def read(cls) -> Attempt:
        """Read it from the environment that Batch gives to a container."""
        environment = os.environ
        job = environment.get("AWS_BATCH_JOB_ID", "")
        if not job:
            raise JobError("this is not a job of AWS Batch; `vsr worker RUN` works anywhere")
        return cls(
            job=job,
            number=int(environment.get("AWS_BATCH_JOB_ATTEMPT", "1")),
            attempts=int(environment.get("VSR_BATCH_ATTEMPTS", "1")),
            leaves_after_s=float(environment.get("VSR_BATCH_TIMEOUT_S", "0"))
            - float(environment.get("VSR_BATCH_WARNING_S", "0")),
        )

    @property
    def task(self) -> str:
        return f"batch-{self.job}"

    @property
    def is_last_attempt(self) -> bool:
        return self.number >= self.attempts


def work_here(uri: str, *, does_finish: bool, after: str | None) -> int:
    """Work as one worker of the run; the exit code for Batch. Raises what a person must mend."""
    attempt = Attempt.read()
    if after is not None:
        require_complete(after)
    run = Run.open(uri)
    if run.done() is not None or run.is_cancelled() or run.control().is_stopped:
        return 0
    stop = StopFlag()
    try:
        with (
            signals_set(stop, grace_s=_KILL_WAIT_S),
            spot_watched(stop),
            deadline_set(stop, attempt.leaves_after_s),
        ):
            reason = _work(uri, attempt, stop, does_finish)
    except BackendError as exc:
        return _answer_error(exc, run, attempt)
    return exit_code(reason, is_over=run.done() is not None or run.is_cancelled(), attempt=attempt)


def _work(uri: str, attempt: Attempt, stop: StopFlag, does_finish: bool) -> Reason | None:
    from vsr_hpc.work.worker import WorkerOptions, work

    options = WorkerOptions(task=attempt.task, restart=attempt.number - 1, does_finish=does_finish)
    return work(uri, options, stop).reason


def exit_code(reason: Reason | None, *, is_over: bool, attempt: Attempt) -> int:
    """What Batch is told after a worker that left in peace."""
    is_cut_off = reason in (Reason.TIME_LIMIT, Reason.SPOT_NOTICE, Reason.TERMINATED)
    if not is_cut_off or is_over:
        return 0
    if attempt.is_last_attempt:
        log.warning("cut off in the last attempt, not coming back attempt=%d", attempt.number)
    return _AGAIN


def _answer_error(exc: BackendError, run: Run, attempt: Attempt) -> int:
    """After an error that may pass. In the last attempt others go on: one worker fails no array."""
    if not attempt.is_last_attempt:
        raise exc
    others = [each for each in read_status(run).alive if each.heartbeat.task != attempt.task]
    if not others:
        notify(run, "stuck", f"{run.job().output}: the last worker ended with: {exc}")
        raise exc
    log.error("%s", exc)
    log.warning("the last attempt is over and %d others are at work: leaving to them", len(others))
    return 0


def require_complete(uri: str) -> None:
    if Run.open(uri).done() is None:
        raise JobError(f"{uri}: is not complete, and this run was to come after it; `vsr resume` it first")


@contextlib.contextmanager
def deadline_set(stop: StopFlag, after_s: float) -> Iterator[None]:
    """While in the block, the flag is set as at a time limit once so many seconds have passed."""
    if after_s <= 0:
        yield
        return
    timer = threading.Timer(after_s, lambda: stop.set(Reason.TIME_LIMIT))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
