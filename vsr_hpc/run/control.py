"""Reads and writes the marks by which a person stops a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """What people and workers asked of the whole run, from one small listing."""

    cancelled: int
    """The latest round that was cancelled, 0 for none."""
    poisoned: dict[int, int]
    """Shards set aside, each with the lease generation at which it was."""
    retried: dict[int, int]
    avoided: frozenset[str]
    is_stopped: bool

    @classmethod
    def from_names(cls, names: Iterable[str]) -> Control:
        cancelled, is_stopped = 0, False
        poisoned: dict[int, int] = {}
        retried: dict[int, int] = {}
        avoided: set[str] = set()
        for name in names:
            word, _, rest = name.partition(".")
            if word == "cancelled":
                cancelled = max(cancelled, int(rest))
            elif word in ("poisoned", "retried"):
                table = poisoned if word == "poisoned" else retried
                shard, generation = int(rest[:5]), int(rest[7:])
                table[shard] = max(table.get(shard, 0), generation)
            elif word == "avoid":
                avoided.add(rest)
            elif word == "stop":
                is_stopped = True
        still = {shard: at for shard, at in poisoned.items() if retried.get(shard, 0) < at}
        return cls(
            cancelled=cancelled,
            poisoned=still,
            retried=retried,
            avoided=frozenset(avoided),
            is_stopped=is_stopped,
        )

    def is_cancelled(self, round_number: int) -> bool:
        return self.cancelled > 0 and round_number <= self.cancelled
