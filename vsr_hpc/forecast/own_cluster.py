"""What a job takes on a Slurm cluster of one's own: no price, and the GPU that Slurm names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from vsr_hpc.aws.instances import all_instances
from vsr_hpc.aws.prices import Prices
from vsr_hpc.executors.slurm.commands import Partition, partitions
from vsr_hpc.forecast.job_ways import (
    CPU_TYPES,
    JobPlace,
    Option,
    Range,
    RefusedPlace,
    Work,
    options,
)
from vsr_hpc.forecast.profiles import Profile
from vsr_hpc.job.spec import JobSpec

_BOOT = Range(low=2, mid=20, high=120)
"""A worker's wait for a node that is free; how long the queue is nobody knows."""


def cluster_ways(
    job: JobSpec, work: Work, prices: Prices, profiles: tuple[Profile, ...], counts: Iterable[int]
) -> Iterator[Option | RefusedPlace]:
    """The job's first partition with each number of workers, or why no time can be said of it."""
    partition = _partition_of(job)
    if partition is None:
        yield RefusedPlace(where="slurm", label="this cluster", reason="sinfo does not name its partition")
        return
    on = "CPU" if work.card.is_filter else " or ".join(partition.gpu_types) or "GPU of unnamed type"
    label = f"this cluster, {partition.name} ({on})"
    likeness = _like(partition, work, prices)
    if not work.card.is_filter and not partition.gpus:
        yield RefusedPlace(where="slurm", label=label, reason="the partition has no GPU")
    elif likeness is None:
        reason = "no speed of this GPU is known; `vsr bench` on a node of the partition measures it"
        yield RefusedPlace(where="slurm", label=label, reason=reason)
    else:
        place = JobPlace(
            where="slurm", purchase="on-demand", label=label, boot=_BOOT, idle_s=0, types=(likeness,)
        )
        for found in options(place, work, prices, profiles, counts):
            yield replace(found, purchase=None, instance=None, usd=None)


def _partition_of(job: JobSpec) -> Partition | None:
    found = partitions()
    wanted = job.slurm.partitions[:1]
    return next((each for each in found if not wanted or each.name == wanted[0]), None)


def _like(partition: Partition, work: Work, prices: Prices) -> str | None:
    """The smallest instance type with this GPU, whose speed stands for a node's.

    `options` leaves out a type without a price, though the price itself is not shown.
    """
    if work.card.is_filter:
        return CPU_TYPES[0]
    wanted = {name.lower() for name in partition.gpu_types}
    fitting = [
        each
        for each in all_instances().values()
        if each.gpu.lower() in wanted and prices.per_hour(each.name, "on-demand")
    ]
    return min(fitting, key=lambda each: (each.gpus, each.vcpus)).name if fitting else None
