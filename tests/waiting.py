"""What many workers ask of S3 over a whole run, by the real claims code on a simulated clock.

    python -m tests.waiting --workers 300 --shards 1500
    python -m tests.waiting --workers 1000 --shards 10000

The store is a table in memory that counts what S3 would bill: a listing costs a request for each thousand
objects. Workers take about 45 seconds for a shard, beat every 24 seconds, and leave as the real ones do.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import random
import tempfile
from bisect import bisect_left, insort
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from tests.runs import planned_run, tiny_job
from vsr_hpc.run import claims as claiming
from vsr_hpc.run import liveness
from vsr_hpc.run.claims import Claims
from vsr_hpc.run.documents import Receipt
from vsr_hpc.run.liveness import Process
from vsr_hpc.run.run import Run
from vsr_hpc.storage.store import MissingObject, ObjectFacts
from vsr_hpc.work.heartbeat import AFTER_EVERY, BEFORE_EVERY

_BEAT_S = 24.0


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    time = monotonic


@dataclass(slots=True)
class CountedStore:
    """Objects in memory; only what claims and receipts need of a store."""

    clock: Clock
    uri: str = "s3://simulated/run"
    poll_s: float = 30.0
    lease_window_s: float = 60.0
    requests: Counter[str] = field(default_factory=Counter)
    seconds: Counter[int] = field(default_factory=Counter)
    _objects: dict[str, tuple[bytes, float]] = field(default_factory=dict)
    _names: list[str] = field(default_factory=list)

    def _count(self, name: str, number: int = 1) -> None:
        self.requests[name] += number
        self.seconds[int(self.clock.now_s)] += number

    def put(self, name: str, content: bytes) -> None:
        self._count(f"put {name.partition('/')[0]}")
        if name not in self._objects:
            insort(self._names, name)
        self._objects[name] = (content, self.clock.now_s)

    def create(self, name: str, content: bytes) -> bool:
        self._count(f"create {name.partition('/')[0]}")
        if name in self._objects:
            return False
        insort(self._names, name)
        self._objects[name] = (content, self.clock.now_s)
        return True

    def read(self, name: str) -> bytes:
        self._count(f"read {name.partition('/')[0]}")
        if name not in self._objects:
            raise MissingObject(name)
        return self._objects[name][0]

    def exists(self, name: str) -> bool:
        self._count(f"head {name.partition('/')[0]}")
        return name in self._objects

    def delete(self, name: str) -> None:
        self._count(f"delete {name.partition('/')[0]}")
        if self._objects.pop(name, None) is not None:
            self._names.pop(bisect_left(self._names, name))

    def list(self, prefix: str) -> tuple[ObjectFacts, ...]:
        names = self._names[
            bisect_left(self._names, prefix) : bisect_left(self._names, prefix + "\U0010ffff")
        ]
        self._count(f"list {prefix.rstrip('/')}", max(1, -(-len(names) // 1000)))
        return tuple(ObjectFacts(name=n, size_bytes=1, modified_s=self._objects[n][1]) for n in names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    workers: int
    shards: int
    made: int
    requests: Counter[str]
    worst_second: int

    @property
    def per_shard(self) -> float:
        return sum(self.requests.values()) / self.shards


def simulate(folder: Path, workers: int, shards: int, *, seed: int = 0) -> Bill:
    """Let simulated workers, of whom one in a hundred dies in its third shard, empty a run."""
    clock, chance = Clock(), random.Random(seed)
    small = planned_run(tiny_job(folder, run={"workers": workers}))
    plan = small.plan.model_copy(
        update={"chunk_borders": tuple(range(shards + 1)), "shard_borders": tuple(range(shards + 1))}
    )
    store: Any = CountedStore(clock)
    run = Run(store)
    run.__dict__.update(plan=plan, lease_window_s=60.0)
    serial = itertools.count()
    events: list[tuple[float, int, str, int]] = []
    state: dict[int, dict[str, Any]] = {}
    with (
        mock.patch.object(claiming, "time", clock),
        mock.patch.object(claiming, "random", chance),
        mock.patch.object(liveness, "time", clock),
        mock.patch.object(liveness, "is_process_gone", lambda beat: False),
    ):

        def later(seconds: float, what: str, number: int) -> None:
            heapq.heappush(events, (clock.now_s + seconds, next(serial), what, number))

        for number in range(workers):
            name = f"w{chance.randrange(1 << 40):010x}"
            beat = Process.current().heartbeat(name, f"n{number}", round=1)
            claims = Claims(run=run, worker=name, node=f"n{number}", round=1)
            state[number] = {
                "claims": claims,
                "beat": beat,
                "idle": None,
                "shards": 0,
                "lease": None,
                "beats": 0,
            }
            later(chance.uniform(0, 60), "begin", number)
        control = run.control()
        while events:
            clock.now_s, _, what, number = heapq.heappop(events)
            me = state.get(number)
            if me is None:
                continue
            claims = me["claims"]
            if what in ("begin", "beat"):
                run.beat(me["beat"])
                me["beats"] += 1
                if me["beats"] % BEFORE_EVERY == 0:
                    run.control()
                if me["beats"] % AFTER_EVERY == 0:
                    store._count("put logs")
                later(_BEAT_S, "beat", number)
            if what == "done":
                shard, epoch = me["lease"].shard
                run.record(
                    Receipt(
                        shard=shard, epoch=epoch, worker=claims.worker, generation=me["lease"].generation,
                        segments=(), platform={}, seconds={}, started_s=0, finished_s=0,
                    )
                )  # fmt: skip
                claims.forget(shard)
                me["shards"] += 1
            if what == "beat":
                continue
            if me["shards"] == 2 and number % 100 == 99:
                claims.next(control)  # it dies with a lease in its hands
                del state[number]
                continue
            lease = claims.next(control)
            if lease is not None:
                me["lease"], me["idle"] = lease, None
                later(chance.uniform(30, 60), "done", number)
                continue
            me["idle"] = clock.now_s if me["idle"] is None else me["idle"]
            is_patient = clock.now_s - me["idle"] <= 60.0 or claims.may_come_free(control)
            if claims.is_complete(control) or not is_patient:
                claims.stop_waiting()
                del state[number]
                continue
            if claims.is_crowded:
                claims.stop_waiting()
                del state[number]
                continue
            later(1.0, "look", number)
    made = len(run.finished())
    return Bill(
        workers=workers, shards=shards, made=made, requests=store.requests,
        worst_second=max(store.seconds.values()),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=300)
    parser.add_argument("--shards", type=int, default=1500)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        bill = simulate(Path(name), asked.workers, asked.shards)
    print(f"{bill.workers} workers, {bill.shards} shards, {bill.made} made")
    print(f"requests a shard {bill.per_shard:.2f}; worst second {bill.worst_second}")
    for name, count in bill.requests.most_common(12):
        print(f"  {name:<18} {count / bill.shards:.3f} a shard")


if __name__ == "__main__":
    main()
