"""What the account says about a configuration, asked through real boto3 against moto in this process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from moto import mock_aws

from tests.aws.conftest import VALUES
from tests.new_account import set_account
from vsr_hpc.aws.account import client
from vsr_hpc.aws.cluster import account_rules
from vsr_hpc.aws.cluster.account_rules import examine
from vsr_hpc.aws.cluster.instance_rules import Subject
from vsr_hpc.aws.cluster.render import find_template, render
from vsr_hpc.aws.cluster.values import load_values
from vsr_hpc.aws.cluster.yaml_document import ConfigFinding, parse


@dataclass(frozen=True)
class Network:
    vpc: str
    table: str
    subnets: tuple[str, ...]


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        ec2 = boto3.client("ec2", region_name="us-east-1")
        vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        table = ec2.create_route_table(VpcId=vpc)["RouteTable"]["RouteTableId"]
        subnets = []
        for index, zone in enumerate(("us-east-1a", "us-east-1b", "us-east-1c")):
            subnet = ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.0.{index}.0/24", AvailabilityZone=zone)
            subnets.append(subnet["Subnet"]["SubnetId"])
            ec2.associate_route_table(RouteTableId=table, SubnetId=subnets[-1])
        ec2.create_key_pair(KeyName="vsr-hpc", KeyType="ed25519")
        boto3.client("iam").create_service_linked_role(AWSServiceName="spot.amazonaws.com")
        yield Network(vpc=vpc, table=table, subnets=tuple(subnets))


def findings(
    network: Network, *, edit: tuple[str, str] = ("", ""), quota: float = 10_000.0
) -> list[ConfigFinding]:
    values = load_values(None, VALUES | {"compute_subnets": list(network.subnets)})
    text = render(find_template("spot-gpu"), values).text.replace(*edit, 1) if edit[0] else ""
    text = text or render(find_template("spot-gpu"), values).text
    codes = ("L-3819A6DF", "L-DB2E81BA", "L-34B43A08", "L-1216C47A")
    set_account(quotas=dict.fromkeys(codes, quota), may_read_quotas=quota >= 0)
    return list(examine(Subject(document=parse(text, "c.yaml"))))


def endpoint(network: Network) -> None:
    boto3.client("ec2", region_name="us-east-1").create_vpc_endpoint(
        VpcId=network.vpc,
        ServiceName="com.amazonaws.us-east-1.s3",
        VpcEndpointType="Gateway",
        RouteTableIds=[network.table],
    )


def test_account_that_has_everything_gives_no_finding(network: Network) -> None:
    endpoint(network)
    assert [str(each) for each in findings(network)] == []


def test_missing_s3_endpoint_is_named_with_the_command_that_makes_it(network: Network) -> None:
    told = [each for each in findings(network) if each.rule == "s3-endpoint"]
    assert len(told) == 3 and all(network.table in each.message for each in told)


def test_endpoint_that_the_subnets_route_table_lacks_is_seen(network: Network) -> None:
    ec2 = boto3.client("ec2", region_name="us-east-1")
    other = ec2.create_route_table(VpcId=network.vpc)["RouteTable"]["RouteTableId"]
    endpoint(Network(vpc=network.vpc, table=other, subnets=()))
    assert {each.rule for each in findings(network)} == {"s3-endpoint"}


def test_subnet_that_does_not_exist_is_an_error_at_its_place(network: Network) -> None:
    endpoint(network)
    told = findings(network, edit=(network.subnets[1], "subnet-0bbbbbbbbbbbbbbb2"))
    assert [each.path[-2:] for each in told if each.level == "error"] == [("SubnetIds", 1)]


def test_two_subnets_of_one_zone_are_an_error(network: Network) -> None:
    endpoint(network)
    ec2 = boto3.client("ec2", region_name="us-east-1")
    twin = ec2.create_subnet(VpcId=network.vpc, CidrBlock="10.0.9.0/24", AvailabilityZone="us-east-1a")
    ec2.associate_route_table(RouteTableId=network.table, SubnetId=twin["Subnet"]["SubnetId"])
    told = findings(network, edit=(network.subnets[1], twin["Subnet"]["SubnetId"]))
    assert [each.rule for each in told if each.level == "error"] == ["zones"]


def test_missing_key_pair_is_an_error(network: Network) -> None:
    endpoint(network)
    told = findings(network, edit=("KeyName: vsr-hpc", "KeyName: nobody"))
    assert [each.rule for each in told] == ["key"]


def test_rsa_key_for_ubuntu_is_an_error(network: Network) -> None:
    endpoint(network)
    boto3.client("ec2", region_name="us-east-1").create_key_pair(KeyName="old", KeyType="rsa")
    told = findings(network, edit=("KeyName: vsr-hpc", "KeyName: old"))
    assert [each.message for each in told if "ed25519" in each.message]


def test_type_that_the_region_lacks_is_an_error(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint(network)
    offered = ("g4dn.xlarge", "g5.xlarge", "g4dn.2xlarge", "g5.2xlarge", "c6i.2xlarge", "c7i.2xlarge")
    pages = SimpleNamespace(
        paginate=lambda **_: [{"InstanceTypeOfferings": [{"InstanceType": each} for each in offered]}]
    )

    def offering(service: str, *arguments: Any, **named: Any) -> Any:
        made = client(service, *arguments, **named)
        if service == "ec2":
            made.get_paginator = lambda _: pages
        return made

    monkeypatch.setattr(account_rules, "client", offering)
    told = findings(network)
    assert {each.rule for each in told} == {"offering"}
    assert {each.message.split()[0] for each in told} == {"g6.xlarge", "g6.2xlarge"}


@pytest.mark.parametrize(("quota", "level"), [(64.0, "warning"), (0.0, "error")])
def test_quota_below_full_load_is_told_with_its_code(network: Network, quota: float, level: str) -> None:
    endpoint(network)
    told = [each for each in findings(network, quota=quota) if each.rule == "quota"]
    assert {each.level for each in told} == {level}
    assert any("L-3819A6DF" in each.message and "192" in each.message for each in told)


def test_account_without_the_role_of_spot_is_told_how_it_comes_by_one(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint(network)
    assert [each for each in findings(network) if each.rule == "spot-role"] == []
    iam = boto3.client("iam")
    iam.delete_role(RoleName="AWSServiceRoleForEC2Spot")
    (told,) = [each for each in findings(network) if each.rule == "spot-role"]
    assert told.level == "error"
    assert "aws iam create-service-linked-role --aws-service-name spot.amazonaws.com" in told.message


def test_account_that_refuses_an_answer_gives_a_note_not_a_failure(network: Network) -> None:
    endpoint(network)
    told = findings(network, quota=-1)
    assert [(each.level, "quotas" in each.message) for each in told] == [("info", True)]
