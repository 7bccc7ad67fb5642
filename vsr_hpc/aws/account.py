"""Which AWS account, region and clients a command works with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import boto3
from botocore.config import Config

from vsr_hpc.aws.errors import explained
from vsr_hpc.errors import BackendError

CLIENT_ATTEMPTS = 5
Say = Callable[[str], None]
POLL_S = 5.0
_PATIENCE_S = 900.0


@dataclass(slots=True)
class Account:
    """The clients of one region, and how to wait; what `init` finds out on its way."""

    region: str
    pause: Callable[[float], None] = time.sleep
    _clients: dict[str, Any] = field(default_factory=dict)

    def client(self, service: str) -> Any:
        if service not in self._clients:
            self._clients[service] = client(service, self.region)
        return self._clients[service]

    def number(self) -> str:
        with explained("find the AWS account"):
            return str(self.client("sts").get_caller_identity()["Account"])

    def wait(self, what: str, is_so: Callable[[], bool]) -> None:
        until = time.monotonic() + _PATIENCE_S
        while not is_so():
            if time.monotonic() > until:
                raise BackendError(f"{what} takes more than {_PATIENCE_S / 60:.0f} minutes; call again")
            self.pause(POLL_S)


def client(service: str, region: str | None) -> Any:
    """A client whose retries are bounded. JobError where the shell has no region."""
    patience = Config(
        connect_timeout=10, read_timeout=60, retries={"mode": "standard", "total_max_attempts": 6}
    )
    with explained(f"connect to {service}"):
        return boto3.client(service, region_name=region, config=patience)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How often an endpoint is looked at, and for how long in all."""

    poll_s: float = 15.0
    longest_s: float = 9 * 3600


def patient_client(service: str, timeout_s: float) -> Any:
    """A boto3 client that waits long enough and tries again a bounded number of times."""
    # SageMaker answers within 60 s; a client that waits less would send the same request twice.
    patience = Config(
        connect_timeout=10,
        read_timeout=max(70.0, timeout_s),
        retries={"mode": "standard", "total_max_attempts": CLIENT_ATTEMPTS},
    )
    return boto3.client(service, config=patience)
