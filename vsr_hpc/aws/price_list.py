"""Asks AWS what instances cost now: the price list for on-demand and SageMaker, the history for Spot.

Needs credentials with pricing:GetProducts and ec2:DescribeSpotPriceHistory; nothing is bought or changed.
"""

from __future__ import annotations

import datetime
import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from vsr_hpc.aws.account import client
from vsr_hpc.aws.errors import explained
from vsr_hpc.aws.prices import Refreshed
from vsr_hpc.errors import JobError

MakeClient = Callable[[str, str], Any]
"""Gives a boto3 client for a service and a region."""

_PRICING_REGION = "us-east-1"
"""The price list answers only in a few regions, each for all regions."""
_PERMISSIONS = (
    "needed are pricing:GetProducts and ec2:DescribeSpotPriceHistory; "
    "the table in the package is used until prices are refreshed"
)
_LINUX = {
    "operatingSystem": "Linux",
    "tenancy": "Shared",
    "preInstalledSw": "NA",
    "capacitystatus": "Used",
}


def refresh(region: str, types: Iterable[str], *, make_client: MakeClient | None = None) -> Refreshed:
    """What AWS asks in a region for these instance types; one that it does not sell there is left out."""
    wanted = sorted(set(types))
    connect = make_client or client
    with explained("prices refresh", hint=_PERMISSIONS):
        pricing, ec2 = connect("pricing", _PRICING_REGION), connect("ec2", region)
        on_demand = dict(_known_prices(wanted, lambda name: _on_demand(pricing, region, name)))
        sagemaker = dict(_known_prices(wanted, lambda name: _sagemaker(pricing, region, name)))
        spot = spot_prices(ec2, wanted)
    if not on_demand:
        raise JobError(f"prices refresh: AWS knows no price of these types in {region!r}; is it a region?")
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return Refreshed(region=region, date=today, on_demand=on_demand, spot=spot, sagemaker=sagemaker)


def spot_prices(ec2: Any, types: list[str]) -> dict[str, float]:
    """The median over the zones of each one's latest price of the last day."""
    since = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    pages = ec2.get_paginator("describe_spot_price_history").paginate(
        InstanceTypes=types, ProductDescriptions=["Linux/UNIX"], StartTime=since
    )
    latest: dict[tuple[str, str], tuple[Any, float]] = {}
    for page in pages:
        for row in page["SpotPriceHistory"]:
            key = row["InstanceType"], row["AvailabilityZone"]
            if key not in latest or row["Timestamp"] > latest[key][0]:
                latest[key] = row["Timestamp"], float(row["SpotPrice"])
    zones: dict[str, list[float]] = defaultdict(list)
    for (name, _), (_, usd) in latest.items():
        zones[name].append(usd)
    return {name: statistics.median(prices) for name, prices in sorted(zones.items())}


def _known_prices(types: list[str], ask: Callable[[str], float | None]) -> Iterator[tuple[str, float]]:
    for name in types:
        usd = ask(name)
        if usd:
            yield name, usd


def _on_demand(pricing: Any, region: str, name: str) -> float | None:
    fields = {**_LINUX, "instanceType": name, "regionCode": region}
    return _cheapest(_products(pricing, "AmazonEC2", fields))


def _sagemaker(pricing: Any, region: str, name: str) -> float | None:
    products = _products(pricing, "AmazonSageMaker", {"instanceName": f"ml.{name}", "regionCode": region})
    hosted = (each for each in products if "Host:" in each["product"]["attributes"].get("usagetype", ""))
    return _cheapest(hosted)


def _products(pricing: Any, service: str, fields: dict[str, str]) -> Iterator[dict[str, Any]]:
    filters = [{"Type": "TERM_MATCH", "Field": key, "Value": value} for key, value in fields.items()]
    pages = pricing.get_paginator("get_products").paginate(ServiceCode=service, Filters=filters)
    for page in pages:
        for text in page["PriceList"]:
            yield json.loads(text)


def _cheapest(products: Iterable[dict[str, Any]]) -> float | None:
    """Dollars per hour of plain on-demand terms; products listed at nothing are no offers."""
    found = [
        float(dimension["pricePerUnit"]["USD"])
        for product in products
        for term in product.get("terms", {}).get("OnDemand", {}).values()
        for dimension in term["priceDimensions"].values()
        if dimension.get("unit") == "Hrs" and "USD" in dimension["pricePerUnit"]
    ]
    return min((usd for usd in found if usd > 0), default=None)
