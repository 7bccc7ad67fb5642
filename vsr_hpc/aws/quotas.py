"""Whether the account may have what is wanted: a new account's quotas are 0, AWS raises them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vsr_hpc.aws.errors import explained
from vsr_hpc.aws.instances import all_instances
from vsr_hpc.aws.limits import vcpu_quota
from vsr_hpc.errors import BackendError, JobError

Purchase = Literal["spot", "on-demand"]
_KINDS = ((re.compile(r"(g\d|gr\d|vt\d)"), "G and VT"), (re.compile(r"p\d"), "P"))
_STANDARD = re.compile(r"(a|c|d|h|i|im|is|m|mac|r|t|z)\d")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """A quota that is less than what is wanted."""

    code: str
    name: str
    service: str
    region: str
    has: float
    least: float
    """Below it nothing starts at all."""
    wanted: float
    unit: str

    @property
    def is_total(self) -> bool:
        return self.has < self.least

    def __str__(self) -> str:
        effect = (
            f"the smallest wish needs {self.least:g}, so nothing would start"
            if self.is_total
            else f"{self.wanted:g} are wanted, so the rest would never start"
        )
        return (
            f"the account's quota `{self.name}` in {self.region} is {self.has:g} {self.unit}; {effect}. Ask "
            f"AWS for more: aws service-quotas request-service-quota-increase --service-code {self.service} "
            f"--quota-code {self.code} --desired-value {self.wanted:g} --region {self.region}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """Instances that are wanted: of any of these types, so many vCPUs at most."""

    types: tuple[str, ...]
    purchase: Purchase
    vcpus: int


def kind_of(instance_type: str) -> str | None:
    """What EC2 counts the type's vCPUs with; None for what this package has no use for."""
    for pattern, kind in _KINDS:
        if pattern.match(instance_type):
            return kind
    return "standard" if _STANDARD.match(instance_type) else None


def vcpus_of(types: Iterable[str]) -> tuple[int, ...]:
    """Of those types that the package knows; (1,) where it knows none."""
    known = all_instances()
    return tuple(known[each].vcpus for each in types if each in known) or (1,)


def find_shortages(quotas: Any, wishes: Iterable[Wish]) -> Iterator[Shortage]:
    """Those of EC2's quotas that are too small. `quotas` is a client of Service Quotas.

    Wishes of one kind and purchase share a quota. What runs already is not counted.
    """
    least: dict[tuple[str, Purchase], int] = {}
    wanted: dict[tuple[str, Purchase], int] = {}
    for wish in wishes:
        for kind in {kind_of(each) for each in wish.types} - {None}:
            assert kind is not None
            key, smallest = (kind, wish.purchase), min(vcpus_of(wish.types))
            least[key] = min(least.get(key, smallest), smallest)
            wanted[key] = wanted.get(key, 0) + wish.vcpus
    for key in wanted:
        code, name = vcpu_quota(*key)
        has = quotas.get_service_quota(ServiceCode="ec2", QuotaCode=code)["Quota"]["Value"]
        if has < wanted[key]:
            yield Shortage(
                code=code, name=name, service="ec2", region=quotas.meta.region_name, has=has,
                least=least[key], wanted=wanted[key], unit="vCPUs",
            )  # fmt: skip


def find_sagemaker_shortages(quotas: Any, counts: Mapping[str, int], use: str) -> Iterator[Shortage]:
    """Those of SageMaker's quotas that are too small: instances by type, for "endpoint usage" for example."""
    names = {f"{kind} for {use}": count for kind, count in counts.items()}
    pages = quotas.get_paginator("list_service_quotas").paginate(ServiceCode="sagemaker")
    for found in (each for page in pages for each in page["Quotas"] if each["QuotaName"] in names):
        wanted = names[found["QuotaName"]]
        if found["Value"] < wanted:
            yield Shortage(
                code=found["QuotaCode"], name=found["QuotaName"], service="sagemaker",
                region=quotas.meta.region_name, has=found["Value"], least=1, wanted=wanted, unit="instances",
            )  # fmt: skip


def look(find: Iterator[Shortage]) -> tuple[tuple[Shortage, ...], str]:
    """What is short; and, where the account does not let its quotas be read, the sentence that says so."""
    try:
        with explained("look at the account's quotas"):
            return tuple(find), ""
    except (JobError, BackendError) as exc:
        return (), f"quotas were not looked at: {exc}"
