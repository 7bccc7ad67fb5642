"""What EC2 instance types are: EC2's own facts in `instances.yaml`, readable without credentials.

What they cost is in `prices`.
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


def _read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(files("vsr_hpc.aws").joinpath(name).read_text("utf-8"))
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
        raise JobError(f"{name!r} is not an instance type that vsr_hpc/aws/instances.yaml knows; {hint}")
    return known[name]
