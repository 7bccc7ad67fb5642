"""From a job to a plan: read headers and settings, collect every finding, then measure the clip once.

`prepare` is cheap and runs on a laptop or head node; `make_plan` demuxes the source and freezes the plan.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from vsr_hpc.engine.geometry import check_rgb_path, is_planewise
from vsr_hpc.engine.settings import request_findings
from vsr_hpc.errors import JobError, MediaError
from vsr_hpc.job.inputs import UNREAD_SUFFIXES
from vsr_hpc.job.spec import JobSpec, RangeSection, VideoSection
from vsr_hpc.media.clip.clip import Clip
from vsr_hpc.media.clip.probe import probe_clip
from vsr_hpc.media.encode.encoding import Encoding, choose_siting
from vsr_hpc.media.encode.resolution import resolve_encoding
from vsr_hpc.media.merge.container_plan import check_container, lost_layout_notes
from vsr_hpc.media.picture import Picture
from vsr_hpc.media.source import Source
from vsr_hpc.media.stills.gif import gif_findings, gif_notes, gif_picture, is_animation
from vsr_hpc.media.stills.names import StillNames
from vsr_hpc.media.stills.still import still_picture
from vsr_hpc.media.timeline import parse_position
from vsr_hpc.models.cards import Card, find_card, with_denoise
from vsr_hpc.models.defaults import AUTO, default_model, kind_of_still
from vsr_hpc.planning.output_place import makes_images, place_findings, stills_findings
from vsr_hpc.planning.requests import (
    output_geometry_of,
    output_pixel_of,
    requested_factor,
    streams_request,
    upscale_request,
    video_request,
)
from vsr_hpc.storage.opening import open_source

log = logging.getLogger(__name__)


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

    @property
    def makes_still(self) -> bool:
        """Whether one picture becomes one picture."""
        return self.encoding is None and self.clip.is_still


def prepare(job: JobSpec, *, card: Card | None = None) -> Prepared:
    """Check everything that can be known without decoding. Raises one error with all findings.

    Whoever has the card of the job's model already gives it; it is then not looked for.
    """
    findings, is_given = place_findings(job), card is not None
    card = _card_or_finding(job, findings, card)
    findings += _time_findings(job, card) if card is not None else []
    findings += _range_findings(job.range)
    if Path(job.input).suffix.lower() in UNREAD_SUFFIXES:
        raise MediaError(
            f"{job.input}: this kind of picture is not read; save it as JPG, PNG, WebP or TIFF first"
        )
    source = open_source(job.input)
    try:
        clip = probe_clip(
            source,
            frame_rate=job.images.frame_rate,
            allow_gaps=job.images.allow_gaps,
            salvage=job.range.salvage,
        )
    except MediaError as exc:
        if findings:
            raise JobError.from_findings("", [*findings, f"input: {exc}"]) from exc
        raise
    if job.picture.field_order != "auto":
        clip = replace(clip, interlace=job.picture.field_order)
    findings += _interlace_findings(job, clip) + _rate_findings(job, clip)
    notes: list[str] = list(clip.findings)
    if job.model == AUTO and not is_given:
        card = find_card(_model_of_job(job, clip))
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


def usual_model(clip: Clip, factor: Fraction | float) -> str:
    """What `auto` means for this clip at this enlargement."""
    if clip.images is None:
        return default_model("video", factor)
    return default_model(kind_of_still(clip.images.path(0).suffix), factor)


def _model_of_job(job: JobSpec, clip: Clip) -> str:
    """What `auto` means for this clip and the wished size."""
    return usual_model(clip, requested_factor(job, clip.picture) or Fraction(2))


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
        geometry = output_geometry_of(job, clip, card, output_pixel_of(job, clip.picture))
    except JobError as exc:
        findings.append(str(exc))
        return clip.picture, None
    if is_animation(job.output):
        picture = gif_picture(geometry.picture)
        findings += (
            gif_findings(clip.picture)
            + _video_findings(job.video)
            + _colour_findings(card, clip.picture, picture)
        )
        notes += [
            *geometry.notes,
            *gif_notes(geometry.picture, clip.frame_rate),
            *_left_out_of_stills(job, clip, "a GIF holds"),
        ]
        return picture, None
    if makes_images(job, clip):
        names = StillNames(job.output, clip.images)
        findings += stills_findings(job, clip, names) + _video_findings(job.video)
        notes += _left_out_of_stills(job, clip, "images hold")
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
        encoding = resolve_encoding(video_request(job, Path(job.output)), geometry.picture)
    except JobError as exc:
        findings.append(str(exc))
        return geometry.picture, None
    if encoding.pixel != geometry.picture.pixel:
        geometry = output_geometry_of(job, clip, card, encoding.pixel)
    findings += _colour_findings(card, clip.picture, geometry.picture)
    picture = _with_stated_siting(geometry.picture, encoding, notes)
    notes += [*geometry.notes, *lost_layout_notes(clip, Path(job.output))]
    return picture, encoding


def _with_stated_siting(picture: Picture, encoding: Encoding, notes: list[str]) -> Picture:
    """The picture as the encoder takes it, with chroma sited where the codec can state it."""
    was, pixel = picture.colour.siting, encoding.pixel
    siting = choose_siting(encoding.codec, pixel, was)
    if siting != was and not (
        siting == "left" and was in ("topleft", "bottomleft") and not pixel.log2_chroma_h
    ):
        notes.append(
            f"chroma samples are moved from {was} to {siting}, since {encoding.codec} in {pixel.name} cannot "
            f"state the source's chroma siting ({was})"
        )
    return replace(picture, pixel=pixel, colour=replace(picture.colour, siting=siting))


def _video_findings(video: VideoSection) -> list[str]:
    """What asks for an encoder where stills are made; they take a pixel format and nothing else."""
    usual = VideoSection()
    keys = [key for key in VideoSection.model_fields if getattr(video, key) != getattr(usual, key)]
    asked = ", ".join(f"video.{key}" for key in keys if key != "pix_fmt")
    return [f"{asked}: the output is images, which no video encoder makes; leave that out"] * bool(asked)


def _left_out_of_stills(job: JobSpec, clip: Clip, holder: str) -> list[str]:
    others = {each.kind for each in clip.streams if each.index != clip.video} - set(job.streams.drop)
    return [f"{holder} pictures only, these streams are left out: {', '.join(sorted(others))}"] * bool(others)


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
