"""The frozen plan of a run: chunks, shards, settings and the fingerprint of all that changes bytes.

Everything here is pure: a plan is a function of job, clip, card and calibration. Chunk borders never depend
on a clock; calibration only decides how many chunks make a shard.
"""

from __future__ import annotations

import hashlib
import json
from fractions import Fraction
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from vsr_hpc.errors import JobError, VsrError
from vsr_hpc.job import JobSpec
from vsr_hpc.media.clip import Clip
from vsr_hpc.media.encoding import Encoding
from vsr_hpc.media.picture import Picture
from vsr_hpc.models.cards import Card

PLAN_VERSION = 1
PIXEL_PATH_VERSION = 2
"""Raised whenever this package makes other pixels from the same settings."""

_CHUNK_S = 10.0
_SHORTEST_CHUNK_S = 1.0
_CHUNK_OPERATIONS = 4e14
"""Operations in one chunk of a heavy network: what a small GPU does in about half a minute."""


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


class Plan(BaseModel):
    """What a run does. Written once, never changed, read by every worker."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = PLAN_VERSION
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
    timeline_sha256: str
    fingerprint: dict[str, str]
    source_etag: str | None = None
    """What the source on S3 was when it was planned; another object under its name is refused."""
    seconds_per_frame: float | None
    scratch_bytes: int

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
            raise PlanError(f"plan.json has version {plan.version}, this vsr reads {PLAN_VERSION}")
        return plan


def chunk_borders(
    start: int, stop: int, *, frame_rate: Fraction, operations_per_frame: float, chunk_s: float | None = None
) -> tuple[int, ...]:
    """Cut frames [start, stop) into chunks of nearly equal length, from clip, card and settings alone.

    About ten seconds each; fewer frames where a frame is heavy; never a single frame beside others.
    """
    frames = stop - start
    if frames < 1:
        raise PlanError(f"frames [{start}, {stop}) are empty")
    if chunk_s is None:
        affordable = Fraction(_CHUNK_OPERATIONS / max(operations_per_frame, 1.0))
        longest = Fraction(_CHUNK_S) * frame_rate
        wanted = max(min(longest, affordable), Fraction(_SHORTEST_CHUNK_S) * frame_rate, Fraction(2))
    else:
        wanted = max(Fraction(chunk_s) * frame_rate, Fraction(2))
    count = max(1, min(round(frames / wanted), frames // 2))
    return tuple(start + frames * i // count for i in range(count + 1))


def shard_borders(
    chunks: tuple[int, ...], *, seconds_per_frame: float | None, shard_s: float, workers: int
) -> tuple[int, ...]:
    """Group chunks into shards of about `shard_s` seconds of work; where it can be, four for each worker."""
    count = len(chunks) - 1
    frames_per_chunk = (chunks[-1] - chunks[0]) / count
    chunk_time_s = frames_per_chunk * (seconds_per_frame or 0.0)
    per_shard = max(1, int(shard_s / chunk_time_s)) if chunk_time_s else 1
    per_shard = max(1, min(per_shard, count // (4 * workers)))
    shards = -(-count // per_shard)
    return tuple(count * i // shards for i in range(shards + 1))


def fingerprint(
    job: JobSpec,
    *,
    content_sha256: str,
    card: Card,
    picture: Picture,
    encoding: Encoding | None,
    frames: tuple[int, int],
    encoder_build: str,
) -> dict[str, str]:
    """Every setting that changes the output's bytes, by the name a user knows it under."""
    values: dict[str, Any] = {
        "input": content_sha256,
        "frames": list(frames),
        "model": card.name,
        "weights": card.weights.sha256 if card.weights else None,
        "output size": f"{picture.width}x{picture.height}",
        "pixel format": picture.pixel.name,
        "encoder build": encoder_build,
        "pixel path": PIXEL_PATH_VERSION,
        "run.chunk_s": job.run.chunk_s,
    }
    for key, value in job.picture.model_dump(exclude={"scale", "size", "batch"}).items():
        values[f"picture.{key}"] = value
    for key, value in job.streams.model_dump().items():
        values[f"streams.{key}"] = value
    for key, value in job.images.model_dump().items():
        values[f"images.{key}"] = value
    if encoding is not None:
        from pydantic import TypeAdapter

        for key, value in TypeAdapter(Encoding).dump_python(encoding, mode="json").items():
            values[f"video.{key}"] = value
    return {key: json.dumps(value, sort_keys=True) for key, value in values.items()}


def fingerprint_id(values: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def check_same(old: dict[str, str], new: dict[str, str], where: str) -> None:
    """Refuse to continue a run with other settings, naming each that differs."""
    differing = [
        f"{key} was {_short(old.get(key))}, now {_short(new.get(key))}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    if differing:
        raise JobError.from_findings(
            f"{where} holds a run with other settings; take them back, or start over with --new", differing
        )


def _short(value: str | None) -> str:
    text = "not set" if value is None else value
    return text if len(text) <= 40 else text[:37] + "..."
