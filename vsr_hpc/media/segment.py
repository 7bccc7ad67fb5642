"""The facts about a segment and about a merge that other packages need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentFacts:
    frames: int
    packets: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeReport:
    """What was written. `offset` seconds were added to every source timestamp; `tick` is the output's."""

    frames: int
    size_bytes: int
    sha256: str
    offset: Fraction
    tick: Fraction
    reorder_depth: int
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentPart:
    """One finished segment. `fetch` brings it to this machine when its turn comes; `done` lets it go."""

    fetch: Callable[[], Path]
    frames: int
    sha256: str | None = None
    done: Callable[[Path], None] | None = None
