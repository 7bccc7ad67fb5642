"""How an endpoint goes from one configuration to the next: the shift of traffic, and how it went."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from vsr_hpc.aws.account import WaitLimits
from vsr_hpc.aws.endpoint.requests import Request, rollback_alarms
from vsr_hpc.aws.endpoint.spec import EndpointSpec, Rollout
from vsr_hpc.errors import BackendError

log = logging.getLogger(__name__)


_AT_ONCE = Rollout(traffic="all-at-once", bake_s=0)
_MOVING = ("Creating", "Updating", "RollingBack", "SystemUpdating", "Deleting")


def update_request(spec: EndpointSpec, config: str, *, at_once: bool, was_scaled: bool) -> Request:
    """update_endpoint's parameters. Where instances scale by themselves, their number is not the file's."""
    found: Request = {"EndpointName": spec.name, "EndpointConfigName": config}
    if was_scaled and spec.autoscale is not None:
        found |= {
            "RetainAllVariantProperties": True,
            "ExcludeRetainedVariantProperties": [
                {"VariantPropertyType": "DesiredWeight"},
                {"VariantPropertyType": "DataCaptureConfig"},
            ],
        }
    if spec.serverless is None:
        found["DeploymentConfig"] = deployment(spec, _AT_ONCE if at_once else spec.rollout or _AT_ONCE)
    return found


def deployment(spec: EndpointSpec, rollout: Rollout) -> Request:
    """DeploymentConfig of a blue/green update: steps, baking, and the alarms that turn it back."""
    routing: Request = {
        "Type": rollout.traffic.upper().replace("-", "_"),
        "WaitIntervalInSeconds": rollout.bake_s,
    }
    size = {"Type": "CAPACITY_PERCENT", "Value": rollout.percent}
    if rollout.traffic == "canary":
        routing["CanarySize"] = size
    elif rollout.traffic == "linear":
        routing["LinearStepSize"] = size
    found: Request = {
        "BlueGreenUpdatePolicy": {
            "TrafficRoutingConfiguration": routing,
            "TerminationWaitInSeconds": rollout.keep_old_s,
            "MaximumExecutionTimeoutInSeconds": rollout.timeout_s,
        }
    }
    if alarms := rollback_alarms(spec):
        found["AutoRollbackConfiguration"] = {"Alarms": [{"AlarmName": each} for each in alarms]}
    return found


def in_words(spec: EndpointSpec, *, at_once: bool) -> str:
    """The shift as the plan tells it."""
    rollout = _AT_ONCE if at_once else spec.rollout or _AT_ONCE
    back = "; back on an alarm" if rollback_alarms(spec) else ""
    if rollout.traffic == "canary":
        return f"canary of {rollout.percent} %, then all, {rollout.bake_s} s each{back}"
    if rollout.traffic == "linear":
        return f"linear, {rollout.percent} % every {rollout.bake_s} s{back}"
    return f"all at once, watched for {rollout.bake_s} s{back}" if rollout.bake_s else f"all at once{back}"


def wait_until_settled(
    describe: Callable[[], Any], patience: WaitLimits, tell: Callable[[str], None] = lambda line: None
) -> Any:
    """The endpoint's description once it moves no more, None where it is gone; `tell` hears each stage."""
    until, last = time.monotonic() + patience.longest_s, ""
    while True:
        found = describe()
        if found is None or found["EndpointStatus"] not in _MOVING:
            return found
        now = stage(found)
        if now != last:
            tell(now)
            last = now
        if time.monotonic() > until:
            raise BackendError(f"endpoint {found['EndpointName']} is still {now}; ask `vsr endpoint status`")
        time.sleep(patience.poll_s)


def stage(found: Any) -> str:
    """What an endpoint does now: 'Updating: baking, 10 % of the traffic on the new instances'."""
    status = str(found["EndpointStatus"])
    pending = found.get("PendingDeploymentSummary")
    if not pending:
        return status
    seen = {
        str(each["Status"])
        for variant in pending.get("ProductionVariants", [])
        for each in variant.get("VariantStatus", [])
    }
    doing = ", ".join(sorted(each.lower() for each in seen))
    weights = [
        each["CurrentWeight"] for each in pending.get("ProductionVariants", []) if each.get("CurrentWeight")
    ]
    moved = f"; traffic moved {max(weights):g}" if weights else ""
    return f"{status}: {doing}{moved}" if doing else status


def check_went_well(found: Any, name: str, config: str, tripped: tuple[str, ...]) -> None:
    """BackendError where the endpoint does not serve the configuration that it was asked to."""
    status = found["EndpointStatus"] if found else "gone"
    if status == "InService" and found["EndpointConfigName"] == config:
        return
    because = (found or {}).get("FailureReason") or (
        f"alarm {', '.join(tripped)}" if tripped else "SageMaker gives no reason; the container's log may"
    )
    if status == "InService":
        raise BackendError(
            f"endpoint {name}: the change was rolled back, {found['EndpointConfigName']} still serves; "
            f"{because}"
        )
    raise BackendError(f"endpoint {name} is {status}: {because}")
