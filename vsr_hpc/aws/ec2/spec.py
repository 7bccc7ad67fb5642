"""ec2.yaml: a server, or workers of a run, as containers on plain EC2 instances."""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
import shlex
from collections.abc import Iterator
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from vsr_hpc.aws.instances import all_instances
from vsr_hpc.aws.limits import limit
from vsr_hpc.errors import JobError
from vsr_hpc.system.aws_region import region_environment
from vsr_hpc.system.yaml_file import read_mapping

# AWS's own images with Docker on them, and the NVIDIA runtime where there is a GPU.
_GPU_IMAGE = "/aws/service/ecs/optimized-ami/amazon-linux-2023/gpu/recommended/image_id"
_CPU_IMAGE = "/aws/service/ecs/optimized-ami/amazon-linux-2023/recommended/image_id"
HOOK = "vsr-ready"
_CIDR = r"\d{1,3}(\.\d{1,3}){3}/\d{1,2}"


class Ec2Spec(BaseModel):
    """Instances as a person writes them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9](-?[a-z0-9]){0,60}$")
    image: str = Field(pattern=r"^[A-Za-z0-9_./:@-]+$", max_length=255)
    role: Literal["server", "worker"] = "server"
    run: str | None = Field(None, pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/[\w!.*'()/+=@:,-]+$")
    """Of workers: what `vsr submit` printed."""
    instance_types: tuple[Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]+\.[a-z0-9-]+$")], ...] = (
        Field(min_length=1, max_length=20)
    )
    purchase: Literal["spot", "on-demand"] = "spot"
    count: int = Field(1, ge=1, le=100)
    on_demand_base: int = Field(0, ge=0, le=100)
    """How many of the count are bought on demand, so that something is there where Spot has nothing."""
    subnets: tuple[Annotated[str, StringConstraints(pattern=r"^subnet-[0-9a-f]{8,17}$")], ...] = Field(
        min_length=1, max_length=16
    )
    profile: str = Field(pattern=r"^arn:aws[a-z-]*:iam::\d{12}:instance-profile/[\w+=,.@/-]+$")
    access: str = Field("ssm", pattern=rf"^(ssm|caller|{_CIDR})$")
    """Who may reach the server: nobody but through Session Manager, your present address, or a range."""
    port: int = Field(8080, ge=1024, le=65535)
    ami: str | None = Field(None, pattern=r"^(ami-[0-9a-f]{8,17}|/[\w./-]+)$")
    """An image's id or the SSM parameter that names one; AWS's own with Docker if left out."""
    disk_gib: int = Field(100, ge=30, le=16_384)
    startup_s: int = Field(900, ge=60, le=7200)
    environment: dict[Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], str] = Field(
        default_factory=dict
    )
    tags: dict[str, str] = Field(default_factory=dict, max_length=40)

    @property
    def account(self) -> str:
        return self.profile.split(":")[4]

    @property
    def partition(self) -> str:
        return self.profile.split(":")[1]

    @property
    def resource(self) -> str:
        """What everything that is made for it is called."""
        return resource_name(self.name)

    @property
    def has_gpu(self) -> bool:
        return all(_gpus(each) for each in self.instance_types)

    @property
    def image_source(self) -> str:
        """ImageId of a launch template, which follows a parameter by itself."""
        wanted = self.ami or (_GPU_IMAGE if self.has_gpu else _CPU_IMAGE)
        return f"resolve:ssm:{wanted}" if wanted.startswith("/") else wanted


def resource_name(name: str) -> str:
    return f"vsr-ec2-{name}"


def load_ec2(path: Path) -> Ec2Spec:
    """Read an ec2.yaml. JobError with all findings."""
    return parse_ec2(read_mapping(path, "an ec2 file", "name, image and role"), str(path))


def parse_ec2(document: Any, where: str) -> Ec2Spec:
    try:
        spec = Ec2Spec.model_validate(document)
    except ValidationError as exc:
        found = [f"{'.'.join(map(str, each['loc'])) or 'file'}: {each['msg']}" for each in exc.errors()]
        raise JobError.from_findings(where, found) from exc
    if found := list(_findings(spec)):
        raise JobError.from_findings(where, found)
    return spec


def _findings(spec: Ec2Spec) -> Iterator[str]:
    if (spec.role == "worker") != (spec.run is not None):
        yield "run: workers have one, a server has none"
    if len({bool(_gpus(each)) for each in spec.instance_types}) > 1:
        yield "instance_types: some have a GPU and some do not, and one image serves all; take one kind"
    known = all_instances()
    kinds = {known[each].arch for each in spec.instance_types if each in known}
    if len(kinds) > 1:
        yield f"instance_types: {' and '.join(sorted(kinds))} cannot run one image"
    if spec.on_demand_base and spec.purchase == "on-demand":
        yield "on_demand_base: all instances are bought on demand already; leave it out, or purchase: spot"
    if spec.on_demand_base > spec.count:
        yield f"on_demand_base={spec.on_demand_base} is more than count={spec.count}"
    for key, value in spec.environment.items():
        if "\n" in value:
            yield f"environment.{key}: a line break cannot go through docker's environment file"
    if spec.role == "worker" and spec.access != "ssm":
        yield "access: workers listen to nobody; leave it out"
    if len(user_data(spec, "us-gov-west-1")) > limit("user_data_bytes"):
        yield f"environment: too much; EC2 takes {limit('user_data_bytes')} bytes of user data"


def _gpus(instance_type: str) -> int:
    known = all_instances().get(instance_type)
    return known.gpus if known else int(bool(re.match(r"(g\d|p\d|gr\d)", instance_type)))


def user_data(spec: Ec2Spec, region: str) -> str:
    """The script of the first boot, its values before it. Nothing in it is a secret."""
    command = ["serve"] if spec.role == "server" else ["worker", str(spec.run)]
    environment = {**region_environment(region), **spec.environment}
    values = {
        "region": region,
        "group": spec.resource,
        "hook": HOOK,
        "image": spec.image,
        "role": spec.role,
        "gpus": "yes" if spec.has_gpu else "no",
        "port": str(spec.port),
        "startup_s": str(max(60, spec.startup_s - 30)),
        "environment": "\n".join(f"{key}={value}" for key, value in sorted(environment.items())),
    }
    lines = [f"{key}={shlex.quote(value)}" for key, value in values.items()]
    lines.insert(-1, "# shellcheck disable=SC2016  # what looks like a variable is the user's own text")
    lines.append(f"command=({shlex.join(command)})")
    return "\n".join(["#!/bin/bash", *lines, _script()])


def port_in(script: str) -> int | None:
    """The port that an encoded first boot's server listens at; None where it starts none of ours."""
    with contextlib.suppress(binascii.Error):
        text = base64.b64decode(script).decode(errors="replace")
        port = re.search(r"^port=(\d+)$", text, re.MULTILINE)
        if port and re.search(r"^role=server$", text, re.MULTILINE):
            return int(port[1])
    return None


def encode_user_data(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@lru_cache(maxsize=1)
def _script() -> str:
    return files("vsr_hpc.aws.ec2").joinpath("ec2.sh").read_text("utf-8")
