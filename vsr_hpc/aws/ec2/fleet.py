"""Containers on plain EC2: launch template, closed security group, an Auto Scaling group that keeps count.

Spot loss needs no code of ours: the group starts another instance, whose first boot starts the container.
An instance counts only once its server answers (a lifecycle hook that its first boot completes).
"""

from __future__ import annotations

import logging
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any, Literal

from botocore.exceptions import ClientError

from vsr_hpc.aws.account import WaitLimits
from vsr_hpc.aws.calls import Clients, check
from vsr_hpc.aws.ec2.changes import (
    SOURCES,
    TAG,
    FleetInventory,
    Request,
    is_under_way,
    removal,
    steps,
    with_group,
)
from vsr_hpc.aws.ec2.spec import HOOK, Ec2Spec, port_in, resource_name
from vsr_hpc.aws.errors import error_code, explained
from vsr_hpc.aws.new_account import SPOT_ROLE, has_spot_role, make_spot_role
from vsr_hpc.aws.prices import hourly_price, prices
from vsr_hpc.aws.quotas import Wish, find_shortages, look, vcpus_of
from vsr_hpc.aws.steps import Call, Step
from vsr_hpc.errors import BackendError, JobError

log = logging.getLogger(__name__)


Tell = Callable[[str], None]
_WHOSE_ADDRESS = "https://checkip.amazonaws.com"


def hourly(spec: Ec2Spec, region: str) -> str:
    """The price of an hour of the whole fleet, in words."""
    table = prices(region)
    base = spec.on_demand_base
    known = [_hourly_of(each, spec, region) for each in spec.instance_types]
    per_hour = [each for each in known if each is not None]
    if not per_hour:
        return f"no price known for {', '.join(spec.instance_types)}"
    disk = spec.disk_gib * table.per_gb_month("ebs_gp3") / table.month_hours
    address = 0.0 if spec.access == "ssm" else table.other["public_ipv4_per_hour"]
    low, high = (each + spec.count * (disk + address) for each in (min(per_hour), max(per_hour)))
    span = f"${low:.3f}" if round(low, 3) == round(high, 3) else f"${low:.3f} to ${high:.3f}"
    bought = f"{spec.count - base} x spot, {base} x on-demand" if base else f"{spec.count} x {spec.purchase}"
    return f"{bought}: {span} per hour, disk included\n  {table.text()}"


def _hourly_of(instance_type: str, spec: Ec2Spec, region: str) -> float | None:
    """Of all instances, were they of this type; None where a price is not known."""
    base, cost = spec.on_demand_base, 0.0
    shares: tuple[tuple[int, Literal["spot", "on-demand"]], ...] = (
        (spec.count - base, spec.purchase),
        (base, "on-demand"),
    )
    for count, purchase in shares:
        price = hourly_price(instance_type, purchase, region) if count else 0.0
        if price is None:
            return None
        cost += count * price
    return cost


# The account ------------------------------------------------------------------------------------------------
def plan(spec: Ec2Spec) -> tuple[Step, ...]:
    clients = Clients()
    with explained(spec.name):
        found = _look(clients, spec.name, spec.subnets)
        made = (*_spot_role(clients, spec), *steps(spec, found, _region(clients), _address(spec)))
    check(made, spec.name)
    if any(step.kind == "group" for step in made):
        _need_quotas(clients, spec, is_new=found.scaling is None)
    return made


def _spot_role(clients: Clients, spec: Ec2Spec) -> tuple[Step, ...]:
    if spec.purchase != "spot" or has_spot_role(clients.of("iam")):
        return ()

    def make() -> bool:
        make_spot_role(clients.of("iam"))
        return True

    detail = "of the account, for Spot"
    return (Step(action="create", kind="service-linked role", name=SPOT_ROLE, detail=detail, apply=make),)


def _need_quotas(clients: Clients, spec: Ec2Spec, *, is_new: bool) -> None:
    """JobError where nothing of a new group could start; warnings of whatever else is short."""
    base, most = spec.on_demand_base, max(vcpus_of(spec.instance_types))
    wishes = [Wish(types=spec.instance_types, purchase=spec.purchase, vcpus=(spec.count - base) * most)]
    wishes += [Wish(types=spec.instance_types, purchase="on-demand", vcpus=base * most)]
    wanted = [each for each in wishes if each.vcpus]
    short, unseen = look(find_shortages(clients.of("service-quotas"), wanted))
    for each in short:
        log.warning("%s", each)
    if unseen:
        log.warning("%s", unseen)
    if is_new and any(each.is_total for each in short):
        raise JobError.from_findings(spec.name, [str(each) for each in short])


def up(spec: Ec2Spec, tell: Tell, *, patience: WaitLimits | None = None) -> tuple[Step, ...]:
    """Make it so, and wait until every instance answers (a server) or has started its worker."""
    clients, patience = Clients(), patience or WaitLimits(longest_s=spec.startup_s + 600)
    made = plan(spec)
    group_id = refresh = None
    with explained(spec.name):
        for step in made:
            tell(str(step))
            if step.apply is not None:
                step.apply()
            for call in step.calls:
                if call.operation == "start_instance_refresh":
                    _await_calm(clients, spec, patience, tell)
                group_id = group_id or _look(clients, spec.name, spec.subnets).group_id
                answer = _make_call(clients, with_group(call, group_id))
                group_id = answer.get("GroupId", group_id)
                refresh = answer.get("InstanceRefreshId", refresh)
        _await_instances(clients, spec, patience, tell, refresh)
        left = _look(clients, spec.name, ()).outdated
    if left:
        raise BackendError(f"{spec.name}: {', '.join(left)} ran before this file; call `vsr ec2 up` again")
    return made


def down(name: str, tell: Tell, *, patience: WaitLimits | None = None) -> tuple[Step, ...]:
    """End the instances and remove all that was made for them; nothing else."""
    clients, patience = Clients(), patience or WaitLimits(longest_s=900)
    with explained(name):
        made = removal(name, _look(clients, name, ()))
        for step in made:
            tell(str(step))
            for call in step.calls:
                clients.make(call)
            if step.kind == "group":
                _await_end(clients, name, patience, tell)
    return made


def status(name: str) -> dict[str, Any]:
    """The instances: which, where, how they were bought, how they are, and how to reach them."""
    clients = Clients()
    with explained(name):
        found = _look(clients, name, ())
        if found.scaling is None:
            raise JobError(f"there is nothing named {name}; `vsr ec2 up` makes it")
        members = found.scaling["Instances"]
        details = _instances(clients, [each["InstanceId"] for each in members])
    return {
        "name": name,
        "wanted": found.scaling["DesiredCapacity"],
        "instances": [
            _describe_instance(each, details.get(each["InstanceId"], {}), found) for each in members
        ],
    }


def _describe_instance(member: Request, detail: Request, found: FleetInventory) -> dict[str, Any]:
    address, number, port = detail.get("PublicIpAddress"), member["InstanceId"], found.port
    session = f"aws ssm start-session --target {number}"
    if port:
        session += " --document-name AWS-StartPortForwardingSession"
        session += f" --parameters portNumber={port},localPortNumber={port}"
    return {
        "id": number,
        "type": detail.get("InstanceType"),
        "zone": member["AvailabilityZone"],
        "state": member["LifecycleState"],
        "health": member["HealthStatus"],
        "purchase": detail.get("InstanceLifecycle", "on-demand"),
        "url": f"http://{address}:{port}" if address and port and found.rules else None,
        "session": session,
    }


def _make_call(clients: Clients, call: Call) -> Request:
    """AWS's answer. A refresh that was to end and is over by now is as wanted."""
    try:
        answer: Request = clients.make(call)
    except ClientError as exc:
        if error_code(exc) != "ActiveInstanceRefreshNotFound":
            raise
        return {}
    return answer


def _await_calm(clients: Clients, spec: Ec2Spec, patience: WaitLimits, tell: Tell) -> None:
    """Until an earlier refresh is over: a group has one at a time."""
    until, last = time.monotonic() + patience.longest_s, ""
    while is_under_way(refresh := _latest_refresh(clients, spec.resource)):
        now = f"an earlier refresh is {refresh['Status']}" if refresh else ""
        if now != last:
            tell(now)
            last = now
        if time.monotonic() > until:
            raise BackendError(f"{spec.name}: {now} after {patience.longest_s:.0f} s; call again")
        time.sleep(patience.poll_s)


def _await_instances(
    clients: Clients, spec: Ec2Spec, patience: WaitLimits, tell: Tell, awaited: str | None
) -> None:
    """Until the refresh `awaited`, or any that is under way, has done its work, and all instances answer.

    Workers that find nothing left for them go, and their group wants fewer.
    """
    until, last = time.monotonic() + patience.longest_s, ""
    while True:
        group, refresh = _scaling_group(clients, spec.resource), _latest_refresh(clients, spec.resource)
        members = group["Instances"] if group else []
        wanted = min(spec.count, group["DesiredCapacity"]) if group else spec.count
        ready = [each for each in members if each["LifecycleState"] == "InService"]
        is_moving = is_under_way(refresh)
        if refresh and is_moving:
            awaited = refresh["InstanceRefreshId"]
        elif refresh and refresh["InstanceRefreshId"] == awaited and refresh["Status"] != "Successful":
            raise BackendError(
                f"{spec.name}: the new instances do not take over, the refresh is {refresh['Status']}: "
                f"{refresh.get('StatusReason', 'AWS gives no reason')}; the old ones that are left still work"
            )
        if len(ready) >= wanted and not is_moving:
            return
        now = f"{len(ready)} of {wanted} ready" + "".join(
            f", {each['InstanceId']} {each['LifecycleState']}" for each in members if each not in ready
        )
        if refresh and is_moving:
            now += f", refresh {refresh['Status']} {refresh.get('PercentageComplete', 0)} %"
        if len(members) < wanted and (why := _why_none_starts(clients, spec.resource)):
            now += f"; {why}"
        if now != last:
            tell(now)
            last = now
        if time.monotonic() > until:
            way = _way_out(spec, len(members) < wanted)
            raise BackendError(f"{spec.name}: {now} after {patience.longest_s:.0f} s; {way}")
        time.sleep(patience.poll_s)


def _why_none_starts(clients: Clients, called: str) -> str:
    """What Auto Scaling says of its last launch, where that failed."""
    found = clients.of("autoscaling").describe_scaling_activities(AutoScalingGroupName=called, MaxRecords=1)
    latest = found["Activities"][0] if found["Activities"] else {}
    return str(latest.get("StatusMessage", "")).rstrip(".") if latest.get("StatusCode") == "Failed" else ""


def _way_out(spec: Ec2Spec, is_short: bool) -> str:
    if not is_short:
        reason = "the instance's console output (aws ec2 get-console-output) says why"
    elif spec.purchase == "spot":
        reason = "the group goes on trying; more instance_types, more subnets or on_demand_base help"
    else:
        reason = "the group goes on trying; more instance_types or more subnets help"
    return f"{reason}. `vsr ec2 down` ends it"


def _await_end(clients: Clients, name: str, patience: WaitLimits, tell: Tell) -> None:
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


def _look(clients: Clients, name: str, subnets: tuple[str, ...]) -> FleetInventory:
    ec2, called = clients.of("ec2"), resource_name(name)
    groups = ec2.describe_security_groups(
        Filters=[{"Name": "group-name", "Values": [called]}, {"Name": f"tag:{TAG}", "Values": [name]}]
    )["SecurityGroups"]
    templates = ec2.describe_launch_templates(Filters=[{"Name": "launch-template-name", "Values": [called]}])
    has_template = bool(templates["LaunchTemplates"])
    scaling_group = _scaling_group(clients, called)
    there = [("GroupId", groups), ("LaunchTemplateId", templates["LaunchTemplates"])]
    there.append(("AutoScalingGroupName", [scaling_group] if scaling_group else []))
    tags = tuple((str(each[key]), _tags_of(each)) for key, things in there for each in things)
    for _, found in tags:
        if found.get(TAG) != name:
            raise JobError(
                f"{called} is there and was not made by vsr (it lacks the tag {TAG}); it is left alone"
            )
    latest: Request = {}
    if has_template:
        versions = ec2.describe_launch_template_versions(LaunchTemplateName=called, Versions=["$Latest"])
        latest = versions["LaunchTemplateVersions"][0]
    startup_s = _startup_s(clients, called) if scaling_group else None
    vpc = ec2.describe_subnets(SubnetIds=list(subnets))["Subnets"][0]["VpcId"] if subnets else None
    return FleetInventory(
        vpc=vpc,
        group_id=groups[0]["GroupId"] if groups else None,
        rules=tuple(_open(groups[0])) if groups else (),
        port=port_in(latest.get("LaunchTemplateData", {}).get("UserData", "")),
        template_hash=latest.get("VersionDescription"),
        template_version=latest.get("VersionNumber"),
        has_template=has_template,
        scaling=scaling_group,
        startup_s=startup_s,
        tags=tags,
        refresh=_latest_refresh(clients, called) if scaling_group else None,
    )


def _tags_of(thing: Request) -> dict[str, str]:
    return {each["Key"]: each["Value"] for each in thing.get("Tags", [])}


def _scaling_group(clients: Clients, called: str) -> Request | None:
    found = clients.of("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=[called])
    groups: list[Request] = found["AutoScalingGroups"]
    return groups[0] if groups else None


def _latest_refresh(clients: Clients, called: str) -> Request | None:
    found = clients.of("autoscaling").describe_instance_refreshes(AutoScalingGroupName=called, MaxRecords=1)
    refreshes: list[Request] = found["InstanceRefreshes"]
    return refreshes[0] if refreshes else None


def _startup_s(clients: Clients, called: str) -> int | None:
    hooks = clients.of("autoscaling").describe_lifecycle_hooks(
        AutoScalingGroupName=called, LifecycleHookNames=[HOOK]
    )["LifecycleHooks"]
    return int(hooks[0]["HeartbeatTimeout"]) if hooks else None


def _instances(clients: Clients, numbers: list[str]) -> dict[str, Request]:
    if not numbers:
        return {}
    pages = clients.of("ec2").describe_instances(InstanceIds=numbers)["Reservations"]
    return {each["InstanceId"]: each for page in pages for each in page["Instances"]}


def _open(group: Request) -> Iterator[Request]:
    """Every rule, one source each. A rule for all traffic has no ports."""
    for rule in group["IpPermissions"]:
        what = {key: rule[key] for key in ("IpProtocol", "FromPort", "ToPort") if key in rule}
        for kind in SOURCES:
            yield from ({**what, kind: [each]} for each in rule.get(kind, []))


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


def _region(clients: Clients) -> str:
    return str(clients.of("ec2").meta.region_name)
