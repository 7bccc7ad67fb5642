"""Clients of AWS. All are made here, so that they share one region, bounded retries and fresh credentials."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import boto3
import botocore.loaders
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from vsr_hpc.aws.errors import explained
from vsr_hpc.errors import BackendError, JobError
from vsr_hpc.system.aws_region import need_region

Say = Callable[[str], None]
POLL_S = 5.0
_LONGEST_WAIT_S = 900.0


@dataclass(slots=True)
class Account:
    """The clients of one region, each made once, and how to wait for what AWS does by itself."""

    region: str
    pause: Callable[[float], None] = time.sleep
    known_number: str | None = None
    """The account's twelve digits, or what stands for them, where AWS is not to be asked."""
    _clients: dict[str, Any] = field(default_factory=dict)

    def client(self, service: str) -> Any:
        if service not in self._clients:
            self._clients[service] = client(service, self.region)
        return self._clients[service]

    def number(self) -> str:
        return self.known_number or account_number(self.client("sts"))

    def wait(self, what: str, is_so: Callable[[], bool]) -> None:
        until = time.monotonic() + _LONGEST_WAIT_S
        while not is_so():
            if time.monotonic() > until:
                raise BackendError(f"{what} takes more than {_LONGEST_WAIT_S / 60:.0f} minutes; call again")
            self.pause(POLL_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitLimits:
    """How often something that AWS changes by itself is looked at, and for how long in all."""

    poll_s: float = 15.0
    longest_s: float = 9 * 3600


def client(service: str, region: str | None = None, *, timeout_s: float = 70.0, attempts: int = 5) -> Any:
    """A boto3 client of `region`, or of the region that the shell names (`need_region`).

    It waits `timeout_s` for an answer; SageMaker answers within 60 s, and a client that waits less would send
    the same request twice. JobError where no region is named, or the shell's settings for AWS are wrong.
    """
    session = botocore.session.Session()
    session.register_component("data_loader", _service_models())
    config = Config(
        connect_timeout=min(10.0, timeout_s),
        read_timeout=timeout_s,
        retries={"mode": "standard", "total_max_attempts": attempts},
    )
    with explained(f"connect to {service}"):
        try:
            # A session of its own: boto3's default session keeps the credentials that it found first.
            made = boto3.Session(botocore_session=session).client
            return made(service, region_name=region or need_region(), config=config)
        except ValueError as exc:  # an AWS_ENDPOINT_URL that is no URL
            raise JobError(f"connect to {service}: {exc}; check AWS_ENDPOINT_URL") from exc


def account_number(sts: Any = None) -> str:
    """The twelve digits of the account that the credentials belong to."""
    with explained("find the AWS account"):
        return str((sts or client("sts")).get_caller_identity()["Account"])


def has_credentials() -> bool:
    """Whether boto3 finds credentials. AWS is not asked whether they are good."""
    try:
        return boto3.Session().get_credentials() is not None
    except BotoCoreError:
        return False


@functools.cache
def _service_models() -> Any:
    """The descriptions of AWS's services, megabytes of JSON, read once for all clients of this process."""
    return botocore.loaders.create_loader()
