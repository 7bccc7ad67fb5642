"""Builds what a worker needs to upscale: network, encoder and writer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from vsr_hpc.errors import JobError
from vsr_hpc.media.clip.probe import probe_clip
from vsr_hpc.media.clip.reader import read_segment
from vsr_hpc.media.encode.segment_writer import SegmentWriter, encoder_build
from vsr_hpc.media.encode.still_archive import ArchiveWriter, read_archive
from vsr_hpc.media.picture import Frame, Picture
from vsr_hpc.media.source import local_source
from vsr_hpc.media.timeline import Timeline
from vsr_hpc.models import weights
from vsr_hpc.planning.plan import Plan
from vsr_hpc.planning.preparation import Prepared
from vsr_hpc.planning.requests import upscale_request
from vsr_hpc.storage.opening import open_source
from vsr_hpc.version import VERSION
from vsr_hpc.work.pipeline import ChunkWriter, Upscaling, Workbench

if TYPE_CHECKING:
    from vsr_hpc.engine.upscaler import Upscaler


def workbench(plan: Plan, timeline: Timeline, upscaler: Upscaling, scratch: Path, threads: int) -> Workbench:
    """What a worker works with; segments stay in `scratch` unless `publish` is replaced."""
    return Workbench(
        plan=plan,
        timeline=timeline,
        source=open_source(plan.clip.uri, etag=plan.source_etag),
        upscaler=upscaler,
        scratch=scratch,
        decoder_threads=min(2, threads),
        new_writer=lambda path: _new_writer(plan, path),
        read_back=lambda path: _read_back(plan, path),
        publish=lambda name, path: None,
        lanes=int(getattr(upscaler, "lanes", 1)),
    )


def _new_writer(plan: Plan, path: Path) -> ChunkWriter:
    if plan.encoding is None:
        return ArchiveWriter(path, plan.picture, plan.clip, plan.job.output)
    rate = plan.clip.frame_rate or Fraction(25)
    return SegmentWriter(path, plan.encoding, plan.picture, time_base=1 / rate)


def _read_back(plan: Plan, path: Path) -> tuple[Picture, Iterator[Frame]]:
    if plan.encoding is None:
        return plan.picture, read_archive(path, plan.picture)
    if plan.encoding.codec == "prores":  # FFmpeg decodes 4444 to 12 bits, whatever went in
        return probe_clip(local_source(path)).picture, read_segment(path)
    return plan.picture, read_segment(path, plan.picture)


def build_upscaler(plan: Plan | Prepared, threads: int) -> tuple[Upscaler, dict[str, str]]:
    """The engine for a plan on this machine's device, with its weights checked; and its platform."""
    from vsr_hpc.engine.platform import platform_record, tune_allocator
    from vsr_hpc.engine.settings import choose_lanes, resolve_settings
    from vsr_hpc.engine.upscaler import Upscaler

    tune_allocator()
    request = upscale_request(plan.job, plan.picture)
    settings = resolve_settings(request, plan.card, plan.clip.picture)
    path = weights.ensure(plan.card) if plan.card.weights else None
    lanes = choose_lanes(plan.card, plan.clip.picture, settings, threads)
    upscaler = Upscaler(
        plan.card,
        path,
        plan.clip.picture,
        plan.picture,
        settings,
        threads=max(1, threads // lanes),
        lanes=lanes,
    )
    tile = "none" if settings.tile is None else str(settings.tile)
    return upscaler, {**platform_record(settings.device, settings.precision), "tile": tile}


def check_environment(plan: Plan) -> None:
    """Refuse a run that another version of this package, or another encoder build, has planned.

    Another version may make other pixels or another container, and segments of different builds may not join.
    """
    planned, here = (
        f"vsr_hpc {version} with {build}"
        for version, build in (
            (plan.made_by, json.loads(plan.fingerprint["encoder build"])),
            (VERSION, encoder_build()),
        )
    )
    if planned != here:
        raise JobError(
            f"the run was planned by {planned}, and this is {here}; the environment that planned a run also "
            "works on it and merges it: use that one, or start over with --new"
        )
