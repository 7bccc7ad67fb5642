"""Decides whether the owner of a lease still lives."""

from __future__ import annotations

import os
import re
import secrets
import socket
import time
from dataclasses import dataclass, field

from vsr_hpc.run.documents import Heartbeat
from vsr_hpc.run.run import Run
from vsr_hpc.system.processes import boot_identity, process_start


def new_worker_id(node: str) -> str:
    safe = re.sub(r"[^A-Za-z0-9_.-]", "-", node)[:40]
    return f"{safe}-{os.getpid()}-{secrets.token_hex(3)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """This process, told apart from every other one that ever ran."""

    host: str
    pid: int
    process_start: int
    boot: str

    @classmethod
    def current(cls) -> Process:
        return cls(
            host=socket.gethostname(),
            pid=os.getpid(),
            process_start=process_start(os.getpid()),
            boot=boot_identity(),
        )

    def heartbeat(
        self, worker: str, node: str, *, task: str = "", round: int = 0, restart: int = 0
    ) -> Heartbeat:
        """The first one of a worker that lives in this process."""
        return Heartbeat(
            worker=worker,
            host=self.host,
            node=node,
            pid=self.pid,
            process_start=self.process_start,
            boot=self.boot,
            task=task,
            round=round,
            restart=restart,
            started_s=time.time(),
        )


def is_process_gone(heartbeat: Heartbeat) -> bool:
    """Whether the worker's process is known to be dead: only a process of the same boot can tell."""
    if heartbeat.boot != boot_identity() or heartbeat.host != socket.gethostname():
        return False
    return process_start(heartbeat.pid) != heartbeat.process_start


@dataclass(slots=True)
class Liveness:
    """Which workers live: on this observer's own monotonic clock, heartbeats move or stand still."""

    run: Run
    task: str
    worker: str
    _moved: dict[str, tuple[float, float]] = field(default_factory=dict)
    _alive: set[str] = field(default_factory=set)
    _identity: dict[str, Heartbeat] = field(default_factory=dict)

    def observe(self) -> None:
        now = time.monotonic()
        for worker, modified_s in self.run.beaten().items():
            seen = self._moved.get(worker)
            if seen is None or seen[0] != modified_s:
                self._moved[worker] = (modified_s, now)
            if seen is not None and seen[0] != modified_s:
                self._alive.add(worker)

    def is_stale(self, worker: str) -> bool:
        """Whether a lease of this worker may be taken over."""
        if worker == self.worker:
            return False
        heartbeat = self._identity.get(worker) or self.run.heartbeat(worker)
        if heartbeat is not None:
            self._identity[worker] = heartbeat
            if is_process_gone(heartbeat) or (self.task and heartbeat.task == self.task):
                return True
        return self._silence_s(worker) > self.run.lease_window_s

    def is_silent(self, worker: str) -> bool:
        """Whether this worker has not moved lately, so that its lease may soon be stale."""
        return worker != self.worker and self._silence_s(worker) > self.run.lease_window_s / 3

    def was_seen_alive(self, worker: str) -> bool:
        """Whether this worker's heartbeat moved while it was observed, be it dead by now."""
        return worker in self._alive

    def _silence_s(self, worker: str) -> float:
        _, since = self._moved.setdefault(worker, (0.0, time.monotonic()))
        return time.monotonic() - since
