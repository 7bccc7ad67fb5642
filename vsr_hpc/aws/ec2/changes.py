"""The steps from what the account has of a fleet to what its file says, as calls of AWS. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vsr_hpc.aws.drift import holds
from vsr_hpc.aws.ec2.spec import HOOK, Ec2Spec, encode_user_data, resource_name, user_data
from vsr_hpc.aws.steps import Call, Kind, Step

Request = dict[str, Any]
TAG = "vsr:ec2"


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetInventory:
    """What the account has of a name."""

    vpc: str | None = None
    """Of the file's subnets."""
    group_id: str | None = None
    """The security group's."""
    rules: tuple[Request, ...] = ()
    """What may come in: permissions of one source each, as AWS takes them back."""
    port: int | None = None
    """What its server listens at; None for workers, who listen to nobody."""
    template_hash: str | None = None
    template_version: int | None = None
    """The latest."""
    has_template: bool = False
    scaling: Request | None = None
    """The Auto Scaling group."""
    startup_s: int | None = None
    """How long its hook gives an instance to answer; None where there is no hook."""
    tags: tuple[tuple[str, Request], ...] = ()
    """Of each thing there: its id, or the group's name, and what it is tagged with."""
    refresh: Request | None = None
    """The latest replacement of its instances, over or not."""

    @property
    def members(self) -> tuple[Request, ...]:
        """The group's instances, but for those that go."""
        there = self.scaling["Instances"] if self.scaling else []
        return tuple(each for each in there if not each["LifecycleState"].startswith("Terminat"))

    @property
    def outdated(self) -> tuple[str, ...]:
        """Those that were started from an earlier version of the template."""
        return tuple(
            each["InstanceId"] for each in self.members if _version(each) not in (None, self.template_version)
        )


def steps(spec: Ec2Spec, found: FleetInventory, region: str, address: str | None) -> tuple[Step, ...]:
    """The steps that `up` takes now. Traffic is admitted from the range `address`; None admits nobody."""
    made: list[Step] = []
    if found.group_id is None:
        request: Request = {
            "GroupName": spec.resource,
            "Description": f"vsr {spec.role} {spec.name}",
            "TagSpecifications": [{"ResourceType": "security-group", "Tags": _tags(spec)}],
        }
        request |= {"VpcId": found.vpc} if found.vpc else {}
        made.append(_step("create", "security group", spec, "ec2", "create_security_group", request))
    made += _rule_steps(spec, found, address)
    data = template(spec, region, found.group_id or _NEW_GROUP)
    wanted = _hash(template(spec, region, "group"))
    name = {"LaunchTemplateName": spec.resource}
    is_changed = found.template_hash != wanted
    if not found.has_template:
        marks = [{"ResourceType": "launch-template", "Tags": _tags(spec)}]
        request = {
            **name,
            "VersionDescription": wanted,
            "LaunchTemplateData": data,
            "TagSpecifications": marks,
        }
        made.append(_step("create", "launch template", spec, "ec2", "create_launch_template", request))
    elif is_changed:
        request = {**name, "VersionDescription": wanted, "LaunchTemplateData": data}
        made.append(
            _step("update", "launch template", spec, "ec2", "create_launch_template_version", request)
        )
    made += _group_steps(spec, found, is_changed)
    made += _tag_steps(spec, found)
    return tuple(made)


SOURCES = ("IpRanges", "Ipv6Ranges", "UserIdGroupPairs", "PrefixListIds")
"""Where a rule's traffic may come from."""
_NEW_GROUP = "sg-00000000"
"""Stands in a plan for the group that is not there yet; `up` puts the real one in its place."""


def template(spec: Ec2Spec, region: str, group_id: str) -> Request:
    """LaunchTemplateData: IMDSv2 alone (two hops, for containers), an encrypted disk, the group's doors."""
    disk = {"VolumeSize": spec.disk_gib, "VolumeType": "gp3", "Encrypted": True, "DeleteOnTermination": True}
    marks = [{"Key": "Name", "Value": spec.resource}, *_tags(spec)]
    return {
        "ImageId": spec.image_source,
        "InstanceType": spec.instance_types[0],
        "IamInstanceProfile": {"Arn": spec.profile},
        "MetadataOptions": {
            "HttpTokens": "required",
            "HttpPutResponseHopLimit": 2,
            "HttpEndpoint": "enabled",
            "InstanceMetadataTags": "disabled",
        },
        "NetworkInterfaces": [
            {"DeviceIndex": 0, "Groups": [group_id], "AssociatePublicIpAddress": spec.access != "ssm"}
        ],
        "BlockDeviceMappings": [{"DeviceName": "/dev/xvda", "Ebs": disk}],
        "InstanceInitiatedShutdownBehavior": "terminate",
        "TagSpecifications": [
            {"ResourceType": "instance", "Tags": marks},
            {"ResourceType": "volume", "Tags": marks},
        ],
        "UserData": encode_user_data(user_data(spec, region)),
    }


def _rule_steps(spec: Ec2Spec, found: FleetInventory, address: str | None) -> Iterator[Step]:
    wanted = _permission(spec.port, address) if address else None
    is_there = False
    for rule in found.rules:
        if wanted and _rule(rule) == _rule(wanted):
            is_there = True
            continue
        request = {"GroupId": found.group_id, "IpPermissions": [rule]}
        yield _step("remove", "rule", spec, "ec2", "revoke_security_group_ingress", request, _rule(rule))
    if wanted and not is_there:
        request = {"GroupId": found.group_id or _NEW_GROUP, "IpPermissions": [wanted]}
        operation = "authorize_security_group_ingress"
        yield _step("create", "rule", spec, "ec2", operation, request, _rule(wanted))


def _rule(rule: Request) -> str:
    """'port 8080 from 203.0.113.7/32', and all else that people open by hand."""
    first, last = rule.get("FromPort"), rule.get("ToPort")
    ports = (
        "everything" if first is None else f"port {first}" if first == last else f"ports {first} to {last}"
    )
    protocol = "" if rule["IpProtocol"] in ("tcp", "-1") else f"{rule['IpProtocol']} "
    sources = [each for kind in SOURCES for each in rule.get(kind, [])]
    keys = ("CidrIp", "CidrIpv6", "GroupId", "PrefixListId")
    return f"{protocol}{ports} from {', '.join(each[key] for each in sources for key in keys if key in each)}"


def _group_steps(spec: Ec2Spec, found: FleetInventory, is_changed: bool) -> Iterator[Step]:
    wanted = scaling(spec)
    base = f", {spec.on_demand_base} of them on demand" if spec.on_demand_base else ""
    detail = f"{spec.count} x {spec.purchase} {' or '.join(spec.instance_types)}{base}"
    if found.scaling is None:
        marks = _of_group(spec, _tags(spec))
        request = {**wanted, "LifecycleHookSpecificationList": [_hook(spec)], "Tags": marks}
        yield _step("create", "group", spec, "autoscaling", "create_auto_scaling_group", request, detail)
        return
    if not _is_same(wanted, found.scaling):
        yield _step("update", "group", spec, "autoscaling", "update_auto_scaling_group", wanted, detail)
    if found.startup_s != spec.startup_s:
        request = {"AutoScalingGroupName": spec.resource, **_hook(spec)}
        detail = f"{spec.startup_s} s until an instance must answer"
        yield _step("update", "hook", spec, "autoscaling", "put_lifecycle_hook", request, detail)
    yield from _refresh_steps(spec, found, is_changed)


def _refresh_steps(spec: Ec2Spec, found: FleetInventory, is_changed: bool) -> Iterator[Step]:
    """Instances of an earlier template go. A refresh under way does it, unless the file has changed since."""
    if not found.members or not (is_changed or (found.outdated and not is_under_way(found.refresh))):
        return
    which = {"AutoScalingGroupName": spec.resource}
    if found.refresh and found.refresh["Status"] in ("Pending", "InProgress", "Baking"):
        how = "the refresh under way ends, as its file is no longer the present one"
        yield _step("update", "group", spec, "autoscaling", "cancel_instance_refresh", which, how)
    # The hook says when an instance answers; by default a refresh would wait for the grace period after that.
    preferences = {"MinHealthyPercentage": 100, "MaxHealthyPercentage": 200, "InstanceWarmup": 0}
    request = {**which, "Preferences": preferences}
    how = "new instances first, then the old ones go"
    yield _step("update", "group", spec, "autoscaling", "start_instance_refresh", request, how)


def _tag_steps(spec: Ec2Spec, found: FleetInventory) -> Iterator[Step]:
    """What the file's tags are now. Others stay: an account may have its own."""
    for thing, there in found.tags:
        missing = [each for each in _tags(spec) if there.get(each["Key"]) != each["Value"]]
        if not missing:
            continue
        detail = ", ".join(f"{each['Key']}={each['Value']}" for each in missing)
        if thing == spec.resource:
            request: Request = {"Tags": _of_group(spec, missing)}
            yield _step("update", "group", spec, "autoscaling", "create_or_update_tags", request, detail)
        else:
            kind: Kind = "security group" if thing.startswith("sg-") else "launch template"
            request = {"Resources": [thing], "Tags": missing}
            yield _step("update", kind, spec, "ec2", "create_tags", request, detail)


def _of_group(spec: Ec2Spec, tags: list[dict[str, str]]) -> list[Request]:
    where = {"ResourceId": spec.resource, "ResourceType": "auto-scaling-group", "PropagateAtLaunch": False}
    return [{**each, **where} for each in tags]


def is_under_way(refresh: Request | None) -> bool:
    moving = ("Pending", "InProgress", "Cancelling", "RollbackInProgress", "Baking")
    return refresh is not None and refresh["Status"] in moving


def _version(member: Request) -> int | None:
    text = str(member.get("LaunchTemplate", {}).get("Version", ""))
    return int(text) if text.isdigit() else None


def _hook(spec: Ec2Spec) -> Request:
    return {
        "LifecycleHookName": HOOK,
        "LifecycleTransition": "autoscaling:EC2_INSTANCE_LAUNCHING",
        "HeartbeatTimeout": spec.startup_s,
        "DefaultResult": "ABANDON",
    }


def scaling(spec: Ec2Spec) -> Request:
    """create_auto_scaling_group's parameters: as many as asked for, whatever Spot takes away."""
    template_name = {"LaunchTemplateName": spec.resource, "Version": "$Latest"}
    return {
        "AutoScalingGroupName": spec.resource,
        "MinSize": spec.count if spec.role == "server" else 0,
        "MaxSize": spec.count,
        "DesiredCapacity": spec.count,
        "VPCZoneIdentifier": ",".join(spec.subnets),
        "HealthCheckType": "EC2",
        "HealthCheckGracePeriod": spec.startup_s,
        "CapacityRebalance": spec.purchase == "spot" and spec.role == "server",
        "MixedInstancesPolicy": {
            "LaunchTemplate": {
                "LaunchTemplateSpecification": template_name,
                "Overrides": [{"InstanceType": each} for each in spec.instance_types],
            },
            "InstancesDistribution": {
                "OnDemandBaseCapacity": spec.on_demand_base,
                "OnDemandPercentageAboveBaseCapacity": 0 if spec.purchase == "spot" else 100,
                "SpotAllocationStrategy": "price-capacity-optimized",
            },
        },
    }


def removal(name: str, found: FleetInventory) -> tuple[Step, ...]:
    called = resource_name(name)
    made = []
    if found.scaling is not None:
        request: Request = {"AutoScalingGroupName": called, "ForceDelete": True}
        made.append(_step_for("remove", "group", called, "autoscaling", "delete_auto_scaling_group", request))
    if found.has_template:
        request = {"LaunchTemplateName": called}
        made.append(_step_for("remove", "launch template", called, "ec2", "delete_launch_template", request))
    if found.group_id is not None:
        request = {"GroupId": found.group_id}
        made.append(_step_for("remove", "security group", called, "ec2", "delete_security_group", request))
    return tuple(made)


def with_group(call: Call, group_id: str | None) -> Call:
    """The real security group where the plan could not know it."""
    if group_id is None:
        return call
    text = json.dumps(call.parameters).replace(f'"{_NEW_GROUP}"', f'"{group_id}"')
    return Call(service=call.service, operation=call.operation, parameters=json.loads(text))


def _is_same(wanted: Request, there: Request) -> bool:
    """All of the group that the file decides, which is all that is wanted of it."""
    places = set(wanted["VPCZoneIdentifier"].split(",")) == set(there["VPCZoneIdentifier"].split(","))
    there = {"CapacityRebalance": False, **there, "VPCZoneIdentifier": wanted["VPCZoneIdentifier"]}
    return places and holds(there, wanted) and _overrides(there) == _overrides(wanted)


def _overrides(group: Request) -> list[Request]:
    """The instance types, each of which may bring a weight or a launch template of its own."""
    template: Request = (group.get("MixedInstancesPolicy") or {}).get("LaunchTemplate", {})
    return list(template.get("Overrides", []))


def _permission(port: int, cidr: str) -> Request:
    ranges = [{"CidrIp": cidr, "Description": "vsr"}]
    return {"IpProtocol": "tcp", "FromPort": port, "ToPort": port, "IpRanges": ranges}


def _tags(spec: Ec2Spec) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in {**spec.tags, TAG: spec.name}.items()]


def _hash(data: Request) -> str:
    return f"vsr-{hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]}"


def _step(
    action: Any, kind: Kind, spec: Ec2Spec, service: str, operation: str, request: Request, detail: str = ""
) -> Step:
    return _step_for(action, kind, spec.resource, service, operation, request, detail)


def _step_for(
    action: Any, kind: Kind, name: str, service: str, operation: str, request: Request, detail: str = ""
) -> Step:
    call = Call(service=service, operation=operation, parameters=request)
    return Step(action=action, kind=kind, name=name, detail=detail, calls=(call,))
