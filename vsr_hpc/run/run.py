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
import socket
import time
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from vsr_hpc.errors import JobError, VsrError
from vsr_hpc.job.spec import JobSpec
from vsr_hpc.media.timeline import Timeline
from vsr_hpc.planning.plan import Plan
from vsr_hpc.run.control import Control
from vsr_hpc.run.documents import (
    Cause,
    Done,
    Heartbeat,
    Lease,
    LeaseEnd,
    LeaseNote,
    LeaseState,
    Poison,
    Receipt,
    Round,
    encode_document,
)
from vsr_hpc.storage.opening import open_store
from vsr_hpc.storage.store import MissingObject, Store
from vsr_hpc.system.progress import tick

log = logging.getLogger(__name__)

Model = TypeVar("Model", bound=BaseModel)


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
        return self.store.create(f"receipts/{receipt.shard:05d}.json", encode_document(receipt))

    def done(self) -> Done | None:
        try:
            return self._read(Done, "done.json")
        except MissingObject:
            return None

    def write_done(self, done: Done) -> None:
        self.store.create("done.json", encode_document(done))

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
        if self.store.create(f"leases/{name}.g{generation}.json", encode_document(note)):
            return Lease(name=name, generation=generation)
        return None

    def holder(self, name: str, generation: int) -> LeaseNote:
        return self._read(LeaseNote, f"leases/{name}.g{generation}.json")

    def give_back(self, lease: Lease, cause: Cause, node: str, text: str = "") -> None:
        end = LeaseEnd(cause=cause, node=node, text=text[:500])
        self.store.create(f"leases/{lease.name}.g{lease.generation}.end.json", encode_document(end))

    def ending(self, name: str, generation: int) -> LeaseEnd | None:
        try:
            return self._read(LeaseEnd, f"leases/{name}.g{generation}.end.json")
        except MissingObject:
            return None

    # Heartbeats

    def beat(self, heartbeat: Heartbeat) -> None:
        self.store.put(f"workers/{heartbeat.worker}.json", encode_document(heartbeat))

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
        self.store.create(f"poison/{name}.json", encode_document(poison))
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
        if self.store.create(f"rounds/{started.number}.json", encode_document(started)):
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
        tick()
        try:
            return model.model_validate_json(content)
        except ValidationError as exc:
            raise VsrError(f"{self.uri}: {name} is damaged: {exc}") from exc


def _stamp() -> bytes:
    facts: dict[str, Any] = {"user": getpass.getuser(), "host": socket.gethostname(), "at_s": time.time()}
    return json.dumps(facts).encode()
