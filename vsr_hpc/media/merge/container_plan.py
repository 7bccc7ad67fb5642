"""What an output container holds: each stream of a clip is copied, changed or refused before any work."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import av

from vsr_hpc.media.clip.clip import Clip, Stream
from vsr_hpc.media.encode.encoding import Encoding, VideoCodec

AudioMode = Literal["copy", "aac", "opus", "none"]
Action = Literal["video", "copy", "text", "transcode", "cover", "attach", "drop", "regenerate"]

MUXERS = {
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mov": "mov",
    ".mkv": "matroska",
    ".webm": "webm",
}
_VIDEO: dict[str, tuple[VideoCodec, ...]] = {
    "mp4": ("h264", "h265", "av1"),
    "mov": ("h264", "h265", "prores"),
    "matroska": ("h264", "h265", "av1", "ffv1", "prores"),
    "webm": ("av1",),
}
_TEXT = ("subrip", "srt", "mov_text", "text", "webvtt")
_TEXT_OF = {"mp4": "mov_text", "mov": "mov_text", "matroska": "subrip"}
_STEREO_TAG = "stereo_mode"
DROP_KINDS = {
    "audio": "all sound",
    "video": "video streams beside the upscaled one",
    "subtitle": "all subtitles",
    "data": "data streams (GPS, telemetry, SCTE-35)",
    "attachment": "attached files such as fonts",
    "cover": "cover art",
    "chapters": "chapters",
    "metadata": "titles and other tags",
    "timecode": "timecode tracks",
    "disposition": "what a stream is for (forced, comment), where the container has no word for it",
    "alpha": "the alpha channel (transparency)",
    "hdr10plus": "HDR10+ dynamic metadata",
    "dolby-vision": "Dolby Vision's second layer and dynamic metadata",
    "film-grain": "film grain parameters",
    "timing": "the exact times of frames that a GIF cannot show for so short a time",
}
# Formats that a muxer lists but refuses when it writes its header.
_LISTED_BUT_REFUSED = {
    "mov": ("av1", "vp9", "vp8", "vvc", "opus", "flac", "truehd"),
    "mp4": ("truehd",),
}
# Speakers that the encoders take, fewest first; by number, as FFmpeg guesses, where a source names none.
_LAYOUTS = {
    "opus": "mono stereo 3.0 quad 5.0 5.1 6.1 7.1",
    "aac": "mono stereo 2.1 3.0 4.0 quad 3.1 5.0 4.1 5.1 6.1 7.1",
}
_LAYOUT_OF = {1: "mono", 2: "stereo", 3: "2.1", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
_BACK_OF = {"SL": "BL", "SR": "BR"}
# What FFmpeg's muxers can say of a stream (tried with each flag); the first is everywhere.
_DISPOSITIONS = {
    "mp4": "default dub comment forced hearing_impaired visual_impaired captions descriptions",
    "mov": "default",
    "matroska": "default dub original comment forced hearing_impaired visual_impaired descriptions",
    "webm": "default forced captions descriptions",
}
# FFmpeg's decoder names stand for the format that they decode.
_FORMAT_OF = {
    "libdav1d": "av1",
    "libvpx": "vp8",
    "libvpx-vp9": "vp9",
    "mp3float": "mp3",
    "mp2float": "mp2",
    "mp1float": "mp1",
    "libopus": "opus",
    "srt": "subrip",
    "ssa": "ass",
    "dvbsub": "dvb_subtitle",
    "dvdsub": "dvd_subtitle",
    "pgssub": "hdmv_pgs_subtitle",
    "dca": "dts",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamsRequest:
    """What a person wants of the streams beside the upscaled one."""

    audio: AudioMode = "copy"
    drop: tuple[str, ...] = ()
    is_cut: bool = False
    """Whether a part of the clip is wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamPlan:
    """What becomes of one stream of the source."""

    index: int
    kind: str
    action: Action
    codec: str
    is_cover: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerPlan:
    """Every stream's fate; with `findings` the output cannot be made, `notes` are said and done."""

    muxer: str
    streams: tuple[StreamPlan, ...]
    findings: tuple[str, ...]
    notes: tuple[str, ...]


def check_container(clip: Clip, encoding: Encoding, output: Path | str, request: StreamsRequest) -> list[str]:
    """What stands in the way of this output, each with its way out; empty where nothing does."""
    return list(plan_container(clip, encoding, output, request).findings)


def lost_layout_notes(clip: Clip, output: Path) -> list[str]:
    """What is said where the output loses how a stereoscopic picture holds its two views."""
    has_layout = "STEREO3D" in clip.side_data
    is_kept = MUXERS.get(output.suffix.lower()) == "matroska" and _STEREO_TAG in dict(
        clip.video_stream.metadata
    )
    text = f"the stereoscopic layout is lost: {output.suffix} and its codec do not state it here; "
    return [text + "only a layout of .mkv is kept, in .mkv"] * (has_layout and not is_kept)


def plan_container(
    clip: Clip, encoding: Encoding, output: Path | str, request: StreamsRequest
) -> ContainerPlan:
    """Decide for every stream whether it is copied, changed, dropped as asked, or in the way."""
    suffix = Path(output).suffix.lower()
    muxer = MUXERS.get(suffix)
    if muxer is None:
        known = " ".join(MUXERS)
        return ContainerPlan(
            muxer="",
            streams=(),
            notes=(),
            findings=(f"output {suffix or 'without a suffix'}: name it with one of {known}",),
        )
    findings = [
        f"--drop {kind} is unknown; kinds: {', '.join(DROP_KINDS)}"
        for kind in request.drop
        if kind not in DROP_KINDS
    ]
    notes: list[str] = []
    if encoding.codec not in _VIDEO[muxer] and encoding.pixel.has_alpha:
        findings.append(
            f"{suffix} does not hold {encoding.codec} with transparency ({encoding.pixel.name}); name the "
            "output .mkv, or .mov with --codec prores, or remove the alpha channel with --drop alpha"
        )
    elif encoding.codec not in _VIDEO[muxer]:
        others = [name for name, other in MUXERS.items() if encoding.codec in _VIDEO[other]]
        findings.append(
            f"{suffix} does not hold {encoding.codec}; name the output {' or '.join(others)}, or choose "
            f"--codec {' or '.join(_VIDEO[muxer])}"
        )
    findings += _dynamic_findings(clip, request)
    streams = tuple(
        _plan_stream(clip, stream, muxer, suffix, request, findings, notes) for stream in clip.streams
    )
    return ContainerPlan(muxer=muxer, streams=streams, findings=tuple(findings), notes=tuple(notes))


def _dynamic_findings(clip: Clip, request: StreamsRequest) -> list[str]:
    found = []
    if clip.has_hdr10plus and "hdr10plus" not in request.drop:
        found.append(
            "the source has HDR10+ dynamic metadata, which no encoder takes from here; static HDR10 is kept; "
            "accept its loss with --drop hdr10plus"
        )
    profile = clip.dolby_vision_profile
    if profile == 5:
        found.append(
            "the source is Dolby Vision profile 5, whose base layer shows false colours; it is refused"
        )
    elif profile is not None and "dolby-vision" not in request.drop:
        found.append(
            f"the source is Dolby Vision profile {profile}; its base layer can be upscaled alone with "
            "--drop dolby-vision"
        )
    return found


def _plan_stream(
    clip: Clip,
    stream: Stream,
    muxer: str,
    suffix: str,
    request: StreamsRequest,
    findings: list[str],
    notes: list[str],
) -> StreamPlan:
    action, codec = _decide(clip, stream, muxer, request)
    name = f"stream {stream.index} ({stream.kind} {format_name(stream.codec)})"
    if action is None:
        findings.append(f"{name}: {suffix} cannot hold {_explain_no_home(stream, muxer, request)}")
    else:
        findings += [f"{name}: {each}" for each in _find_obstacles(stream, action, codec, request)]
        notes += [f"{name}: {each}" for each in _describe_change(action, codec)]
    if action in ("video", "copy", "text", "transcode") and "disposition" not in request.drop:
        findings += _disposition_findings(stream, name, suffix)
    return StreamPlan(
        index=stream.index,
        kind=stream.kind,
        action=action or "drop",
        codec=codec,
        is_cover=_is_cover(stream),
    )


def _explain_no_home(stream: Stream, muxer: str, request: StreamsRequest) -> str:
    """What cannot be held, and the ways out."""
    suffixes = (".mkv", ".mp4", ".mov")
    if stream.kind == "audio" and request.audio in ("aac", "opus"):
        homes = [each for each in suffixes if _takes(MUXERS[each], request.audio)]
        other = "opus" if request.audio == "aac" else "aac"
        way_out = f"name the output {' or '.join(homes)}, choose --audio {other}, or use --drop audio"
        return f"{request.audio}; {way_out}"
    homes = [each for each in suffixes if _holds(MUXERS[each], stream) and MUXERS[each] != muxer]
    ways = [f"name the output {' or '.join(homes)}"] if homes else []
    if stream.kind == "audio":
        ways.append(f"recode it with --audio {'opus' if muxer == 'webm' else 'aac'}")
    drop = f"use --drop {'cover' if _is_cover(stream) else stream.kind}"
    return f"it; {', '.join(ways)}, or {drop}" if ways else f"it; {drop}"


def _find_obstacles(stream: Stream, action: Action, codec: str, request: StreamsRequest) -> list[str]:
    """What stands against a stream that the container could hold."""
    if action == "transcode" and choose_layout(codec, stream.layout, stream.channels) is None:
        return [
            f"{stream.channels} channels are more than {codec} takes here; copy it into .mkv, or use "
            "--drop audio"
        ]
    if action != "copy" or stream.kind != "audio":
        return []
    if codec == "tta" and request.is_cut:
        return [
            "a part of TTA sound cannot be copied, since its last packet is known by the length of the "
            "whole; recode it with --audio aac or opus, or use --drop audio"
        ]
    if not stream.has_plain_edits:
        return [
            "its MP4 edit list does more than a delay and one cut, which a copy would lose; recode it with "
            "--audio aac or opus, or use --drop audio"
        ]
    return []


def _describe_change(action: Action, codec: str) -> list[str]:
    return {
        "text": [f"text kept as {codec}, styles are lost"],
        "drop": ["dropped as asked"],
        "transcode": [f"recoded to {codec} as asked"],
    }.get(action, [])


def _decide(clip: Clip, stream: Stream, muxer: str, request: StreamsRequest) -> tuple[Action | None, str]:
    """What happens to a stream; None where the container cannot hold it."""
    codec = format_name(stream.codec)
    if stream.index == clip.video:
        return "video", codec
    if stream.kind == "data":
        return _decide_data(clip, stream, muxer, request), codec
    if _is_cover(stream):
        homes: dict[str, Action] = {"matroska": "cover", "mp4": "copy", "mov": "copy"}
        return "drop" if "cover" in request.drop else homes.get(muxer), codec
    if stream.kind in request.drop or (stream.kind == "audio" and request.audio == "none"):
        return "drop", codec
    if stream.kind == "audio" and request.audio in ("aac", "opus"):
        return ("transcode" if _takes(muxer, request.audio) else None), request.audio
    if stream.kind == "attachment":
        return ("attach" if muxer == "matroska" else None), codec
    if stream.kind == "subtitle" and codec in _TEXT and not _holds(muxer, stream) and muxer in _TEXT_OF:
        return "text", _TEXT_OF[muxer]
    return ("copy" if _holds(muxer, stream) else None), codec


def _decide_data(clip: Clip, stream: Stream, muxer: str, request: StreamsRequest) -> Action | None:
    """FFmpeg writes a track of time codes, and QuickTime's of chapters, anew from the tags of others."""
    if _is_timecode(stream):
        if "timecode" in request.drop:
            return "drop"
        if muxer in ("mov", "mp4"):
            return "regenerate"
        return "drop" if "data" in request.drop else None
    if clip.chapters and not _is_telemetry(stream):
        return "regenerate"
    if "data" in request.drop:
        return "drop"
    return "copy" if _holds(muxer, stream) else None


def _disposition_findings(stream: Stream, name: str, suffix: str) -> list[str]:
    unsaid = find_unsaid_dispositions(stream, MUXERS[suffix])
    homes = [each for each in (".mkv", ".mp4") if not find_unsaid_dispositions(stream, MUXERS[each])]
    way_out = f"name the output {' or '.join(homes)}, or " if homes else ""
    text = f"{name}: {suffix} has no word for its disposition {', '.join(unsaid)}; {way_out}accept that loss "
    return [text + "with --drop disposition"] if unsaid else []


def find_unsaid_dispositions(stream: Stream, muxer: str) -> tuple[str, ...]:
    """What the stream is for, as far as this muxer cannot say it."""
    known = _DISPOSITIONS[muxer].split()
    return () if _is_cover(stream) else tuple(each for each in stream.disposition if each not in known)


def _is_cover(stream: Stream) -> bool:
    return stream.is_attached_picture


def _is_timecode(stream: Stream) -> bool:
    return stream.kind == "data" and (stream.codec_tag == "tmcd" or "timecode" in dict(stream.metadata))


def _is_telemetry(stream: Stream) -> bool:
    """GoPro's measurements, the one data track that the MP4 muxer takes. PyAV names no format of data."""
    return stream.codec_tag == "gpmd" or "gopro met" in dict(stream.metadata).get("handler_name", "").lower()


def _holds(muxer: str, stream: Stream) -> bool:
    codec = format_name(stream.codec)
    if stream.kind == "attachment":
        return muxer == "matroska"
    if stream.kind == "data":
        return muxer in ("mp4", "mov") and _is_telemetry(stream)
    return _takes(muxer, codec)


def choose_layout(codec: str, layout: str, channels: int | None) -> str | None:
    """The fewest speakers that this encoder takes with all of the source's; None where there are too many.

    Side and back speakers count as the same: what films call 5.1 is 5.1(side), which libopus refuses.
    """
    wanted = _speakers(layout) or _speakers(_LAYOUT_OF.get(channels or 2, ""))
    fitting = (each for each in _LAYOUTS[codec].split() if wanted <= _speakers(each))
    return next(fitting, None) if wanted else None


def _speakers(layout: str) -> frozenset[str]:
    try:
        names = [each.name for each in av.AudioLayout(layout).channels]
    except (ValueError, av.FFmpegError):
        return frozenset()
    if "NONE" in names:  # so many channels, and no word for what
        return frozenset()
    has_both = {"SL", "BL"} <= set(names)
    return frozenset(names if has_both else (_BACK_OF.get(each, each) for each in names))


def _takes(muxer: str, codec: str) -> bool:
    is_listed = codec not in _LISTED_BUT_REFUSED.get(muxer, ()) and codec in _held(muxer)
    return is_listed or (muxer == "matroska" and is_acm(codec))


def is_acm(codec: str) -> bool:
    """Whether Matroska holds this sound only by its WAVE header (see `acm`)."""
    return codec in _held("wav") and codec not in _held("matroska")


@lru_cache(maxsize=8)
def _held(muxer: str) -> frozenset[str]:
    """The formats that this FFmpeg's muxer accepts, asked of itself."""
    with av.open(io.BytesIO(), "w", format=muxer) as container:
        return frozenset(format_name(each) for each in container.supported_codecs)


def format_name(codec: str) -> str:
    """The format behind the name of one of FFmpeg's decoders."""
    return _FORMAT_OF.get(codec, codec)
