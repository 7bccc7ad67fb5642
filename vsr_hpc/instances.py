"""What EC2 instance types are and roughly cost: two dated tables and how to read them.

`instances.yaml` holds facts (EC2's own DescribeInstanceTypes), `prices.yaml` approximate list prices.
Nothing here calls AWS, so it also works on a laptop without credentials.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Literal

import yaml

from vsr_hpc.errors import JobError

Purchase = Literal["spot", "on-demand"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceType:
    name: str
    vcpus: int
    cores: int
    memory_mib: int
    gpus: int = 0
    gpu: str = ""
    gpu_memory_mib: int = 0
    nvme_gb: int = 0
    arch: Literal["x86_64", "arm64"] = "x86_64"
    spot: bool = True
    network_cards: int = 1

    @property
    def family(self) -> str:
        return self.name.partition(".")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """Approximate list prices of one region; `is_guess` where the region has no factor of its own."""

    date: str
    region: str
    factor: float
    is_guess: bool
    on_demand: Mapping[str, float]
    spot_share: Mapping[str, float]
    storage: Mapping[str, float]
    other: Mapping[str, float]
    month_hours: float

    def per_hour(self, instance_type: str, purchase: Purchase) -> float | None:
        """US dollars per hour, or None where the table does not know the type."""
        listed = self.on_demand.get(instance_type)
        if listed is None:
            return None
        if purchase == "on-demand":
            return listed * self.factor
        family = instance_type.partition(".")[0]
        return listed * self.factor * self.spot_share.get(family, self.spot_share["default"])

    def per_gb_month(self, kind: str) -> float:
        return self.storage[kind] * self.factor


def _read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(files("vsr_hpc").joinpath(name).read_text("utf-8"))
    return content


@lru_cache(maxsize=1)
def all_instances() -> Mapping[str, InstanceType]:
    rows = _read("instances.yaml")["instances"]
    return MappingProxyType({name: InstanceType(name=name, **row) for name, row in rows.items()})


def find_instance(name: str) -> InstanceType:
    known = all_instances()
    if name not in known:
        family = name.partition(".")[0]
        near = [each for each in known if each.startswith(family + ".")][:6]
        hint = f"of that family it knows {', '.join(near)}" if near else f"it knows {len(known)} others"
        raise JobError(f"{name!r} is not an instance type that vsr_hpc/instances.yaml knows; {hint}")
    return known[name]


@lru_cache(maxsize=16)
def prices(region: str) -> Prices:
    table = _read("prices.yaml")
    factors = table["region_factor"]
    return Prices(
        date=str(table["date"]),
        region=region,
        factor=float(factors.get(region, factors["other"])),
        is_guess=region not in factors,
        on_demand=MappingProxyType(table["on_demand_usd_per_hour"]),
        spot_share=MappingProxyType(table["spot_share"]),
        storage=MappingProxyType(table["storage_usd_per_gb_month"]),
        other=MappingProxyType(table["other_usd"]),
        month_hours=float(table["month_hours"]),
    )
