"""The short file that a user writes once: which account's network, bucket and money a cluster uses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from vsr_hpc.aws.names import Bucket, Cidr, Name, PolicyArn, Prefix, Region, SecretArn, Subnet, Word
from vsr_hpc.errors import JobError


class Database(BaseModel):
    """An existing MySQL-compatible server for Slurm accounting."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: Annotated[str, StringConstraints(pattern=r"^[\w.-]+:\d{2,5}$")]
    user: Word
    password_secret_arn: SecretArn


class Values(BaseModel):
    """What `render` puts into a template. Nothing here is a secret."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name = "vsr"
    region: Region
    head_subnet: Subnet
    compute_subnets: Annotated[tuple[Subnet, ...], Field(min_length=1)]
    key_name: Word
    ssh_from: Cidr
    bucket: Bucket
    prefix: Prefix = "vsr"
    node_policy_arn: PolicyArn
    project: Word = "vsr-hpc"
    head_instance: Word = "t3.medium"
    spot_nodes: Annotated[int, Field(ge=1, le=1000)] = 32
    spot_big_nodes: Annotated[int, Field(ge=1, le=1000)] = 8
    ondemand_nodes: Annotated[int, Field(ge=1, le=1000)] = 4
    cpu_nodes: Annotated[int, Field(ge=1, le=1000)] = 8
    shared_storage: Literal["none", "efs"] = "none"
    container: Word | None = None
    database: Database | None = None
    model: Word | None = None
    budget_usd_per_month: Annotated[float, Field(gt=0)] | None = None
    budget_email: Annotated[str, StringConstraints(pattern=r"^[^@\s]+@[^@\s]+\.[^@\s]+$")] | None = None

    @model_validator(mode="after")
    def _agree(self) -> Values:
        if len(set(self.compute_subnets)) != len(self.compute_subnets):
            raise ValueError(
                "compute_subnets: a subnet is named twice; give one subnet of each Availability Zone"
            )
        if (self.budget_usd_per_month is None) != (self.budget_email is None):
            raise ValueError("budget_usd_per_month and budget_email: give both or neither")
        return self

    @property
    def store_uri(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"


PLACEHOLDERS: Mapping[str, str] = {
    "head_subnet": "subnet-0aaaaaaaaaaaaaaa1",
    "compute_subnets": "subnet-0aaaaaaaaaaaaaaa2 subnet-0aaaaaaaaaaaaaaa3 subnet-0aaaaaaaaaaaaaaa4",
    "ssh_from": "203.0.113.7/32",
    "bucket": "my-vsr-bucket",
    "node_policy_arn": "arn:aws:iam::123456789012:policy/vsr-node-my-vsr-bucket",
    "budget_email": "you@example.org",
}
"""What the file of `vsr init values` says where only the user knows the value."""


def placeholders_in(values: Values) -> tuple[str, ...]:
    """The values that are still those of the example, as `key=value`."""
    document = values.model_dump()
    found = []
    for key, words in PLACEHOLDERS.items():
        value = document[key]
        given = value if isinstance(value, tuple) else (value,)
        found += [f"{key}={each}" for each in given if each in words.split()]
    return tuple(found)


def load_values(path: Path | None, overrides: Mapping[str, Any] | None = None) -> Values:
    """Read the user's file, let options win, and report everything that is wrong with it at once."""
    where = str(path) if path else "--set"
    if path is None and not overrides:
        raise JobError("a cluster needs your values: `vsr init values` writes values.yaml to fill in")
    content: dict[str, Any] = {}
    if path is not None:
        try:
            loaded = yaml.safe_load(path.read_text("utf-8"))
        except FileNotFoundError as exc:
            raise JobError(
                f"{path}: there is no such file; `vsr init values -o {path}` writes one to fill in"
            ) from exc
        except (yaml.YAMLError, UnicodeDecodeError) as exc:
            raise JobError(f"{path}: not YAML: {exc}") from exc
        if not isinstance(loaded, dict):
            raise JobError(f"{path}: expected `name: value` lines")
        content = loaded
    content |= {key: value for key, value in (overrides or {}).items() if value is not None}
    try:
        return Values.model_validate(content)
    except ValidationError as exc:
        raise JobError.from_findings(where, [_sentence(error, content) for error in exc.errors()]) from exc


def _sentence(error: Any, content: Mapping[str, Any]) -> str:
    place = ".".join(str(part) for part in error["loc"]) or "values"
    if error["type"] == "missing":
        return f"{place} is missing; `vsr init values` writes a file that says what it is"
    if error["type"] == "extra_forbidden":
        known = ", ".join(Values.model_fields)
        return f"{place} is not a value that templates use; they use {known}"
    message = re.sub(r"^Value error, ", "", error["msg"])
    found = error.get("input")
    return message if not error["loc"] else f"{place}={found!r}: {message}"
