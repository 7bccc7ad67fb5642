"""What a configuration costs: asleep per month, at full load per hour. Approximate list prices, dated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vsr_hpc.aws.cluster.instance_rules import Pool, pools
from vsr_hpc.aws.cluster.yaml_document import Document, at, items
from vsr_hpc.aws.prices import Prices, Purchase, prices

# What ParallelCluster 3.16 makes for the head node: health, cpu, memory, disk and the like.
_ALARMS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class CostLine:
    what: str
    usd: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """`floor` is per month, all queues asleep; `load_*` per hour, all nodes up, cheapest and dearest."""

    date: str
    region: str
    floor: tuple[CostLine, ...]
    load_low_usd: float
    load_high_usd: float
    nodes: int
    notes: tuple[str, ...]

    @property
    def floor_usd(self) -> float:
        return sum(line.usd for line in self.floor)


def costs(document: Document) -> Costs:
    """The bill of a configuration, as far as the price table knows its parts."""
    config = document.value
    region = str(at(config, "Region") or "us-east-1")
    table = prices(region)
    notes = [
        f"list prices of {table.date}, approximate; Spot as a share of on-demand, which moves by the hour"
    ]
    if table.is_guess:
        notes.append(f"{region} has no factor in prices.yaml: us-east-1 times {table.factor}, a guess")
    floor = tuple(_floor(document, table, notes))
    low = high = _head_hour(config, table) or 0.0
    for pool in pools(document):
        bounds = _pool_hour(document, pool, table)
        if bounds is None:
            notes.append(
                f"no price for {', '.join(name for _, name in pool.types)} ({pool.queue}/{pool.name})"
            )
            continue
        low, high = low + bounds[0] * pool.maximum, high + bounds[1] * pool.maximum
    if at(config, "HeadNode", "Networking", "SubnetId"):
        nat = table.other["nat_gateway_per_hour"] * table.month_hours
        notes.append(
            f"not counted: a NAT gateway if the private subnets have one (${nat:,.0f} a month), S3, "
            "traffic to the "
            f"internet (${table.other['s3_egress_per_gb']:.2f} per GB)"
        )
    return Costs(
        date=table.date,
        region=region,
        floor=floor,
        load_low_usd=low,
        load_high_usd=high,
        nodes=sum(pool.maximum for pool in pools(document)),
        notes=tuple(notes),
    )


def _floor(document: Document, table: Prices, notes: list[str]) -> Iterator[CostLine]:
    config = document.value
    head = at(config, "HeadNode", "InstanceType")
    hourly = _head_hour(config, table)
    if hourly is None:
        notes.append(f"no price for the head node {head}")
    else:
        yield CostLine(what=f"head node {head}, on demand", usd=hourly * table.month_hours)
    size = at(config, "HeadNode", "LocalStorage", "RootVolume", "Size") or 45
    yield CostLine(what=f"its disk, {size} GiB gp3", usd=size * table.per_gb_month("ebs_gp3"))
    yield CostLine(
        what="its public IPv4 address", usd=table.other["public_ipv4_per_hour"] * table.month_hours
    )
    if at(config, "Monitoring", "Dashboards", "CloudWatch", "Enabled") is not False:
        yield CostLine(
            what="CloudWatch dashboard (three are free)", usd=table.other["cloudwatch_dashboard_per_month"]
        )
    if at(config, "Monitoring", "Alarms", "Enabled") is not False:
        yield CostLine(what="its alarms", usd=_ALARMS * table.other["cloudwatch_alarm_per_month"])
    for pool in pools(document):
        bounds = _pool_hour(document, pool, table)
        if pool.minimum and bounds:
            yield CostLine(
                what=f"{pool.minimum} static node(s) of {pool.queue}/{pool.name}",
                usd=bounds[1] * pool.minimum * table.month_hours,
            )
    for _, storage in items(config, "SharedStorage"):
        yield from _storage(storage, table)


def _storage(storage: dict[str, Any], table: Prices) -> Iterator[CostLine]:
    name, kind = storage.get("MountDir"), storage.get("StorageType")
    if kind == "Efs":
        price = table.per_gb_month("efs_standard")
        yield CostLine(what=f"EFS at {name}: by what lies on it, ${price:.2f} per GB", usd=0.0)
    elif kind == "FsxLustre" and not at(storage, "FsxLustreSettings", "FileSystemId"):
        size = at(storage, "FsxLustreSettings", "StorageCapacity") or 1200
        deployment = str(at(storage, "FsxLustreSettings", "DeploymentType") or "SCRATCH_2").lower()
        yield CostLine(
            what=f"FSx for Lustre at {name}, {size} GiB",
            usd=size * table.per_gb_month(f"fsx_lustre_{deployment}"),
        )
    elif kind == "Ebs":
        size = at(storage, "EbsSettings", "Size") or 35
        yield CostLine(what=f"EBS at {name}, {size} GiB", usd=size * table.per_gb_month("ebs_gp3"))


def _head_hour(config: dict[str, Any], table: Prices) -> float | None:
    return table.per_hour(str(at(config, "HeadNode", "InstanceType")), "on-demand")


def _pool_hour(document: Document, pool: Pool, table: Prices) -> tuple[float, float] | None:
    """One node of a pool per hour, its disk included: the cheapest type and the dearest."""
    bought: Purchase = "spot" if pool.capacity == "SPOT" else "on-demand"
    hourly = [price for _, name in pool.types if (price := table.per_hour(name, bought)) is not None]
    if not hourly:
        return None
    queue = at(document.value, *pool.queue_path)
    size = at(queue, "ComputeSettings", "LocalStorage", "RootVolume", "Size") or 45
    disk = size * table.per_gb_month("ebs_gp3") / table.month_hours
    return min(hourly) + disk, max(hourly) + disk


def lines(bill: Costs) -> tuple[str, ...]:
    """The bill in words."""
    rows = [f"asleep, per month ({bill.region})  ${bill.floor_usd:10,.2f}"]
    rows += [f"  {line.what:48s} ${line.usd:10,.2f}" for line in bill.floor]
    rows.append(
        f"at full load, per hour ({bill.nodes} nodes)   ${bill.load_low_usd:,.2f} to "
        f"${bill.load_high_usd:,.2f}"
    )
    return (*rows, *(f"  {note}" for note in bill.notes))
