"""What a moto server needs beyond moto 5.2 for ParallelCluster to live a whole life on it.

Run before the server starts (`moto_server(preload=[…])`). It touches moto's insides: the version is pinned.
Environment: MOTO_IAM_LOAD_MANAGED_POLICIES=true, MOTO_AMIS_PATH=tests/aws/amis.json.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import moto.cloudformation.models as stacks
import moto.cloudformation.parsing as parsing
from moto.ec2.models import ec2_backends
from moto.ec2.models.instances import Instance
from moto.ec2.models.subnets import SubnetRouteTableAssociation
from moto.ec2.responses.instances import InstanceResponse
from moto.iam.access_control import PermissionResult
from moto.s3.models import FakeBucket

sys.path.insert(0, str(Path(__file__).parents[2]))

import tests.new_account  # noqa: F401 - the role for Spot by its name on AWS


def accept_instance_store_mappings() -> None:
    """RunInstances with `VirtualName: ephemeral0` and no Ebs is right; moto asks for Ebs."""
    original = InstanceResponse._validate_block_device_mapping

    def validate(mapping: dict[str, Any]) -> None:
        if "VirtualName" not in mapping or "Ebs" in mapping:
            original(mapping)

    InstanceResponse._validate_block_device_mapping = staticmethod(validate)


def ignore_conditional_bucket_policies() -> None:
    """moto applies `Deny … if not TLS` without its condition, which would lock everybody out."""
    FakeBucket.get_permission = lambda self, action, resource: PermissionResult.NEUTRAL


class Inert:
    """A CloudFormation resource that moto has no model of: it exists and has whatever attribute is asked for.

    Not a CloudFormationModel: its metaclass refuses subclasses from outside moto.
    """

    def __init__(self, name: str, kind: str, account: str, region: str, properties: dict[str, Any]) -> None:
        self.physical_resource_id = name
        self.type, self.properties = kind, properties
        self._arn = f"arn:aws:{kind.split('::')[1].lower()}:{region}:{account}:{name}"

    def is_created(self) -> bool:
        return True

    def delete(self, *_: Any, **__: Any) -> None:
        return None

    @staticmethod
    def cloudformation_name_type() -> str:
        return ""

    @staticmethod
    def cloudformation_type() -> str:
        return "Inert"

    @classmethod
    def has_cfn_attr(cls, attr: str) -> bool:
        return True

    def get_cfn_attribute(self, attr: str) -> str:
        return self._arn if attr == "Arn" else f"{self.physical_resource_id}.{attr}"

    @classmethod
    def create_from_cloudformation_json(
        cls, resource_name: str, cloudformation_json: Any, account_id: str, region_name: str, **more: Any
    ) -> Inert:
        kind = str(cloudformation_json.get("Type", "AWS::Unknown"))
        return cls(resource_name, kind, account_id, region_name, cloudformation_json.get("Properties", {}))

    @classmethod
    def update_from_cloudformation_json(
        cls, original_resource: Inert, new_resource_name: str, cloudformation_json: Any, *_: Any, **__: Any
    ) -> Inert:
        original_resource.properties = cloudformation_json.get("Properties", {})
        return original_resource

    @classmethod
    def delete_from_cloudformation_json(cls, *_: Any, **__: Any) -> None:
        return None


def give_every_type_a_model() -> None:
    original = parsing.resource_class_from_type

    def find(kind: str) -> Any:
        return original(kind) if kind.startswith("Custom::") or kind in parsing.get_model_map() else Inert

    parsing.resource_class_from_type = find


def answer_for_nested_stacks() -> None:
    """Fn::GetAtt of a nested stack's `Outputs.X`."""

    def attribute(self: Any, name: str) -> Any:
        kind, _, output = name.partition(".")
        if kind != "Outputs":
            raise KeyError(name)
        return self.output_map[output].value

    stacks.Stack.get_cfn_attribute = attribute
    stacks.Stack.has_cfn_attr = classmethod(lambda cls, attr: attr.startswith("Outputs."))


def launch_instances_from_templates() -> None:
    """AWS::EC2::Instance that says everything through its launch template, as the head node's does."""
    original = Instance.create_from_cloudformation_json.__func__

    def create(
        cls: Any, resource_name: str, cloudformation_json: Any, account_id: str, region: str, **more: Any
    ) -> Any:
        wanted = cloudformation_json["Properties"]
        if "LaunchTemplate" in wanted and "ImageId" not in wanted:
            backend = ec2_backends[account_id][region]
            template = backend.get_launch_template(wanted["LaunchTemplate"]["LaunchTemplateId"])
            facts = template.latest_version().data
            for key in ("ImageId", "InstanceType", "KeyName"):
                if key in facts:
                    wanted.setdefault(key, facts[key])
            cards = facts.get("NetworkInterfaces") or [{}]
            if "NetworkInterfaceId" in cards[0]:
                card = backend.get_network_interface(cards[0]["NetworkInterfaceId"])
                wanted.setdefault("SubnetId", card.subnet.id)
        return original(cls, resource_name, cloudformation_json, account_id, region, **more)

    Instance.create_from_cloudformation_json = classmethod(create)


def associate_route_tables() -> None:
    """AWS::EC2::SubnetRouteTableAssociation makes an association that DescribeRouteTables does not know."""
    original = SubnetRouteTableAssociation.create_from_cloudformation_json.__func__

    def create(cls: Any, name: str, facts: Any, account_id: str, region: str, **more: Any) -> Any:
        wanted = facts["Properties"]
        backend = ec2_backends[account_id][region]
        backend.associate_route_table(route_table_id=wanted["RouteTableId"], subnet_id=wanted["SubnetId"])
        return original(cls, name, facts, account_id, region, **more)

    SubnetRouteTableAssociation.create_from_cloudformation_json = classmethod(create)


accept_instance_store_mappings()
ignore_conditional_bucket_policies()
give_every_type_a_model()
answer_for_nested_stacks()
launch_instances_from_templates()
associate_route_tables()
