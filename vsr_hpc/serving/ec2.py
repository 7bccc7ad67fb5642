"""Containers on plain EC2: launch template, closed security group, an Auto Scaling group that keeps count.

Spot loss needs no code of ours: the group starts another instance, whose first boot starts the container.
An instance counts only once its server answers (a lifecycle hook that its first boot completes).
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from vsr_hpc.errors import BackendError, JobError
from vsr_hpc.prices import hourly_price, prices
from vsr_hpc.serving.calls import Call, Clients, Kind, Step, check
from vsr_hpc.serving.client import translated
from vsr_hpc.serving.ec2_spec import HOOK, Ec2Spec, encoded, resource_name, user_data
from vsr_hpc.serving.rollout import Patience

log = logging.getLogger(__name__)

Tell = Callable[[str], None]
Request = dict[str, Any]
TAG = "vsr:ec2"
_WHOSE_ADDRESS = "https://checkip.amazonaws.com"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What the account has of a name."""

    vpc: str | None = None
    """Of the file's subnets."""
    group_id: str | None = None
    """The security group's."""
    rules: tuple[tuple[int, str], ...] = ()
    """(port, range) of what may come in."""
    template_hash: str | None = None
    has_template: bool = False
    scaling: Request | None = None
    """The Auto Scaling group."""


# What is wanted ---------------------------------------------------------------------------------------------


def steps(spec: Ec2Spec, found: Found, region: str, address: str | None) -> tuple[Step, ...]:
    """What `up` does now. Pure; `address` is the range that may come in, None for nobody."""
    made: list[Step] = []
    if found.group_id is None:
        request: Request = {
            "GroupName": spec.resource,
            "Description": f"vsr {spec.role} {spec.name}",
            "TagSpecifications": [{"ResourceType": "security-group", "Tags": _tags(spec)}],
        }
        request |= {"VpcId": found.vpc} if found.vpc else {}
        made.append(_step("create", "security group", spec, "ec2", "create_security_group", request))
    made += _rules(spec, found, address)
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
    made += _group(spec, found, is_changed)
    return tuple(made)


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
        "UserData": encoded(user_data(spec, region)),
    }


def _rules(spec: Ec2Spec, found: Found, address: str | None) -> Iterator[Step]:
    wanted = (spec.port, address) if address else None
    for port, cidr in found.rules:
        if (port, cidr) != wanted:
            request = {"GroupId": found.group_id, "IpPermissions": [_permission(port, cidr)]}
            operation = "revoke_security_group_ingress"
            yield _step("remove", "rule", spec, "ec2", operation, request, f"port {port} from {cidr}")
    if wanted and wanted not in found.rules:
        request = {"GroupId": found.group_id or _NEW_GROUP, "IpPermissions": [_permission(*wanted)]}
        detail = f"port {wanted[0]} from {wanted[1]}"
        yield _step("create", "rule", spec, "ec2", "authorize_security_group_ingress", request, detail)


def _group(spec: Ec2Spec, found: Found, is_changed: bool) -> Iterator[Step]:
    wanted = scaling(spec)
    detail = f"{spec.count} x {spec.purchase} {' or '.join(spec.instance_types)}"
    if found.scaling is None:
        hook = {
            "LifecycleHookName": HOOK,
            "LifecycleTransition": "autoscaling:EC2_INSTANCE_LAUNCHING",
            "HeartbeatTimeout": spec.startup_s,
            "DefaultResult": "ABANDON",
        }
        marks = [
            {
                **each,
                "PropagateAtLaunch": False,
                "ResourceId": spec.resource,
                "ResourceType": "auto-scaling-group",
            }
            for each in _tags(spec)
        ]
        request = {**wanted, "LifecycleHookSpecificationList": [hook], "Tags": marks}
        yield _step("create", "group", spec, "autoscaling", "create_auto_scaling_group", request, detail)
        return
    if not _is_same(wanted, found.scaling):
        yield _step("update", "group", spec, "autoscaling", "update_auto_scaling_group", wanted, detail)
    if is_changed:
        preferences = {"MinHealthyPercentage": 100, "MaxHealthyPercentage": 200}
        request = {"AutoScalingGroupName": spec.resource, "Preferences": preferences}
        how = "new instances first, then the old ones go"
        yield _step("update", "group", spec, "autoscaling", "start_instance_refresh", request, how)


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
                "OnDemandBaseCapacity": 0,
                "OnDemandPercentageAboveBaseCapacity": 0 if spec.purchase == "spot" else 100,
                "SpotAllocationStrategy": "price-capacity-optimized",
            },
        },
    }


def hourly(spec: Ec2Spec, region: str) -> str:
    """What it costs, in words."""
    table = prices(region)
    known = [hourly_price(each, spec.purchase, region) for each in spec.instance_types]
    per_hour = [each for each in known if each is not None]
    if not per_hour:
        return f"no price known for {', '.join(spec.instance_types)}"
    disk = spec.disk_gib * table.per_gb_month("ebs_gp3") / table.month_hours
    address = 0.0 if spec.access == "ssm" else table.other["public_ipv4_per_hour"]
    low, high = (spec.count * (each + disk + address) for each in (min(per_hour), max(per_hour)))
    span = f"${low:.3f}" if round(low, 3) == round(high, 3) else f"${low:.3f} to ${high:.3f}"
    return f"{spec.count} x {spec.purchase}: {span} per hour, disk included\n  {table.text()}"


# The account ------------------------------------------------------------------------------------------------


def plan(spec: Ec2Spec) -> tuple[Step, ...]:
    clients = Clients()
    with translated(spec.name):
        made = steps(spec, _look(clients, spec.name, spec.subnets), _region(clients), _address(spec))
    check(made, spec.name)
    return made


def up(spec: Ec2Spec, tell: Tell, *, patience: Patience | None = None) -> tuple[Step, ...]:
    """Make it so, and wait until every instance answers (a server) or has started its worker."""
    clients, patience = Clients(), patience or Patience(longest_s=spec.startup_s + 600)
    made = plan(spec)
    group_id = None
    with translated(spec.name):
        for step in made:
            tell(str(step))
            for call in step.calls:
                group_id = group_id or _look(clients, spec.name, spec.subnets).group_id
                answer = clients.make(_with_group(call, group_id))
                group_id = answer.get("GroupId", group_id)
        _await_instances(clients, spec, patience, tell)
    return made


def down(name: str, tell: Tell, *, patience: Patience | None = None) -> tuple[Step, ...]:
    """End the instances and remove all that was made for them; nothing else."""
    clients, patience = Clients(), patience or Patience(longest_s=900)
    with translated(name):
        made = removal(name, _look(clients, name, ()))
        for step in made:
            tell(str(step))
            for call in step.calls:
                clients.make(call)
            if step.kind == "group":
                _await_end(clients, name, patience, tell)
    return made


def removal(name: str, found: Found) -> tuple[Step, ...]:
    called = resource_name(name)
    made = []
    if found.scaling is not None:
        request: Request = {"AutoScalingGroupName": called, "ForceDelete": True}
        made.append(_named("remove", "group", called, "autoscaling", "delete_auto_scaling_group", request))
    if found.has_template:
        request = {"LaunchTemplateName": called}
        made.append(_named("remove", "launch template", called, "ec2", "delete_launch_template", request))
    if found.group_id is not None:
        request = {"GroupId": found.group_id}
        made.append(_named("remove", "security group", called, "ec2", "delete_security_group", request))
    return tuple(made)


def status(name: str) -> dict[str, Any]:
    """The instances: which, where, how they were bought, how they are, and how to reach them."""
    clients = Clients()
    with translated(name):
        found = _look(clients, name, ())
        if found.scaling is None:
            raise JobError(f"there is nothing named {name}; `vsr ec2 up` makes it")
        members = found.scaling["Instances"]
        details = _instances(clients, [each["InstanceId"] for each in members])
    port = found.rules[0][0] if found.rules else None
    return {
        "name": name,
        "wanted": found.scaling["DesiredCapacity"],
        "instances": [_shown(each, details.get(each["InstanceId"], {}), port) for each in members],
    }


def _shown(member: Request, detail: Request, port: int | None) -> dict[str, Any]:
    address, number = detail.get("PublicIpAddress"), member["InstanceId"]
    return {
        "id": number,
        "type": detail.get("InstanceType"),
        "zone": member["AvailabilityZone"],
        "state": member["LifecycleState"],
        "health": member["HealthStatus"],
        "purchase": detail.get("InstanceLifecycle", "on-demand"),
        "url": f"http://{address}:{port}" if address and port else None,
        "session": f"aws ssm start-session --target {number} --document-name AWS-StartPortForwardingSession "
        "--parameters portNumber=8080,localPortNumber=8080",
    }


def _await_instances(clients: Clients, spec: Ec2Spec, patience: Patience, tell: Tell) -> None:
    until, last = time.monotonic() + patience.longest_s, ""
    while True:
        group = _scaling_group(clients, spec.resource)
        members = group["Instances"] if group else []
        ready = [each for each in members if each["LifecycleState"] == "InService"]
        if len(ready) >= spec.count:
            return
        now = f"{len(ready)} of {spec.count} ready" + "".join(
            f", {each['InstanceId']} {each['LifecycleState']}" for each in members if each not in ready
        )
        if now != last:
            tell(now)
            last = now
        if time.monotonic() > until:
            raise BackendError(
                f"{spec.name}: {now} after {patience.longest_s:.0f} s; the instance's console output "
                "(aws ec2 get-console-output) says why. `vsr ec2 down` ends it"
            )
        time.sleep(patience.poll_s)


def _await_end(clients: Clients, name: str, patience: Patience, tell: Tell) -> None:
    """A security group can only go when no instance is in it."""
    until, ec2 = time.monotonic() + patience.longest_s, clients.of("ec2")
    states = ["pending", "running", "shutting-down", "stopping"]
    filters = [{"Name": f"tag:{TAG}", "Values": [name]}, {"Name": "instance-state-name", "Values": states}]
    while True:
        found = [
            each
            for page in ec2.describe_instances(Filters=filters)["Reservations"]
            for each in page["Instances"]
        ]
        if not found and _scaling_group(clients, resource_name(name)) is None:
            return
        if time.monotonic() > until:
            raise BackendError(
                f"{name}: {len(found)} instances have not ended yet; call `vsr ec2 down` again"
            )
        tell(f"{len(found)} instances end")
        time.sleep(patience.poll_s)


def _look(clients: Clients, name: str, subnets: tuple[str, ...]) -> Found:
    ec2, called = clients.of("ec2"), resource_name(name)
    groups = ec2.describe_security_groups(
        Filters=[{"Name": "group-name", "Values": [called]}, {"Name": f"tag:{TAG}", "Values": [name]}]
    )["SecurityGroups"]
    templates = ec2.describe_launch_templates(Filters=[{"Name": "launch-template-name", "Values": [called]}])
    has_template = bool(templates["LaunchTemplates"])
    scaling_group = _scaling_group(clients, called)
    for tagged in [*templates["LaunchTemplates"], *([scaling_group] if scaling_group else [])]:
        if not any(each["Key"] == TAG and each["Value"] == name for each in tagged.get("Tags", [])):
            raise JobError(
                f"{called} is there and was not made by vsr (it lacks the tag {TAG}); it is left alone"
            )
    described = None
    if has_template:
        versions = ec2.describe_launch_template_versions(LaunchTemplateName=called, Versions=["$Latest"])
        described = versions["LaunchTemplateVersions"][0].get("VersionDescription")
    vpc = ec2.describe_subnets(SubnetIds=list(subnets))["Subnets"][0]["VpcId"] if subnets else None
    return Found(
        vpc=vpc,
        group_id=groups[0]["GroupId"] if groups else None,
        rules=tuple(_open(groups[0])) if groups else (),
        template_hash=described,
        has_template=has_template,
        scaling=scaling_group,
    )


def _scaling_group(clients: Clients, called: str) -> Request | None:
    found = clients.of("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=[called])
    groups: list[Request] = found["AutoScalingGroups"]
    return groups[0] if groups else None


def _instances(clients: Clients, numbers: list[str]) -> dict[str, Request]:
    if not numbers:
        return {}
    pages = clients.of("ec2").describe_instances(InstanceIds=numbers)["Reservations"]
    return {each["InstanceId"]: each for page in pages for each in page["Instances"]}


def _open(group: Request) -> Iterator[tuple[int, str]]:
    for rule in group["IpPermissions"]:
        for each in rule.get("IpRanges", []):
            yield int(rule["FromPort"]), str(each["CidrIp"])


def _address(spec: Ec2Spec) -> str | None:
    """The range that may come in."""
    if spec.access == "ssm":
        return None
    if spec.access != "caller":
        return spec.access
    try:
        with urllib.request.urlopen(_WHOSE_ADDRESS, timeout=10) as answer:
            return f"{answer.read(64).decode().strip()}/32"
    except OSError as exc:
        raise BackendError(
            f"access: caller needs to know your address, and {_WHOSE_ADDRESS} does not answer ({exc}); "
            "write it as a range: access: 203.0.113.7/32"
        ) from exc


# Small things -----------------------------------------------------------------------------------------------


def _with_group(call: Call, group_id: str | None) -> Call:
    """The real security group where the plan could not know it."""
    if group_id is None:
        return call
    text = json.dumps(call.parameters).replace(f'"{_NEW_GROUP}"', f'"{group_id}"')
    return Call(service=call.service, operation=call.operation, parameters=json.loads(text))


def _is_same(wanted: Request, there: Request) -> bool:
    """What a person can change in the file; the rest follows from it."""
    policy, known = wanted["MixedInstancesPolicy"], there.get("MixedInstancesPolicy") or {}
    types = [each["InstanceType"] for each in policy["LaunchTemplate"]["Overrides"]]
    known_types = [each["InstanceType"] for each in known.get("LaunchTemplate", {}).get("Overrides", [])]
    share = "OnDemandPercentageAboveBaseCapacity"
    distribution = known.get("InstancesDistribution", {})
    numbers = all(wanted[key] == there[key] for key in ("MaxSize", "DesiredCapacity"))
    places = set(wanted["VPCZoneIdentifier"].split(",")) == set(there["VPCZoneIdentifier"].split(","))
    return (
        numbers
        and places
        and types == known_types
        and policy["InstancesDistribution"][share] == distribution.get(share)
    )


def _permission(port: int, cidr: str) -> Request:
    ranges = [{"CidrIp": cidr, "Description": "vsr"}]
    return {"IpProtocol": "tcp", "FromPort": port, "ToPort": port, "IpRanges": ranges}


def _tags(spec: Ec2Spec) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in {**spec.tags, TAG: spec.name}.items()]


def _hash(data: Request) -> str:
    return f"vsr-{hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]}"


def _region(clients: Clients) -> str:
    return str(clients.of("ec2").meta.region_name)


def _step(
    action: Any, kind: Kind, spec: Ec2Spec, service: str, operation: str, request: Request, detail: str = ""
) -> Step:
    return _named(action, kind, spec.resource, service, operation, request, detail)


def _named(
    action: Any, kind: Kind, name: str, service: str, operation: str, request: Request, detail: str = ""
) -> Step:
    call = Call(service=service, operation=operation, parameters=request)
    return Step(action=action, kind=kind, name=name, detail=detail, calls=(call,))
