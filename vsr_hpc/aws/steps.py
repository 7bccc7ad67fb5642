"""One step of a plan: what a command of ours would create, update or remove in the account."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Action = Literal["create", "update", "remove", "keep"]
"""`keep`: the thing was looked at and is as wanted."""
Kind = Literal[
    "model", "configuration", "endpoint", "autoscaling", "policy", "alarm", "weights", "schedule", "registry",
    "launch template", "security group", "group", "rule", "hook", "bucket", "log group", "role",
    "instance profile", "compute environment", "job queue", "job definition", "state machine", "topic",
    "event rule", "service-linked role", "queue",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One operation of a service, by boto3's names."""

    service: str
    operation: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing that is created, updated, removed or kept."""

    action: Action
    kind: Kind
    name: str
    detail: str = ""
    calls: tuple[Call, ...] = field(default=(), repr=False)
    """The calls of the step in their order, where they are known before the first one is made."""
    apply: Callable[[], bool] | None = field(default=None, repr=False, compare=False)
    """Does the step where what to call depends on what is there, and answers whether anything changed."""

    @property
    def is_change(self) -> bool:
        return self.action != "keep"

    def row(self) -> dict[str, str]:
        """The step as data, for `--json`."""
        return {"action": self.action, "kind": self.kind, "name": self.name, "detail": self.detail}

    def __str__(self) -> str:
        return f"{self.action} {self.kind} {self.name}" + (f": {self.detail}" if self.detail else "")


def count_changes(steps: tuple[Step, ...]) -> int:
    return sum(each.is_change for each in steps)
