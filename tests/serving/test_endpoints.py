"""Endpoints from a file on a moto SageMaker: created once, changed, rolled back, removed without a trace."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.moto_server import Moto, moto_server
from tests.serving.samples import still
from tests.serving.served import Served
from vsr_hpc.errors import BackendError, JobError
from vsr_hpc.serving import endpoints
from vsr_hpc.serving.client import Question, invoke


@pytest.fixture(scope="module")
def moto() -> Iterator[Moto]:
    with moto_server(preload=[str(Path(__file__).with_name("sagemaker_patches.py"))]) as aws:
        yield aws


@pytest.fixture
def account(moto: Moto, monkeypatch: pytest.MonkeyPatch) -> Moto:
    moto.reset()
    for name, value in moto.environment.items():
        monkeypatch.setenv(name, value)
    return moto


def spec(url: str = "http://127.0.0.1:1", **more: Any) -> endpoints.EndpointSpec:
    document = {
        "name": "film",
        "image": "123456789012.dkr.ecr.eu-central-1.amazonaws.com/vsr:1",
        "role": "arn:aws:iam::123456789012:role/vsr",
        "environment": {"LOCAL_URL": url},
        "instance_type": "ml.g5.xlarge",
        **more,
    }
    return endpoints.EndpointSpec.model_validate(document)


def kinds(steps: tuple[endpoints.Step, ...]) -> list[str]:
    return [f"{each.action} {each.kind}" for each in steps]


def test_an_endpoint_is_created_once_and_serves(account: Moto, server: Served, tmp_path: Path) -> None:
    wanted = spec(server.url)
    assert kinds(endpoints.plan(wanted)) == ["create model", "create configuration", "create endpoint"]
    endpoints.apply(wanted)
    assert endpoints.apply(wanted) == ()
    assert endpoints.status("film")["status"] == "InService"
    (tmp_path / "in.png").write_bytes(still())
    reply = invoke("film", Question(source=tmp_path / "in.png", output=tmp_path / "out.png"))
    assert reply.way == "real-time"


def test_a_change_makes_new_ones_updates_and_then_removes_the_old(account: Moto) -> None:
    endpoints.apply(spec())
    changed = spec(environment={"LOCAL_URL": "x", "VSR_SERVE_QUEUE": "8"})
    assert kinds(endpoints.apply(changed)) == [
        "create model", "create configuration", "update endpoint", "remove configuration", "remove model",
    ]  # fmt: skip
    assert endpoints.plan(changed) == ()


def test_an_update_that_is_rolled_back_leaves_the_old_one_serving(account: Moto) -> None:
    endpoints.apply(spec())
    before = endpoints.status("film")["configuration"]
    with pytest.raises(BackendError, match="rolled back"):
        endpoints.apply(spec(environment={"FAILS": "true"}))
    assert endpoints.status("film")["configuration"] == before
    assert kinds(endpoints.apply(spec())) == ["remove configuration", "remove model"]


def test_autoscaling_comes_changes_and_goes(account: Moto) -> None:
    endpoints.apply(spec(autoscale={"most": 3}))
    assert endpoints.status("film")["scaling"] == (1, 3)
    assert kinds(endpoints.apply(spec(autoscale={"most": 5}))) == ["update autoscaling"]
    assert kinds(endpoints.apply(spec())) == ["remove autoscaling"]
    assert endpoints.status("film")["scaling"] is None


def test_delete_removes_all_it_made_and_nothing_else(account: Moto) -> None:
    sagemaker = account.client("sagemaker")
    endpoints.apply(spec(autoscale={"most": 3}))
    endpoints.apply(spec(name="film-2"))
    sagemaker.create_model(
        ModelName="film-by-hand", PrimaryContainer={"Image": "x"},
        ExecutionRoleArn="arn:aws:iam::123456789012:role/x",
    )  # fmt: skip
    assert kinds(endpoints.delete("film")) == [
        "remove autoscaling", "remove endpoint", "remove configuration", "remove model",
    ]  # fmt: skip
    left = {each["ModelName"] for each in sagemaker.list_models()["Models"]}
    assert left == {"film-by-hand", endpoints.model_request(spec(name="film-2"))["ModelName"]}
    assert endpoints.status("film-2")["status"] == "InService"
    assert endpoints.delete("film") == ()
    with pytest.raises(JobError, match="no endpoint"):
        endpoints.status("film")


def test_an_endpoint_that_somebody_else_made_is_left_alone(account: Moto) -> None:
    sagemaker, wanted = account.client("sagemaker"), spec()
    sagemaker.create_model(**endpoints.model_request(wanted))
    sagemaker.create_endpoint_config(**endpoints.config_request(wanted))
    config = endpoints.config_request(wanted)["EndpointConfigName"]
    sagemaker.create_endpoint(EndpointName="film", EndpointConfigName=config)
    with pytest.raises(JobError, match="left alone"):
        endpoints.delete("film")
    with pytest.raises(JobError, match="left alone"):
        endpoints.apply(wanted)
    assert endpoints.status("film")["status"] == "InService"


def test_an_asynchronous_endpoint_takes_what_is_too_large(
    account: Moto, server: Served, tmp_path: Path
) -> None:
    account.make_bucket("films")
    endpoints.apply(spec(server.url, **{"async": {"output": "s3://films/out", "concurrency": 2}}))
    (tmp_path / "in.png").write_bytes(still())
    asked = Question(source=tmp_path / "in.png", output=tmp_path / "out.png", payload_bytes=10, timeout_s=30)
    assert invoke("film", asked).way == "async"


def test_a_file_is_refused_with_all_its_findings(tmp_path: Path) -> None:
    path = tmp_path / "endpoint.yaml"
    path.write_text("name: a b\nimage: x\nrole: me\ninstance_type: g5.xlarge\ninstances: 3\n")
    with pytest.raises(JobError, match="4 things to mend"):
        endpoints.load_spec(path)
