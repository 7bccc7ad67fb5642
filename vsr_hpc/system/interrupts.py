"""The one stop flag, and everything that sets it: signals, the Spot notice, a deadline, a cancelled run.

Every stop drains alike; what follows depends on the reason (see `Reason`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from types import FrameType

log = logging.getLogger(__name__)


class Reason(Enum):
    """Why a worker stops, and whether it should be started again by itself."""

    TERMINATED = "terminated"
    """SIGTERM: the scheduler requeues, or the user cancelled; just leave."""
    TIME_LIMIT = "time limit"
    """SIGUSR2: requeue oneself, unless the run was cancelled."""
    SPOT_NOTICE = "spot notice"
    """The node will be taken: requeue oneself elsewhere, unless the run was cancelled."""
    CANCELLED = "cancelled"
    """`vsr cancel` or a stop file: exit 0 and stay away."""
    INTERRUPTED = "interrupted"
    """Ctrl-C: exit and stay away."""


_GRACE_S = {
    Reason.TERMINATED: 20.0,
    Reason.TIME_LIMIT: 60.0,
    Reason.SPOT_NOTICE: 90.0,
    Reason.CANCELLED: 0.0,
    Reason.INTERRUPTED: 0.0,
}


@dataclass(slots=True)
class StopFlag:
    """Set once; the first reason stands. Readers ask `is_set` and how many seconds of grace are left.

    Signal handlers set it too, while their own thread may be inside any of these methods. A `threading.Event`
    would deadlock there, since its lock is not reentrant; a pipe wakes the waiting threads instead.
    """

    _ends: tuple[int, int] = field(default_factory=os.pipe)
    """The end to wait for and the end to write to; nobody ever reads, so every waiting thread wakes."""
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _reason: Reason | None = None
    _until: float = float("inf")

    def set(self, reason: Reason, grace_s: float | None = None) -> None:
        with self._lock:
            if self._reason is not None:
                return
            self._reason = reason
            self._until = time.monotonic() + (_GRACE_S[reason] if grace_s is None else grace_s)
            os.write(self._ends[1], b"!")
        log.info("stop asked for reason=%s", reason.value)

    @property
    def reason(self) -> Reason | None:
        return self._reason

    def is_set(self) -> bool:
        return self._reason is not None

    def wait(self, timeout_s: float) -> bool:
        waiting = select.poll()
        waiting.register(self._ends[0], select.POLLIN)
        return bool(waiting.poll(max(0.0, timeout_s) * 1000))

    def allows(self, work_s: float) -> bool:
        """Whether work that takes `work_s` seconds may still be finished."""
        return not self.is_set() or time.monotonic() + work_s < self._until

    def __del__(self) -> None:
        for end in self._ends:
            os.close(end)


@contextlib.contextmanager
def signals_set(flag: StopFlag, *, grace_s: float | None = None) -> Iterator[None]:
    """While in the block, SIGTERM, SIGUSR2 and Ctrl-C set the flag; a second Ctrl-C aborts at once.

    `grace_s` is what the scheduler leaves between SIGTERM and SIGKILL, where that is known.
    """

    def terminate(number: int, frame: FrameType | None) -> None:
        flag.set(Reason.TERMINATED, grace_s)

    def near_limit(number: int, frame: FrameType | None) -> None:
        flag.set(Reason.TIME_LIMIT)

    def interrupt(number: int, frame: FrameType | None) -> None:
        if flag.is_set():
            raise KeyboardInterrupt
        flag.set(Reason.INTERRUPTED)

    handlers = {signal.SIGTERM: terminate, signal.SIGUSR2: near_limit, signal.SIGINT: interrupt}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
