"""The frozen plan of a run: chunks, shards, settings and the fingerprint of all that changes bytes.

Everything here is pure: a plan is a function of job, clip, card and calibration. Chunk borders never depend
on a clock; calibration only decides how many chunks make a shard.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from fractions import Fraction
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from vsr_hpc.errors import JobError, VsrError
from vsr_hpc.job.spec import JobSpec
from vsr_hpc.media.clip.probe import Clip
from vsr_hpc.media.clip.scenes import SCENES_VERSION
from vsr_hpc.media.encode.resolution import Encoding
from vsr_hpc.media.picture import Picture
from vsr_hpc.models.cards import Card
from vsr_hpc.models.network_costs import kept_bytes_per_pixel

PLAN_VERSION = 1
PIXEL_PATH_VERSION = 2
"""Raised whenever this package makes other pixels from the same settings."""

WINDOW_BYTES = 6 << 30
"""What the features of a window's frames may take, in fp32; they wait in the host's memory if need be."""
_SMALLEST_WINDOW = 4

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
            raise PlanError(f"plan.json has version {plan.version}, this vsr reads {PLAN_VERSION}")
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


def longest_window(card: Card, pixels: int) -> int:
    """How many frames' features fit into the memory that a window may take."""
    kept = kept_bytes_per_pixel(card.network, dict(card.parameters), sample_bytes=4)
    return max(_SMALLEST_WINDOW, WINDOW_BYTES // max(1, kept * pixels))


def window_of(job: JobSpec, card: Card, clip: Clip) -> tuple[int, int] | None:
    """(longest window, context) in frames of a video network; None for other models."""
    if not card.is_recurrent:
        return None
    longest, context = job.picture.window, job.picture.context
    if longest == "auto":
        longest = longest_window(card, clip.picture.width * clip.picture.height)
    return longest, card.context if context == "auto" else context


def chunk_borders(
    start: int,
    stop: int,
    *,
    frame_rate: Fraction,
    operations_per_frame: float,
    chunk_s: float | None = None,
    temporal: Temporal | None = None,
) -> tuple[int, ...]:
    """Cut frames [start, stop) into chunks of nearly equal length, from clip, card and settings alone.

    About ten seconds each; fewer frames where a frame is heavy; never a single frame beside others. For a
    video network at least four contexts long, and with borders at scene cuts near by: nothing is seen twice
    there.
    """
    frames = stop - start
    if frames < 1:
        raise PlanError(f"frames [{start}, {stop}) are empty")
    if chunk_s is None:
        affordable = Fraction(_CHUNK_OPERATIONS / max(operations_per_frame, 1.0))
        longest = Fraction(_CHUNK_S) * frame_rate
        wanted = max(min(longest, affordable), Fraction(_SHORTEST_CHUNK_S) * frame_rate, Fraction(2))
        wanted = max(wanted, Fraction(4 * temporal.context if temporal else 0))
    else:
        wanted = max(Fraction(chunk_s) * frame_rate, Fraction(2))
    count = max(1, min(round(frames / wanted), frames // 2))
    borders = tuple(start + frames * i // count for i in range(count + 1))
    return borders if temporal is None else _at_cuts(borders, temporal.cuts)


def _at_cuts(borders: tuple[int, ...], cuts: tuple[int, ...]) -> tuple[int, ...]:
    """Each inner border at the nearest cut within a quarter of a chunk, where there is one."""
    reach = min(stop - start for start, stop in itertools.pairwise(borders)) // 4
    moved = [
        min(
            (cut for cut in cuts if abs(cut - border) <= reach),
            key=lambda cut: abs(cut - border),
            default=border,
        )
        for border in borders[1:-1]
    ]
    return (borders[0], *moved, borders[-1])


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
    window: tuple[int, int] | None = None,
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
    for key, value in job.picture.model_dump(exclude={"scale", "size", "batch", *_LATER}).items():
        values[f"picture.{key}"] = value
    if job.picture.denoise is not None:
        values["picture.denoise"] = job.picture.denoise
    if job.picture.skip_duplicates:
        values["picture.skip_duplicates"] = True
    if card.mix is not None:
        values["denoise weights"] = card.mix.weights.sha256
    if window is not None:
        values |= {"picture.window": window[0], "picture.context": window[1], "scene cuts": SCENES_VERSION}
    for key, value in job.streams.model_dump().items():
        values[f"streams.{key}"] = value
    for key, value in job.images.model_dump().items():
        values[f"images.{key}"] = value
    if encoding is not None:
        from pydantic import TypeAdapter

        for key, value in TypeAdapter(Encoding).dump_python(encoding, mode="json").items():
            values[f"video.{key}"] = value
    return {key: json.dumps(value, sort_keys=True) for key, value in values.items()}


_LATER = ("denoise", "skip_duplicates", "window", "context")
"""Settings that a plan names only where they are in use: plans of before know nothing of them."""


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
