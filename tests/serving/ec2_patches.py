"""What an Auto Scaling group does with its instances, on a moto server. Run before moto.

moto 5.2 takes no hooks when a group is made, has every instance in service at once, replaces none that is
gone, updates no CapacityRebalance, and knows neither CompleteLifecycleAction nor StartInstanceRefresh.
"""

from __future__ import annotations

from typing import Any

from moto.autoscaling.models import AutoScalingBackend, FakeAutoScalingGroup
from moto.autoscaling.responses import AutoScalingResponse
from moto.core.responses import ActionResult, EmptyResult
from moto.core.types import Base64EncodedString
from moto.ec2.models.launch_templates import LaunchTemplateVersion

_create, _update = (
    AutoScalingResponse.create_auto_scaling_group,
    AutoScalingResponse.update_auto_scaling_group,
)
_launch = FakeAutoScalingGroup.replace_autoscaling_group_instances
_describe = AutoScalingBackend.describe_auto_scaling_groups


def create_auto_scaling_group(self: Any) -> ActionResult:
    name = self._get_param("AutoScalingGroupName")
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
    """New instances wait for whoever completes the group's hook; they are Spot where the group says so."""
    before = set(map(id, self.instance_states))
    _launch(self, count, tags)
    share = (self.mixed_instances_policy or {}).get("InstancesDistribution", {})
    for state in self.instance_states:
        if id(state) in before:
            continue
        if self.autoscaling_backend.describe_lifecycle_hooks(self.name):
            state.lifecycle_state = "Pending:Wait"
        if str(share.get("OnDemandPercentageAboveBaseCapacity")) == "0":
            state.instance.lifecycle = "spot"


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
    missing = int(group.desired_capacity) - len(group.instance_states)
    if missing > 0:
        group.replace_autoscaling_group_instances(missing, group.get_propagated_tags())


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
    return EmptyResult()


def start_instance_refresh(self: Any) -> ActionResult:
    group = self.autoscaling_backend.autoscaling_groups[self._get_param("AutoScalingGroupName")]
    for state in group.instance_states:
        state.health_status = "Unhealthy"
    return ActionResult({"InstanceRefreshId": "refresh-1"})


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
AutoScalingResponse.create_auto_scaling_group = create_auto_scaling_group
AutoScalingResponse.update_auto_scaling_group = update_auto_scaling_group
AutoScalingResponse.complete_lifecycle_action = complete_lifecycle_action
AutoScalingResponse.start_instance_refresh = start_instance_refresh
FakeAutoScalingGroup.replace_autoscaling_group_instances = launch
AutoScalingBackend.describe_auto_scaling_groups = describe
AutoScalingBackend.terminate_instance = terminate_instance
AutoScalingBackend.delete_auto_scaling_group = delete_auto_scaling_group
