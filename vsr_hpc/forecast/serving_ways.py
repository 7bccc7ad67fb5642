"""Which way of serving fits (real-time, serverless, async, batch transform, EC2, Slurm) and what each costs.

A pure function of latency, payload, traffic and budget. The limits are AWS's own; the preferences are those
of the documents that this project began with. Each of their statements that can be decided has a test.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from vsr_hpc.aws.prices import Prices

Way = Literal["real-time", "serverless", "async", "batch-transform", "ec2", "slurm"]
Shape = Literal["steady", "variable", "intermittent", "scheduled"]
Priority = Literal["balanced", "managed", "cost", "control"]

LABELS: dict[Way, str] = {
    "real-time": "SageMaker real-time",
    "serverless": "SageMaker serverless",
    "async": "SageMaker async",
    "batch-transform": "SageMaker batch transform",
    "ec2": "EC2 with Docker",
    "slurm": "Slurm cluster",
}
MANAGED: frozenset[Way] = frozenset({"real-time", "serverless", "async", "batch-transform"})

MB = 1_000_000
REAL_TIME_BYTES = 6 * (1 << 20)
SERVERLESS_BYTES = 4 * (1 << 20)
ASYNC_BYTES = 1 << 30
TRANSFORM_BYTES = 100 * (1 << 20)
REQUEST_S = 60.0
LONG_REQUEST_S = 3600.0
SERVERLESS_GIB = 6.0
SERVERLESS_CONCURRENCY = 200

COLD_START_S: dict[Way, float] = {
    "serverless": 20.0,
    "async": 420.0,
    "batch-transform": 420.0,
    "slurm": 300.0,
}
"""From nothing running to the first answer, beside the work itself: assumptions."""
QUEUE_S: dict[Way, float] = {"async": 2.0}
"""What a request through S3 takes though an instance is warm."""
_TRANSFORM_LEAST_S = 600.0
_PEAK: dict[Shape, float] = {"steady": 1.5, "variable": 4.0, "intermittent": 10.0, "scheduled": 1.0}
"""The busiest hour against the average one."""
_BUSY_SHARE = 0.7
"""Of an instance's time, at most, for latency to stay what it is."""
_EC2_BOOT_S = 180.0
_IDLE_TAIL_S = 600.0
"""Paid for after the last request before an instance goes."""
_SESSIONS_PER_DAY: dict[Shape, float] = {
    "steady": 1.0,
    "variable": 12.0,
    "intermittent": 6.0,
    "scheduled": 1.0,
}
"""How often something that sleeps is woken."""
PREMIUM = 1.5
"""How much dearer what AWS manages may be before doing it oneself is the better advice.

The documents speak of 20 to 30 %; their own example, and the price list of small GPUs, have 40 %.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What is asked of a service. Seconds and bytes are of one request."""

    latency_s: float
    """How long a caller can wait for the answer."""
    payload_bytes: int
    answer_bytes: int
    requests_per_day: float
    shape: Shape = "steady"
    gpu_s: float
    """Of work on the instance that would serve."""
    cpu_s: float
    """Of work on serverless's CPU."""
    memory_gib: float = 2.0
    """Of the served model on a CPU."""
    budget_usd: float | None = None
    """A month."""
    priority: Priority = "balanced"

    @property
    def per_second(self) -> float:
        return self.requests_per_day / 86400


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One way of serving: whether it fits, what it costs a month, and why."""

    way: Way
    fits: bool
    usd_per_month: float | None
    reason: str
    instances: float = 0.0
    """On average; of what is paid by time."""

    @property
    def label(self) -> str:
        return LABELS[self.way]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """All ways, cheapest of the fitting ones first, and the advice."""

    offers: tuple[Offer, ...]
    advice: Way | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What the ways cost by time, from one region's prices."""

    sagemaker_hour: float
    ec2_hour: float
    spot_hour: float
    head_month: float
    disk_month: float
    serverless_gb_s: float
    data_gb: float
    month_hours: float

    @classmethod
    def of(cls, prices: Prices, instance: str) -> Rates:
        def hour(name: str, purchase: Literal["spot", "on-demand", "sagemaker"]) -> float:
            found = prices.per_hour(name, purchase)
            if found is None:
                raise KeyError(name)
            return found

        return cls(
            sagemaker_hour=hour(instance, "sagemaker"),
            ec2_hour=hour(instance, "on-demand"),
            spot_hour=hour(instance, "spot"),
            head_month=hour("t3.medium", "on-demand") * prices.month_hours
            + 60 * prices.per_gb_month("ebs_gp3"),
            disk_month=80 * prices.per_gb_month("ebs_gp3"),
            serverless_gb_s=prices.sagemaker["serverless_per_gb_second"],
            data_gb=prices.sagemaker["data_per_gb"],
            month_hours=prices.month_hours,
        )


def place(traffic: Traffic, rates: Rates) -> Placement:
    """Weigh every way; the advice is None where nothing fits."""
    offers = tuple(_within_budget(_OFFERS[way](traffic, rates), traffic.budget_usd) for way in LABELS)
    ordered = tuple(sorted(offers, key=lambda each: (not each.fits, each.usd_per_month or 0.0)))
    fitting = [each for each in ordered if each.fits]
    if not fitting:
        return Placement(offers=ordered, advice=None, reason=_nothing(traffic, offers))
    best, why = _pick_preferred(fitting, traffic.priority)
    return Placement(offers=ordered, advice=best.way, reason=why)


def _pick_preferred(fitting: list[Offer], priority: Priority) -> tuple[Offer, str]:
    cheapest = fitting[0]
    managed = next((each for each in fitting if each.way in MANAGED), None)
    own = next((each for each in fitting if each.way not in MANAGED), None)
    if priority == "cost":
        return cheapest, "the cheapest that fits"
    if priority == "control":
        best = own or cheapest
        return best, "machines of one's own, to be changed at will" if own else "nothing of one's own fits"
    if priority == "managed":
        best = managed or cheapest
        return best, "the cheapest that AWS manages" if managed else "nothing that AWS manages fits"
    if managed is not None and _cost(managed) <= PREMIUM * _cost(cheapest):
        if managed is cheapest:
            return managed, "the cheapest that fits, and AWS manages it"
        return managed, f"managed by AWS for at most {PREMIUM - 1:.0%} more than the cheapest"
    saved = (
        ""
        if managed is None
        else f"; what AWS manages costs {_cost(managed) / _cost(cheapest):.1f} times that"
    )
    return cheapest, f"the cheapest that fits{saved}"


def _cost(offer: Offer) -> float:
    return max(offer.usd_per_month or 0.0, 0.01)


def _within_budget(offer: Offer, budget_usd: float | None) -> Offer:
    if not offer.fits or budget_usd is None or (offer.usd_per_month or 0.0) <= budget_usd:
        return offer
    return Offer(
        way=offer.way,
        fits=False,
        usd_per_month=offer.usd_per_month,
        reason=f"over the budget of ${budget_usd:,.0f}",
        instances=offer.instances,
    )


def _nothing(traffic: Traffic, offers: tuple[Offer, ...]) -> str:
    dear = [each for each in offers if each.reason.startswith("over the budget")]
    if dear:
        least = min(dear, key=_cost)
        return f"nothing fits the budget; the least is {least.label} for ${_cost(least):,.0f} a month"
    return (
        f"nothing answers {traffic.payload_bytes / MB:.1f} MB within {traffic.latency_s:g} s; "
        "allow more time, send smaller pieces, or use a faster model or instance"
    )


# One way after the other: first what rules it out, then its cost -------------------------------------------
def _refuse(way: Way, reason: str) -> Offer:
    return Offer(way=way, fits=False, usd_per_month=None, reason=reason)


def _too_big(way: Way, traffic: Traffic, limit: int, *, answer: bool) -> str | None:
    name = f"{limit / (1 << 20):.0f} MiB"
    if traffic.payload_bytes > limit:
        return f"the payload of {traffic.payload_bytes / MB:.1f} MB is over its limit of {name}"
    if answer and traffic.answer_bytes > limit:
        return f"the answer of {traffic.answer_bytes / MB:.1f} MB is over its limit of {name}"
    return None


def _format_count(count: float) -> str:
    return f"{count:g} instance" if count == 1 else f"{count:g} instances"


def _always_on(traffic: Traffic) -> float:
    """Instances on average: enough for the peak, fewer outside it, never none; who can wait needs no peak."""
    busy = traffic.per_second * traffic.gpu_s / _BUSY_SHARE
    if traffic.latency_s >= _TRANSFORM_LEAST_S:
        return float(math.ceil(max(1.0, busy)))
    peak = math.ceil(max(1.0, busy * _PEAK[traffic.shape]))
    return max(1.0, math.ceil(busy * 1.5) if traffic.shape == "variable" else float(peak))


def _awake_hours(traffic: Traffic, rates: Rates, boot_s: float) -> float:
    """Of all instances in a month, where they sleep between requests: work, boots and idle tails."""
    days = rates.month_hours / 24
    work_s = traffic.requests_per_day * traffic.gpu_s
    sessions = min(traffic.requests_per_day, _SESSIONS_PER_DAY[traffic.shape])
    overhead_s = sessions * (boot_s + _IDLE_TAIL_S)
    if traffic.shape == "steady":  # no gap is long enough to fall asleep in, unless requests are rare
        gap_s = 86400 / max(traffic.requests_per_day, 1e-9)
        if gap_s < _IDLE_TAIL_S:
            return max(1.0, work_s / 86400) * rates.month_hours
        overhead_s = traffic.requests_per_day * (boot_s + _IDLE_TAIL_S)
    hours = (work_s + overhead_s) / 3600 * days
    return min(hours, max(1.0, math.ceil(work_s / 86400)) * rates.month_hours)


def _data_usd(traffic: Traffic, rates: Rates) -> float:
    moved = traffic.payload_bytes + traffic.answer_bytes
    return traffic.requests_per_day * rates.month_hours / 24 * moved / 1e9 * rates.data_gb


def _real_time(traffic: Traffic, rates: Rates) -> Offer:
    reason = _too_big("real-time", traffic, REAL_TIME_BYTES, answer=True)
    if traffic.gpu_s > REQUEST_S:
        reason = f"a request takes {traffic.gpu_s:.0f} s, it may take {REQUEST_S:.0f} s"
    elif traffic.gpu_s > traffic.latency_s:
        reason = f"the work alone takes {traffic.gpu_s:.2g} s"
    if reason:
        return _refuse("real-time", reason)
    count = _always_on(traffic)
    usd = count * rates.sagemaker_hour * rates.month_hours + _data_usd(traffic, rates)
    idle = (
        "" if traffic.shape in ("steady", "variable") else ", paid for day and night though traffic is rare"
    )
    return Offer(
        way="real-time",
        fits=True,
        usd_per_month=usd,
        reason=f"answers at once, scales with the load; {_format_count(count)}{idle}",
        instances=count,
    )


def _serverless(traffic: Traffic, rates: Rates) -> Offer:
    reason = _too_big("serverless", traffic, SERVERLESS_BYTES, answer=True)
    cold_s = COLD_START_S["serverless"]
    if traffic.memory_gib > SERVERLESS_GIB:
        reason = f"the model needs {traffic.memory_gib:.1f} GiB, there are {SERVERLESS_GIB:.0f}, and no GPU"
    elif traffic.cpu_s > REQUEST_S:
        reason = f"there is no GPU: a request takes {traffic.cpu_s:.0f} s, it may take {REQUEST_S:.0f} s"
    elif traffic.cpu_s > traffic.latency_s:
        reason = f"there is no GPU: the work alone takes {traffic.cpu_s:.2g} s"
    elif traffic.cpu_s + cold_s > traffic.latency_s:
        reason = f"a cold start takes about {cold_s:.0f} s, and some request always meets one"
    elif traffic.per_second * _PEAK[traffic.shape] * traffic.cpu_s > SERVERLESS_CONCURRENCY:
        reason = f"more than {SERVERLESS_CONCURRENCY} requests at once"
    if reason:
        return _refuse("serverless", reason)
    gib = max(1.0, math.ceil(traffic.memory_gib))
    requests = traffic.requests_per_day * rates.month_hours / 24
    usd = requests * traffic.cpu_s * gib * rates.serverless_gb_s + _data_usd(traffic, rates)
    return Offer(
        way="serverless",
        fits=True,
        usd_per_month=usd,
        reason=f"costs nothing between requests; {gib:.0f} GiB, no GPU, cold starts of about {cold_s:.0f} s",
    )


def _asynchronous(traffic: Traffic, rates: Rates) -> Offer:
    reason = _too_big("async", traffic, ASYNC_BYTES, answer=False)
    if traffic.gpu_s > LONG_REQUEST_S:
        reason = f"a request takes {traffic.gpu_s / 3600:.1f} h, it may take 1 h"
    elif traffic.gpu_s + QUEUE_S["async"] > traffic.latency_s:
        reason = f"the way through S3 and the work take about {traffic.gpu_s + QUEUE_S['async']:.0f} s"
    if reason:
        return _refuse("async", reason)
    sleeps = traffic.gpu_s + COLD_START_S["async"] <= traffic.latency_s
    if sleeps:
        hours = _awake_hours(traffic, rates, COLD_START_S["async"])
        minutes = COLD_START_S["async"] / 60
        text = f"scales to zero when its queue is empty; a request that wakes it waits {minutes:.0f} min"
    else:
        hours = _always_on(traffic) * rates.month_hours
        text = "one instance must stay awake, since a cold start takes longer than callers wait"
    return Offer(
        way="async",
        fits=True,
        usd_per_month=hours * rates.sagemaker_hour + _data_usd(traffic, rates),
        reason=text,
        instances=hours / rates.month_hours,
    )


def _batch_transform(traffic: Traffic, rates: Rates) -> Offer:
    reason = _too_big("batch-transform", traffic, TRANSFORM_BYTES, answer=False)
    if traffic.gpu_s > LONG_REQUEST_S:
        reason = f"a record takes {traffic.gpu_s / 3600:.1f} h, it may take 1 h"
    elif traffic.latency_s < _TRANSFORM_LEAST_S:
        reason = "answers come in minutes to hours, when a job is done"
    elif traffic.shape != "scheduled":
        reason = "for a whole set at set times; requests that come one by one wait for the next job"
    if reason:
        return _refuse("batch-transform", reason)
    hours = _awake_hours(traffic, rates, COLD_START_S["batch-transform"])
    return Offer(
        way="batch-transform",
        fits=True,
        usd_per_month=hours * rates.sagemaker_hour,
        reason="paid for only while a job runs",
        instances=hours / rates.month_hours,
    )


def _ec2(traffic: Traffic, rates: Rates) -> Offer:
    if traffic.gpu_s > traffic.latency_s:
        return _refuse("ec2", f"the work alone takes {traffic.gpu_s:.2g} s")
    is_patient = traffic.latency_s >= _TRANSFORM_LEAST_S
    hourly = rates.spot_hour if is_patient else rates.ec2_hour
    if is_patient and traffic.shape == "scheduled":
        hours, text = _awake_hours(traffic, rates, _EC2_BOOT_S), "begun and ended for each set"
    else:
        count = _always_on(traffic)
        hours, text = count * rates.month_hours, f"{_format_count(count)} day and night"
    bought = (
        "Spot, since who waits minutes outlives an interruption"
        if is_patient
        else "on demand, since Spot may be taken while callers wait"
    )
    return Offer(
        way="ec2",
        fits=True,
        usd_per_month=hours * (hourly + rates.disk_month / rates.month_hours),
        reason=f"no limit of payload or time, kept up by you; {text}, {bought}",
        instances=hours / rates.month_hours,
    )


def _slurm(traffic: Traffic, rates: Rates) -> Offer:
    boot_s = COLD_START_S["slurm"]
    if traffic.shape != "scheduled" and traffic.priority not in ("cost", "control"):
        return _refuse("slurm", "runs jobs and answers no requests: for whole sets, or to save at any price")
    if traffic.gpu_s + boot_s > traffic.latency_s:
        return _refuse("slurm", f"a node takes about {boot_s / 60:.0f} min to boot")
    hours = _awake_hours(traffic, rates, boot_s)
    return Offer(
        way="slurm",
        fits=True,
        usd_per_month=hours * rates.spot_hour + rates.head_month,
        reason="Spot nodes that sleep, any size, checkpoints; a head node of your own stays up",
        instances=hours / rates.month_hours,
    )


_OFFERS: dict[Way, Callable[[Traffic, Rates], Offer]] = {
    "real-time": _real_time,
    "serverless": _serverless,
    "async": _asynchronous,
    "batch-transform": _batch_transform,
    "ec2": _ec2,
    "slurm": _slurm,
}
