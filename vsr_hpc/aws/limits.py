"""What AWS allows: the numbers of `limits.yaml`, each with its page and the day it was read."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from typing import Any

import yaml


def limit(name: str) -> int:
    return int(_table()["limits"][name]["value"])


def vcpu_quota(kind: str, purchase: str) -> tuple[str, str]:
    """(code, name) of the quota of vCPUs, for example of `G and VT` instances bought as `spot`."""
    found = _table()["quotas"][kind][purchase]
    return str(found["code"]), str(found["name"])


@lru_cache(maxsize=1)
def _table() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(files("vsr_hpc.aws").joinpath("limits.yaml").read_text("utf-8"))
    return found
