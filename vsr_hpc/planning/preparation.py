"""From a job to a plan: read headers and settings, collect every finding, then measure the clip once.

`prepare` is cheap and runs on a laptop or head node; `make_plan` demuxes the source and freezes the plan.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from vsr_hpc.engine.geometry import Geometry, check_rgb_path, is_planewise, output_geometry
from vsr_hpc.engine.settings import UpscaleRequest, request_findings
from vsr_hpc.errors import JobError, MediaError, SpaceError
from vsr_hpc.job.spec import JobSpec, RangeSection, VideoSection
from vsr_hpc.media.clip.probe import Clip, content_hash, index, probe
from vsr_hpc.media.clip.reader import read_frames
from vsr_hpc.media.clip.scenes import find_cuts
from vsr_hpc.media.encode.resolution import Encoding, VideoRequest, planar_format, resolve_encoding
from vsr_hpc.media.encode.segment_writer import encoder_build
from vsr_hpc.media.merge.container_plan import StreamsRequest, check_container
from vsr_hpc.media.picture import Picture, PixelFormat
from vsr_hpc.media.source import Source
from vsr_hpc.media.stills.names import StillNames
from vsr_hpc.media.stills.still import SUFFIXES as IMAGE_SUFFIXES
from vsr_hpc.media.stills.still import still_picture
from vsr_hpc.media.timeline import Timeline, parse_position, select_range
from vsr_hpc.models.cards import Card, find_card, with_denoise
from vsr_hpc.models.defaults import AUTO, default_model, kind_of_still
from vsr_hpc.planning.plan import Plan, Temporal, chunk_borders, fingerprint, shard_borders, window_of
from vsr_hpc.storage.output import check_remote_output, open_output
from vsr_hpc.storage.s3_source import RangedSource, open_source

log = logging.getLogger(__name__)


_BITS_PER_PIXEL = {"h264": 0.35, "h265": 0.3, "av1": 0.25, "ffv1": 6.0, "prores": 3.0}
_USUAL_QUALITY = {"h264": 18, "h265": 20, "av1": 30}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A job that fits its clip, model and output, as far as headers tell."""

    job: JobSpec
    source: Source
    clip: Clip
    card: Card
    picture: Picture
    encoding: Encoding | None
    notes: tuple[str, ...]


def prepare(job: JobSpec, *, card: Card | None = None) -> Prepared:
    """Check everything that can be known without decoding. Raises one error with all findings.

    Whoever has the card of the job's model already gives it; it is then not looked for.
    """
    findings, is_given = _place_findings(job), card is not None
    card = _card_or_finding(job, findings, card)
    findings += _time_findings(job, card) if card is not None else []
    findings += _range_findings(job.range)
    source = open_source(job.input)
    try:
        clip = probe(source, frame_rate=job.images.frame_rate, allow_gaps=job.images.allow_gaps)
    except MediaError as exc:
        if findings:
            raise JobError.from_findings("", [*findings, f"input: {exc}"]) from exc
        raise
    if job.picture.field_order != "auto":
        clip = replace(clip, interlace=job.picture.field_order)
    findings += _interlace_findings(job, clip) + _rate_findings(job, clip)
    notes: list[str] = list(clip.findings)
    if job.model == AUTO and not is_given:
        card = find_card(_usual_model(job, clip))
        notes.append(f"the model is {card.name}; --model names another (`vsr models list`)")
    # Without its model a job is refused, but a stand-in lets the other findings be told with that one.
    picture, encoding = _output(job, clip, card or find_card("bicubic"), findings, notes)
    if card is not None:
        findings += request_findings(upscale_request(job, picture), card)
    if encoding is not None:
        findings += check_container(clip, encoding, Path(job.output), streams_request(job))
    if findings or card is None:
        raise JobError.from_findings("", findings)
    return Prepared(
        job=job,
        source=source,
        clip=clip,
        card=card,
        picture=picture,
        encoding=encoding,
        notes=tuple(notes),
    )


def make_plan(
    prepared: Prepared, calibrate: Callable[[Prepared, Timeline], float | None]
) -> tuple[Plan, bytes]:
    """Demux and hash the source once, cut it, freeze all of it; the second value is the timeline as bytes."""
    job, clip, card = prepared.job, prepared.clip, prepared.card
    timeline = index(clip, prepared.source)
    content = content_hash(prepared.source)
    start, stop = frame_range(job.range, timeline)
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
        source_etag=prepared.source.facts.etag if isinstance(prepared.source, RangedSource) else None,
        seconds_per_frame=speed,
        scratch_bytes=_scratch_bytes(prepared, stop - start),
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


def upscale_request(job: JobSpec, picture: Picture) -> UpscaleRequest:
    """The engine's view of a job whose output is settled: its size is `picture`'s, not worked out again."""
    wanted = job.picture
    return UpscaleRequest(
        size=(picture.width, picture.height),
        pixel=picture.pixel,
        tile=None if wanted.tile == "auto" else 0 if wanted.tile == "none" else wanted.tile,
        batch=None if wanted.batch == "auto" else wanted.batch,
        precision=None if wanted.precision == "auto" else wanted.precision,
        blend=wanted.blend,
        grain=wanted.grain,
        seed=wanted.seed,
    )


def streams_request(job: JobSpec) -> StreamsRequest:
    return StreamsRequest(audio=job.streams.audio, drop=job.streams.drop)


def check_space(
    plan: Plan,
    run_uri: str,
    free_bytes: int | None,
    stored_bytes: int = 0,
    *,
    is_merged_here: bool = True,
) -> None:
    """Refuse a run that cannot fit where its segments go, less what lies there already, and its output.

    What goes to S3 needs a disk only on the machine that merges it.
    """
    disk = open_output(plan.job.output).disk
    is_apart = "://" in run_uri or _device(disk) != _device(Path(run_uri))
    here = plan.scratch_bytes // 2 if is_apart else plan.scratch_bytes
    _refuse_short(run_uri, max(0, here - stored_bytes), free_bytes, "put the run elsewhere with --run")
    if is_apart and (is_merged_here or "://" not in plan.job.output):
        free = shutil.disk_usage(_existing(disk)).free
        _refuse_short(str(disk), plan.scratch_bytes // 2, free, "put the output elsewhere")


def _refuse_short(place: str, needed: int, free_bytes: int | None, way_out: str) -> None:
    if free_bytes is not None and free_bytes < needed:
        raise SpaceError(
            f"{place}: about {_size(needed)} more are needed for segments and output, {_size(free_bytes)} "
            f"are free; free some space or {way_out}"
        )


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _device(path: Path) -> int:
    return _existing(path).stat().st_dev


def _place_findings(job: JobSpec) -> list[str]:
    if "://" in job.output:
        if job.output == job.input:
            return [f"output: {job.output} is the input itself; name another object"]
        return check_remote_output(job.output, replaces=job.overwrite)
    try:
        return _local_findings(job)
    except OSError as exc:
        return [f"output: {job.output} cannot be written ({exc.strerror}); choose another place"]


def _local_findings(job: JobSpec) -> list[str]:
    output = Path(job.output)
    findings = []
    if "://" not in job.input and _same_file(Path(job.input), output):
        return [f"output: {job.output} is the input itself; name another file"]
    if output.exists() and output.is_file() and not job.overwrite:
        findings.append(f"output: {job.output} exists; {_REPLACED_BY}")
    folder = output.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        findings.append(f"output: {folder} is not a folder")
    elif not _is_writable(folder):
        findings.append(
            f"output: {folder} cannot be written to; choose another place or change its permissions"
        )
    return findings


_REPLACED_BY = "--overwrite (in a job file: overwrite: true) replaces it"


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.resolve() == other.resolve() or (other.exists() and one.samefile(other))
    except OSError:
        return False


def _is_writable(folder: Path) -> bool:
    """Proved by writing: access bits lie on network file systems and read-only mounts."""
    probe = folder / f".vsr-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        probe.touch()
        probe.unlink()
    except OSError:
        return False
    return True


def _card_or_finding(job: JobSpec, findings: list[str], card: Card | None) -> Card | None:
    try:
        card = card or find_card(job.model)
        return card if job.picture.denoise is None else with_denoise(card, job.picture.denoise)
    except JobError as exc:
        findings.append(str(exc))
        return None


def _time_findings(job: JobSpec, card: Card) -> list[str]:
    """Settings about more than one frame that the model, or another setting, has no use for."""
    wanted, findings = job.picture, []
    if not card.is_recurrent:
        findings += [
            f"{key}: {card.name} makes each frame by itself; only video networks have a {key}"
            for key in ("window", "context")
            if getattr(wanted, key) != "auto"
        ]
    if wanted.skip_duplicates and card.is_recurrent:
        findings.append(
            f"skip_duplicates: {card.name} is a video network, whose results differ even where frames "
            "repeat; leave it out"
        )
    if wanted.skip_duplicates and wanted.grain:
        findings.append("skip_duplicates: with grain no two frames are alike; leave one of them out")
    return findings


def _usual_model(job: JobSpec, clip: Clip) -> str:
    """What `auto` means for this clip and the wished size."""
    picture, wanted = clip.picture, job.picture
    factor = Fraction(str(wanted.scale)) if wanted.scale is not None else Fraction(2)
    if wanted.size is not None:
        sides = zip(wanted.size, (picture.width, picture.height), strict=True)
        factor = max(Fraction(side, have) for side, have in sides if side is not None)
    if clip.images is None:
        return default_model("video", factor)
    return default_model(kind_of_still(clip.images.path(0).suffix), factor)


def _range_findings(wanted: RangeSection) -> list[str]:
    findings = []
    for key, place in (("from", wanted.start), ("to", wanted.stop)):
        try:
            _ = None if place is None else parse_position(place)
        except JobError as exc:
            findings.append(f"range.{key}: {exc}")
    return findings


def _rate_findings(job: JobSpec, clip: Clip) -> list[str]:
    if job.images.rate is None or clip.is_rate_given:
        return []
    return [
        f"images.rate: {clip.uri} has timestamps of its own, which the output keeps; leave the rate out, "
        "it is for images and raw streams"
    ]


def _interlace_findings(job: JobSpec, clip: Clip) -> list[str]:
    if clip.images is not None:
        is_asked = job.picture.deinterlace or clip.interlace in ("tff", "bff")
        return [
            f"deinterlace, field_order: {clip.uri} is images, which are not deinterlaced; leave that out, or "
            "make a lossless video of them first"
        ] * is_asked
    if clip.has_hard_telecine and job.picture.field_order == "auto":
        return [
            f"input: {clip.uri} seems to be film telecined into fields (3:2 pulldown); undo that first "
            "(ffmpeg -vf fieldmatch,decimate), or override the diagnosis with --field-order"
        ]
    if clip.interlace in ("tff", "bff") and not job.picture.deinterlace:
        return [
            f"input: {clip.uri} is interlaced ({clip.interlace}); --deinterlace makes whole frames of its "
            "fields, --field-order progressive overrides the diagnosis"
        ]
    return []


def _output(
    job: JobSpec, clip: Clip, card: Card, findings: list[str], notes: list[str]
) -> tuple[Picture, Encoding | None]:
    """The output's picture and encoding; faults are added to the findings and a stand-in is returned."""
    try:
        geometry = _geometry(job, clip, card, _wanted_pixel(job, clip.picture))
    except JobError as exc:
        findings.append(str(exc))
        return clip.picture, None
    if _makes_images(job, clip):
        try:
            names = StillNames(job.output, clip.images)
        except JobError as exc:
            findings.append(f"output: {exc}")
            return geometry.picture, None
        findings += _stills_findings(job, clip, names) + _video_findings(job.video)
        notes += _left_out_of_stills(job, clip)
        picture = still_picture(names.name(0), geometry.picture)
        findings += _colour_findings(card, clip.picture, picture)
        notes += geometry.notes
        return picture, None
    if Path(job.output).is_dir():
        findings.append(
            f"output: {job.output} is a folder; name a file in it: {Path(job.output) / 'out.mkv'}"
        )
        return geometry.picture, None
    try:
        encoding = resolve_encoding(_video_request(job, Path(job.output)), geometry.picture)
    except JobError as exc:
        findings.append(str(exc))
        return geometry.picture, None
    if encoding.pixel != geometry.picture.pixel:
        geometry = _geometry(job, clip, card, encoding.pixel)
    findings += _colour_findings(card, clip.picture, geometry.picture)
    notes += geometry.notes
    return replace(geometry.picture, pixel=encoding.pixel), encoding


def _makes_images(job: JobSpec, clip: Clip) -> bool:
    """Whether the output is a still, a pattern of stills, or a folder for them."""
    output = Path(job.output)
    is_folder = job.output.endswith("/") or (
        clip.images is not None and (output.is_dir() or not output.suffix)
    )
    return is_folder or output.suffix.lower() in IMAGE_SUFFIXES


def _stills_findings(job: JobSpec, clip: Clip, names: StillNames) -> list[str]:
    """Stills are written one by one beside what stands there already; neither that nor the input may go."""
    output = Path(job.output)
    folder = output.parent if output.suffix.lower() in IMAGE_SUFFIXES else output
    count = len(clip.images) if clip.images is not None else 1
    targets = [folder / names.name(index) for index in range(count)]
    if clip.images is not None:
        sources = {clip.images.path(index).resolve() for index in range(count)}
        taken = [target for target in targets if target.resolve() in sources]
        if taken:
            return [f"output: {taken[0]} is one of the input's own images; name another folder"]
    there = [target for target in targets if target.exists()]
    if there and not names.is_single and not job.overwrite:  # a single file was looked at with its place
        return [f"output: {there[0]} exists; {_REPLACED_BY}"]
    return []


def _video_findings(video: VideoSection) -> list[str]:
    """What asks for an encoder where stills are made; they take a pixel format and nothing else."""
    usual = VideoSection()
    keys = [key for key in VideoSection.model_fields if getattr(video, key) != getattr(usual, key)]
    asked = ", ".join(f"video.{key}" for key in keys if key != "pix_fmt")
    return [f"{asked}: the output is images, which no video encoder makes; leave that out"] * bool(asked)


def _left_out_of_stills(job: JobSpec, clip: Clip) -> list[str]:
    others = {each.kind for each in clip.streams if each.index != clip.video} - set(job.streams.drop)
    return [f"images hold pictures only, these streams are left out: {', '.join(sorted(others))}"] * bool(
        others
    )


def _colour_findings(card: Card, source: Picture, output: Picture) -> list[str]:
    """Networks, and filters that change the layout, go through RGB, which not every matrix reaches."""
    if card.is_filter and is_planewise(source, output):
        return []
    try:
        check_rgb_path(source)
        check_rgb_path(output)
    except MediaError as exc:
        return [f"input: {exc}"]
    return []


def _geometry(job: JobSpec, clip: Clip, card: Card, pixel: PixelFormat) -> Geometry:
    wanted = job.picture
    scale = None if wanted.scale is None else Fraction(str(wanted.scale)).limit_denominator(10_000)
    return output_geometry(clip.picture, pixel, scale=scale, size=wanted.size, default_scale=card.scale)


def _wanted_pixel(job: JobSpec, picture: Picture) -> PixelFormat:
    if job.video.pix_fmt is None:
        return picture.pixel
    try:
        return planar_format(job.video.pix_fmt)
    except ValueError as exc:
        raise JobError(f"video.pix_fmt: {exc}") from exc


def _video_request(job: JobSpec, output: Path) -> VideoRequest:
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
    )


def _mean_rate(timeline: Timeline, start: int, stop: int) -> Fraction:
    """Frames per second of the range, by its own timestamps; 24 where a single frame tells nothing."""
    if stop - start < 2:
        return Fraction(24)
    ticks = int(timeline.pts[stop - 1]) - int(timeline.pts[start])
    if ticks <= 0:
        return Fraction(24)
    return Fraction(stop - start - 1) / (ticks * timeline.time_base)


def _scratch_bytes(prepared: Prepared, frames: int) -> int:
    """Segments and output side by side, generously."""
    pixels = prepared.picture.width * prepared.picture.height * frames
    return int(2 * pixels * _bits_per_pixel(prepared.encoding) / 8) + prepared.clip.size_bytes + (16 << 20)


def _bits_per_pixel(encoding: Encoding | None) -> float:
    """As for ordinary pictures; constant quality doubles it for every six steps down."""
    if encoding is None or encoding.rate_kind == "lossless":
        return _BITS_PER_PIXEL["ffv1"]
    bits = _BITS_PER_PIXEL[encoding.codec]
    usual = _USUAL_QUALITY.get(encoding.codec)
    if usual is None or encoding.rate_kind not in ("crf", "qp"):
        return bits
    return float(min(_BITS_PER_PIXEL["ffv1"], bits * 2 ** ((usual - encoding.rate) / 6)))


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB" if size_bytes >= 2**30 else f"{size_bytes / 2**20:.0f} MiB"
