"""Our own rules on instances, Spot and money: what ParallelCluster lets through, or sees only online."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vsr_hpc.aws.cluster.yaml_document import ConfigFinding, Document, Level, Path, at, items
from vsr_hpc.aws.instances import InstanceType, all_instances
from vsr_hpc.aws.prices import Purchase, prices

QUEUES: Path = ("Scheduling", "SlurmQueues")
_SPOT = ("lowest-price", "capacity-optimized", "price-capacity-optimized", "capacity-optimized-prioritized")
_ON_DEMAND = ("lowest-price", "prioritized")
AMI_GIB = 45


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A configuration under examination."""

    document: Document
    gpu_memory_mib: int = 0
    """What the chosen model needs of one GPU; 0 where none was chosen."""
    model: str = ""

    @property
    def region(self) -> str:
        return str(at(self.document.value, "Region") or "us-east-1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """One compute resource with the queue it belongs to."""

    queue_path: Path
    path: Path
    queue: str
    name: str
    capacity: str
    types: tuple[tuple[Path, str], ...]
    minimum: int
    maximum: int
    subnets: tuple[str, ...]

    @property
    def known(self) -> tuple[InstanceType, ...]:
        catalogue = all_instances()
        return tuple(catalogue[name] for _, name in self.types if name in catalogue)

    @property
    def has_gpu(self) -> bool:
        return any(each.gpus for each in self.known)


Rule = Callable[[Subject], Iterator[ConfigFinding]]


def pools(document: Document) -> tuple[Pool, ...]:
    """Every compute resource of every queue, as far as it is well formed."""
    found: list[Pool] = []
    for queue_path, queue in items(document.value, *QUEUES):
        subnets = at(queue, "Networking", "SubnetIds")
        for tail, resource in items(queue, "ComputeResources"):
            path = (*queue_path, *tail)
            types = [
                ((*path, *each, "InstanceType"), str(value.get("InstanceType")))
                for each, value in items(resource, "Instances")
            ]
            if isinstance(resource.get("InstanceType"), str):
                types.append(((*path, "InstanceType"), resource["InstanceType"]))
            found.append(
                Pool(
                    queue_path=queue_path,
                    path=path,
                    queue=str(queue.get("Name", "")),
                    name=str(resource.get("Name", "")),
                    capacity=str(queue.get("CapacityType", "ONDEMAND")),
                    types=tuple(types),
                    minimum=_count(resource.get("MinCount"), 0),
                    maximum=_count(resource.get("MaxCount"), 10),
                    subnets=tuple(map(str, subnets)) if isinstance(subnets, list) else (),
                )
            )
    return tuple(found)


def _count(value: object, default: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def unknown_types(subject: Subject) -> Iterator[ConfigFinding]:
    head: Path = ("HeadNode", "InstanceType")
    named = [(head, str(at(subject.document.value, *head)))] if at(subject.document.value, *head) else []
    for path, name in [*named, *(each for pool in pools(subject.document) for each in pool.types)]:
        if name not in all_instances():
            family = [each for each in all_instances() if each.startswith(name.partition(".")[0] + ".")]
            hint = f"; there are {', '.join(family[:5])}" if family else ""
            text = (
                f"{name} is not an instance type of vsr_hpc/aws/instances.yaml (mistyped, or to be added "
                f"there){hint}"
            )
            yield ConfigFinding(level="error", path=path, rule="type-unknown", message=text)


def mixed_types(subject: Subject) -> Iterator[ConfigFinding]:
    for pool in pools(subject.document):
        for rule, unit, count in (("vcpus", "vCPUs", "vcpus"), ("gpus", "GPUs", "gpus")):
            first = pool.known[0] if pool.known else None
            for path, name in pool.types:
                each = all_instances().get(name)
                if first and each and getattr(each, count) != getattr(first, count):
                    text = (
                        f"{name} has {getattr(each, count)} {unit}, {first.name} beside it "
                        f"{getattr(first, count)}: "
                        f"one compute resource takes one number of {unit}; give {name} a resource of its own"
                    )
                    yield ConfigFinding(level="error", path=path, rule=rule, message=text)
                    break
        seen: set[str] = set()
        for path, name in pool.types:
            if name in seen:
                text = f"{name} is listed twice"
                yield ConfigFinding(level="error", path=path, rule="type-twice", message=text)
            seen.add(name)


def architecture(subject: Subject) -> Iterator[ConfigFinding]:
    head = all_instances().get(str(at(subject.document.value, "HeadNode", "InstanceType")))
    for pool in pools(subject.document):
        for path, name in pool.types:
            each = all_instances().get(name)
            if head and each and each.arch != head.arch:
                text = (
                    f"{name} is {each.arch}, the head node {head.name} is {head.arch}; a cluster has one "
                    "architecture"
                )
                yield ConfigFinding(level="error", path=path, rule="architecture", message=text)


def head_node_size(subject: Subject) -> Iterator[ConfigFinding]:
    path: Path = ("HeadNode", "InstanceType")
    head = all_instances().get(str(at(subject.document.value, *path)))
    if head is None:
        return
    nodes = sum(pool.maximum for pool in pools(subject.document))
    memory_gib = head.memory_mib / 1024
    if memory_gib < min(nodes / 25 + 0.6, 16):
        fits = int((memory_gib - 0.6) * 25)
        text = (
            f"{head.name} has {memory_gib:g} GiB and manages at most {max(fits, 0)} compute nodes, but "
            "the MaxCounts "
            f"add up to {nodes}; take a larger head node or lower a MaxCount"
        )
        yield ConfigFinding(level="error", path=path, rule="head-size", message=text)
    if head.gpus:
        text = f"{head.name}: the head node computes nothing; a t3.medium does its work for a fraction"
        yield ConfigFinding(level="warning", path=path, rule="head-gpu", message=text)


def counts(subject: Subject) -> Iterator[ConfigFinding]:
    cost = prices(subject.region)
    for pool in pools(subject.document):
        if pool.minimum > pool.maximum:
            text = f"MinCount={pool.minimum} is more than MaxCount={pool.maximum}"
            yield ConfigFinding(level="error", path=(*pool.path, "MinCount"), rule="counts", message=text)
        elif pool.minimum > 0:
            bought: Purchase = "spot" if pool.capacity == "SPOT" else "on-demand"
            hourly = max((cost.per_hour(name, bought) or 0.0 for _, name in pool.types), default=0.0)
            text = (
                f"MinCount={pool.minimum}: these nodes are paid for day and night, up to about "
                f"${hourly * cost.month_hours * pool.minimum:,.0f} a month; 0 lets the queue sleep"
            )
            yield ConfigFinding(
                level="warning", path=(*pool.path, "MinCount"), rule="static-nodes", message=text
            )
        if pool.maximum < 1:
            text = f"MaxCount={pool.maximum}: this compute resource can never have a node"
            yield ConfigFinding(level="error", path=(*pool.path, "MaxCount"), rule="counts", message=text)


def purchase(subject: Subject) -> Iterator[ConfigFinding]:
    """Capacity type, allocation strategy, price caps and reservations that don't go together."""
    for queue_path, queue in items(subject.document.value, *QUEUES):
        capacity = str(queue.get("CapacityType", "ONDEMAND"))
        strategy = queue.get("AllocationStrategy")
        allowed = _SPOT if capacity == "SPOT" else _ON_DEMAND
        if strategy and strategy not in allowed:
            text = f"{strategy} is not an allocation strategy of {capacity}; there {_are(allowed)}"
            yield ConfigFinding(
                level="error", path=(*queue_path, "AllocationStrategy"), rule="strategy", message=text
            )
        if capacity == "SPOT" and strategy == "lowest-price":
            text = (
                "lowest-price picks the pools that are reclaimed most; price-capacity-optimized costs "
                "hardly more"
            )
            yield ConfigFinding(
                level="warning", path=(*queue_path, "AllocationStrategy"), rule="strategy", message=text
            )
        if capacity != "SPOT" and "spot" in str(queue.get("Name", "")).lower():
            text = (
                f"queue {queue['Name']} is bought {capacity}; write CapacityType: SPOT or give it another "
                "name"
            )
            path = (*queue_path, "CapacityType" if "CapacityType" in queue else "Name")
            yield ConfigFinding(level="warning", path=path, rule="spot-in-name", message=text)
        if capacity == "SPOT" and at(queue, "CapacityReservationTarget"):
            path = (*queue_path, "CapacityReservationTarget")
            yield ConfigFinding(level="error", path=path, rule="spot-reservation", message=_RESERVATION)
    for pool in pools(subject.document):
        resource = at(subject.document.value, *pool.path)
        if pool.capacity == "SPOT" and at(resource, "CapacityReservationTarget"):
            path = (*pool.path, "CapacityReservationTarget")
            yield ConfigFinding(level="error", path=path, rule="spot-reservation", message=_RESERVATION)
        if "SpotPrice" in resource:
            text = (
                "a price cap brings more interruptions and no saving: Spot is never dearer than on-demand"
                if pool.capacity == "SPOT"
                else f"SpotPrice means nothing in a queue bought {pool.capacity}: it is ignored in silence"
            )
            level: Level = "warning" if pool.capacity == "SPOT" else "error"
            yield ConfigFinding(level=level, path=(*pool.path, "SpotPrice"), rule="spot-price", message=text)
        for path, name in pool.types:
            known = all_instances().get(name)
            if pool.capacity == "SPOT" and known and not known.spot:
                text = f"{name} is not sold as Spot"
                yield ConfigFinding(level="error", path=path, rule="not-spot", message=text)


_RESERVATION = (
    "Spot instances never use a capacity reservation: you would pay for the reservation and for Spot; "
    "drop it, or make the queue ONDEMAND"
)


def _are(names: tuple[str, ...]) -> str:
    return f"are {', '.join(names)}"


def spot_spread(subject: Subject) -> Iterator[ConfigFinding]:
    """Spot wants many pools: zones times types; and something to fall back on."""
    all_pools = pools(subject.document)
    for queue_path, queue in items(subject.document.value, *QUEUES):
        subnets = at(queue, "Networking", "SubnetIds")
        path = (*queue_path, "Networking", "SubnetIds")
        if isinstance(subnets, list) and len(set(map(str, subnets))) < len(subnets):
            yield ConfigFinding(
                level="error", path=path, rule="subnet-twice", message="a subnet is listed twice"
            )
        if queue.get("CapacityType") == "SPOT" and isinstance(subnets, list) and len(subnets) == 1:
            text = (
                "one subnet is one Availability Zone: when its Spot capacity is gone the queue stands still; "
                "give one subnet of each zone"
            )
            yield ConfigFinding(level="warning", path=path, rule="one-zone", message=text)
    for pool in all_pools:
        if pool.capacity == "SPOT" and len(pool.types) == 1:
            text = (
                f"Spot with one instance type ({pool.types[0][1]}): list others of the same vCPU and GPU "
                "count"
            )
            yield ConfigFinding(level="warning", path=pool.types[0][0], rule="one-type", message=text)
        single = at(subject.document.value, *pool.path, "InstanceType")
        if single and len(pool.subnets) > 1:
            text = (
                "InstanceType goes with one subnet only; write `Instances: [{InstanceType: …}]` for "
                "several zones"
            )
            yield ConfigFinding(
                level="error", path=(*pool.path, "InstanceType"), rule="single-type", message=text
            )
    spot_gpu = [pool for pool in all_pools if pool.capacity == "SPOT" and pool.has_gpu]
    if spot_gpu and not any(pool.capacity == "ONDEMAND" and pool.has_gpu for pool in all_pools):
        text = (
            "GPUs on Spot only: when Spot is dry nothing runs; add an on-demand GPU queue (it costs "
            "nothing idle)"
        )
        yield ConfigFinding(level="warning", path=spot_gpu[0].queue_path, rule="no-fallback", message=text)


def gpus(subject: Subject) -> Iterator[ConfigFinding]:
    """GPUs that are large enough and looked after."""
    for pool in pools(subject.document):
        for path, name in pool.types:
            each = all_instances().get(name)
            if each and each.gpus and subject.gpu_memory_mib > each.gpu_memory_mib:
                text = (
                    f"one {each.gpu} of {name} has {each.gpu_memory_mib} MiB, "
                    f"{subject.model or 'the model'} needs "
                    f"about {subject.gpu_memory_mib}; take out {name} or choose another model"
                )
                yield ConfigFinding(level="error", path=path, rule="gpu-memory", message=text)
    all_pools = pools(subject.document)
    for queue_path, queue in items(subject.document.value, *QUEUES):
        mine = [pool for pool in all_pools if pool.queue_path == queue_path and pool.known]
        enabled = at(queue, "HealthChecks", "Gpu", "Enabled")
        has_gpu = any(pool.has_gpu for pool in mine)
        if has_gpu and not enabled:
            text = "no GPU health check: a node with a broken GPU takes shard after shard and fails them"
            yield ConfigFinding(
                level="warning", path=(*queue_path, "HealthChecks"), rule="gpu-health", message=text
            )
        if mine and not has_gpu and enabled:
            text = "a GPU health check on types without a GPU; ParallelCluster lets it through"
            yield ConfigFinding(
                level="error",
                path=(*queue_path, "HealthChecks", "Gpu", "Enabled"),
                rule="gpu-health",
                message=text,
            )
        if queue.get("JobExclusiveAllocation") and any(each.gpus > 1 for pool in mine for each in pool.known):
            text = (
                "JobExclusiveAllocation gives a job a node of several GPUs, while a worker uses one: the "
                "rest idle"
            )
            path = (*queue_path, "JobExclusiveAllocation")
            yield ConfigFinding(level="warning", path=path, rule="exclusive", message=text)


def network_features(subject: Subject) -> Iterator[ConfigFinding]:
    """Placement groups and EFA are for tightly coupled jobs, which ours are not."""
    for queue_path, queue in items(subject.document.value, *QUEUES):
        subnets = at(queue, "Networking", "SubnetIds") or []
        places = [
            (queue_path, queue),
            *(((*queue_path, *tail), each) for tail, each in items(queue, "ComputeResources")),
        ]
        for path, each in places:
            group = ("Networking", "PlacementGroup", "Enabled")
            if at(each, *group):
                several = isinstance(subnets, list) and len(subnets) > 1
                text = (
                    "a placement group holds one Availability Zone, this queue has several"
                    if several
                    else ("workers don't talk to each other: a placement group only makes capacity scarcer")
                )
                level: Level = "error" if several else "warning"
                yield ConfigFinding(level=level, path=(*path, *group), rule="placement", message=text)
            if at(each, "Efa", "Enabled"):
                text = "workers don't talk to each other, and small GPU types have no EFA; take it out"
                yield ConfigFinding(level="error", path=(*path, "Efa", "Enabled"), rule="efa", message=text)


RULES: tuple[Rule, ...] = (
    unknown_types,
    mixed_types,
    architecture,
    head_node_size,
    counts,
    purchase,
    spot_spread,
    gpus,
    network_features,
)
