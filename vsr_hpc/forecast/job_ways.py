"""What a job takes and costs in each place where it could run, and which way meets a deadline or a budget.

Pure: clip, pace, prices and overheads in; times, costs and their ranges out. The overheads are assumptions
that are written down here; what was measured of this job comes in by the pace.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from vsr_hpc.aws.instances import find_instance
from vsr_hpc.aws.prices import Prices, Purchase
from vsr_hpc.forecast.profiles import Profile
from vsr_hpc.forecast.worker_speed import Basis, FrameWork, Pace, pace_on
from vsr_hpc.models.cards import Card
from vsr_hpc.planning.cutting import shard_borders
from vsr_hpc.wording import duration, money

Where = Literal["local", "slurm", "aws-batch", "sagemaker-async", "ec2"]

GPU_TYPES = ("g4dn.xlarge", "g5.xlarge", "g6.xlarge", "g4dn.2xlarge", "g5.2xlarge", "g6.2xlarge")
CPU_TYPES = ("c6i.2xlarge", "c7i.2xlarge")
_HEAD_NODE = "t3.medium"
_DISK_GIB = 80
"""A node's root volume, as cluster-config has it."""
WORKER_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_REQUESTS_PER_SHARD = 6
SPOT_INTERRUPTIONS_PER_HOUR = 0.05
"""Of one node: an assumption on the careful side; AWS publishes monthly shares by type."""
_NOTICE_S = 110.0
"""A Spot notice comes two minutes ahead: a shard that is shorter gets done."""
LARGEST_ASYNC_BYTES = 1 << 30
LONGEST_ASYNC_S = 3600.0
_MERGE_BYTES_PER_S = 3e8
_MERGE_S_PER_FRAME = 1e-4
_REPORT_S, _REPORT_S_PER_PIXEL, _REPORT_FRAMES = 0.5, 2.5e-8, 1000
"""Of a finished run's report: fixed, for each pixel in and out that it decodes, of so many frames at most.

The first two were fitted to CPU seconds of five runs on a busy machine.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """A figure that is not certain: what is expected, and what it may turn out to be."""

    low: float
    mid: float
    high: float

    def __add__(self, other: Range) -> Range:
        return Range(low=self.low + other.low, mid=self.mid + other.mid, high=self.high + other.high)

    def scaled(self, factor: float) -> Range:
        return Range(low=self.low * factor, mid=self.mid * factor, high=self.high * factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A job as far as time and money see it."""

    card: Card
    frame: FrameWork
    chunks: tuple[int, ...]
    """Frames where chunks begin, and where the last one stops."""
    shard_s: float
    clip_s: float
    bytes_in: int
    bytes_out: int
    plan_s: float
    """Reading the source once."""
    has_report: bool = True
    """Whether the report is waited for; it comes after the output."""

    @property
    def frames(self) -> int:
        return self.chunks[-1] - self.chunks[0]

    @property
    def finish_s(self) -> float:
        """The merge, then the report with its pictures."""
        merge_s = 0.2 + self.frames * _MERGE_S_PER_FRAME + self.bytes_out / _MERGE_BYTES_PER_S
        if not self.has_report:
            return merge_s
        decoded = min(self.frames, _REPORT_FRAMES) * (self.frame.pixels_in + self.frame.pixels_out)
        return merge_s + _REPORT_S + decoded * _REPORT_S_PER_PIXEL


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPlace:
    """Somewhere a job can run, with what it takes there beside the work. Seconds, except where named."""

    where: Where
    purchase: Purchase | None
    label: str
    boot: Range
    """Until a worker begins, with nothing running yet."""
    idle_s: float
    """Paid for after a node's last shard."""
    types: tuple[str, ...] = ()
    has_head_node: bool = False


def _range(low: float, mid: float, high: float) -> Range:
    return Range(low=low, mid=mid, high=high)


_CLUSTER_BOOT = _range(180, 300, 480)
_BATCH_BOOT = _range(120, 210, 420)
_SAGEMAKER_BOOT = _range(240, 420, 720)
_EC2_BOOT = _range(90, 180, 300)


def places(is_filter: bool) -> tuple[JobPlace, ...]:
    """Where a job of this kind can go besides this machine."""
    types = CPU_TYPES if is_filter else GPU_TYPES
    bought: tuple[tuple[Purchase, str], ...] = (("spot", "Spot"), ("on-demand", "on demand"))
    made = [
        JobPlace(
            where="slurm", purchase=purchase, label=f"Slurm cluster, {word}", boot=_CLUSTER_BOOT,
            idle_s=300, types=types, has_head_node=True,
        )
        for purchase, word in bought
    ]  # fmt: skip
    made += [
        JobPlace(
            where="aws-batch", purchase=purchase, label=f"AWS Batch, {word}", boot=_BATCH_BOOT, idle_s=60,
            types=types,
        )
        for purchase, word in bought
    ]  # fmt: skip
    made.append(
        JobPlace(
            where="sagemaker-async", purchase="sagemaker", label="SageMaker async", boot=_SAGEMAKER_BOOT,
            idle_s=600, types=types,
        )
    )  # fmt: skip
    made += [
        JobPlace(
            where="ec2", purchase=purchase, label=f"EC2 with Docker, {word}", boot=_EC2_BOOT, idle_s=30,
            types=types,
        )
        for purchase, word in bought
    ]  # fmt: skip
    return tuple(made)


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One way to run a job: where, on what, with how many workers; and what that takes."""

    where: Where
    label: str
    purchase: Purchase | None
    instance: str | None
    workers: int
    seconds: Range
    usd: Range | None
    """None on this machine, which is paid for anyway."""
    node_hours: float
    interruptions: float
    """Of Spot, expected."""
    basis: Basis
    slowest: str
    source: str
    shards: int

    @property
    def cost(self) -> Range:
        return self.usd or Range(low=0.0, mid=0.0, high=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedPlace:
    """A place that cannot take this job, and why."""

    where: Where
    label: str
    reason: str


def local_option(work: Work, pace: Pace, workers: int) -> Option:
    """This machine; `pace` is that of all its workers together."""
    shards = _shards(work, pace.seconds_per_frame * workers, workers)
    whole = Range(low=pace.spread[0], mid=1.0, high=pace.spread[1]).scaled(
        _work_s(work, shards, workers, pace.seconds_per_frame * workers)
    )
    fixed = work.plan_s + pace.startup_s + work.finish_s
    seconds = whole + _range(0.8 * fixed, fixed, 1.3 * fixed)
    return Option(
        where="local", label="this machine", purchase=None, instance=None, workers=workers,
        seconds=seconds, usd=None, node_hours=seconds.mid / 3600, interruptions=0.0, basis=pace.basis,
        slowest=pace.slowest, source=pace.source, shards=shards,
    )  # fmt: skip


def option(
    place: JobPlace,
    instance: str,
    workers: int,
    work: Work,
    prices: Prices,
    profiles: tuple[Profile, ...] = (),
) -> Option | None:
    """One way in a place of AWS; None where its price or kind is not known."""
    assert place.purchase is not None
    hourly = prices.per_hour(instance, place.purchase)
    facts = find_instance(instance)
    if hourly is None or (not work.card.is_filter and not facts.gpus):
        return None
    pace = pace_on(facts, work.frame, work.card, profiles)
    shards = _shards(work, pace.seconds_per_frame, workers)
    workers = min(workers, shards)
    busy = Range(low=pace.spread[0], mid=1.0, high=pace.spread[1]).scaled(
        _work_s(work, shards, workers, pace.seconds_per_frame)
    )
    lost, interruptions = _lost_s(place, busy, work, shards, workers, pace)
    started = place.boot + _range(0.5, 1.0, 1.5).scaled(pace.startup_s)
    node_s = started + busy + lost
    fixed = work.plan_s + work.finish_s
    seconds = node_s + _range(fixed, fixed, 1.5 * fixed)
    billed = node_s.scaled(workers) + _range(0, 0.5, 1).scaled(workers * place.idle_s)
    billed += _range(fixed, fixed, 1.5 * fixed)
    usd = billed.scaled((hourly + _disk_hour(prices)) / 3600) + _extras(place, work, shards, seconds, prices)
    return Option(
        where=place.where, label=place.label, purchase=place.purchase, instance=instance, workers=workers,
        seconds=seconds, usd=usd, node_hours=billed.mid / 3600, interruptions=interruptions,
        basis=pace.basis, slowest=pace.slowest, source=pace.source, shards=shards,
    )  # fmt: skip


def refusal(place: JobPlace, work: Work, found: Option | None, clip_limit_s: float) -> RefusedPlace | None:
    """Why a place cannot take this job; None where it can."""
    reason = None
    if place.where == "sagemaker-async":
        if work.bytes_in > LARGEST_ASYNC_BYTES:
            reason = f"the clip has {work.bytes_in / 2**30:.1f} GiB, a request takes at most 1"
        elif work.clip_s > clip_limit_s:
            reason = f"the clip lasts {work.clip_s:.0f} s, the server takes at most {clip_limit_s:.0f} s"
        elif found is not None and found.seconds.mid - place.boot.mid > LONGEST_ASYNC_S:
            reason = "a request may take at most an hour"
    if reason is None and found is None:
        reason = "no price of its instance types is known; `vsr prices refresh` asks AWS"
    return None if reason is None else RefusedPlace(where=place.where, label=place.label, reason=reason)


def options(
    place: JobPlace, work: Work, prices: Prices, profiles: tuple[Profile, ...], counts: Iterable[int]
) -> Iterator[Option]:
    """All ways in one place: each instance type with each number of workers."""
    most = 1 if place.where == "sagemaker-async" else len(work.chunks) - 1
    seen = set()
    for instance, workers in itertools.product(place.types, counts):
        found = option(place, instance, min(workers, most), work, prices, profiles)
        if found is not None and (instance, found.workers) not in seen:
            seen.add((instance, found.workers))
            yield found


def cheapest(found: Iterable[Option]) -> Option | None:
    return min(found, key=lambda each: (each.cost.mid, each.seconds.mid), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What meets a deadline and a budget; where nothing does, `option` is None and `text` says what would."""

    option: Option | None
    text: str
    is_certain: bool = True
    """False: met as expected, but not at the far end of the range."""


def choose(found: Iterable[Option], *, deadline_s: float | None, budget_usd: float | None) -> Choice:
    """The cheapest way that is in time; without a deadline, the fastest that is within the budget.

    What holds even at the far end of the ranges is preferred to what holds as expected.
    """
    every = tuple(found)
    for is_certain in (True, False):
        fitting = [each for each in every if _fits(each, deadline_s, budget_usd, is_certain)]
        if fitting:
            best = (cheapest(fitting) if deadline_s is not None else _fastest(fitting)) or fitting[0]
            return Choice(option=best, text=_describe_fit(best, is_certain), is_certain=is_certain)
    return Choice(option=None, text=_way_out(every, deadline_s, budget_usd))


def _fits(each: Option, deadline_s: float | None, budget_usd: float | None, is_certain: bool) -> bool:
    seconds = each.seconds.high if is_certain else each.seconds.mid
    usd = each.cost.high if is_certain else each.cost.mid
    return (deadline_s is None or seconds <= deadline_s) and (budget_usd is None or usd <= budget_usd)


def _fastest(found: Iterable[Option]) -> Option | None:
    return min(found, key=lambda each: (each.seconds.mid, each.cost.mid), default=None)


def _describe_fit(best: Option, is_certain: bool) -> str:
    return f"take {describe_option(best)}" + (
        "" if is_certain else ", which meets it as expected but may not"
    )


def _way_out(every: tuple[Option, ...], deadline_s: float | None, budget_usd: float | None) -> str:
    """What would do, where nothing does."""
    parts = ["nothing fits"]
    in_time = cheapest(each for each in every if _fits(each, deadline_s, None, False))
    affordable = _fastest(each for each in every if _fits(each, None, budget_usd, False))
    if deadline_s is not None and in_time is None:
        fastest = _fastest(every)
        if fastest is not None:
            parts.append(f"the fastest is {describe_option(fastest)}, {duration(fastest.seconds.mid)}")
    elif budget_usd is not None and in_time is not None and deadline_s is not None:
        parts.append(f"the cheapest in time is {describe_option(in_time)}, {money(in_time.cost.mid)}")
    if budget_usd is not None:
        if affordable is None:
            least = cheapest(every)
            if least is not None:
                parts.append(f"the cheapest of all is {describe_option(least)}, {money(least.cost.mid)}")
        elif deadline_s is not None:
            took = duration(affordable.seconds.mid)
            parts.append(f"the fastest within the budget is {describe_option(affordable)}, {took}")
    return "; ".join(parts)


def describe_option(each: Option) -> str:
    """An option in a few words."""
    noun = "worker" if each.workers == 1 else "workers"
    on = f" on {each.instance}" if each.instance else ""
    return f"{each.label} with {each.workers} {noun}{on}"


def _shards(work: Work, seconds_per_frame: float, workers: int) -> int:
    borders = shard_borders(
        work.chunks, seconds_per_frame=seconds_per_frame, shard_s=work.shard_s, workers=workers
    )
    return len(borders) - 1


def _work_s(work: Work, shards: int, workers: int, seconds_per_frame: float) -> float:
    """Until the last worker is done: shards are whole, so some make one more than others."""
    most = math.ceil(shards / workers)
    return min(work.frames, work.frames / shards * most) * seconds_per_frame


def _lost_s(
    place: JobPlace, busy: Range, work: Work, shards: int, workers: int, pace: Pace
) -> tuple[Range, float]:
    """Per worker, what Spot interruptions add: another boot, and half a shard that no notice lets finish."""
    if place.purchase != "spot":
        return _range(0, 0, 0), 0.0
    shard_s = work.frames / shards * pace.seconds_per_frame
    each = place.boot + _range(0, 1, 1).scaled(pace.startup_s + (shard_s / 2 if shard_s > _NOTICE_S else 0.0))
    expected = busy.mid / 3600 * SPOT_INTERRUPTIONS_PER_HOUR
    low, high = each.scaled(expected), each.scaled(4 * expected)
    return _range(0.0, low.mid, high.high), workers * expected


def _disk_hour(prices: Prices) -> float:
    return _DISK_GIB * prices.per_gb_month("ebs_gp3") / prices.month_hours


def _extras(place: JobPlace, work: Work, shards: int, seconds: Range, prices: Prices) -> Range:
    """The head node while it is needed, requests to S3, data through SageMaker."""
    requests = (shards * _REQUESTS_PER_SHARD + len(work.chunks)) * prices.other["s3_put_per_1000"] / 1000
    fixed = requests
    if place.where == "sagemaker-async":
        fixed += (work.bytes_in + work.bytes_out) / 1e9 * prices.sagemaker["data_per_gb"]
    extra = _range(fixed, fixed, 1.5 * fixed)
    if place.has_head_node:
        extra += seconds.scaled((prices.per_hour(_HEAD_NODE, "on-demand") or 0.0) / 3600)
    return extra


def round_option(each: Option) -> Option:
    """For files: no more digits than are meant."""

    def cut(values: Range | None) -> Range | None:
        if values is None:
            return None
        return _range(*(float(f"{value:.3g}") for value in (values.low, values.mid, values.high)))

    seconds = cut(each.seconds)
    assert seconds is not None
    return replace(
        each, seconds=seconds, usd=cut(each.usd), node_hours=float(f"{each.node_hours:.3g}"),
        interruptions=float(f"{each.interruptions:.2g}"),
    )  # fmt: skip
