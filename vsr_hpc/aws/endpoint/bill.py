"""What an endpoint costs by the hour, and what nobody pays while nobody asks. Pure, from the price table."""

from __future__ import annotations

from dataclasses import dataclass

from vsr_hpc.aws.endpoint.requests import alarm_requests, variants
from vsr_hpc.aws.endpoint.spec import EndpointSpec
from vsr_hpc.aws.prices import Prices, prices

_GB_HOUR_S = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """US dollars per hour: at rest, and with as many instances as there may be. None: no price is known."""

    what: str
    low_usd: float | None
    high_usd: float | None

    def __str__(self) -> str:
        if self.low_usd is None or self.high_usd is None:
            return f"{self.what}: no price known"
        if self.low_usd == self.high_usd:
            return f"{self.what}: ${self.low_usd:.3f} per hour"
        return f"{self.what}: ${self.low_usd:.3f} to ${self.high_usd:.3f} per hour"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    lines: tuple[Cost, ...]
    note: str

    @property
    def total(self) -> Cost:
        lows = [each.low_usd for each in self.lines if each.low_usd is not None]
        highs = [each.high_usd for each in self.lines if each.high_usd is not None]
        is_known = len(lows) == len(self.lines) > 0
        return Cost(
            what="in all",
            low_usd=sum(lows) if is_known else None,
            high_usd=sum(highs) if is_known else None,
        )


def bill(spec: EndpointSpec, region: str) -> Bill:
    """The endpoint's cost in a region, without data and requests."""
    table = prices(region)
    lines: list[Cost] = []
    if spec.serverless is not None:
        lines += _serverless(spec, table)
    elif spec.is_served:
        lines += _instances(spec, table)
    if alarms := len(alarm_requests(spec)):
        usd = alarms * table.other["cloudwatch_alarm_per_month"] / table.month_hours
        lines.append(Cost(what=f"{alarms} alarms", low_usd=usd, high_usd=usd))
    if spec.transform is not None:
        job = spec.transform
        lines.append(
            _instance_line("while a transform job runs", job.instance_type, (0, job.instance_count), table)
        )
    return Bill(lines=tuple(lines), note=table.text())


def _instances(spec: EndpointSpec, table: Prices) -> list[Cost]:
    found = []
    for each in variants(spec):
        kind, count = (
            each.instance_type or spec.instance_type or "",
            each.instance_count or spec.instance_count,
        )
        bounds = (spec.autoscale.least, spec.autoscale.most) if spec.autoscale else (count, count)
        found.append(_instance_line(each.name if spec.variants else spec.name, kind, bounds, table))
    return found


def _instance_line(what: str, kind: str, bounds: tuple[int, int], table: Prices) -> Cost:
    usd = table.per_hour(kind, "sagemaker")
    low, high = bounds
    count = f"{low}" if low == high else f"{low} to {high}"
    return Cost(
        what=f"{what}, {count} x {kind}",
        low_usd=None if usd is None else low * usd,
        high_usd=None if usd is None else high * usd,
    )


def _serverless(spec: EndpointSpec, table: Prices) -> list[Cost]:
    wanted = spec.serverless
    assert wanted is not None
    gigabytes, kept = wanted.memory_mb / 1024, wanted.provisioned or 0
    hour = table.sagemaker["serverless_per_gb_second"] * table.factor * gigabytes * _GB_HOUR_S
    share = table.sagemaker.get("serverless_provisioned_per_gb_second")
    base: float | None = 0.0
    if kept:
        base = None if share is None else share * table.factor * gigabytes * _GB_HOUR_S * kept
    busy = None if base is None else base + hour * wanted.concurrency
    what = f"serverless, {wanted.memory_mb} MB, 0 to {wanted.concurrency} at work"
    return [Cost(what=what, low_usd=base, high_usd=busy)]
