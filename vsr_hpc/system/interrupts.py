"""The one stop flag, and everything that sets it: signals, the Spot notice, a deadline, a cancelled run.

Every stop drains alike; what follows depends on the reason (see `Reason`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import threading
import time
import urllib.request
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
    """Set once; the first reason stands. Readers ask `is_set` and how many seconds of grace are left."""

    _event: threading.Event = field(default_factory=threading.Event)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    """Set by signal handlers too, which may come while their own thread is inside."""
    _reason: Reason | None = None
    _until: float = float("inf")

    def set(self, reason: Reason, grace_s: float | None = None) -> None:
        with self._lock:
            if self._reason is not None:
                return
            self._reason = reason
            self._until = time.monotonic() + (_GRACE_S[reason] if grace_s is None else grace_s)
        self._event.set()
        log.info("stop asked for reason=%s", reason.value)

    @property
    def reason(self) -> Reason | None:
        return self._reason

    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, timeout_s: float) -> bool:
        return self._event.wait(timeout_s)

    def allows(self, work_s: float) -> bool:
        """Whether work that takes `work_s` seconds may still be finished."""
        return not self._event.is_set() or time.monotonic() + work_s < self._until


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


_TOKEN_LIFE_S = 300
_UNANSWERED = 3
"""After so many questions without any answer there is no metadata service here."""
_REBALANCE = "/latest/meta-data/events/recommendations/rebalance"


@contextlib.contextmanager
def spot_watched(flag: StopFlag, *, every_s: float = 5.0) -> Iterator[None]:
    """While in the block on an EC2 instance, a Spot interruption notice sets the flag.

    A rebalance recommendation is only logged: the instance may well live on, and every shard is a
    checkpoint. Elsewhere nothing answers at the metadata address and the watch ends after some questions.
    """
    done = threading.Event()
    watcher = threading.Thread(target=_watch_spot, args=(flag, done, every_s), name="spot-watch", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()


def _watch_spot(flag: StopFlag, done: threading.Event, every_s: float) -> None:
    base = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254").rstrip("/")
    if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return
    token, token_until, failures, is_at_risk = "", 0.0, 0, False
    while not done.is_set() and not flag.is_set():
        try:
            if time.monotonic() > token_until:
                token = _metadata(base, "/latest/api/token", method="PUT") or ""
                token_until = time.monotonic() + _TOKEN_LIFE_S / 2
            notice = _metadata(base, "/latest/meta-data/spot/instance-action", token=token)
            failures = 0
            if not is_at_risk and notice is None:
                is_at_risk = _metadata(base, _REBALANCE, token=token) is not None
                if is_at_risk:
                    log.warning("EC2 recommends leaving this instance; going on, shards are checkpoints")
            if notice is not None:
                log.warning("spot notice action=%s", _action(notice))
                flag.set(Reason.SPOT_NOTICE)
                return
        except urllib.error.HTTPError as exc:
            token_until = 0.0 if exc.code == 401 else token_until
        except OSError as exc:
            failures += 1
            if failures == _UNANSWERED and token == "":
                log.debug("no instance metadata here: %s", exc)
                return
        done.wait(every_s)


def _metadata(base: str, path: str, *, token: str = "", method: str = "GET") -> str | None:
    headers = {"X-aws-ec2-metadata-token": token} if token else {}
    if method == "PUT":
        headers["X-aws-ec2-metadata-token-ttl-seconds"] = str(_TOKEN_LIFE_S)
    request = urllib.request.Request(base + path, method=method, headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=2.0) as answer:
            text: bytes = answer.read(4096)
            return text.decode("utf-8", errors="replace")
    except urllib.error.HTTPError as exc:
        if exc.code == 404:
            return None
        raise


def _action(notice: str) -> str:
    try:
        return str(json.loads(notice)["action"])
    except (ValueError, KeyError, TypeError):
        return "unknown"
