"""SageMaker's runtime and the passing of time on a moto server, real local servers behind. Run before moto.

moto 5.2 answers every invocation with a constant, breaks on bodies that are no text, writes asynchronous
results elsewhere, has no update_endpoint, evaluates no alarm and scales nothing. Here a model's container
environment names the server that answers (LOCAL_URL), and `sagemaker_clock` is the rest.

    POST /moto-api/time   {"minutes": 3, "metrics": […], "instances": {…}}   lets time pass
"""

from __future__ import annotations

import http.client
import json
import random
import struct
import sys
import threading
import urllib.error
import urllib.request
import uuid
import zlib
from pathlib import Path
from typing import Any

from moto.core.responses import ActionResult, EmptyResult
from moto.moto_api._internal import urls
from moto.moto_api._internal.models import MotoAPIBackend
from moto.moto_server.werkzeug_app import DomainDispatcherApplication
from moto.s3.models import s3_backends
from moto.sagemaker.exceptions import AWSValidationException
from moto.sagemaker.models import FakeEndpointConfig, sagemaker_backends
from moto.sagemaker.responses import SageMakerResponse
from moto.sagemakerruntime import urls as runtime_urls
from moto.sagemakerruntime.responses import SageMakerRuntimeResponse

sys.path.insert(0, str(Path(__file__).parents[2]))

import tests.new_account  # noqa: F401 - its roles and quotas
from tests.serving.sagemaker_clock import World

_PASSED = ("Content-Type", "Accept", "X-Amzn-SageMaker-Custom-Attributes")
_KEPT = ("Content-Type", "X-Amzn-SageMaker-Custom-Attributes")
_STREAMED = "-response-stream"
world = World()


# Invocations ------------------------------------------------------------------------------------------------


def _target(self: Any, variant: str | None) -> tuple[str, str, Any, str]:
    """(variant, URL, configuration, endpoint) that this is for; by weight where no variant is named."""
    backend = sagemaker_backends[self.current_account][self.region]
    name = self.path.split("/")[2]
    if name not in backend.endpoints:
        raise AWSValidationException(f"Endpoint {name} of account {backend.account_id} not found.")
    endpoint = backend.endpoints[name]
    config = backend.endpoint_configs[endpoint.endpoint_config_name]
    variants = config.production_variants
    weights = [
        (world.variant(name, each["VariantName"]) or {}).get(
            "DesiredWeight", each.get("InitialVariantWeight", 1.0)
        )
        for each in variants
    ]
    chosen = next((each for each in variants if each["VariantName"] == variant), None)
    if variant and chosen is None:
        raise AWSValidationException(f"Variant {variant} not found for Request")
    chosen = chosen or random.choices(variants, weights)[0]
    world.invoked[name, chosen["VariantName"]] += 1
    url = world.url(endpoint.endpoint_config_name, chosen["VariantName"])
    return chosen["VariantName"], url, config, name


def _forwarded(url: str, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
    request = urllib.request.Request(url, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, dict(exc.headers), exc.read()


def _body(self: Any) -> bytes:
    return self.body if isinstance(self.body, bytes) else str(self.body).encode("utf-8", "surrogateescape")


def invoke_endpoint(self: Any) -> tuple[int, dict[str, Any], Any]:
    variant, url, _, _ = _target(self, self.headers.get("X-Amzn-SageMaker-Target-Variant"))
    target = self.headers.get("X-Amzn-SageMaker-Target-Model")
    path = f"/models/{target}/invoke" if target else "/invocations"
    headers = {name: self.headers[name] for name in _PASSED if self.headers.get(name)}
    status, found, answer = _forwarded(url + path, _body(self), headers)
    if status != 200:
        error = {
            "OriginalStatusCode": status,
            "OriginalMessage": answer.decode(errors="replace"),
            "Message": f"Received client error ({status}) from primary",
        }
        return 424, {"status": 424, "x-amzn-errortype": "ModelError"}, json.dumps(error)
    lower = {key.lower(): value for key, value in found.items()}
    kept = {name: lower[name.lower()] for name in _KEPT if name.lower() in lower}
    return 200, {**kept, "x-Amzn-Invoked-Production-Variant": variant}, answer


def invoke_endpoint_with_response_stream(self: Any) -> tuple[int, dict[str, Any], bytes]:
    """What the server sent, as events; one that breaks off ends with the event of an error."""
    variant, url, _, _ = _target(self, self.headers.get("X-Amzn-SageMaker-Target-Variant"))
    names = {"Content-Type": "Content-Type", "Accept": "X-Amzn-SageMaker-Accept", _PASSED[2]: _PASSED[2]}
    headers = {name: self.headers[told] for name, told in names.items() if self.headers.get(told)}
    events = []
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"{url}/invocations", _body(self), headers), timeout=60
        ) as answer:
            found = {name: answer.headers[name] for name in _KEPT if answer.headers.get(name)}
            while piece := answer.read(8192):
                events.append(_event({":message-type": "event", ":event-type": "PayloadPart"}, piece))
    except urllib.error.HTTPError as exc:
        with exc:
            error = {"OriginalStatusCode": exc.code, "OriginalMessage": exc.read().decode(errors="replace")}
        return 424, {"status": 424, "x-amzn-errortype": "ModelError"}, json.dumps(error | {"Message": "x"})  # type: ignore[return-value]
    except http.client.IncompleteRead:
        kind = {":message-type": "exception", ":exception-type": "ModelStreamError"}
        reason = {"Message": "Your container ended the stream.", "ErrorCode": "StreamBroken"}
        events.append(_event(kind, json.dumps(reason).encode()))
    told = {"X-Amzn-SageMaker-Content-Type": found.get("Content-Type", ""), _KEPT[1]: found.get(_KEPT[1], "")}
    told |= {"x-Amzn-Invoked-Production-Variant": variant}
    return 200, {**told, "Content-Type": "application/vnd.amazon.eventstream"}, b"".join(events)


def _event(headers: dict[str, str], payload: bytes) -> bytes:
    """One message of AWS's event stream."""
    told = b"".join(
        struct.pack(">B", len(name)) + name.encode() + struct.pack(">BH", 7, len(value)) + value.encode()
        for name, value in headers.items()
    )
    prelude = struct.pack(">II", 16 + len(told) + len(payload), len(told))
    message = prelude + struct.pack(">I", zlib.crc32(prelude)) + told + payload
    return message + struct.pack(">I", zlib.crc32(message))


def invoke_endpoint_async(self: Any) -> tuple[int, dict[str, Any], str]:
    """Answered at once where there are instances and no SIM_PER_MINUTE; else it waits."""
    variant, url, config, endpoint = _target(self, None)
    outputs = config.async_inference_config["OutputConfig"]
    name = str(uuid.uuid4())
    output = f"{outputs['S3OutputPath'].rstrip('/')}/{name}.out"
    failure = f"{outputs.get('S3FailurePath', outputs['S3OutputPath']).rstrip('/')}/{name}-error.out"
    s3 = s3_backends[self.current_account][self.partition]
    bucket, _, key = self.headers["X-Amzn-SageMaker-InputLocation"][5:].partition("/")
    headers = {
        "Content-Type": self.headers.get("X-Amzn-SageMaker-Content-Type", ""),
        "Accept": self.headers.get("X-Amzn-SageMaker-Accept", "*/*"),
    }
    attributes = self.headers.get("X-Amzn-SageMaker-Custom-Attributes")
    if attributes:
        headers["X-Amzn-SageMaker-Custom-Attributes"] = attributes

    def work() -> None:
        """Read the input only now, when an instance takes the request, as SageMaker does."""
        found = s3.get_object(bucket, key)
        if found is None:
            status, answer = 404, b"the input object does not exist"
        else:
            status, _, answer = _forwarded(f"{url}/invocations", found.value, headers)
        if status != 200:
            world.put("InvocationFailures", 1.0, EndpointName=endpoint, VariantName=variant)
        _put_answer(output if status == 200 else failure, answer)

    def _put_answer(place: str, answer: bytes) -> None:
        bucket, _, key = place[5:].partition("/")
        s3.put_object(bucket, key, answer)

    backend = sagemaker_backends[self.current_account][self.region]
    there = sum(
        each.get("CurrentInstanceCount", 0) for each in backend.endpoints[endpoint].production_variants
    )
    if there and world.per_minute(endpoint) > 1000:
        threading.Thread(target=work, daemon=True).start()
    else:
        world.queues[endpoint].append((world.minute, work))
    found = {"status": 202, "X-Amzn-SageMaker-OutputLocation": output}
    return 202, {**found, "X-Amzn-SageMaker-FailureLocation": failure}, json.dumps({"InferenceId": name})


# The control plane ------------------------------------------------------------------------------------------


def update_endpoint(self: Any) -> ActionResult:
    endpoint = self.sagemaker_backend.endpoints[self._get_param("EndpointName")]
    if endpoint.endpoint_status != "InService":
        raise AWSValidationException(f"Cannot update in-progress endpoint {endpoint.arn}.")
    if self._get_param("EndpointConfigName") == endpoint.endpoint_config_name:
        raise AWSValidationException("The endpoint already serves this configuration.")
    _check_scaled_types_stay(endpoint, self._get_param("EndpointConfigName"))
    names = ("EndpointName", "EndpointConfigName", "DeploymentConfig", "RetainAllVariantProperties")
    world.begin(endpoint.endpoint_name, {name: self._get_param(name) for name in names})
    return ActionResult({"EndpointArn": endpoint.arn})


def _check_scaled_types_stay(endpoint: Any, wanted: str) -> None:
    """SageMaker refuses another instance type for a variant that Application Auto Scaling has as a target.

    docs.aws.amazon.com/sagemaker/latest/dg/endpoint-auto-scaling-update.html, looked up 2026-12-01
    """
    types = [
        {each["VariantName"]: each.get("InstanceType") for each in world.config(name).production_variants}
        for name in (endpoint.endpoint_config_name, wanted)
    ]
    for variant in types[0].keys() & types[1].keys():
        is_target = f"endpoint/{endpoint.endpoint_name}/variant/{variant}" in world.targets()
        if is_target and types[0][variant] != types[1][variant]:
            raise AWSValidationException(
                f"The instance type of variant {variant} cannot be changed while it is registered as a "
                "scalable target with Application Auto Scaling. Deregister it first."
            )


_create_endpoint, _describe_endpoint = SageMakerResponse.create_endpoint, SageMakerResponse.describe_endpoint


def create_endpoint(self: Any) -> ActionResult:
    name = self._get_param("EndpointName")
    if name in self.sagemaker_backend.endpoints:
        raise AWSValidationException(f"Cannot create already existing endpoint {name}.")
    made = _create_endpoint(self)
    endpoint = self.sagemaker_backend.endpoints[name]
    variants = world.config(endpoint.endpoint_config_name).production_variants
    for there, wanted in zip(endpoint.production_variants, variants, strict=True):
        weight = wanted.get("InitialVariantWeight", 1.0)  # moto forgets a weight of 0
        there["CurrentWeight"] = there["DesiredWeight"] = weight
    if not world._is_healthy(endpoint.endpoint_config_name):
        endpoint.endpoint_status = "Failed"
        endpoint.failure_reason = "The primary container did not pass the ping health check."
    return made


def describe_endpoint(self: Any) -> ActionResult:
    """While somebody looks at an endpoint that changes, a minute passes."""
    name = self._get_param("EndpointName")
    if name in world.rollouts:
        world.advance()
    response = self.sagemaker_backend.describe_endpoint(name)
    pending = world.pending(name)
    return ActionResult({**response, **({"PendingDeploymentSummary": pending} if pending else {})})


def _refuse_if_used(self: Any, name: str) -> None:
    users = [each for each in self.sagemaker_backend.endpoints.values() if each.endpoint_config_name == name]
    if users:
        raise AWSValidationException(f"Cannot delete in-use endpoint configuration {name}.")


_delete_config = SageMakerResponse.delete_endpoint_config


def delete_endpoint_config(self: Any) -> ActionResult:
    _refuse_if_used(self, self._get_param("EndpointConfigName"))
    return _delete_config(self)


def delete_model_package(self: Any) -> EmptyResult:
    backend, wanted = self.sagemaker_backend, self._get_param("ModelPackageName")
    found = [key for key, each in backend.model_packages.items() if each.arn == wanted]
    for key in found:
        del backend.model_packages[key]
    return EmptyResult()


def delete_model_package_group(self: Any) -> EmptyResult:
    backend, name = self.sagemaker_backend, self._get_param("ModelPackageGroupName")
    if any(each.model_package_group_name == name for each in backend.model_packages.values()):
        raise AWSValidationException(f"Model package group {name} still contains model packages.")
    del backend.model_package_groups[name]
    return EmptyResult()


# Batch transform --------------------------------------------------------------------------------------------


_create_transform_job = SageMakerResponse.create_transform_job


def create_transform_job(self: Any) -> ActionResult:
    """Every object below the prefix goes to the model's server; answers have its name plus .out."""
    backend, wanted = self.sagemaker_backend, self._get_param("ModelName")
    model = next((each for each in backend._models.values() if each.model_name == wanted), None)
    if model is None:
        raise AWSValidationException(f"Could not find model {wanted}.")
    made = _create_transform_job(self)
    job = backend.transform_jobs[self._get_param("TransformJobName")]
    job.transform_job_status = "InProgress"
    where = (self.current_account, self.partition)
    url = model.primary_container["Environment"]["LOCAL_URL"]
    threading.Thread(target=_transform, args=(job, url, where), daemon=True).start()
    return made


def _transform(job: Any, url: str, where: tuple[str, str]) -> None:
    s3 = s3_backends[where[0]][where[1]]
    uri = job.transform_input["DataSource"]["S3DataSource"]["S3Uri"]
    bucket, _, prefix = uri[5:].partition("/")
    headers = {"Content-Type": job.transform_input["ContentType"], "Accept": job.transform_output["Accept"]}
    for key in [each for each in s3.buckets[bucket].keys if each.startswith(prefix)]:
        if job.transform_job_status == "Stopping":
            job.transform_job_status = "Stopped"
            return
        status, _, answer = _forwarded(f"{url}/invocations", s3.get_object(bucket, key).value, headers)
        if status != 200:
            job.failure_reason = f"ClientError: See job logs for more information: {answer[:200].decode()}"
            job.transform_job_status = "Failed"
            return
        target, _, folder = job.transform_output["S3OutputPath"][5:].partition("/")
        name = key[len(prefix) :].lstrip("/") or key.rpartition("/")[2]
        s3.put_object(target, f"{folder.rstrip('/')}/{name}.out".lstrip("/"), answer)
    job.transform_job_status = "Completed"


def stop_transform_job(self: Any) -> EmptyResult:
    job = self.sagemaker_backend.transform_jobs[self._get_param("TransformJobName")]
    job.transform_job_status = "Stopping" if job.transform_job_status == "InProgress" else "Stopped"
    return EmptyResult()


# Time -------------------------------------------------------------------------------------------------------


def pass_time(request: Any, full_url: str, headers: Any) -> tuple[int, dict[str, str], str]:
    order = json.loads(request.data or b"{}")
    for name, variants in order.get("instances", {}).items():
        for variant, count in variants.items():
            found = world.variant(name, variant)
            assert found is not None
            found["CurrentInstanceCount"] = found["DesiredInstanceCount"] = count
    for _ in range(order.get("minutes", 0)):
        world.minute += 1
        for each in order.get("metrics", []):
            world.put(each["metric"], each["value"], **each["where"])
        world.minute -= 1
        world.advance()
    found: dict[str, Any] = {"minute": world.minute, "told": world.told}
    found["queued"] = {name: len(queue) for name, queue in world.queues.items()}
    found["instances"] = {
        name: {each["VariantName"]: each.get("CurrentInstanceCount") for each in endpoint.production_variants}
        for name, endpoint in world._sagemaker().endpoints.items()
    }
    return 200, {}, json.dumps(found)


_reset = MotoAPIBackend.reset


def reset(self: Any) -> None:
    global world
    world.__dict__.update(World().__dict__)
    _reset(self)


MotoAPIBackend.reset = reset
urls.url_paths["{0}/moto-api/time$"] = pass_time
for each in (
    update_endpoint, create_endpoint, describe_endpoint, delete_endpoint_config, delete_model_package,
    delete_model_package_group, create_transform_job, stop_transform_job,
):  # fmt: skip
    setattr(SageMakerResponse, each.__name__, each)
FakeEndpointConfig.validate_instance_type = lambda self, kind: None
SageMakerRuntimeResponse.use_raw_body = True
SageMakerRuntimeResponse.invoke_endpoint = invoke_endpoint
SageMakerRuntimeResponse.invoke_endpoint_async = invoke_endpoint_async
SageMakerRuntimeResponse.invoke_endpoint_with_response_stream = invoke_endpoint_with_response_stream
runtime_urls.url_paths[f"{{0}}/endpoints/(?P<name>[^/]+)/invocations{_STREAMED}$"] = (
    runtime_urls.response.dispatch
)
_infer = DomainDispatcherApplication.infer_service_region_host


def infer_service_region_host(self: Any, environ: dict[str, Any], path: str) -> str | None:
    """moto knows the runtime by its paths' last word."""
    told = {**environ, "PATH_INFO": environ["PATH_INFO"].removesuffix(_STREAMED)}
    return _infer(self, told, path)


DomainDispatcherApplication.infer_service_region_host = infer_service_region_host
