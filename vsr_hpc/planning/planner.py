"""Makes the plan from a job, its clip and its model."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from fractions import Fraction

from vsr_hpc.errors import SourceChangedError
from vsr_hpc.job.spec import RangeSection
from vsr_hpc.media.clip.probe import content_hash, index_clip
from vsr_hpc.media.clip.reader import read_frames
from vsr_hpc.media.clip.scenes import find_cuts
from vsr_hpc.media.encode.segment_writer import encoder_build
from vsr_hpc.media.stills.gif import is_animation
from vsr_hpc.media.timeline import Timeline, parse_position, select_range
from vsr_hpc.planning.cutting import chunk_borders, shard_borders, window_of
from vsr_hpc.planning.fingerprint import fingerprint
from vsr_hpc.planning.plan import Plan, Temporal
from vsr_hpc.planning.preparation import Prepared
from vsr_hpc.planning.requests import gif_delays_of
from vsr_hpc.planning.source_stamps import take_stamps
from vsr_hpc.planning.space import scratch_bytes

log = logging.getLogger(__name__)


def make_plan(
    prepared: Prepared, calibrate: Callable[[Prepared, Timeline], float | None]
) -> tuple[Plan, bytes]:
    """Demux and hash the source once, cut it, freeze all of it; the second value is the timeline as bytes."""
    job, clip, card = prepared.job, prepared.clip, prepared.card
    stamps = take_stamps(clip)
    timeline = index_clip(clip, prepared.source)
    content = content_hash(prepared.source)
    if take_stamps(clip) != stamps:
        raise SourceChangedError(f"{clip.uri}: is still being written; call again when it is complete")
    start, stop = frame_range(job.range, timeline)
    if is_animation(job.output):
        gif_delays_of(job, timeline, start, stop)  # refuses times that it cannot hold
    pixels = clip.picture.width * clip.picture.height
    temporal = _temporal(prepared, timeline, start, stop)
    chunks = chunk_borders(
        start,
        stop,
        frame_rate=_mean_rate(timeline, start, stop),
        operations_per_frame=float(card.operations_per_pixel) * pixels,
        chunk_s=job.run.chunk_s,
        temporal=temporal,
    )
    speed = calibrate(prepared, timeline) if len(chunks) > 2 else None
    packed = timeline.to_bytes()
    plan = Plan(
        job=job,
        clip=clip,
        card=card,
        picture=prepared.picture,
        encoding=prepared.encoding,
        chunk_borders=chunks,
        shard_borders=shard_borders(
            chunks, seconds_per_frame=speed, shard_s=job.run.shard_s, workers=job.run.workers
        ),
        temporal=temporal,
        timeline_sha256=hashlib.sha256(packed).hexdigest(),
        fingerprint=fingerprint(
            job,
            content_sha256=content,
            card=card,
            picture=prepared.picture,
            encoding=prepared.encoding,
            frames=(start, stop),
            encoder_build=encoder_build(),
            window=window_of(job, card, clip),
        ),
        source_etag=prepared.source.etag,
        source_stamps=stamps,
        seconds_per_frame=speed,
        scratch_bytes=scratch_bytes(prepared, stop - start),
    )
    return plan, packed


def _temporal(prepared: Prepared, timeline: Timeline, start: int, stop: int) -> Temporal | None:
    """For a video network: the length of its windows, and the cuts that none of them looks across.

    The range is decoded once for that, at a small part of what the network will take.
    """
    window = window_of(prepared.job, prepared.card, prepared.clip)
    if window is None:
        return None
    frames = read_frames(
        prepared.clip,
        timeline,
        prepared.source,
        start,
        stop,
        threads=min(4, len(os.sched_getaffinity(0))),
        deinterlace=prepared.job.picture.deinterlace,
    )
    cuts = find_cuts(frames, prepared.clip.picture)
    log.info("scenes found cuts=%d window=%d context=%d", len(cuts), *window)
    return Temporal(longest=window[0], context=window[1], cuts=cuts)


def frame_range(wanted: RangeSection, timeline: Timeline) -> tuple[int, int]:
    """The frames [start, stop) that were asked for."""
    begin, end = (None if each is None else parse_position(each) for each in (wanted.start, wanted.stop))
    start, stop = select_range(timeline, begin, end)
    return start, stop if wanted.frames is None else min(stop, start + wanted.frames)


def _mean_rate(timeline: Timeline, start: int, stop: int) -> Fraction:
    """Frames per second of the range, by its own timestamps; 24 where a single frame tells nothing."""
    if stop - start < 2:
        return Fraction(24)
    ticks = int(timeline.pts[stop - 1]) - int(timeline.pts[start])
    if ticks <= 0:
        return Fraction(24)
    return Fraction(stop - start - 1) / (ticks * timeline.time_base)
