"""`vsr endpoint invoke` into the real server: by its URL, and through a moto SageMaker that forwards."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.moto_server import Moto
from tests.serving.samples import clip, decoded, still
from tests.serving.served import Served, vsr
from vsr_hpc.aws.errors import explained
from vsr_hpc.errors import BackendError, JobError, MediaError
from vsr_hpc.serving.client import Question, invoke

ROLE = "arn:aws:iam::123456789012:role/vsr"


@pytest.fixture(scope="module")
def aws(server: Served, moto: Moto) -> Moto:
    """Endpoints `live` (two variants), `later` (asynchronous), both answered by the local server."""
    moto.reset()
    moto.make_bucket("pictures")
    sagemaker = moto.client("sagemaker")
    container = {"Image": "vsr:1", "Environment": {"LOCAL_URL": server.url}}
    sagemaker.create_model(ModelName="m", PrimaryContainer=container, ExecutionRoleArn=ROLE)
    variant: dict[str, Any] = {
        "ModelName": "m", "InstanceType": "ml.g5.xlarge", "InitialInstanceCount": 1,
    }  # fmt: skip
    sagemaker.create_endpoint_config(
        EndpointConfigName="live",
        ProductionVariants=[
            {**variant, "VariantName": "old", "InitialVariantWeight": 1.0},
            {**variant, "VariantName": "new", "InitialVariantWeight": 0.0},
        ],
    )
    sagemaker.create_endpoint_config(
        EndpointConfigName="later",
        ProductionVariants=[{**variant, "VariantName": "all"}],
        AsyncInferenceConfig={
            "OutputConfig": {
                "S3OutputPath": "s3://pictures/out",
                "S3FailurePath": "s3://pictures/failed",
            }
        },
    )
    for name in ("live", "later"):
        sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
    return moto


@pytest.fixture
def account(aws: Moto, monkeypatch: pytest.MonkeyPatch) -> Moto:
    for name, value in aws.environment.items():
        monkeypatch.setenv(name, value)
    return aws


def question(
    folder: Path, body: bytes, source: str = "in.png", output: str = "out.png", **more: Any
) -> Question:
    (folder / source).write_bytes(body)
    return Question(source=folder / source, output=folder / output, timeout_s=30, **more)


def keys(aws: Moto, prefix: str) -> list[str]:
    found = aws.client("s3").list_objects_v2(Bucket="pictures", Prefix=prefix)
    return [each["Key"] for each in found.get("Contents", [])]


def test_a_url_is_asked_and_the_suffix_chooses_the_type(server: Served, tmp_path: Path) -> None:
    asked = question(tmp_path, still(), output="out.webp", options=(("scale", "3"),))
    reply = invoke(server.url, asked)
    assert (reply.way, reply.media_type) == ("url", "image/webp")
    assert dict(reply.facts)["width"] == "192"
    assert decoded((tmp_path / "out.webp").read_bytes())[0].width == 192


def test_a_refusal_is_an_error_for_whoever_must_act_and_writes_nothing(
    server: Served, tmp_path: Path
) -> None:
    with pytest.raises(MediaError, match="cannot be decoded"):
        invoke(server.url, question(tmp_path, still()[:40]))
    with pytest.raises(JobError, match="not served here"):
        invoke(server.url, question(tmp_path, still(), options=(("model", "nope"),)))
    with pytest.raises(JobError, match="takes and gives"):
        invoke(server.url, question(tmp_path, still(), output="out.gif"))
    with pytest.raises(BackendError, match="does not answer"):
        invoke("http://127.0.0.1:1", question(tmp_path, still()))
    assert [each.name for each in tmp_path.iterdir()] == ["in.png"]


def test_a_urls_own_query_reaches_the_server(server: Served, tmp_path: Path) -> None:
    for place in ("?scale=4", "/?scale=4", "/invocations?scale=4"):
        reply = invoke(server.url + place, question(tmp_path, still()))
        assert dict(reply.facts)["width"] == "256"
    with pytest.raises(JobError, match=r"422.*'scäle' is no option"):
        invoke(f"{server.url}?scäle=4", question(tmp_path, still()))


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:80801", "http://127.0.0.1:x", "http://[::1", "http://", "http://a..b"]
)
def test_what_is_no_url_is_said_so(url: str, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"no URL|write http"):
        invoke(url, question(tmp_path, still()))


def test_the_command_answers_in_json_and_by_its_exit_code(server: Served, tmp_path: Path) -> None:
    (tmp_path / "in.mp4").write_bytes(clip())
    command = vsr(
        "endpoint", "invoke", server.url, str(tmp_path / "in.mp4"), str(tmp_path / "out.mkv"), "--json"
    )
    done = subprocess.run([*command, "-o", "preset=ultrafast"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["facts"]["frames"] == "12"
    refused = subprocess.run([*command, "-o", "scale=0"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "scale" in refused.stderr


def test_a_named_endpoint_is_asked_in_real_time(account: Moto, server: Served, tmp_path: Path) -> None:
    reply = invoke("live", question(tmp_path, still(), options=(("scale", "2"),)))
    assert (reply.way, dict(reply.facts)["model"]) == ("real-time", "bicubic")
    assert (tmp_path / "out.png").read_bytes() == server.invoke(still(), "image/png").body


def test_a_variant_may_be_named(account: Moto, tmp_path: Path) -> None:
    assert invoke("live", question(tmp_path, still(), variant="new")).size_bytes > 0


def test_the_models_own_words_come_through_sagemakers_error(account: Moto, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="answers 422: image: this png cannot be decoded"):
        invoke("live", question(tmp_path, still()[:40]))


def test_a_payload_over_the_limit_goes_through_s3_by_itself(
    account: Moto, server: Served, tmp_path: Path
) -> None:
    reply = invoke("later", question(tmp_path, still("png", 128, 96), payload_bytes=1000))
    assert reply.way == "async"
    assert (tmp_path / "out.png").read_bytes() == server.invoke(still("png", 128, 96), "image/png").body
    assert keys(account, "out/inputs") == []


def test_an_asynchronous_failure_is_told_with_its_reason(account: Moto, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="cannot be decoded"):
        invoke("later", question(tmp_path, still()[:40], is_async=True))
    assert len(keys(account, "failed")) == 1
    assert keys(account, "out/inputs") == []


def test_a_real_time_endpoint_cannot_take_what_is_too_large(account: Moto, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="not asynchronous"):
        invoke("live", question(tmp_path, still(), payload_bytes=100))


def test_an_endpoint_that_is_not_there_is_named(account: Moto, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="nowhere"):
        invoke("nowhere", question(tmp_path, still()))


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("ThrottlingException", 400, BackendError),
        ("Throttling", 400, BackendError),
        ("RequestLimitExceeded", 503, BackendError),
        ("RequestLimitExceeded", 400, BackendError),
        ("SlowDown", 503, BackendError),
        ("InternalServerException", 500, BackendError),
        ("Unavailable", 502, BackendError),
        ("TooManyRequestsException", 429, BackendError),
        ("ModelNotReadyException", 429, BackendError),
        ("ModelStreamError", 400, BackendError),
        ("ResourceLimitExceeded", 400, JobError),
        ("ValidationException", 400, JobError),
        ("AccessDeniedException", 403, JobError),
    ],
)
def test_what_passes_by_itself_is_nobodys_mistake(code: str, status: int, kind: type[Exception]) -> None:
    response = {"Error": {"Code": code, "Message": "so"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    with pytest.raises(kind, match=f"^film: .*DescribeEndpoint.*{code}: so"), explained("film"):
        raise ClientError(response, "DescribeEndpoint")
