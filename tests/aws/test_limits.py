"""The table of what AWS allows: each number has its page and day, is used, and is what boto3 says."""

from __future__ import annotations

import re
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml

import vsr_hpc
from tests.serving.endpoint_files import spec
from vsr_hpc.aws.endpoint.invocation import Invocation, invoke
from vsr_hpc.aws.endpoint.requests import model_request
from vsr_hpc.aws.limits import limit, vcpu_quota
from vsr_hpc.errors import JobError

TABLE = yaml.safe_load(files("vsr_hpc.aws").joinpath("limits.yaml").read_text("utf-8"))
SOURCES = "\n".join(path.read_text() for path in Path(vsr_hpc.__file__).parent.rglob("*.py"))
# What boto3's description of a service says of the same limit: (service, shape, member, which bound).
DESCRIBED: dict[str, tuple[str, str, str]] = {
    "asynchronous_s": ("sagemaker-runtime", "InvocationTimeoutSecondsHeader", "max"),
    "transform_s": ("sagemaker", "InvocationsTimeoutInSeconds", "max"),
    "transform_job_name": ("sagemaker", "TransformJobName", "max"),
    "rollout_wait_s": ("sagemaker", "WaitIntervalInSeconds", "max"),
    "rollout_s": ("sagemaker", "MaximumExecutionTimeoutInSeconds", "max"),
}


@pytest.mark.parametrize("name", TABLE["limits"])
def test_every_limit_has_its_page_and_day_and_is_used(name: str) -> None:
    row: dict[str, Any] = TABLE["limits"][name]
    assert row["page"].startswith("docs.aws.amazon.com/") and " " not in row["page"]
    assert isinstance(row["read"], date) and row["value"] > 0
    assert re.search(rf"[\"']{name}[\"']", SOURCES), f"nobody uses {name}"


@pytest.mark.parametrize("name", DESCRIBED)
def test_limit_is_what_the_service_describes(name: str) -> None:
    service, shape, bound = DESCRIBED[name]
    model = botocore.session.get_session().get_service_model(service)
    assert model.shape_for(shape).metadata[bound] == limit(name)


def test_quotas_have_a_code_each() -> None:
    codes = [vcpu_quota(kind, purchase)[0] for kind, both in TABLE["quotas"].items() for purchase in both]
    assert len(set(codes)) == len(codes) == 6
    assert all(re.fullmatch(r"L-[0-9A-F]{8}", each) for each in codes)


def test_input_that_no_endpoint_takes_is_refused_before_it_is_uploaded() -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return 1_000_000_001

    request = Invocation(endpoint="film", body=Huge(), content_type="image/png", accept="image/png")
    with pytest.raises(JobError, match="1000000001 bytes are more than the 1000 MB"):
        invoke("async", request, lambda *_: JobError("never"))


@pytest.mark.parametrize(
    ("more", "payload"),
    [
        ({}, "23.84"),
        ({"instance_type": None, "serverless": {}}, "3.81"),
        ({"async": {"output": "s3://films/out"}}, "200"),
    ],
)
def test_container_takes_as_much_as_its_kind_of_endpoint(more: dict[str, Any], payload: str) -> None:
    environment = model_request(spec("http://127.0.0.1:1", **more))["PrimaryContainer"]["Environment"]
    assert environment["VSR_SERVE_MAX_PAYLOAD_MB"] == payload
