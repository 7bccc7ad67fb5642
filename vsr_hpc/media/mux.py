"""The merge: segments' packets under the source's own timestamps, its other streams beside them.

Nothing is re-encoded here but sound on request. Packets stream through; memory does not grow with the clip.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import logging
import os
import re
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from pathlib import Path
from typing import Any

import av

from vsr_hpc.errors import BackendError, JobError, MediaError, SpaceError, VerifyError
from vsr_hpc.media.clip import Clip
from vsr_hpc.media.containers import (
    MUXERS,
    ContainerPlan,
    StreamPlan,
    StreamsRequest,
    check_container,
    default_output_path,
    plan_container,
)
from vsr_hpc.media.encoding import Encoding, reason
from vsr_hpc.media.headers import (
    NAME_PADDING,
    TrackEdit,
    edit_matroska_file,
    edit_matroska_tracks,
    with_track_header,
)
from vsr_hpc.media.picture import Picture
from vsr_hpc.media.source import Source, open_input
from vsr_hpc.media.timeline import Timeline

__all__ = [
    "MUXERS",
    "ContainerPlan",
    "MergeReport",
    "SegmentPart",
    "StreamsRequest",
    "check_container",
    "default_output_path",
    "merge",
    "plan_container",
]

log = logging.getLogger(__name__)

_PREFETCH = 2
_PEEK_PACKETS = 2000
_FAR_START = Fraction(1)
_BITEXACT = 1 << 23
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
_MARKUP = re.compile(r"</?[a-zA-Z][^>]*>|\{\\[^}]*\}")
_ASS_HEADER = (
    b"[Script Info]\r\nScriptType: v4.00+\r\nPlayResX: 384\r\nPlayResY: 288\r\n\r\n[V4+ Styles]\r\n"
    b"Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, Bold, "
    b"Italic, Underline, StrikeOut, ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, Shadow, Alignment, "
    b"MarginL, MarginR, MarginV, Encoding\r\nStyle: Default,Arial,16,&Hffffff,&Hffffff,&H0,&H0,0,0,0,0,"
    b"100,100,0,0,1,1,0,2,10,10,10,1\r\n\r\n[Events]\r\nFormat: Layer, Start, End, Style, Name, MarginL, "
    b"MarginR, MarginV, Effect, Text\r\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentPart:
    """One finished segment. `fetch` brings it to this machine when its turn comes; `done` lets it go."""

    fetch: Callable[[], Path]
    frames: int
    sha256: str | None = None
    done: Callable[[Path], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeReport:
    """What was written. `offset` seconds were added to every source timestamp; `tick` is the output's."""

    frames: int
    size_bytes: int
    sha256: str
    offset: Fraction
    tick: Fraction
    reorder_depth: int
    notes: tuple[str, ...]
    copy_s: float
    hash_s: float


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
    start, stop = frames or (0, len(timeline))
    plan = plan_container(clip, encoding, name or output, request)
    if plan.findings:
        raise JobError.from_findings(str(name or output), list(plan.findings))
    counted = sum(part.frames for part in segments)
    if counted != stop - start or not counted:
        raise VerifyError(f"{output}: segments hold {counted} frames, frames [{start}, {stop}) were planned")
    job = _Merge(clip, timeline, source, picture, encoding, output, request, plan, (start, stop))
    try:
        with _translated(output):
            return job.run(segments)
    except BaseException:
        output.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _translated(output: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, av.FFmpegError) as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SpaceError(f"{output}: the disk is full; free space and call again") from exc
        raise BackendError(f"{output}: writing failed: {reason(exc)}") from exc


@dataclass(slots=True)
class _Track:
    """One stream on its way from the source into the output."""

    plan: StreamPlan
    source: Any
    out: Any
    name: str
    last_dts: int | None = None
    next_pts: Fraction | None = None
    mended: int = 0
    encoder: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Peek:
    """What the first packets of the source tell: where each stream starts, priming, cover pictures."""

    first: dict[int, Fraction]
    priming: dict[int, int]
    covers: dict[int, bytes]
    packets: dict[int, bytes]


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
    ) -> None:
        self.clip, self.timeline, self.source, self.picture = clip, timeline, source, picture
        self.encoding, self.output, self.request, self.plan = encoding, output, request, plan
        self.start, self.stop = frames
        self.notes = list(plan.notes)
        self.tracks: dict[int, _Track] = {}
        self.edits: dict[int, TrackEdit] = {}
        self.offset = Fraction(0)
        self.depth = 0
        begin = int(timeline.pts[self.start]) * timeline.time_base
        end = timeline.end if self.stop == len(timeline) else int(timeline.pts[self.stop])
        self.window = (begin, end * timeline.time_base)
        self.is_cut = (self.start, self.stop) != (0, len(timeline))

    def run(self, segments: Sequence[SegmentPart]) -> MergeReport:
        began = time.monotonic()
        wanted = [each for each in self.plan.streams if each.action in _FROM_SOURCE]
        with contextlib.ExitStack() as stack:
            fetched = _Fetched(segments, stack)
            keeps_chapters = bool(self.clip.chapters) and "chapters" not in self.request.drop
            container: Any = None
            peek = _Peek(first={}, priming={}, covers={}, packets={})
            if wanted or keeps_chapters or self.clip.images is None:
                peek = _peeked(self.source, wanted)
                container = stack.enter_context(open_input(self.source))
            out: Any = av.open(
                str(self.output), "w", format=self.plan.muxer, options=self._options(container)
            )
            stack.callback(_close_quietly, out)
            video = self._add_streams(out, container, fetched.path(0), peek, stack)
            self._describe(out, container)
            self.offset = self._choose_offset(peek)
            if keeps_chapters:
                out.set_chapters(self._chapters(container))
            _write_header(out, self.plan.muxer)
            packets = _by_time(self._video(fetched, video), self._others(container))
            for packet in packets:
                self._mux(out, packet)
            out.close()
        if self.edits:
            edit_matroska_file(self.output, self.edits)
        for track in self.tracks.values():
            if track.mended:
                self.notes.append(f"{track.name}: {track.mended} packets had timestamps out of order, mended")
        copied = time.monotonic()
        size, digest = _synced_sha256(self.output)
        tick = video.time_base
        log.info("merge done output=%s frames=%d size=%d", self.output, self.stop - self.start, size)
        return MergeReport(
            frames=self.stop - self.start,
            size_bytes=size,
            sha256=digest,
            offset=self.offset,
            tick=tick,
            reorder_depth=self.depth,
            notes=tuple(self.notes),
            copy_s=copied - began,
            hash_s=time.monotonic() - copied,
        )

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
            scale = lcm(_mp4_scale(self.timeline.time_base), *filter(None, rates))
            options["movie_timescale"] = str(
                scale if scale < 1 << 31 else _mp4_scale(self.timeline.time_base)
            )
            options["video_track_timescale"] = str(_mp4_scale(self.timeline.time_base))
            tags = {} if container is None else self._container_tags(container)
            if not {key.lower() for key in tags} <= set(_MP4_TAGS.split()):
                options["movflags"] = "+use_metadata_tags"
        else:
            options["avoid_negative_ts"] = "disabled"
        return options

    def _add_streams(
        self, out: Any, container: Any, segment: Path, peek: _Peek, stack: contextlib.ExitStack
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
                _add_file(out, container.streams[plan.index], plan, peek)
        return video

    def _add_video(self, out: Any, segment: Path, stack: contextlib.ExitStack) -> Any:
        template = stack.enter_context(_video_template(segment, self.picture))
        stream = out.add_stream_from_template(template.streams.video[0], opaque=True)
        stream.time_base = self.timeline.time_base
        stream.codec_context.sample_aspect_ratio = self.picture.sample_aspect
        if self.encoding.codec == "h265" and self.plan.muxer in ("mp4", "mov"):
            stream.codec_context.codec_tag = "hvc1"  # what Apple's players ask for
        return stream

    def _reserve(self, out: Any, video: Any) -> None:
        """Room in a Matroska header for what PyAV cannot set: the sample aspect and FFV1's chroma siting."""
        is_bare = self.encoding.codec in ("ffv1", "prores") and self.picture.colour.siting != "unspecified"
        if self.plan.muxer not in ("matroska", "webm") or (self.picture.sample_aspect == 1 and not is_bare):
            return
        video.metadata["title"] = video.metadata.get("title", "") + NAME_PADDING
        self.edits[_track_position(out, video)] = TrackEdit(
            sample_aspect=None if self.picture.sample_aspect == 1 else self.picture.sample_aspect,
            size=(self.picture.width, self.picture.height),
            siting=self.picture.colour.siting
            if is_bare and self.picture.pixel.log2_chroma_w
            else "unspecified",
        )

    def _add_other(
        self, out: Any, template: Any, plan: StreamPlan, peek: _Peek, stack: contextlib.ExitStack
    ) -> None:
        name = f"stream {plan.index} ({plan.kind} {plan.codec})"
        track = _Track(plan=plan, source=template, out=None, name=name)
        if plan.action == "transcode":
            track.out = track.encoder = _audio_encoder(out, template, plan.codec)
        elif plan.action == "text":
            track.out = out.add_stream(plan.codec)
            track.out.codec_context.subtitle_header = _ASS_HEADER
            track.out.codec_context.time_base = Fraction(1, 1000)
            track.out.time_base = Fraction(1, 1000)
        else:
            priming = peek.priming.get(plan.index, 0)
            if (
                priming
                and self.plan.muxer in ("matroska", "webm")
                and plan.kind == "audio"
                and not self.start
            ):
                template = stack.enter_context(_primed_template(template, peek.packets[plan.index], priming))
            track.out = out.add_stream_from_template(template, opaque=True)
        self._dress(track.out, track.source, is_new=plan.action == "transcode")
        self.tracks[plan.index] = track

    def _dress(self, stream: Any, like: Any, *, is_new: bool) -> None:
        """Language, title, other tags and dispositions of the source's stream."""
        stream.disposition = int(like.disposition)
        stale = _STALE_STREAM_TAGS + (_ENCODER_TAGS if is_new else ())
        keep = ("language", "timecode") if "metadata" in self.request.drop else None
        stream.metadata.update(
            (key, value)
            for key, value in like.metadata.items()
            if key.lower() not in stale
            and not key.lower().startswith(_STALE_PREFIX)
            and (keep is None or key.lower() in keep)
        )

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
            kept.append({**chapter, "start": _nearest(first / base), "end": _nearest(last / base)})
        return kept

    def _choose_offset(self, peek: _Peek) -> Fraction:
        """One shift for all streams: none where the source starts near zero, to zero where it does not."""
        begin = self.window[0]
        if self.start:
            return -begin
        earliest = begin
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

    def _video(self, fetched: _Fetched, video: Any) -> Iterator[tuple[Fraction, Any]]:
        """Packets of all segments in coding order with the source's timestamps."""
        base = video.time_base
        shown = _ticks(self.timeline, self.start, self.stop, self.offset, base)
        done = 0
        extradata: bytes | None = None
        for number, part in enumerate(fetched.segments):
            path = fetched.path(number)
            _check_sha256(path, part)
            with _open_segment(path) as segment:
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
                for local, packet in _numbered(segment, stream, path):
                    if local >= part.frames:
                        raise VerifyError(f"{path}: holds more than its {part.frames} frames")
                    _retime(packet, shown, done + count, done + local, self.depth, base, path)
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
            if track.encoder is not None:
                for made in track.encoder.encode(None):
                    yield last, self._placed(track, made)

    def _demuxed(self, container: Any) -> Iterator[Any]:
        streams = [container.streams[index] for index in self.tracks]
        iterator = container.demux(*streams)
        while True:
            try:
                packet = next(iterator, None)
            except av.FFmpegError as exc:
                raise MediaError(
                    f"{self.source.uri}: its other streams cannot be read ({reason(exc)}); "
                    "leave them out with --audio none and --drop KIND"
                ) from exc
            if packet is None:
                return
            if packet.size and packet.stream_index in self.tracks:
                yield packet

    def _carried(self, track: _Track, packet: Any) -> Iterator[Any]:
        base = packet.time_base
        if packet.pts is None:
            packet.pts = packet.dts
        if packet.pts is None:
            packet.pts = packet.dts = _nearest((track.next_pts or Fraction(0)) / base)
        begin = packet.pts * base
        duration = (packet.duration or 0) * base
        track.next_pts = begin + duration
        if track.plan.is_cover:
            packet.pts = packet.dts = _nearest(-self.offset / base)
        elif self.is_cut and not self._is_inside(track, begin, begin + duration):
            return
        if track.plan.action == "transcode":
            yield from self._recoded(track, packet)
            return
        if track.plan.action == "text":
            converted = _converted_text(packet, track)
            if converted is None:
                return
            packet = converted
        if self.is_cut and track.plan.kind == "subtitle":
            first, last = max(begin, self.window[0]), min(begin + duration, self.window[1])
            packet.pts = packet.dts = _nearest(first / base)
            packet.duration = _nearest((last - first) / base)
        yield self._placed(track, packet)

    def _is_inside(self, track: _Track, begin: Fraction, end: Fraction) -> bool:
        first, last = self.window
        if track.plan.kind == "subtitle":
            return begin < last and (end > first or begin >= first)
        return first <= begin < last

    def _placed(self, track: _Track, packet: Any) -> Any:
        """The packet in the output's clock; dts made to rise where a broken source's does not."""
        base, out = packet.time_base, track.out.time_base
        pts = _nearest((packet.pts * base + self.offset) / out)
        dts = pts if packet.dts is None else _nearest((packet.dts * base + self.offset) / out)
        if track.last_dts is not None and dts < track.last_dts + (track.plan.kind != "subtitle"):
            dts = track.last_dts + 1
            track.mended += 1
        pts = max(pts, dts)
        packet.duration = _nearest((packet.duration or 0) * base / out)
        packet.pts, packet.dts, packet.time_base = pts, dts, out
        packet.stream = track.out
        track.last_dts = dts
        return packet

    def _recoded(self, track: _Track, packet: Any) -> Iterator[Any]:
        try:
            decoded = packet.decode()
        except av.FFmpegError as exc:
            track.mended += 1
            log.warning("sound packet lost stream=%s error=%s", track.name, reason(exc))
            return
        for frame in decoded:
            for made in track.encoder.encode(frame):
                yield self._placed(track, made)

    def _mux(self, out: Any, packet: Any) -> None:
        index = packet.stream_index
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


class _Fetched:
    """Segments on this machine: a bounded number is fetched ahead, and let go once copied."""

    def __init__(self, segments: Sequence[SegmentPart], stack: contextlib.ExitStack) -> None:
        self.segments = segments
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fetch")
        stack.callback(self._pool.shutdown, wait=True, cancel_futures=True)
        self._coming: dict[int, Future[Path]] = {}

    def path(self, number: int) -> Path:
        for ahead in range(number, min(number + _PREFETCH + 1, len(self.segments))):
            if ahead not in self._coming:
                self._coming[ahead] = self._pool.submit(self.segments[ahead].fetch)
        return self._coming[number].result()

    def let_go(self, number: int) -> None:
        done = self.segments[number].done
        path = self._coming[number].result()
        if done is not None:
            done(path)


# --- small parts


def _mp4_scale(base: Fraction) -> int:
    """A time scale in which every tick of the source is a whole number and that no muxer rounds up."""
    scale = base.denominator
    while scale < 10000:
        scale *= 2
    return scale


def _nearest(value: Fraction) -> int:
    """Half away from zero, as FFmpeg rounds."""
    doubled = abs(value.numerator) * 2 + value.denominator
    rounded = doubled // (2 * value.denominator)
    return rounded if value.numerator >= 0 else -rounded


def _ticks(timeline: Timeline, start: int, stop: int, offset: Fraction, base: Fraction) -> list[int]:
    """When each frame is shown and when the last one ends, in the output's ticks."""
    times = [int(pts) for pts in timeline.pts[start:stop]]
    times.append(timeline.end if stop == len(timeline) else int(timeline.pts[stop]))
    scale, shift = timeline.time_base / base, offset / base
    return [_nearest(pts * scale + shift) for pts in times]


def _retime(
    packet: Any, shown: list[int], coded: int, frame: int, depth: int, base: Fraction, path: Path
) -> None:
    """Timestamps of the `coded`-th packet of the track, which shows the given frame."""
    if coded - frame > depth:
        raise VerifyError(
            f"{path}: frame {frame} is coded {coded - frame} places late, its codec header allows {depth}"
        )
    packet.time_base = base
    packet.pts = shown[frame]
    packet.dts = _decoded_at(shown, coded, depth)
    packet.duration = shown[frame + 1] - shown[frame]


def _decoded_at(shown: list[int], coded: int, depth: int) -> int:
    """The sorted timestamps, delayed by the reorder depth.

    What comes before the first one is as long as what the last `depth` frames overhang at the end, so that
    MP4's media duration, a sum of differences of dts, comes out as long as the film.
    """
    if coded >= depth:
        return shown[coded - depth]
    last = len(shown) - 2
    lead = max(depth, shown[last] - shown[max(0, last - depth)])
    return shown[0] - lead * (depth - coded) // depth


def _numbered(segment: Any, stream: Any, path: Path) -> Iterator[tuple[int, Any]]:
    """A segment's packets in coding order, each with the number of the frame it shows."""
    is_in_order = stream.codec_context.reorder_depth == 0
    step: int | None = None
    for count, packet in enumerate(packet for packet in segment.demux(stream) if packet.size):
        if is_in_order:
            yield count, packet
            continue
        step = step or packet.duration
        if not step or packet.pts is None or packet.pts % step:
            raise VerifyError(f"{path}: packet {count} has no timestamp on the segment's grid")
        yield packet.pts // step, packet


@contextlib.contextmanager
def _open_segment(path: Path) -> Iterator[Any]:
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError) as exc:
        raise VerifyError(f"{path}: this segment cannot be opened: {reason(exc)}") from exc
    with container:
        yield container


def _check_sha256(path: Path, part: SegmentPart) -> None:
    if part.sha256 is None:
        return
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != part.sha256:
        raise VerifyError(f"{path}: sha256 is {digest.hexdigest()}, its receipt says {part.sha256}")


@contextlib.contextmanager
def _video_template(segment: Path, picture: Picture) -> Iterator[Any]:
    """A container whose video stream carries what the output's header needs, rotation and HDR10 included.

    PyAV copies side data from a template but cannot make it; so a one-packet MP4 is made in memory and its
    header edited. Where there is nothing to add, the segment itself is the template.
    """
    if picture.display_matrix is None and picture.mastering is None and picture.light_level is None:
        with _open_segment(segment) as container:
            yield container
        return
    memory = io.BytesIO()
    with _open_segment(segment) as container:
        stream = container.streams.video[0]
        kind = "mov" if segment.suffix == ".mov" else "mp4"
        with av.open(memory, "w", format=kind, options={"fflags": "+bitexact"}) as small:
            copy = small.add_stream_from_template(stream, opaque=True)
            packet = next(each for each in container.demux(stream) if each.size)
            packet.stream = copy
            small.mux_one(packet)
    edited = with_track_header(
        memory.getvalue(),
        display_matrix=picture.display_matrix,
        mastering=picture.mastering,
        light_level=picture.light_level,
    )
    with av.open(io.BytesIO(edited)) as template:
        yield template


@contextlib.contextmanager
def _primed_template(stream: Any, packet: bytes, samples: int) -> Iterator[Any]:
    """The same stream from a Matroska header that states how many leading samples are to be skipped."""
    memory = io.BytesIO()
    with av.open(memory, "w", format="matroska", options={"fflags": "+bitexact"}) as small:
        copy = small.add_stream_from_template(stream, opaque=True)
        copy.metadata["title"] = NAME_PADDING
        first = av.Packet(packet)
        first.stream, first.pts, first.dts, first.time_base = copy, 0, 0, Fraction(1, 1000)
        small.mux_one(first)
    rate = stream.codec_context.sample_rate
    edit_matroska_tracks(memory, {0: TrackEdit(codec_delay_ns=samples * 10**9 // rate)})
    memory.seek(0)
    with av.open(memory) as template:
        yield template.streams[0]


def _add_file(out: Any, stream: Any, plan: StreamPlan, peek: _Peek) -> None:
    """An attached file, or a cover picture, which Matroska keeps as an attached file."""
    if plan.action == "attach":
        name, kind, data = stream.name or f"attachment{plan.index}", stream.mimetype, stream.data
    else:
        suffix = {"png": "png", "mjpeg": "jpg", "bmp": "bmp"}.get(plan.codec, plan.codec)
        name, data = stream.metadata.get("filename") or f"cover.{suffix}", peek.covers.get(plan.index, b"")
        kind = stream.metadata.get("mimetype") or f"image/{'jpeg' if suffix == 'jpg' else suffix}"
    added = out.add_attachment(name, kind or "application/octet-stream", data)
    added.metadata.update(
        {**stream.metadata, "filename": name, "mimetype": kind or "application/octet-stream"}
    )


def _track_position(out: Any, stream: Any) -> int:
    """The stream's place among the tracks of a Matroska file, where attachments are not tracks."""
    return sum(each.type != "attachment" for each in list(out.streams)[: stream.index])


def _peeked(source: Source, plans: Sequence[StreamPlan]) -> _Peek:
    """Read the first packets of the wanted streams, until each has shown one or enough were read."""
    peek = _Peek(first={}, priming={}, covers={}, packets={})
    waiting = {each.index for each in plans if each.action != "attach" and each.kind in ("audio", "video")}
    covers = {each.index for each in plans if each.action == "cover"}
    if not waiting:
        return peek
    with open_input(source) as container:
        try:
            for number, packet in enumerate(container.demux()):
                index = packet.stream_index
                if packet.size and index in waiting:
                    waiting.discard(index)
                    _note_first(peek, packet, index in covers)
                if not waiting or number > _PEEK_PACKETS:
                    break
        except av.FFmpegError as exc:
            log.warning("source cannot be peeked uri=%s error=%s", source.uri, reason(exc))
    return peek


def _note_first(peek: _Peek, packet: Any, is_cover: bool) -> None:
    index = packet.stream_index
    if is_cover:
        peek.covers[index] = bytes(packet)
    if packet.pts is not None:
        peek.first[index] = packet.pts * packet.time_base
    peek.packets[index] = bytes(packet)
    if packet.has_sidedata("skip_samples"):
        (samples,) = struct.unpack_from("<I", bytes(packet.get_sidedata("skip_samples")))
        peek.priming[index] = samples


def _audio_encoder(out: Any, template: Any, codec: str) -> Any:
    context = template.codec_context
    rate = 48000 if codec == "opus" else min(context.sample_rate, 96000)
    stream = out.add_stream({"opus": "libopus", "aac": "aac"}[codec], rate=rate)
    stream.layout = context.layout.name
    stream.bit_rate = (64000 if codec == "opus" else 96000) * context.layout.nb_channels
    stream.codec_context.flags |= _BITEXACT
    stream.codec_context.thread_count = 1
    return stream


def _converted_text(packet: Any, track: _Track) -> Any:
    """A caption as plain text in the other container's form; None for MP4's empty fillers."""
    text = bytes(packet)
    if track.source.codec_context.name == "mov_text":
        (length,) = struct.unpack_from(">H", text)
        text = text[2 : 2 + length]
    if not text.strip():
        return None
    if track.plan.codec == "mov_text":
        plain = _MARKUP.sub("", text.decode("utf-8", "replace")).replace("\r\n", "\n").strip("\n").encode()
        text = struct.pack(">H", len(plain[:65535])) + plain[:65535]
    made = av.Packet(text)
    made.pts, made.dts, made.duration, made.time_base = (
        packet.pts,
        packet.pts,
        packet.duration,
        packet.time_base,
    )
    made.is_keyframe = True
    return made


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


def _synced_sha256(path: Path) -> tuple[int, str]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        os.fsync(file.fileno())
        while block := file.read(1 << 20):
            digest.update(block)
        return file.tell(), digest.hexdigest()
