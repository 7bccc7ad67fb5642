"""What a run was estimated to take and cost, and what it took: node-hours and interruptions from its files.

The estimate is created once, beside the plan and not part of it. What was spent is a reading of heartbeats
and leases, so it can be had at any moment and from any machine.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, ValidationError

from vsr_hpc.run.documents import Done, Heartbeat, LeaseState, Round
from vsr_hpc.run.liveness import is_process_gone
from vsr_hpc.run.names import parse_shard
from vsr_hpc.run.run import Run
from vsr_hpc.storage.store import MissingObject

log = logging.getLogger(__name__)


ESTIMATE_NAME = "estimate.json"
_INTERRUPTED_BY = frozenset({"spot notice", "terminated", "time limit"})


class Figure(BaseModel):
    """An expected value and its range."""

    model_config = ConfigDict(frozen=True)

    low: float
    mid: float
    high: float


class Estimate(BaseModel):
    """What was said before the first worker began."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: int = 1
    where: str
    way: str
    """In words."""
    instance: str | None
    purchase: str | None
    workers: int
    seconds: Figure
    usd: Figure | None
    node_hours: float
    interruptions: float
    basis: str
    source: str
    usd_per_node_hour: float | None
    prices: str
    """Which prices, in words."""
    made_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What a run has taken so far, all rounds together."""

    seconds: float
    """From the run's beginning to the output, or to the last sign of life."""
    worker_hours: float
    node_hours: float
    """Workers on one node at one time count once."""
    interruptions: int
    """Workers that went before their work was done: Spot notices, preemption, time limits, deaths."""
    shards_lost: int
    """Leases that ended, or were taken over, without a receipt."""
    usd: float | None
    """At the estimate's price of a node-hour; None where that is not known."""


def read_estimate(run: Run) -> Estimate | None:
    """What was said when the run began; None where nothing was, or where it cannot be read."""
    try:
        return Estimate.model_validate_json(run.store.read(ESTIMATE_NAME))
    except MissingObject:
        return None
    except ValidationError as exc:
        log.warning("estimate not read run=%s error=%s", run.uri, str(exc).splitlines()[0])
        return None


def read_spent(run: Run, estimate: Estimate | None = None) -> Spent:
    """Time, node-hours and interruptions of a run as its files tell them now."""
    return spent_by(
        run.heartbeats(),
        run.rounds(),
        run.done(),
        now_s=run.store.now_s(),
        window_s=run.lease_window_s,
        begun_s=run.begun_s(),
        shards_lost=shards_lost(run.leases(), run.finished()),
        estimate=estimate,
    )


def spent_by(
    beats: Sequence[Heartbeat],
    rounds: Sequence[Round],
    done: Done | None,
    *,
    now_s: float,
    window_s: float,
    begun_s: float | None = None,
    shards_lost: int,
    estimate: Estimate | None,
) -> Spent:
    """The same from what has been read already; `begun_s` is when the run was, before its first round."""
    begun = min((each.submitted_s for each in rounds), default=0.0)
    if begun_s is not None:
        begun = min(begun, begun_s)
    last = max((beat.updated_s for beat in beats), default=begun)
    ended = done.finished_s if done is not None else last
    node_hours = node_seconds(beats) / 3600
    hourly = estimate.usd_per_node_hour if estimate is not None else None
    return Spent(
        seconds=max(0.0, ended - begun) if rounds else 0.0,
        worker_hours=sum(max(0.0, beat.updated_s - beat.started_s) for beat in beats) / 3600,
        node_hours=node_hours,
        interruptions=sum(1 for beat in beats if _was_interrupted(beat, now_s, window_s)),
        shards_lost=shards_lost,
        usd=None if hourly is None else hourly * node_hours,
    )


def node_seconds(beats: Iterable[Heartbeat]) -> float:
    """Time that nodes were in use, workers side by side on one of them counted once."""
    spans: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for beat in beats:
        spans[beat.node].append((beat.started_s, max(beat.started_s, beat.updated_s)))
    total = 0.0
    for each in spans.values():
        until = float("-inf")
        for start, stop in sorted(each):
            total += max(0.0, stop - max(start, until))
            until = max(until, stop)
    return total


def _was_interrupted(beat: Heartbeat, now_s: float, window_s: float) -> bool:
    if beat.state == "left":
        return beat.note in _INTERRUPTED_BY
    return is_process_gone(beat) or now_s - beat.updated_s > window_s


def shards_lost(leases: Mapping[str, LeaseState], finished: frozenset[int]) -> int:
    """Generations of shard leases that ended, or were taken over, without a receipt."""
    lost = 0
    for name, state in leases.items():
        shard = parse_shard(name)
        if shard is not None:
            is_last_well = shard[0] in finished or not state.is_ended  # done, or still at work
            lost += state.generation - (1 if is_last_well else 0)
    return lost


def count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
