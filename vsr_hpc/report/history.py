"""Who did what when: a run's receipts, leases and heartbeats as lanes, bars and interruptions.

Everything here is read from the run's store; `History` is what the timeline, the throughput curve and the
stage bars of the report and of the live page are drawn from.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from vsr_hpc.run.documents import Heartbeat, LeaseEnd, Receipt
from vsr_hpc.run.names import parse_lease, parse_shard, shard_name
from vsr_hpc.run.run import Run
from vsr_hpc.run.status import WorkerStatus
from vsr_hpc.storage.store import MissingObject, ObjectFacts

_READERS = 8
_MOST_BREAKS = 2000
_BINS = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A shard that a worker finished."""

    lane: int
    start_s: float
    stop_s: float
    shard: int
    frames: int
    generation: int
    worst_psnr_db: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Break:
    """An attempt that ended without a receipt."""

    lane: int
    start_s: float
    stop_s: float
    shard: int
    cause: str
    """stopped, backend, media, or died: nobody said anything."""
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One worker's line in the timeline."""

    worker: str
    node: str
    device: str
    round: int
    restart: int
    start_s: float
    stop_s: float
    end: str
    """How its life ended: done, a stop's reason, died; "" while it lives."""
    shards: int
    frames: int
    seconds: dict[str, float]
    """Stage clocks, summed over its receipts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    start_s: float
    stop_s: float
    lanes: tuple[Lane, ...]
    bars: tuple[Bar, ...]
    breaks: tuple[Break, ...]
    step_s: float
    fps: tuple[float, ...]
    """Frames per second of the whole run in each step."""


def read_receipts(run: Run, shards: Iterable[int]) -> tuple[Receipt, ...]:
    """Several side by side: on S3 each is a request."""
    with ThreadPoolExecutor(_READERS, thread_name_prefix="receipts") as pool:
        return tuple(pool.map(run.receipt, sorted(shards)))


def read_history(run: Run, receipts: Sequence[Receipt], workers_seen: Sequence[WorkerStatus]) -> History:
    """One listing, and two objects for each attempt that failed; a status has seen the workers."""
    beats = {each.heartbeat.worker: each.heartbeat for each in workers_seen}
    dead = {each.heartbeat.worker for each in workers_seen if not each.is_alive}
    attempts = _failed_attempts(run, receipts)
    workers = _in_order(beats, receipts, attempts)
    number = {worker: lane for lane, worker in enumerate(workers)}
    breaks = tuple(
        Break(
            lane=number[each.worker],
            start_s=each.start_s,
            stop_s=max(each.start_s, _stop(each, beats.get(each.worker))),
            shard=each.shard,
            cause=each.cause,
            text=each.text,
        )
        for each in attempts
    )
    bars = tuple(_bar(receipt, number[receipt.worker]) for receipt in receipts)
    made: dict[str, list[Receipt]] = defaultdict(list)
    for receipt in receipts:
        made[receipt.worker].append(receipt)
    failed: dict[int, list[Break]] = defaultdict(list)
    for each in breaks:
        failed[each.lane].append(each)
    lanes = tuple(
        _lane(worker, beats.get(worker), made[worker], failed[number[worker]], worker in dead)
        for worker in workers
    )
    return assemble(lanes, bars, breaks)


def assemble(lanes: tuple[Lane, ...], bars: tuple[Bar, ...], breaks: tuple[Break, ...]) -> History:
    """The whole from its parts: its span and the throughput over time."""
    start = min([*(lane.start_s for lane in lanes), *(bar.start_s for bar in bars)], default=0.0)
    stop = max([*(lane.stop_s for lane in lanes), *(bar.stop_s for bar in bars)], default=0.0)
    step, fps = throughput(bars, start, stop)
    return History(start_s=start, stop_s=stop, lanes=lanes, bars=bars, breaks=breaks, step_s=step, fps=fps)


def throughput(bars: Sequence[Bar], start_s: float, stop_s: float) -> tuple[float, tuple[float, ...]]:
    """Frames per second in equal steps; a shard's frames are spread evenly over its time."""
    span = stop_s - start_s
    if span <= 0 or not bars:
        return 1.0, ()
    step = span / _BINS
    made = [0.0] * _BINS
    for bar in bars:
        took = max(bar.stop_s - bar.start_s, 1e-3)
        first = min(_BINS - 1, max(0, int((bar.start_s - start_s) / step)))
        last = min(_BINS - 1, max(first, int((bar.stop_s - start_s) / step)))
        for index in range(first, last + 1):
            low = max(bar.start_s, start_s + index * step)
            high = min(bar.start_s + took, start_s + (index + 1) * step)
            made[index] += bar.frames * max(0.0, high - low) / took
    return step, tuple(round(each / step, 3) for each in made)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attempt:
    shard: int
    worker: str
    node: str
    start_s: float
    stop_s: float
    """0: nobody knows."""
    cause: str
    text: str


def _failed_attempts(run: Run, receipts: Sequence[Receipt]) -> tuple[_Attempt, ...]:
    """Leases with an end, and leases that a later one took over without any: their workers died."""
    done = {shard_name(receipt.shard, receipt.epoch): receipt.generation for receipt in receipts}
    generations: dict[str, dict[int, ObjectFacts | None]] = defaultdict(dict)
    for facts in run.store.list("leases/"):
        lease = parse_lease(facts.name)
        if lease is not None and parse_shard(lease[0]) is not None:
            name, number, is_end = lease
            generations[name][number] = facts if is_end else generations[name].get(number)
    failed = [
        (name, number, end)
        for name, known in sorted(generations.items())
        for number, end in sorted(known.items())
        if end is not None or (number < max(known) and number != done.get(name))
    ]
    with ThreadPoolExecutor(_READERS, thread_name_prefix="leases") as pool:
        return tuple(pool.map(lambda each: _attempt(run, *each), failed[:_MOST_BREAKS]))


def _attempt(run: Run, name: str, generation: int, end: ObjectFacts | None) -> _Attempt:
    note = run.holder(name, generation)
    said: LeaseEnd | None = run.ending(name, generation) if end is not None else None
    if said is not None and end is not None:
        stop = end.modified_s
    else:
        stop = 0.0
        with contextlib.suppress(MissingObject):
            stop = run.holder(name, generation + 1).taken_s
    return _Attempt(
        shard=(parse_shard(name) or (0, 0))[0],
        worker=note.worker,
        node=note.node,
        start_s=note.taken_s,
        stop_s=stop,
        cause=said.cause if said is not None else "died",
        text=said.text if said is not None else "said nothing any more; another worker took the shard over",
    )


def _in_order(
    beats: dict[str, Heartbeat], receipts: Sequence[Receipt], attempts: Sequence[_Attempt]
) -> tuple[str, ...]:
    """Workers by their start; one without a heartbeat by the first thing that is known of it."""
    began = {worker: beat.started_s for worker, beat in beats.items()}
    seen = [(receipt.worker, receipt.started_s) for receipt in receipts]
    seen += [(attempt.worker, attempt.start_s) for attempt in attempts]
    for worker, moment in seen:
        if worker not in beats:
            began[worker] = min(moment, began.get(worker, moment))
    return tuple(sorted(began, key=lambda worker: (began[worker], worker)))


def _bar(receipt: Receipt, lane: int) -> Bar:
    found = [each.worst_psnr_db for each in receipt.segments if each.worst_psnr_db is not None]
    return Bar(
        lane=lane,
        start_s=receipt.started_s,
        stop_s=receipt.finished_s,
        shard=receipt.shard,
        frames=sum(segment.frames for segment in receipt.segments),
        generation=receipt.generation,
        worst_psnr_db=min(found, default=None),
    )


def _lane(
    worker: str,
    beat: Heartbeat | None,
    own: Sequence[Receipt],
    own_breaks: Sequence[Break],
    is_dead: bool,
) -> Lane:
    seconds: dict[str, float] = {}
    for receipt in own:
        for stage, spent in receipt.seconds.items():
            seconds[stage] = round(seconds.get(stage, 0.0) + spent, 3)
    starts = [receipt.started_s for receipt in own] + [each.start_s for each in own_breaks]
    stops = [receipt.finished_s for receipt in own] + [each.stop_s for each in own_breaks]
    device = own[0].platform.get("model", "") if own else beat.device if beat else ""
    return Lane(
        worker=worker,
        node=beat.node if beat else "",
        device=device,
        round=beat.round if beat else 0,
        restart=beat.restart if beat else 0,
        start_s=beat.started_s if beat else min(starts, default=0.0),
        stop_s=max([beat.updated_s if beat else 0.0, *stops]),
        end=_end(beat, own_breaks, is_dead),
        shards=len(own),
        frames=sum(segment.frames for receipt in own for segment in receipt.segments),
        seconds=seconds,
    )


def _end(beat: Heartbeat | None, breaks: Sequence[Break], is_dead: bool) -> str:
    if beat is not None and beat.state == "left":
        return beat.note or "done"
    return "died" if is_dead or any(each.cause == "died" for each in breaks) else ""


def _stop(attempt: _Attempt, beat: Heartbeat | None) -> float:
    """When an attempt ended: as was said; of one that died, its worker's last word before the takeover."""
    if attempt.cause != "died" or beat is None:
        return attempt.stop_s
    return min(attempt.stop_s, beat.updated_s) if attempt.stop_s else beat.updated_s
