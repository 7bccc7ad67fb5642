"""What a clip is: its picture, its streams, its chapters and tags; and the way to its timeline."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, get_args

import av

from vsr_hpc.errors import MediaError
from vsr_hpc.media.clip import indexing
from vsr_hpc.media.clip.clip import Chapter, Clip, Pairs, Stream, StreamKind
from vsr_hpc.media.clip.colour_tags import read_colour
from vsr_hpc.media.clip.container_facts import Track, matroska_crops, mp4_tracks
from vsr_hpc.media.clip.interlace import judge_scan, sample_scan
from vsr_hpc.media.decoder import ALPHA_DECODERS, open_decoder
from vsr_hpc.media.picture import Picture
from vsr_hpc.media.pixels import pixel_format
from vsr_hpc.media.side_data import Shown, SideData, read_side_data, show
from vsr_hpc.media.source import MAX_PIXELS, MAX_SIDE, Source, file_hash, open_input, raw_bytes, size_bytes
from vsr_hpc.media.stills.sequence import (
    DEFAULT_RATE,
    find_stills,
    means_stills,
    stills_hash,
    stills_timeline,
)
from vsr_hpc.media.timeline import Timeline

_RAW_CONTAINERS = frozenset({"h264", "hevc", "vvc", "m4v", "mpegvideo", "cavsvideo", "dirac", "vc1", "obu"})
_STILL_BRANDS = frozenset({"avif", "heic", "heix", "heim", "heis", "mif1"})
_PROBED_FRAMES = 3
_AUDIBLE_S = Fraction(1, 50)
_LOST_SIDE_DATA = {
    "A53_CC": "closed captions inside the picture's stream",
    "S12M_TIMECODE": "a time code on each frame",
    "SPHERICAL": "a spherical (360 degree) projection",
    "AMBIENT_VIEWING_ENVIRONMENT": "an ambient viewing environment",
    "DYNAMIC_HDR_VIVID": "HDR Vivid metadata",
    "ICC_PROFILE": "an ICC profile",
}


def probe_clip(
    source: Source,
    *,
    video_stream: int | None = None,
    frame_rate: Fraction | None = None,
    allow_gaps: bool = False,
    salvage: bool = False,
) -> Clip:
    """Read a clip's headers and a few frames.

    A file that is cut off is refused unless `salvage` says that its first part will do.
    `frame_rate` counts only where the source has no timestamps: `is_rate_given` says whether it does.

    A folder, a pattern or a still is a clip too, with `images` set; `allow_gaps` is for its numbering.

    MediaError says what is wrong with a file that is no clip, too large, or of a kind that is not read.
    """
    if means_stills(source):
        return _probe_stills(source, frame_rate, allow_gaps)
    indexing.refuse_cut_off(source, salvage=salvage)
    is_cut_off = salvage and indexing.is_cut_off(source)
    tracks, cropped = _tracks(source)
    with open_input(source) as container:
        video = _choose_video(source.uri, container, video_stream)
        if video.codec_context is None:
            raise MediaError(f"{source.uri}: no decoder here knows what its video is coded with")
        _check_size(source.uri, int(video.width or 0), int(video.height or 0))
        streams = tuple(_stream(each, tracks) for each in container.streams)
        chosen = next(each for each in streams if each.index == video.index)
        codec = chosen.codec
        decoder = _alpha_decoder(codec, dict(video.metadata))
        chapters = tuple(_chapter(each) for each in container.chapters())
        rate = video.average_rate or video.guessed_rate or video.base_rate
        if container.format.name in _RAW_CONTAINERS:
            rate = video.guessed_rate or rate  # their average is the demuxer's default of 25
        field_order = int(getattr(video.codec_context, "field_order", 0) or 0)
        aspect = video.sample_aspect_ratio or video.codec_context.sample_aspect_ratio
        headers: dict[str, Any] = {
            "container": container.format.name,
            "metadata": _pairs(container.metadata),
            "duration_s": _seconds(container.duration),
            "start_s": _seconds(container.start_time),
        }
    is_single = dict(headers["metadata"]).get("major_brand") in _STILL_BRANDS
    if is_single:
        _refuse_tiles(source.uri, streams, chosen)
    first = _first_frames(source, chosen, decoder)
    picture, findings = _picture(source.uri, codec, first, aspect)
    scan = sample_scan(source, chosen.index, codec, first.shown.field_order, field_order)
    interlace, has_telecine, scan_findings = judge_scan(scan)
    is_rate_given = frame_rate is not None and (
        headers["container"] in _RAW_CONTAINERS or not first.has_times
    )
    has_cropping = chosen.index in cropped or any(each.has_crop for each in tracks if each.id == chosen.id)
    _check_edits(source.uri, chosen)
    if has_cropping:
        raise MediaError(
            f"{source.uri}: asks players to crop the picture, which would be lost; crop it for good first: "
            "ffmpeg -i IN -c:v ffv1 -c:a copy OUT.mkv"
        )
    return Clip(
        uri=source.uri,
        size_bytes=size_bytes(source),
        video=chosen.index,
        codec=codec,
        decoder=decoder,
        picture=picture,
        frame_rate=frame_rate if is_rate_given else Fraction(rate) if rate else None,
        is_rate_given=is_rate_given,
        streams=streams,
        chapters=chapters,
        interlace=interlace,
        has_hard_telecine=has_telecine,
        has_hdr10plus=first.side.has_hdr10plus,
        dolby_vision_profile=_dolby_vision(first.side, chosen),
        has_film_grain=first.has_film_grain,
        side_data=first.side.names,
        is_single_picture=is_single,
        is_cut_off=is_cut_off,
        findings=(*findings, *scan_findings, *_stream_findings(streams, chosen), *first.findings),
        **headers,
    )


def index_clip(clip: Clip, source: Source, *, decode: bool = False) -> Timeline:
    """Every frame of the clip with its timestamp, exactly as a decode from the start yields them.

    One demux pass where packets can be trusted (see `indexing`), a decode where they can't or `decode` asks.
    MediaError where the file is cut off, holds no frame, or its time can't be made sense of.
    """
    if clip.images is not None:
        return stills_timeline(clip.images, clip.frame_rate or DEFAULT_RATE)
    stream = clip.video_stream
    timeline = indexing.build(
        indexing.Target(
            source=source,
            stream=stream.index,
            codec=clip.codec,
            container=clip.container,
            decoder=clip.decoder,
            is_interlaced=clip.interlace != "progressive",
            frame_rate=clip.frame_rate,
            is_rate_given=clip.is_rate_given,
            is_cut_off=clip.is_cut_off,
        ),
        decode=decode,
    )
    return replace(timeline, findings=(*timeline.findings, *_sound_findings(clip, timeline)))


def _sound_findings(clip: Clip, timeline: Timeline) -> list[str]:
    """Sound that does not begin with a video whose beginning is assumed."""
    if not timeline.is_synthetic:
        return []
    begins = timeline.first * timeline.time_base
    starts = {
        each.index: each.start_pts * each.time_base
        for each in clip.streams
        if each.kind == "audio" and each.start_pts is not None
    }
    return [
        f"the video's timestamps are assumed and begin at {float(begins):.3f} s, while the sound of stream "
        f"{index} begins at {float(start):.3f} s: check that they are in step"
        for index, start in starts.items()
        if abs(start - begins) >= _AUDIBLE_S
    ]


def content_hash(source: Source) -> str:
    """sha256 of every byte of the source; of names and bytes where it is images."""
    return stills_hash(source) if means_stills(source) else file_hash(source)


def _probe_stills(source: Source, frame_rate: Fraction | None, allow_gaps: bool) -> Clip:
    stills = find_stills(source, allow_gaps=allow_gaps)
    rate = frame_rate or DEFAULT_RATE
    findings = []
    if frame_rate is None and not stills.sequence.is_still:
        findings.append(f"images have no frame rate; {rate} a second was assumed, give another with --rate")
    video = Stream(
        index=0,
        id=0,
        kind="video",
        codec=stills.suffix,
        time_base=1 / rate,
        start_pts=0,
        duration=len(stills.sequence),
        width=stills.picture.width,
        height=stills.picture.height,
    )
    return Clip(
        uri=source.uri,
        container="images",
        size_bytes=stills.size_bytes,
        video=0,
        codec=stills.suffix,
        picture=stills.picture,
        frame_rate=rate,
        is_rate_given=frame_rate is not None,
        duration_s=len(stills.sequence) / rate,
        start_s=Fraction(0),
        streams=(video,),
        images=stills.sequence,
        findings=tuple(findings),
    )


def _tracks(source: Source) -> tuple[tuple[Track, ...], frozenset[int]]:
    """MP4 tracks, and the indices of Matroska tracks with a crop."""
    with raw_bytes(source) as file:
        size = file.seek(0, 2)
        tracks, cropped = mp4_tracks(file), matroska_crops(file)
    for track in tracks:
        if track.samples > 8 * size:
            raise MediaError(
                f"{source.uri}: its header claims {track.samples} samples in {size} bytes: it is damaged"
            )
    return tracks, cropped


def _choose_video(uri: str, container: Any, wanted: int | None) -> Any:
    videos = [each for each in container.streams.video if not _is_attached(each)]
    if not videos:
        kinds = {"a cover picture" if each.type == "video" else each.type for each in container.streams}
        raise MediaError(f"{uri}: has no video stream, only {', '.join(sorted(kinds)) or 'an empty shell'}")
    if wanted is None:
        best = container.streams.best("video")
        return best if any(best is each or best.index == each.index for each in videos) else videos[0]
    for each in videos:
        if each.index == wanted:
            return each
    there = ", ".join(str(each.index) for each in videos)
    raise MediaError(f"{uri}: stream {wanted} is no video stream; video streams are {there}")


def _is_attached(stream: Any) -> bool:
    return "attached_pic" in _disposition(stream)


def _check_size(uri: str, width: int, height: int) -> None:
    if width > MAX_SIDE or height > MAX_SIDE or width * height > MAX_PIXELS:
        raise MediaError(
            f"{uri}: {width}x{height} is larger than the {MAX_SIDE}x{MAX_SIDE} that are read; cut it first"
        )


def _stream(stream: Any, tracks: tuple[Track, ...]) -> Stream:
    context = stream.codec_context
    track = next((each for each in tracks if each.id == stream.id), Track(id=0))
    metadata = dict(stream.metadata)
    kind: Any = stream.type if stream.type in get_args(StreamKind) else "unknown"
    is_audio, is_video = kind == "audio", kind == "video"
    layout = getattr(context, "layout", None) if is_audio else None
    return Stream(
        index=stream.index,
        id=stream.id,
        kind=kind,
        codec=_codec_name(context),
        codec_tag=_codec_tag(context),
        profile=stream.profile if context is not None else None,
        time_base=Fraction(stream.time_base or Fraction(1, 1000)),
        language=metadata.get("language", ""),
        title=metadata.get("title", ""),
        disposition=_disposition(stream),
        metadata=_pairs(metadata),
        start_pts=stream.start_time,
        duration=stream.duration,
        sample_rate=context.sample_rate if is_audio else None,
        channels=layout.nb_channels if layout is not None else None,
        layout=layout.name if layout is not None else "",
        width=context.width if is_video else None,
        height=context.height if is_video else None,
        edits=track.edits,
        has_plain_edits=track.has_plain_edits,
        is_attached_picture=_is_attached(stream),
        is_monochrome=is_video and str(context.pix_fmt or "").startswith("gray"),
    )


def _codec_name(context: Any) -> str:
    """FFmpeg's name of the coding (av1), not of the decoder that it picked (libdav1d)."""
    if context is None:
        return "unknown"
    codec = getattr(context, "codec", None)
    return str(getattr(codec, "canonical_name", "") or context.name)


def _codec_tag(context: Any) -> str:
    try:
        return str(context.codec_tag).strip("\0") if context is not None else ""
    except (AttributeError, UnicodeDecodeError):
        return ""


def _disposition(stream: Any) -> tuple[str, ...]:
    flags = stream.disposition
    return tuple(each.name for each in type(flags) if each.name and each in flags)


def _pairs(metadata: Any) -> Pairs:
    return tuple((str(key), str(value)) for key, value in dict(metadata).items())


def _chapter(chapter: Any) -> Chapter:
    return Chapter(
        id=chapter["id"],
        start=chapter["start"],
        stop=chapter["end"],
        time_base=Fraction(chapter["time_base"] or Fraction(1, 1000)),
        metadata=_pairs(chapter["metadata"]),
    )


def _seconds(microseconds: int | None) -> Fraction | None:
    return None if microseconds is None else Fraction(microseconds, 1_000_000)


def _alpha_decoder(codec: str, metadata: dict[str, str]) -> str | None:
    has_alpha = next((v for k, v in metadata.items() if k.lower() == "alpha_mode"), "0") == "1"
    if not has_alpha or codec not in ALPHA_DECODERS:
        return None
    name = ALPHA_DECODERS[codec]
    if name not in av.codecs_available:
        raise MediaError(
            f"the clip has an alpha channel in {codec}, which needs the decoder {name}; this PyAV lacks it"
        )
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class _First:
    """The first frames, joined: side data may come with the second one."""

    frame: av.VideoFrame
    shown: Shown
    side: SideData
    has_film_grain: bool
    has_times: bool
    findings: tuple[str, ...]


def _first_frames(source: Source, stream: Stream, decoder: str | None) -> _First:
    errors: list[str] = []
    frames: list[av.VideoFrame] = []
    with open_decoder(source, stream.index, decoder=decoder) as opened:
        for frame in opened.frames(lambda _, reason: errors.append(reason)):
            frames.append(frame)
            if len(frames) >= _PROBED_FRAMES:
                break
    if not frames:
        why = f": {errors[0]}" if errors else ""
        raise MediaError(
            f"{source.uri}: no frame of its {stream.codec} stream can be decoded{why}; the file is damaged, "
            "cut off or empty"
        )
    _check_size(source.uri, frames[0].width, frames[0].height)
    sides = [read_side_data(each) for each in frames]
    joined = SideData(
        names=tuple(sorted({name for each in sides for name in each.names})),
        mastering=next((each.mastering for each in sides if each.mastering), None),
        light_level=next((each.light_level for each in sides if each.light_level), None),
        display_matrix=next((each.display_matrix for each in sides if each.display_matrix), None),
        dolby_vision_profile=next(
            (each.dolby_vision_profile for each in sides if each.dolby_vision_profile is not None), None
        ),
    )
    has_film_grain = _has_film_grain(source, stream, decoder)
    findings = [
        f"carries {_LOST_SIDE_DATA[name]}, which a new encode leaves out"
        for name in joined.names
        if name in _LOST_SIDE_DATA
    ]
    if errors:
        findings.append(f"{len(errors)} packets at the start can't be decoded ({errors[0]})")
    if has_film_grain:
        findings.append("film grain is rendered by the decoder, so it is upscaled with the picture")
    return _First(
        frame=frames[0],
        shown=show(frames[0]),
        side=joined,
        has_film_grain=has_film_grain,
        has_times=all(each.pts is not None for each in frames),
        findings=tuple(findings),
    )


def _has_film_grain(source: Source, stream: Stream, decoder: str | None) -> bool:
    """Decoders add the grain and keep still about it, unless asked to hand its parameters out instead."""
    if stream.codec not in ("av1", "h264", "hevc", "vvc"):
        return False
    options = {"export_side_data": "film_grain"}
    with open_decoder(source, stream.index, decoder=decoder, options=options) as opened:
        for number, frame in enumerate(opened.frames(lambda *_: None)):
            if read_side_data(frame).has_film_grain:
                return True
            if number + 1 >= _PROBED_FRAMES:
                break
    return False


def _picture(uri: str, codec: str, first: _First, aspect: Any) -> tuple[Picture, list[str]]:
    frame, findings = first.frame, []
    name = frame.format.name
    try:
        form = pixel_format(name)
    except MediaError as exc:
        raise MediaError(f"{uri}: {exc}") from exc
    sample_aspect = Fraction(aspect) if aspect else first.shown.sample_aspect or Fraction(1)
    if first.side.mastering and not first.side.mastering.max_luminance:
        findings.append("the mastering display names primaries but no luminance")
    picture = Picture(
        width=frame.width,
        height=frame.height,
        pixel=form,
        colour=read_colour(frame, codec, first.shown.siting),
        sample_aspect=sample_aspect,
        display_matrix=first.side.display_matrix,
        mastering=first.side.mastering,
        light_level=first.side.light_level,
    )
    return picture, findings


def _dolby_vision(side: SideData, stream: Stream) -> int | None:
    if side.dolby_vision_profile is not None:
        return side.dolby_vision_profile
    return 0 if re.match(r"dvh|dva|dav1", stream.codec_tag) else None


def _refuse_tiles(uri: str, streams: tuple[Stream, ...], chosen: Stream) -> None:
    """FFmpeg reads each tile of a large HEIC or AVIF picture as a stream of its own."""
    size = (chosen.width, chosen.height)
    alike = [each for each in streams if each.kind == "video" and (each.width, each.height) == size]
    tiles = [each for each in alike if not each.is_monochrome]
    if len(tiles) > 1:
        raise MediaError(
            f"{uri}: this picture is made of {len(tiles)} tiles of {size[0]}x{size[1]}, which are not joined "
            "here; convert it first: heif-convert IN OUT.png"
        )


def _check_edits(uri: str, stream: Stream) -> None:
    if not stream.has_plain_edits:
        raise MediaError(
            f"{uri}: its video has an edit list of {len(stream.edits)} parts, which not all players follow; "
            "make the edit real first: ffmpeg -i IN -c:v ffv1 -c:a copy OUT.mkv"
        )


def _stream_findings(streams: tuple[Stream, ...], chosen: Stream) -> list[str]:
    others = [each for each in streams if each.kind == "video" and each.index != chosen.index]
    others = [each for each in others if not each.is_attached_picture]
    findings = []
    if others:
        shown = ", ".join(f"{each.index} ({each.width}x{each.height})" for each in others)
        findings.append(f"video stream {chosen.index} was taken; there are others: {shown}")
    return findings
