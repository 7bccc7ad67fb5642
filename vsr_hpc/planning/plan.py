"""The frozen plan of a run: chunks, shards, settings and the fingerprint of all that changes bytes.

Everything here is pure: a plan is a function of job, clip, card and calibration. Chunk borders never depend
on a clock; calibration only decides how many chunks make a shard.
"""

from __future__ import annotations

import itertools

from pydantic import BaseModel, ConfigDict, ValidationError

from vsr_hpc.errors import VsrError
from vsr_hpc.job.spec import JobSpec
from vsr_hpc.media.clip.clip import Clip
from vsr_hpc.media.encode.encoding import Encoding
from vsr_hpc.media.picture import Picture
from vsr_hpc.media.source import FileStamp
from vsr_hpc.models.cards import Card
from vsr_hpc.planning.fingerprint import fingerprint_id
from vsr_hpc.version import VERSION

PLAN_VERSION = 1
"""Raised whenever this package makes other pixels from the same settings."""


class PlanError(VsrError):
    """A plan that contradicts itself: a fault of ours or a damaged file."""


class Shard(BaseModel):
    """The unit of work, retry and resume: chunks [first_chunk, last_chunk), frames [start, stop)."""

    model_config = ConfigDict(frozen=True)

    index: int
    first_chunk: int
    last_chunk: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        return f"{self.index:05d}"

    @property
    def frames(self) -> int:
        return self.stop - self.start


class Window(BaseModel):
    """Frames [start, stop) that a video network makes in one go, seeing [read_start, read_stop)."""

    model_config = ConfigDict(frozen=True)

    start: int
    stop: int
    read_start: int
    read_stop: int

    @property
    def before(self) -> int:
        return self.start - self.read_start

    @property
    def after(self) -> int:
        return self.read_stop - self.stop


class Temporal(BaseModel):
    """How a video network goes through the clip. Windows follow from this and the chunks alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    longest: int
    """Frames in a window, its context not counted."""
    context: int
    cuts: tuple[int, ...]
    """Frames with which a scene begins: no window looks across."""


class Plan(BaseModel):
    """What a run does. Written once, never changed, read by every worker."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = PLAN_VERSION
    made_by: str = VERSION
    """The version of this package that made the plan."""
    job: JobSpec
    clip: Clip
    card: Card
    picture: Picture
    """Of the output."""
    encoding: Encoding | None
    """None where the output is a folder of images."""
    chunk_borders: tuple[int, ...]
    """Frames where chunks begin, and at the end where the last one stops."""
    shard_borders: tuple[int, ...]
    """Chunks where shards begin, and at the end the number of chunks."""
    temporal: Temporal | None = None
    """None where each frame is made by itself."""
    timeline_sha256: str
    fingerprint: dict[str, str]
    source_etag: str | None = None
    """What the source on S3 was when it was planned; another object under its name is refused."""
    source_stamps: tuple[FileStamp, ...] = ()
    """Size and time of the source's file, or of each of its images; none for a source on S3."""
    seconds_per_frame: float | None
    scratch_bytes: int

    @property
    def settings_id(self) -> str:
        """Names the settings that decide bytes; receipts and the run's end carry it."""
        return fingerprint_id(self.fingerprint)

    @property
    def start(self) -> int:
        return self.chunk_borders[0]

    @property
    def stop(self) -> int:
        return self.chunk_borders[-1]

    @property
    def frames(self) -> int:
        return self.stop - self.start

    @property
    def shard_count(self) -> int:
        return len(self.shard_borders) - 1

    @property
    def chunk_count(self) -> int:
        return len(self.chunk_borders) - 1

    def shard(self, index: int) -> Shard:
        first, last = self.shard_borders[index], self.shard_borders[index + 1]
        return Shard(
            index=index,
            first_chunk=first,
            last_chunk=last,
            start=self.chunk_borders[first],
            stop=self.chunk_borders[last],
        )

    def chunk(self, index: int) -> tuple[int, int]:
        """Frames [start, stop) of a chunk."""
        return self.chunk_borders[index], self.chunk_borders[index + 1]

    def windows(self, chunk: int) -> tuple[Window, ...]:
        """A chunk's windows, in order; none where frames are made one by one."""
        if self.temporal is None:
            return ()
        return windows(*self.chunk(chunk), within=(self.start, self.stop), temporal=self.temporal)

    def to_json(self) -> bytes:
        return self.model_dump_json(by_alias=True).encode()

    @classmethod
    def from_json(cls, document: bytes) -> Plan:
        try:
            plan = cls.model_validate_json(document)
        except ValidationError as exc:
            first = exc.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise PlanError(
                f"plan.json was written by another version of vsr, or is damaged ({where}: {first['msg']}); "
                "finish the run with that version, or start over with --new"
            ) from exc
        if plan.version != PLAN_VERSION:
            raise PlanError(
                f"plan.json has format {plan.version} of vsr_hpc {plan.made_by}, and vsr_hpc {VERSION} reads "
                f"format {PLAN_VERSION}; finish the run with that version, or start over with --new"
            )
        return plan


def windows(start: int, stop: int, *, within: tuple[int, int], temporal: Temporal) -> tuple[Window, ...]:
    """Cut a chunk at scene cuts, and what is longer than the longest window into equal parts.

    Each sees `context` frames on both sides, up to the borders of its scene and of the frames `within`.
    """
    first, last = within
    cuts = [cut for cut in temporal.cuts if first < cut < last]
    found = []
    scenes = [first, *cuts, last]
    for scene_start, scene_stop in itertools.pairwise(scenes):
        begin, end = max(start, scene_start), min(stop, scene_stop)
        count = -(-max(0, end - begin) // temporal.longest)
        for i in range(count):
            low, high = begin + (end - begin) * i // count, begin + (end - begin) * (i + 1) // count
            found.append(
                Window(
                    start=low,
                    stop=high,
                    read_start=max(scene_start, low - temporal.context),
                    read_stop=min(scene_stop, high + temporal.context),
                )
            )
    return tuple(found)
