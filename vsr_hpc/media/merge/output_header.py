"""The header of an output: its options, its streams with their tags, its chapters, the offset of time."""

from __future__ import annotations

import contextlib
from fractions import Fraction
from math import lcm
from pathlib import Path
from typing import Any

from vsr_hpc.media.merge import acm, pgs
from vsr_hpc.media.merge.container_plan import ContainerPlan, StreamPlan, is_acm
from vsr_hpc.media.merge.header_edits import NAME_PADDING, TrackEdit
from vsr_hpc.media.merge.other_streams import (
    ASS_HEADER,
    Peek,
    Track,
    add_file,
    audio_encoder,
    open_primed_template,
    remove_opus_skip,
    track_position,
    tta_length,
)
from vsr_hpc.media.merge.request import MergeRequest
from vsr_hpc.media.merge.segment_packets import mp4_scale, nearest, video_template

_LIVE_MP4 = "+frag_keyframe+delay_moov+default_base_moof"
"""The header goes out with the first fragment, so that it tells of edit lists. A fragment ends where a key
picture comes and nowhere else: beside captions, cuts by time make the muxer get the sound's times wrong."""
_FAR_START = Fraction(1)
# Tags that FFmpeg makes up about the file or the encoder at hand; on the output they would be lies.
_STALE_CONTAINER_TAGS = ("major_brand", "minor_version", "compatible_brands", "duration")
_STALE_STREAM_TAGS = ("duration", "number_of_frames", "number_of_bytes", "bps", "vendor_id")
_STALE_PREFIX = "_statistics_"
_ENCODER_TAGS = ("encoder",)
# What the MP4 muxer can say in its classic form; for any other key the whole set goes into `mdta` keys.
_MP4_TAGS = (
    "title artist album_artist album date comment genre copyright grouping lyrics description synopsis show "
    "episode_id episode_sort network season_number composer encoder tempo track disc compilation media_type "
    "hd_video gapless_playback creation_time keywords rating sort_album sort_artist sort_name"
)


class OutputHeader:
    """Builds the header of one output.

    `tracks` are the source's other streams; `edits`, `languages` and `location` are what must be edited in
    the finished file.
    """

    def __init__(
        self, request: MergeRequest, plan: ContainerPlan, notes: list[str], *, is_live: bool
    ) -> None:
        self.request, self.plan, self.notes, self.is_live = request, plan, notes, is_live
        self.span = request.span
        self.tracks: dict[int, Track] = {}
        self.edits: dict[int, TrackEdit] = {}
        self.languages: dict[int, str] = {}
        self.location: str | None = None
        self.offset = Fraction(0)

    def options(self, container: Any) -> dict[str, str]:
        options = {"fflags": "+bitexact"}
        if self.plan.muxer in ("mp4", "mov"):
            rates = [
                container.streams[each.index].codec_context.sample_rate
                for each in self.plan.streams
                if each.kind == "audio" and each.action in ("copy", "transcode")
            ]
            # Edit lists tick in the movie's time scale; 1/1000 s would move sound against picture.
            scale = lcm(mp4_scale(self.request.timeline.time_base), *filter(None, rates))
            options["movie_timescale"] = str(
                scale if scale < 1 << 31 else mp4_scale(self.request.timeline.time_base)
            )
            options["video_track_timescale"] = str(mp4_scale(self.request.timeline.time_base))
            tags = {} if container is None else self._container_tags(container)
            flags = _LIVE_MP4 if self.is_live else ""
            known = {*_MP4_TAGS.split(), *(("location",) if self.plan.muxer == "mov" else ())}
            if not {_without_language(key) for key in tags} <= known:
                flags += "+use_metadata_tags"
                self.location = {key.lower(): value for key, value in tags.items()}.get("location")
            if flags:
                options["movflags"] = flags
        else:
            options["avoid_negative_ts"] = "disabled"
        return options

    def add_streams(
        self, out: Any, container: Any, segment: Path, peek: Peek, stack: contextlib.ExitStack
    ) -> Any:
        video: Any = None
        plans = self.plan.streams or (
            StreamPlan(
                index=self.request.clip.video, kind="video", action="video", codec=self.request.encoding.codec
            ),
        )
        for plan in plans:
            if plan.action == "video":
                video = self._add_video(out, segment, stack)
                if container is not None:
                    self._dress(video, container.streams[plan.index], is_new=True)
                self._reserve(out, video)
            elif plan.action in ("copy", "text", "transcode"):
                self._add_other(out, container.streams[plan.index], plan, peek, stack)
            elif plan.action in ("attach", "cover"):
                add_file(out, container.streams[plan.index], plan, peek)
        return video

    def _add_video(self, out: Any, segment: Path, stack: contextlib.ExitStack) -> Any:
        template = stack.enter_context(video_template(segment, self.request.picture))
        stream = out.add_stream_from_template(template.streams.video[0], opaque=True)
        stream.time_base = self.request.timeline.time_base
        stream.codec_context.sample_aspect_ratio = self.request.picture.sample_aspect
        if self.request.clip.frame_rate and self.plan.muxer in ("matroska", "webm"):
            # without it the muxer writes no durations, not even the last frame's (PyAV 17 drops it)
            stream.codec_context.framerate = self.request.clip.frame_rate
        if self.request.encoding.codec == "h265" and self.plan.muxer in ("mp4", "mov"):
            stream.codec_context.codec_tag = "hvc1"  # what Apple's players ask for
        return stream

    def _reserve(self, out: Any, video: Any) -> None:
        """Room in a Matroska header for what PyAV cannot set: the sample aspect and FFV1's chroma siting."""
        is_bare = (
            self.request.encoding.codec in ("ffv1", "prores")
            and self.request.picture.colour.siting != "unspecified"
        )
        has_aspect = self.request.picture.sample_aspect != 1 or "stereo_mode" in video.metadata
        if self.plan.muxer not in ("matroska", "webm") or not (has_aspect or is_bare):
            return
        video.metadata["title"] = video.metadata.get("title", "") + NAME_PADDING
        self.edits[track_position(out, video)] = TrackEdit(
            sample_aspect=self.request.picture.sample_aspect if has_aspect else None,
            size=(self.request.picture.width, self.request.picture.height),
            siting=self.request.picture.colour.siting
            if is_bare and self.request.picture.pixel.log2_chroma_w
            else "unspecified",
        )

    def _add_other(
        self, out: Any, template: Any, plan: StreamPlan, peek: Peek, stack: contextlib.ExitStack
    ) -> None:
        name = f"stream {plan.index} ({plan.kind} {plan.codec})"
        track = Track(plan=plan, source=template, out=None, name=name)
        is_wrapped = False
        if plan.action == "transcode":
            track.out = track.encoder = audio_encoder(out, template, plan.codec)
        elif plan.action == "text":
            track.out = out.add_stream(plan.codec)
            track.out.codec_context.subtitle_header = ASS_HEADER
            track.out.codec_context.time_base = Fraction(1, 1000)
            track.out.time_base = Fraction(1, 1000)
        else:
            priming = peek.priming.get(plan.index, 0)
            if priming and self.plan.muxer in ("matroska", "webm") and plan.kind == "audio":
                # a range that begins later has nothing to skip, whatever the source's header says
                skipped = 0 if self.span.start else priming
                template = stack.enter_context(
                    open_primed_template(template, peek.packets[plan.index], skipped)
                )
            is_wrapped = self.plan.muxer == "matroska" and plan.kind == "audio" and is_acm(plan.codec)
            if is_wrapped:
                template = stack.enter_context(acm.open_acm_template(template))
            track.out = out.add_stream_from_template(template, opaque=True)
            if self.span.start and plan.codec == "opus":
                track.out.codec_context.extradata = remove_opus_skip(track.out.codec_context.extradata)
        if self.span.start and plan.action == "copy" and plan.codec == pgs.CODEC:
            track.screen = pgs.Screen()
        if plan.action == "copy" and plan.codec == "tta":
            track.samples = tta_length(track.source)
        self._dress(track.out, track.source, is_new=plan.action == "transcode")
        if is_wrapped:
            track.out.metadata["title"] = track.out.metadata.get("title", "") + NAME_PADDING
            self.edits[track_position(out, track.out)] = TrackEdit(codec_id=acm.CODEC_ID)
        self.tracks[plan.index] = track

    def _dress(self, stream: Any, like: Any, *, is_new: bool) -> None:
        """Language, title, other tags and dispositions of the source's stream."""
        stream.disposition = int(like.disposition)
        stale = _STALE_STREAM_TAGS + (_ENCODER_TAGS if is_new else ())
        keep = ("language", "timecode") if "metadata" in self.request.streams.drop else None
        tags = dict(like.metadata)
        if "name" in tags:  # how FFmpeg reads a track's title from MP4; writing, it wants "title"
            tags.setdefault("title", tags.pop("name"))
        stream.metadata.update(
            (key, value)
            for key, value in tags.items()
            if key.lower() not in stale
            and not key.lower().startswith(_STALE_PREFIX)
            and (keep is None or key.lower() in keep)
        )
        if self.plan.muxer == "mov" and stream.metadata.get("language"):
            self.languages[stream.index] = stream.metadata["language"]

    def _container_tags(self, container: Any) -> dict[str, str]:
        if "metadata" in self.request.streams.drop:
            return {}
        return {
            key: value
            for key, value in container.metadata.items()
            if key.lower() not in _STALE_CONTAINER_TAGS
        }

    def describe(self, out: Any, container: Any) -> None:
        if container is not None:
            out.metadata.update(self._container_tags(container))

    def chapters(self, container: Any) -> list[Any]:
        begin, end = self.span.window
        kept = []
        for chapter in container.chapters():
            base = chapter["time_base"]
            first, last = chapter["start"] * base, chapter["end"] * base
            if self.span.is_cut:
                if last <= begin or first >= end:
                    continue
                first, last = max(first, begin), min(last, end)
            first, last = (max(Fraction(0), each + self.offset) for each in (first, last))
            kept.append({**chapter, "start": nearest(first / base), "end": nearest(last / base)})
        return kept

    def choose_offset(self, peek: Peek) -> None:
        """One shift for all streams: none where the source starts near zero, to zero where it does not."""
        if self.span.start:
            self.offset = -self.span.begin
            return
        earliest = self.span.begin
        for index, track in self.tracks.items():
            if index in peek.first and track.plan.kind == "audio":
                rate = track.source.codec_context.sample_rate or 1
                earliest = min(earliest, peek.first[index] + Fraction(peek.priming.get(index, 0), rate))
        if earliest < 0 or earliest > _FAR_START:
            self.notes.append(
                f"timestamps are shifted by {float(-earliest):+.6f} s, so that the output starts at 0"
            )
            self.offset = -earliest


def _without_language(key: str) -> str:
    """The name of a tag without the language that QuickTime's texts carry (location-eng)."""
    name, _, language = key.lower().partition("-")
    return name if len(language) == 3 else key.lower()
