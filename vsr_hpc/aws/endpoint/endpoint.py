"""SageMaker endpoints from an endpoint.yaml: read the account, plan the steps, carry them out, wait."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

from vsr_hpc.aws.account import WaitLimits
from vsr_hpc.aws.calls import Clients, check
from vsr_hpc.aws.endpoint import autoscaling as autoscale
from vsr_hpc.aws.endpoint import changes as diff
from vsr_hpc.aws.endpoint import inventory as account
from vsr_hpc.aws.endpoint import rollout
from vsr_hpc.aws.endpoint.inventory import describe, look
from vsr_hpc.aws.endpoint.requests import config_request, rollback_alarms, variants
from vsr_hpc.aws.endpoint.spec import EndpointSpec
from vsr_hpc.aws.errors import explained
from vsr_hpc.aws.quotas import find_sagemaker_shortages
from vsr_hpc.aws.quotas import look as look_at_quotas
from vsr_hpc.aws.steps import Call, Step
from vsr_hpc.errors import BackendError, JobError

log = logging.getLogger(__name__)


Tell = Callable[[str], None]


def _silent(line: str) -> None:
    log.info("%s", line)


def plan(spec: EndpointSpec, *, at_once: bool = False, must_exist: bool = False) -> tuple[Step, ...]:
    """What applying this would do now, in order; empty where all is as wanted. JobError where AWS refuses."""
    clients = Clients()
    with explained(spec.name):
        return _plan_steps(clients, spec, at_once=at_once, must_exist=must_exist)


def apply(
    spec: EndpointSpec,
    *,
    at_once: bool = False,
    must_exist: bool = False,
    patience: WaitLimits | None = None,
    tell: Tell = _silent,
) -> tuple[Step, ...]:
    """Make it so, and wait until it serves. What is no longer needed goes last.

    An update that does not reach the new configuration raises BackendError and leaves the old one serving.
    """
    clients, patience = Clients(), patience or WaitLimits()
    with explained(spec.name):
        rollout.wait_until_settled(lambda: describe(clients, spec.name), patience, tell)
        steps = _plan_steps(clients, spec, at_once=at_once, must_exist=must_exist)
        for step in steps:
            tell(str(step))
            _do(clients, step, spec, patience, tell)
    return steps


def delete(
    name: str, *, keeps_registry: bool = False, patience: WaitLimits | None = None, tell: Tell = _silent
) -> tuple[Step, ...]:
    """Remove the endpoint and all that was made for it, by its tag and our names; nothing else."""
    clients, patience = Clients(), patience or WaitLimits()
    with explained(name):
        rollout.wait_until_settled(lambda: describe(clients, name), patience, tell)
        steps = diff.removal(name, look(clients, name))
        steps = tuple(each for each in steps if not (keeps_registry and each.kind == "registry"))
        for step in steps:
            tell(str(step))
            for call in step.calls:
                clients.make(call)
            if step.kind == "endpoint":
                rollout.wait_until_settled(lambda: describe(clients, name), patience, tell)
    return steps


def status(name: str) -> dict[str, Any]:
    """The endpoint's state, what is on its way, its variants, alarms and scaling."""
    clients = Clients()
    with explained(name):
        found = describe(clients, name)
        if found is None:
            raise JobError(f"there is no endpoint {name}")
        there = look(clients, name)
        approved = list(account.packages(clients, name, approved_only=True))
    targets = {
        key.rpartition("/")[2]: (each["MinCapacity"], each["MaxCapacity"])
        for key, each in there.targets.items()
    }
    total = sum(each.get("CurrentWeight") or 0.0 for each in found.get("ProductionVariants", []))
    return {
        "name": name,
        "status": found["EndpointStatus"],
        "doing": rollout.stage(found),
        "configuration": found["EndpointConfigName"],
        "variants": [
            {
                "name": each["VariantName"],
                "instances": each.get("CurrentInstanceCount"),
                "wanted": each.get("DesiredInstanceCount"),
                "share": round((each.get("CurrentWeight") or 0.0) / total, 4) if total else None,
                "scaling": targets.get(each["VariantName"]),
            }
            for each in found.get("ProductionVariants", [])
        ],
        "alarms": {key: each.get("StateValue") for key, each in sorted(there.alarms.items())},
        "schedule": (there.schedule or {}).get("ScheduleExpression"),
        "approved": [each for each in approved if ":model-package/" in each],
        "failure": found.get("FailureReason"),
    }


def shift(name: str, weights: Mapping[str, float], *, is_plan: bool = False) -> tuple[Step, ...]:
    """Other weights for an A/B endpoint's variants, at once."""
    clients = Clients()
    with explained(name):
        there = _need_in_service(clients, name)
        unknown = sorted(set(weights) - set(there.weights))
        if unknown:
            raise JobError(
                f"endpoint {name} has no variant {', '.join(unknown)}; it has {_variant_names(there)}"
            )
        after = {key: weights.get(key, value or 0.0) for key, value in there.weights.items()}
        if not sum(after.values()):
            raise JobError(f"endpoint {name}: all weights would be 0, so nobody would be asked")
        if all(there.weights[key] == value for key, value in weights.items()):
            return ()
        total = sum(after.values())
        said = ", ".join(f"{key} {100 * value / total:.0f} %" for key, value in after.items())
        changed = [{"VariantName": key, "DesiredWeight": value} for key, value in weights.items()]
        return _carry_out(clients, _capacities(name, changed, said), is_plan)


def scale(
    name: str,
    *,
    variant: str | None = None,
    count: int | None = None,
    least: int | None = None,
    most: int | None = None,
    is_plan: bool = False,
) -> tuple[Step, ...]:
    """Another number of instances, or other bounds where they scale by themselves."""
    clients = Clients()
    with explained(name):
        there = _need_in_service(clients, name)
        chosen = variant or (next(iter(there.counts)) if len(there.counts) == 1 else None)
        if chosen is None or chosen not in there.counts:
            raise JobError(
                f"endpoint {name}: say which of its variants ({_variant_names(there)}) with --variant"
            )
        key = autoscale.resource_id(name, chosen)
        target = look(clients, name).targets.get(key)
        if count is not None:
            if target is not None:
                raise JobError(
                    f"{name}/{chosen} scales by itself between {target['MinCapacity']} and "
                    f"{target['MaxCapacity']}; move the bounds with --least and --most"
                )
            if there.counts[chosen] == count:
                return ()
            changed = [{"VariantName": chosen, "DesiredInstanceCount": count}]
            said = f"{chosen} {there.counts[chosen]} to {count} instances"
            return _carry_out(clients, _capacities(name, changed, said), is_plan)
        if target is None:
            raise JobError(
                f"{name}/{chosen} does not scale by itself; give --count, or autoscale in its file"
            )
        bounds = {
            "MinCapacity": target["MinCapacity"] if least is None else least,
            "MaxCapacity": target["MaxCapacity"] if most is None else most,
        }
        if bounds["MinCapacity"] > bounds["MaxCapacity"]:
            raise JobError(f"--least {bounds['MinCapacity']} is more than --most {bounds['MaxCapacity']}")
        request = {**autoscale.target_key(name, chosen), **bounds}
        call = Call(
            service="application-autoscaling", operation="register_scalable_target", parameters=request
        )
        detail = f"{bounds['MinCapacity']} to {bounds['MaxCapacity']} instances"
        step = Step(action="update", kind="autoscaling", name=key, detail=detail, calls=(call,))
        return _carry_out(clients, step, is_plan)


def _carry_out(clients: Clients, step: Step, is_plan: bool) -> tuple[Step, ...]:
    check((step,), step.name)
    if not is_plan:
        for call in step.calls:
            clients.make(call)
    return (step,)


def _capacities(name: str, changed: list[dict[str, Any]], said: str) -> Step:
    call = Call(
        service="sagemaker",
        operation="update_endpoint_weights_and_capacities",
        parameters={"EndpointName": name, "DesiredWeightsAndCapacities": changed},
    )
    return Step(action="update", kind="weights", name=name, detail=said, calls=(call,))


def _need_in_service(clients: Clients, name: str) -> diff.Endpoint:
    there = account.endpoint(clients, name)
    if there is None:
        raise JobError(f"there is no endpoint {name}")
    if not there.is_ours:
        raise JobError(diff.not_ours(name))
    if there.status != "InService":
        raise BackendError(f"endpoint {name} is {there.status}; wait until it is InService")
    return there


def _variant_names(there: diff.Endpoint) -> str:
    return ", ".join(sorted(there.counts))


def _plan_steps(clients: Clients, spec: EndpointSpec, *, at_once: bool, must_exist: bool) -> tuple[Step, ...]:
    _check_region(clients, spec)
    found = look(clients, spec.name)
    if must_exist and found.endpoint is None:
        raise JobError(f"there is no endpoint {spec.name} to change; `vsr endpoint create` makes it")
    _check_variants(spec, found)
    steps = diff.steps(spec, found, at_once=at_once)
    check(steps, spec.name)
    if any(step.kind == "endpoint" and step.action != "remove" for step in steps):
        _need_quotas(clients, spec, found)
    return steps


def _need_quotas(clients: Clients, spec: EndpointSpec, found: diff.EndpointInventory) -> None:
    """JobError where SageMaker would refuse so many instances. An update has new ones beside the old ones."""
    counts: dict[str, int] = {}
    for each in variants(spec):
        kind = each.instance_type or spec.instance_type
        if kind is not None:
            counts[kind] = counts.get(kind, 0) + (each.instance_count or spec.instance_count)
    there = found.endpoint
    if there is not None and there.status != "Failed":
        for name, kind in there.instance_types.items():
            if kind in counts:
                counts[kind] += there.counts.get(name) or 0
    quotas = clients.of("service-quotas")
    short, unseen = look_at_quotas(find_sagemaker_shortages(quotas, counts, "endpoint usage"))
    if unseen:
        log.warning("%s", unseen)
    if short:
        raise JobError.from_findings(spec.name, [str(each) for each in short])


def _check_variants(spec: EndpointSpec, found: diff.EndpointInventory) -> None:
    """Traffic moves by steps between equal variants; with others SageMaker moves it all at once."""
    there = found.endpoint
    if there is None or spec.rollout is None or spec.rollout.traffic == "all-at-once":
        return
    config = config_request(spec)
    if config is None or there.config == config["EndpointConfigName"] or there.status == "Failed":
        return
    if set(there.weights) != {each.name for each in variants(spec)}:
        raise JobError(
            f"endpoint {spec.name} has the variants {_variant_names(there)}; "
            f"traffic moves {spec.rollout.traffic} only between the same ones: keep their names, or roll out "
            "with traffic: all-at-once"
        )


def _check_region(clients: Clients, spec: EndpointSpec) -> None:
    """SageMaker takes images of its own region alone, and the wrong AWS_REGION is an easy mistake."""
    here = clients.of("sagemaker").meta.region_name
    for image in {spec.image, *(each.image for each in spec.variants if each.image)}:
        there = re.fullmatch(r"\d{12}\.dkr\.ecr\.([a-z0-9-]+)\.amazonaws\.com(\.cn)?/.*", image)
        if there and there[1] != here:
            raise JobError(
                f"image {image} lies in {there[1]}, and you are working in {here}; "
                f"set AWS_REGION={there[1]}, or copy the image"
            )


def _do(clients: Clients, step: Step, spec: EndpointSpec, patience: WaitLimits, tell: Tell) -> None:
    for call in step.calls:
        clients.make(_with_policies(clients, call, spec.name))
    if step.kind != "endpoint":
        return
    now = rollout.wait_until_settled(lambda: describe(clients, spec.name), patience, tell)
    config = config_request(spec)
    if step.action == "remove" or config is None:
        return
    wanted = config["EndpointConfigName"]
    is_well = now is not None and now["EndpointStatus"] == "InService" and now["EndpointConfigName"] == wanted
    tripped = () if is_well else _alarms_on(clients, spec)
    rollout.check_went_well(now, spec.name, wanted, tripped)


def _alarms_on(clients: Clients, spec: EndpointSpec) -> tuple[str, ...]:
    names = rollback_alarms(spec)
    found = look(clients, spec.name).alarms
    return tuple(each for each in names if found.get(each, {}).get("StateValue") == "ALARM")


def _with_policies(clients: Clients, call: Call, name: str) -> Call:
    """An alarm that starts a policy needs the ARN that the policy has by now."""
    actions = call.parameters.get("AlarmActions", [])
    if not any(each.startswith(autoscale.POLICY) for each in actions):
        return call
    arns = {policy: found["PolicyARN"] for (_, policy), found in look(clients, name).policies.items()}
    known = [
        arns[each.removeprefix(autoscale.POLICY)] if each.startswith(autoscale.POLICY) else each
        for each in actions
    ]
    return Call(
        service=call.service,
        operation=call.operation,
        parameters={**call.parameters, "AlarmActions": known},
    )
