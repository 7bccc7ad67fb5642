"""A run in a store: a plan that never changes and receipts that only accumulate.

    job.json  plan.json  timeline.bin            what to do; written once
    weights/  card.json                          what a worker needs of a model; the card only of one's own
    segments/00042-<sha>.mp4                     encoded chunks, named by content
    receipts/00042.json                          shard done: names its segments; the first one wins for ever
    leases/00042.g1.json  …g1.end.json           who claimed a shard, and how that ended unless by a receipt
    workers/<id>.json                            heartbeats, each rewritten by its owner alone
    control/…                                    cancelled, poisoned, retried, avoided
    rounds/1.json  done.json  logs/              submissions, the end, what workers said

What is missing is plan minus receipts; status, resume, finish and verify are readings of that one sum.
"""

from __future__ import annotations

import functools
import getpass
import hashlib
import json
import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from vsr_hpc.errors import JobError, VsrError
from vsr_hpc.job.spec import JobSpec
from vsr_hpc.media.timeline import Timeline
from vsr_hpc.planning.plan import Plan
from vsr_hpc.storage.folder_store import MissingObject, Store, open_store

log = logging.getLogger(__name__)


Cause = Literal["stopped", "backend", "media", "died"]
Model = TypeVar("Model", bound=BaseModel)


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class SegmentFacts(_Document):
    chunk: int
    name: str
    frames: int
    size_bytes: int
    sha256: str
    worst_psnr_db: float | None = None
    undecided: int = 0


class Receipt(_Document):
    """Proof that a shard is done: its segments are in place, counted and checked."""

    shard: int
    worker: str
    generation: int
    segments: tuple[SegmentFacts, ...]
    platform: dict[str, str]
    seconds: dict[str, float]
    clipped: int = 0
    repeated: int = 0
    """Frames that got an equal one's result (`skip_duplicates`)."""
    started_s: float
    finished_s: float


class LeaseNote(_Document):
    worker: str
    node: str
    taken_s: float


class LeaseEnd(_Document):
    cause: Cause
    node: str
    text: str = ""


class Heartbeat(_Document):
    """A worker about itself. The first block never changes; it tells whether its process still lives."""

    worker: str
    host: str
    node: str
    pid: int
    process_start: int
    boot: str
    task: str = ""
    round: int = 0
    restart: int = 0
    device: str = ""
    started_s: float = 0.0

    state: Literal["starting", "working", "waiting", "finishing", "left"] = "starting"
    counter: int = 0
    updated_s: float = 0.0
    shard: int | None = None
    shard_frames: int = 0
    frames: int = 0
    failed: int = 0
    """Attempts that ended with an error."""
    shards: int = 0
    seconds: dict[str, float] = {}
    repeated: int = 0
    note: str = ""


class Round(_Document):
    """One submission of workers."""

    number: int
    executor: str
    workers: int
    user: str
    submitted_s: float
    missing: int
    jobs: tuple[str, ...] = ()


class Done(_Document):
    """The end of a run: what the output is."""

    output: str
    frames: int
    size_bytes: int
    sha256: str
    offset_s: float
    notes: tuple[str, ...] = ()
    platforms: int = 1
    repeated: int = 0
    """Frames that got an equal one's result (`skip_duplicates`)."""
    finished_s: float
    seconds: dict[str, float] = {}


class Poison(_Document):
    shard: int
    generation: int
    reason: str
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    name: str
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseState:
    """The newest generation of one lease, as a listing shows it."""

    generation: int
    is_ended: bool


def new_worker_id(node: str) -> str:
    safe = re.sub(r"[^A-Za-z0-9_.-]", "-", node)[:40]
    return f"{safe}-{os.getpid()}-{secrets.token_hex(3)}"


class Run:
    """One run, opened by anybody who may read its store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    @classmethod
    def open(cls, uri: str) -> Run:
        """A run by its own place, or by the output beside which it lies; JobError where there is none."""
        place = uri.rstrip("/")
        for each in (uri,) if place.endswith(".vsr") else (uri, f"{place}.vsr"):
            run = cls(open_store(each))
            if run.store.exists("job.json"):
                return run
        raise JobError(f"{uri}: no run here (there is no job.json in it)")

    @property
    def uri(self) -> str:
        return self.store.uri

    @functools.cached_property
    def plan(self) -> Plan:
        return Plan.from_json(self.store.read("plan.json"))

    @functools.cached_property
    def timeline(self) -> Timeline:
        content = self.store.read("timeline.bin")
        if hashlib.sha256(content).hexdigest() != self.plan.timeline_sha256:
            raise VsrError(f"{self.uri}: timeline.bin is not the one that the plan was made with")
        return Timeline.from_bytes(content)

    def has_plan(self) -> bool:
        return self.store.exists("plan.json")

    def write_plan(self, plan: Plan, timeline: bytes) -> None:
        """Freeze the plan; where another process was first, its plan stands."""
        self.store.create("timeline.bin", timeline)
        self.store.create("plan.json", plan.to_json())
        self.__dict__.pop("plan", None)
        self.__dict__.pop("timeline", None)

    @classmethod
    def create(cls, store: Store, job: JobSpec) -> Run:
        """Announce a run by its job; where one stands already, that one is opened."""
        store.create("job.json", job.model_dump_json(by_alias=True).encode())
        return cls(store)

    def job(self) -> JobSpec:
        return JobSpec.model_validate_json(self.store.read("job.json"))

    def settle_platform(self, platform: dict[str, str]) -> dict[str, str]:
        """The platform of the run's first worker; the first to say its own decides."""
        self.store.create("platform.json", json.dumps(platform, sort_keys=True).encode())
        first: dict[str, str] = json.loads(self.store.read("platform.json"))
        return first

    # What is done and what is missing

    def finished(self) -> frozenset[int]:
        return frozenset(int(facts.name[9:14]) for facts in self.store.list("receipts/"))

    def missing(self) -> frozenset[int]:
        return frozenset(range(self.plan.shard_count)) - self.finished()

    def receipt(self, shard: int) -> Receipt:
        return self._read(Receipt, f"receipts/{shard:05d}.json")

    def receipts(self) -> tuple[Receipt, ...]:
        return tuple(self.receipt(shard) for shard in sorted(self.finished()))

    def record(self, receipt: Receipt) -> bool:
        """Put a shard's receipt; False where another worker's receipt stands already."""
        return self.store.create(f"receipts/{receipt.shard:05d}.json", _dump(receipt))

    def done(self) -> Done | None:
        try:
            return self._read(Done, "done.json")
        except MissingObject:
            return None

    def write_done(self, done: Done) -> None:
        self.store.create("done.json", _dump(done))

    # Leases

    def leases(self) -> dict[str, LeaseState]:
        """The newest generation of every lease, from one listing."""
        newest: dict[str, LeaseState] = {}
        for facts in self.store.list("leases/"):
            name, generation, *rest = facts.name.removeprefix("leases/").split(".")
            number, is_end = int(generation[1:]), rest[0] == "end"
            known = newest.get(name)
            if known is None or number > known.generation:
                newest[name] = LeaseState(generation=number, is_ended=is_end)
            elif number == known.generation and is_end:
                newest[name] = LeaseState(generation=number, is_ended=True)
        return newest

    def take(self, name: str, generation: int, worker: str, node: str) -> Lease | None:
        """Claim one generation of a lease; None where somebody else has it."""
        note = LeaseNote(worker=worker, node=node, taken_s=time.time())
        if self.store.create(f"leases/{name}.g{generation}.json", _dump(note)):
            return Lease(name=name, generation=generation)
        return None

    def holder(self, name: str, generation: int) -> LeaseNote:
        return self._read(LeaseNote, f"leases/{name}.g{generation}.json")

    def give_back(self, lease: Lease, cause: Cause, node: str, text: str = "") -> None:
        end = LeaseEnd(cause=cause, node=node, text=text[:500])
        self.store.create(f"leases/{lease.name}.g{lease.generation}.end.json", _dump(end))

    def ending(self, name: str, generation: int) -> LeaseEnd | None:
        try:
            return self._read(LeaseEnd, f"leases/{name}.g{generation}.end.json")
        except MissingObject:
            return None

    # Heartbeats

    def beat(self, heartbeat: Heartbeat) -> None:
        self.store.put(f"workers/{heartbeat.worker}.json", _dump(heartbeat))

    def heartbeat(self, worker: str) -> Heartbeat | None:
        try:
            return self._read(Heartbeat, f"workers/{worker}.json")
        except MissingObject:
            return None

    def heartbeats(self) -> tuple[Heartbeat, ...]:
        names = [facts.name for facts in self.store.list("workers/")]
        return tuple(self._read(Heartbeat, name) for name in names)

    # Control

    def control(self) -> Control:
        names = [facts.name.removeprefix("control/") for facts in self.store.list("control/")]
        return Control.from_names(names)

    def cancel(self) -> None:
        """Ask every worker of the present round, and the executor, to stop and stay away."""
        number = self.round_number()
        self.store.create(f"control/cancelled.{number}", _stamp())

    def avoid_node(self, node: str, reason: str) -> None:
        self.store.create(f"control/avoid.{node}", reason.encode())

    def poison(self, poison: Poison) -> None:
        name = f"{poison.shard:05d}.g{poison.generation}"
        self.store.create(f"poison/{name}.json", _dump(poison))
        self.store.create(f"control/poisoned.{name}", b"")

    def poisoned(self) -> tuple[Poison, ...]:
        """What was set aside and is missing: one who was thought dead may have finished it after all."""
        return tuple(
            self._read(Poison, f"poison/{shard:05d}.g{generation}.json")
            for shard, generation in sorted(self.control().poisoned.items())
            if not self.store.exists(f"receipts/{shard:05d}.json")
        )

    def retry_poisoned(self) -> int:
        poisoned = self.control().poisoned
        for shard, generation in poisoned.items():
            self.store.create(f"control/retried.{shard:05d}.g{generation}", _stamp())
        return len(poisoned)

    # Rounds

    def round_number(self) -> int:
        """The number of the latest round, 0 before the first."""
        numbers = [int(facts.name[7:-5]) for facts in self.store.list("rounds/")]
        return max(numbers, default=0)

    def start_round(
        self, executor: str, workers: int, missing: int, number: int | None = None
    ) -> Round | None:
        """Announce a round, the next one or a certain one; None where somebody else has just begun it."""
        started = Round(
            number=number or self.round_number() + 1,
            executor=executor,
            workers=workers,
            user=getpass.getuser(),
            submitted_s=time.time(),
            missing=missing,
        )
        if self.store.create(f"rounds/{started.number}.json", _dump(started)):
            return started
        return None

    def rounds(self) -> tuple[Round, ...]:
        names = [facts.name for facts in self.store.list("rounds/")]
        return tuple(sorted((self._read(Round, name) for name in names), key=lambda each: each.number))

    def is_cancelled(self) -> bool:
        """Whether the present round was cancelled."""
        number = self.round_number()
        return number > 0 and self.control().is_cancelled(number)

    def _read(self, model: type[Model], name: str) -> Model:
        content = self.store.read(name)
        try:
            return model.model_validate_json(content)
        except ValidationError as exc:
            raise VsrError(f"{self.uri}: {name} is damaged: {exc}") from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """What people and workers asked of the whole run, from one small listing."""

    cancelled: int
    """The latest round that was cancelled, 0 for none."""
    poisoned: dict[int, int]
    """Shards set aside, each with the lease generation at which it was."""
    retried: dict[int, int]
    avoided: frozenset[str]
    is_stopped: bool

    @classmethod
    def from_names(cls, names: Iterable[str]) -> Control:
        cancelled, is_stopped = 0, False
        poisoned: dict[int, int] = {}
        retried: dict[int, int] = {}
        avoided: set[str] = set()
        for name in names:
            word, _, rest = name.partition(".")
            if word == "cancelled":
                cancelled = max(cancelled, int(rest))
            elif word in ("poisoned", "retried"):
                table = poisoned if word == "poisoned" else retried
                shard, generation = int(rest[:5]), int(rest[7:])
                table[shard] = max(table.get(shard, 0), generation)
            elif word == "avoid":
                avoided.add(rest)
            elif word == "stop":
                is_stopped = True
        still = {shard: at for shard, at in poisoned.items() if retried.get(shard, 0) < at}
        return cls(
            cancelled=cancelled,
            poisoned=still,
            retried=retried,
            avoided=frozenset(avoided),
            is_stopped=is_stopped,
        )

    def is_cancelled(self, round_number: int) -> bool:
        return self.cancelled > 0 and round_number <= self.cancelled


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
            process_start=_process_start(os.getpid()),
            boot=_boot(),
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
    if heartbeat.boot != _boot() or heartbeat.host != socket.gethostname():
        return False
    return _process_start(heartbeat.pid) != heartbeat.process_start


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
        for facts in self.run.store.list("workers/"):
            worker = facts.name[8:-5]
            seen = self._moved.get(worker)
            if seen is None or seen[0] != facts.modified_s:
                self._moved[worker] = (facts.modified_s, now)
            if seen is not None and seen[0] != facts.modified_s:
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
        return self._silence_s(worker) > self.run.store.lease_window_s

    def is_silent(self, worker: str) -> bool:
        """Whether this worker has not moved lately, so that its lease may soon be stale."""
        return worker != self.worker and self._silence_s(worker) > self.run.store.lease_window_s / 3

    def was_seen_alive(self, worker: str) -> bool:
        """Whether this worker's heartbeat moved while it was observed, be it dead by now."""
        return worker in self._alive

    def _silence_s(self, worker: str) -> float:
        _, since = self._moved.setdefault(worker, (0.0, time.monotonic()))
        return time.monotonic() - since


def _boot() -> str:
    """This boot of this kernel and this process namespace, in which a pid has a meaning."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _process_start(pid: int) -> int:
    """Clock ticks from boot to the start of a live process; 0 where there is none or it is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    fields = stat.rsplit(")", 1)[1].split()
    return 0 if fields[0] in "ZX" else int(fields[19])


def _dump(document: BaseModel) -> bytes:
    return document.model_dump_json(exclude_defaults=False).encode()


def _stamp() -> bytes:
    facts: dict[str, Any] = {"user": getpass.getuser(), "host": socket.gethostname(), "at_s": time.time()}
    return json.dumps(facts).encode()
