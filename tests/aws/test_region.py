"""One region for every client: AWS_REGION, then AWS_DEFAULT_REGION, then the profile's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from vsr_hpc.aws.account import client
from vsr_hpc.aws.batch.definition import Wanted, definition
from vsr_hpc.aws.calls import Clients
from vsr_hpc.aws.ec2.spec import load_ec2, user_data
from vsr_hpc.aws.image_registry import PushTarget
from vsr_hpc.aws.policies import region_of
from vsr_hpc.cli.answers import account_of
from vsr_hpc.errors import JobError
from vsr_hpc.storage.s3_connection import S3Connection, S3Options
from vsr_hpc.system.aws_region import find_region

JOBS = Path(__file__).parents[2] / "jobs"
NAMED = {
    "only AWS_REGION": ({"AWS_REGION": "eu-north-1"}, "eu-north-1"),
    "only AWS_DEFAULT_REGION": ({"AWS_DEFAULT_REGION": "ap-south-1"}, "ap-south-1"),
    "both, AWS_REGION counts": (
        {"AWS_REGION": "eu-north-1", "AWS_DEFAULT_REGION": "ap-south-1"},
        "eu-north-1",
    ),
    "an empty one does not count": ({"AWS_REGION": "", "AWS_DEFAULT_REGION": "ap-south-1"}, "ap-south-1"),
    "only the profile": ({}, "us-west-2"),
}


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A shell with keys, no region of its own, and nothing that stands in for AWS."""
    for name in [each for each in os.environ if each.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    return monkeypatch


@pytest.fixture(params=NAMED.values(), ids=NAMED.keys())
def region(request: pytest.FixtureRequest, shell: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The region that this shell means, while the profile's file names us-west-2."""
    (tmp_path / "config").write_text("[default]\nregion = us-west-2\n")
    variables, meant = request.param
    for name, value in variables.items():
        shell.setenv(name, value)
    return str(meant)


def _s3() -> Any:
    return S3Connection(S3Options()).client


def test_every_client_works_in_the_region_that_the_shell_names(region: str) -> None:
    assert find_region() == region
    assert client("batch").meta.region_name == region
    assert client("sagemaker", timeout_s=900).meta.region_name == region
    assert Clients().of("ec2").meta.region_name == region
    assert account_of(None).region == region
    assert _s3().meta.region_name == region


def test_roles_and_first_boots_name_the_same_region(region: str) -> None:
    assert region_of("vsr-hpc:local") == region


def test_a_region_that_the_command_names_counts_before_all(region: str) -> None:
    assert client(
        "ecr", PushTarget(repository="vsr-hpc", tag="1", region="sa-east-1").region
    ).meta.region_name == ("sa-east-1")
    assert account_of("sa-east-1").region == "sa-east-1"


@pytest.mark.parametrize("make", [lambda: client("batch"), lambda: account_of(None), _s3])
def test_without_a_region_nothing_is_asked_and_the_error_says_where_to_name_one(
    shell: pytest.MonkeyPatch, make: Any
) -> None:
    with pytest.raises(JobError, match=r"no AWS region is set.*AWS_REGION"):
        make()


def test_an_object_store_that_is_not_aws_needs_no_region(shell: pytest.MonkeyPatch) -> None:
    shell.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9000")
    assert _s3().meta.endpoint_url == "http://127.0.0.1:9000"


def test_a_profile_that_does_not_exist_is_refused_by_its_name(shell: pytest.MonkeyPatch) -> None:
    shell.setenv("AWS_PROFILE", "films")
    with pytest.raises(JobError, match=r"profile.*films.*AWS_PROFILE"):
        client("batch")


def test_containers_of_batch_and_ec2_get_both_variables() -> None:
    wanted = Wanted(
        name="vsr", image="i", job_role="r", region="eu-north-1", cpus=4, memory_gib=8, gpus=0, attempts=3,
        timeout_min=60, warning_s=120,
    )  # fmt: skip
    environment = {
        each["name"]: each["value"] for each in definition(wanted)["containerProperties"]["environment"]
    }
    assert environment["AWS_REGION"] == environment["AWS_DEFAULT_REGION"] == "eu-north-1"
    script = user_data(load_ec2(JOBS / "ec2-server.yaml"), "eu-north-1")
    assert "AWS_REGION=eu-north-1" in script and "AWS_DEFAULT_REGION=eu-north-1" in script
