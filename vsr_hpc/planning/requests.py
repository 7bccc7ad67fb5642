"""Turns a job's settings into requests to the engine, the encoder and the merge."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from vsr_hpc.engine.geometry import Geometry, fitted_size, output_geometry
from vsr_hpc.engine.settings import UpscaleRequest
from vsr_hpc.errors import JobError
from vsr_hpc.job.spec import SIZE_NAMES, JobSpec
from vsr_hpc.media.clip.clip import Clip
from vsr_hpc.media.encode.encoding import VideoRequest
from vsr_hpc.media.merge.container_plan import StreamsRequest
from vsr_hpc.media.picture import Picture, PixelFormat
from vsr_hpc.media.pixels import planar_format, without_alpha
from vsr_hpc.media.stills.gif import gif_delays
from vsr_hpc.media.timeline import Timeline
from vsr_hpc.models.cards import Card


def upscale_request(job: JobSpec, picture: Picture) -> UpscaleRequest:
    """The engine's view of a job whose output is settled: its size is `picture`'s, not worked out again."""
    wanted = job.picture
    return UpscaleRequest(
        size=(picture.width, picture.height),
        pixel=picture.pixel,
        drops_alpha=_drops_alpha(job),
        tile=None if wanted.tile == "auto" else 0 if wanted.tile == "none" else wanted.tile,
        batch=None if wanted.batch == "auto" else wanted.batch,
        precision=None if wanted.precision == "auto" else wanted.precision,
        blend=wanted.blend,
        grain=wanted.grain,
        seed=wanted.seed,
    )


def streams_request(job: JobSpec) -> StreamsRequest:
    is_cut = any(each is not None for each in (job.range.start, job.range.stop, job.range.frames))
    return StreamsRequest(audio=job.streams.audio, drop=job.streams.drop, is_cut=is_cut)


def output_geometry_of(job: JobSpec, clip: Clip, card: Card, pixel: PixelFormat) -> Geometry:
    wanted = job.picture
    scale = None if wanted.scale is None else Fraction(str(wanted.scale)).limit_denominator(10_000)
    return output_geometry(
        clip.picture,
        pixel,
        scale=scale,
        size=_box(job, clip.picture),
        fits=not wanted.stretch,
        default_scale=card.scale,
        drops_alpha=_drops_alpha(job),
    )


def requested_factor(job: JobSpec, picture: Picture) -> Fraction | None:
    """By how much the side that grows most grows; None where the job names neither scale nor size."""
    wanted, box = job.picture, _box(job, picture)
    if wanted.scale is not None:
        return Fraction(str(wanted.scale))
    if box is None or any(side is not None and side < 1 for side in box):
        return None
    sides = box if wanted.stretch else fitted_size(picture, box)
    stored = (picture.width, picture.height)
    return max(Fraction(side) / have for side, have in zip(sides, stored, strict=True) if side is not None)


def _box(job: JobSpec, picture: Picture) -> tuple[int | None, int | None] | None:
    """The size that a job names; a name such as 1080p stands upright where the clip does."""
    size = job.picture.size
    if not isinstance(size, str):
        return size
    long, short = SIZE_NAMES[size]
    width, height = picture.shown_size
    return (short, long) if height > width else (long, short)


def _drops_alpha(job: JobSpec) -> bool:
    return "alpha" in job.streams.drop


def output_pixel_of(job: JobSpec, picture: Picture) -> PixelFormat:
    if job.video.pix_fmt is None:
        return without_alpha(picture.pixel) if _drops_alpha(job) else picture.pixel
    try:
        return planar_format(job.video.pix_fmt)
    except ValueError as exc:
        raise JobError(f"video.pix_fmt: {exc}") from exc


def gif_delays_of(job: JobSpec, timeline: Timeline, start: int, stop: int) -> list[int]:
    return gif_delays(timeline, start, stop, may_change_times="timing" in job.streams.drop)


def video_request(job: JobSpec, output: Path) -> VideoRequest:
    video = job.video
    is_webm = output.suffix.lower() == ".webm"
    return VideoRequest(
        codec=video.codec or ("av1" if is_webm else None),
        encoder=video.encoder,
        crf=video.crf,
        qp=video.qp,
        lossless=video.lossless,
        preset=video.preset,
        pix_fmt=video.pix_fmt,
        encoder_params=tuple(video.params.items()),
        threads=video.threads,
        is_encoded_here=job.on == "local",
    )
