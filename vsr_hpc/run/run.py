"""A run in its place: a plan that never changes and receipts that only accumulate.

    job.json  plan.json  timeline.bin            what to do; written once
    weights/  card.json                          what a worker needs of a model; the card only of one's own
    segments/00042-<sha>.mp4                     encoded chunks, named by content
    receipts/00042.json                          the shard is done; names its segments; the first one counts
    receipts/00042.void.json                     that receipt counts no more: its epoch is closed for ever
    receipts/00042.e1.json                       the receipt of the next epoch
    leases/00042.g1.json  ...g1.end.json         who claimed a shard, and how that ended unless by a receipt
    workers/<id>.json                            heartbeats, each rewritten by its owner alone
    control/...                                  cancelled, poisoned, retried, avoid, stop, superseded
    rounds/1.json  done.json  logs/              submissions, the end, what workers logged
    environment.json                             the packed environment of the first round, by its content

What is missing is plan minus receipts; status, resume, finish and verify are readings of that one sum.
A run's folder can hold several editions; see `places`.
"""

from __future__ import annotations

import functools
import getpass
import hashlib
import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from vsr_hpc.errors import BackendError, JobError, VerifyError, VsrError
from vsr_hpc.job.spec import JobSpec, run_folder
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
    Tally,
    Void,
    encode_document,
)
from vsr_hpc.run.names import (
    heartbeat_name,
    lease_end_name,
    lease_name,
    parse_heartbeat,
    parse_lease,
    parse_receipt,
    parse_round,
    receipt_name,
    round_name,
    shard_name,
    void_name,
)
from vsr_hpc.run.places import claim_place, is_superseded, new_place, newest_place, number_of_place
from vsr_hpc.storage.opening import open_store
from vsr_hpc.storage.store import MissingObject, ObjectFacts, Store
from vsr_hpc.system.progress import tick

log = logging.getLogger(__name__)

Model = TypeVar("Model", bound=BaseModel)
Parsed = TypeVar("Parsed")
READERS = 32
"""Objects that are read at once: an answer of S3 takes about ten milliseconds."""


class DamagedObjectError(VsrError):
    """An object of the run is there and cannot be read."""


class Run:
    """One run, opened by anybody who may read its store."""

    def __init__(self, store: Store, folder: Store | None = None, number: int = 0) -> None:
        """`store` is the run's place; `folder` is where it lies with its earlier editions."""
        self.store = store
        self._folder, self.number = folder, number
        self._foreign: set[str] = set()

    @classmethod
    def open(cls, uri: str) -> Run:
        """A run by its folder, its place in there, or the output beside which it lies.

        JobError where there is none, or where an older version of vsr_hpc made it.
        """
        place = uri.rstrip("/")
        above, _, last = place.rpartition("/")
        number = number_of_place(last)
        if number is not None:
            run = cls(open_store(place), open_store(above or "."), number)
            if run.store.exists("job.json"):
                return run
        beside = run_folder(place)
        for each in (place, beside):
            found = cls.find(open_store(each))
            if found is not None:
                return found
        for each in (place, f"{place}.vsr"):
            refuse_older_run(open_store(each))
        raise JobError(f"{uri}: there is no run here, nor at {beside}")

    @classmethod
    def find(cls, folder: Store) -> Run | None:
        """The run in a folder; None where none was announced, or where it was withdrawn."""
        place = newest_place(folder)
        if place is None:
            return None
        run = cls(folder.within(place.name), folder, place.number)
        return run if run.store.exists("job.json") else None

    @property
    def uri(self) -> str:
        """What people call the run by."""
        return self.store.uri if self._folder is None else self._folder.uri

    @property
    def place_uri(self) -> str:
        """This edition of the run and no other; workers are started with it."""
        return self.store.uri

    def is_superseded(self) -> bool:
        """Whether a newer edition of the run was announced, so that nobody may publish this one."""
        return self._folder is not None and is_superseded(self._folder, self.number)

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
    def create(cls, folder: Store, job: JobSpec, *, replaces: Run | None = None) -> Run:
        """Announce a run by its job; where one stands already, that one is opened.

        With `replaces` the new run takes the place of that one, unless another process was faster.
        """
        refuse_older_run(folder)
        present = newest_place(folder)
        if present is not None and (replaces is None or present.number > replaces.number):
            run = cls(folder.within(present.name), folder, present.number)
            if run.store.exists("job.json"):
                return run
        place = new_place(present.number + 1 if present else 1)
        run = cls(folder.within(place.name), folder, place.number)
        content = job.model_dump_json(by_alias=True).encode()
        run.store.create("job.json", content)
        if run.store.create("job.json", content):
            run.store.remove_all()
            raise JobError(
                f"{folder.uri}: this store creates an object although it is there already (it ignores "
                "If-None-Match), so workers could not share a run; put the run elsewhere with --run"
            )
        if claim_place(folder, place):
            if replaces is not None:
                replaces.retire()
            return run
        run.store.remove_all()
        winner = cls.find(folder)
        if winner is None:
            raise BackendError(
                f"{folder.uri}: another process announced this run and withdrew it; call again"
            )
        return winner

    def retire(self) -> None:
        """Make way for a newer edition: workers that are still at this one leave; its objects are removed."""
        self.store.create("control/superseded", _stamp())
        names = [facts.name for facts in self.store.list("") if not facts.name.startswith("control/")]
        self.store.delete_many(names)

    def withdraw(self) -> None:
        """Remove a run on which nobody has worked; the first edition leaves nothing behind."""
        self.store.remove_all()
        if self._folder is not None and self.number == 1:
            self._folder.remove_all()

    def remove(self) -> None:
        """Remove the run with all its editions; its output stays."""
        (self._folder or self.store).remove_all()

    def job(self) -> JobSpec:
        return JobSpec.model_validate_json(self.store.read("job.json"))

    def begun_s(self) -> float | None:
        """When the run was begun, on the store's clock."""
        return next((facts.modified_s for facts in self.store.list("job.json")), None)

    @functools.cached_property
    def lease_window_s(self) -> float:
        """How long a worker's heartbeat may stand still before others take its shard."""
        return self.job().run.lease_window_s or self.store.lease_window_s

    @property
    def poll_s(self) -> float:
        """How long a process waits between two looks at the run."""
        return min(self.store.poll_s, self.lease_window_s / 6)

    def settle_platform(self, platform: dict[str, str]) -> dict[str, str]:
        """The platform of the run's first worker; the first to say its own decides."""
        self.store.create("platform.json", json.dumps(platform, sort_keys=True).encode())
        first: dict[str, str] = json.loads(self.store.read("platform.json"))
        return first

    # What is done and what is missing

    def tally(self) -> Tally:
        """Which shards are done, from one listing. A void closes its epoch, however late a receipt comes."""
        receipts: set[tuple[int, int]] = set()
        epochs: dict[int, int] = {}
        for _, (shard, epoch, is_void) in self._listed("receipts/", parse_receipt):
            if is_void:
                epochs[shard] = max(epochs.get(shard, 0), epoch + 1)
            else:
                receipts.add((shard, epoch))
        finished = {shard: epoch for shard, epoch in receipts if epoch == epochs.get(shard, 0)}
        return Tally(finished=finished, epochs=epochs)

    def finished(self) -> frozenset[int]:
        return frozenset(self.tally().finished)

    def missing(self) -> frozenset[int]:
        return frozenset(range(self.plan.shard_count)) - self.finished()

    def is_done(self, shard: int, epoch: int = 0) -> bool:
        """Whether this epoch of a shard has a receipt."""
        return self.store.exists(receipt_name(shard, epoch))

    def receipt(self, shard: int, epoch: int = 0) -> Receipt:
        return self._read(Receipt, receipt_name(shard, epoch))

    def receipts(self) -> tuple[Receipt, ...]:
        """The receipts that count, in order of their shards; many are read at once."""
        finished = sorted(self.tally().finished.items())
        with ThreadPoolExecutor(READERS, thread_name_prefix="receipts") as pool:
            return tuple(pool.map(lambda each: self.receipt(*each), finished))

    def record(self, receipt: Receipt) -> bool:
        """Put a shard's receipt; False where another worker's receipt of this epoch stands already."""
        return self.store.create(receipt_name(receipt.shard, receipt.epoch), encode_document(receipt))

    def void(self, shard: int, epoch: int, reason: str) -> None:
        """Close an epoch of a shard, so that the shard is made again. A finished run is never touched."""
        if self.done() is not None:
            raise VerifyError(f"{self.uri}: shard {shard:05d} {reason}, but the run is finished already")
        log.warning("receipt voided shard=%05d epoch=%d reason=%s", shard, epoch, reason)
        note = Void(shard=shard, epoch=epoch, reason=reason, at_s=time.time())
        self.store.create(void_name(shard, epoch), encode_document(note))

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
        for _, (name, number, is_end) in self._listed("leases/", parse_lease):
            known = newest.get(name)
            if known is None or number > known.generation:
                newest[name] = LeaseState(generation=number, is_ended=is_end)
            elif number == known.generation and is_end:
                newest[name] = LeaseState(generation=number, is_ended=True)
        return newest

    def take(self, name: str, generation: int, worker: str, node: str, *, round: int = 0) -> Lease | None:
        """Claim one generation of a lease; None where somebody else has it."""
        note = LeaseNote(worker=worker, node=node, taken_s=time.time(), round=round)
        if self.store.create(lease_name(name, generation), encode_document(note)):
            return Lease(name=name, generation=generation)
        return None

    def holder(self, name: str, generation: int) -> LeaseNote:
        return self._read(LeaseNote, lease_name(name, generation))

    def give_back(self, lease: Lease, cause: Cause, node: str, text: str = "") -> None:
        end = LeaseEnd(cause=cause, node=node, text=text[:500])
        self.store.create(lease_end_name(lease.name, lease.generation), encode_document(end))

    def ending(self, name: str, generation: int) -> LeaseEnd | None:
        try:
            return self._read(LeaseEnd, lease_end_name(name, generation))
        except MissingObject:
            return None

    # Heartbeats

    def beat(self, heartbeat: Heartbeat) -> None:
        self.store.put(heartbeat_name(heartbeat.worker), encode_document(heartbeat))

    def heartbeat(self, worker: str) -> Heartbeat | None:
        try:
            return self._read(Heartbeat, heartbeat_name(worker))
        except MissingObject:
            return None

    def heartbeats(self) -> tuple[Heartbeat, ...]:
        return tuple(
            self._read(Heartbeat, facts.name) for facts, _ in self._listed("workers/", parse_heartbeat)
        )

    def beaten(self) -> dict[str, float]:
        """When each worker's heartbeat was written, on the store's clock."""
        return {worker: facts.modified_s for facts, worker in self._listed("workers/", parse_heartbeat)}

    # Control

    def control(self) -> Control:
        names = [facts.name.removeprefix("control/") for facts in self.store.list("control/")]
        return Control.from_names(names)

    def cancel(self) -> None:
        """Ask every worker of the present round, and the executor, to stop and stay away."""
        number = self.round_number()
        self.store.create(f"control/cancelled.{number}", _stamp())

    def avoid_node(self, node: str, round_number: int, reason: str) -> None:
        """Keep workers of this round off a node."""
        self.store.create(f"control/avoid.{round_number}.{node}", reason.encode())

    def begin_again(self) -> None:
        """Take back a person's stop mark: a person has asked for the run to go on."""
        self.store.delete("control/stop")

    def poison(self, poison: Poison) -> None:
        name = f"{shard_name(poison.shard, poison.epoch)}.g{poison.generation}"
        self.store.create(f"poison/{name}.json", encode_document(poison))
        self.store.create(f"control/poisoned.{name}", b"")

    def poisoned(self) -> tuple[Poison, ...]:
        """What was set aside and is missing; a worker that was thought dead may have finished the rest."""
        set_aside = self.control().poisoned
        finished = self.finished() if set_aside else frozenset()
        return tuple(
            self._read(Poison, f"poison/{shard_name(shard, epoch)}.g{generation}.json")
            for shard, (epoch, generation) in sorted(set_aside.items())
            if shard not in finished
        )

    def retry_poisoned(self) -> int:
        poisoned = self.control().poisoned
        for shard, (epoch, generation) in poisoned.items():
            self.store.create(f"control/retried.{shard_name(shard, epoch)}.g{generation}", _stamp())
        return len(poisoned)

    # Rounds

    def round_number(self) -> int:
        """The number of the latest round, 0 before the first."""
        return max((number for _, number in self._listed("rounds/", parse_round)), default=0)

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
        if self.store.create(round_name(started.number), encode_document(started)):
            return started
        return None

    def rounds(self) -> tuple[Round, ...]:
        found = [self._read(Round, facts.name) for facts, _ in self._listed("rounds/", parse_round)]
        return tuple(sorted(found, key=lambda each: each.number))

    def is_cancelled(self) -> bool:
        """Whether the present round was cancelled."""
        return self.control().is_cancelled(self.round_number())

    def _listed(
        self, prefix: str, parse: Callable[[str], Parsed | None]
    ) -> Iterator[tuple[ObjectFacts, Parsed]]:
        """The run's own objects below a prefix; a foreign file is left alone, with one warning."""
        for facts in self.store.list(prefix):
            parsed = parse(facts.name)
            if parsed is not None:
                yield facts, parsed
            elif facts.name not in self._foreign:
                self._foreign.add(facts.name)
                log.warning(
                    "a file that is not part of the run is ignored run=%s name=%s", self.uri, facts.name
                )

    def _read(self, model: type[Model], name: str) -> Model:
        content = self.store.read(name)
        tick()
        try:
            return model.model_validate_json(content)
        except ValidationError as exc:
            raise DamagedObjectError(f"{self.uri}: {name} is damaged: {exc.errors()[0]['msg']}") from exc


def _stamp() -> bytes:
    facts: dict[str, Any] = {"user": getpass.getuser(), "host": socket.gethostname(), "at_s": time.time()}
    return json.dumps(facts).encode()


def refuse_older_run(folder: Store) -> None:
    """JobError where a version of vsr_hpc before 0.2 kept a run."""
    if folder.exists("job.json"):
        raise JobError(
            f"{folder.uri}: this run was made by an older version of vsr_hpc, which laid runs out otherwise; "
            "finish it with that version, or remove it and start over"
        )
