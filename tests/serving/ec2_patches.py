"""What an Auto Scaling group does with its instances, on a moto server. Run before moto.

moto 5.2 takes no hooks when a group is made, has every instance in service at once, replaces none that is
gone, updates no CapacityRebalance, tells no instance's template version, and knows neither
CompleteLifecycleAction nor instance refreshes. A refresh here starts new instances first, ends the old ones
once all new ones are in service, and fails when the hook has thrown two of them away.

Of a group's instances the base is bought on demand first, then the share above it; a group never buys on
demand what it was to buy on Spot (docs.aws.amazon.com/autoscaling/ec2/userguide/ec2-auto-scaling-mixed-
instances-groups.html, 2026-12-01). Where Spot has nothing, its part is missing and the group's activities say
why.

    POST /moto-api/spot   {"dry": true}   Spot has no capacity from now on
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from moto.autoscaling.exceptions import AutoscalingClientError
from moto.autoscaling.models import AutoScalingBackend, FakeAutoScalingGroup, InstanceState
from moto.autoscaling.responses import AutoScalingResponse
from moto.core.responses import ActionResult, EmptyResult
from moto.core.types import Base64EncodedString
from moto.ec2.models.launch_templates import LaunchTemplate, LaunchTemplateVersion
from moto.moto_api._internal import urls
from moto.moto_api._internal.models import MotoAPIBackend

from tests.new_account import has_spot_role, is_role_unknown

_create, _update = (
    AutoScalingResponse.create_auto_scaling_group,
    AutoScalingResponse.update_auto_scaling_group,
)
_launch = FakeAutoScalingGroup.replace_autoscaling_group_instances
_describe, _template = AutoScalingBackend.describe_auto_scaling_groups, InstanceState.launch_template.fget


_DRY = (
    "Could not launch Spot Instances. UnfulfillableCapacity - Unable to fulfill capacity due to your request "
    "configuration. Please adjust your request and try again. Launching EC2 instance failed."
)
sky = {"dry": False}


def weather(request: Any, full_url: str, headers: Any) -> tuple[int, dict[str, str], str]:
    sky.update(json.loads(request.data))
    return 200, {}, "{}"


_reset = MotoAPIBackend.reset


def reset(self: Any) -> None:
    sky["dry"] = False
    _reset(self)


_NO_ROLE = (
    "AuthFailure.ServiceLinkedRoleCreationNotPermitted - The provided credentials do not have permission to "
    "create the service-linked role for EC2 Spot Instances. Launching EC2 instance failed."
)


class UnknownProfile(AutoscalingClientError):
    code = "ValidationError"
    message = "You must use a valid fully-formed launch template. Invalid IAM Instance Profile name"


class RefreshInProgress(AutoscalingClientError):
    code = "InstanceRefreshInProgress"
    message = "An Instance Refresh is already in progress and blocks the execution of this Instance Refresh."


class NoRefresh(AutoscalingClientError):
    code = "ActiveInstanceRefreshNotFound"
    message = "No in progress or pending Instance Refresh found for Auto Scaling group."


def create_auto_scaling_group(self: Any) -> ActionResult:
    name = self._get_param("AutoScalingGroupName")
    if is_role_unknown():
        raise UnknownProfile()
    for each in self._get_param("LifecycleHookSpecificationList", []):
        self.autoscaling_backend.create_lifecycle_hook(
            each["LifecycleHookName"], name, each["LifecycleTransition"], int(each["HeartbeatTimeout"]),
            each["DefaultResult"],
        )  # fmt: skip
    return _create(self)


def update_auto_scaling_group(self: Any) -> ActionResult:
    group = self.autoscaling_backend.autoscaling_groups[self._get_param("AutoScalingGroupName")]
    group.capacity_rebalance = self._get_bool_param("CapacityRebalance", group.capacity_rebalance)
    return _update(self)


def launch(self: Any, count: int, tags: dict[str, str]) -> None:
    """New instances wait for whoever completes the group's hook."""
    share = (self.mixed_instances_policy or {}).get("InstancesDistribution", {})
    base = int(share.get("OnDemandBaseCapacity", 0))
    percent = int(share.get("OnDemandPercentageAboveBaseCapacity", 100))
    bought = [each for each in self.instance_states if each.instance.lifecycle != "spot"]
    on_demand = count if percent == 100 else min(count, max(0, base - len(bought)))
    spot = count - on_demand
    has_role = has_spot_role(self.autoscaling_backend.account_id)
    if spot and (sky["dry"] or not has_role):
        self.__dict__.setdefault("activities", []).insert(
            0, _failed(self.name, _DRY if has_role else _NO_ROLE)
        )
        spot = 0
    for number, lifecycle in ((on_demand, None), (spot, "spot")):
        before = set(map(id, self.instance_states))
        if number:
            _launch(self, number, tags)
        for state in (each for each in self.instance_states if id(each) not in before):
            state.template_version = self.ec2_launch_template.latest_version_number
            if self.autoscaling_backend.describe_lifecycle_hooks(self.name):
                state.lifecycle_state = "Pending:Wait"
            state.instance.lifecycle = lifecycle


def _failed(group: str, why: str) -> dict[str, Any]:
    return {
        "ActivityId": "a", "AutoScalingGroupName": group, "Cause": "an instance was missing",
        "StartTime": datetime.now(UTC), "StatusCode": "Failed", "StatusMessage": why,
    }  # fmt: skip


def describe_scaling_activities(self: Any) -> ActionResult:
    group = self.autoscaling_backend.autoscaling_groups[self._get_param("AutoScalingGroupName")]
    found = group.__dict__.get("activities", [])
    return ActionResult({"Activities": found[: self._get_int_param("MaxRecords")]})


def describe(self: Any, names: Any, filters: Any = None) -> Any:
    """Instances that ended, or were called unhealthy, are replaced."""
    for group in self.autoscaling_groups.values():
        _reconcile(self, group)
    return _describe(self, names, filters)


def _reconcile(backend: Any, group: Any) -> None:
    gone = [each for each in group.instance_states if each.instance.state != "running"]
    ill = [each for each in group.instance_states if each.health_status != "Healthy" and each not in gone]
    if ill:
        backend.ec2_backend.terminate_instances([each.instance.id for each in ill])
    group.instance_states = [each for each in group.instance_states if each not in (*gone, *ill)]
    refresh = _refresh(group)
    if refresh:
        _go_on(backend, group, refresh)
    are_old = (
        [each.instance.id in group.old_ones for each in group.instance_states] if _refresh(group) else []
    )
    missing = int(group.desired_capacity) - len(group.instance_states) + sum(are_old)
    if missing > 0:
        group.replace_autoscaling_group_instances(missing, group.get_propagated_tags())


def _refresh(group: Any) -> dict[str, Any] | None:
    """That which is under way."""
    found = group.__dict__.setdefault("refreshes", [])
    return found[0] if found and found[0]["Status"] in ("InProgress", "Cancelling") else None


def _go_on(backend: Any, group: Any, refresh: dict[str, Any]) -> None:
    old = [each for each in group.instance_states if each.instance.id in group.old_ones]
    new = [each for each in group.instance_states if each not in old]
    if refresh["Status"] == "Cancelling":
        refresh["Status"] = "Cancelled"
    elif group.abandoned >= 2:
        reason = "Instances failed to become healthy: a lifecycle action was abandoned."
        refresh.update({"Status": "Failed", "StatusReason": reason})
    elif len(new) >= int(group.desired_capacity) and all(each.lifecycle_state == "InService" for each in new):
        group.instance_states = new
        if old:
            backend.ec2_backend.terminate_instances([each.instance.id for each in old])
        refresh.update({"Status": "Successful", "PercentageComplete": 100})


def complete_lifecycle_action(self: Any) -> EmptyResult:
    wanted, result = self._get_param("InstanceId"), self._get_param("LifecycleActionResult")
    group = self.autoscaling_backend.autoscaling_groups[self._get_param("AutoScalingGroupName")]
    hooks = self.autoscaling_backend.describe_lifecycle_hooks(group.name)
    assert self._get_param("LifecycleHookName") in [each.name for each in hooks]
    state = next(each for each in group.instance_states if each.instance.id == wanted)
    if result == "CONTINUE":
        state.lifecycle_state = "InService"
    else:
        state.health_status = "Unhealthy"
        group.abandoned = getattr(group, "abandoned", 0) + 1
    return EmptyResult()


def start_instance_refresh(self: Any) -> ActionResult:
    group = self.autoscaling_backend.autoscaling_groups[self._get_param("AutoScalingGroupName")]
    if _refresh(group):
        raise RefreshInProgress()
    group.old_ones, group.abandoned = {each.instance.id for each in group.instance_states}, 0
    refresh = {
        "InstanceRefreshId": f"refresh-{len(group.refreshes) + 1}",
        "AutoScalingGroupName": group.name,
        "Status": "InProgress",
        "PercentageComplete": 0,
    }
    group.refreshes.insert(0, refresh)
    return ActionResult({"InstanceRefreshId": refresh["InstanceRefreshId"]})


def cancel_instance_refresh(self: Any) -> ActionResult:
    group = self.autoscaling_backend.autoscaling_groups[self._get_param("AutoScalingGroupName")]
    refresh = _refresh(group)
    if not refresh:
        raise NoRefresh()
    refresh["Status"] = "Cancelling"
    return ActionResult({"InstanceRefreshId": refresh["InstanceRefreshId"]})


def describe_instance_refreshes(self: Any) -> ActionResult:
    group = self.autoscaling_backend.autoscaling_groups[self._get_param("AutoScalingGroupName")]
    _reconcile(self.autoscaling_backend, group)
    return ActionResult({"InstanceRefreshes": group.refreshes[: self._get_int_param("MaxRecords")]})


def launch_template(self: Any) -> Any:
    """Of an instance: the version that it was started from."""
    found = _template(self)
    version = getattr(self, "template_version", None)
    return {**found, "Version": str(version)} if found and version else found


def terminate_instance(self: Any, number: str, should_decrement: bool) -> Any:
    """moto loses count when a group may be empty."""
    from moto.autoscaling.models import TerminateInstanceActivity

    group = next(
        each
        for each in self.autoscaling_groups.values()
        if number in [state.instance.id for state in each.instance_states]
    )
    (state,) = [each for each in group.instance_states if each.instance.id == number]
    before = group.desired_capacity
    if should_decrement:
        group.desired_capacity -= 1
    group.instance_states.remove(state)
    self.ec2_backend.terminate_instances([number])
    return TerminateInstanceActivity(state.instance, before)


def delete_auto_scaling_group(self: Any, group_name: str) -> None:
    """All its instances go, also those that still wait."""
    group = self.autoscaling_groups.pop(group_name)
    for each in self.describe_lifecycle_hooks(group_name):
        self.delete_lifecycle_hook(group_name, each.name)
    numbers = [each.instance.id for each in group.instance_states if each.instance.state == "running"]
    if numbers:
        self.ec2_backend.terminate_instances(numbers)


def user_data(self: Any) -> Any:
    """moto takes the encoding of a template's first version for granted and forgets it in later ones."""
    found = self.data.get("UserData")
    return Base64EncodedString(found) if isinstance(found, str) else found


LaunchTemplateVersion.user_data = property(user_data)
LaunchTemplate.tags = property(lambda self: self.get_tags(), lambda self, tags: None)  # moto keeps the first
AutoScalingResponse.create_auto_scaling_group = create_auto_scaling_group
AutoScalingResponse.update_auto_scaling_group = update_auto_scaling_group
AutoScalingResponse.complete_lifecycle_action = complete_lifecycle_action
AutoScalingResponse.start_instance_refresh = start_instance_refresh
AutoScalingResponse.cancel_instance_refresh = cancel_instance_refresh
AutoScalingResponse.describe_instance_refreshes = describe_instance_refreshes
InstanceState.launch_template = property(launch_template)
FakeAutoScalingGroup.replace_autoscaling_group_instances = launch
AutoScalingBackend.describe_auto_scaling_groups = describe
AutoScalingBackend.terminate_instance = terminate_instance
AutoScalingBackend.delete_auto_scaling_group = delete_auto_scaling_group
AutoScalingResponse.describe_scaling_activities = describe_scaling_activities
MotoAPIBackend.reset = reset
urls.url_paths["{0}/moto-api/spot$"] = weather
