"""What SageMaker, CloudWatch and autoscaling do while time passes, minute by minute, on a moto server.

Time is its own: a minute passes when a test says so (POST /moto-api/time), and while somebody looks at an
endpoint that is changing. Requests of a simulated minute are real ones, to the local servers that models name
in LOCAL_URL; what they answer becomes metrics, these become states of alarms, and these move instances and
turn rollouts back.
"""

from __future__ import annotations

import math
import threading
import time
import urllib.error
import urllib.request
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from moto.applicationautoscaling.models import applicationautoscaling_backends
from moto.cloudwatch.models import cloudwatch_backends
from moto.sagemaker.models import sagemaker_backends

ACCOUNT, REGION = "123456789012", "eu-central-1"
START_MINUTES = 2
_REQUESTS_A_MINUTE = 10
_OUT_MINUTES, _IN_MINUTES = 3, 15
Series = dict[int, list[float]]


def png() -> bytes:
    """The smallest picture worth asking for, without a library: 8x8 grey."""
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0))
    rows = b"".join(b"\0" + bytes(range(0, 160, 20)) for _ in range(8))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@dataclass
class Rollout:
    """An update on its way: (what, minutes left, share of the traffic on the new instances)."""

    config: str
    stages: list[tuple[str, int, float]]
    alarms: list[str]
    retained: dict[str, int]
    back: str = ""


@dataclass
class World:
    """All state that moto does not have."""

    minute: int = 0
    metrics: dict[tuple[str, str, frozenset[tuple[str, str]]], Series] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    rollouts: dict[str, Rollout] = field(default_factory=dict)
    queues: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    starting: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    """(endpoint, variant): how many instances there will be, in which minute."""
    scaled: dict[tuple[str, str], int] = field(default_factory=dict)
    invoked: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    told: list[tuple[str, str, str]] = field(default_factory=list)
    """(topic, alarm, state)."""
    lock: threading.RLock = field(default_factory=threading.RLock)

    # Time ---------------------------------------------------------------------------------------------------

    def advance(self, minutes: int = 1) -> None:
        with self.lock:
            for _ in range(minutes):
                self.minute += 1
                self._instances()
                for name in list(self._sagemaker().endpoints):
                    self._work(name)
                for name in list(self.rollouts):
                    self._traffic(name)
                self._alarms()
                self._track()
                for name in list(self.rollouts):
                    self._roll(name)

    def put(self, metric: str, value: float, namespace: str = "AWS/SageMaker", **where: str) -> None:
        self.metrics[namespace, metric, frozenset(where.items())][self.minute].append(value)

    def series(self, namespace: str, metric: str, where: dict[str, str]) -> Series:
        return self.metrics[namespace, metric, frozenset(where.items())]

    # Instances and requests ---------------------------------------------------------------------------------

    def _instances(self) -> None:
        for (name, variant), (count, when) in list(self.starting.items()):
            if self.minute >= when:
                found = self.variant(name, variant)
                if found is not None:
                    found["CurrentInstanceCount"] = found["DesiredInstanceCount"] = count
                del self.starting[name, variant]

    def _work(self, name: str) -> None:
        """One minute of an endpoint: what waits is answered, and counted."""
        endpoint = self._sagemaker().endpoints[name]
        for each in endpoint.production_variants:
            where = {"EndpointName": name, "VariantName": each["VariantName"]}
            count = each.get("CurrentInstanceCount")
            for _ in range(count or 0):
                self.put("CPUUtilization", 30.0, "/aws/sagemaker/Endpoints", **where)
            asked = self.invoked.pop((name, each["VariantName"]), 0)
            if count:
                self.put("InvocationsPerInstance", asked / count, **where)
        if self.config(endpoint.endpoint_config_name).async_inference_config:
            self._backlog(
                name, sum(each.get("CurrentInstanceCount", 0) for each in endpoint.production_variants)
            )

    def _backlog(self, name: str, instances: int) -> None:
        queue = self.queues[name]
        for _ in range(min(len(queue), instances * self.per_minute(name))):
            queue.pop(0)[1]()
        oldest_s = 60.0 * (self.minute - queue[0][0]) if queue else 0.0
        self.put("ApproximateAgeOfOldestRequest", oldest_s, EndpointName=name)
        self.put("ApproximateBacklogSize", len(queue), EndpointName=name)
        if instances:
            self.put("ApproximateBacklogSizePerInstance", len(queue) / instances, EndpointName=name)
        self.put("HasBacklogWithoutCapacity", float(bool(queue) and not instances), EndpointName=name)

    def per_minute(self, name: str) -> int:
        """How many requests an instance answers in a minute, by the model's environment; 0: at once."""
        endpoint = self._sagemaker().endpoints[name]
        return int(self._environment(endpoint.endpoint_config_name).get("SIM_PER_MINUTE", "0")) or 10**6

    # Alarms -------------------------------------------------------------------------------------------------

    def _alarms(self) -> None:
        for alarm in list(cloudwatch_backends[ACCOUNT][REGION].alarms.values()):
            state = self._state(alarm)
            if state is not None and state != alarm.state_value:
                alarm.update_state("the clock", "{}", state)
                actions = alarm.alarm_actions if state == "ALARM" else alarm.ok_actions
                for action in actions:
                    self._act(action, alarm.name, state)
            elif state == "ALARM":  # a scaling policy is asked again and again while its alarm lasts
                for action in alarm.alarm_actions:
                    if ":scalingPolicy:" in action:
                        self._act(action, alarm.name, state)

    def _state(self, alarm: Any) -> str | None:
        where = {each.name: each.value for each in alarm.dimensions}
        series = self.series(alarm.namespace, alarm.metric_name, where)
        periods = int(alarm.evaluation_periods)
        verdicts = []
        for minute in range(self.minute - periods + 1, self.minute + 1):
            values = series.get(minute)
            if values:
                verdicts.append(_breaches(_statistic(alarm, values), alarm))
            elif alarm.treat_missing_data == "breaching":
                verdicts.append(True)
            elif alarm.treat_missing_data == "notBreaching":
                verdicts.append(False)
        if not verdicts:
            return None
        return "ALARM" if sum(verdicts) >= int(alarm.datapoints_to_alarm or periods) else "OK"

    def _act(self, action: str, alarm: str, state: str) -> None:
        if ":scalingPolicy:" not in action:
            self.told.append((action, alarm, state))
            return
        policy = next(each for each in self._policies() if each.policy_arn == action)
        (step,) = policy.step_scaling_policy_configuration["StepAdjustments"]
        _, name, _, variant = policy.resource_id.split("/")
        current = self._desired(name, variant)
        self._scale(name, variant, current + int(step["ScalingAdjustment"]), cooldown=5)

    # Scaling ------------------------------------------------------------------------------------------------

    def _track(self) -> None:
        """Target tracking: out after three minutes above the target, in after fifteen below 0.9 of it."""
        for policy in self._policies():
            wanted = policy.target_tracking_scaling_policy_configuration
            if not wanted:
                continue
            _, name, _, variant = policy.resource_id.split("/")
            found = self.variant(name, variant)
            if found is None or not found.get("CurrentInstanceCount"):
                continue  # without instances there is no metric per instance
            if "PredefinedMetricSpecification" in wanted:
                where = {"EndpointName": name, "VariantName": variant}
                series = self.series("AWS/SageMaker", "InvocationsPerInstance", where)
            else:
                custom = wanted["CustomizedMetricSpecification"]
                where = {each["Name"]: each["Value"] for each in custom["Dimensions"]}
                series = self.series(custom["Namespace"], custom["MetricName"], where)
            target, now = float(wanted["TargetValue"]), found["CurrentInstanceCount"]
            recent = [series[each][-1] for each in range(self.minute, -1, -1) if series.get(each)]
            out, idle = recent[:_OUT_MINUTES], recent[:_IN_MINUTES]
            if len(out) == _OUT_MINUTES and min(out) > target:
                self._scale(
                    name, variant, math.ceil(now * out[0] / target), wanted.get("ScaleOutCooldown", 300) // 60
                )
            elif len(idle) == _IN_MINUTES and max(idle) < 0.9 * target:
                self._scale(
                    name, variant, math.ceil(now * idle[0] / target), wanted.get("ScaleInCooldown", 300) // 60
                )

    def _scale(self, name: str, variant: str, count: int, cooldown: int) -> None:
        target = self.targets().get(f"endpoint/{name}/variant/{variant}")
        if target is None or self.minute - self.scaled.get((name, variant), -1000) < cooldown:
            return
        count = max(target.min_capacity, min(target.max_capacity, count))
        found, now = self.variant(name, variant), self._desired(name, variant)
        if found is None or count == now:
            return
        self.scaled[name, variant] = self.minute
        found["DesiredInstanceCount"] = count
        self.starting[name, variant] = (count, self.minute + (START_MINUTES if count > now else 0))

    def _desired(self, name: str, variant: str) -> int:
        found = self.variant(name, variant)
        return int(found["DesiredInstanceCount"]) if found else 0

    # Rollouts -----------------------------------------------------------------------------------------------

    def begin(self, name: str, request: dict[str, Any]) -> None:
        """update_endpoint: the stages that its DeploymentConfig asks for."""
        endpoint = self._sagemaker().endpoints[name]
        deployment = request.get("DeploymentConfig") or {}
        policy = deployment.get("BlueGreenUpdatePolicy") or {}
        routing = policy.get("TrafficRoutingConfiguration") or {
            "Type": "ALL_AT_ONCE",
            "WaitIntervalInSeconds": 0,
        }
        bake = math.ceil(routing["WaitIntervalInSeconds"] / 60)
        shares = [1.0]
        if routing["Type"] == "CANARY":
            shares = [routing["CanarySize"]["Value"] / 100, 1.0]
        elif routing["Type"] == "LINEAR":
            step = routing["LinearStepSize"]["Value"] / 100
            shares = [min(1.0, step * (index + 1)) for index in range(math.ceil(1 / step))]
        stages = [("Creating", 1, 0.0)]
        for share in shares:
            stages += [("ActivatingTraffic", 1, share), *([("Baking", bake, share)] if bake else [])]
        names = [
            each["AlarmName"]
            for each in (deployment.get("AutoRollbackConfiguration") or {}).get("Alarms", [])
        ]
        retained = {}
        if request.get("RetainAllVariantProperties"):
            retained = {
                each["VariantName"]: each["DesiredInstanceCount"]
                for each in endpoint.production_variants
                if "DesiredInstanceCount" in each
            }
        self.rollouts[name] = Rollout(request["EndpointConfigName"], stages, names, retained)
        endpoint.endpoint_status, endpoint.failure_reason = "Updating", None

    def _roll(self, name: str) -> None:
        rollout, endpoint = self.rollouts[name], self._sagemaker().endpoints[name]
        if rollout.back:
            endpoint.endpoint_status, endpoint.failure_reason = "InService", rollout.back
            del self.rollouts[name]
            return
        if not rollout.stages:
            self._finish(name)
            return
        what, minutes, share = rollout.stages[0]
        if what == "Creating" and not self._is_healthy(rollout.config):
            rollout.back = (
                "The primary container for production variant all did not pass the ping health check."
            )
        alarms = cloudwatch_backends[ACCOUNT][REGION].alarms
        tripped = [each for each in rollout.alarms if alarms[each].state_value == "ALARM"]
        if tripped:
            rollout.back = f"Rolled back: alarm {', '.join(tripped)}"
        if rollout.back:
            endpoint.endpoint_status = "RollingBack"
            return
        rollout.stages[0] = (what, minutes - 1, share)
        if minutes <= 1:
            del rollout.stages[0]

    def _finish(self, name: str) -> None:
        rollout, backend = self.rollouts.pop(name), self._sagemaker()
        endpoint = backend.endpoints[name]
        endpoint.endpoint_config_name = rollout.config
        variants = backend.endpoint_configs[rollout.config].production_variants
        endpoint.production_variants = endpoint._process_production_variants(variants)
        for each in endpoint.production_variants:
            if each["VariantName"] in rollout.retained:
                count = rollout.retained[each["VariantName"]]
                each["CurrentInstanceCount"] = each["DesiredInstanceCount"] = count
        endpoint.endpoint_status = "InService"

    def _traffic(self, name: str) -> None:
        """One real request to each side, counted as many times as its share of the minute's ten."""
        rollout, endpoint = self.rollouts[name], self._sagemaker().endpoints[name]
        share = 0.0 if rollout.back else rollout.stages[0][2] if rollout.stages else 1.0
        new = round(_REQUESTS_A_MINUTE * share)
        for config, count in (
            (rollout.config, new),
            (endpoint.endpoint_config_name, _REQUESTS_A_MINUTE - new),
        ):
            if not count:
                continue
            for variant in self.config(config).production_variants:
                where = {"EndpointName": name, "VariantName": variant["VariantName"]}
                seconds, is_error = ask(self.url(config, variant["VariantName"]))
                for _ in range(count):
                    self.put("ModelLatency", seconds * 1e6, **where)
                    self.put("Invocation5XXErrors", float(is_error), **where)

    def _is_healthy(self, config: str) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url(config)}/ping", timeout=10) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def pending(self, name: str) -> dict[str, Any] | None:
        """describe_endpoint's PendingDeploymentSummary."""
        rollout = self.rollouts.get(name)
        if rollout is None or not rollout.stages:
            return None
        what, _, share = rollout.stages[0]
        variants = [
            {"VariantName": each["VariantName"], "CurrentWeight": share, "VariantStatus": [{"Status": what}]}
            for each in self.config(rollout.config).production_variants
        ]
        return {"EndpointConfigName": rollout.config, "ProductionVariants": variants}

    # What moto has ------------------------------------------------------------------------------------------

    def _sagemaker(self) -> Any:
        return sagemaker_backends[ACCOUNT][REGION]

    def _policies(self) -> list[Any]:
        return list(applicationautoscaling_backends[ACCOUNT][REGION].policies.values())

    def targets(self) -> dict[str, Any]:
        targets = applicationautoscaling_backends[ACCOUNT][REGION].targets
        return dict(targets.get("sagemaker:variant:DesiredInstanceCount", {}))

    def config(self, name: str) -> Any:
        return self._sagemaker().endpoint_configs[name]

    def variant(self, name: str, variant: str) -> dict[str, Any] | None:
        endpoint = self._sagemaker().endpoints.get(name)
        if endpoint is None:
            return None
        return next((each for each in endpoint.production_variants if each["VariantName"] == variant), None)

    def _environment(self, config: str, variant: str | None = None) -> dict[str, str]:
        variants = self.config(config).production_variants
        chosen = next((each for each in variants if each["VariantName"] == variant), variants[0])
        models = self._sagemaker()._models.values()
        model = next(each for each in models if each.model_name == chosen["ModelName"])
        return dict(model.primary_container["Environment"])

    def url(self, config: str, variant: str | None = None) -> str:
        return self._environment(config, variant)["LOCAL_URL"]


def ask(url: str) -> tuple[float, bool]:
    """(seconds, whether the server failed) of one small picture. Nobody there is a failure too."""
    began = time.monotonic()
    request = urllib.request.Request(f"{url}/invocations", png(), {"Content-Type": "image/png"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()
        return time.monotonic() - began, False
    except urllib.error.HTTPError as exc:
        with exc:
            return time.monotonic() - began, exc.code >= 500
    except OSError:
        return time.monotonic() - began, True


def _statistic(alarm: Any, values: list[float]) -> float:
    if alarm.extended_statistic:
        share = float(alarm.extended_statistic[1:]) / 100
        return sorted(values)[min(len(values) - 1, int(share * len(values)))]
    return {
        "Average": sum(values) / len(values),
        "Sum": sum(values),
        "SampleCount": float(len(values)),
        "Maximum": max(values),
        "Minimum": min(values),
    }[alarm.statistic]


def _breaches(value: float, alarm: Any) -> bool:
    threshold = float(alarm.threshold)
    return {
        "GreaterThanThreshold": value > threshold,
        "GreaterThanOrEqualToThreshold": value >= threshold,
        "LessThanThreshold": value < threshold,
        "LessThanOrEqualToThreshold": value <= threshold,
    }[str(alarm.comparison_operator)]
