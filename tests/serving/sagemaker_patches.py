"""SageMaker's runtime on a moto server, forwarding to a real local server. Run before moto starts.

moto 5.2 answers every invocation with a constant, breaks on bodies that are no text, and writes
asynchronous results elsewhere. Here a model's container environment names the server: LOCAL_URL.
"""

from __future__ import annotations

import json
import random
import threading
import urllib.error
import urllib.request
import uuid
from typing import Any

from moto.core.responses import ActionResult
from moto.s3.models import s3_backends
from moto.sagemaker.exceptions import AWSValidationException
from moto.sagemaker.models import FakeEndpointConfig, sagemaker_backends
from moto.sagemaker.responses import SageMakerResponse
from moto.sagemakerruntime.responses import SageMakerRuntimeResponse

_PASSED = ("Content-Type", "Accept", "X-Amzn-SageMaker-Custom-Attributes")
_KEPT = ("Content-Type", "X-Amzn-SageMaker-Custom-Attributes")


def _target(self: Any, variant: str | None) -> tuple[str, str, Any]:
    """(variant, URL, configuration) that this request goes to; by weight where no variant is named."""
    backend = sagemaker_backends[self.current_account][self.region]
    name = self.path.split("/")[2]
    if name not in backend.endpoints:
        raise AWSValidationException(f"Endpoint {name} of account {backend.account_id} not found.")
    endpoint = backend.endpoints[name]
    config = backend.endpoint_configs[endpoint.endpoint_config_name]
    variants = config.production_variants
    weights = [each.get("InitialVariantWeight", 1.0) for each in variants]
    chosen = next((each for each in variants if each["VariantName"] == variant), None)
    chosen = chosen or random.choices(variants, weights)[0]
    model = next(each for each in backend._models.values() if each.model_name == chosen["ModelName"])
    return chosen["VariantName"], model.primary_container["Environment"]["LOCAL_URL"], config


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
    variant, url, _ = _target(self, self.headers.get("X-Amzn-SageMaker-Target-Variant"))
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


def invoke_endpoint_async(self: Any) -> tuple[int, dict[str, Any], str]:
    _, url, config = _target(self, None)
    outputs = config.async_inference_config["OutputConfig"]
    name = str(uuid.uuid4())
    output = f"{outputs['S3OutputPath'].rstrip('/')}/{name}.out"
    failure = f"{outputs.get('S3FailurePath', outputs['S3OutputPath']).rstrip('/')}/{name}-error.out"
    s3 = s3_backends[self.current_account][self.partition]
    bucket, _, key = self.headers["X-Amzn-SageMaker-InputLocation"][5:].partition("/")
    body = s3.get_object(bucket, key).value
    headers = {
        "Content-Type": self.headers.get("X-Amzn-SageMaker-Content-Type", ""),
        "Accept": self.headers.get("X-Amzn-SageMaker-Accept", "*/*"),
    }
    attributes = self.headers.get("X-Amzn-SageMaker-Custom-Attributes")
    if attributes:
        headers["X-Amzn-SageMaker-Custom-Attributes"] = attributes

    def work() -> None:
        status, _, answer = _forwarded(f"{url}/invocations", body, headers)
        bucket, _, key = (output if status == 200 else failure)[5:].partition("/")
        s3.put_object(bucket, key, answer)

    threading.Thread(target=work, daemon=True).start()
    found = {"status": 202, "X-Amzn-SageMaker-OutputLocation": output}
    return 202, {**found, "X-Amzn-SageMaker-FailureLocation": failure}, json.dumps({"InferenceId": name})


def update_endpoint(self: Any) -> ActionResult:
    """At once; rolled back where the container's environment has FAILS."""
    backend = self.sagemaker_backend
    endpoint = backend.endpoints[self._get_param("EndpointName")]
    wanted = self._get_param("EndpointConfigName")
    config = backend.endpoint_configs[wanted]
    model = backend._models[backend_model(backend, config)]
    if model.primary_container["Environment"].get("FAILS") != "true":
        endpoint.endpoint_config_name = wanted
    return ActionResult({"EndpointArn": endpoint.arn})


def backend_model(backend: Any, config: Any) -> str:
    name = config.production_variants[0]["ModelName"]
    return next(key for key, each in backend._models.items() if each.model_name == name)


SageMakerResponse.update_endpoint = update_endpoint
FakeEndpointConfig.validate_instance_type = lambda self, kind: None
SageMakerRuntimeResponse.use_raw_body = True
SageMakerRuntimeResponse.invoke_endpoint = invoke_endpoint
SageMakerRuntimeResponse.invoke_endpoint_async = invoke_endpoint_async
