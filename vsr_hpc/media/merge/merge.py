"""The merge: segments' packets under the source's own timestamps, its other streams beside them.

Nothing is re-encoded here but sound on request. Packets stream through; memory does not grow with the clip.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from math import lcm
from pathlib import Path
from typing import Any

import av

from vsr_hpc.errors import BackendError, JobError, MediaError, SpaceError, VerifyError
from vsr_hpc.media.clip.clip import Clip
from vsr_hpc.media.encode.encoding import Encoding
from vsr_hpc.media.ffmpeg_errors import reason
from vsr_hpc.media.merge import acm, pgs
from vsr_hpc.media.merge.acm import open_acm_template
from vsr_hpc.media.merge.container_plan import (
    ContainerPlan,
    StreamPlan,
    StreamsRequest,
    is_acm,
    plan_container,
)
from vsr_hpc.media.merge.header_edits import (
    NAME_PADDING,
    TrackEdit,
    edit_matroska_file,
    edit_mov_languages,
    remove_other_location,
)
from vsr_hpc.media.merge.live_output import Outlet
from vsr_hpc.media.merge.other_streams import (
    ASS_HEADER,
    Peek,
    Track,
    add_file,
    audio_encoder,
    converted_text,
    first_keys,
    peeked,
    primed_template,
    track_position,
    trimmed,
    tta_length,
    unskipped_opus,
)
from vsr_hpc.media.merge.segment_packets import (
    Fetched,
    mp4_scale,
    nearest,
    numbered_packets,
    open_segment,
    output_ticks,
    retime,
    video_template,
)
from vsr_hpc.media.picture import Picture
from vsr_hpc.media.segment import MergeReport, SegmentPart
from vsr_hpc.media.source import Source, open_input
from vsr_hpc.media.timeline import Timeline
from vsr_hpc.system.files import flush_and_hash
from vsr_hpc.system.progress import tick

log = logging.getLogger(__name__)


_LIVE_MP4 = "+frag_keyframe+delay_moov+default_base_moof"
"""The header goes out with the first fragment, so that it tells of edit lists. A fragment ends where a key
picture comes and nowhere else: beside captions, cuts by time make the muxer get the sound's times wrong."""
_FAR_START = Fraction(1)
_EVER = Fraction(10**9)
_PREROLL_S = Fraction(1, 4)
"""Sound decoded before a range, for decoders that need a while to be right."""
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


def merge(
    segments: Sequence[SegmentPart],
    clip: Clip,
    timeline: Timeline,
    source: Source,
    picture: Picture,
    encoding: Encoding,
    output: Path,
    request: StreamsRequest,
    frames: tuple[int, int] | None = None,
    *,
    name: Path | None = None,
) -> MergeReport:
    """Write `output` (flushed to disk) from all segments in order and the source's other streams.

    `output` may be a temporary name; `name` is then the one whose suffix chooses the container. `frames` is
    the range of the timeline that the segments cover; other streams are cut to its time. On any error the
    file is removed and nothing else touched.
    """
    window = frames or (0, len(timeline))
    plan = _planned(segments, clip, encoding, name or output, request, window)
    job = _Merge(clip, timeline, source, picture, encoding, output, request, plan, window)
    try:
        with _translated(output):
            return job.run(segments)
    except BaseException:
        output.unlink(missing_ok=True)
        raise


def merged(
    segments: Sequence[SegmentPart],
    clip: Clip,
    timeline: Timeline,
    source: Source,
    picture: Picture,
    encoding: Encoding,
    name: Path,
    request: StreamsRequest,
) -> Generator[bytes, None, None]:
    """What `merge` would write to `name`, in pieces for somebody who reads along.

    Packets and timestamps are the same; the container is one that needs no look back: MP4 in fragments, or
    Matroska without its index and duration. A segment is fetched when its turn comes, so it may still be in
    the making when the first piece goes out.
    """
    window = (0, len(timeline))
    plan = _planned(segments, clip, encoding, name, request, window)
    job = _Merge(clip, timeline, source, picture, encoding, name, request, plan, window, is_live=True)
    outlet = Outlet()
    with _translated(name):
        for _ in job.write(segments, outlet):
            if piece := outlet.take(job.edits):
                yield piece
        if piece := outlet.rest(job.edits):
            yield piece


def _planned(
    segments: Sequence[SegmentPart],
    clip: Clip,
    encoding: Encoding,
    name: Path,
    request: StreamsRequest,
    window: tuple[int, int],
) -> ContainerPlan:
    plan = plan_container(clip, encoding, name, request)
    if plan.findings:
        raise JobError.from_findings(str(name), list(plan.findings))
    start, stop = window
    counted = sum(part.frames for part in segments)
    if counted != stop - start or not counted:
        raise VerifyError(f"{name}: segments hold {counted} frames, frames [{start}, {stop}) were planned")
    return plan


@contextlib.contextmanager
def _translated(output: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, av.FFmpegError) as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SpaceError(f"{output}: the disk is full; free space and call again") from exc
        raise BackendError(f"{output}: writing failed: {reason(exc)}") from exc


class _Merge:
    """The state of one merge; `run` is called once."""

    def __init__(
        self,
        clip: Clip,
        timeline: Timeline,
        source: Source,
        picture: Picture,
        encoding: Encoding,
        output: Path,
        request: StreamsRequest,
        plan: ContainerPlan,
        frames: tuple[int, int],
        *,
        is_live: bool = False,
    ) -> None:
        self.is_live = is_live
        self.clip, self.timeline, self.source, self.picture = clip, timeline, source, picture
        self.encoding, self.output, self.request, self.plan = encoding, output, request, plan
        self.start, self.stop = frames
        self.notes = list(plan.notes)
        self.tracks: dict[int, Track] = {}
        self.edits: dict[int, TrackEdit] = {}
        self.languages: dict[int, str] = {}
        self.location: str | None = None
        self.written: set[int] = set()
        self.keys: dict[int, Fraction] = {}
        self.offset = self.tick = Fraction(0)
        self.depth = 0
        base = timeline.time_base
        self.begin = int(timeline.pts[self.start]) * base
        # Sound may begin, or be primed, before the first picture, and go on after the last.
        end = int(timeline.pts[self.stop]) * base if self.stop < len(timeline) else _EVER
        self.window = (self.begin if self.start else -_EVER, end)
        self.is_cut = (self.start, self.stop) != (0, len(timeline))

    def run(self, segments: Sequence[SegmentPart]) -> MergeReport:
        for _ in self.write(segments, str(self.output)):
            pass
        if self.edits:
            edit_matroska_file(self.output, self.edits)
        if self.location is not None:
            remove_other_location(self.output, self.location)
        if self.languages:
            # the muxer leaves tracks without packets out, and keeps covers elsewhere
            covers = {each.out.index for each in self.tracks.values() if each.plan.is_cover}
            tracks = sorted(self.written - covers)
            edit_mov_languages(self.output, [self.languages.get(each, "") for each in tracks])
        for track in self.tracks.values():
            if track.last_dts is None:
                self.notes.append(f"{track.name}: holds nothing in what was asked for")
            if track.mended:
                self.notes.append(f"{track.name}: {track.mended} packets had timestamps out of order, mended")
        size, digest = flush_and_hash(self.output)
        log.info("merge done output=%s frames=%d size=%d", self.output, self.stop - self.start, size)
        return MergeReport(
            frames=self.stop - self.start,
            size_bytes=size,
            sha256=digest,
            offset=self.offset,
            tick=self.tick,
            reorder_depth=self.depth,
            notes=tuple(self.notes),
        )

    def write(self, segments: Sequence[SegmentPart], target: str | Outlet) -> Iterator[None]:
        """Everything into `target`, a packet a step."""
        wanted = [each for each in self.plan.streams if each.action in _FROM_SOURCE]
        with contextlib.ExitStack() as stack:
            fetched = Fetched(segments, stack)
            keeps_chapters = bool(self.clip.chapters) and "chapters" not in self.request.drop
            container: Any = None
            peek = Peek(first={}, priming={}, covers={}, packets={})
            if wanted or keeps_chapters or self.clip.images is None:
                peek = peeked(self.source, wanted)
                self._find_keys()
                container = stack.enter_context(open_input(self.source))
            out: Any = av.open(target, "w", format=self.plan.muxer, options=self._options(container))
            stack.callback(_close_quietly, out)
            video = self._add_streams(out, container, fetched.path(0), peek, stack)
            self._describe(out, container)
            self.offset = self._choose_offset(peek)
            if keeps_chapters:
                out.set_chapters(self._chapters(container))
            _write_header(out, self.plan.muxer)
            for packet in _by_time(self._video(fetched, video), self._others(container)):
                self._mux(out, packet)
                yield
            self.tick = video.time_base  # PyAV 19 tells it of an open container only
            out.close()

    # --- the header

    def _options(self, container: Any) -> dict[str, str]:
        options = {"fflags": "+bitexact"}
        if self.plan.muxer in ("mp4", "mov"):
            rates = [
                container.streams[each.index].codec_context.sample_rate
                for each in self.plan.streams
                if each.kind == "audio" and each.action in ("copy", "transcode")
            ]
            # Edit lists tick in the movie's time scale; 1/1000 s would move sound against picture.
            scale = lcm(mp4_scale(self.timeline.time_base), *filter(None, rates))
            options["movie_timescale"] = str(scale if scale < 1 << 31 else mp4_scale(self.timeline.time_base))
            options["video_track_timescale"] = str(mp4_scale(self.timeline.time_base))
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

    def _add_streams(
        self, out: Any, container: Any, segment: Path, peek: Peek, stack: contextlib.ExitStack
    ) -> Any:
        video: Any = None
        plans = self.plan.streams or (
            StreamPlan(index=self.clip.video, kind="video", action="video", codec=self.encoding.codec),
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
        template = stack.enter_context(video_template(segment, self.picture))
        stream = out.add_stream_from_template(template.streams.video[0], opaque=True)
        stream.time_base = self.timeline.time_base
        stream.codec_context.sample_aspect_ratio = self.picture.sample_aspect
        if self.clip.frame_rate and self.plan.muxer in ("matroska", "webm"):
            # without it the muxer writes no durations, not even the last frame's (PyAV 17 drops it)
            stream.codec_context.framerate = self.clip.frame_rate
        if self.encoding.codec == "h265" and self.plan.muxer in ("mp4", "mov"):
            stream.codec_context.codec_tag = "hvc1"  # what Apple's players ask for
        return stream

    def _reserve(self, out: Any, video: Any) -> None:
        """Room in a Matroska header for what PyAV cannot set: the sample aspect and FFV1's chroma siting."""
        is_bare = self.encoding.codec in ("ffv1", "prores") and self.picture.colour.siting != "unspecified"
        has_aspect = self.picture.sample_aspect != 1 or "stereo_mode" in video.metadata
        if self.plan.muxer not in ("matroska", "webm") or not (has_aspect or is_bare):
            return
        video.metadata["title"] = video.metadata.get("title", "") + NAME_PADDING
        self.edits[track_position(out, video)] = TrackEdit(
            sample_aspect=self.picture.sample_aspect if has_aspect else None,
            size=(self.picture.width, self.picture.height),
            siting=self.picture.colour.siting
            if is_bare and self.picture.pixel.log2_chroma_w
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
                skipped = 0 if self.start else priming
                template = stack.enter_context(primed_template(template, peek.packets[plan.index], skipped))
            is_wrapped = self.plan.muxer == "matroska" and plan.kind == "audio" and is_acm(plan.codec)
            if is_wrapped:
                template = stack.enter_context(open_acm_template(template))
            track.out = out.add_stream_from_template(template, opaque=True)
            if self.start and plan.codec == "opus":
                track.out.codec_context.extradata = unskipped_opus(track.out.codec_context.extradata)
        if self.start and plan.action == "copy" and plan.codec == pgs.CODEC:
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
        keep = ("language", "timecode") if "metadata" in self.request.drop else None
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
        if "metadata" in self.request.drop:
            return {}
        return {
            key: value
            for key, value in container.metadata.items()
            if key.lower() not in _STALE_CONTAINER_TAGS
        }

    def _describe(self, out: Any, container: Any) -> None:
        if container is not None:
            out.metadata.update(self._container_tags(container))

    def _chapters(self, container: Any) -> list[Any]:
        begin, end = self.window
        kept = []
        for chapter in container.chapters():
            base = chapter["time_base"]
            first, last = chapter["start"] * base, chapter["end"] * base
            if self.is_cut:
                if last <= begin or first >= end:
                    continue
                first, last = max(first, begin), min(last, end)
            first, last = (max(Fraction(0), each + self.offset) for each in (first, last))
            kept.append({**chapter, "start": nearest(first / base), "end": nearest(last / base)})
        return kept

    def _choose_offset(self, peek: Peek) -> Fraction:
        """One shift for all streams: none where the source starts near zero, to zero where it does not."""
        if self.start:
            return -self.begin
        earliest = self.begin
        for index, track in self.tracks.items():
            if index in peek.first and track.plan.kind == "audio":
                rate = track.source.codec_context.sample_rate or 1
                earliest = min(earliest, peek.first[index] + Fraction(peek.priming.get(index, 0), rate))
        if earliest < 0 or earliest > _FAR_START:
            self.notes.append(
                f"timestamps are shifted by {float(-earliest):+.6f} s, so that the output starts at 0"
            )
            return -earliest
        return Fraction(0)

    # --- the packets

    def _video(self, fetched: Fetched, video: Any) -> Iterator[tuple[Fraction, Any]]:
        """Packets of all segments in coding order with the source's timestamps."""
        base = video.time_base
        shown = output_ticks(self.timeline, self.start, self.stop, self.offset, base)
        done = 0
        extradata: bytes | None = None
        for number, part in enumerate(fetched.segments):
            path = fetched.path(number)
            with open_segment(path) as segment:
                stream = segment.streams.video[0]
                if number == 0:
                    extradata = stream.codec_context.extradata
                    self.depth = int(stream.codec_context.reorder_depth)
                elif stream.codec_context.extradata != extradata:
                    raise VerifyError(
                        f"{path}: its codec headers differ from the first segment's, so one track cannot "
                        "hold both; segments of one run must come from one encoder (begin again with --new)"
                    )
                count = 0
                for local, packet in numbered_packets(segment, stream, path):
                    if local >= part.frames:
                        raise VerifyError(f"{path}: holds more than its {part.frames} frames")
                    retime(packet, shown, done + count, done + local, self.depth, base, path)
                    packet.stream = video
                    count += 1
                    yield packet.dts * base, packet
                if count != part.frames:
                    raise VerifyError(f"{path}: holds {count} frames, its receipt says {part.frames}")
            done += part.frames
            fetched.let_go(number)

    def _others(self, container: Any) -> Iterator[tuple[Fraction, Any]]:
        """Packets of the source's other streams, shifted, cut to the range, converted where planned."""
        if not self.tracks:
            return
        for stream in container.streams:
            if stream.index not in self.tracks:
                stream.discard = av.stream.Discard.all
        last = Fraction(0)
        for packet in self._demuxed(container):
            track = self.tracks[packet.stream_index]
            for made in self._carried(track, packet):
                if made.dts is not None:
                    last = made.dts * made.time_base
                yield last, made
        for track in self.tracks.values():
            for made in self._on_screen(track):
                yield last, made
            if track.encoder is not None:
                for made in track.encoder.encode(None):
                    yield last, self._placed(track, made)

    def _demuxed(self, container: Any) -> Iterator[Any]:
        streams = [container.streams[index] for index in self.tracks]
        iterator = container.demux(*streams)
        try:
            for packet in iterator:
                tick()
                if packet.size and packet.stream_index in self.tracks:
                    yield packet
        except av.FFmpegError as exc:
            raise MediaError(
                f"{self.source.uri}: its other streams cannot be read ({reason(exc)}); "
                "leave them out with --audio none and --drop KIND"
            ) from exc
        finally:
            iterator.close()  # see decoder.py

    def _carried(self, track: Track, packet: Any) -> Iterator[Any]:
        base = packet.time_base
        if packet.pts is None:
            packet.pts = packet.dts
        if packet.pts is None:
            packet.pts = packet.dts = nearest((track.next_pts or Fraction(0)) / base)
        begin = packet.pts * base
        if track.samples is not None:
            rest = track.samples - begin
            packet.duration = min(packet.duration or 0, nearest(max(rest, Fraction(0)) / base))
        duration = (packet.duration or 0) * base
        track.next_pts = begin + duration
        if track.plan.is_cover:
            packet.pts = packet.dts = nearest(-self.offset / base)
        elif track.screen is not None and begin <= self.window[0]:
            track.screen.note(packet)
            return
        elif self.is_cut and not self._is_inside(track, packet, begin, begin + duration):
            return
        yield from self._on_screen(track)
        if track.plan.action == "transcode":
            yield from self._recoded(track, packet)
            return
        if track.plan.action == "text":
            converted = converted_text(packet, track)
            if converted is None:
                return
            packet = converted
        if self.is_cut and track.plan.kind == "subtitle":
            first, last = max(begin, self.window[0]), min(begin + duration, self.window[1])
            packet.pts = packet.dts = nearest(first / base)
            packet.duration = nearest(max(last - first, Fraction(0)) / base)
        yield self._placed(track, packet)

    def _on_screen(self, track: Track) -> Iterator[Any]:
        """What a subtitle track shows when the range begins."""
        first, last = self.window
        for packet in track.screen.take() if track.screen is not None else ():
            base = packet.time_base
            end = (packet.pts + packet.duration) * base if packet.duration else None
            if end is not None and end <= first:
                continue
            packet.pts = packet.dts = nearest(first / base)
            packet.duration = 0 if end is None else nearest((min(end, last) - first) / base)
            yield self._placed(track, packet)

    def _find_keys(self) -> None:
        """Copied videos of a range begin at a key picture; one that has none there is left out."""
        if not self.is_cut:
            return
        videos = [e.index for e in self.plan.streams if (e.kind, e.action, e.is_cover) == _COPIED_VIDEO]
        self.keys = first_keys(self.source, videos, self.window)
        for index in videos:
            name = f"stream {index} (video)"
            if index not in self.keys:
                self.notes.append(f"{name}: left out, no key picture of it lies in the range")
            elif self.keys[index] > self.begin:
                late = float(self.keys[index] - self.begin)
                self.notes.append(f"{name}: begins {late:.3f} s late, at its first key picture")
        lost = set(videos) - set(self.keys)
        self.plan = replace(
            self.plan, streams=tuple(each for each in self.plan.streams if each.index not in lost)
        )

    def _is_inside(self, track: Track, packet: Any, begin: Fraction, end: Fraction) -> bool:
        first, last = self.window
        if track.plan.kind == "subtitle":
            return begin < last and (end > first or begin >= first)
        if track.plan.action == "transcode":  # what is decoded is cut to the sample
            return end > first - _PREROLL_S and begin < last
        if track.plan.kind == "video":
            # whole groups in decoding order: without what they refer to, pictures are lost anyway
            decoded = begin if packet.dts is None else packet.dts * packet.time_base
            return begin >= self.keys[track.plan.index] and decoded < last
        return first <= begin < last

    def _placed(self, track: Track, packet: Any) -> Any:
        """The packet in the output's clock; dts made to rise where a broken source's does not.

        Matroska takes equal ones, and has many where packets are shorter than its tick (TrueHD: 1200 per s).
        """
        base, out = packet.time_base, track.out.time_base
        least = int(self.plan.muxer in ("mp4", "mov") and track.plan.kind != "subtitle")
        pts = nearest((packet.pts * base + self.offset) / out)
        dts = pts if packet.dts is None else nearest((packet.dts * base + self.offset) / out)
        if track.last_dts is not None and dts < track.last_dts + least:
            dts = track.last_dts + least
            track.mended += 1
        pts = max(pts, dts)
        packet.duration = nearest((packet.duration or 0) * base / out)
        packet.pts, packet.dts, packet.time_base = pts, dts, out
        packet.stream = track.out
        track.last_dts = dts
        return packet

    def _recoded(self, track: Track, packet: Any) -> Iterator[Any]:
        try:
            decoded = packet.decode()
        except av.FFmpegError as exc:
            track.mended += 1
            log.warning("sound packet lost stream=%s error=%s", track.name, reason(exc))
            return
        for frame in decoded:
            if self.is_cut:
                frame = trimmed(frame, self.window)
            if frame is None:
                continue
            for made in track.encoder.encode(frame):
                yield self._placed(track, made)

    def _mux(self, out: Any, packet: Any) -> None:
        index = packet.stream_index
        self.written.add(index)
        try:
            out.mux_one(packet)
        except av.FFmpegError as exc:
            if exc.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            name = next((t.name for t in self.tracks.values() if t.out.index == index), None)
            if name is None:
                raise
            raise MediaError(
                f"{self.source.uri}: the {self.plan.muxer} muxer refuses a packet of {name} ({reason(exc)}); "
                f"try another container or leave it out"
            ) from exc


_COPIED_VIDEO = ("video", "copy", False)
_FROM_SOURCE = ("copy", "text", "transcode", "cover", "attach")


def _write_header(out: Any, muxer: str) -> None:
    try:
        out.start_encoding()
    except av.FFmpegError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise JobError(
            f"the {muxer} muxer refuses these streams ({reason(exc)}); name another container (.mkv holds "
            "most) or leave streams out with --drop KIND"
        ) from exc


# --- small parts
def _without_language(key: str) -> str:
    """The name of a tag without the language that QuickTime's texts carry (location-eng)."""
    name, _, language = key.lower().partition("-")
    return name if len(language) == 3 else key.lower()


def _by_time(video: Iterator[tuple[Fraction, Any]], others: Iterator[tuple[Fraction, Any]]) -> Iterator[Any]:
    """Both in one order by decoding time; each keeps its own order, nothing is held back but two packets."""
    left, right = next(video, None), next(others, None)
    while left is not None or right is not None:
        if right is None or (left is not None and left[0] <= right[0]):
            assert left is not None
            yield left[1]
            left = next(video, None)
        else:
            yield right[1]
            right = next(others, None)


def _close_quietly(out: Any) -> None:
    with contextlib.suppress(av.FFmpegError, OSError, ValueError):
        out.close()
