"""`vsr image push` against moto's ECR, with an engine that notes how it was called."""

from __future__ import annotations

import base64
import json
import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.commands import vsr
from tests.containers.files import ROOT
from tests.moto_server import Moto, moto_server
from vsr_hpc.aws.image_registry import Login, PushTarget, read_login
from vsr_hpc.errors import BackendError, JobError

FAKE = ROOT / "tests" / "containers" / "fake_engine.py"
REGION = "eu-central-1"


@pytest.fixture(scope="module")
def moto() -> Iterator[Moto]:
    with moto_server() as server:
        yield server


@dataclass(frozen=True)
class Machine:
    """What is installed here, and what it was asked to do."""

    folder: Path
    moto: Moto

    def install(self, engine: str, *images: str) -> None:
        (self.folder / "bin" / engine).symlink_to(FAKE)
        kept = self.folder / "images" / engine
        kept.mkdir(parents=True)
        for image in images:
            (kept / image.replace(":", "_")).touch()

    @property
    def calls(self) -> list[Any]:
        return [json.loads(line) for line in (self.folder / "calls.jsonl").read_text().splitlines()]

    def call(self, word: str) -> Any:
        (found,) = [each for each in self.calls if each["words"][0] == word]
        return found

    @property
    def password(self) -> str:
        granted = self.moto.client("ecr").get_authorization_token()["authorizationData"][0]
        return base64.b64decode(granted["authorizationToken"]).decode().partition(":")[2]


@pytest.fixture
def machine(moto: Moto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    assert FAKE.stat().st_mode & stat.S_IXUSR
    (tmp_path / "bin").mkdir()
    moto.reset()
    for name in [each for each in os.environ if each.startswith(("AWS_", "DOCKER_", "REGISTRY_"))]:
        monkeypatch.delenv(name)
    for name, value in {**moto.environment, "FAKE_ENGINE_FOLDER": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "bin" / "python3").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return Machine(folder=tmp_path, moto=moto)


@pytest.mark.parametrize("engine", ["docker", "podman", "buildah"])
def test_push_answers_with_the_address_that_names_the_image_for_good(machine: Machine, engine: str) -> None:
    machine.install(engine, "vsr-hpc:cpu")
    said = vsr("image", "push", "--tag", "7", "--region", REGION)
    assert said.code == 0, said.err
    (details,) = machine.moto.client("ecr").describe_images(repositoryName="vsr-hpc")["imageDetails"]
    registry = f"123456789012.dkr.ecr.{REGION}.amazonaws.com"
    assert said.out.strip() == f"{registry}/vsr-hpc@{details['imageDigest']}"
    assert details["imageTags"] == ["7"]
    assert machine.call("tag")["words"] == ["tag", "vsr-hpc:cpu", f"{registry}/vsr-hpc:7"]


@pytest.mark.parametrize("engine", ["docker", "podman", "buildah"])
def test_the_password_goes_by_stdin_and_is_nowhere_else(machine: Machine, engine: str) -> None:
    machine.install(engine, "vsr-hpc:cpu")
    said = vsr("-vv", "image", "push", "--region", REGION)
    assert said.code == 0, said.err
    secret = machine.password
    assert secret and machine.call("login")["typed"] == secret
    assert secret not in said.out + said.err
    for call in machine.calls:
        assert secret not in " ".join(call["words"]) + call["environment"]


@pytest.mark.parametrize("engine", ["docker", "podman", "buildah"])
def test_the_login_is_kept_for_this_push_alone(machine: Machine, engine: str) -> None:
    machine.install(engine, "vsr-hpc:cpu")
    assert vsr("image", "push", "--region", REGION).code == 0
    pushed = machine.call("push")
    assert pushed["is_logged_in"], "the push did not find the login"
    assert not Path(pushed["login"]).parent.exists()


def test_docker_is_still_asked_where_it_was_when_its_settings_are_set_aside(machine: Machine) -> None:
    machine.install("docker", "vsr-hpc:cpu")
    assert vsr("image", "push", "--region", REGION).code == 0
    assert machine.call("push")["docker_host"] == "unix:///run/user/1000/docker.sock"


def test_a_repository_is_made_once_and_looks_through_its_images(machine: Machine) -> None:
    machine.install("podman", "vsr-hpc:cpu")
    first = vsr("image", "push", "--region", REGION)
    second = vsr("image", "push", "--tag", "2", "--region", REGION)
    assert (first.code, second.code) == (0, 0)
    assert "made the repository vsr-hpc" in first.err and "made" not in second.err
    (made,) = machine.moto.client("ecr").describe_repositories()["repositories"]
    assert made["imageScanningConfiguration"] == {"scanOnPush": True}


def test_no_repository_is_made_where_that_was_not_wanted(machine: Machine) -> None:
    machine.install("podman", "vsr-hpc:cpu")
    said = vsr("image", "push", "--no-create", "--region", REGION)
    assert said.code == 2 and "no repository vsr-hpc" in said.err
    assert machine.moto.client("ecr").describe_repositories()["repositories"] == []


def test_the_engine_that_has_the_image_is_taken(machine: Machine) -> None:
    machine.install("docker")
    machine.install("podman", "vsr-hpc:cuda")
    said = vsr("image", "push", "vsr-hpc:cuda", "--region", REGION, "--json")
    assert said.code == 0, said.err
    assert said.json["engine"] == "podman"
    assert said.json["uri"].endswith(said.json["digest"])


def test_an_image_that_is_nowhere_is_named_before_aws_is_asked(machine: Machine) -> None:
    machine.install("docker", "other:1")
    machine.install("podman")
    machine.moto.requests()
    said = vsr("image", "push", "--region", REGION)
    assert said.code == 2
    assert "no image vsr-hpc:cpu here (asked docker, podman)" in said.err and "make image" in said.err
    assert machine.moto.requests() == ()


def test_no_engine_at_all_is_said(machine: Machine) -> None:
    said = vsr("image", "push", "--region", REGION)
    assert said.code == 2 and "docker, podman or buildah: not found" in said.err


@pytest.mark.parametrize("step", ["login", "push"])
def test_an_engine_that_fails_is_worth_another_try_and_betrays_nothing(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], step: str
) -> None:
    machine.install("podman", "vsr-hpc:cpu")
    monkeypatch.setenv("FAKE_ENGINE_FAILS", step)
    said = vsr("image", "push", "--region", REGION)
    heard = capfd.readouterr().err
    assert said.code == 75 and "podman ended with 1" in said.err
    assert "unauthorized" in said.err + heard
    assert machine.password not in said.err + said.out + heard
    assert not Path(machine.call("login")["login"]).parent.exists()


def test_missing_rights_are_for_whoever_gives_them(machine: Machine) -> None:
    machine.install("podman", "vsr-hpc:cpu")
    machine.moto.fail("status", method="POST", status=403, code="AccessDenied", times=9)
    said = vsr("image", "push", "--region", REGION)
    machine.moto.heal()
    assert said.code == 2, said.err


@pytest.mark.parametrize(("option", "value"), [("--tag", "a b"), ("--tag", "-x"), ("--repository", "Vsr")])
def test_names_that_ecr_would_refuse_are_refused_here(machine: Machine, option: str, value: str) -> None:
    machine.install("podman", "vsr-hpc:cpu")
    said = vsr("image", "push", f"{option}={value}", "--region", REGION)
    assert said.code == 2 and value in said.err


def test_a_login_shows_no_password() -> None:
    assert "hunter2" not in repr(Login(registry="r", user="AWS", password="hunter2"))


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"authorizationData": []},
        {"authorizationData": [{"authorizationToken": "hunter2!", "proxyEndpoint": "https://r"}]},
        {"authorizationData": [{"authorizationToken": "aHVudGVyMg==", "proxyEndpoint": "https://r"}]},
    ],
)
def test_an_answer_without_a_login_is_refused_without_showing_it(answer: dict[str, Any]) -> None:
    with pytest.raises(BackendError) as refused:
        read_login(answer)
    assert "hunter2" not in str(refused.value) and "aHVudGVyMg" not in str(refused.value)


def test_all_that_is_wrong_with_a_target_is_said_at_once() -> None:
    with pytest.raises(JobError) as refused:
        PushTarget(repository="A", tag=" ")
    assert "repository 'A'" in str(refused.value) and "tag ' '" in str(refused.value)
