"""The documents that a run keeps: receipts, leases, heartbeats, rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from vsr_hpc.run.names import parse_shard
from vsr_hpc.storage.output import Published

Cause = Literal["stopped", "backend", "media", "died"]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class SegmentFacts(_Document):
    chunk: int
    name: str
    frames: int
    size_bytes: int
    sha256: str
    worst_psnr_db: float | None = None
    undecided: int = 0


class Receipt(_Document):
    """Proof that a shard is done: its segments are in place, counted and checked."""

    shard: int
    epoch: int = 0
    """How many receipts of this shard were voided before this one."""
    worker: str
    generation: int
    settings: str = ""
    """The plan's settings that it was made with (`Plan.settings_id`)."""
    segments: tuple[SegmentFacts, ...]
    platform: dict[str, str]
    seconds: dict[str, float]
    clipped: int = 0
    repeated: int = 0
    """Frames that got an equal one's result (`skip_duplicates`)."""
    findings: tuple[str, ...] = ()
    """What looked damaged in its pictures, in words; a true output may look so too."""
    started_s: float
    finished_s: float


class Void(_Document):
    """Closes an epoch of a shard: its receipt counts no more, however late it comes."""

    shard: int
    epoch: int
    reason: str
    at_s: float


class LeaseNote(_Document):
    worker: str
    node: str
    taken_s: float
    round: int = 0


class LeaseEnd(_Document):
    cause: Cause
    node: str
    text: str = ""


class Heartbeat(_Document):
    """A worker about itself. The first block never changes; it tells whether its process still lives."""

    worker: str
    host: str
    node: str
    pid: int
    process_start: int
    boot: str
    task: str = ""
    round: int = 0
    restart: int = 0
    device: str = ""
    started_s: float = 0.0

    state: Literal["starting", "working", "waiting", "finishing", "left"] = "starting"
    counter: int = 0
    updated_s: float = 0.0
    shard: int | None = None
    shard_frames: int = 0
    frames: int = 0
    failed: int = 0
    """Attempts that ended with an error."""
    shards: int = 0
    seconds: dict[str, float] = {}
    repeated: int = 0
    note: str = ""


class Round(_Document):
    """One submission of workers."""

    number: int
    executor: str
    workers: int
    user: str
    submitted_s: float
    missing: int
    jobs: tuple[str, ...] = ()


class Done(_Document):
    """The end of a run: what the output is."""

    output: str
    frames: int
    size_bytes: int
    sha256: str
    modified_ns: int | None = None
    """The output's modification time, where it is one file on a disk."""
    settings: str = ""
    """As of a receipt."""
    offset_s: float
    notes: tuple[str, ...] = ()
    platforms: int = 1
    repeated: int = 0
    """Frames that got an equal one's result (`skip_duplicates`)."""
    finished_s: float
    seconds: dict[str, float] = {}
    """How long shards were in the making (upscale), how long the merge took, and how long the run (all)."""

    @property
    def fps(self) -> float:
        """Frames per second while shards were made; 0 where that is not known."""
        seconds = self.seconds.get("upscale", 0.0)
        return self.frames / seconds if seconds > 0 else 0.0

    @property
    def published(self) -> Published:
        return Published(
            frames=self.frames,
            size_bytes=self.size_bytes,
            sha256=self.sha256,
            modified_ns=self.modified_ns,
        )


class Poison(_Document):
    shard: int
    epoch: int = 0
    generation: int
    reason: str
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    name: str
    generation: int

    @property
    def shard(self) -> tuple[int, int]:
        """Shard and epoch of a shard's lease."""
        found = parse_shard(self.name)
        if found is None:
            raise ValueError(f"{self.name} is the lease of no shard")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseState:
    """The newest generation of one lease, as a listing shows it."""

    generation: int
    is_ended: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Which shards are done, from one listing of receipts and voids."""

    finished: Mapping[int, int]
    """Each finished shard with the epoch of the receipt that counts."""
    epochs: Mapping[int, int]
    """The present epoch of each shard that had a receipt voided."""


def encode_document(document: BaseModel) -> bytes:
    return document.model_dump_json(exclude_defaults=False).encode()
