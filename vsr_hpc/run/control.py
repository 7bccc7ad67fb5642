"""The marks by which people and workers steer a run."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from vsr_hpc.run.names import parse_shard

_CANCELLED = re.compile(r"cancelled\.(\d+)")
_SET_ASIDE = re.compile(r"(poisoned|retried)\.(.+)\.g([1-9]\d*)")
_AVOIDED = re.compile(r"avoid\.(\d+)\.(.+)")

Attempt = tuple[int, int]
"""An epoch of a shard and a generation of its lease."""
NEVER: Attempt = (0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """What people and workers asked of the whole run, from one small listing."""

    cancelled: int
    """The latest round that was cancelled, -1 for none; workers without a round belong to round 0."""
    poisoned: dict[int, Attempt]
    """Shards set aside, each with the attempt after which it was."""
    retried: dict[int, Attempt]
    avoided: frozenset[tuple[int, str]]
    """Nodes that failed, each with the round in which it did."""
    is_stopped: bool
    is_superseded: bool
    """Whether a newer edition of the run has taken this one's place."""

    @classmethod
    def from_names(cls, names: Iterable[str]) -> Control:
        """Read the names below `control/`; a name that is none of them is ignored."""
        cancelled = -1
        marks: dict[str, dict[int, Attempt]] = {"poisoned": {}, "retried": {}}
        avoided: set[tuple[int, str]] = set()
        plain: set[str] = set()
        for name in names:
            plain.add(name)
            if found := _CANCELLED.fullmatch(name):
                cancelled = max(cancelled, int(found[1]))
            elif (found := _SET_ASIDE.fullmatch(name)) and (shard := parse_shard(found[2])):
                index, epoch = shard
                attempt = (epoch, int(found[3]))
                marks[found[1]][index] = max(marks[found[1]].get(index, NEVER), attempt)
            elif found := _AVOIDED.fullmatch(name):
                avoided.add((int(found[1]), found[2]))
        poisoned, retried = marks["poisoned"], marks["retried"]
        return cls(
            cancelled=cancelled,
            poisoned={shard: at for shard, at in poisoned.items() if retried.get(shard, NEVER) < at},
            retried=retried,
            avoided=frozenset(avoided),
            is_stopped="stop" in plain,
            is_superseded="superseded" in plain,
        )

    def must_stop(self, round_number: int) -> bool:
        """Whether workers of this round have to leave and stay away."""
        return self.is_stopped or self.is_superseded or self.is_cancelled(round_number)

    def is_cancelled(self, round_number: int) -> bool:
        return round_number <= self.cancelled

    def avoided_in(self, round_number: int) -> frozenset[str]:
        """Nodes that failed in this round; a new round tries them again."""
        return frozenset(node for number, node in self.avoided if number == round_number)
