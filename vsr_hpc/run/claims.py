"""Which shard a worker takes next: free ones, then those of the dead; what fails too often is set aside."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from vsr_hpc.run.control import NEVER, Control
from vsr_hpc.run.documents import Cause, Lease, LeaseState, Poison
from vsr_hpc.run.liveness import Liveness
from vsr_hpc.run.names import shard_name
from vsr_hpc.run.run import Run

log = logging.getLogger(__name__)


_MISSES_BEFORE_LISTING = 1
_NEVER_LISTED = float("-inf")
_LOOKED_AT = 4
"""Held shards whose holders a waiting worker looks at after one listing."""
_MOST_WAITING = 8
_WEIGHTS: dict[Cause, int] = {"stopped": 0, "backend": 0, "media": 2, "died": 1}
"""What an ended attempt counts towards `max_attempts`: a broken clip stays broken, a death may pass."""


@dataclass(slots=True)
class Claims:
    """One worker's view of what is missing and who works on it.

    It lists the store only when it has nothing left that it believes to be free. The cost of waiting is
    bounded: after a listing it looks at a few held shards, the more workers there are the rarer it lists,
    and where enough others wait it may leave.
    """

    run: Run
    worker: str
    node: str
    task: str = ""
    round: int = 0
    _missing: list[int] = field(default_factory=list)
    _held: dict[int, int] = field(default_factory=dict)
    """Shards that somebody holds or held, with the newest generation known."""
    _ended: set[int] = field(default_factory=set)
    _epochs: Mapping[int, int] = field(default_factory=dict)
    _holders: dict[tuple[int, int], str] = field(default_factory=dict)
    _listed_at: float = _NEVER_LISTED
    _is_stale: bool = False
    """Whether too many leases were held that the last listing showed as free."""
    _pause_s: float = 0.0
    _is_waiting: bool = False
    is_crowded: bool = False
    """Whether enough other workers wait for shards to come free."""
    _liveness: Liveness = field(init=False)

    def __post_init__(self) -> None:
        self._liveness = Liveness(run=self.run, task=self.task, worker=self.worker)

    def next(self, control: Control) -> Lease | None:
        """Lease a missing shard, or None where all of them are held by workers that seem alive."""
        lease = self._claim_free(control) or self._take_over(control, looks=0)
        if lease is None and self._is_listing_due():
            lease = self._claim_listed(control)
        elif lease is None and self._is_small():
            lease = self._take_over(control, looks=len(self._missing))
        if lease is not None:
            self.stop_waiting()
        return lease

    def _claim_listed(self, control: Control) -> Lease | None:
        """Lease what listings show: free shards by the leases alone, then those of the dead."""
        if self._listed_at == _NEVER_LISTED:
            self._list_receipts()
        self._list_leases()
        lease = self._claim_free(control) or self._take_over(control, looks=0)
        if lease is None:
            looks = _LOOKED_AT if self._is_waiting else 0
            if self._is_small():
                looks = len(self._missing)
            self._wait()
            if self.is_crowded:
                return None
            self._list_receipts()
            # Only a worker whose heartbeat was listed just now can be declared silent.
            self._liveness.observe()
            self._plan_next_listing()
            lease = self._take_over(control, looks=looks)
        return lease

    def _wait(self) -> None:
        """Tell the other workers that this one waits for a shard, and see whether enough of them do."""
        self._is_waiting = True
        if self._is_small():
            return
        self.run.store.put(f"waiting/{self.worker}", b"")
        marks = {
            facts.name.removeprefix("waiting/"): facts.modified_s for facts in self.run.store.list("waiting/")
        }
        now_s = marks.get(self.worker, 0.0)
        before_me = [
            name
            for name, at_s in marks.items()
            if name < self.worker and now_s - at_s < 2 * self._longest_pause_s()
        ]
        self.is_crowded = len(before_me) >= _MOST_WAITING

    def stop_waiting(self) -> None:
        self._pause_s, self.is_crowded = 0.0, False
        if self._is_waiting and not self._is_small():
            self.run.store.delete(f"waiting/{self.worker}")
        self._is_waiting = False

    def _is_small(self) -> bool:
        """Whether so few workers take part that their looks at each other cost next to nothing."""
        return self.run.plan.job.run.workers <= _MOST_WAITING

    def is_complete(self, control: Control) -> bool:
        """Whether nothing is missing but what was set aside, as of the last listing."""
        return self._listed_at != _NEVER_LISTED and not self._open(control)

    def may_come_free(self, control: Control) -> bool:
        """Whether somebody who holds a missing shard has fallen silent: soon it can be taken over."""
        held = ((shard, self._held.get(shard, 0)) for shard in self._open(control))
        return any(self._liveness.is_silent(self._holders[each]) for each in held if each in self._holders)

    def forget(self, shard: int) -> None:
        """The shard has a receipt."""
        self._missing.remove(shard)

    def released(self, shard: int) -> None:
        """This worker gave the shard back; it may be taken again, by anybody."""
        self._ended.add(shard)

    def _open(self, control: Control) -> list[int]:
        return [shard for shard in self._missing if shard not in control.poisoned]

    def _is_listing_due(self) -> bool:
        return self._is_stale or time.monotonic() - self._listed_at >= max(self._pause_s, self.run.poll_s)

    def _list_receipts(self) -> None:
        tally = self.run.tally()
        self._epochs = tally.epochs
        self._missing = sorted(frozenset(range(self.run.plan.shard_count)) - tally.finished.keys())
        self._listed_at = time.monotonic()

    def _list_leases(self) -> None:
        """Workers begin in the middle of different gaps between held shards, so that few of them meet."""
        leases = self.run.leases()
        self._listed_at, self._is_stale = time.monotonic(), False
        held = {shard: leases[name] for shard in self._missing if (name := self._name(shard)) in leases}
        self._held = {shard: state.generation for shard, state in held.items()}
        self._ended = {shard for shard, state in held.items() if state.is_ended}
        free = [place for place, shard in enumerate(self._missing) if shard not in held]
        if free and self.run.plan.job.run.workers > 1:
            gaps = _gaps(free)
            (gap,) = random.choices(gaps, weights=[len(each) ** 2 for each in gaps])
            offset = gap[len(gap) // 2]
            self._missing = self._missing[offset:] + self._missing[:offset]

    def _plan_next_listing(self) -> None:
        self._pause_s = min(self._longest_pause_s(), 2 * self._pause_s or self.run.poll_s)

    def _longest_pause_s(self) -> float:
        """The more workers there are, the rarer each of them lists while it waits."""
        return self.run.poll_s * max(1.0, self.run.plan.job.run.workers / _MOST_WAITING)

    def _claim_free(self, control: Control) -> Lease | None:
        misses = 0
        for shard in self._open(control):
            if shard in self._held:
                continue
            if misses == _MISSES_BEFORE_LISTING:
                self._is_stale = True
                break
            misses += 1
            self._held[shard] = 1
            lease = self._take(shard, 1)
            if lease is not None:
                return lease
        return None

    def _take_over(self, control: Control, *, looks: int) -> Lease | None:
        """Lease a shard that was given back, or one of `looks` held ones whose holder is dead."""
        held = [shard for shard in self._open(control) if shard in self._held]
        ended = [shard for shard in held if shard in self._ended]
        others = [shard for shard in held if shard not in self._ended] if looks else []
        for shard in (*ended, *random.sample(others, min(looks, len(others)))):
            generation = self._held[shard]
            if not self._is_abandoned(shard, generation):
                continue
            if self._is_done(shard):  # by a worker that took over before us and has left since
                self.forget(shard)
                continue
            if self._is_set_aside(shard, generation, control):
                continue
            self._held[shard] = generation + 1
            self._ended.discard(shard)
            lease = self._take(shard, generation + 1)
            if lease is None:
                continue
            if self._is_done(shard):  # its owner was alive after all and wrote the receipt at the last moment
                self.forget(shard)
                continue
            log.info("shard taken over shard=%05d generation=%d", shard, lease.generation)
            return lease
        return None

    def _is_abandoned(self, shard: int, generation: int) -> bool:
        if shard in self._ended:
            return True
        if (shard, generation) not in self._holders:
            self._holders[shard, generation] = self.run.holder(self._name(shard), generation).worker
        return self._liveness.is_stale(self._holders[shard, generation])

    def _name(self, shard: int) -> str:
        return shard_name(shard, self._epochs.get(shard, 0))

    def _take(self, shard: int, generation: int) -> Lease | None:
        return self.run.take(self._name(shard), generation, self.worker, self.node, round=self.round)

    def _is_done(self, shard: int) -> bool:
        return self.run.is_done(shard, self._epochs.get(shard, 0))

    def _is_set_aside(self, shard: int, generation: int, control: Control) -> bool:
        """Poison a shard that failed too often in this round, since it was last retried.

        A person who calls again begins a new round, so that any number of kills leaves a run that goes on.
        """
        limit, epoch = self.run.plan.job.run.max_attempts, self._epochs.get(shard, 0)
        retried_epoch, retried = control.retried.get(shard, NEVER)
        first = retried + 1 if retried_epoch == epoch else 1
        weight, nodes, reasons = 0, set(), []
        for number in range(generation, first - 1, -1):
            if weight + (number - first + 1) * max(_WEIGHTS.values()) < limit:
                return False
            note = self.run.holder(self._name(shard), number)
            if note.round != self.round:
                break
            end = self.run.ending(self._name(shard), number)
            cause: Cause = end.cause if end else "died"
            weight += _WEIGHTS[cause]
            if _WEIGHTS[cause]:
                nodes.add(end.node if end else note.node)
                reasons.append(end.text if end else "its worker died without a message")
        is_one_machine = self.run.plan.job.on == "local"
        if weight < limit or not (is_one_machine or len(nodes) >= 2 or weight >= 2 * limit):
            return False
        reason = reasons[0]
        log.warning("shard set aside shard=%05d attempts=%d reason=%s", shard, len(reasons), reason)
        self.run.poison(
            Poison(shard=shard, epoch=epoch, generation=generation, reason=reason, nodes=tuple(sorted(nodes)))
        )
        control.poisoned[shard] = (epoch, generation)
        return True


def _gaps(places: list[int]) -> list[range]:
    """Runs of consecutive numbers."""
    gaps: list[range] = []
    for place in places:
        if gaps and gaps[-1].stop == place:
            gaps[-1] = range(gaps[-1].start, place + 1)
        else:
            gaps.append(range(place, place + 1))
    return gaps


def take_single(run: Run, name: str, worker: str, node: str, liveness: Liveness) -> Lease | None:
    """Take a lease of the whole run ('plan', 'finish'); None while somebody holds it who may be alive.

    Only an observer that comes again with the same `liveness` finds out that a holder elsewhere has died.
    """
    state = run.leases().get(name, LeaseState(generation=0, is_ended=True))
    if not state.is_ended:
        liveness.observe()
        if not liveness.is_stale(run.holder(name, state.generation).worker):
            return None
    return run.take(name, state.generation + 1, worker, node)


def is_in_living_hands(run: Run, name: str, liveness: Liveness) -> bool:
    """Whether a lease of the whole run is held by somebody whom this observer has seen move."""
    state = run.leases().get(name)
    if state is None or state.is_ended:
        return False
    return liveness.was_seen_alive(run.holder(name, state.generation).worker)


def is_taken_over(run: Run, lease: Lease) -> bool:
    """Whether somebody has a newer generation, since this holder was silent or frozen for too long."""
    state = run.leases().get(lease.name)
    return state is not None and state.generation > lease.generation
