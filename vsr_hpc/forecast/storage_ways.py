"""Where a clip, its run and its output should lie: S3, EFS, FSx for Lustre or EBS, and what each costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vsr_hpc.aws.prices import Prices

Storage = Literal["s3", "efs", "fsx", "ebs"]

GB = 1_000_000_000
_FSX_LEAST_GIB = 1200
_FSX_MBPS_PER_TIB = 200
_EBS_LEAST_GIB = 1
_CENT = 0.01
_S3_BYTES_PER_S_NODE = 150e6
"""What a node reads and writes of S3 by a few streams, about."""
LABELS: dict[Storage, str] = {"s3": "S3", "efs": "EFS", "fsx": "FSx for Lustre", "ebs": "EBS"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What a run leaves and moves."""

    kept_bytes: int
    """Source, segments and output side by side."""
    moved_bytes: int
    """Read and written while it runs."""
    requests: int
    workers: int
    bytes_per_s_per_worker: float
    """Frames compressed: what a worker needs of its storage."""
    is_one_machine: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageOffer:
    storage: Storage
    fits: bool
    usd_per_month: float
    """To keep it all for a month."""
    usd_per_run: float
    """To move it once."""
    reason: str

    @property
    def label(self) -> str:
        return LABELS[self.storage]


def storage_offers(run: Footprint, prices: Prices) -> tuple[StorageOffer, ...]:
    """All four; the first is the advice: the cheapest that fits and is fast enough, S3 where cents decide."""
    offers = (_s3(run, prices), _efs(run, prices), _fsx(run, prices), _ebs(run, prices))
    return tuple(
        sorted(offers, key=lambda each: (not each.fits, max(_CENT, each.usd_per_month + each.usd_per_run)))
    )


def _s3(run: Footprint, prices: Prices) -> StorageOffer:
    is_fast = run.bytes_per_s_per_worker <= _S3_BYTES_PER_S_NODE
    return StorageOffer(
        storage="s3",
        fits=is_fast,
        usd_per_month=run.kept_bytes / GB * prices.per_gb_month("s3_standard"),
        usd_per_run=run.requests / 1000 * prices.other["s3_put_per_1000"],
        reason="any number of nodes at once, nothing to run or to size, cheapest to keep"
        if is_fast
        else f"a worker needs {run.bytes_per_s_per_worker / 1e6:.0f} MB/s, one node gets about "
        f"{_S3_BYTES_PER_S_NODE / 1e6:.0f}",
    )


def _efs(run: Footprint, prices: Prices) -> StorageOffer:
    moved = prices.other["efs_read_per_gb"] / 2 + prices.other["efs_write_per_gb"] / 2
    factor = prices.per_gb_month("efs_standard") / prices.per_gb_month("s3_standard")
    return StorageOffer(
        storage="efs",
        fits=True,
        usd_per_month=run.kept_bytes / GB * prices.per_gb_month("efs_standard"),
        usd_per_run=run.moved_bytes / GB * moved,
        reason=f"files for all nodes, without change to programs; {factor:.0f} times S3's price",
    )


def _fsx(run: Footprint, prices: Prices) -> StorageOffer:
    held_gib = max(_FSX_LEAST_GIB, -(-run.kept_bytes // (_FSX_LEAST_GIB << 30)) * _FSX_LEAST_GIB)
    return StorageOffer(
        storage="fsx",
        fits=True,
        usd_per_month=held_gib * prices.per_gb_month("fsx_lustre_scratch_2"),
        usd_per_run=0.0,
        reason=f"the fastest ({held_gib / 1024 * _FSX_MBPS_PER_TIB:.0f} MB/s), but {_FSX_LEAST_GIB} GiB at "
        "least; for many nodes that read uncompressed frames",
    )


def _ebs(run: Footprint, prices: Prices) -> StorageOffer:
    size_gib = max(_EBS_LEAST_GIB, -(-run.kept_bytes // (1 << 30)))
    is_alone = run.is_one_machine or run.workers == 1
    return StorageOffer(
        storage="ebs",
        fits=is_alone,
        usd_per_month=size_gib * prices.per_gb_month("ebs_gp3"),
        usd_per_run=0.0,
        reason="a disk of one instance, lost to the run when that instance goes"
        if is_alone
        else "a disk of one instance: other workers cannot see it",
    )
