"""What an hour, a gigabyte and a request cost: a dated table, or what AWS said when it was last asked.

`prices.yaml` was written down by hand and needs no credentials. `vsr prices refresh` asks AWS's price list
and the Spot price history and keeps the answer for its region in the user's cache; that one is then used.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from vsr_hpc.errors import JobError

log = logging.getLogger(__name__)


Purchase = Literal["spot", "on-demand", "sagemaker"]
_REGION = re.compile(r"[a-z]{2}(-[a-z]+)+-\d{1,2}")
PURCHASES: tuple[Purchase, ...] = ("spot", "on-demand", "sagemaker")


class Refreshed(BaseModel):
    """What AWS said of one region: US dollars per hour by instance type (without `ml.`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    region: str
    date: str
    on_demand: dict[str, float]
    spot: dict[str, float]
    """The median over the zones of each one's latest price."""
    sagemaker: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """Prices of one region. `is_guess` where the table has no factor for the region and AWS was not asked."""

    date: str
    region: str
    factor: float
    is_guess: bool
    on_demand: Mapping[str, float]
    spot_share: Mapping[str, float]
    storage: Mapping[str, float]
    other: Mapping[str, float]
    month_hours: float
    sagemaker_share: Mapping[str, float]
    sagemaker: Mapping[str, float]
    """Serverless and data, by what is counted."""
    refreshed: Refreshed | None = None

    def per_hour(self, instance_type: str, purchase: Purchase) -> float | None:
        """US dollars per hour; None where the type is not known. `ml.` in front means SageMaker's price."""
        if instance_type.startswith("ml."):
            instance_type, purchase = instance_type.removeprefix("ml."), "sagemaker"
        asked = self._aws_price(instance_type, purchase)
        if asked is not None:
            return asked
        listed = self._aws_price(instance_type, "on-demand") or self._table_price(instance_type)
        return None if listed is None else listed * self._share(instance_type, purchase)

    def _aws_price(self, instance_type: str, purchase: Purchase) -> float | None:
        """The price that AWS itself gave at the last refresh; None where there was none."""
        if self.refreshed is None:
            return None
        tables = {
            "spot": self.refreshed.spot,
            "on-demand": self.refreshed.on_demand,
            "sagemaker": self.refreshed.sagemaker,
        }
        return tables[purchase].get(instance_type)

    def per_gb_month(self, kind: str) -> float:
        return self.storage[kind] * self.factor

    def text(self) -> str:
        """Where the prices are from, in words for below a table."""
        if self.refreshed is not None:
            return f"prices of {self.refreshed.date} from AWS, {self.region}"
        guess = f", {self.region} guessed as us-east-1 times {self.factor:g}" if self.is_guess else ""
        where = "" if self.is_guess else f", {self.region}"
        return f"list prices of {self.date}{where}{guess}, approximate; `vsr prices refresh` asks AWS"

    def _table_price(self, instance_type: str) -> float | None:
        listed = self.on_demand.get(instance_type)
        return None if listed is None else listed * self.factor

    def _share(self, instance_type: str, purchase: Purchase) -> float:
        if purchase == "on-demand":
            return 1.0
        shares = self.spot_share if purchase == "spot" else self.sagemaker_share
        family = instance_type.partition(".")[0]
        return shares.get(instance_type, shares.get(family, shares["default"]))


def hourly_price(instance_type: str, purchase: Purchase, region: str) -> float | None:
    """US dollars for an hour of one instance; None where no table knows the type.

    `ml.g5.xlarge`, or "sagemaker" as the purchase, gives what SageMaker asks for it.
    """
    return prices(region).per_hour(instance_type, purchase)


def prices(region: str) -> Prices:
    """What is known of a region: as AWS last said, else by the table in the package."""
    if not _REGION.fullmatch(region):
        return _packaged(region)
    path = refreshed_path(region)
    try:
        stamp = path.stat().st_mtime_ns
    except OSError:
        return _packaged(region)
    return _overlaid(region, path, stamp)


def check_region(region: str) -> None:
    """JobError where AWS has no region of that name, as far as botocore knows."""
    import botocore.session

    session = botocore.session.get_session()
    known = {
        name
        for partition in session.get_available_partitions()
        for name in session.get_available_regions("ec2", partition)
    }
    if region not in known:
        close = difflib.get_close_matches(region, sorted(known), n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ", for example us-east-1 or eu-west-1"
        raise JobError(f"AWS has no region {region!r}{hint}")


def refreshed_path(region: str) -> Path:
    """Where AWS's answer for a region is kept. JobError where that is no name of a region."""
    if not _REGION.fullmatch(region):
        raise JobError(f"region {region!r} is not written as AWS does, for example us-east-1")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "vsr_hpc" / "prices" / f"{region}.json"


def save(refreshed: Refreshed) -> Path:
    """Keep AWS's answer, in one step, in place of an earlier one."""
    path = refreshed_path(refreshed.region)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        fresh.write_text(
            json.dumps(refreshed.model_dump(), indent=1, sort_keys=True) + "\n", encoding="utf-8"
        )
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    return path


@lru_cache(maxsize=16)
def _packaged(region: str) -> Prices:
    table = _read()
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
        sagemaker_share=MappingProxyType(table["sagemaker_share"]),
        sagemaker=MappingProxyType(table["sagemaker_usd"]),
    )


@lru_cache(maxsize=16)
def _overlaid(region: str, path: Path, stamp: int) -> Prices:
    try:
        refreshed = Refreshed.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as exc:
        log.warning("refreshed prices not used path=%s error=%s", path, str(exc).splitlines()[0])
        return _packaged(region)
    return replace(_packaged(region), refreshed=refreshed)


@lru_cache(maxsize=1)
def _read() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(files("vsr_hpc.aws").joinpath("prices.yaml").read_text("utf-8"))
    return content
