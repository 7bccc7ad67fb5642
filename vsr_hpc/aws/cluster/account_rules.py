"""What only the account can tell: subnets, endpoints, keys, offerings, quotas."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from botocore.exceptions import ClientError

from vsr_hpc.aws.account import client
from vsr_hpc.aws.cluster.instance_rules import QUEUES, Subject, pools
from vsr_hpc.aws.cluster.yaml_document import ConfigFinding, Path, at, items
from vsr_hpc.aws.errors import error_code, explained
from vsr_hpc.aws.instances import all_instances
from vsr_hpc.aws.limits import vcpu_quota
from vsr_hpc.aws.new_account import has_spot_role, without_spot_role
from vsr_hpc.aws.quotas import Purchase, Wish, find_shortages, kind_of
from vsr_hpc.errors import BackendError, JobError


def examine(subject: Subject, make_client: Callable[[str], Any] | None = None) -> Iterator[ConfigFinding]:
    """Everything the account can say about a configuration; what it won't say becomes an info finding."""

    def connect(service: str) -> Any:  # a check is an offer, so it gives up soon where AWS does not answer
        return client(service, subject.region, timeout_s=20, attempts=3)

    make = make_client or connect
    for what, look in _LOOKS.items():
        try:
            with explained(f"look at {what}"):
                yield from look(subject, make)
        except (JobError, BackendError) as exc:
            yield ConfigFinding(level="info", rule="account", message=f"not checked: {exc}")


def _queue_subnets(subject: Subject) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path, queue in items(subject.document.value, *QUEUES):
        for index, subnet in enumerate(at(queue, "Networking", "SubnetIds") or ()):
            found.setdefault(str(subnet), (*path, "Networking", "SubnetIds", index))
    return found


def _network(subject: Subject, connect: Callable[[str], Any]) -> Iterator[ConfigFinding]:
    ec2 = connect("ec2")
    wanted = _queue_subnets(subject)
    zones, networks = {}, {}
    for subnet, path in wanted.items():
        try:
            facts = ec2.describe_subnets(SubnetIds=[subnet])["Subnets"][0]
        except ClientError as exc:
            if "NotFound" not in error_code(exc):
                raise
            text = f"{subnet} does not exist in {subject.region}"
            yield ConfigFinding(level="error", path=path, rule="subnet", message=text)
            continue
        zones[subnet], networks[subnet] = facts["AvailabilityZone"], facts["VpcId"]
    for zone, count in Counter(zones.values()).items():
        if count > 1:
            path = next(wanted[subnet] for subnet in zones if zones[subnet] == zone)
            text = f"{count} of the subnets lie in {zone}; give one subnet of each Availability Zone"
            yield ConfigFinding(level="error", path=path, rule="zones", message=text)
    yield from _endpoint(ec2, wanted, networks, subject.region)


def _endpoint(
    ec2: Any, wanted: dict[str, Path], networks: dict[str, str], region: str
) -> Iterator[ConfigFinding]:
    """Without a gateway endpoint every byte from S3 goes through the NAT gateway, at 0.045 USD per GB."""
    for network in sorted(set(networks.values())):
        filters = [{"Name": "vpc-id", "Values": [network]}]
        endpoints = [
            each
            for each in ec2.describe_vpc_endpoints(Filters=filters)["VpcEndpoints"]
            if each["ServiceName"].endswith(".s3") and each.get("VpcEndpointType", "Gateway") == "Gateway"
        ]
        routed = {table for each in endpoints for table in each.get("RouteTableIds", ())}
        tables = ec2.describe_route_tables(Filters=filters)["RouteTables"]
        for subnet in (name for name in networks if networks[name] == network):
            table = _table_of(subnet, tables)
            if not endpoints or (routed and table not in routed):
                text = (
                    f"no S3 gateway endpoint for {subnet} ({network}): all frames would pass the NAT "
                    "gateway at "
                    "0.045 USD per GB, or not at all; an endpoint is free: aws ec2 create-vpc-endpoint "
                    "--vpc-id "
                    f"{network} --service-name com.amazonaws.{region}.s3 --route-table-ids {table}"
                )
                yield ConfigFinding(level="warning", path=wanted[subnet], rule="s3-endpoint", message=text)


def _table_of(subnet: str, tables: list[dict[str, Any]]) -> str:
    main = ""
    for table in tables:
        for link in table.get("Associations", ()):
            if link.get("SubnetId") == subnet:
                return str(table["RouteTableId"])
            if link.get("Main"):
                main = str(table["RouteTableId"])
    return main


def _offerings(subject: Subject, connect: Callable[[str], Any]) -> Iterator[ConfigFinding]:
    """An instance type that no zone of the region has; one that the queue's zones lack is only a note."""
    types = sorted(
        {name for pool in pools(subject.document) for _, name in pool.types if name in all_instances()}
    )
    pages = connect("ec2").get_paginator("describe_instance_type_offerings")
    offered = {
        each["InstanceType"]
        for page in pages.paginate(
            LocationType="region", Filters=[{"Name": "instance-type", "Values": types}]
        )
        for each in page["InstanceTypeOfferings"]
    }
    for pool in pools(subject.document):
        for path, name in pool.types:
            if name in types and name not in offered:
                text = f"{name} is not offered in {subject.region}; take it out or choose another region"
                yield ConfigFinding(level="error", path=path, rule="offering", message=text)


def _key(subject: Subject, connect: Callable[[str], Any]) -> Iterator[ConfigFinding]:
    path: Path = ("HeadNode", "Ssh", "KeyName")
    name = at(subject.document.value, *path)
    system = str(at(subject.document.value, "Image", "Os") or "")
    if not name:
        return
    try:
        pair = connect("ec2").describe_key_pairs(KeyNames=[name])["KeyPairs"][0]
    except ClientError as exc:
        if "NotFound" not in error_code(exc):
            raise
        yield ConfigFinding(
            level="error", path=path, rule="key", message=f"no EC2 key pair {name} in {subject.region}"
        )
        return
    if system.startswith("ubuntu") and pair.get("KeyType") == "rsa":
        text = f"key pair {name} is RSA, which {system} refuses; make an ed25519 one"
        yield ConfigFinding(level="error", path=path, rule="key", message=text)


def _quotas(subject: Subject, connect: Callable[[str], Any]) -> Iterator[ConfigFinding]:
    """vCPUs at full load against the account's quota, by kind of instance and purchase."""
    wishes: list[Wish] = []
    first: dict[str, Path] = {}
    for pool in pools(subject.document):
        if pool.known:
            types = tuple(each.name for each in pool.known)
            purchase: Purchase = "spot" if pool.capacity == "SPOT" else "on-demand"
            wishes.append(Wish(types=types, purchase=purchase, vcpus=pool.maximum * pool.known[0].vcpus))
            for kind in map(kind_of, types):
                if kind is not None:
                    first.setdefault(vcpu_quota(kind, purchase)[0], (*pool.path, "MaxCount"))
    for short in find_shortages(connect("service-quotas"), wishes):
        yield ConfigFinding(
            level="error" if short.is_total else "warning",
            path=first[short.code],
            rule="quota",
            message=f"{short}; or lower MaxCount",
        )


def _spot_role(subject: Subject, connect: Callable[[str], Any]) -> Iterator[ConfigFinding]:
    spot = next((pool for pool in pools(subject.document) if pool.capacity == "SPOT"), None)
    if spot is not None and not has_spot_role(connect("iam")):
        yield ConfigFinding(level="error", path=spot.path, rule="spot-role", message=without_spot_role())


_LOOKS: dict[str, Callable[[Subject, Callable[[str], Any]], Iterator[ConfigFinding]]] = {
    "subnets and endpoints": _network,
    "offered instance types": _offerings,
    "the key pair": _key,
    "quotas": _quotas,
    "the role of Spot": _spot_role,
}
